//! Floor 0: everything the world can do wrong, one sentence each.
//!
//! Our own mistakes are `assert!` at the op boundary; what a user, a file or a machine can get
//! wrong is a variant here. A message says what is wrong, where (file, field, line or flag) and
//! what to do about it.

use std::path::PathBuf;

/// A result with trimtab's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in words for the person who has to mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb: "open", "read", "write to".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },

    /// A weights file is damaged, hostile or does not hold what its config promises.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The safetensors file, its index, or the model's folder.
        path: PathBuf,
        /// What is wrong and, where it helps, what to do.
        reason: String,
    },

    /// A field of `config.json` or `generation_config.json` is missing, absurd or unsupported.
    #[error("{}: field `{field}` {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field's name as it stands in the file.
        field: String,
        /// What is wrong with it, continuing the sentence: "is missing", "must be …".
        reason: String,
    },

    /// A model family that trimtab has no description of.
    #[error("{}: architecture {name:?} is not supported; supported are {supported}", path.display())]
    UnknownArchitecture {
        /// The `config.json`.
        path: PathBuf,
        /// The name found there.
        name: String,
        /// The names that would do.
        supported: String,
    },

    /// `tokenizer.json` or `tokenizer_config.json` cannot be used.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A prompt or chat template is unusable, or failed to render.
    #[error("{what}: {reason}")]
    Template {
        /// The flag or the file that holds the template.
        what: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A conversation, or `--chat`, needs a chat template, and a model has none.
    #[error(
        "{}: has no chat template (neither chat_template.jinja nor chat_template in \
         tokenizer_config.json); add one, or leave out --chat and write the format with \
         --base-template and --guide-template",
        folder.display()
    )]
    NoChatTemplate {
        /// The model's folder.
        folder: PathBuf,
    },

    /// One of the models cannot read a prompt.
    #[error("{error}")]
    Unreadable {
        /// "base" or "guide".
        model: &'static str,
        /// Why: an error of its template or its tokenizer.
        error: Box<Error>,
    },

    /// A command-line flag, or a request's field of the same name, has a value that cannot work.
    #[error("{flag} {reason}")]
    Flag {
        /// The flag, as written by the user: `--beam-width`.
        flag: String,
        /// What is wrong, continuing the sentence: "must be at least 1".
        reason: String,
    },

    /// A line of an input file is not what it should be.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line's number, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },

    /// A model has nothing to continue.
    #[error(
        "the prompt is empty for the {model} model (0 tokens); give it text or use --bos always"
    )]
    EmptyPrompt {
        /// "base" or "guide".
        model: &'static str,
    },

    /// The end of a response is to be scored, and a guide has no token for it.
    #[error(
        "a model of the guide has no end-of-sequence token, with which the end of a response would be \
         scored; name one as eos_token in its tokenizer_config.json"
    )]
    NoEndToken,

    /// Prompt and response do not fit into a model's context.
    #[error(
        "the {model} model's context holds {context} tokens, but {tokens} prompt tokens and up to \
         {new_tokens} new ones were asked for; shorten the prompt or lower --max-new-tokens"
    )]
    ContextTooShort {
        /// "base" or "guide".
        model: &'static str,
        /// The model's context, in tokens.
        context: usize,
        /// Tokens that are already there.
        tokens: usize,
        /// Tokens still to come, at most.
        new_tokens: usize,
    },

    /// Prompt and response do not fit into the cache that a model was given, whoever else runs.
    #[error(
        "the {model} model's cache holds {cache} tokens, but {tokens} prompt tokens and up to \
         {new_tokens} new ones were asked for; raise --kv-memory or --device-memory"
    )]
    CacheTooShort {
        /// "base" or "guide".
        model: &'static str,
        /// Tokens of one sequence that the cache can hold.
        cache: usize,
        /// Tokens that are already there.
        tokens: usize,
        /// Tokens still to come, at most.
        new_tokens: usize,
    },

    /// A text has a token that a model has no row for.
    #[error(
        "the {model} model has no token {id}{}: its vocabulary has {rows} entries; leave that token out of \
         the text, or use a model that has it",
        name.as_ref().map(|name| format!(" ({name:?})")).unwrap_or_default()
    )]
    NoSuchToken {
        /// "base", "tuned" or "untuned".
        model: &'static str,
        /// The token.
        id: u32,
        /// As the tokenizer that read the text writes it.
        name: Option<String>,
        /// Entries of the model's vocabulary: rows of its embedding table.
        rows: usize,
    },

    /// Two models that must share their vocabulary do not.
    #[error("{a} and {b} do not have the same vocabulary: {reason}")]
    VocabularyMismatch {
        /// One model's folder or role.
        a: String,
        /// The other's.
        b: String,
        /// How they differ and what to do.
        reason: String,
    },

    /// The cache has fewer free pages than an operation needs; nothing was changed.
    #[error(
        "{needed} cache pages are needed but {free} are free; raise --kv-memory or --device-memory"
    )]
    OutOfPages {
        /// Pages that the operation needs.
        needed: usize,
        /// Pages that are free now.
        free: usize,
    },

    /// A search could never run, however long it waits.
    #[error(
        "this search needs up to {needed} cache pages but the whole cache has {capacity}; raise \
         --kv-memory or --device-memory, or lower --beam-width, --successors or --max-new-tokens"
    )]
    TooLargeForCache {
        /// Pages that the search may hold at once.
        needed: usize,
        /// Pages that there are.
        capacity: usize,
    },

    /// A server that writes for a search has failed it.
    #[error("{url}: {reason}")]
    Remote {
        /// What was asked.
        url: String,
        /// What it answered, how often it was asked, and where it helps, what to do.
        reason: String,
    },

    /// The system has no memory for what a model needs.
    #[error("cannot have {bytes} bytes of memory: {source}; lower --kv-memory")]
    OutOfMemory {
        /// Bytes asked for at once.
        bytes: usize,
        /// The system's own words.
        source: std::io::Error,
    },

    /// More than trimtab may take of a device's memory.
    #[error(
        "{bytes} bytes for {what} do not fit: {taken} of the {limit} bytes of device memory that may \
         be taken are taken; raise --device-memory to at least {}, or use smaller models",
        taken.saturating_add(*bytes)
    )]
    DeviceBudget {
        /// Bytes that were asked for.
        bytes: usize,
        /// What they are for.
        what: &'static str,
        /// Bytes that are taken.
        taken: usize,
        /// Bytes that may be taken.
        limit: usize,
    },

    /// A device has less memory than is needed.
    #[error(
        "{place} has no {bytes} bytes of memory left{}; lower --device-memory or --kv-memory, or use \
         smaller models",
        free.map(|free| format!(" ({free} are free)")).unwrap_or_default()
    )]
    DeviceMemory {
        /// Where: "the GPU".
        place: &'static str,
        /// Bytes that were asked for.
        bytes: usize,
        /// Bytes that are free, where that is known.
        free: Option<usize>,
    },

    /// A device cannot be used on this machine.
    #[error("--device {device} cannot be used: {reason}")]
    DeviceUnavailable {
        /// As it stands after `--device`.
        device: &'static str,
        /// Why, and what to do about it.
        reason: String,
    },

    /// The GPU's driver refused something.
    #[error("CUDA failed at {what}: {reason}")]
    Cuda {
        /// What was asked of it: the kernel with its launch, or the copy with its size.
        what: String,
        /// The driver's own words.
        reason: String,
    },

    /// A model produced a number that is not one.
    #[error("{what} is not a finite number; the model's weights are damaged or overflow bf16")]
    NotFinite {
        /// Which number: "the gain of candidate 3".
        what: String,
    },
}

impl Error {
    /// An [`Error::Io`] for `map_err`.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// An [`Error::Unreadable`] for `map_err`.
    pub fn unreadable(model: &'static str) -> impl FnOnce(Error) -> Error {
        move |error| Error::Unreadable { model, error: Box::new(error) }
    }

    /// Whether one text alone is to blame: a candidate that a guide cannot score for such a reason loses, and its
    /// search goes on. Any other reason holds for other candidates too, or depends on how much memory there
    /// is, as no answer may.
    pub fn is_of_the_text(&self) -> bool {
        matches!(
            self,
            Error::ContextTooShort { .. } | Error::NoSuchToken { .. } | Error::Unreadable { .. }
        )
    }

    /// Whether the device will fail at whatever is asked of it from now on: after an error of CUDA's
    /// the process has to be started anew.
    pub fn is_final(&self) -> bool {
        matches!(self, Error::Cuda { .. })
    }

    /// An [`Error::Flag`].
    pub fn flag(flag: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Flag { flag: flag.into(), reason: reason.into() }
    }
}
