//! `trimtab score`

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;
use serde::Serialize;

use super::Done;
use super::device::{DeviceArgs, Job};
use super::input::{self, Item};
use super::line::{Fields, json_line_with};
use super::memory;
use super::models::{self, GuideArgs, GuideTokensFlag};
use super::progress::Progress;
use super::stdout;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::guide::{Guide, GuideTokens, PairGuide, Score, Scoring};
use crate::json::Json;
use crate::kv_cache::Lifetime;
use crate::proposer::{Finish, Response};
use crate::text::{Bos, Prompt, Tokenizer};

/// Lines scored together at most.
const BATCH: usize = 32;

/// The fields that a line is read by, and those that a score or an error has itself; all others go on.
const TAKEN: &[&str] = &[
    "id",
    "prompt",
    "response",
    "logp_tuned",
    "logp_untuned",
    "gain",
    "tokens",
    "finish_reason",
    "eos",
    "stop_reason",
    "guide_tokens",
    "token_ids",
    "error",
];

/// How prompt and response become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tokens {
    /// By the line's token_ids where the search scored those and they are this guide's, else as text.
    Auto,
    /// Prompt and response are joined and tokenised as one text.
    Text,
    /// By the line's token_ids; without them the response is tokenised by itself.
    Ids,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    guide: GuideArgs,
    /// A file of lines {"prompt": …, "response": …, "eos": true|false, "id": …}, or of answers as search
    /// writes them; - is standard input
    #[arg(long, value_name = "PAIRS.jsonl")]
    input: PathBuf,
    /// How prompt and response become tokens
    #[arg(long, value_enum, default_value = "auto")]
    guide_tokens: Tokens,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A line that says what to score, or a search's that has failed.
enum PairLine {
    Pair(Pair),
    Failed(String),
}

struct Pair {
    prompt: Prompt,
    response: String,
    /// The stop string behind it, which was scored too.
    stop: String,
    /// Whether its end counts.
    eos: bool,
    /// Its tokens, the end token included.
    ids: Option<Vec<u32>>,
    /// What the guide of its search read.
    read: Option<GuideTokens>,
}

impl PairLine {
    fn read(fields: &Fields) -> Result<Self, String> {
        if let Some(error) = fields.get::<Json>("error")? {
            let error = error.string().unwrap_or_else(|| error.to_string());
            return Ok(Self::Failed(format!("is an answer that failed: {error}")));
        }
        let prompt = fields.require("prompt")?;
        let response = fields.require("response")?;
        let finish: Option<String> = fields.get("finish_reason")?;
        // Some servers name a stop token here, by its number.
        let stop = fields.get::<Json>("stop_reason")?.and_then(|stop| stop.string());
        let ended = finish.is_some_and(|reason| reason == "stop") && stop.is_none();
        let eos = fields.get("eos")?.unwrap_or(ended);
        let (ids, read) = (fields.get("token_ids")?, fields.get("guide_tokens")?);
        Ok(Self::Pair(Pair { prompt, response, stop: stop.unwrap_or_default(), eos, ids, read }))
    }
}

impl Pair {
    /// Whether it brings tokens that may be scored as they are.
    fn offers_ids(&self) -> bool {
        self.ids.is_some() && self.read != Some(GuideTokens::Text)
    }

    fn text(&self) -> Cow<'_, str> {
        match &*self.stop {
            "" => Cow::Borrowed(&self.response),
            stop => Cow::Owned(format!("{}{stop}", self.response)),
        }
    }

    /// Its tokens if they are of this vocabulary: if they write there what the response says.
    fn own_ids(&self, tokenizer: &Tokenizer, eos: Option<u32>) -> Result<Option<Vec<u32>>> {
        let Some(ids) = &self.ids else { return Ok(None) };
        let text = self.text();
        let write_it = |ids: &[u32]| {
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.bytes(id)).copied().collect();
            let written = String::from_utf8_lossy(&bytes);
            // What its last token wrote behind a stop string was cut off.
            if self.stop.is_empty() { written == text } else { written.starts_with(&*text) }
        };
        match ids.split_last() {
            // The last one is the end, whatever this vocabulary calls it.
            Some((_, text)) if self.eos && write_it(text) => Ok(Some(ids.clone())),
            _ if !write_it(ids) => Ok(None),
            _ if self.eos => Ok(Some([&ids[..], &[eos.ok_or(Error::NoEndToken)?]].concat())),
            _ => Ok(Some(ids.clone())),
        }
    }
}

#[derive(Serialize)]
struct ScoreLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Json>,
    logp_tuned: f64,
    logp_untuned: f64,
    gain: f64,
    tokens: usize,
}

#[derive(Serialize)]
struct FailureLine {
    line: usize,
    id: Json,
    error: String,
}

pub fn run(args: Args) -> Result<Done> {
    args.device.clone().run(args)
}

impl Job for Args {
    type Output = Done;

    fn run<B: Backend>(self, backend: &Arc<B>) -> Result<Done> {
        score(backend, &self)
    }
}

