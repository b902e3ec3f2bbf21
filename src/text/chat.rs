//! A model's own chat template: Jinja, as transformers runs it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};

use super::date::{Date, now, strftime};
use crate::error::{Error, Result};

/// Steps after which a template is stopped: far more than any conversation takes.
const MAX_STEPS: u64 = 10_000_000;
/// Bytes after which it is stopped.
const MAX_BYTES: usize = 16 << 20;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// "system", "user" or "assistant", or what else a template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A Jinja template that writes a conversation as its model was trained to read it.
///
/// The surroundings are those of transformers' `apply_chat_template`: blocks are trimmed, Python's
/// string methods work, and there are `raise_exception`, `strftime_now` and a `tojson` that does
/// not escape HTML. Two differences: the date is UTC (or a given day, which begins just now), and `{% generation %}` is not known.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    origin: PathBuf,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// A template's source and the file that it is from. It is compiled when it is rendered: a
    /// model may well be used without its template.
    pub fn new(
        source: &str,
        origin: &Path,
        bos_token: Option<&str>,
        eos_token: Option<&str>,
    ) -> Self {
        Self {
            source: source.into(),
            origin: origin.into(),
            bos_token: bos_token.map(str::to_owned),
            eos_token: eos_token.map(str::to_owned),
        }
    }

    /// Whether the text depends on the day.
    pub fn asks_for_date(&self) -> bool {
        self.source.contains("strftime_now")
    }

    /// The conversation as text, up to where the model's answer begins. The template is told `date`, or
    /// the moment that it is.
    ///
    /// # Errors
    /// [`Error::Template`] when the template is not valid Jinja or refuses the conversation.
    pub fn render(&self, messages: &[Message], date: Option<Date>) -> Result<String> {
        let failed = |e: minijinja::Error| Error::Template {
            what: self.origin.display().to_string(),
            reason: format!("the chat template failed: {}", describe(&e)),
        };
        let environment = environment(date).map_err(failed)?;
        // A name without an ending, so that nothing is escaped as HTML.
        let template =
            environment.template_from_named_str("chat_template", &self.source).map_err(failed)?;
        let messages: Value = messages
            .iter()
            .map(|m| Value::from_pairs([("role", &*m.role), ("content", &*m.content)]))
            .collect();
        // What transformers always passes is passed: undefined would not be `none`. A token that
        // the tokenizer lacks stays undefined, and prints as nothing.
        let undefined =
            |token: &Option<String>| token.clone().map_or(Value::UNDEFINED, Value::from);
        let context = context! {
            messages => messages,
            tools => Value::from(()),
            documents => Value::from(()),
            add_generation_prompt => true,
            bos_token => undefined(&self.bos_token),
            eos_token => undefined(&self.eos_token),
        };
        let mut text = Bounded(Vec::new());
        template.render_captured_to(context, &mut text).map_err(failed)?;
        Ok(String::from_utf8_lossy(&text.0).into_owned())
    }
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

fn environment(date: Option<Date>) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, _> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| {
        strftime(&format, date.map_or_else(now, Date::start))
            .map_err(|reason| minijinja::Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment.add_filter("tojson", tojson);
    Ok(environment)
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it: minijinja's escapes for HTML
/// are taken back.
fn tojson(
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<Value, minijinja::Error> {
    let escaped = minijinja::filters::tojson(value, indent, options)?;
    let mut rest = escaped.as_str().unwrap_or_default();
    let mut json = String::with_capacity(rest.len());
    while let Some(at) = rest.find('\\') {
        json.push_str(&rest[..at]);
        rest = &rest[at..];
        let plain = [("\\u003c", "<"), ("\\u003e", ">"), ("\\u0026", "&"), ("\\u0027", "'")];
        let (taken, written) = plain
            .into_iter()
            .find(|(escape, _)| rest.starts_with(escape))
            // Any other escape stays, with the character behind it: it may be a backslash.
            .map_or((2.min(rest.len()), None), |(escape, plain)| (escape.len(), Some(plain)));
        json.push_str(written.unwrap_or(&rest[..taken]));
        rest = &rest[taken..];
    }
    json.push_str(rest);
    Ok(Value::from_safe_string(json))
}
