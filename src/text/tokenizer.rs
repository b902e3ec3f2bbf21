//! A model's tokenizer, as its folder describes it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::bytes::{ByteTable, Spelling};
use super::chat::ChatTemplate;
use super::growth::normalized;
use crate::error::{Error, Result};

/// More ids than any vocabulary has; a larger id would ask for absurd tables.
const MAX_LEN: usize = 1 << 22;
/// More bytes than any tokenizer's file has.
const MAX_FILE_BYTES: u64 = 1 << 30;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

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
    chat_template: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they are, `tokenizer_config.json`,
    /// `special_tokens_map.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read, [`Error::Tokenizer`] when one is not what it should
    /// be or describes a kind of tokenizer whose tokens have no bytes of their own.
    pub fn open(folder: &Path) -> Result<Tokenizer> {
        let path = folder.join(TOKENIZER);
        let json = read(&path)?.ok_or_else(|| Error::Tokenizer {
            path,
            reason: "is missing; save the model's fast tokenizer in the same folder, in Python: \
                 AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
                .into(),
        })?;
        let side = SideFiles::read(folder)?;
        let template = side.chat_template(folder)?;
        Self::build(folder, &json, &side, template)
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
        Self::build(Path::new("t0 t1 …"), json.to_string().as_bytes(), &SideFiles::default(), None)
    }

    fn build(
        folder: &Path,
        json: &[u8],
        side: &SideFiles,
        template: Option<(String, PathBuf)>,
    ) -> Result<Tokenizer> {
        let unusable = |reason: String| Error::Tokenizer { path: folder.join(TOKENIZER), reason };
        // Syntax first, for a message with line and column.
        serde_json::from_slice::<IgnoredAny>(json)
            .map_err(|e| unusable(format!("is not JSON: {e}")))?;
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(json))
            .map_err(|e| unusable(format!("is not a valid tokenizer: {e}")))?;
        // Settings of the training that saved the file; a prompt is never cut or filled up.
        inner.with_truncation(None).map_err(|e| unusable(e.to_string()))?;
        inner.with_padding(None);

        let mut named = |field| -> Result<Option<(String, u32)>> {
            let Some((token, file)) = side.special_token(field) else { return Ok(None) };
            let id = inner.token_to_id(&token).ok_or_else(|| Error::Tokenizer {
                path: folder.join(file),
                reason: format!("{field} {token:?} is not in the vocabulary of {TOKENIZER}"),
            })?;
            // Special even where only the side file says so; the id exists, so none is made.
            inner
                .add_special_tokens([AddedToken::from(token.clone(), true)])
                .map_err(|e| unusable(e.to_string()))?;
            Ok(Some((token, id)))
        };
        let (bos, eos) = (named("bos_token")?, named("eos_token")?);
        let text_of =
            |token: &Option<(String, u32)>| token.as_ref().map(|(text, _)| text.to_owned());
        let chat_template = template.map(|(source, origin)| {
            ChatTemplate::new(&source, &origin, text_of(&bos).as_deref(), text_of(&eos).as_deref())
        });

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
            return Err(unusable(format!("its ids reach up to {len}, from 1 to {MAX_LEN} may be")));
        }
        let added = inner.get_added_tokens_decoder();
        let (mut names, mut bytes) = (ByteTable::default(), ByteTable::default());
        let mut special = vec![false; len];
        for id in 0..len as u32 {
            let added = added.get(&id);
            // Two names for one id are possible; the library's own choice counts.
            let name = vocabulary.get(&id).and_then(|_| inner.id_to_token(id)).unwrap_or_default();
            names.push(name.as_bytes());
            bytes.push(&spelling.bytes(&name, added));
            special[id as usize] = added.is_some_and(|added| added.special);
        }
        let front =
            guarded(|| front(&inner)).map_err(|e| unusable(format!("cannot encode: {e}")))?;
        let bos = bos.map(|(_, id)| id).or(front.first().copied());
        let eos = eos.map(|(_, id)| id);
        let folder = folder.into();
        Ok(Self { folder, inner, names, bytes, special, front, bos, eos, chat_template })
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

    /// The text that the library's own decoder makes of tokens, which is not always their bytes:
    /// it may take away a space in front and replaces broken characters in its own way.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the library fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.inner.decode(ids, skip_special))
            .map_err(|e| self.failed(&format!("cannot decode: {e}")))
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

    /// The end-of-sequence token that the side files name. A model's generation_config.json may
    /// name more.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The id of a token, as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether ids mean the same in both: every id has the same token and the same bytes, and
    /// tokens are merged alike. The error says where they first differ.
    pub fn same_vocabulary(&self, other: &Tokenizer) -> std::result::Result<(), String> {
        let (len, other_len) = (self.len(), other.len());
        let sizes = || {
            if len == other_len {
                format!("both have {len} ids")
            } else {
                format!("one has {len} ids, the other {other_len}")
            }
        };
        let shown =
            |name: Option<&str>| name.map_or("absent".to_owned(), |name| format!("{name:?}"));
        for id in 0..len.max(other_len) as u32 {
            let (name, other_name) = (self.name(id), other.name(id));
            if name != other_name {
                return Err(format!(
                    "id {id} is {} in one and {} in the other; {}",
                    shown(name),
                    shown(other_name),
                    sizes()
                ));
            }
            // A mark in one may be plain text in the other; the id is still the same token.
            let both_text = !self.is_special(id) && !other.is_special(id);
            if both_text && self.bytes(id) != other.bytes(id) {
                return Err(format!(
                    "id {id}, {}, stands for other bytes in one than in the other",
                    shown(name)
                ));
            }
        }
        let (rules, other_rules) = (self.rules(), other.rules());
        if rules.kind != other_rules.kind {
            return Err(format!("one is {}, the other {}", rules.kind, other_rules.kind));
        }
        for (what, list, other_list) in [
            ("merge", &rules.merges, &other_rules.merges),
            ("scored piece", &rules.pieces, &other_rules.pieces),
        ] {
            let differs = (0..list.len().max(other_list.len()))
                .find(|&index| list.get(index) != other_list.get(index));
            if let Some(index) = differs {
                let shown = |value: Option<&Value>| value.map_or("absent".into(), Value::to_string);
                return Err(format!(
                    "{what} {index} is {} in one and {} in the other ({} and {} of them)",
                    shown(list.get(index)),
                    shown(other_list.get(index)),
                    list.len(),
                    other_list.len()
                ));
            }
        }
        Ok(())
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

    /// The model's rules. The library shows them only as JSON, in one form whatever the file's.
    fn rules(&self) -> Rules {
        let mut model = serde_json::to_value(self.inner.get_model()).unwrap_or_default();
        let kind = model["type"].as_str().unwrap_or("unknown").to_owned();
        let mut list = |key: &str| match model.get_mut(key).map(Value::take) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        // Only a unigram model's vocabulary is a list: of pieces with their scores.
        Rules { kind, merges: list("merges"), pieces: list("vocab") }
    }
}

