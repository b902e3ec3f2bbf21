//! `trimtab search`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::Done;
use super::base::BaseArgs;
use super::device::{DeviceArgs, Job};
use super::input::{self, Item, Shard};
use super::line::{Fields, json_line_with};
use super::memory;
use super::models::{self, GuideArgs, GuideFlag};
use super::output::{Answer, Common, Failure, Sink, Target, is_stdout, trace_lines};
use super::progress::Progress;
use super::settings::SearchArgs;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::scheduler::{Finished, Scheduler};
use crate::search::Settings;
use crate::text::{Date, Prompt};

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    guide: GuideArgs,

    /// The prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts")]
    prompt: Option<String>,
    /// A file of lines {"prompt": …, "id": …}, whose other fields go on to the answers; - is standard input
    #[arg(long, value_name = "FILE.jsonl")]
    prompts: Option<PathBuf>,

    #[command(flatten)]
    search: SearchArgs,
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
    /// With --resume: answer anew from the first prompt on that failed
    #[arg(long, requires = "resume")]
    retry_failed: bool,
    /// Only every N-th prompt, from the I-th on
    #[arg(long, value_name = "I/N", conflicts_with = "prompt")]
    shard: Option<Shard>,
    /// Write every step's candidates here
    #[arg(long, value_name = "FILE.jsonl")]
    trace: Option<PathBuf>,
    /// Print a single answer as a JSON line too
    #[arg(long)]
    json: bool,
    /// Write the base model's token ids into the answers, a single one's too
    #[arg(long)]
    token_ids: bool,
}

impl Args {
    /// All that determines an answer, for `--resume`: models by what is in them, wherever they lie, and
    /// flags as they work, whether given or not; `date` where chat templates ask for it.
    fn fingerprint(
        &self,
        settings: &Settings,
        arithmetic: &str,
        date: Option<Date>,
    ) -> Result<Value> {
        let pairs = self.guide.pairs();
        let pairs = pairs.iter().map(|GuideFlag { tuned, untuned, weight }| {
            Ok(json!([models::fingerprint(tuned)?, models::fingerprint(untuned)?, weight]))
        });
        let Self { search, guide, .. } = self;
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "arithmetic": arithmetic,
            "base": self.base.fingerprint()?,
            "fingerprints and weights of the guide's pairs": pairs.collect::<Result<Vec<_>>>()?,
            "--method": search.method.name(),
            "--beam-width": settings.beam_width,
            "--successors": settings.successors,
            "--chunk-len": settings.chunk_len.map_or("inf".into(), Value::from),
            "--max-new-tokens": settings.max_new_tokens,
            "--temperature": shortest(search.temperature),
            "--top-k": search.top_k,
            "--top-p": shortest(search.top_p),
            "--seed": settings.seed,
            "--beta": search.beta().map(shortest),
            "--stop": search.stop,
            "--base-template": search.base_template,
            "--guide-template": guide.guide_template,
            "--chat": guide.chat,
            "--system": guide.system,
            "--date": date.map(|date| date.to_string()),
            "--guide-tokens": format!("{:?}", search.guide_tokens).to_lowercase(),
            "--compat": search.compat.map(|_| "reference"),
            "--bos": format!("{:?}", guide.bos).to_lowercase(),
            "--token-ids": self.token_ids,
            "--shard": self.shard.map(|shard| format!("{}/{}", shard.index, shard.count)),
        }))
    }

    fn items(&self) -> Result<Vec<Item<Prompt>>> {
        if let Some(text) = &self.prompt {
            let content = Ok(Prompt::Text(text.clone()));
            let fields = Fields::default();
            return Ok(vec![Item { line: 1, own_id: None, content, fields }]);
        }
        let Some(path) = &self.prompts else {
            return Err(Error::flag("--prompt", "or --prompts is needed"));
        };
        let items = input::prompts(&input::path_or_stdin(path))?;
        Ok(match self.shard {
            Some(shard) => shard.of(items),
            None => items,
        })
    }
}

/// A flag's number as it was written: its own digits, not those of the `f64` that is nearest to it.
fn shortest(number: f32) -> Value {
    json!(number.to_string().parse().unwrap_or(f64::from(number)))
}

