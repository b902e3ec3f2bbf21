//! A JSON object from a file, with errors that name file and field.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::file::read_file;
use crate::error::{Error, Result};

/// A JSON object from a file of a model's folder, or an object inside one.
#[derive(Clone, Debug)]
pub struct JsonFile {
    path: PathBuf,
    object: Map<String, Value>,
}

impl JsonFile {
    /// Reads a file; `None` if the folder has no such entry.
    ///
    /// # Errors
    /// As [`read_file`] and [`JsonFile::parse`].
    pub fn open(path: &Path, max_bytes: u64) -> Result<Option<Self>> {
        read_file(path, max_bytes)?.map(|bytes| Self::parse(path.into(), &bytes)).transpose()
    }

    /// An object without fields, for a file that is missing.
    pub fn empty(path: PathBuf) -> Self {
        Self { path, object: Map::new() }
    }

    /// Reads a file's bytes; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if they are no JSON object.
    pub fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Ok(Self { path, object }),
            Ok(_) => Err(Error::Checkpoint { path, reason: "is not a JSON object".into() }),
            Err(e) => Err(Error::Checkpoint { path, reason: not_json(bytes, &e) }),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All fields, in the file's order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.object.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The object inside field `name`, if it is there and not null.
    pub fn nested(&self, name: &str) -> Result<Option<JsonFile>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => {
                Ok(Some(Self { path: self.path.clone(), object: object.clone() }))
            }
            Some(_) => Err(self.error(name, "must be an object")),
        }
    }

    /// A field's value, if it is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether the file has a field, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// An error that names this file and field `name`.
    pub fn error(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::Config { path: self.path.clone(), field: name.into(), reason: reason.into() }
    }

    /// The one of `names`, which all mean the same, that the file has; the first if it has none.
    ///
    /// # Errors
    /// [`Error::Config`] if it has two of them and they differ.
    pub fn one_of(&self, names: &[&'static str]) -> Result<&'static str> {
        let mut there = names.iter().filter(|name| self.get(name).is_some());
        let Some(&first) = there.next() else { return Ok(names[0]) };
        match there.find(|other| self.get(other) != self.get(first)) {
            None => Ok(first),
            Some(other) => {
                let (value, other_value) = (&self.object[first], &self.object[*other]);
                let reason = format!(
                    "is {value}, but `{other}`, its other name, is {other_value}; remove one"
                );
                Err(self.error(first, reason))
            }
        }
    }

    /// A whole number from 1 to `max`.
    pub fn size(&self, name: &str, max: usize) -> Result<usize> {
        self.size_or(name, max, None)
    }

    /// A whole number from 1 to `max`, or `default` where the field is missing.
    pub fn size_or(&self, name: &str, max: usize, default: Option<usize>) -> Result<usize> {
        match (self.get(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.error(name, "is missing")),
            (Some(value), _) => value
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| (1..=max).contains(n))
                .ok_or_else(|| {
                    self.error(name, format!("is {value} but must be a number from 1 to {max}"))
                }),
        }
    }

    /// A finite positive number, or `default` where the field is missing.
    pub fn positive(&self, name: &str, default: Option<f64>) -> Result<f64> {
        match (self.get(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.error(name, "is missing")),
            (Some(value), _) => value
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| self.error(name, format!("is {value} but must be positive"))),
        }
    }

    /// True or false, or `default` where the field is missing.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(value) => Err(self.error(name, format!("is {value} but must be true or false"))),
        }
    }

    /// A string, if the field is there.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.error(name, format!("is {value} but must be a string"))),
        }
    }

    /// One token id or a list of them.
    pub fn tokens(&self, name: &str) -> Result<Vec<u32>> {
        let token = |value: &Value| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                self.error(name, format!("is {value} but must be a token id or a list of them"))
            })
        };
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(token).collect(),
            Some(value) => Ok(vec![token(value)?]),
        }
    }
}

/// Why bytes are not JSON. Python writes NaN and infinities, which JSON does not have.
fn not_json(bytes: &[u8], error: &serde_json::Error) -> String {
    let line = bytes.split(|&byte| byte == b'\n').nth(error.line().saturating_sub(1));
    // The column is that of the character at which reading stopped: the first, or one behind a minus.
    let at = line.map(|line| &line[error.column().saturating_sub(2).min(line.len())..]);
    let number = ["NaN", "-Infinity", "Infinity"].into_iter().find(|number| {
        at.is_some_and(|at| {
            (0..3).any(|skip| at.get(skip..).is_some_and(|at| at.starts_with(number.as_bytes())))
        })
    });
    match number {
        Some(number) => format!(
            "is not JSON: {number} in line {} is a number that only Python writes; replace it by a number \
             or null",
            error.line()
        ),
        None => format!("is not JSON: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<JsonFile> {
        JsonFile::parse("config.json".into(), text.as_bytes())
    }

    #[test]
    fn numbers_that_only_python_writes_are_named() {
        for number in ["NaN", "Infinity", "-Infinity"] {
            for text in [
                format!("{{\"a\": 1,\n  \"rope_theta\": {number}\n}}"),
                format!("{{\"a\":{number}}}"),
                format!("{{\"list\": [1, {number}, 2]}}"),
            ] {
                let error = parse(&text).unwrap_err().to_string();
                assert!(error.contains(&format!(": {number} in line ")), "{error}");
            }
        }
        assert!(!parse("{\"a\": nul}").unwrap_err().to_string().contains("Python"));
    }

    #[test]
    fn names_that_mean_the_same_may_not_differ() {
        let names = ["n_embd", "hidden_size"];
        assert_eq!(parse("{}").unwrap().one_of(&names).unwrap(), "n_embd");
        assert_eq!(parse(r#"{"hidden_size": 8}"#).unwrap().one_of(&names).unwrap(), "hidden_size");
        assert!(parse(r#"{"hidden_size": 8, "n_embd": 8}"#).unwrap().one_of(&names).is_ok());
        let error = parse(r#"{"hidden_size": 8, "n_embd": 9}"#).unwrap().one_of(&names);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("n_embd") && error.contains("hidden_size"), "{error}");
    }
}
