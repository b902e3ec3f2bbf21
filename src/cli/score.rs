//! `trimtab score`

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Done;
use super::device::{DeviceArgs, Job};
use super::input::{self, Item};
use super::memory;
use super::models::{self, GuideArgs};
use super::output::json_line;
use super::progress::Progress;
use super::stdout::STDOUT;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::guide::{Guide, GuideTokens, PairGuide, Score, Scoring};
use crate::kv_cache::Lifetime;
use crate::proposer::{Finish, Response};
use crate::text::{Bos, Prompt, Tokenizer};

/// Lines scored together at most.
const BATCH: usize = 32;

/// How prompt and response become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tokens {
    /// Prompt and response are joined and tokenised as one text.
    Text,
    /// The response is tokenised by itself.
    Ids,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    guide: GuideArgs,
    /// A file of lines {"prompt": …, "response": …, "eos": true|false, "id": …}; - is standard input
    #[arg(long, value_name = "PAIRS.jsonl")]
    input: PathBuf,
    /// How prompt and response become tokens
    #[arg(long, value_enum, default_value = "text")]
    guide_tokens: Tokens,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object {\"prompt\": …, \"response\": …}")]
struct PairLine {
    prompt: Prompt,
    response: String,
    #[serde(default)]
    eos: bool,
    /// Read from every line that has one: [`Item::own_id`].
    #[serde(rename = "id")]
    _id: Option<Value>,
}

#[derive(Serialize)]
struct ScoreLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    logp_tuned: f64,
    logp_untuned: f64,
    gain: f64,
    tokens: usize,
}

#[derive(Serialize)]
struct FailureLine {
    line: usize,
    id: Value,
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
    let path = input::path_or_stdin(&args.input);
    let tokens = match args.guide_tokens {
        Tokens::Text => GuideTokens::Text,
        Tokens::Ids => GuideTokens::Ids,
    };
    let (mut guide, tokenizer) =
        models::load_guide(backend, &args.guide, tokens, args.device.kv_memory)?;
    let items = input::lines::<PairLine>(&path)?;
    let prompts = items.iter().filter_map(|item| item.content.as_ref().ok());
    args.guide.check_system(prompts.map(|pair| &pair.prompt))?;
    let mut progress = Progress::new(items.len(), 0, "tokens scored");
    let mut stdout = std::io::stdout().lock();
    let mut done = Done::Well;
    for batch in items.chunks(BATCH.min(guide.whole_sequences()).max(1)) {
        let results = score_batch(&mut guide, &tokenizer, tokens, batch)?;
        for (item, result) in batch.iter().zip(results) {
            let line = match result {
                Ok(Score { logp_tuned, logp_untuned, gain, tokens }) => {
                    progress.done(tokens);
                    let id = item.own_id.as_ref();
                    json_line(&ScoreLine { id, logp_tuned, logp_untuned, gain, tokens })
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
                    json_line(&FailureLine { line: item.line, id: item.id(), error })
                }
            };
            let written = stdout.write_all(&line).and_then(|()| stdout.flush());
            written.map_err(Error::io("write to", STDOUT))?;
        }
    }
    progress.finish(&memory::describe(&**backend));
    Ok(done)
}

/// One score per line, or why it has none; lines that cannot be run are left out of the batch.
fn score_batch<B: Backend>(
    guide: &mut PairGuide<B>,
    tokenizer: &Tokenizer,
    tokens: GuideTokens,
    batch: &[Item<PairLine>],
) -> Result<Vec<Result<Score, String>>> {
    let prepare = |pair: &PairLine| {
        let response = response(tokenizer, guide.eos(), tokens, pair)?;
        let life = Lifetime {
            response: match tokens {
                GuideTokens::Ids => response.tokens.len().max(1),
                // A byte may be a token.
                GuideTokens::Text => response.text.len().max(1),
            },
            chunk: usize::MAX,
            beams: 1,
            candidates: 1,
        };
        Ok((guide.prepare(&pair.prompt, &life)?, response))
    };
    let prepared: Vec<_> = batch
        .iter()
        .map(|item| {
            let pair = item.content.as_ref().map_err(ToString::to_string)?;
            prepare(pair).map_err(|error: Error| error.to_string())
        })
        .collect();
    let good: Vec<_> = prepared.iter().filter_map(|prepared| prepared.as_ref().ok()).collect();
    let prompts: Vec<_> = good.iter().map(|(prompt, _)| prompt).collect();
    let mut states = guide.open(&prompts)?;
    let mut items: Vec<_> = states
        .iter_mut()
        .zip(&good)
        .map(|(state, (_, response))| Scoring { state, response })
        .collect();
    let mut scores = guide.score(&mut items)?.into_iter();
    Ok(prepared
        .iter()
        .map(|prepared| match prepared {
            Ok(_) => scores.next().expect("a score for each response").map_err(|e| e.to_string()),
            Err(reason) => Err(reason.clone()),
        })
        .collect())
}

fn response(
    tokenizer: &Tokenizer,
    eos: Option<u32>,
    tokens: GuideTokens,
    pair: &PairLine,
) -> Result<Response> {
    let mut ids = Vec::new();
    if tokens == GuideTokens::Ids {
        ids = tokenizer.encode(&pair.response, Bos::Never)?;
        if pair.eos {
            ids.push(eos.ok_or(Error::NoEndToken)?);
        }
    }
    Ok(Response {
        tokens: ids,
        text: pair.response.clone().into_bytes(),
        stop: None,
        // Given whole: a response without an end is one that was cut.
        finish: Some(if pair.eos { Finish::Eos } else { Finish::Length }),
    })
}