fn score<B: Backend>(backend: &Arc<B>, args: &Args) -> Result<Done> {
    stdout::check()?;
    let path = input::path_or_stdin(&args.input);
    let what = "a prompt with its response";
    let mut items = input::lines(&path, what, PairLine::read)?;
    for item in &mut items {
        item.fields = std::mem::take(&mut item.fields).without(TAKEN);
    }
    let offers_ids = |item: &Item<PairLine>| matches!(&item.content, Ok(PairLine::Pair(pair)) if pair.offers_ids());
    let tokens = match args.guide_tokens {
        Tokens::Ids => GuideTokensFlag::Ids,
        Tokens::Auto if items.iter().any(offers_ids) => GuideTokensFlag::Auto,
        Tokens::Auto | Tokens::Text => GuideTokensFlag::Text,
    };
    let prompts = items.iter().filter_map(|item| match &item.content {
        Ok(PairLine::Pair(pair)) => Some(&pair.prompt),
        _ => None,
    });
    args.guide.check_system(prompts)?;
    let (guide, tokenizer) =
        models::load_guide(backend, &args.guide, tokens, args.device.kv_memory)?;
    let mut scorer = Scorer { guide, tokenizer, tokens: args.guide_tokens, others_ids: 0 };
    let mut progress = Progress::new(items.len(), 0, "tokens scored");
    let mut done = Done::Well;
    for batch in items.chunks(BATCH.min(scorer.guide.whole_sequences()).max(1)) {
        let results = scorer.score(batch)?;
        for (item, result) in batch.iter().zip(results) {
            let line = match result {
                Ok(Score { logp_tuned, logp_untuned, gain, tokens }) => {
                    progress.done(tokens);
                    let id = item.own_id.as_ref();
                    let own = ScoreLine { id, logp_tuned, logp_untuned, gain, tokens };
                    json_line_with(&own, &item.fields)
                }
                Err(reason) => {
                    done = Done::WithFailures;
                    // A line that is none names itself already.
                    let error = match &item.content {
                        Err(error) => error.to_string(),
                        Ok(_) => {
                            Error::Line { path: path.clone(), line: item.line, reason }.to_string()
                        }
                    };
                    progress.say(&error);
                    let own = FailureLine { line: item.line, id: item.id(), error };
                    json_line_with(&own, &item.fields.clone().without(&["line"]))
                }
            };
            stdout::write_lines(&line)?;
        }
    }
    if let count @ 1.. = scorer.others_ids {
        let lines = if count == 1 { "1 line".into() } else { format!("{count} lines") };
        progress.say(format_args!(
            "the token_ids of {lines} are not of this guide's vocabulary: the text was scored"
        ));
    }
    progress.finish(&memory::describe(&**backend));
    Ok(done)
}

/// A guide, and how it reads lines.
struct Scorer<B: Backend> {
    guide: PairGuide<B>,
    tokenizer: Arc<Tokenizer>,
    tokens: Tokens,
    /// Lines whose token ids are of another vocabulary.
    others_ids: usize,
}

impl<B: Backend> Scorer<B> {
    /// One score per line, or why it has none; lines that cannot be run are left out of the batch.
    fn score(&mut self, batch: &[Item<PairLine>]) -> Result<Vec<Result<Score, String>>> {
        let mut prepared = Vec::with_capacity(batch.len());
        for item in batch {
            prepared.push(match &item.content {
                Ok(PairLine::Pair(pair)) => self.prepare(pair).map_err(|error| error.to_string()),
                Ok(PairLine::Failed(reason)) => Err(reason.clone()),
                Err(error) => Err(error.to_string()),
            });
        }
        let good: Vec<_> = prepared.iter().filter_map(|prepared| prepared.as_ref().ok()).collect();
        let prompts: Vec<_> = good.iter().map(|(prompt, _)| prompt).collect();
        let mut states = self.guide.open(&prompts)?;
        let mut items: Vec<_> = states
            .iter_mut()
            .zip(&good)
            .map(|(state, (_, response))| Scoring { state, response })
            .collect();
        let mut scores = self.guide.score(&mut items)?.into_iter();
        Ok(prepared
            .iter()
            .map(|prepared| match prepared {
                Ok(_) => {
                    scores.next().expect("a score for each response").map_err(|e| e.to_string())
                }
                Err(reason) => Err(reason.clone()),
            })
            .collect())
    }

    fn prepare(&mut self, pair: &Pair) -> Result<(<PairGuide<B> as Guide>::Prompt, Response)> {
        let response = self.response(pair)?;
        let life = match response.tokens.len() {
            // A byte may be a token.
            0 => Lifetime::given(response.text.len() + 1),
            tokens => Lifetime { response: tokens, chunk: usize::MAX, beams: 1, candidates: 1 },
        };
        Ok((self.guide.prepare(&pair.prompt, &life)?, response))
    }

    fn response(&mut self, pair: &Pair) -> Result<Response> {
        let (text, eos) = (pair.text(), self.guide.eos());
        let ids = match self.tokens {
            Tokens::Text => None,
            Tokens::Auto if !pair.offers_ids() => None,
            Tokens::Auto => {
                let ids = pair.own_ids(&self.tokenizer, eos)?;
                self.others_ids += usize::from(ids.is_none());
                ids
            }
            Tokens::Ids if pair.ids.is_some() => {
                let ids = pair.own_ids(&self.tokenizer, eos)?;
                Some(ids.ok_or_else(|| Error::VocabularyMismatch {
                    a: "`token_ids`".into(),
                    b: self.tokenizer.folder().display().to_string(),
                    reason:
                        "there these ids do not write the response; use --guide-tokens text".into(),
                })?)
            }
            Tokens::Ids => {
                let mut ids = self.tokenizer.encode(&text, Bos::Never)?;
                if pair.eos {
                    ids.push(eos.ok_or(Error::NoEndToken)?);
                }
                Some(ids)
            }
        };
        Ok(Response {
            tokens: ids.unwrap_or_default(),
            text: text.into_owned().into_bytes(),
            stop: None,
            // Given whole: a response without an end is one that was cut.
            finish: Some(if pair.eos { Finish::Eos } else { Finish::Length }),
        })
    }
}
