//! From what a user asks to what a model reads.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::chat::{ChatTemplate, Message};
use super::date::Date;
use super::tokenizer::{Bos, Tokenizer};
use crate::error::{Error, Result};

/// The place of the prompt in a template.
const PLACE: &str = "{prompt}";

/// Text around a prompt, such as `"Review: {prompt}"`.
///
/// `{prompt}` is replaced wherever it stands, also more than once. All else is literal: other
/// braces stay, and there are no escapes (a line break is written as one, not as `\n`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
}

impl Template {
    /// Reads a template; `flag` names its origin in the error.
    ///
    /// # Errors
    /// [`Error::Template`] when `{prompt}` is not in it.
    pub fn parse(flag: &str, text: &str) -> Result<Self> {
        if !text.contains(PLACE) {
            return Err(Error::Template {
                what: flag.into(),
                reason: format!("{text:?} has no {PLACE} in it; write it where the prompt goes"),
            });
        }
        Ok(Self { text: text.into() })
    }

    /// The template with the prompt in its place. The prompt itself is not searched for `{prompt}`.
    pub fn render(&self, prompt: &str) -> String {
        self.text.replace(PLACE, prompt)
    }
}

impl Default for Template {
    /// The prompt alone.
    fn default() -> Self {
        Self { text: PLACE.into() }
    }
}

/// What a user asks: in JSON a string, or a list of messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "must be a string or a list of {\"role\", \"content\"} messages")]
pub enum Prompt {
    /// Text to continue, or to answer with [`PromptFormat::chat`].
    Text(String),
    /// A conversation to go on with.
    Chat(Vec<Message>),
}

/// The text that a model reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptText {
    /// All of it, up to where the response begins.
    pub text: String,
    /// A chat template wrote it. Such a text says itself what is in front.
    pub is_chat: bool,
}

impl PromptText {
    /// The same with a response, or the beginning of one, behind it.
    pub fn with(&self, response: &str) -> Self {
        Self { text: format!("{}{response}", self.text), is_chat: self.is_chat }
    }
}

/// How one model is asked: every model has its own.
#[derive(Clone, Debug)]
pub struct PromptFormat {
    /// The model's.
    pub tokenizer: Arc<Tokenizer>,
    /// Around a text prompt, also before it becomes a chat message. Not around a conversation.
    pub template: Template,
    /// Whether a text prompt becomes a user's message in the model's chat template.
    pub chat: bool,
    /// The system message of conversations that have none of their own; it may be empty.
    pub system: Option<Arc<str>>,
    /// The day that a chat template is told, today if none.
    pub date: Option<Date>,
    /// What stands at the beginning.
    pub bos: Bos,
}

impl PromptFormat {
    /// A model that is asked with the prompt alone.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer,
            template: Template::default(),
            chat: false,
            system: None,
            date: None,
            bos: Bos::Auto,
        }
    }

    /// The whole text that the model reads.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`] when one is needed, [`Error::Template`] when it fails.
    pub fn render(&self, prompt: &Prompt) -> Result<PromptText> {
        match prompt {
            Prompt::Text(text) => {
                let text = self.template.render(text);
                if !self.chat {
                    return Ok(PromptText { text, is_chat: false });
                }
                self.render_chat(&[Message { role: "user".into(), content: text }])
            }
            Prompt::Chat(messages) => self.render_chat(messages),
        }
    }

    /// The tokens of a rendered prompt. With [`Bos::Auto`] a text that a chat template wrote gets nothing in
    /// front, as in transformers' `apply_chat_template`: zephyr's template, for one, wants no
    /// beginning-of-sequence token. One that a template wrote is not doubled.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode(&self, rendered: &PromptText) -> Result<Vec<u32>> {
        let bos = if rendered.is_chat && self.bos == Bos::Auto { Bos::Never } else { self.bos };
        self.tokenizer.encode(&rendered.text, bos)
    }

    /// Whether what the model reads may depend on the day.
    pub fn asks_for_date(&self) -> bool {
        self.tokenizer.chat_template().is_some_and(ChatTemplate::asks_for_date)
    }

    fn render_chat(&self, messages: &[Message]) -> Result<PromptText> {
        let template = self.tokenizer.require_chat_template()?;
        let is_system = |message: &Message| matches!(&*message.role, "system" | "developer");
        let text = match &self.system {
            Some(system) if !messages.iter().any(is_system) => {
                let system = Message { role: "system".into(), content: (**system).into() };
                template.render(&[&[system], messages].concat(), self.date)
            }
            _ => template.render(messages, self.date),
        };
        Ok(PromptText { text: text?, is_chat: true })
    }
}
