//! A target for each parser of trimtab: whatever bytes it gets, it takes or refuses them, and does not panic,
//! wait or take memory without an end. `tests/fuzz.rs` runs them over `fuzz/corpus` in the test command,
//! `tools/fuzz.sh` for longer under cargo-fuzz.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::from_utf8;

use tempfile::TempDir;
use trimtab::cli::fuzzing;
use trimtab::engine::Config;
use trimtab::proposer::Sampling;
use trimtab::search::{ChunkLen, Method, Settings, Shape};
use trimtab::server::{Defaults, Limits, Origin, Seed, TopK, bodies_taken};
use trimtab::text::{Bos, ChatTemplate, Date, Message, Prompt, StopStrings, Template, Tokenizer};
use trimtab::weights::Checkpoint;

/// A target's name, which its corpus has too, and the parser.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 12] = [
    ("safetensors", safetensors),
    ("shard_index", shard_index),
    ("config", config),
    ("generation_config", generation_config),
    ("tokenizer", tokenizer),
    ("tokenizer_config", tokenizer_config),
    ("special_tokens_map", special_tokens_map),
    ("chat_template", chat_template),
    ("template", template),
    ("prompts", prompts),
    ("body", body),
    ("flags", flags),
];

/// A model's folder for one thread, in which one file's bytes are what a target gets.
struct Folder(TempDir);

impl Folder {
    /// An empty one, or with files of a golden model.
    fn with(model: &str, files: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for file in files {
            fs::copy(golden(model).join(file), folder.path().join(file)).expect("a golden file");
        }
        Self(folder)
    }

    fn write(&self, file: &str, bytes: &[u8]) -> &Path {
        fs::write(self.0.path().join(file), bytes).expect("a file");
        self.0.path()
    }
}

/// A golden model's folder; this file is of two packages, in which it lies at different depths.
fn golden(model: &str) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let inside = package.join("tests/golden");
    let golden = if inside.is_dir() { inside } else { package.join("../tests/golden") };
    golden.join(model)
}

/// What a run does with a checkpoint.
fn read(folder: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(folder) {
        checkpoint.names().for_each(|name| assert!(checkpoint.contains(name)));
        assert!(checkpoint.dtypes().iter().map(|(_, count)| count).sum::<u64>() > 0);
        let _ = (checkpoint.parameters(), checkpoint.bytes());
        checkpoint.fingerprint().expect("checked when it was opened");
    }
}

/// `model.safetensors`
pub fn safetensors(bytes: &[u8]) {
    thread_local!(static FOLDER: Folder = Folder::with("gpt2", &[]));
    FOLDER.with(|folder| read(folder.write("model.safetensors", bytes)));
}

/// `model.safetensors.index.json`
pub fn shard_index(bytes: &[u8]) {
    const SHARDS: [&str; 3] = [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ];
    thread_local!(static FOLDER: Folder = Folder::with("llama3", &SHARDS));
    FOLDER.with(|folder| read(folder.write("model.safetensors.index.json", bytes)));
}

/// `config.json`
pub fn config(bytes: &[u8]) {
    if let Ok(config) = from_utf8(bytes).map(|text| Config::parse("config.json", text)) {
        let _ = config.map(|config| (config.weight_bytes(), config.kv_bytes_per_token()));
    }
}

/// `generation_config.json`
pub fn generation_config(bytes: &[u8]) {
    thread_local!(static FOLDER: Folder = Folder::with("llama3", &["config.json"]));
    FOLDER.with(|folder| {
        let _ = Config::open(folder.write("generation_config.json", bytes));
    });
}

/// Reads and writes a text, where there is a tokenizer.
fn tokenize(folder: &Path) {
    let Ok(tokenizer) = Tokenizer::open(folder) else { return };
    let ids = tokenizer.encode("The film, 你好 <s>\n", Bos::Auto).unwrap_or_default();
    for id in ids {
        assert!((id as usize) < tokenizer.len() && tokenizer.bytes(id).len() < 1 << 20);
    }
    let turn = Message { role: "user".into(), content: "Hello".into() };
    if let Some(template) = tokenizer.chat_template() {
        let _ = template.render(&[turn], None);
    }
}

/// `tokenizer.json`
pub fn tokenizer(bytes: &[u8]) {
    thread_local!(static FOLDER: Folder = Folder::with("gpt2", &["tokenizer_config.json"]));
    FOLDER.with(|folder| tokenize(folder.write("tokenizer.json", bytes)));
}

/// `tokenizer_config.json`
pub fn tokenizer_config(bytes: &[u8]) {
    thread_local!(static FOLDER: Folder = Folder::with("llama3", &["tokenizer.json"]));
    FOLDER.with(|folder| tokenize(folder.write("tokenizer_config.json", bytes)));
}

/// `special_tokens_map.json`, and the same bytes as `added_tokens.json`
pub fn special_tokens_map(bytes: &[u8]) {
    thread_local!(static FOLDER: Folder = Folder::with("gpt2", &["tokenizer.json"]));
    FOLDER.with(|folder| {
        folder.write("special_tokens_map.json", bytes);
        tokenize(folder.0.path());
        tokenize(folder.write("added_tokens.json", bytes));
        fs::remove_file(folder.0.path().join("added_tokens.json")).expect("it was written");
    });
}

/// A chat template
pub fn chat_template(bytes: &[u8]) {
    let Ok(source) = from_utf8(bytes) else { return };
    let turn = |role: &str| Message { role: role.into(), content: "Hello".into() };
    let tokens = vec![("bos_token".to_owned(), "<s>".to_owned())];
    let template = ChatTemplate::new(source, Path::new("chat_template.jinja"), tokens);
    let _ = template.render(&[turn("system"), turn("user"), turn("assistant")], None);
}

/// `--base-template`
pub fn template(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    if let Ok(template) = Template::parse("--base-template", text) {
        assert!(template.render("A prompt").contains("A prompt"));
    }
}

/// A file of prompts, and a prompt as it stands in a line or in a request
pub fn prompts(bytes: &[u8]) {
    thread_local!(static FOLDER: Folder = Folder::with("gpt2", &[]));
    FOLDER.with(|folder| {
        let _ = fuzzing::prompts(&folder.write("prompts.jsonl", bytes).join("prompts.jsonl"));
    });
    let _ = serde_json::from_slice::<Prompt>(bytes);
}

/// A request's body
pub fn body(bytes: &[u8]) {
    let shape = Shape { beam_width: None, successors: None, chunk_len: None };
    let settings = Settings {
        beam_width: 4,
        successors: 4,
        chunk_len: Some(10),
        max_new_tokens: 50,
        sampling: Sampling { temperature: 0.7, top_k: 50, top_p: 1.0 },
        seed: 1,
        stop: StopStrings::default(),
        compat: false,
    };
    let defaults = Defaults {
        method: Method::Cbs,
        shape,
        settings,
        seed: Some(1),
        guided: true,
        tells_tokens: true,
    };
    let limits = Limits { body: 100_000, prompt: 50_000, candidates: 64, tokens: 500, answers: 8 };
    bodies_taken(bytes, &defaults, &limits);
}

/// The values of flags
pub fn flags(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    fuzzing::flags(text);
    let _ = text.parse::<Date>().map(|date| assert!(date.to_string().parse::<Date>().is_ok()));
    let _ = (text.parse::<Seed>().is_ok(), text.parse::<TopK>().is_ok());
    let _ = (text.parse::<ChunkLen>().is_ok(), text.parse::<Origin>().is_ok());
}
