//! `trimtab bench score`

use std::sync::Arc;
use std::time::Instant;

use super::bounds::Work;
use super::machine::{Machine, Measured};
use super::models::{ENGINE, Source, token};
use super::report::Row;
use super::{Bench, Common, count, on_device};
use crate::backend::Backend;
use crate::cli::Done;
use crate::engine::{Engine, Span};
use crate::error::Result;
use crate::kv_cache::{PagePool, Sequence};

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Texts that are scored together
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,16", value_parser = count)]
    batch: Vec<usize>,
}

pub fn run(args: &Args) -> Result<Done> {
    args.common.check(&[], ("--batch", &args.batch))?;
    on_device(args)
}

impl Args {
    /// The most texts that are scored together, and their tokens.
    fn most(&self) -> (usize, usize) {
        (self.batch.iter().copied().max().unwrap_or(1), self.common.prompt_len)
    }
}

impl Bench for Args {
    const NAME: &'static str = "score";

    fn common(&self) -> &Common {
        &self.common
    }

    fn check(&self) -> Result<()> {
        let (texts, len) = self.most();
        self.common.models.check_engines(texts, len, self.common.device.kv_memory)
    }

    fn needed<B: Backend>(&self, backend: &B) -> Result<(usize, &'static str)> {
        let (texts, len) = self.most();
        Ok((self.common.models.engine_bytes(backend, texts, len, 1)?, ENGINE))
    }

    fn weight_bytes(&self) -> Result<usize> {
        self.common.models.largest_bytes()
    }

    fn measure<B: Measured>(&self, backend: &Arc<B>, machine: &Machine) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for source in self.common.models.sources()? {
            rows.extend(measure(backend, machine, &source, self)?);
        }
        Ok(rows)
    }
}

fn measure<B: Measured>(
    backend: &Arc<B>,
    machine: &Machine,
    source: &Source,
    args: &Args,
) -> Result<Vec<Row>> {
    let (most, len) = args.most();
    let config = &source.config;
    let mut engine = source.engine(backend, most, len, 1, args.common.device.kv_memory)?;
    let setting = format!("{}, {len} tokens", source.name);
    let mut rows = Vec::new();
    for &batch in &args.batch {
        // One more, which is only asked for.
        let texts: Vec<Vec<u32>> = (0..batch)
            .map(|text| (0..=len).map(|place| token(text, place, config.vocab)).collect())
            .collect();
        let what = format!("{} {}, batch {batch}", Args::NAME, source.name);
        let times = args.common.repeated(&what, || once(&mut engine, &texts))?;
        let tokens = (batch * len) as f64;
        let bound = machine.seconds(Work::texts(config, batch, len, true));
        let rates = times.iter().map(|seconds| tokens / seconds).collect();
        rows.push(Row {
            setting: setting.clone(),
            batch: Some(batch),
            ..Row::new(Args::NAME, "score_tokens_per_s", "tokens/s", rates).bound(tokens / bound)
        });
    }
    let needed = config.weight_bytes() + most * len * config.kv_bytes_per_token();
    let memory = machine.memory_row(&**backend, Args::NAME, needed);
    rows.extend(memory.map(|row| Row { setting, ..row }));
    Ok(rows)
}

/// Seconds to compute the log-probability of each token but the first.
fn once<B: Backend>(engine: &mut Engine<B>, texts: &[Vec<u32>]) -> Result<f64> {
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
    let targets: Vec<u32> = texts.iter().flat_map(|text| &text[1..]).copied().collect();
    engine.logprobs(&spans, &targets)?;
    Ok(started.elapsed().as_secs_f64())
}
