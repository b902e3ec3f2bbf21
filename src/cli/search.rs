//! `trimtab search`

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::Done;
use super::input::{self, Item, PromptItem, Shard};
use super::models::{self, BosFlag, Compat, DeviceArgs, GuideArgs, GuideTokensFlag, Plan};
use super::output::{Answer, Failure, Sink, Target, json_line, trace_lines};
use super::progress::Progress;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::proposer::Sampling;
use crate::scheduler::{Finished, Scheduler};
use crate::search::Settings;
use crate::text::{Prompt, StopStrings};

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Chunk-level beam search: weak-to-strong search.
    Cbs,
    /// Best of N whole responses.
    Bon,
    /// Emulated fine-tuning: the guide shifts every token's logits.
    Eft,
    /// The base model alone.
    Sample,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Cbs => "cbs",
            Method::Bon => "bon",
            Method::Eft => "eft",
            Method::Sample => "sample",
        }
    }
}

/// A number of tokens, or `inf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkLen(Option<usize>);

impl FromStr for ChunkLen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "inf" => Ok(Self(None)),
            _ => text.parse().map(|n| Self(Some(n))).map_err(|_| "must be a number or inf".into()),
        }
    }
}

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Folder of the base model, in Hugging Face format
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    #[command(flatten)]
    guide: GuideArgs,

    /// The prompt
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "prompts",
        required_unless_present = "prompts"
    )]
    prompt: Option<String>,
    /// A file of lines {"prompt": …, "id": …}; - is standard input
    #[arg(long, value_name = "FILE.jsonl")]
    prompts: Option<PathBuf>,

    /// How to answer
    #[arg(long, value_enum, default_value = "cbs")]
    method: Method,
    /// W: beams kept after each chunk [default: 4; eft: 1]
    #[arg(short = 'w', long, value_name = "N")]
    beam_width: Option<usize>,
    /// K: candidates forked from each beam [default: 4; bon: 16; eft: 1]
    #[arg(short = 'k', long, value_name = "N")]
    successors: Option<usize>,
    /// L: tokens of a chunk, or inf [default: 10; eft: inf]
    #[arg(short = 'l', long, value_name = "N|inf")]
    chunk_len: Option<ChunkLen>,
    /// Tokens of a response at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    max_new_tokens: usize,
    /// 0 is greedy
    #[arg(long, value_name = "F", default_value_t = 0.7, allow_negative_numbers = true)]
    temperature: f32,
    /// Draw from the N most probable tokens; 0 from all
    #[arg(long, value_name = "N", default_value_t = 50)]
    top_k: u32,
    /// Draw from the most probable tokens that reach this mass
    #[arg(long, value_name = "F", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Names all random numbers
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// eft: how far the base model may be moved; the guide's log-ratio is divided by it
    /// [default: 1]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    beta: Option<f32>,
    /// End a response where this text appears; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    /// The base model's prompt, with {prompt} in it
    #[arg(long, value_name = "TEXT")]
    base_template: Option<String>,
    /// How the guide gets a response: its tokens, or its text tokenised again
    #[arg(long, value_enum, default_value = "auto")]
    guide_tokens: GuideTokensFlag,
    /// Do as the paper's code does where that can be observed
    #[arg(long, value_enum)]
    compat: Option<Compat>,
    /// Prompts that are searched at the same time
    #[arg(long, value_name = "N", default_value_t = 16)]
    concurrency: usize,
    #[command(flatten)]
    device: DeviceArgs,

    /// Write answers here instead of to stdout
    #[arg(long, value_name = "FILE.jsonl")]
    output: Option<PathBuf>,
    /// Go on with an output that was not finished
    #[arg(long)]
    resume: bool,
    /// Only every N-th prompt, from the I-th on
    #[arg(long, value_name = "I/N", requires = "prompts")]
    shard: Option<Shard>,
    /// Write every step's candidates here
    #[arg(long, value_name = "FILE.jsonl")]
    trace: Option<PathBuf>,
    /// Print a single answer as a JSON line too
    #[arg(long)]
    json: bool,
}

