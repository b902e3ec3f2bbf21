//! `trimtab bench decode`

use std::sync::Arc;
use std::time::Instant;

use super::Common;
use super::bounds::{Pass, Work};
use super::machine::{Machine, peak_memory};
use super::models::{Source, token};
use super::report::{self, Row};
use crate::backend::{Backend, SampleRow};
use crate::cli::Done;
use crate::engine::{Engine, Span};
use crate::error::Result;
use crate::kv_cache::{PagePool, Sequence};
use crate::philox::Draw;

const BENCH: &str = "decode";

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Tokens to decode
    #[arg(long, value_name = "N", default_value_t = 32)]
    max_new_tokens: usize,
    /// Sequences that run together
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,16")]
    batch: Vec<usize>,
}

pub fn run(args: &Args) -> Result<Done> {
    let smallest = args.batch.iter().copied().min().unwrap_or(0);
    args.common.check(&[("--max-new-tokens", args.max_new_tokens), ("--batch", smallest)])?;
    let sources = args.common.models.sources()?;
    let cpu = args.common.device.cpu()?;
    cpu.clone().enter(|| {
        let machine = Machine::measure(&cpu)?;
        let mut rows = machine.rows(BENCH);
        for source in &sources {
            rows.extend(measure(&cpu, &machine, source, args)?);
        }
        rows.extend(peak_memory().map(|bytes| Row::new(BENCH, "peak_memory", "B", vec![bytes])));
        report::print(&rows, args.common.format, &cpu.describe())?;
        Ok(Done::Well)
    })
}

fn measure<B: Backend>(
    backend: &Arc<B>,
    machine: &Machine,
    source: &Source,
    args: &Args,
) -> Result<Vec<Row>> {
    let (prompt, new) = (args.common.prompt_len, args.max_new_tokens);
    let most = args.batch.iter().copied().max().unwrap_or(1);
    let config = &source.config;
    let mut engine = source.engine(backend, most, prompt + new, args.common.device.kv_memory)?;
    let mut rows = Vec::new();
    for &batch in &args.batch {
        let texts: Vec<Vec<u32>> = (0..batch)
            .map(|text| (0..prompt).map(|place| token(text, place, config.vocab)).collect())
            .collect();
        let what = format!("{BENCH} {}, batch {batch}", source.name);
        let runs = args.common.repeated(&what, || once(&mut engine, &texts, new))?;

        let setting = format!("{}, {prompt} + {new} tokens", source.name);
        let row = |name: &str, unit: &str, samples: Vec<f64>| Row {
            setting: setting.clone(),
            batch: Some(batch),
            ..Row::new(BENCH, name, unit, samples)
        };
        let step = |place: usize| Pass {
            rows: batch,
            head_rows: batch,
            attended: batch * (prompt + place),
            distinct: batch * (prompt + place),
        };
        let steps: f64 =
            (0..new).map(|place| machine.seconds(Work::pass(config, step(place)))).sum();
        if prompt > 1 {
            let tokens = (batch * (prompt - 1)) as f64;
            let prefill = machine.seconds(Work::texts(config, batch, prompt - 1, false));
            let rates = runs.iter().map(|run| tokens / run.prefill).collect();
            rows.push(row("prefill_tokens_per_s", "tokens/s", rates).bound(tokens / prefill));
        }
        let tokens = (batch * new) as f64;
        let rates = runs.iter().map(|run| tokens / run.steps.iter().sum::<f64>()).collect();
        rows.push(row("decode_tokens_per_s", "tokens/s", rates).bound(tokens / steps));
        let times = runs.into_iter().flat_map(|run| run.steps).collect();
        rows.push(row("decode_step_s", "s", times).bound(steps / new as f64));
    }
    Ok(rows)
}

/// Seconds.
struct Run {
    prefill: f64,
    /// Each step's.
    steps: Vec<f64>,
}

/// All but the last token of the texts are run as prompts, then `new` tokens are drawn for each.
fn once<B: Backend>(engine: &mut Engine<B>, texts: &[Vec<u32>], new: usize) -> Result<Run> {
    let pool = PagePool::new(engine.limits().pages);
    let mut sequences: Vec<Sequence> = texts.iter().map(|_| pool.sequence()).collect();
    let started = Instant::now();
    for (sequence, text) in sequences.iter_mut().zip(texts) {
        sequence.append(text.len() - 1)?;
    }
    let spans: Vec<Span<'_>> = texts
        .iter()
        .zip(&sequences)
        .map(|(text, sequence)| Span { tokens: &text[..text.len() - 1], start: 0, sequence })
        .collect();
    engine.prefill(&spans)?;
    let prefill = started.elapsed().as_secs_f64();

    let mut pending: Vec<u32> = texts.iter().map(|text| text[text.len() - 1]).collect();
    let mut steps = Vec::with_capacity(new);
    for position in 0..new as u32 {
        let started = Instant::now();
        for sequence in &mut sequences {
            sequence.append(1)?;
        }
        let spans: Vec<Span<'_>> = pending
            .iter()
            .zip(&sequences)
            .map(|(token, sequence)| Span {
                tokens: std::slice::from_ref(token),
                start: sequence.len() - 1,
                sequence,
            })
            .collect();
        let draws: Vec<SampleRow> = (0..texts.len() as u32)
            .map(|candidate| SampleRow {
                temperature: 0.7,
                top_k: 50,
                top_p: 1.0,
                draw: Draw { candidate, position, ..Draw::default() },
            })
            .collect();
        engine.begin(&spans, 1)?;
        engine.next_logits()?;
        engine.draw(&draws)?;
        engine.advance(0)?;
        pending = engine.drawn(1)?;
        steps.push(started.elapsed().as_secs_f64());
    }
    Ok(Run { prefill, steps })
}
