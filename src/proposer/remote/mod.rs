//! A base model elsewhere: any server that speaks OpenAI's completions protocol.
//!
//! Candidates that are forks of one beam are one request with n = K. The requests of all searches
//! run at the same time, up to a limit, in the background: searches whose candidates have come go
//! on while others wait. What fails is asked for again, and only that; when the retries are spent,
//! the one search fails whose candidates it was.
//!
//! The server sees text: the prompt and what has been written so far. So it tokenises each chunk's
//! beginning anew, and a token may be cut otherwise than the model would have. Stop strings are
//! found here and not there, because a server does not say whether one of them or the model ended
//! a text.

mod asking;
mod client;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

pub use client::{ApiKey, Endpoint};

use super::{Draft, Finish, Lifetime, Prompt, Proposer, Reader, Unfinished};
use crate::error::{Error, Result};
use crate::philox::Draw;
use crate::text::{PromptFormat, PromptText, Template};
use asking::{Asking, Chunk, Job, Numbered, Text};
use client::{Choice, Client};

/// How long to wait for an answer before the caller may look after other things.
const PATIENCE: Duration = Duration::from_millis(100);

/// How the server is prompted.
#[derive(Clone, Debug)]
pub enum RemoteFormat {
    /// With text.
    Template(Template),
    /// With text that the model's own chat template may write, or, with `ids`, with the tokens
    /// that its tokenizer makes of it.
    Model {
        /// The model's.
        format: PromptFormat,
        /// Tokens.
        ids: bool,
    },
}

/// The base model on a server.
pub struct RemoteProposer {
    asking: Asking,
    format: RemoteFormat,
}

/// A prompt as the server reads it.
pub struct RemotePrompt {
    text: PromptText,
    /// Where that is known.
    tokens: Option<usize>,
}

/// A hypothesis is its text, which its response holds. All states of a search, and no others,
/// share one copy of the prompt.
#[derive(Clone)]
pub struct RemoteState {
    prompt: Arc<PromptText>,
    /// What is on the way, and which of it is this one's.
    coming: Option<(Arc<Chunk>, usize)>,
}

impl RemoteState {
    /// Tells searches apart, also those with the same prompt.
    fn search(&self) -> usize {
        Arc::as_ptr(&self.prompt).addr()
    }
}

impl RemoteProposer {
    /// Whether what is sent to the server may depend on the day.
    pub fn asks_for_date(&self) -> bool {
        match &self.format {
            RemoteFormat::Template(_) => false,
            RemoteFormat::Model { format, .. } => format.asks_for_date(),
        }
    }

    /// Bytes of text for each token asked for that a server may send at most. The longest tokens
    /// of the vocabularies in use have 128.
    pub const TOKEN_BYTES: usize = 128;

    /// # Errors
    /// [`Error::Flag`] for an address that cannot be one. The server is not asked yet.
    pub fn new(endpoint: Endpoint, format: RemoteFormat) -> Result<Self> {
        Ok(Self { asking: Asking::new(Client::new(endpoint)?), format })
    }

    /// A prompt's JSON.
    fn prompt(&self, text: &PromptText) -> Result<serde_json::Value> {
        match &self.format {
            RemoteFormat::Model { format, ids: true } => Ok(format.encode(text)?.into()),
            _ => Ok(text.text.as_str().into()),
        }
    }

