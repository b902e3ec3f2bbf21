//! `trimtab bench search`

use std::path::PathBuf;
use std::time::Instant;

use super::bounds::{SearchCost, chunks};
use super::machine::{Machine, peak_memory};
use super::models::{Trio, token};
use super::report::{self, Row};
use super::{Common, plot};
use crate::backend::Backend;
use crate::cli::Done;
use crate::engine::Config;
use crate::error::{Error, Result};
use crate::guide::PairGuide;
use crate::kv_cache::{PAGE_LEN, PagePool};
use crate::proposer::{LocalProposer, Prompt, Sampling};
use crate::scheduler::{Scheduler, Spent};
use crate::search::{Chunk, ChunkLen, Settings};
use crate::text::{Bos, StopStrings, Tokenizer};

const BENCH: &str = "search";

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// W: beams kept after each chunk
    #[arg(short = 'w', long, value_name = "N", default_value_t = 4)]
    pub beam_width: usize,
    /// K: candidates forked from each beam
    #[arg(short = 'k', long, value_name = "N", default_value_t = 4)]
    pub successors: usize,
    /// L: tokens of a chunk, or inf
    #[arg(short = 'l', long, value_name = "N|inf", default_value = "10")]
    chunk_len: ChunkLen,
    /// Tokens of a response
    #[arg(long, value_name = "N", default_value_t = 60)]
    max_new_tokens: usize,
    /// Searches that run together
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1")]
    concurrency: Vec<usize>,
    /// Also measure how the time per chunk grows, and draw it here
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

impl Args {
    /// Tokens of a chunk.
    pub fn chunk_len(&self) -> usize {
        self.chunk_len.0.unwrap_or(usize::MAX).min(self.max_new_tokens)
    }

    /// What is searched with.
    pub fn settings(&self) -> Settings {
        Settings {
            beam_width: self.beam_width,
            successors: self.successors,
            chunk_len: self.chunk_len.0,
            max_new_tokens: self.max_new_tokens,
            sampling: Sampling { temperature: 0.7, top_k: 50, top_p: 1.0 },
            seed: 1,
            stop: StopStrings::default(),
            compat: false,
        }
    }
}

pub fn run(args: &Args) -> Result<Done> {
    args.common.check(&[("--concurrency", args.concurrency.iter().copied().min().unwrap_or(0))])?;
    args.settings().validate()?;
    if let Some(file) = &args.plot {
        // Before minutes have been spent.
        std::fs::File::create(file).map_err(Error::io("write to", file))?;
    }
    let cpu = args.common.device.cpu()?;
    cpu.clone().enter(|| {
        let machine = Machine::measure(&cpu)?;
        let mut rows = machine.rows(BENCH);
        let mut most: Vec<usize> = args.concurrency.clone();
        // The most pages ever used only grow.
        most.sort_unstable();
        let searches = most.last().copied().unwrap_or(1);
        let mut rig = Rig::new(&cpu, args, args.settings(), searches)?;
        for searches in most {
            rows.extend(measure(&mut rig, &machine, args, searches)?);
        }
        drop(rig);
        if let Some(file) = &args.plot {
            plot::draw(&cpu, &machine, args, file)?;
        }
        report::print(&rows, args.common.format, &cpu.describe())?;
        Ok(Done::Well)
    })
}

/// Models that are ready, and prompts for them.
pub struct Rig<B: Backend> {
    name: String,
    base: Config,
    guide: [Config; 2],
    scheduler: Scheduler<LocalProposer<B>, PairGuide<B>>,
    pages: PagePool,
    prompts: Vec<Prompt>,
    /// In the base model's tokens.
    prompt_len: usize,
    settings: Settings,
}

impl<B: Backend> Rig<B> {
    pub fn new(
        backend: &std::sync::Arc<B>,
        args: &Args,
        settings: Settings,
        searches: usize,
    ) -> Result<Self> {
        let Common { models, prompt_len, device, .. } = &args.common;
        let life = settings.lifetime();
        let trio = models.trio(backend, *prompt_len, life, searches, device.kv_memory)?;
        let Trio { name, base, guide, proposer, scorer, tokenizer } = trio;
        let prompts: Vec<Prompt> = (0..searches)
            .map(|text| prompt(&tokenizer, base.vocab, *prompt_len, text))
            .collect::<Result<_>>()?;
        let pages = proposer.pages().clone();
        let scheduler = Scheduler::new(proposer, scorer, searches);
        Ok(Self { name, base, guide, scheduler, pages, prompts, prompt_len: *prompt_len, settings })
    }

