//! `trimtab demo`: weak-to-strong search on the three small models that come with trimtab.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::Done;
use super::base::Base;
use super::device::{DeviceArgs, Job};
use super::input;
use super::judge::Judge;
use super::memory;
use super::models::{self, BosFlag, GuideArgs, GuideTokensFlag, Plan};
use super::stdout::{out, outln};
use super::tree::{self, Paint};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::guide::PairGuide;
use crate::proposer::{BaseProposer, Sampling};
use crate::scheduler::Scheduler;
use crate::search::{Outcome, Settings};
use crate::text::{Prompt, StopStrings, Template};

/// Prompts shown side by side.
const SHOWN: usize = 4;
/// Searches at once.
const IN_FLIGHT: usize = 16;
/// Width of a column.
const COLUMN: usize = 34;

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Run over all held-out openings and print means with standard errors
    #[arg(long)]
    full: bool,
    /// With --full: runs per opening, each with its own seed
    #[arg(long, value_name = "N", default_value_t = 4, requires = "full")]
    seeds: u64,
    /// Folder of the demo's models [default: models, here or beside the source]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// One of the three columns.
struct Column {
    name: &'static str,
    settings: Settings,
}

/// Base alone, best-of-16, and the search with as many candidates.
fn columns() -> [Column; 3] {
    let settings = |beam_width, successors, chunk_len| Settings {
        beam_width,
        successors,
        chunk_len,
        max_new_tokens: 40,
        sampling: Sampling { temperature: 0.7, top_k: 50, top_p: 1.0 },
        seed: 1,
        stop: StopStrings::default(),
        compat: false,
    };
    [
        Column { name: "base alone", settings: settings(1, 1, None) },
        Column { name: "best of 16", settings: settings(1, 16, None) },
        Column { name: "search 4,4,5", settings: settings(4, 4, Some(5)) },
    ]
}

pub fn run(args: Args) -> Result<Done> {
    if args.seeds == 0 {
        return Err(Error::flag("--seeds", "must be at least 1"));
    }
    args.device.clone().run(args)
}

impl Job for Args {
    type Output = Done;

    fn run<B: Backend>(self, backend: &Arc<B>) -> Result<Done> {
        demo(backend, &self)
    }
}

