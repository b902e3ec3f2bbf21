//! A base model elsewhere: any server that speaks OpenAI's completions protocol.
//!
//! Candidates that are forks of one beam are one request with n = K. All requests of all searches
//! run at the same time, up to a limit. What fails is asked for again, and only that; when the
//! retries are spent, the one search fails whose candidates it was.
//!
//! The server sees text: the prompt and what has been written so far. So it tokenises each chunk's
//! beginning anew, and a token may be cut otherwise than the model would have. Stop strings are
//! found here and not there, because a server does not say whether one of them or the model ended
//! a text.

mod client;

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub use client::{ApiKey, Endpoint};

use super::{Draft, Finish, Lifetime, Prompt, Proposer, Sampling};
use crate::error::{Error, Result};
use crate::philox::Draw;
use crate::text::{PromptFormat, Template};
use client::{Ask, Choice, Client};

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
    client: Client,
    format: RemoteFormat,
    /// Choices that one request asks for at most: fewer once the server has given fewer.
    choices: AtomicUsize,
}

/// A prompt as the server reads it.
pub struct RemotePrompt {
    text: String,
    /// Where that is known.
    tokens: Option<usize>,
}

/// A hypothesis is its text, which its response holds. All states of a search, and no others,
/// share one copy of the prompt.
#[derive(Clone)]
pub struct RemoteState {
    prompt: Arc<str>,
}

impl RemoteState {
    /// Tells searches apart, also those with the same prompt.
    fn search(&self) -> usize {
        self.prompt.as_ptr().addr()
    }
}

impl RemoteProposer {
    /// Bytes of text for each token asked for that a server may send at most. The longest tokens
    /// of the vocabularies in use have 128.
    pub const TOKEN_BYTES: usize = 128;

    /// # Errors
    /// [`Error::Flag`] for an address that cannot be one. The server is not asked yet.
    pub fn new(endpoint: Endpoint, format: RemoteFormat) -> Result<Self> {
        let choices = AtomicUsize::new(endpoint.choices.max(1));
        Ok(Self { client: Client::new(endpoint)?, format, choices })
    }

    /// Where and how the server is asked.
    pub fn endpoint(&self) -> &Endpoint {
        self.client.endpoint()
    }

    /// A prompt's JSON.
    fn prompt(&self, text: &str) -> Result<serde_json::Value> {
        match &self.format {
            RemoteFormat::Model { format, ids: true } => Ok(format.encode(text)?.into()),
            _ => Ok(text.into()),
        }
    }

    /// Asks for some candidates of a group. Returns what came, and what must still be asked for.
    fn run(&self, group: &Group, part: &Part) -> Result<(Vec<Choice>, Vec<Part>)> {
        let Sampling { temperature, top_p, top_k } = group.sampling;
        // Greedy continuations of one text are all the same.
        let n = if temperature == 0.0 { 1 } else { part.drafts.len() };
        let ask = Ask {
            model: &self.client.endpoint().model,
            prompt: &group.prompt,
            n,
            max_tokens: group.steps,
            temperature,
            top_p,
            top_k: (top_k > 0).then_some(top_k),
            // Servers want a number that is not negative.
            seed: part.draw.bits() >> 1,
        };
        let mut choices = self.client.complete(&ask)?;
        for choice in &mut choices {
            if choice.text.len() > group.steps.saturating_mul(Self::TOKEN_BYTES) {
                let (bytes, steps) = (choice.text.len(), group.steps);
                let reason = format!("it sent {bytes} bytes of text for at most {steps} tokens");
                return Err(self.client.error(reason));
            }
            if !choice.ended {
                // A character that was cut comes out broken; the next chunk begins before it.
                let whole = choice.text.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
                choice.text.truncate(whole);
            }
        }
        if temperature == 0.0 {
            let first = choices[0].clone();
            choices.resize(part.drafts.len(), first);
        }
        let rest = &part.drafts[choices.len().min(part.drafts.len())..];
        if !rest.is_empty() {
            self.choices.fetch_min(choices.len(), Ordering::Relaxed);
        }
        Ok((choices, self.parts(part.group, rest)))
    }

    /// Puts drafts together that continue the same text; one whose text cannot be tokenised fails.
    fn groups(&self, drafts: &mut [Draft<'_, RemoteState>]) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (number, draft) in drafts.iter_mut().enumerate() {
            let search = draft.state.search();
            let written = String::from_utf8_lossy(&draft.response.text);
            let text = format!("{}{written}", draft.state.prompt);
            let numbered = Numbered {
                draft: number,
                draw: Draw { position: draft.response.tokens.len() as u32, ..draft.draw },
            };
            let same = |group: &&mut Group| group.search == search && group.text == text;
            if let Some(group) = groups.iter_mut().find(same) {
                group.drafts.push(numbered);
                continue;
            }
            match self.prompt(&text) {
                Err(error) => *draft.failure = Some(error),
                Ok(prompt) => groups.push(Group {
                    search,
                    text,
                    prompt,
                    steps: draft.steps,
                    sampling: draft.sampling,
                    drafts: vec![numbered],
                }),
            }
        }
        groups
    }