    /// What searches like these cannot do without.
    pub fn cost<'a>(&'a self, machine: &'a Machine, searches: usize) -> SearchCost<'a> {
        let Settings { beam_width, successors, .. } = self.settings;
        SearchCost {
            machine,
            base: &self.base,
            guide: self.guide.each_ref(),
            searches,
            prompt: self.prompt_len,
            beam_width,
            candidates: beam_width * successors,
        }
    }

    /// Runs the first `searches` prompts together.
    pub fn once(&mut self, searches: usize) -> Result<Run> {
        let before = self.scheduler.spent();
        let work = |guide: &PairGuide<B>| [guide.rows_run(), guide.tokens_new()];
        let scored = work(self.scheduler.guide());
        let started = Instant::now();
        for (id, prompt) in self.prompts[..searches].iter().enumerate() {
            self.scheduler.submit(id, prompt, self.settings.clone())?;
        }
        let mut run = Run::default();
        while self.scheduler.pending() > 0 {
            let (tick, prefill) = (Instant::now(), self.scheduler.spent().prefill);
            let finished = self.scheduler.tick()?;
            let prefill = self.scheduler.spent().prefill - prefill;
            if run.chunks.is_empty() {
                run.first_chunk = started.elapsed().as_secs_f64();
            }
            run.chunks.push((tick.elapsed() - prefill).as_secs_f64());
            for done in finished {
                let outcome = done.result?;
                run.committed += outcome.response.tokens.len();
                run.sampled += sampled(&outcome.trace);
            }
        }
        run.whole = started.elapsed().as_secs_f64();
        let spent = self.scheduler.spent();
        let part = |of: fn(&Spent) -> std::time::Duration| (of(&spent) - of(&before)).as_secs_f64();
        run.parts = [
            part(|s| s.prefill),
            part(|s| s.expand),
            part(|s| s.score),
            part(|s| s.select),
            part(|s| s.fork),
        ];
        let [rows, new] = work(self.scheduler.guide());
        run.scorer_work = (rows - scored[0]) as f64 / (new - scored[1]) as f64;
        Ok(run)
    }
}

/// One run's seconds and counts.
#[derive(Default)]
pub struct Run {
    whole: f64,
    /// Until the first chunk was selected from, the prompt included.
    first_chunk: f64,
    /// Each chunk's, the prompt left out.
    pub chunks: Vec<f64>,
    /// Prefill, expand, score, select, fork.
    parts: [f64; 5],
    sampled: usize,
    committed: usize,
    scorer_work: f64,
}

/// Tokens drawn in a search, those of candidates that were dropped included.
fn sampled(trace: &[Chunk]) -> usize {
    let mut kept: Vec<usize> = Vec::new();
    let mut total = 0;
    for chunk in trace {
        for candidate in &chunk.candidates {
            total += candidate.tokens - candidate.parent.map_or(0, |parent| kept[parent]);
        }
        let mut ranked: Vec<_> =
            chunk.candidates.iter().filter_map(|c| Some((c.rank?, c.tokens))).collect();
        ranked.sort_unstable();
        kept = ranked.into_iter().map(|(_, tokens)| tokens).collect();
    }
    total
}

