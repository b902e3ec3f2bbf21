//! `tojson`, which is Python's `json.dumps` in transformers' templates.

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::filters::Arguments;
use super::limits::MAX_DEPTH;
use super::python::{arguments, bounded, failed, float, indentation, is_generator, is_true};

/// The filter: `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    given: Arguments,
) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ensure_ascii, indent, separators, sort_keys] = arguments(given.into_values(), names)?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(indentation(&indent)?),
    };
    let (comma, colon) = match separators.filter(|given| !given.is_none()) {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(given) => {
            let given: Vec<Value> = given.try_iter()?.collect();
            match given.iter().map(Value::as_str).collect::<Vec<_>>()[..] {
                [Some(comma), Some(colon)] => (comma.to_owned(), colon.to_owned()),
                _ => return Err(failed("tojson: separators must be two strings")),
            }
        }
    };
    let (ensure_ascii, sort_keys) = (is_true(ensure_ascii), is_true(sort_keys));
    let out = String::new();
    let mut writer = Writer { state, ensure_ascii, sort_keys, indent, comma, colon, out };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    comma: String,
    colon: String,
    out: String,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        // A namespace may contain itself.
        if depth > MAX_DEPTH {
            return Err(failed("tojson: a value is nested too deeply"));
        }
        bounded(&self.out)?;
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                let text = scalar(value)?;
                self.out.push_str(&text);
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.items('{', '}', keys.len(), depth, |writer, index| {
                    let key = &keys[index];
                    match key.as_str() {
                        Some(key) => writer.string(key),
                        None => writer.string(&scalar(key)?),
                    }
                    writer.out.push_str(&writer.colon.clone());
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable if !is_generator(value) => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.items('[', ']', items.len(), depth, |writer, index| {
                    writer.value(&items[index], depth + 1)
                })?;
            }
            other => return Err(failed(format!("tojson: a value of type {other} is no JSON"))),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        len: usize,
        depth: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for index in 0..len {
            if index > 0 {
                self.out.push_str(&self.comma.clone());
            }
            self.new_line(depth + 1);
            item(self, index)?;
        }
        if len > 0 {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A value without parts that is no string.
fn scalar(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Bool => if value.is_true() { "true" } else { "false" }.into(),
        ValueKind::Number if value.is_integer() => value.to_string(),
        ValueKind::Number => match f64::try_from(value.clone())? {
            number if number.is_nan() => "NaN".into(),
            number if number.is_infinite() => {
                if number > 0.0 { "Infinity" } else { "-Infinity" }.into()
            }
            number => float(number),
        },
        other => return Err(failed(format!("tojson: a value of type {other} is no key"))),
    })
}
