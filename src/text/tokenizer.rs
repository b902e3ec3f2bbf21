//! A model's tokenizer, as its folder describes it.

mod vocabulary;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::bytes::{ByteTable, Spelling};
use super::chat::ChatTemplate;
use super::fields::TOKENIZER;
use super::growth::normalized;
use super::library::{Library, guarded};
use super::side_files::SideFiles;
use crate::error::{Error, Result};
use crate::folder::{Notes, exists, read_file};

/// More ids than any vocabulary has; a larger id would ask for absurd tables.
const MAX_LEN: usize = 1 << 22;
/// More tokens than any tokenizer puts in front of a text.
const MAX_FRONT: usize = 64;
/// More bytes than any tokenizer's file has.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// What stands at the beginning of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bos {
    /// What the tokenizer itself puts there, unless the text begins with it already.
    #[default]
    Auto,
    /// The beginning-of-sequence token, unless the text begins with it already.
    Always,
    /// The text alone.
    Never,
}

/// A tokenizer: text to ids, ids to bytes.
pub struct Tokenizer {
    folder: PathBuf,
    inner: tokenizers::Tokenizer,
    /// By id, as the vocabulary writes them; empty where there is none.
    names: ByteTable,
    /// By id, what each adds to running text.
    bytes: ByteTable,
    /// By id.
    special: Vec<bool>,
    /// What the tokenizer itself puts in front of a text.
    front: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// `clean_up_tokenization_spaces`; true where the field is missing, as in transformers 4.41, which the
    /// paper's code runs on.
    clean_up: bool,
    chat_template: Option<ChatTemplate>,
    notes: Notes,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they are, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `added_tokens.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read, [`Error::Tokenizer`], [`Error::Config`] and
    /// [`Error::Checkpoint`] when one is not what it should be or describes a kind of tokenizer whose tokens
    /// have no bytes of their own.
    pub fn open(folder: &Path) -> Result<Tokenizer> {
        let path = folder.join(TOKENIZER);
        let Some(json) = read_file(&path, MAX_FILE_BYTES)? else {
            let convert =
                "in Python: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)";
            let reason = if exists(&folder.join("tokenizer.model"))? {
                format!("is missing, and tokenizer.model is not read; convert it {convert}")
            } else {
                format!("is missing; save the model's fast tokenizer in the same folder, {convert}")
            };
            return Err(Error::Tokenizer { path, reason });
        };
        let side = SideFiles::read(folder)?;
        let template = side.chat_template(folder)?;
        Self::build(folder, &json, side, template)
    }

    /// A tokenizer for models that have none: token n is the word `t`n, words stand between
    /// spaces. For measuring speed.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when there are more than 4,194,304 tokens.
    pub fn numbered(len: usize) -> Result<Tokenizer> {
        let vocab: BTreeMap<String, usize> = (0..len).map(|id| (format!("t{id}"), id)).collect();
        let json = json!({
            "version": "1.0",
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": true,
                "trim_offsets": true,
                "use_regex": true,
            },
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
        });
        Self::build(Path::new("t0 t1 …"), json.to_string().as_bytes(), SideFiles::none(), None)
    }

    fn build(
        folder: &Path,
        json: &[u8],
        side: SideFiles,
        template: Option<(String, PathBuf)>,
    ) -> Result<Tokenizer> {
        let unusable = |reason: String| Error::Tokenizer { path: folder.join(TOKENIZER), reason };
        let Library { inner, notes } = Library::open(folder, json, &side)?;
        let chat_template = template
            .map(|(source, origin)| ChatTemplate::new(&source, &origin, side.named.clone()));
        let spelling = Spelling::of(inner.get_decoder()).map_err(|name| {
            unusable(format!(
                "its decoder ({name}) is not supported; byte-level BPE (ByteLevel) and \
                 SentencePiece (Replace, ByteFallback, Metaspace) are"
            ))
        })?;
        let vocabulary: BTreeMap<u32, String> =
            inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        let len = vocabulary.last_key_value().map_or(0, |(&id, _)| id as usize + 1);
        if len == 0 || len > MAX_LEN {
            return Err(unusable(format!(
                "has {len} token ids; from 1 to {MAX_LEN} are supported"
            )));
        }
        let added = inner.get_added_tokens_decoder();
        // A token that a side file calls special is a mark, whatever tokenizer.json calls it.
        let called_special: HashSet<&str> =
            side.special.iter().map(|token| token.content.as_str()).collect();
        let (mut names, mut bytes) = (ByteTable::default(), ByteTable::default());
        let mut special = vec![false; len];
        for id in 0..len as u32 {
            let added = added.get(&id);
            // Two names for one id are possible; the library's own choice counts.
            let name = vocabulary.get(&id).and_then(|_| inner.id_to_token(id)).unwrap_or_default();
            let is_special = added.is_some_and(|added| added.special)
                || !name.is_empty() && called_special.contains(name.as_str());
            names.push(name.as_bytes());
            bytes.push(&if is_special { Vec::new() } else { spelling.bytes(&name, added) });
            special[id as usize] = is_special;
        }
        let front =
            guarded(|| front(&inner)).map_err(|e| unusable(format!("cannot encode: {e}")))?;
        if front.len() > MAX_FRONT {
            return Err(unusable(format!(
                "puts {} tokens in front of a text; up to {MAX_FRONT} are supported",
                front.len()
            )));
        }
        let id_of = |name| side.named(name).and_then(|token| inner.token_to_id(token));
        let bos = id_of("bos_token").or(front.first().copied());
        let eos = id_of("eos_token");
        let clean_up = side.config.flag("clean_up_tokenization_spaces", true)?;
        let mut notes = notes;
        notes.remarks.extend(front_remark(&side, &front, bos)?);
        notes.extend(side.notes);
        let folder = folder.into();
        Ok(Self {
            folder,
            inner,
            names,
            bytes,
            special,
            front,
            bos,
            eos,
            clean_up,
            chat_template,
            notes,
        })
    }

    /// What a user of the folder should know of it.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// One more than the highest id.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> usize {
        self.special.len()
    }

    /// The folder it was read from, as it was given.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A text's ids. Special tokens that are written in it are recognised; an end-of-sequence token
    /// that the tokenizer would append is not: a prompt goes on.
    ///
    /// # Errors
    /// [`Error::Flag`] for [`Bos::Always`] where there is no such token; [`Error::Tokenizer`] when
    /// the library fails.
    pub fn encode(&self, text: &str, bos: Bos) -> Result<Vec<u32>> {
        let front = match (bos, &self.bos) {
            (Bos::Auto, _) => &self.front[..],
            (Bos::Always, Some(bos)) => std::slice::from_ref(bos),
            (Bos::Always, None) => {
                return Err(Error::flag(
                    "--bos",
                    format!(
                        "always cannot be: the tokenizer in {} has no beginning-of-sequence token",
                        self.folder.display()
                    ),
                ));
            }
            (Bos::Never, _) => &[],
        };
        let encoding = guarded(|| self.inner.encode_fast(text, false))
            .map_err(|e| self.failed(&format!("cannot encode: {e}")))?;
        let ids = encoding.get_ids();
        let front = if ids.starts_with(front) { &[] } else { front };
        Ok([front, ids].concat())
    }

    /// Tokens that a text of `bytes` becomes at most, those in front of it included.
    pub fn most_tokens(&self, bytes: usize) -> usize {
        let is_token = |text: &str| self.inner.token_to_id(text).is_some();
        let bytes = match self.inner.get_normalizer() {
            None => bytes,
            Some(normalizer) => normalized(normalizer, bytes, &is_token),
        };
        // Metaspace and ByteLevel may put a space in front, of up to 3 bytes.
        bytes.saturating_add(self.front.len() + 3)
    }

    /// Bytes that one token adds to a text at most, once broken characters, each a U+FFFD, are
    /// counted too.
    pub fn longest_token(&self) -> usize {
        let length = |id| match std::str::from_utf8(self.bytes(id)) {
            Ok(text) => text.len(),
            Err(_) => self.bytes(id).len() * char::REPLACEMENT_CHARACTER.len_utf8(),
        };
        (0..self.len() as u32).map(length).max().unwrap_or(0)
    }

    /// The text that transformers 4 makes of tokens, for `--compat reference`. It is not always their bytes: the
    /// library's decoder may take away a space in front and replaces broken characters in its own way, and where
    /// `clean_up_tokenization_spaces` says so, spaces before punctuation go.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the library fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let text = guarded(|| self.inner.decode(ids, skip_special))
            .map_err(|e| self.failed(&format!("cannot decode: {e}")))?;
        Ok(if self.clean_up { cleaned_up(&text) } else { text })
    }

    fn failed(&self, reason: &str) -> Error {
        Error::Tokenizer { path: self.folder.join(TOKENIZER), reason: reason.into() }
    }

    /// The bytes that a token adds to running text: prompt and response are the concatenation of
    /// their tokens' bytes. Empty for a special token and for an id that is not in the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize)
    }

    /// The token as the vocabulary writes it.
    pub fn name(&self, id: u32) -> Option<&str> {
        let name = self.names.get(id as usize);
        std::str::from_utf8(name).ok().filter(|name| !name.is_empty())
    }

    /// Whether a token is a mark and not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The beginning-of-sequence token: the one that the side files name, or else the one that the
    /// tokenizer itself puts in front.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// What is in front of a text that no chat template wrote, with [`Bos::Auto`].
    pub fn front(&self) -> &[u32] {
        &self.front
    }

    /// The end-of-sequence token that the side files name. A model's generation_config.json may
    /// name more.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The id of a token, as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The model's own chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The same where it is needed.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`]
    pub fn require_chat_template(&self) -> Result<&ChatTemplate> {
        let missing = || Error::NoChatTemplate { folder: self.folder.clone() };
        self.chat_template().ok_or_else(missing)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({}, {} ids)", self.folder.display(), self.len())
    }
}