    /// Asks for the chunks of searches that wait for none yet. Drafts that continue the same text
    /// go together; a search whose text cannot be tokenised fails.
    fn ask(&self, drafts: &mut [Draft<'_, RemoteState>]) -> Result<()> {
        let mut chunks: HashMap<usize, Arc<Chunk>> = HashMap::new();
        let mut jobs: Vec<Job> = Vec::new();
        // Which job continues which text of which search.
        let mut texts: HashMap<(usize, String), usize> = HashMap::new();
        for draft in drafts.iter_mut().filter(|draft| draft.state.coming.is_none()) {
            let search = draft.state.search();
            let chunk = chunks.entry(search).or_default();
            let place = chunk.add();
            draft.state.coming = Some((chunk.clone(), place));
            let draw = Draw { position: draft.response.tokens.len() as u32, ..draft.draw };
            let written = String::from_utf8_lossy(&draft.response.text);
            let text = draft.state.prompt.with(&written);
            let numbered = Numbered { place, draw };
            match texts.entry((search, text.text.clone())) {
                Entry::Occupied(job) => jobs[*job.get()].drafts.push(numbered),
                Entry::Vacant(vacant) => match self.prompt(&text) {
                    Err(error) => chunk.fail(error),
                    Ok(prompt) => {
                        let (steps, sampling) = (draft.steps, draft.sampling);
                        let text = Arc::new(Text { prompt, steps, sampling });
                        let chunk = Arc::downgrade(chunk);
                        vacant.insert(jobs.len());
                        jobs.push(Job { text, chunk, drafts: vec![numbered] });
                    }
                },
            }
        }
        self.asking.ask(jobs)
    }
}

impl RemoteFormat {
    fn read(&self, prompt: &Prompt) -> Result<RemotePrompt> {
        let (text, tokens) = match (self, prompt) {
            (RemoteFormat::Template(template), Prompt::Text(text)) => {
                (PromptText { text: template.render(text), is_chat: false }, None)
            }
            (RemoteFormat::Template(_), Prompt::Chat(_)) => {
                let reason = "is needed for a conversation: the folder of the base model's own \
                              chat template";
                return Err(Error::flag("--base-tokenizer", reason));
            }
            (RemoteFormat::Model { format, .. }, prompt) => {
                let text = format.render(prompt).map_err(Error::unreadable("base"))?;
                let tokens = format.encode(&text).map_err(Error::unreadable("base"))?;
                (text, Some(tokens.len()))
            }
        };
        if text.text.is_empty() {
            return Err(Error::EmptyPrompt { model: "base" });
        }
        Ok(RemotePrompt { text, tokens })
    }
}

impl Proposer for RemoteProposer {
    type Prompt = RemotePrompt;
    type State = RemoteState;

    fn reader(&self) -> Reader<RemotePrompt> {
        let format = self.format.clone();
        Arc::new(move |prompt, _| format.read(prompt))
    }

    fn pages_needed(&self, _: &RemotePrompt, _: &Lifetime) -> Vec<usize> {
        Vec::new()
    }

    fn page_capacity(&self) -> Vec<usize> {
        Vec::new()
    }

    fn prompt_tokens(&self, prompt: &RemotePrompt) -> Option<usize> {
        prompt.tokens
    }

    fn whole_chunks(&self) -> bool {
        true
    }

    fn open(&mut self, prompts: &[&RemotePrompt]) -> Result<Vec<RemoteState>> {
        let state = |prompt: &&RemotePrompt| {
            let prompt = Arc::new(prompt.text.clone());
            RemoteState { prompt, coming: None }
        };
        Ok(prompts.iter().map(state).collect())
    }

    fn extend(&mut self, drafts: &mut [Draft<'_, RemoteState>]) -> Result<()> {
        self.ask(drafts)?;
        let coming = drafts.iter().filter_map(|draft| draft.state.coming.as_ref());
        self.asking.wait(coming.map(|(chunk, _)| &**chunk), PATIENCE);
        // Looked at once for each search: all of its drafts are given, or none.
        let mut over: HashMap<usize, bool> = HashMap::new();
        for draft in drafts {
            let Some((chunk, place)) = &draft.state.coming else { continue };
            if !*over.entry(draft.state.search()).or_insert_with(|| chunk.is_over()) {
                *draft.unfinished = Some(Unfinished::Later);
                continue;
            }
            match chunk.take(*place) {
                Ok(Choice { text, ended, tokens }) => {
                    draft.response.push_untold(tokens, &text, draft.stop);
                    if ended {
                        draft.response.finish.get_or_insert(Finish::Eos);
                    }
                }
                Err(error) => *draft.unfinished = error.map(Unfinished::Failed),
            }
            draft.state.coming = None;
        }
        Ok(())
    }
}
