//! What lies beside `tokenizer.json`: names of special tokens, and tokens that were added later.
//!
//! Which file counts follows transformers 5.24 (`PreTrainedTokenizerBase._from_pretrained` and
//! `TokenizersBackend.__init__`): where `tokenizer_config.json` has `added_tokens_decoder`, the older
//! `special_tokens_map.json` and `added_tokens.json` are not read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::AddedToken;

use super::fields::{
    ADDED_TOKEN_TABLE, ADDED_TOKENS, CONFIG, CONFIG_TABLE, SPECIAL_TOKENS, SPECIAL_TOKENS_TABLE,
};
use crate::error::{Error, Result};
use crate::folder::{JsonFile, Notes, read_file};

/// More bytes than any of these files has.
const MAX_FILE_BYTES: u64 = 64 << 20;
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Names that transformers knows, in its order. A model may have others, such as `image_token`.
const KNOWN_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token that a side file names, with flags where it has any.
#[derive(Clone, Debug, PartialEq)]
struct SideToken {
    content: String,
    flagged: Option<AddedToken>,
}

/// What lies beside `tokenizer.json`.
pub(super) struct SideFiles {
    /// `tokenizer_config.json`; without fields if there is none.
    pub config: JsonFile,
    /// Named special tokens in transformers' order, as chat templates know them.
    pub named: Vec<(String, String)>,
    /// Tokens that the files describe with an id, in the order of their ids.
    pub described: Vec<(u32, AddedToken)>,
    /// Special tokens of all kinds, to be added where the vocabulary does not have them as added tokens yet.
    pub special: Vec<AddedToken>,
    /// What its user should know.
    pub notes: Notes,
}

impl SideFiles {
    /// No files at all.
    pub fn none() -> Self {
        Self {
            config: JsonFile::empty(CONFIG.into()),
            named: Vec::new(),
            described: Vec::new(),
            special: Vec::new(),
            notes: Notes::default(),
        }
    }

    pub fn read(folder: &Path) -> Result<Self> {
        let mut notes = Notes::default();
        let config = match JsonFile::open(&folder.join(CONFIG), MAX_FILE_BYTES)? {
            Some(config) => {
                notes.warnings.extend(CONFIG_TABLE.check(&config)?);
                config
            }
            None => JsonFile::empty(folder.join(CONFIG)),
        };
        let mut names = Names::default();
        let mut described: BTreeMap<u32, AddedToken> = BTreeMap::new();
        names.read(&config)?;
        if let Some(decoder) = config.nested("added_tokens_decoder")? {
            for (id, token) in decoder.entries() {
                let number = id.parse().map_err(|_| {
                    config.error("added_tokens_decoder", format!("has {id:?} in place of an id"))
                })?;
                let token = flagged(&config, "added_tokens_decoder", token, None)?;
                described.insert(number, token);
            }
        } else {
            if let Some(map) = JsonFile::open(&folder.join(SPECIAL_TOKENS), MAX_FILE_BYTES)? {
                notes.warnings.extend(SPECIAL_TOKENS_TABLE.check(&map)?);
                names.read(&map)?;
            }
            if let Some(added) = JsonFile::open(&folder.join(ADDED_TOKENS), MAX_FILE_BYTES)? {
                for (token, id) in added.entries() {
                    let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
                    let number = number
                        .ok_or_else(|| added.error(token, format!("is {id} but must be an id")))?;
                    described.insert(number, AddedToken::from(token, names.has(token)));
                }
            }
        }
        let with_flags = |token: &SideToken| {
            let same = |described: &&AddedToken| described.content == token.content;
            let described = described.values().find(same);
            let plain = || AddedToken::from(token.content.clone(), true);
            described.or(token.flagged.as_ref()).cloned().unwrap_or_else(plain)
        };
        let special = names.all().map(with_flags).collect();
        let named = names.named.iter().map(|(name, token)| (name.clone(), token.content.clone()));
        let (named, described) = (named.collect(), described.into_iter().collect());
        Ok(Self { config, named, described, special, notes })
    }

    /// A named special token's text; none if it is the empty text.
    pub fn named(&self, name: &str) -> Option<&str> {
        let (_, text) = self.named.iter().find(|(known, _)| known == name)?;
        Some(text).filter(|text| !text.is_empty()).map(String::as_str)
    }