/// What a tokenizer puts in front of a text: what comes, with special tokens asked for, before the
/// tokens of some text. Asked with a text, since of an empty one front and back look alike.
fn front(inner: &tokenizers::Tokenizer) -> tokenizers::Result<Vec<u32>> {
    for probe in ["a", "0", " "] {
        let plain = inner.encode_fast(probe, false)?;
        let full = inner.encode_fast(probe, true)?;
        let (plain, full) = (plain.get_ids(), full.get_ids());
        if plain.is_empty() {
            continue;
        }
        if let Some(at) = full.windows(plain.len()).position(|window| window == plain) {
            return Ok(full[..at].to_vec());
        }
    }
    Ok(Vec::new())
}

/// `clean_up_tokenization` of transformers 4.
fn cleaned_up(text: &str) -> String {
    let replaced = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    replaced.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Where transformers 4 and 5 differ in what is in front of a text, or how this tokenizer splits what follows
/// a special token.
fn front_remark(side: &SideFiles, front: &[u32], bos: Option<u32>) -> Result<Option<String>> {
    let begins = bos.is_some_and(|bos| front.contains(&bos));
    let asked = side.config.get("add_bos_token").map(|_| side.config.flag("add_bos_token", begins));
    Ok(match asked.transpose()? {
        Some(asked) if asked != begins => Some(format!(
            "add_bos_token in tokenizer_config.json is {asked}, but tokenizer.json {}; trimtab does as \
             tokenizer.json and transformers 5, and transformers 4 may do otherwise (--bos decides)",
            if begins { "adds one" } else { "adds none" },
        )),
        _ => None,
    })
}
