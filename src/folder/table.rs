//! What trimtab does with each field of a file, as data.

use serde_json::Value;

use super::JsonFile;
use crate::error::{Error, Result};

/// What trimtab does with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The code reads it.
    Obeyed,
    /// These values alone, as JSON; trimtab refuses any other, which would change a result. Null, which
    /// says nothing, passes.
    Only(&'static [&'static str]),
    /// It changes no result here; the reason.
    NoEffect(&'static str),
}

/// A field of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name. A name that begins with `*`, such as `*_token`, is every name that ends so.
    pub name: &'static str,
    /// What trimtab does with it.
    pub rule: Rule,
}

/// A field that the code reads.
pub const fn obeyed(name: &'static str) -> Field {
    Field { name, rule: Rule::Obeyed }
}

/// A field of which only these values, as JSON, are taken.
pub const fn only(name: &'static str, values: &'static [&'static str]) -> Field {
    Field { name, rule: Rule::Only(values) }
}

/// A field that changes nothing here, and why.
pub const fn no_effect(name: &'static str, reason: &'static str) -> Field {
    Field { name, rule: Rule::NoEffect(reason) }
}

impl Field {
    fn is_named(&self, name: &str) -> bool {
        match self.name.strip_prefix('*') {
            Some(ending) => name.ends_with(ending),
            None => self.name == name,
        }
    }
}

/// All fields of one file that trimtab knows, in several lists that families share.
#[derive(Clone, Copy, Debug)]
pub struct FieldTable {
    /// The file's name.
    pub file: &'static str,
    /// Earlier lists come first where two name the same field.
    pub lists: &'static [&'static [Field]],
}

impl FieldTable {
    /// All fields, in order.
    pub fn fields(&self) -> impl Iterator<Item = &'static Field> {
        self.lists.iter().copied().flatten()
    }

    /// What trimtab does with a field; none if the table does not know it.
    pub fn rule(&self, name: &str) -> Option<Rule> {
        self.fields().find(|field| field.is_named(name)).map(|field| field.rule)
    }

    /// Holds a file to the table. Returns a warning if it has fields that the table does not know.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that would change a result.
    pub fn check(&self, file: &JsonFile) -> Result<Option<String>> {
        let mut unknown = Vec::new();
        for (name, value) in file.entries().filter(|(_, value)| !value.is_null()) {
            match self.rule(name) {
                None => unknown.push(format!("`{name}`")),
                Some(Rule::Only(values)) => require(file, name, value, values)?,
                Some(Rule::Obeyed | Rule::NoEffect(_)) => {}
            }
        }
        Ok((!unknown.is_empty()).then(|| {
            let fields = if unknown.len() == 1 { "field" } else { "fields" };
            format!(
                "{}: trimtab does not know the {fields} {} and ignores {}; if the model needs {}, its \
                 answers are wrong",
                file.path().display(),
                unknown.join(", "),
                if unknown.len() == 1 { "it" } else { "them" },
                if unknown.len() == 1 { "it" } else { "one of them" },
            )
        }))
    }
}

fn require(file: &JsonFile, name: &str, value: &Value, values: &[&str]) -> Result<()> {
    let same = |text: &&str| {
        let wanted: Value = serde_json::from_str(text).unwrap_or(Value::Null);
        // 1 and 1.0 are the same.
        *value == wanted || value.is_number() && value.as_f64() == wanted.as_f64()
    };
    if values.iter().any(same) {
        return Ok(());
    }
    let taken = match values {
        [] => "only null".to_owned(),
        _ => format!("only {}", values.join(", ")),
    };
    Err::<(), Error>(file.error(name, format!("is {value}, which is not supported ({taken})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: FieldTable = FieldTable {
        file: "config.json",
        lists: &[
            &[obeyed("width"), only("factor", &["1.0", "\"none\""]), only("never", &[])],
            &[no_effect("seed", "training"), obeyed("*_token")],
        ],
    };

    fn check(text: &str) -> Result<Option<String>> {
        TABLE.check(&JsonFile::parse("config.json".into(), text.as_bytes()).unwrap())
    }

    #[test]
    fn a_field_in_no_list_is_a_warning() {
        assert_eq!(
            check(r#"{"width": 7, "seed": 3, "x_token": "<x>", "odd": null}"#).unwrap(),
            None
        );
        let warning = check(r#"{"odd": 1, "odder": [], "width": 2}"#).unwrap().unwrap();
        assert!(warning.contains("`odd`, `odder`") && !warning.contains("width"), "{warning}");
    }

    #[test]
    fn a_value_that_would_change_a_result_is_refused() {
        for good in
            [r#"{"factor": 1}"#, r#"{"factor": "none"}"#, r#"{"factor": null, "never": null}"#]
        {
            assert_eq!(check(good).unwrap(), None);
        }
        let refusal = check(r#"{"factor": 2}"#).unwrap_err().to_string();
        assert!(refusal.contains("`factor` is 2") && refusal.contains("only 1.0"), "{refusal}");
        assert!(check(r#"{"never": 0}"#).unwrap_err().to_string().contains("only null"));
    }
}
