//! `trimtab bench search`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bounds::{SearchCost, chunks};
use super::machine::{Machine, Measured};
use super::models::{Trio, token};
use super::report::Row;
use super::waiting::Waiting;
use super::{Bench, Common, count, on_device, plot};
use crate::backend::Backend;
use crate::cli::Done;
use crate::engine::Config;
use crate::error::{Error, Result};
use crate::guide::PairGuide;
use crate::kv_cache::{Lifetime, PAGE_LEN, PagePool};
use crate::proposer::{LocalProposer, Prompt, Sampling};
use crate::scheduler::{Scheduler, Spent};
use crate::search::{Chunk, ChunkLen, Settings};
use crate::text::{Bos, StopStrings, Tokenizer};

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
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1", value_parser = count)]
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
    args.common.check(&[], ("--concurrency", &args.concurrency))?;
    args.settings().validate()?;
    on_device(args)
}

impl Bench for Args {
    const NAME: &'static str = "search";

    fn common(&self) -> &Common {
        &self.common
    }

    fn check(&self) -> Result<()> {
        let Common { models, prompt_len, device, .. } = &self.common;
        let (life, most) = (self.settings().lifetime(), self.concurrency.iter().max());
        models.check_trio(*prompt_len, &life, most.copied().unwrap_or(1), device.kv_memory)?;
        let create = |file| std::fs::File::create(file).map_err(Error::io("write to", file));
        self.plot.as_ref().map_or(Ok(()), |file| create(file).map(drop))
    }

    fn weight_bytes(&self) -> Result<usize> {
        self.common.models.trio_bytes()
    }

    fn needed<B: Backend>(&self, _backend: &B) -> Result<(usize, &'static str)> {
        Ok((self.common.models.least_trio_bytes()?, "the weights"))
    }

    fn measure<B: Measured>(&self, backend: &Arc<B>, machine: &Machine) -> Result<Vec<Row>> {
        let mut counts = self.concurrency.clone();
        // The most pages ever used only grow.
        counts.sort_unstable();
        let most = counts.last().copied().unwrap_or(1);
        let settings = self.settings();
        let mut rig = Rig::new(backend, self, self.common.prompt_len, settings.lifetime(), most)?;
        let mut rows = Vec::new();
        for searches in counts {
            rows.extend(measure(backend, &mut rig, machine, self, searches)?);
        }
        drop(rig);
        if let Some(file) = &self.plot {
            plot::draw(backend, machine, self, file)?;
        }
        Ok(rows)
    }
}

/// Models that are ready, and prompts for them.
pub struct Rig<B: Backend> {
    name: String,
    base: Config,
    guide: [Config; 2],
    scheduler: Scheduler<Waiting<LocalProposer<B>>, Waiting<PairGuide<B>>>,
    pages: PagePool,
    tokenizer: Arc<Tokenizer>,
    prompts: Vec<Prompt>,
    /// In the base model's tokens.
    prompt_len: usize,
}

impl<B: Backend> Rig<B> {
    /// For so many searches together, none larger than `life` after prompts of `prompt_len` tokens.
    pub fn new(
        backend: &Arc<B>,
        args: &Args,
        prompt_len: usize,
        life: Lifetime,
        searches: usize,
    ) -> Result<Self> {
        let Common { models, device, .. } = &args.common;
        let trio = models.trio(backend, prompt_len, life, searches, device.kv_memory)?;
        let Trio { name, base, guide, proposer, scorer, tokenizer } = trio;
        let pages = proposer.pages().clone();
        let (proposer, scorer) = (Waiting { inner: proposer }, Waiting { inner: scorer });
        let scheduler = Scheduler::new(proposer, scorer, searches);
        let prompts = vec![Prompt::Text(String::new()); searches];
        let mut rig = Self { name, base, guide, scheduler, pages, tokenizer, prompts, prompt_len };
        rig.ask(prompt_len)?;
        Ok(rig)
    }

    /// What the models are, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same with longer or shorter prompts, `len` tokens each.
    pub fn ask(&mut self, len: usize) -> Result<()> {
        let (tokenizer, vocab) = (&self.tokenizer, self.base.vocab);
        let prompts = (0..self.prompts.len()).map(|text| prompt(tokenizer, vocab, len, text));
        self.prompts = prompts.collect::<Result<_>>()?;
        self.prompt_len = len;
        Ok(())
    }

