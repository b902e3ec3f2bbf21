//! A model's own chat template: Jinja, as transformers runs it.

mod escapes;
mod filters;
mod json;
mod methods;
mod printf;
mod python;
mod source;
mod tokens;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use minijinja::Value;
use serde::{Deserialize, Serialize};

use self::filters::environment;
use self::source::Source;
use super::date::Date;
use crate::error::{Error, Result};

/// Steps after which a template is stopped: far more than any conversation takes.
const MAX_STEPS: u64 = 10_000_000;
/// Bytes after which it is stopped.
const MAX_BYTES: usize = 16 << 20;

const SYSTEM: &str = "system";
const DEVELOPER: &str = "developer";
/// Messages that are looked at one by one at most.
const MAX_PROBES: usize = 16;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// "system", "user" or "assistant", or what else a template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A tokenizer's special tokens by the names that its files give them, such as `bos_token`, and
/// `image_token` of `extra_special_tokens`. A template knows each by its name, and no other: as in
/// transformers 5, which passes no `additional_special_tokens`.
pub type SpecialTokens = Vec<(String, String)>;

/// A Jinja template that writes a conversation as its model was trained to read it.
///
/// The surroundings are those of transformers' `apply_chat_template`: blocks are trimmed, values
/// print and have methods as in Python, and there are `raise_exception`, `strftime_now`, a `tojson`
/// that does not escape HTML, and `{% generation %}`, which writes nothing. One difference: the date
/// is UTC (or a given day, which begins just now).
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: Result<Source, String>,
    origin: PathBuf,
    special_tokens: SpecialTokens,
}

impl ChatTemplate {
    /// A template's source and the file that it is from. It is compiled when it is rendered: a
    /// model may well be used without its template.
    pub fn new(source: &str, origin: &Path, special_tokens: SpecialTokens) -> Self {
        Self { source: Source::new(source), origin: origin.into(), special_tokens }
    }

    /// Whether the text depends on the day.
    pub fn asks_for_date(&self) -> bool {
        self.source.as_ref().is_ok_and(|source| source.text.contains("strftime_now"))
    }

    /// The conversation as text, up to where the model's answer begins. The template is told `date`, or
    /// the moment that it is.
    ///
    /// A message of role `developer` is one of `system` for a template that does not name that role.
    ///
    /// # Errors
    /// [`Error::Template`] when the template is not valid Jinja, refuses the conversation, or leaves out
    /// what its last message says, or one of another role than `user` and `assistant`.
    pub fn render(&self, messages: &[Message], date: Option<Date>) -> Result<String> {
        let failed = |reason| Error::Template { what: self.origin.display().to_string(), reason };
        let known = self.in_known_roles(messages);
        match self.written(&known, date) {
            Ok(text) => match self.lost(&known, &text, date) {
                None => Ok(text),
                Some(at) => Err(failed(left_out(at, &messages[at].role))),
            },
            Err(reason) => {
                let mut reason = format!("the chat template failed: {reason}");
                let (instructions, rest): (Vec<_>, Vec<_>) =
                    known.iter().zip(messages).partition(|(known, _)| known.role == SYSTEM);
                let rest: Vec<_> = rest.into_iter().map(|(known, _)| known.clone()).collect();
                if let Some((_, first)) = instructions.first()
                    && self.written(&rest, date).is_ok()
                {
                    reason += &format!(
                        ". Without messages of role {:?} it does not fail: put what they say into a \
                         user's message",
                        first.role
                    );
                }
                Err(failed(reason))
            }
        }
    }

    /// The messages with `developer`, which is OpenAI's newer name for it, as `system`, unless the
    /// template has a string that is exactly `developer`: with that it can only ask for the role.
    fn in_known_roles(&self, messages: &[Message]) -> Vec<Message> {
        let is_known = self.source.as_ref().is_ok_and(|source| source.names_developer);
        let mut messages = messages.to_vec();
        for message in messages.iter_mut().filter(|m| !is_known && m.role == DEVELOPER) {
            message.role = SYSTEM.into();
        }
        messages
    }

    /// A message that says something without which the template would have written the same `text`.
    /// Asked about the last message, and about roles that a template may not know; others may be left
    /// out on purpose, as by a template that writes only the last.
    fn lost(&self, messages: &[Message], text: &str, date: Option<Date>) -> Option<usize> {
        let is_asked = |&at: &usize| {
            let message = &messages[at];
            let may_be_lost = !is_of_a_turn(&message.role) || at + 1 == messages.len();
            may_be_lost && !message.content.trim().is_empty()
        };
        let asked: Vec<usize> = (0..messages.len()).filter(is_asked).collect();
        // Each says something else; if that is in the text, so is what it says now.
        let other = |at: usize| format!("Message {at} says this.");
        let with_others = |places: &[usize]| {
            let mut messages = messages.to_vec();
            for &at in places {
                messages[at].content = other(at);
            }
            self.written(&messages, date)
        };
        let all =
            if asked.is_empty() { String::new() } else { with_others(&asked).unwrap_or_default() };
        let unseen = |&at: &usize| !all.contains(&other(at)) && messages[at].content != other(at);
        // A template may look at a message in other ways than to write it, or fail: it has looked.
        let is_lost = |&at: &usize| with_others(&[at]).is_ok_and(|other| other == text);
        asked.into_iter().filter(unseen).take(MAX_PROBES).find(is_lost)
    }

    /// The conversation as text, or why there is none.
    fn written(&self, messages: &[Message], date: Option<Date>) -> Result<String, String> {
        let source = self.source.as_ref().map_err(String::clone)?;
        let environment = environment(date).map_err(|e| describe(&e))?;
        // A name without an ending, so that nothing is escaped as HTML.
        let template = environment
            .template_from_named_str("chat_template", &source.text)
            .map_err(|e| describe(&e))?;
        let messages: Value = messages
            .iter()
            .map(|m| Value::from_pairs([("role", &*m.role), ("content", &*m.content)]))
            .collect();
        // What transformers always passes is passed: undefined would not be `none`. A token that
        // the tokenizer lacks stays undefined, and prints as nothing.
        let fixed = [
            ("messages", messages),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(true)),
        ];
        let tokens =
            self.special_tokens.iter().map(|(name, token)| (&**name, Value::from(&**token)));
        let context = Value::from_pairs(tokens.chain(fixed));
        let mut text = Bounded(Vec::new());
        template.render_captured_to(context, &mut text).map_err(|e| describe(&e))?;
        Ok(String::from_utf8_lossy(&text.0).into_owned())
    }
}

/// A role that every template is for.
fn is_of_a_turn(role: &str) -> bool {
    ["user", "assistant"].contains(&role)
}

/// The reason to refuse a conversation of which a message would be lost.
fn left_out(at: usize, role: &str) -> String {
    let cure = if is_of_a_turn(role) {
        "it may want another form than text; write a template for text into chat_template.jinja"
    } else {
        "put that into a user's message, or leave the message out"
    };
    format!("the chat template leaves out what message {}, of role {role:?}, says: {cure}", at + 1)
}

/// A text that does not grow beyond all bounds.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_BYTES {
            return Err(io::Error::other(format!("it writes more than {MAX_BYTES} bytes")));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error's detail with the template's line.
fn describe(error: &minijinja::Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}