impl Args {
    /// The search's settings; flags that mean nothing for the method are refused.
    fn settings(&self) -> Result<Settings> {
        let refuse = |flag: &str, given: bool| {
            let reason = format!("has no meaning with --method {}", self.method.name());
            if given { Err(Error::flag(flag, reason)) } else { Ok(()) }
        };
        let whole = matches!(self.method, Method::Bon | Method::Sample);
        refuse("--beam-width", whole && self.beam_width.is_some())?;
        refuse("--chunk-len", whole && self.chunk_len.is_some())?;
        refuse("--successors", self.method == Method::Sample && self.successors.is_some())?;
        refuse("--beta", self.method != Method::Eft && self.beta.is_some())?;
        if self.beta.is_some_and(|beta| !(beta.is_finite() && beta > 0.0)) {
            return Err(Error::flag("--beta", "must be above 0"));
        }
        let (w, k, l) = match self.method {
            Method::Cbs => (4, 4, Some(10)),
            Method::Bon => (1, 16, None),
            Method::Eft | Method::Sample => (1, 1, None),
        };
        let settings = Settings {
            beam_width: self.beam_width.unwrap_or(w),
            successors: self.successors.unwrap_or(k),
            chunk_len: self.chunk_len.map_or(l, |len| len.0),
            max_new_tokens: self.max_new_tokens,
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
            },
            seed: self.seed,
            stop: StopStrings::new(self.stop.clone())?,
            compat: self.compat.is_some(),
        };
        settings.validate()?;
        if settings.compat && self.guide.bos == BosFlag::Always {
            return Err(Error::flag("--bos", "must be never with --compat reference"));
        }
        if self.concurrency == 0 {
            return Err(Error::flag("--concurrency", "must be at least 1"));
        }
        if self.method != Method::Sample && self.guide.pairs().is_empty() {
            let reason = "and --untuned (or --guide) are needed for any method but sample";
            return Err(Error::flag("--tuned", reason));
        }
        Ok(settings)
    }

    /// All that determines an answer, for `--resume`.
    fn fingerprint(&self) -> Value {
        let pairs: Vec<Value> = self
            .guide
            .pairs()
            .iter()
            .map(|pair| json!([pair.tuned, pair.untuned, pair.weight]))
            .collect();
        json!({
            "base": self.base,
            "guide": pairs,
            "method": self.method.name(),
            "beam_width": self.beam_width,
            "successors": self.successors,
            "chunk_len": self.chunk_len.map(|len| len.0),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
            "beta": self.beta,
            "stop": self.stop,
            "base_template": self.base_template,
            "guide_template": self.guide.guide_template,
            "chat": self.guide.chat,
            "guide_tokens": format!("{:?}", self.guide_tokens).to_lowercase(),
            "compat": self.compat.is_some(),
            "bos": format!("{:?}", self.guide.bos).to_lowercase(),
            "shard": self.shard.map(|shard| format!("{}/{}", shard.index, shard.count)),
        })
    }

    fn items(&self) -> Result<Vec<Item<PromptItem>>> {
        if let Some(text) = &self.prompt {
            let item = PromptItem { id: 1.into(), prompt: Prompt::Text(text.clone()) };
            return Ok(vec![Item { line: 1, content: Ok(item) }]);
        }
        let path = self.prompts.as_deref().unwrap_or(Path::new("-"));
        let items = input::prompts(&input::path_or_stdin(path))?;
        Ok(match self.shard {
            Some(shard) => shard.of(items),
            None => items,
        })
    }
}

pub fn run(args: Args) -> Result<Done> {
    let cpu = args.device.cpu()?;
    cpu.clone().enter(|| search(&cpu, &args))
}

fn search<B: Backend>(backend: &Arc<B>, args: &Args) -> Result<Done> {
    let settings = args.settings()?;
    let items = args.items()?;
    let plan = Plan {
        base: args.base.clone(),
        base_template: models::template("--base-template", args.base_template.as_deref())?,
        guide_tokens: args.guide_tokens,
        compat: settings.compat,
        guidance: (args.method == Method::Eft).then(|| 1.0 / args.beta.unwrap_or(1.0)),
        life: settings.lifetime(),
        in_flight: args.concurrency.min(items.len()).max(1),
    };
    let ready = models::load(backend, &plan, &args.guide, args.device.kv_memory)?;
    let mut scheduler = Scheduler::new(ready.proposer, ready.guide, plan.in_flight);
    let target = Target {
        output: args.output.as_deref(),
        trace: args.trace.as_deref(),
        resume: args.resume,
        settings: args.fingerprint(),
    };
    let (mut sink, finished) = Sink::open(&target, &items)?;
    let mut progress = Progress::new(items.len(), finished);
    let plain = args.prompt.is_some() && args.output.is_none() && !args.json;
    let guided = !args.guide.pairs().is_empty();

    let mut done = Done::Well;
    let mut fail = |sink: &mut Sink, progress: &Progress, index: usize, error: &Error| {
        done = Done::WithFailures;
        let item: &Item<PromptItem> = &items[index];
        let number = item.line.into();
        let id = item.content.as_ref().map_or(&number, |item| &item.id);
        progress.say(&format!("trimtab: prompt {id}: {error}"));
        if plain {
            return Ok(());
        }
        sink.push(index, json_line(&Failure { id, error: error.to_string() }), Vec::new())
    };
    let mut next = finished;
    loop {
        while next < items.len() && scheduler.pending() < 2 * plan.in_flight {
            match &items[next].content {
                Ok(item) => {
                    if let Err(error) = scheduler.submit(next, &item.prompt, settings.clone()) {
                        fail(&mut sink, &progress, next, &error)?;
                    }
                }
                Err(error) => fail(&mut sink, &progress, next, error)?,
            }
            next += 1;
        }
        if scheduler.pending() == 0 {
            break;
        }
        for Finished { id: index, result } in scheduler.tick()? {
            let (Ok(outcome), Ok(item)) = (&result, &items[index].content) else {
                if let Err(error) = &result {
                    fail(&mut sink, &progress, index, error)?;
                }
                continue;
            };
            progress.done(outcome.response.tokens.len());
            let trace = trace_lines(&item.id, items[index].line, &outcome.trace);
            let answer = if plain {
                format!("{}\n", outcome.response.to_text()).into_bytes()
            } else {
                let method = args.method.name();
                json_line(&Answer::new(item, outcome, guided, args.seed, method))
            };
            sink.push(index, answer, trace)?;
        }
    }
    progress.finish(&backend.describe());
    Ok(done)
}
