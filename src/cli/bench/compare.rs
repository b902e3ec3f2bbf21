//! `trimtab bench compare`

use std::path::{Path, PathBuf};

use super::report::{Row, shown};
use crate::cli::Done;
use crate::cli::stdout::outln;
use crate::error::{Error, Result};
use crate::server::say;

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Lines of JSON from an earlier run
    #[arg(value_name = "OLD.json")]
    old: PathBuf,
    /// Lines of JSON from a later one
    #[arg(value_name = "NEW.json")]
    new: PathBuf,
}

/// Prints the quantities whose ranges do not touch: what moved beyond the noise.
pub fn run(args: &Args) -> Result<Done> {
    let (old, new) = (read(&args.old)?, read(&args.new)?);
    let [before, after] = [&old, &new].map(|rows| rows[0].origin.machine());
    if before != after {
        outln!("{} is of {before}", args.old.display())?;
        outln!("{} is of {after}", args.new.display())?;
    }
    let (mut common, mut still) = (0, 0);
    for row in &new {
        let Some(before) = old.iter().find(|before| before.key() == row.key()) else {
            outln!("only in {}: {}", args.new.display(), name(row))?;
            continue;
        };
        common += 1;
        if row.min <= before.max && before.min <= row.max {
            still += 1;
            continue;
        }
        let better = (row.median > before.median) == row.more_is_better();
        outln!(
            "{}: {} → {} ({:+.1} %, {})",
            name(row),
            shown(before.median, &row.unit),
            shown(row.median, &row.unit),
            (row.median / before.median - 1.0) * 100.0,
            if better { "better" } else { "worse" },
        )?;
    }
    for row in old.iter().filter(|row| new.iter().all(|after| after.key() != row.key())) {
        outln!("only in {}: {}", args.old.display(), name(row))?;
    }
    if common == 0 {
        say("no row in common");
        return Ok(Done::WithFailures);
    }
    outln!("{still} of {common} moved no further than their ranges")?;
    Ok(Done::Well)
}

fn name(row: &Row) -> String {
    format!("{} {} {}", row.bench, row.title(), row.setting).trim_end().to_owned()
}

fn read(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows: Vec<Row> = lines
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|e| Error::Line {
                path: path.to_owned(),
                line: index + 1,
                reason: format!("is no row of `trimtab bench … --format json`: {e}"),
            })
        })
        .collect::<Result<_>>()?;
    match rows.is_empty() {
        true => Err(Error::Line {
            path: path.to_owned(),
            line: 1,
            reason: "holds no rows of `trimtab bench … --format json`".into(),
        }),
        false => Ok(rows),
    }
}