pub fn run(args: Args) -> Result<Done> {
    args.device.clone().run(args)
}

impl Job for Args {
    type Output = Done;

    fn run<B: Backend>(self, backend: &Arc<B>) -> Result<Done> {
        search(backend, self)
    }
}

fn search<B: Backend>(backend: &Arc<B>, mut args: Args) -> Result<Done> {
    // One day for the whole run, also where it goes on past midnight.
    let date = *args.guide.date.get_or_insert_with(Date::today);
    let args = &args;
    let settings = args.search.settings(&args.guide)?;
    if args.concurrency == 0 {
        return Err(Error::flag("--concurrency", "must be at least 1"));
    }
    if args.token_ids && args.base.base_url.is_some() {
        let reason = "cannot be with --base-url: a server does not tell its tokens";
        return Err(Error::flag("--token-ids", reason));
    }
    let items = args.items()?;
    args.guide.check_system(items.iter().filter_map(|item| item.content.as_ref().ok()))?;
    let in_flight = args.concurrency.min(items.len()).max(1);
    let plan = args.search.plan(args.base.base()?, &settings, in_flight)?;
    let ready = models::load(backend, &plan, &args.guide, args.device.kv_memory)?;
    let asks_for_date = ready.proposer.asks_for_date() || ready.guide.asks_for_date();
    let common = Common {
        settings: &settings,
        method: args.search.method.name(),
        guide: ready.guide.tokens(),
        token_ids: args.token_ids,
    };
    let mut scheduler = Scheduler::new(ready.proposer, ready.guide, plan.in_flight);
    let files = args.output.as_deref().filter(|path| !is_stdout(path));
    let date = asks_for_date.then_some(date);
    let target = Target {
        output: files,
        trace: args.trace.as_deref(),
        resume: args.resume,
        retry_failed: args.retry_failed,
        settings: match files {
            Some(_) => args.fingerprint(&settings, &backend.arithmetic(), date)?,
            None => Value::Null,
        },
    };
    let (mut sink, kept) = Sink::open(&target, &items)?;
    let mut progress = Progress::new(items.len(), kept.finished, "answer tokens");
    let plain = args.prompt.is_some() && files.is_none() && !args.json && !args.token_ids;

    let mut done = Done::Well;
    if let (Some(file), failed @ 1..) = (files.map(Path::display), kept.failed.len()) {
        done = Done::WithFailures;
        progress.say(match failed {
            1 => format!("1 line of {file} holds an error; --retry-failed runs it again"),
            _ => format!("{failed} lines of {file} hold errors; --retry-failed runs them again"),
        });
    }
    let mut fail = |sink: &mut Sink, progress: &Progress, index: usize, error: &Error| {
        done = Done::WithFailures;
        let (id, fields) = (&items[index].id(), &items[index].fields);
        progress.say(format_args!("prompt {id}: {error}"));
        if plain {
            return Ok(());
        }
        let failure = Failure { id, error: error.to_string() };
        sink.push(index, json_line_with(&failure, fields), Vec::new())
    };
    let mut next = kept.finished;
    loop {
        while next < items.len() && scheduler.pending() < 2 * plan.in_flight {
            match &items[next].content {
                Ok(prompt) => {
                    if let Err(error) = scheduler.submit(next, prompt, settings.clone()) {
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
            let (item, id) = (&items[index], &items[index].id());
            let (Ok(outcome), Ok(prompt)) = (&result, &item.content) else {
                if let Err(error) = &result {
                    fail(&mut sink, &progress, index, error)?;
                }
                continue;
            };
            progress.done(outcome.response.tokens.len());
            let trace = trace_lines(id, item.line, &outcome.trace);
            let answer = if plain {
                format!("{}\n", outcome.response.to_text()).into_bytes()
            } else {
                json_line_with(&Answer::new(id, prompt, outcome, &common), &item.fields)
            };
            sink.push(index, answer, trace)?;
        }
    }
    sink.finish()?;
    progress.finish(&memory::describe(&**backend));
    Ok(done)
}
