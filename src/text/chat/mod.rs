//! A model's own chat template: Jinja, as transformers runs it.

mod escapes;
mod filters;
mod json;
mod limits;
mod methods;
mod printf;
mod python;
mod shape;
mod source;
mod tokens;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;

use minijinja::{Environment, ErrorKind, Value};
use serde::{Deserialize, Serialize};

use self::filters::environment;
use self::limits::{Limits, MAX_BYTES, MAX_STEPS, STACK};
use self::source::Source;
use super::date::Date;
use super::library::caught;
use crate::error::{Error, Result};

const SYSTEM: &str = "system";
const DEVELOPER: &str = "developer";
/// The template's name in minijinja: without an ending, so that nothing is escaped as HTML.
const NAME: &str = "chat_template";
/// Characters of a template's own words in a message.
const MAX_DETAIL: usize = 2000;
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
    /// [`Error::Template`] when the template is not valid Jinja, refuses the conversation, takes more time, memory
    /// or depth than any conversation needs, or leaves out what its last message says, or one of another role
    /// than `user` and `assistant`.
    pub fn render(&self, messages: &[Message], date: Option<Date>) -> Result<String> {
        let failed = |reason| Error::Template { what: self.origin.display().to_string(), reason };
        // Minijinja reads, compares and frees by recursion: on a stack that is known to be large enough.
        let thread = thread::Builder::new().name(NAME.into()).stack_size(STACK);
        let text = thread::scope(|scope| {
            let run = || caught(|| Rendering::new(self, date)?.whole(messages));
            let thread = thread.spawn_scoped(scope, run).map_err(|e| {
                format!("no thread can be started for the chat template: {e}; allow more of them")
            })?;
            let text = thread.join().ok().and_then(Result::ok);
            text.unwrap_or_else(|| {
                Err("the chat template does what minijinja does not expect".into())
            })
        });
        text.map_err(failed)
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
}

/// One conversation on its way through a template.
struct Rendering<'a> {
    template: &'a ChatTemplate,
    environment: Environment<'static>,
    /// Steps that are left to renderings after the first.
    left: u64,
}

impl<'a> Rendering<'a> {
    fn new(template: &'a ChatTemplate, date: Option<Date>) -> Result<Self, String> {
        let failed = |reason: String| format!("the chat template failed: {reason}");
        let source = template.source.as_ref().map_err(|reason| failed(reason.clone()))?;
        let mut environment = environment(date, Limits::new()).map_err(|e| failed(describe(&e)))?;
        environment
            .add_template_owned(NAME, source.text.clone())
            .map_err(|e| failed(describe(&e)))?;
        Ok(Self { template, environment, left: MAX_STEPS })
    }

    /// The text, if nothing that it should say is left out.
    fn whole(mut self, messages: &[Message]) -> Result<String, String> {
        let known = self.template.in_known_roles(messages);
        self.environment.set_fuel(Some(MAX_STEPS));
        let (written, _) = self.once(&known);
        match written {
            Ok(text) => match self.lost(&known, &text) {
                None => Ok(text),
                Some(at) => Err(left_out(at, &messages[at].role)),
            },
            Err(reason) => {
                let mut reason = format!("the chat template failed: {reason}");
                let (instructions, rest): (Vec<_>, Vec<_>) =
                    known.iter().zip(messages).partition(|(known, _)| known.role == SYSTEM);
                let rest: Vec<_> = rest.into_iter().map(|(known, _)| known.clone()).collect();
                if let Some((_, first)) = instructions.first()
                    && self.again(&rest).is_ok()
                {
                    reason += &format!(
                        ". Without messages of role {:?} it does not fail: put what they say into a \
                         user's message",
                        first.role
                    );
                }
                Err(reason)
            }
        }
    }

    /// A message that says something without which the template would have written the same `text`.
    /// Asked about the last message, and about roles that a template may not know; others may be left
    /// out on purpose, as by a template that writes only the last.
    fn lost(&mut self, messages: &[Message], text: &str) -> Option<usize> {
        let is_asked = |&at: &usize| {
            let message = &messages[at];
            let may_be_lost = !is_of_a_turn(&message.role) || at + 1 == messages.len();
            may_be_lost && !message.content.trim().is_empty()
        };
        let asked: Vec<usize> = (0..messages.len()).filter(is_asked).collect();
        // Each says something else; if that is in the text, so is what it says now.
        let other = |at: usize| format!("Message {at} says this.");
        let mut with_others = |places: &[usize]| {
            let mut messages = messages.to_vec();
            for &at in places {
                messages[at].content = other(at);
            }
            self.again(&messages)
        };
        let all =
            if asked.is_empty() { String::new() } else { with_others(&asked).unwrap_or_default() };
        let unseen = |&at: &usize| !all.contains(&other(at)) && messages[at].content != other(at);
        // A template may look at a message in other ways than to write it, or fail: it has looked.
        let is_lost = |&at: &usize| with_others(&[at]).is_ok_and(|other| other == text);
        asked.into_iter().filter(unseen).take(MAX_PROBES).find(is_lost)
    }

    /// Another conversation as text, out of the steps that are left.
    fn again(&mut self, messages: &[Message]) -> Result<String, String> {
        self.environment.set_fuel(Some(self.left));
        let (written, steps) = self.once(messages);
        self.left = self.left.saturating_sub(steps);
        written
    }

    /// The conversation as text, or why there is none, and the steps that it took: all of them if it failed.
    fn once(&self, messages: &[Message]) -> (Result<String, String>, u64) {
        let all = self.environment.fuel().unwrap_or_default();
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
        let tokens = &self.template.special_tokens;
        let tokens = tokens.iter().map(|(name, token)| (&**name, Value::from(&**token)));
        let context = Value::from_pairs(tokens.chain(fixed));
        let mut text = Bounded(Vec::new());
        let template = self.environment.get_template(NAME);
        let captured = template.and_then(|t| t.render_captured_to(context, &mut text));
        let steps = match captured {
            Ok(captured) => captured.state().fuel_levels().map_or(all, |(used, _)| used),
            Err(error) => return (Err(describe(&error)), all),
        };
        (Ok(String::from_utf8_lossy(&text.0).into_owned()), steps)
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
    let detail = match error.kind() {
        ErrorKind::OutOfFuel => format!("it takes more than {MAX_STEPS} steps"),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    let detail = match detail.char_indices().nth(MAX_DETAIL) {
        Some((at, _)) => format!("{} …", &detail[..at]),
        None => detail,
    };
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}