    /// Answers for as many drafts, each a choice or an error; none where the search has failed
    /// with another draft's error.
    fn answers(&self, groups: &[Group], drafts: usize) -> Vec<Option<Result<Choice>>> {
        let parts = (0..groups.len()).flat_map(|group| self.parts(group, &groups[group].drafts));
        let queue = Queue::new(parts.collect());
        let answers: Mutex<Vec<Option<Result<Choice>>>> =
            Mutex::new((0..drafts).map(|_| None).collect());
        let failed = Mutex::new(HashSet::new());
        let work = || {
            while let Some(part) = queue.next() {
                let group = &groups[part.group];
                if lock(&failed).contains(&group.search) {
                    queue.done(Vec::new());
                    continue;
                }
                let result = self.run(group, &part);
                let mut answers = lock(&answers);
                let left = match result {
                    Ok((choices, left)) => {
                        for (draft, choice) in part.drafts.iter().zip(choices) {
                            answers[draft.draft] = Some(Ok(choice));
                        }
                        left
                    }
                    Err(error) => {
                        lock(&failed).insert(group.search);
                        answers[part.drafts[0].draft] = Some(Err(error));
                        Vec::new()
                    }
                };
                drop(answers);
                queue.done(left);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.client.endpoint().requests.min(drafts) {
                scope.spawn(work);
            }
        });
        answers.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts candidates into requests of as many as the server gives at once.
    fn parts(&self, group: usize, drafts: &[Numbered]) -> Vec<Part> {
        let most = self.choices.load(Ordering::Relaxed);
        drafts
            .chunks(most)
            .map(|drafts| Part { group, draw: drafts[0].draw, drafts: drafts.to_vec() })
            .collect()
    }
}

impl Proposer for RemoteProposer {
    type Prompt = RemotePrompt;
    type State = RemoteState;

    fn prepare(&self, prompt: &Prompt, _: &Lifetime) -> Result<RemotePrompt> {
        let (text, tokens) = match (&self.format, prompt) {
            (RemoteFormat::Template(template), Prompt::Text(text)) => (template.render(text), None),
            (RemoteFormat::Template(_), Prompt::Chat(_)) => {
                let reason = "is needed for a conversation: the folder of the base model's own \
                              chat template";
                return Err(Error::flag("--base-tokenizer", reason));
            }
            (RemoteFormat::Model { format, .. }, prompt) => {
                let text = format.render(prompt)?;
                let tokens = format.encode(&text)?.len();
                (text, Some(tokens))
            }
        };
        if text.is_empty() {
            return Err(Error::EmptyPrompt { model: "base" });
        }
        Ok(RemotePrompt { text, tokens })
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
        Ok(prompts
            .iter()
            .map(|prompt| RemoteState { prompt: prompt.text.as_str().into() })
            .collect())
    }

    fn extend(&mut self, drafts: &mut [Draft<'_, RemoteState>]) -> Result<()> {
        let groups = self.groups(drafts);
        let answers = self.answers(&groups, drafts.len());
        for (draft, answer) in drafts.iter_mut().zip(answers) {
            match answer {
                Some(Ok(Choice { text, ended, tokens })) => {
                    draft.response.push_untold(tokens, &text, draft.stop);
                    if ended {
                        draft.response.finish.get_or_insert(Finish::Eos);
                    }
                }
                Some(Err(error)) => *draft.failure = Some(error),
                None => {}
            }
        }
        Ok(())
    }
}

/// Candidates that continue the same text in the same way.
struct Group {
    search: usize,
    text: String,
    prompt: serde_json::Value,
    steps: usize,
    sampling: Sampling,
    drafts: Vec<Numbered>,
}

/// A draft's place among all, and its random numbers.
#[derive(Clone, Copy)]
struct Numbered {
    draft: usize,
    draw: Draw,
}

/// One request.
struct Part {
    group: usize,
    drafts: Vec<Numbered>,
    /// Names its random numbers: the first candidate's.
    draw: Draw,
}

/// Requests that are to be made, for several threads.
struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

struct Waiting {
    parts: VecDeque<Part>,
    /// Requests under way: they may yet leave something to be asked for.
    running: usize,
}

impl Queue {
    fn new(parts: VecDeque<Part>) -> Self {
        Self { state: Mutex::new(Waiting { parts, running: 0 }), changed: Condvar::new() }
    }

    /// The next request; none when all are answered.
    fn next(&self) -> Option<Part> {
        let mut state = lock(&self.state);
        loop {
            if let Some(part) = state.parts.pop_front() {
                state.running += 1;
                return Some(part);
            }
            if state.running == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A request has been answered and leaves these.
    fn done(&self, left: Vec<Part>) {
        let mut state = lock(&self.state);
        state.parts.extend(left);
        state.running -= 1;
        self.changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
