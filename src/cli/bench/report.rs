//! Results as rows, and rows as text.

use std::io::Write;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::cli::output::json_line;
use crate::error::{Error, Result};

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// A Markdown table.
    Md,
    /// One object a line; what `bench compare` reads.
    Json,
    /// With a header.
    Csv,
}

/// Samples from which a percentile is worth stating: for p90, for p99.
const ENOUGH: [usize; 2] = [10, 100];

/// One measured quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `decode`, `score` or `search`.
    pub bench: String,
    pub name: String,
    /// What was measured: models and lengths; empty for the machine.
    #[serde(default)]
    pub setting: String,
    /// Sequences that run together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Searches that run together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    pub unit: String,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// Samples.
    pub n: usize,
    /// What this machine allows; none where there is no saying.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
    /// How near the median comes to the bound; 1 is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_bound: Option<f64>,
    /// The median over the number of chunks, for the parts of a whole search.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_chunk: Option<f64>,
}

impl Row {
    /// A row of at least one sample.
    pub fn new(bench: &str, name: &str, unit: &str, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let n = samples.len();
        let percentile = |share: f64, enough: usize| {
            (n >= enough).then(|| samples[((n as f64 * share).ceil() as usize).clamp(1, n) - 1])
        };
        Self {
            bench: bench.into(),
            name: name.into(),
            setting: String::new(),
            batch: None,
            concurrency: None,
            unit: unit.into(),
            median: (samples[(n - 1) / 2] + samples[n / 2]) / 2.0,
            min: samples[0],
            max: samples[n - 1],
            p90: percentile(0.9, ENOUGH[0]),
            p99: percentile(0.99, ENOUGH[1]),
            n,
            bound: None,
            of_bound: None,
            per_chunk: None,
        }
    }

    /// The same with what the machine allows.
    pub fn bound(self, bound: f64) -> Self {
        let of_bound =
            if self.more_is_better() { self.median / bound } else { bound / self.median };
        Self { bound: Some(bound), of_bound: Some(of_bound), ..self }
    }

    /// Rates are better high, times and sizes are better low.
    pub fn more_is_better(&self) -> bool {
        self.unit.ends_with("/s")
    }

    /// What makes it the same quantity in another run.
    pub fn key(&self) -> (&str, &str, &str, Option<usize>, Option<usize>) {
        (&self.bench, &self.name, &self.setting, self.batch, self.concurrency)
    }

    /// The quantity's name with what runs together.
    pub fn title(&self) -> String {
        match (self.batch, self.concurrency) {
            (Some(batch), _) => format!("{} @ {batch}", self.name),
            (None, Some(searches)) => format!("{} @ {searches}", self.name),
            (None, None) => self.name.clone(),
        }
    }
}

/// A number of some unit, for people.
pub fn shown(value: f64, unit: &str) -> String {
    let (factor, unit) = match unit {
        "s" if value < 1e-3 => (1e6, "µs"),
        "s" if value < 1.0 => (1e3, "ms"),
        "B" => (1.0 / (1u64 << 20) as f64, "MiB"),
        "B/s" => (1e-9, "GB/s"),
        "op/s" => (1e-9, "Gop/s"),
        unit => (1.0, unit),
    };
    let value = value * factor;
    let digits = match value.abs() {
        0.0..10.0 if unit != "pages" => 3,
        10.0..100.0 if unit != "pages" => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

const HEADER: [&str; 9] =
    ["what", "median", "min", "max", "p90", "p99", "per chunk", "bound", "of bound"];

/// A row as people read it, under [`HEADER`].
fn cells(row: &Row) -> [String; 9] {
    let number = |value: Option<f64>| value.map_or(String::new(), |v| shown(v, &row.unit));
    [
        row.title(),
        shown(row.median, &row.unit),
        number(Some(row.min)),
        number(Some(row.max)),
        number(row.p90),
        number(row.p99),
        number(row.per_chunk),
        number(row.bound),
        row.of_bound.map_or(String::new(), |share| format!("{:.0} %", share * 100.0)),
    ]
}

/// All rows on stdout. `device` heads what people read.
pub fn print(rows: &[Row], format: Format, device: &str) -> Result<()> {
    let mut out = Vec::new();
    match format {
        Format::Json => out.extend(rows.iter().flat_map(json_line)),
        Format::Csv => out.extend(csv(rows).into_bytes()),
        Format::Md => out.extend(markdown(rows, device).into_bytes()),
        Format::Table => out.extend(table(rows, device).into_bytes()),
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&out).and_then(|()| stdout.flush()).map_err(Error::io("write to", "stdout"))
}

/// Rows in groups of one setting each.
fn groups(rows: &[Row]) -> impl Iterator<Item = &[Row]> {
    rows.chunk_by(|a, b| a.setting == b.setting)
}

fn markdown(rows: &[Row], device: &str) -> String {
    let mut text = format!("On {device}.\n");
    for group in groups(rows) {
        text += &format!("\n{}\n\n| {} |\n", heading(group), HEADER.join(" | "));
        text += &format!("|{}\n", "---|".repeat(HEADER.len()));
        text.extend(group.iter().map(|row| format!("| {} |\n", cells(row).join(" | "))));
    }
    text
}

fn table(rows: &[Row], device: &str) -> String {
    let mut text = format!("On {device}.\n");
    for group in groups(rows) {
        let header = HEADER.map(str::to_owned);
        let lines: Vec<_> = std::iter::once(header).chain(group.iter().map(cells)).collect();
        let width = |column: usize| {
            let empty = lines[1..].iter().all(|line| line[column].is_empty());
            let widest = lines.iter().map(|line| line[column].chars().count()).max();
            if empty { 0 } else { widest.unwrap_or(0) }
        };
        let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
        text += &format!("\n{}\n", heading(group));
        for line in &lines {
            text += &format!("  {:<1$}", line[0], widths[0]);
            for (cell, width) in line.iter().zip(&widths).skip(1).filter(|(_, width)| **width > 0) {
                text += &format!("  {cell:>width$}");
            }
            text.truncate(text.trim_end().len());
            text += "\n";
        }
    }
    text
}

fn heading(group: &[Row]) -> &str {
    match group.first() {
        Some(row) if !row.setting.is_empty() => &row.setting,
        _ => "This machine",
    }
}

fn csv(rows: &[Row]) -> String {
    let mut text = String::from(
        "bench,setting,name,batch,concurrency,unit,median,min,max,p90,p99,n,bound,of_bound,per_chunk\n",
    );
    let count = |value: Option<usize>| value.map_or(String::new(), |v| v.to_string());
    let number = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
    for row in rows {
        let fields = [
            row.bench.clone(),
            format!("\"{}\"", row.setting.replace('"', "\"\"")),
            row.name.clone(),
            count(row.batch),
            count(row.concurrency),
            row.unit.clone(),
            row.median.to_string(),
            row.min.to_string(),
            row.max.to_string(),
            number(row.p90),
            number(row.p99),
            row.n.to_string(),
            number(row.bound),
            number(row.of_bound),
            number(row.per_chunk),
        ];
        text += &format!("{}\n", fields.join(","));
    }
    text
}
