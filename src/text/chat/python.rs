//! Values as Python writes and reads them: `str`, `repr`, `int`, `float`.

use std::fmt::{self, Write};
use std::mem;
use std::sync::{Arc, Mutex};

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Value};

use super::limits::{MAX_BYTES, MAX_DEPTH};

/// As wide as an indent may be.
const MAX_INDENT: usize = 1_000;

/// An error of a template's own making.
pub(super) fn failed(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// Refuses a text that is longer than any conversation.
pub(super) fn bounded(text: &str) -> Result<(), Error> {
    if text.len() > MAX_BYTES {
        return Err(failed(format!("it makes a text of more than {MAX_BYTES} bytes")));
    }
    Ok(())
}

/// What is in front of an indented line: a text, or a number of spaces. A negative number counts as none.
pub(super) fn indentation(indent: &Value) -> Result<String, Error> {
    let too_wide = || failed(format!("an indent is wider than {MAX_INDENT}"));
    if let Some(text) = indent.as_str() {
        return if text.len() > MAX_INDENT { Err(too_wide()) } else { Ok(text.to_owned()) };
    }
    let width = i64::try_from(indent.clone())
        .map_err(|_| failed("an indent must be a number or a string"))?;
    let width = usize::try_from(width).unwrap_or(0);
    if width > MAX_INDENT { Err(too_wide()) } else { Ok(" ".repeat(width)) }
}

/// The arguments of a Python function, by place or by name.
pub(super) fn arguments<const N: usize>(
    given: impl AsRef<[Value]>,
    names: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    let (by_place, by_name): (&[Value], Kwargs) = from_args(given.as_ref())?;
    if by_place.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut arguments = [const { None }; N];
    for (index, name) in names.into_iter().enumerate() {
        arguments[index] = match by_place.get(index) {
            Some(value) => Some(value.clone()),
            None => by_name.get(name)?,
        };
    }
    by_name.assert_all_used()?;
    Ok(arguments)
}

/// True only for a flag that is given.
pub(super) fn is_true(flag: Option<Value>) -> bool {
    flag.is_some_and(|flag| flag.is_true())
}

/// `str(value)`.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    if value.is_undefined() {
        return Ok(String::new());
    }
    repr(value)
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_repr(&mut out, value, 0)?;
    Ok(out)
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    // A namespace may contain itself.
    if depth > MAX_DEPTH {
        return Err(failed("a value is nested too deeply to be written"));
    }
    bounded(out)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone())?));
        }
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            if is_generator(value) {
                return Err(failed("a generator cannot be written; make it a list"));
            }
            let is_tuple = value.is_tuple();
            out.push(if is_tuple { '(' } else { '[' });
            let mut len = 0;
            for item in value.try_iter()? {
                out.push_str(if len > 0 { ", " } else { "" });
                write_repr(out, &item, depth + 1)?;
                len += 1;
            }
            out.push_str(match (is_tuple, len) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
        }
        _ => write!(out, "{value}").map_err(|_| failed("a value cannot be written"))?,
    }
    Ok(())
}

/// A generator of Python: it gives its items once, counts as true also when there are none, and has no
/// length.
#[derive(Debug)]
pub(super) struct Generator(Mutex<Vec<Value>>);

impl Generator {
    pub(super) fn value(items: Vec<Value>) -> Value {
        Value::from_object(Self(Mutex::new(items)))
    }

    /// The items that it would still give.
    pub(super) fn items(&self) -> Vec<Value> {
        self.0.lock().map(|items| items.clone()).unwrap_or_default()
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(
            self.0.lock().map(|mut items| mem::take(&mut *items)).unwrap_or_default(),
        )
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<generator object>")
    }
}

pub(super) fn is_generator(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some()
}

/// A float with the fewest digits that are read as the same number.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => {
            let plain = value.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
    }
}

fn quote(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => push_code(out, c),
        }
    }
    out.push(quote);
}

/// `\xe9`, `\u4f60` or `\U0001f3ac`.
pub(super) fn push_code(out: &mut String, c: char) {
    let code = u32::from(c);
    // Writing to a String does not fail.
    let _ = match code {
        0..=0xff => write!(out, "\\x{code:02x}"),
        0x100..=0xffff => write!(out, "\\u{code:04x}"),
        _ => write!(out, "\\U{code:08x}"),
    };
}

/// `str.isprintable`: Rust escapes the same categories, but for marks that combine at the beginning
/// of a text.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let behind_a_letter = String::from_iter(['a', c]);
    c == '\'' || c == '"' || behind_a_letter.escape_debug().nth(1) == Some(c)
}

/// `str.isspace` for one character.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.splitlines(True)`.
pub(super) fn lines(text: &str) -> Vec<&str> {
    let is_end = |c: char| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_end) {
        let end = at
            + if rest[at..].starts_with("\r\n") {
                2
            } else {
                rest[at..].chars().next().map_or(1, char::len_utf8)
            };
        lines.push(&rest[..end]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// A line without its end.
pub(super) fn without_end(line: &str) -> &str {
    let line =
        line.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).unwrap_or(line);
    line.strip_suffix([
        '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}',
    ])
    .unwrap_or(line)
}

/// `int(text, base)`; `None` where Python raises a ValueError, an error where the number is larger
/// than is supported.
pub(super) fn int(text: &str, base: u32) -> Result<Option<i128>, Error> {
    let text = text.trim_matches(is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)]
        .into_iter()
        .find_map(|(prefix, of)| lower.strip_prefix(prefix).map(|rest| (rest, of)));
    let (digits, base) = match (base, prefixed) {
        (0, Some((rest, of))) => (rest.strip_prefix('_').unwrap_or(rest), of),
        (base, Some((rest, of))) if base == of => (rest.strip_prefix('_').unwrap_or(rest), of),
        (0, None) if lower.starts_with('0') && !lower.trim_matches(['0', '_']).is_empty() => {
            return Ok(None);
        }
        (0, None) => (&lower[..], 10),
        (base, _) => (&lower[..], base),
    };
    if !(2..=36).contains(&base) {
        return Err(failed("int: the base must be 0 or from 2 to 36"));
    }
    let Some(digits) = without_underscores(digits) else { return Ok(None) };
    if digits.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
        return Err(failed(format!("int: digits beyond ASCII are not supported: {text:?}")));
    }
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return Ok(None);
    }
    match i128::from_str_radix(&digits, base) {
        Ok(value) => Ok(Some(if negative { -value } else { value })),
        Err(_) => Err(failed(format!("int: {text} is larger than is supported"))),
    }
}

/// `float(text)`; `None` where Python raises a ValueError.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    without_underscores(text.trim_matches(is_space))?.parse().ok()
}

/// Digits without the underscores between them; `None` if one is elsewhere.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let is_digit =
        |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_alphanumeric);
    let is_between = |at: usize| is_digit(at.checked_sub(1)) && is_digit(Some(at + 1));
    text.match_indices('_').all(|(at, _)| is_between(at)).then(|| text.replace('_', ""))
}
