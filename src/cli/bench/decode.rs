//! `trimtab bench decode`

use std::sync::Arc;
use std::time::Instant;

use super::bounds::{Pass, Work};
use super::machine::{Fence, Machine, Measured};
use super::models::{ENGINE, Source, token};
use super::report::Row;
use super::{Bench, Common, count, on_device};
use crate::backend::{Backend, SampleRow};
use crate::cli::Done;
use crate::engine::{Engine, Span};
use crate::error::Result;
use crate::kv_cache::{PagePool, Sequence};
use crate::philox::Draw;

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Tokens to decode
    #[arg(long, value_name = "N", default_value_t = 32)]
    max_new_tokens: usize,
    /// Sequences that run together
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,16", value_parser = count)]
    batch: Vec<usize>,
}

pub fn run(args: &Args) -> Result<Done> {
    let new = [("--max-new-tokens", args.max_new_tokens)];
    args.common.check(&new, ("--batch", &args.batch))?;
    on_device(args)
}

impl Args {
    /// The most texts that run together, and their tokens.
    fn most(&self) -> (usize, usize) {
        let len = self.common.prompt_len.saturating_add(self.max_new_tokens);
        (self.batch.iter().copied().max().unwrap_or(1), len)
    }
}

impl Bench for Args {
    const NAME: &'static str = "decode";

    fn common(&self) -> &Common {
        &self.common
    }

    fn check(&self) -> Result<()> {
        let (texts, len) = self.most();
        self.common.models.check_engines(texts, len, self.common.device.kv_memory)
    }

    fn needed<B: Backend>(&self, backend: &B) -> Result<(usize, &'static str)> {
        let (texts, len) = self.most();
        Ok((
            self.common.models.engine_bytes(backend, texts, len, texts)? + Fence::<B>::BYTES,
            ENGINE,
        ))
    }

    fn weight_bytes(&self) -> Result<usize> {
        self.common.models.largest_bytes()
    }

    fn measure<B: Measured>(&self, backend: &Arc<B>, machine: &Machine) -> Result<Vec<Row>> {
        let fence = Fence::new(backend)?;
        let mut rows = Vec::new();
        for source in self.common.models.sources()? {
            rows.extend(measure(backend, &fence, machine, &source, self)?);
        }
        Ok(rows)
    }
}

fn measure<B: Measured>(
    backend: &Arc<B>,
    fence: &Fence<B>,
    machine: &Machine,
    source: &Source,
    args: &Args,
) -> Result<Vec<Row>> {
    let (prompt, new) = (args.common.prompt_len, args.max_new_tokens);
    let (most, len) = args.most();
    let config = &source.config;
    let mut engine = source.engine(backend, most, len, most, args.common.device.kv_memory)?;
    let setting = format!("{}, {prompt} + {new} tokens", source.name);
    let mut rows = Vec::new();
    for &batch in &args.batch {
        let texts: Vec<Vec<u32>> = (0..batch)
            .map(|text| (0..prompt).map(|place| token(text, place, config.vocab)).collect())
            .collect();
        let what = format!("{} {}, batch {batch}", Args::NAME, source.name);
        let runs = args.common.repeated(&what, || once(&mut engine, fence, &texts, new))?;

        let row = |name: &str, unit: &str, samples: Vec<f64>| Row {
            setting: setting.clone(),
            batch: Some(batch),
            ..Row::new(Args::NAME, name, unit, samples)
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
        let looks = engine.steps_per_look();
        let of_a_step = |run: &Run| -> Vec<f64> {
            let steps = (0..new).step_by(looks).map(|first| looks.min(new - first) as f64);
            run.steps.iter().zip(steps).map(|(seconds, steps)| seconds / steps).collect()
        };
        let times = runs.iter().flat_map(of_a_step).collect();
        rows.push(row("decode_step_s", "s", times).bound(steps / new as f64));
    }
    let needed = config.weight_bytes() + most * len * config.kv_bytes_per_token();
    let memory = machine.memory_row(&**backend, Args::NAME, needed);
    rows.extend(memory.map(|row| Row { setting, ..row }));
    Ok(rows)
}

/// Seconds.
struct Run {
    prefill: f64,
    /// Those of all steps between two looks of the host at the device, which is as often as in a
    /// search.
    steps: Vec<f64>,
}

/// All but the last token of the texts are run as prompts, then `new` tokens are drawn for each.
fn once<B: Backend>(
    engine: &mut Engine<B>,
    fence: &Fence<B>,
    texts: &[Vec<u32>],
    new: usize,
) -> Result<Run> {
    let pool = PagePool::new(engine.limits().pages);
    let mut sequences: Vec<Sequence> = texts.iter().map(|_| pool.sequence()).collect();
    let started = Instant::now();
    for (sequence, text) in sequences.iter_mut().zip(texts) {
        sequence.append(text.len() - 1)?;
    }
    let spans: Vec<Span<'_>> = texts
        .iter()
        .zip(&sequences)
        .map(|(text, sequence)| Span::new(&text[..text.len() - 1], 0, sequence))
        .collect();
    engine.prefill(&spans)?;
    fence.wait()?;
    let prefill = started.elapsed().as_secs_f64();

    let mut pending: Vec<u32> = texts.iter().map(|text| text[text.len() - 1]).collect();
    let mut times = Vec::new();
    let look = engine.steps_per_look();
    for first in (0..new).step_by(look) {
        let steps = look.min(new - first);
        let started = Instant::now();
        for sequence in &mut sequences {
            sequence.append(steps)?;
        }
        let spans: Vec<Span<'_>> = pending
            .iter()
            .zip(&sequences)
            .map(|(token, sequence)| {
                Span::new(std::slice::from_ref(token), sequence.len() - steps, sequence)
            })
            .collect();
        engine.begin(&spans, steps)?;
        for step in 0..steps {
            let position = (first + step) as u32;
            let draws: Vec<SampleRow> = (0..texts.len() as u32)
                .map(|candidate| SampleRow {
                    logits: candidate,
                    temperature: 0.7,
                    top_k: 50,
                    top_p: 1.0,
                    draw: Draw { candidate, position, ..Draw::default() },
                })
                .collect();
            engine.next_logits()?;
            engine.draw(&draws)?;
            engine.advance(step)?;
        }
        let drawn = engine.drawn(steps)?;
        pending = drawn[(steps - 1) * texts.len()..].to_vec();
        times.push(started.elapsed().as_secs_f64());
    }
    Ok(Run { prefill, steps: times })
}
