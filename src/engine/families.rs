//! The model families that trimtab knows: one row each.

use serde_json::Value;

use super::config::Config;
use super::model::Names;
use super::{gpt2, llama};
use crate::error::{Error, Result};
use crate::folder::{Field, FieldTable, JsonFile, Notes};

/// A model family: how its `config.json` is read and where its tensors are.
pub struct Family {
    /// The name in `architectures` that its checkpoints have, and the one that trimtab shows.
    pub architecture: &'static str,
    /// Other names in `architectures` for the same layers.
    pub aliases: &'static [&'static str],
    /// The name in `model_type`.
    pub model_type: &'static str,
    /// Reads the fields of `config.json` that make the model what it is.
    pub config: fn(&JsonFile, &mut Notes) -> Result<Config>,
    /// What trimtab does with each field of `config.json`.
    pub fields: FieldTable,
    /// What the tensors are called.
    pub names: &'static Names,
}

/// All of them.
pub static FAMILIES: [Family; 3] = [
    Family {
        architecture: gpt2::NAME,
        aliases: &["GPT2Model"],
        model_type: "gpt2",
        config: gpt2::config,
        fields: table(&[gpt2::FIELDS, super::fields::COMMON]),
        names: &gpt2::NAMES,
    },
    Family {
        architecture: llama::LLAMA,
        // The second was written by the first conversions, before transformers knew the family.
        aliases: &["LlamaModel", "LLaMAForCausalLM"],
        model_type: "llama",
        config: llama::config,
        fields: table(&[llama::LLAMA_FIELDS, llama::FIELDS, super::fields::COMMON]),
        names: &llama::NAMES,
    },
    Family {
        architecture: llama::MISTRAL,
        aliases: &["MistralModel"],
        model_type: "mistral",
        config: llama::mistral_config,
        fields: table(&[llama::MISTRAL_FIELDS, llama::FIELDS, super::fields::COMMON]),
        names: &llama::NAMES,
    },
];

const fn table(lists: &'static [&'static [Field]]) -> FieldTable {
    FieldTable { file: super::fields::CONFIG, lists }
}

impl Family {
    /// The family of a `config.json`.
    ///
    /// # Errors
    /// [`Error::UnknownArchitecture`], and [`Error::Config`] if `architectures` and `model_type` name two
    /// families or none.
    pub fn of(config: &JsonFile) -> Result<&'static Family> {
        let architecture = match config.get("architectures") {
            None => None,
            Some(Value::Array(list)) => match &list[..] {
                [] => None,
                [Value::String(name), ..] => Some(name.as_str()),
                _ => return Err(config.error("architectures", "must be a list of names")),
            },
            Some(_) => return Err(config.error("architectures", "must be a list of names")),
        };
        let model_type = config.text("model_type")?.filter(|name| !name.is_empty());
        let by_type = FAMILIES.iter().find(|family| model_type == Some(family.model_type));
        let Some(architecture) = architecture else {
            return by_type.ok_or_else(|| match model_type {
                Some(name) => unknown(config, name),
                None => config.error("architectures", "is missing"),
            });
        };
        let family = FAMILIES.iter().find(|family| {
            family.architecture == architecture || family.aliases.contains(&architecture)
        });
        let family = family.ok_or_else(|| unknown(config, architecture))?;
        match model_type {
            Some(other) if other != family.model_type => {
                let reason = format!(
                    "is {other:?}, but `architectures` is {architecture:?}, of another family; \
                     mend the wrong one"
                );
                Err(config.error("model_type", reason))
            }
            _ => Ok(family),
        }
    }

    /// The family that [`Config::architecture`] names.
    pub fn named(architecture: &str) -> &'static Family {
        let family = FAMILIES.iter().find(|family| family.architecture == architecture);
        family.expect("configs are read by a family")
    }
}

fn unknown(config: &JsonFile, name: &str) -> Error {
    let supported: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
    Error::UnknownArchitecture {
        path: config.path().into(),
        name: name.to_owned(),
        supported: supported.join(", "),
    }
}
