//! The tokenizers library, opened with all that a folder says of its tokenizer.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use super::bounds::{check_added, check_parts};
use super::fields::{CONFIG, MODEL_TABLE, TOKENIZER, TOKENIZER_TABLE};
use super::side_files::SideFiles;
use crate::error::{Error, Result};
use crate::folder::{FieldTable, Notes};

/// A tokenizer as the library has it.
pub(super) struct Library {
    pub inner: tokenizers::Tokenizer,
    /// What its user should know.
    pub notes: Notes,
}

/// A token of tokenizer.json's `added_tokens`, as far as it is looked at here.
#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

impl Library {
    /// Opens a `tokenizer.json` and adds what its side files name.
    pub fn open(folder: &Path, json: &[u8], side: &SideFiles) -> Result<Self> {
        let path = folder.join(TOKENIZER);
        let unusable = |reason: String| Error::Tokenizer { path: path.clone(), reason };
        let mut notes = Notes::default();
        // Syntax first, for a message with line and column.
        let fields: HashMap<&str, &RawValue> = serde_json::from_slice(json)
            .map_err(|e| unusable(format!("is not a JSON object: {e}")))?;
        // The library cannot pass over a field that it does not know.
        let known = |table: &FieldTable, names: &mut dyn Iterator<Item = &str>| match names
            .filter(|name| table.rule(name).is_none())
            .min()
        {
            None => Ok(()),
            Some(name) => Err(unusable(format!(
                "has the field `{name}`, which this version of trimtab does not know"
            ))),
        };
        known(&TOKENIZER_TABLE, &mut fields.keys().copied())?;
        let model: HashMap<String, IgnoredAny> = fields
            .get("model")
            .and_then(|model| serde_json::from_str(model.get()).ok())
            .unwrap_or_default();
        known(&MODEL_TABLE, &mut model.keys().map(String::as_str))?;

        let listed: Vec<Added> = fields
            .get("added_tokens")
            .map(|list| serde_json::from_str(list.get()))
            .transpose()
            .map_err(|e| unusable(format!("has added_tokens that are none: {e}")))?
            .unwrap_or_default();
        check_parts(&fields).map_err(unusable)?;
        let described = side.described.iter().map(|(_, token)| &*token.content);
        let special = side.special.iter().map(|token| &*token.content);
        let contents = listed.iter().map(|token| token.content.as_str());
        check_added(contents.chain(described).chain(special)).map_err(unusable)?;

        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(json))
            .map_err(|e| unusable(format!("is not a valid tokenizer: {e}")))?;
        // Settings of the training that saved the file; a prompt is never cut or filled up.
        inner.with_truncation(None).map_err(|e| unusable(e.to_string()))?;
        inner.with_padding(None);
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && let Some(dropout) = bpe.dropout
        {
            let mut model = bpe.clone();
            model.dropout = None;
            inner.with_model(ModelWrapper::BPE(model));
            notes.remark(format!("BPE dropout {dropout}, which is for training, is off"));
        }
        prefix_space(&mut inner, side)?;
        notes.remarks.extend(rebuilt(&inner, side)?);
        inner.set_encode_special_tokens(side.config.flag("split_special_tokens", false)?);

        add(&mut inner, side).map_err(|e| unusable(format!("cannot add tokens: {e}")))?;
        let listed = listed.iter().map(|token| (token.id, token.content.as_str(), TOKENIZER));
        let described = side.described.iter().map(|(id, token)| (*id, &*token.content, CONFIG));
        for (id, token, file) in listed.chain(described) {
            if let Some(other) = inner.token_to_id(token).filter(|&other| other != id) {
                notes.warn(format!(
                    "{}: token {token:?} has id {other}, as transformers counts, not {id}",
                    folder.join(file).display()
                ));
            }
        }
        Ok(Self { inner, notes })
    }
}

/// Adds tokens as transformers does: those that the side files describe with flags of their own, in the order
/// of their ids, then special tokens that the vocabulary does not have as added tokens yet. A token that
/// tokenizer.json has keeps its flags there, unless `added_tokens_decoder` says otherwise.
fn add(inner: &mut tokenizers::Tokenizer, side: &SideFiles) -> tokenizers::Result<()> {
    let own = inner.get_added_tokens_decoder();
    let has = |text: &str| own.values().any(|token| token.content == text);
    let mut tokens: Vec<tokenizers::AddedToken> = Vec::new();
    for (_, token) in &side.described {
        if !own.values().any(|known| known == token) {
            let special = side.special.iter().any(|special| special.content == token.content);
            tokens.push(tokenizers::AddedToken {
                special: token.special || special,
                ..token.clone()
            });
        }
    }
    for token in &side.special {
        let described = side.described.iter().any(|(_, known)| known.content == token.content);
        if !has(&token.content) && !described && !tokens.contains(token) {
            tokens.push(token.clone());
        }
    }
    if tokens.is_empty() {
        return Ok(());
    }
    inner.add_tokens(tokens).map(drop)
}