    /// What searches like these cannot do without.
    pub fn cost<'a>(
        &'a self,
        machine: &'a Machine,
        settings: &Settings,
        searches: usize,
    ) -> SearchCost<'a> {
        let Settings { beam_width, successors, .. } = *settings;
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
    pub fn once(&mut self, settings: &Settings, searches: usize) -> Result<Run> {
        let before = self.scheduler.spent();
        let work = |guide: &PairGuide<B>| [guide.rows_run(), guide.tokens_new()];
        let scored = work(&self.scheduler.guide().inner);
        let started = Instant::now();
        for (id, prompt) in self.prompts[..searches].iter().enumerate() {
            self.scheduler.submit(id, prompt, settings.clone())?;
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
        let part = |of: fn(&Spent) -> Duration| (of(&spent) - of(&before)).as_secs_f64();
        run.parts = [
            part(|s| s.prefill),
            part(|s| s.expand),
            part(|s| s.score),
            part(|s| s.select),
            part(|s| s.fork),
        ];
        let [rows, new] = work(&self.scheduler.guide().inner);
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

impl Run {
    /// Seconds to run the prompts.
    pub fn prefill(&self) -> f64 {
        self.parts[0]
    }
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

fn measure<B: Measured>(
    backend: &Arc<B>,
    rig: &mut Rig<B>,
    machine: &Machine,
    args: &Args,
    searches: usize,
) -> Result<Vec<Row>> {
    let (w, k, l, new) = (args.beam_width, args.successors, args.chunk_len(), args.max_new_tokens);
    let setting = format!("{}, W,K,L = {w},{k},{l}, {} + {new} tokens", rig.name, rig.prompt_len);
    let what = format!("{} {setting}, {searches} together", Args::NAME);
    let settings = args.settings();
    let runs = args.common.repeated(&what, || rig.once(&settings, searches))?;

    let cost = rig.cost(machine, &settings, searches);
    let count = chunks(l, new).count();
    let expand: f64 = chunks(l, new).map(|(done, len)| cost.expand(done, len)).sum();
    let score: f64 = chunks(l, new).map(|(done, len)| cost.score(done, len)).sum();
    let (scored, drawn) = chunks(l, new).fold((0, 0), |(scored, drawn), (done, len)| {
        (scored + cost.rows_scored(done, len), drawn + searches * w * k * len)
    });
    // Prompts are run whole, less their last tokens.
    let prompts = searches * (rig.prompt_len - 1);
    let work_ratio = (prompts + scored) as f64 / (prompts + drawn) as f64;
    let prefill = cost.prefill();
    let whole = prefill + expand + score;
    let first = prefill + cost.expand(0, l) + cost.score(0, l);

    let row = |name: &str, unit: &str, of: &dyn Fn(&Run) -> f64| Row {
        setting: setting.clone(),
        concurrency: Some(searches),
        ..Row::new(Args::NAME, name, unit, runs.iter().map(of).collect())
    };
    let per_chunk = |row: Row| Row { per_chunk: Some(row.median / count as f64), ..row };
    let all_chunks = runs.iter().flat_map(|run| run.chunks.iter().copied()).collect();
    let mut rows = vec![
        row("search_s", "s", &|run| run.whole).bound(whole),
        row("first_chunk_s", "s", &|run| run.first_chunk).bound(first),
        Row {
            setting: setting.clone(),
            concurrency: Some(searches),
            ..Row::new(Args::NAME, "chunk_s", "s", all_chunks)
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
        row("scorer_work_ratio", "", &|run| run.scorer_work).bound(work_ratio),
    ]);

    // The base model's cache at its fullest, and what its candidates would hold besides if each
    // had pages of its own.
    let used = rig.pages.most_used();
    let alone = (rig.prompt_len + new - 1).div_ceil(PAGE_LEN) * searches * w * k;
    rows.push(row("pages_used", "pages", &|_| used as f64));
    rows.push(row("pages_shared", "pages", &|_| alone.saturating_sub(used) as f64));
    let weights: usize = rig.guide.iter().chain([&rig.base]).map(Config::weight_bytes).sum();
    let guide_pages = rig.scheduler.guide().inner.pages().map_or(0, |pages| pages.most_used());
    let cache = |config: &Config, pages: usize| pages * PAGE_LEN * config.kv_bytes_per_token();
    let guides: usize = rig.guide.iter().map(|config| cache(config, guide_pages)).sum();
    let needed = weights + cache(&rig.base, used) + guides;
    let memory = machine.memory_row(&**backend, Args::NAME, needed);
    rows.extend(memory.map(|memory| Row { setting, concurrency: Some(searches), ..memory }));
    Ok(rows)
}

/// A text of exactly `len` tokens.
fn prompt(tokenizer: &Tokenizer, vocab: usize, len: usize, text: usize) -> Result<Prompt> {
    /// English enough for any tokenizer; one of the words fits where others split.
    const WORDS: [&str; 8] = ["the", "film", "was", "a", "story", "of", "and", "I"];
    if tokenizer.id("t0") == Some(0) {
        let words = (0..len).map(|place| format!("t{}", token(text, place, vocab)));
        return Ok(Prompt::Text(words.collect::<Vec<_>>().join(" ")));
    }
    let count = |text: &str| Ok::<_, Error>(tokenizer.encode(text, Bos::Auto)?.len());
    let mut written = String::new();
    let mut place = 0;
    while count(&written)? < len {
        let words = (0..WORDS.len()).map(|w| WORDS[(text + place + w) % WORDS.len()]);
        let longer =
            words.map(|word| format!("{written}{}{word}", if place > 0 { " " } else { "" }));
        let fitting = longer.map(|text| Ok((count(&text)?, text)));
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