struct Rules {
    kind: String,
    merges: Vec<Value>,
    pieces: Vec<Value>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({}, {} ids)", self.folder.display(), self.len())
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside the tokenizers library, whose panics become errors: a panic hook
/// should keep silent about them.
pub fn panics_are_caught() -> bool {
    GUARDED.get()
}

/// Runs a piece of the library, which panics on some files that it does not expect.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(false);
    match result {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizers library cannot read its parts".into()),
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

/// What lies beside `tokenizer.json`.
#[derive(Default)]
struct SideFiles {
    config: Value,
    special_tokens: Value,
}

impl SideFiles {
    fn read(folder: &Path) -> Result<Self> {
        Ok(Self {
            config: read_object(&folder.join(CONFIG))?,
            special_tokens: read_object(&folder.join(SPECIAL_TOKENS))?,
        })
    }

    /// A special token's text, a string or `{"content": …}`, and the file that names it.
    fn special_token(&self, field: &str) -> Option<(String, &'static str)> {
        [(&self.config, CONFIG), (&self.special_tokens, SPECIAL_TOKENS)].into_iter().find_map(
            |(json, file)| {
                let token = &json[field];
                let text = token.as_str().or(token["content"].as_str())?;
                Some((text.to_owned(), file))
            },
        )
    }

    /// The chat template's source and its file: the file of its own counts, then the field, of a
    /// list of named ones the one called "default".
    fn chat_template(&self, folder: &Path) -> Result<Option<(String, PathBuf)>> {
        let path = folder.join(CHAT_TEMPLATE);
        if let Some(source) = read(&path)? {
            let source = String::from_utf8(source).map_err(|_| Error::Tokenizer {
                path: path.clone(),
                reason: "is not UTF-8".into(),
            })?;
            return Ok(Some((source, path)));
        }
        let field = &self.config["chat_template"];
        let source = match field {
            Value::Null => return Ok(None),
            Value::Array(named) => {
                let default =
                    named.iter().find(|one| one["name"] == "default").or(match &named[..] {
                        [only] => Some(only),
                        _ => None,
                    });
                default.map_or(&Value::Null, |one| &one["template"])
            }
            other => other,
        };
        let path = folder.join(CONFIG);
        match source.as_str() {
            Some(source) => Ok(Some((source.to_owned(), path))),
            None => Err(Error::Tokenizer {
                path,
                reason: "chat_template is neither a string nor a list of named templates with one \
                         called \"default\""
                    .into(),
            }),
        }
    }
}

/// A file's bytes; `None` if it is not there.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let metadata = match fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io("open", path))?,
    };
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        let reason = if metadata.is_file() { "is far too large" } else { "is not a file" };
        return Err(Error::Tokenizer { path: path.into(), reason: reason.into() });
    }
    fs::read(path).map(Some).map_err(Error::io("read", path))
}

/// A JSON object; an empty one if the file is not there.
fn read_object(path: &Path) -> Result<Value> {
    let Some(bytes) = read(path)? else { return Ok(Value::Object(Default::default())) };
    let unusable = |reason: String| Error::Tokenizer { path: path.into(), reason };
    match serde_json::from_slice(&bytes) {
        Ok(object @ Value::Object(_)) => Ok(object),
        Ok(_) => Err(unusable("is not a JSON object".into())),
        Err(e) => Err(unusable(format!("is not JSON: {e}"))),
    }
}