fn measure<B: Backend>(
    rig: &mut Rig<B>,
    machine: &Machine,
    args: &Args,
    searches: usize,
) -> Result<Vec<Row>> {
    let (w, k, l, new) = (args.beam_width, args.successors, args.chunk_len(), args.max_new_tokens);
    let setting = format!("{}, W,K,L = {w},{k},{l}, {} + {new} tokens", rig.name, rig.prompt_len);
    let what = format!("{BENCH} {setting}, {searches} together");
    let runs = args.common.repeated(&what, || rig.once(searches))?;

    let cost = rig.cost(machine, searches);
    let count = chunks(l, new).count();
    let expand: f64 = chunks(l, new).map(|(done, len)| cost.expand(done, len)).sum();
    let score: f64 = chunks(l, new).map(|(done, len)| cost.score(done, len)).sum();
    let prefill = cost.prefill();
    let whole = prefill + expand + score;
    let first = prefill + cost.expand(0, l) + cost.score(0, l);

    let row = |name: &str, unit: &str, of: &dyn Fn(&Run) -> f64| Row {
        setting: setting.clone(),
        concurrency: Some(searches),
        ..Row::new(BENCH, name, unit, runs.iter().map(of).collect())
    };
    let per_chunk = |row: Row| Row { per_chunk: Some(row.median / count as f64), ..row };
    let all_chunks = runs.iter().flat_map(|run| run.chunks.iter().copied()).collect();
    let mut rows = vec![
        row("search_s", "s", &|run| run.whole).bound(whole),
        row("first_chunk_s", "s", &|run| run.first_chunk).bound(first),
        Row {
            setting: setting.clone(),
            concurrency: Some(searches),
            ..Row::new(BENCH, "chunk_s", "s", all_chunks)
        }
        .bound((expand + score) / count as f64),
    ];
    if prefill > 0.0 {
        rows.push(row("prefill_s", "s", &|run| run.parts[0]).bound(prefill));
    }
    let rate = |tokens: fn(&Run) -> usize| move |run: &Run| tokens(run) as f64 / run.whole;
    let (sampled, committed) = (runs[0].sampled as f64, runs[0].committed as f64);
    rows.extend([
        per_chunk(row("expand_s", "s", &|run| run.parts[1]).bound(expand)),
        per_chunk(row("score_s", "s", &|run| run.parts[2]).bound(score)),
        per_chunk(row("select_s", "s", &|run| run.parts[3])),
        per_chunk(row("fork_s", "s", &|run| run.parts[4])),
        row("sampled_tokens_per_s", "tokens/s", &rate(|run| run.sampled)).bound(sampled / whole),
        row("committed_tokens_per_s", "tokens/s", &rate(|run| run.committed))
            .bound(committed / whole),
        row("scorer_work_ratio", "", &|run| run.scorer_work).bound(1.0),
    ]);

    // The base model's cache at its fullest, and what its candidates would hold besides if each
    // had pages of its own.
    let used = rig.pages.most_used();
    let alone = (rig.prompt_len + new - 1).div_ceil(PAGE_LEN) * searches * w * k;
    rows.push(row("pages_used", "pages", &|_| used as f64));
    rows.push(row("pages_shared", "pages", &|_| alone.saturating_sub(used) as f64));
    if let Some(peak) = peak_memory() {
        let weights: usize = rig.guide.iter().chain([&rig.base]).map(Config::weight_bytes).sum();
        let guide_pages = rig.scheduler.guide().pages().map_or(0, |pages| pages.most_used());
        let cache = |config: &Config, pages: usize| pages * PAGE_LEN * config.kv_bytes_per_token();
        let guides: usize = rig.guide.iter().map(|config| cache(config, guide_pages)).sum();
        let least = weights + cache(&rig.base, used) + guides;
        rows.push(row("peak_memory", "B", &|_| peak).bound(least as f64));
    }
    Ok(rows)
}

/// A text of exactly `len` tokens.
fn prompt(tokenizer: &Tokenizer, vocab: usize, len: usize, text: usize) -> Result<Prompt> {
    /// English enough for any tokenizer; one of the words fits where others split.
    const WORDS: [&str; 8] = ["the", "film", "was", "a", "story", "of", "and", "I"];
    let count = |text: &str| Ok::<_, Error>(tokenizer.encode(text, Bos::Auto)?.len());
    let numbered = tokenizer.id("t0") == Some(0);
    let mut written = String::new();
    let mut place = 0;
    while count(&written)? < len {
        let words: Vec<String> = match numbered {
            true => vec![format!("t{}", token(text, place, vocab))],
            false => {
                (0..WORDS.len()).map(|w| WORDS[(text + place + w) % WORDS.len()].into()).collect()
            }
        };
        let longer = |word: &String| format!("{written}{}{word}", if place > 0 { " " } else { "" });
        let fitting = words.iter().map(longer).map(|text| Ok((count(&text)?, text)));
        let fitting = fitting.collect::<Result<Vec<_>>>()?;
        let Some((_, next)) = fitting.into_iter().find(|(count, _)| *count <= len) else {
            let reason = format!("is {len}, and no text of that many tokens was found");
            return Err(Error::flag("--prompt-len", reason));
        };
        written = next;
        place += 1;
    }
    Ok(Prompt::Text(written))
}