    /// The chat template's source and its file: the file of its own counts, then the field, of a
    /// list of named ones the one called "default".
    pub fn chat_template(&self, folder: &Path) -> Result<Option<(String, PathBuf)>> {
        let path = folder.join(CHAT_TEMPLATE);
        if let Some(source) = read_file(&path, MAX_FILE_BYTES)? {
            let source = String::from_utf8(source).map_err(|_| Error::Checkpoint {
                path: path.clone(),
                reason: "is not UTF-8".into(),
            })?;
            return Ok(Some((source, path)));
        }
        let source = match self.config.get("chat_template") {
            None => return Ok(None),
            Some(Value::Array(named)) => {
                let default =
                    named.iter().find(|one| one["name"] == "default").or(match &named[..] {
                        [only] => Some(only),
                        _ => None,
                    });
                default.map_or(&Value::Null, |one| &one["template"])
            }
            Some(other) => other,
        };
        match source.as_str() {
            Some(source) => Ok(Some((source.to_owned(), self.config.path().into()))),
            None => Err(self.config.error(
                "chat_template",
                "is neither a string nor a list of named templates with one called \"default\"",
            )),
        }
    }
}

/// Special tokens by name, and those without one.
#[derive(Default)]
struct Names {
    named: Vec<(String, SideToken)>,
    unnamed: Vec<SideToken>,
}

impl Names {
    /// Takes over what a file names; a later file counts before an earlier one.
    fn read(&mut self, file: &JsonFile) -> Result<()> {
        let own = file.entries().map(|(name, _)| name).filter(|name| {
            name.ends_with("_token") && !name.starts_with("add_") && !KNOWN_NAMES.contains(name)
        });
        let names: Vec<&str> = KNOWN_NAMES.into_iter().chain(own).collect();
        for name in names {
            match file.get(name) {
                None => {}
                // Not a token's text: it is a setting that ends in the same word.
                Some(Value::Bool(_) | Value::Number(_)) if !KNOWN_NAMES.contains(&name) => {}
                Some(value) => self.set(name, token(file, name, value)?),
            }
        }
        for field in ["model_specific_special_tokens", "extra_special_tokens"] {
            match file.get(field) {
                Some(Value::Object(own)) => {
                    for (name, value) in own {
                        self.set(name, token(file, field, value)?);
                    }
                }
                None => {}
                Some(Value::Array(_)) if field == "extra_special_tokens" => {}
                Some(_) => return Err(file.error(field, "must be an object of named tokens")),
            }
        }
        let list =
            |field: &str| file.get(field).and_then(Value::as_array).filter(|l| !l.is_empty());
        let field = if list("extra_special_tokens").is_some() {
            "extra_special_tokens"
        } else {
            "additional_special_tokens"
        };
        if let Some(list) = list(field) {
            let tokens = list.iter().map(|value| token(file, field, value));
            self.unnamed = tokens.collect::<Result<_>>()?;
        } else if file.get(field).is_some_and(|value| !value.is_array()) {
            return Err(file.error(field, "must be a list of tokens"));
        }
        Ok(())
    }

    fn set(&mut self, name: &str, token: SideToken) {
        match self.named.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = token,
            None => self.named.push((name.to_owned(), token)),
        }
    }

    /// All of them that have a text.
    fn all(&self) -> impl Iterator<Item = &SideToken> {
        let named = self.named.iter().map(|(_, token)| token);
        named.chain(&self.unnamed).filter(|token| !token.content.is_empty())
    }

    fn has(&self, text: &str) -> bool {
        self.all().any(|token| token.content == text)
    }
}

/// A special token: a string, or an object with flags.
fn token(file: &JsonFile, field: &str, value: &Value) -> Result<SideToken> {
    match value {
        Value::String(content) => Ok(SideToken { content: content.clone(), flagged: None }),
        Value::Object(_) => {
            let flagged = flagged(file, field, value, Some(true))?;
            Ok(SideToken { content: flagged.content.clone(), flagged: Some(flagged) })
        }
        _ => Err(file.error(field, format!("is {value} but must be a token"))),
    }
}

/// A token with its flags; `special` where they do not say.
fn flagged(
    file: &JsonFile,
    field: &str,
    value: &Value,
    special: Option<bool>,
) -> Result<AddedToken> {
    let wrong = || file.error(field, format!("has {value}, which is not a token with flags"));
    let object = value.as_object().ok_or_else(wrong)?;
    if let Some(name) = object.keys().find(|name| ADDED_TOKEN_TABLE.rule(name).is_none()) {
        return Err(
            file.error(field, format!("has a token with `{name}`, which trimtab does not know"))
        );
    }
    let flag = |name: &str| match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(wrong()),
    };
    let content = object.get("content").and_then(Value::as_str).ok_or_else(wrong)?;
    let special = flag("special")?.or(special).unwrap_or(false);
    let plain = AddedToken::from(content, special);
    Ok(AddedToken {
        single_word: flag("single_word")?.unwrap_or(plain.single_word),
        lstrip: flag("lstrip")?.unwrap_or(plain.lstrip),
        rstrip: flag("rstrip")?.unwrap_or(plain.rstrip),
        normalized: flag("normalized")?.unwrap_or(plain.normalized),
        ..plain
    })
}
