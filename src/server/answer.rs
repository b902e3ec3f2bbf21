//! Answers as OpenAI's clients expect them, with what is trimtab's own under `trimtab`.

use serde_json::{Value, json};

use super::request::Generation;
use crate::search::{Chunk, Outcome, Settings};

/// What all objects of one request's answer have in common.
pub struct Frame {
    id: String,
    created: u64,
    model: String,
    chat: bool,
    method: &'static str,
    settings: Settings,
    /// Choices of one prompt.
    n: usize,
    guided: bool,
    trace: bool,
    token_ids: bool,
}

impl Frame {
    /// For a request's answer. `number` names it.
    pub fn new(
        request: &Generation,
        number: &str,
        created: u64,
        model: &str,
        guided: bool,
    ) -> Self {
        let kind = if request.chat { "chatcmpl" } else { "cmpl" };
        Self {
            id: format!("{kind}-{number}"),
            created,
            model: model.into(),
            chat: request.chat,
            method: request.method.name(),
            settings: request.settings.clone(),
            n: request.n,
            guided,
            trace: request.trace,
            token_ids: request.token_ids,
        }
    }

    /// The seed of a choice.
    pub fn seed(&self, index: usize) -> u64 {
        self.settings.seed.wrapping_add((index % self.n) as u64)
    }

    fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// The whole answer.
    pub fn whole(&self, outcomes: &[Outcome], usage: &Usage) -> Value {
        let choices = outcomes.iter().enumerate().map(|(index, outcome)| {
            let text = outcome.response.to_text();
            let mut choice = json!({ "index": index });
            if self.chat {
                choice["message"] = json!({ "role": "assistant", "content": text });
            } else {
                choice["text"] = text.into();
            }
            choice["logprobs"] = Value::Null;
            choice["finish_reason"] = outcome.finish.reason().into();
            choice["trimtab"] = self.own(index, outcome);
            if self.trace {
                choice["trimtab"]["chunks"] = chunks(0, &outcome.trace);
            }
            choice
        });
        let object = if self.chat { "chat.completion" } else { "text_completion" };
        let mut answer = self.object(object, choices.collect());
        answer["usage"] = usage.to_json();
        answer
    }

    /// What only trimtab says of an answer.
    fn own(&self, index: usize, outcome: &Outcome) -> Value {
        let score = self.guided.then_some(outcome.score);
        let mut own = json!({
            "method": self.method,
            "seed": self.seed(index),
            "tokens": outcome.response.tokens.len(),
            "eos": self.settings.scores_end(outcome.finish),
            "stop_reason": outcome.response.stop_string(),
            "gain": score.map(|score| score.gain),
            "logp_tuned": score.map(|score| score.logp_tuned),
            "logp_untuned": score.map(|score| score.logp_untuned),
        });
        if self.token_ids {
            own["token_ids"] = json!(outcome.response.token_ids());
        }
        own
    }

    /// An event of a stream, of one choice.
    fn event(&self, index: usize, text: Option<&str>, finish: Option<&str>) -> Value {
        let mut choice = json!({ "index": index });
        if self.chat {
            choice["delta"] = text.map_or(json!({}), |text| json!({ "content": text }));
        } else {
            choice["text"] = text.unwrap_or_default().into();
        }
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = finish.into();
        self.object(self.event_object(), json!([choice]))
    }

    fn event_object(&self) -> &'static str {
        if self.chat { "chat.completion.chunk" } else { "text_completion" }
    }

    /// What a choice of a chat begins with.
    pub fn opening(&self, index: usize) -> Option<Value> {
        let mut event = self.event(index, Some(""), None);
        event["choices"][0]["delta"]["role"] = "assistant".into();
        self.chat.then_some(event)
    }

    /// More of a choice's text, and the steps that led there, of which `first` came before. None
    /// if there is nothing to tell.
    pub fn step(&self, index: usize, first: usize, steps: &[Chunk], text: &str) -> Option<Value> {
        let steps = if self.trace { steps } else { &[] };
        if steps.is_empty() && text.is_empty() {
            return None;
        }
        let mut event = self.event(index, (!text.is_empty()).then_some(text), None);
        if !steps.is_empty() {
            event["choices"][0]["trimtab"] = json!({ "chunks": chunks(first, steps) });
        }
        Some(event)
    }

    /// The end of a choice.
    pub fn end(&self, index: usize, outcome: &Outcome) -> Value {
        let mut event = self.event(index, None, Some(outcome.finish.reason()));
        event["choices"][0]["trimtab"] = self.own(index, outcome);
        event
    }

    /// The last event of a stream that was asked for it.
    pub fn usage(&self, usage: &Usage) -> Value {
        let mut event = self.object(self.event_object(), json!([]));
        event["usage"] = usage.to_json();
        event
    }
}

/// Steps with their numbers, counted from 0.
fn chunks(first: usize, steps: &[Chunk]) -> Value {
    let numbered = steps.iter().enumerate();
    let chunk = |(step, chunk): (usize, &Chunk)| json!({ "step": first + step, "candidates": chunk.candidates });
    numbered.map(chunk).collect()
}

/// Tokens of a request.
pub struct Usage {
    /// The prompts', each counted once; none if the base model does not say.
    pub prompt: Option<usize>,
    /// The answers'. What was drawn for candidates that lost is not counted.
    pub completion: usize,
}

impl Usage {
    fn to_json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt.map(|prompt| prompt + self.completion),
        })
    }
}

/// The answer to a request for scores.
pub fn scores(model: &str, outcomes: &[Outcome]) -> Value {
    let data = outcomes.iter().enumerate().map(|(index, outcome)| {
        json!({
            "object": "score",
            "index": index,
            "logp_tuned": outcome.score.logp_tuned,
            "logp_untuned": outcome.score.logp_untuned,
            "gain": outcome.score.gain,
            "tokens": outcome.score.tokens,
        })
    });
    json!({ "object": "list", "model": model, "data": data.collect::<Value>() })
}

/// The list of models, which has one entry.
pub fn model(name: &str, created: u64) -> Value {
    json!({ "id": name, "object": "model", "created": created, "owned_by": "trimtab" })
}