/// Holds `add_prefix_space` to what tokenizer.json does. GPT-2's class obeys the field, and takes a missing one
/// for false; what other classes do depends on the version of transformers.
fn prefix_space(inner: &mut tokenizers::Tokenizer, side: &SideFiles) -> Result<()> {
    const NAME: &str = "add_prefix_space";
    let class = side.config.text("tokenizer_class")?.unwrap_or_default();
    let asked = side.config.get(NAME).map(|_| side.config.flag(NAME, false)).transpose()?;
    if class.trim_end_matches("Fast") == "GPT2Tokenizer"
        && let Some(PreTokenizerWrapper::ByteLevel(byte_level)) = inner.get_pre_tokenizer()
    {
        let byte_level = byte_level.add_prefix_space(asked.unwrap_or(false));
        inner.with_pre_tokenizer(Some(byte_level));
        return Ok(());
    }
    let by_pre_tokenizer = inner.get_pre_tokenizer().and_then(|part| match part {
        PreTokenizerWrapper::ByteLevel(byte_level) => Some(byte_level.add_prefix_space),
        PreTokenizerWrapper::Metaspace(m) => Some(m.prepend_scheme != PrependScheme::Never),
        _ => None,
    });
    let prepends = by_pre_tokenizer.or_else(|| inner.get_normalizer().map(prepends));
    match (asked, prepends) {
        (Some(asked), Some(prepends)) if asked != prepends => {
            let reason = format!(
                "is {asked}, but {TOKENIZER} {} a space in front of a text; change the wrong one",
                if prepends { "puts" } else { "does not put" }
            );
            Err(side.config.error(NAME, reason))
        }
        _ => Ok(()),
    }
}

/// Where transformers 5 makes another tokenizer of the vocabulary than `tokenizer.json` describes: it builds two
/// classes from the vocabulary alone, each in one way for all checkpoints.
fn rebuilt(inner: &tokenizers::Tokenizer, side: &SideFiles) -> Result<Option<String>> {
    let class = side.config.text("tokenizer_class")?.unwrap_or_default();
    let legacy = side.config.flag("legacy", false)?;
    let differs = match class.trim_end_matches("Fast") {
        "GPT2Tokenizer" => {
            !matches!(inner.get_pre_tokenizer(), Some(PreTokenizerWrapper::ByteLevel(_)))
                || inner.get_normalizer().is_some()
        }
        // A space in front goes to every piece between special tokens here, and to the first one there.
        "LlamaTokenizer" => inner.get_normalizer().is_some_and(prepends) && !legacy,
        _ => false,
    };
    Ok(differs.then(|| {
        format!(
            "trimtab reads text as {TOKENIZER} says; transformers 5 builds {class} from the vocabulary alone \
             and may split some texts otherwise"
        )
    }))
}

/// Whether a normalizer puts something in front of a text.
fn prepends(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::Prepend(_) => true,
        NormalizerWrapper::Sequence(parts) => parts.as_ref().iter().any(prepends),
        _ => false,
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a library whose panics become errors: a panic hook should keep silent about
/// them.
pub fn panics_are_caught() -> bool {
    GUARDED.get()
}

/// Runs a piece of the library, which panics on some files that it does not expect.
pub(super) fn guarded<T>(
    run: impl FnOnce() -> tokenizers::Result<T>,
) -> std::result::Result<T, String> {
    match caught(run) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(words) if words.contains("retry-limit") => {
            Err("a regular expression of it takes too many steps on this text".into())
        }
        Err(_) => Err("the tokenizers library cannot read its parts".into()),
    }
}

/// Runs a piece of a library; what it says if it panics.
pub(super) fn caught<T>(run: impl FnOnce() -> T) -> std::result::Result<T, String> {
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(false);
    result
        .map_err(|words| words.downcast::<String>().map_or_else(|_| String::new(), |words| *words))
}