fn demo<B: Backend>(backend: &Arc<B>, args: &Args) -> Result<Done> {
    let started = Instant::now();
    let folder = args.models.clone().unwrap_or_else(|| {
        let here = PathBuf::from("models");
        let source = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models"));
        if here.is_dir() { here } else { source }
    });
    let judge = Judge::open(&folder.join("judge.json"))?;
    let prompts: Vec<Prompt> = input::prompts(&folder.join("openings.jsonl"))?
        .into_iter()
        .map(|item| item.content)
        .collect::<Result<_>>()?;
    let guide = GuideArgs {
        tuned: Some(folder.join("tuned")),
        untuned: Some(folder.join("untuned")),
        guides: Vec::new(),
        guide_template: None,
        system: None,
        chat: false,
        date: None,
        bos: BosFlag::Auto,
    };
    // Each column must fit, and the search is not the one that needs most at once.
    let lives = columns().map(|column| column.settings.lifetime());
    let life = lives.into_iter().max_by_key(|life| life.pages(1)).expect("there are columns");
    let plan = Plan {
        base: Base::Folder(folder.join("base")),
        base_template: Template::default(),
        guide_tokens: GuideTokensFlag::Auto,
        compat: false,
        guidance: None,
        least: life,
        life,
        in_flight: IN_FLIGHT,
    };
    let ready = models::load(backend, &plan, &guide, args.device.kv_memory)?;
    let mut scheduler = Scheduler::new(ready.proposer, ready.guide, IN_FLIGHT);
    if args.full {
        full(&mut scheduler, &prompts, &judge, args.seeds)?;
    } else {
        side_by_side(&mut scheduler, &prompts, &judge)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    outln!("\n{seconds:.1} s on {}", memory::describe(&**backend))?;
    Ok(Done::Well)
}

/// Runs jobs and returns their outcomes in order.
fn run_all<B: Backend>(
    scheduler: &mut Scheduler<BaseProposer<B>, PairGuide<B>>,
    jobs: &[(&Prompt, Settings)],
) -> Result<Vec<Outcome>> {
    for (id, (prompt, settings)) in jobs.iter().enumerate() {
        scheduler.submit(id, prompt, settings.clone())?;
    }
    let mut outcomes: Vec<Option<Outcome>> = jobs.iter().map(|_| None).collect();
    while scheduler.pending() > 0 {
        for finished in scheduler.tick()? {
            outcomes[finished.id] = Some(finished.result?);
        }
    }
    Ok(outcomes.into_iter().flatten().collect())
}

fn text(prompt: &Prompt) -> &str {
    match prompt {
        Prompt::Text(text) => text,
        Prompt::Chat(_) => "",
    }
}

fn side_by_side<B: Backend>(
    scheduler: &mut Scheduler<BaseProposer<B>, PairGuide<B>>,
    prompts: &[Prompt],
    judge: &Judge,
) -> Result<()> {
    let paint = Paint::new(std::io::stdout().is_terminal());
    let columns = columns();
    outln!(
        "A small film-review model, steered towards praise by two models a tenth of its size.\n\
         gain: log π_tuned − log π_untuned, what the search maximises. sentiment: a judge that\n\
         shares no data with the guide, from −1 to 1.\n"
    )?;
    let names: Vec<String> = columns.iter().map(|c| format!("{:<COLUMN$}", c.name)).collect();
    outln!("{}{}{}", paint.bold, names.join(" "), paint.off)?;
    let mut last = Vec::new();
    for prompt in prompts.iter().take(SHOWN) {
        let jobs: Vec<_> = columns.iter().map(|c| (prompt, c.settings.clone())).collect();
        let outcomes = run_all(scheduler, &jobs)?;
        let cells: Vec<Vec<String>> = outcomes
            .iter()
            .map(|outcome| {
                let response = outcome.response.to_text();
                let mut lines = wrap(&format!("{}{response}", text(prompt)), COLUMN);
                let sentiment = judge.score(&response);
                lines.push(format!("gain {:+.2}  sentiment {sentiment:+.2}", outcome.score.gain));
                lines
            })
            .collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        outln!("{}", vec!["─".repeat(COLUMN); columns.len()].join(" "))?;
        for line in 0..height {
            let parts: Vec<String> = cells
                .iter()
                .map(|cell| {
                    // The figures stand on the last line of every column.
                    let from_end = height - line;
                    let text = match from_end {
                        1 => cell.last(),
                        _ => cell[..cell.len() - 1].get(line),
                    };
                    format!("{:<COLUMN$}", text.map_or("", String::as_str))
                })
                .collect();
            outln!("{}", parts.join(" ").trim_end())?;
        }
        last = outcomes;
    }
    let Some(prompt) = prompts.get(SHOWN.min(prompts.len()).saturating_sub(1)) else {
        return Ok(());
    };
    let Some(outcome) = last.last() else { return Ok(()) };
    outln!(
        "\nThe search for the last one, chunk by chunk. ● lived on, · was dropped, ■ had ended, \
         ★ is the answer; the number is the gain so far.\n\n{}“{}”{}",
        paint.bold,
        text(prompt),
        paint.off
    )?;
    out!("{}", tree::draw(&outcome.trace, paint))?;
    Ok(())
}

/// Means over all openings and seeds, with standard errors over openings.
fn full<B: Backend>(
    scheduler: &mut Scheduler<BaseProposer<B>, PairGuide<B>>,
    prompts: &[Prompt],
    judge: &Judge,
    seeds: u64,
) -> Result<()> {
    let columns = columns();
    outln!(
        "{} openings that no model has seen, {seeds} run{} each. The judge is right about {:.0} % \
         of held-out snippets.\n",
        prompts.len(),
        if seeds == 1 { "" } else { "s" },
        100.0 * judge.held_out_accuracy
    )?;
    outln!("{:<16}{:>22}{:>22}{:>10}", "", "sentiment", "gain", "tokens")?;
    // Per column, per opening: the mean over seeds.
    let mut sentiments: Vec<Vec<f64>> = Vec::new();
    for column in &columns {
        let jobs: Vec<_> = prompts
            .iter()
            .flat_map(|prompt| (1..=seeds).map(move |seed| (prompt, seed)))
            .map(|(prompt, seed)| (prompt, Settings { seed, ..column.settings.clone() }))
            .collect();
        let outcomes = run_all(scheduler, &jobs)?;
        let by_opening = |value: &dyn Fn(&Outcome) -> f64| -> Vec<f64> {
            outcomes
                .chunks(seeds as usize)
                .map(|runs| runs.iter().map(value).sum::<f64>() / runs.len() as f64)
                .collect()
        };
        let sentiment = by_opening(&|outcome| judge.score(&outcome.response.to_text()));
        let gain = by_opening(&|outcome| outcome.score.gain);
        let tokens = by_opening(&|outcome| outcome.response.tokens.len() as f64);
        let (sentiment_text, gain_text) = (Mean::of(&sentiment), Mean::of(&gain));
        outln!(
            "{:<16}{sentiment_text:>22}{gain_text:>22}{:>10.1}",
            column.name,
            Mean::of(&tokens).mean
        )?;
        sentiments.push(sentiment);
    }
    outln!("\nDifferences of sentiment, opening by opening:")?;
    for (more, less) in [(1, 0), (2, 1), (2, 0)] {
        let difference: Vec<f64> =
            sentiments[more].iter().zip(&sentiments[less]).map(|(a, b)| a - b).collect();
        let mean = Mean::of(&difference);
        outln!(
            "  {:<28}{mean:>18}  ({:.1} standard errors)",
            format!("{} − {}", columns[more].name, columns[less].name),
            mean.mean / mean.error
        )?;
    }
    Ok(())
}

/// A mean and its standard error.
struct Mean {
    mean: f64,
    error: f64,
}

impl Mean {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        Self { mean, error: (variance / n).sqrt() }
    }
}

impl std::fmt::Display for Mean {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{:+.3} ± {:.3}", self.mean, self.error))
    }
}

/// Breaks text at spaces; a word longer than a line stands alone.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
