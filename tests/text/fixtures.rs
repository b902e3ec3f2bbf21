//! Small tokenizers, made here, and what the tests share.

use std::fs;
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;
use trimtab::error::Error;
use trimtab::text::{Bos, Message, PromptFormat, Template, Tokenizer};

/// GPT-2's alphabet, as its own encoder.py makes it: the character of every byte.
pub fn alphabet() -> Vec<char> {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    (0..256)
        .map(|byte| {
            let code = if printable(byte) { byte } else { next };
            next += u32::from(!printable(byte));
            char::from_u32(code).unwrap()
        })
        .collect()
}

pub fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "special": special, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false})
}

pub fn tokenizer_json(model: Value, added: Vec<Value>, decoder: Value) -> Value {
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": model})
}

/// `front` before a text and `back` behind it, as (token, id).
pub fn post_processor(front: &[(&str, usize)], back: &[(&str, usize)]) -> Value {
    let mark = |(token, _): &(&str, usize)| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let mut single: Vec<_> = front.iter().map(mark).collect();
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    single.extend(back.iter().map(mark));
    let tokens: serde_json::Map<_, _> = front
        .iter()
        .chain(back)
        .map(|(token, id)| ((*token).into(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens})
}

/// Byte-level BPE: ids 0 to 255 are the bytes, 256 "he", 257 "hel", 258 " w", 259 the end of text
/// (special), 260 an added token with spaces and a letter beyond ASCII.
pub fn byte_level() -> Value {
    let mut vocab: serde_json::Map<_, _> =
        alphabet().iter().enumerate().map(|(id, c)| (c.to_string(), id.into())).collect();
    for (id, token) in (256..).zip(["he", "hel", "Ġw"]) {
        vocab.insert(token.into(), id.into());
    }
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null,
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
        "byte_fallback": false, "vocab": vocab, "merges": ["h e", "he l", "Ġ w"]});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    let marks = vec![added(259, "<|end|>", true), added(260, "<é  é>", false)];
    let mut json = tokenizer_json(model, marks, byte_level.clone());
    json["pre_tokenizer"] = byte_level.clone();
    json["post_processor"] = byte_level;
    json
}

/// Byte-level BPE whose post-processor puts a mark in front, as Llama 3's does.
pub fn llama3() -> Value {
    let mut json = byte_level();
    let template = post_processor(&[("<|end|>", 259)], &[]);
    json["post_processor"] =
        json!({"type": "Sequence", "processors": [json["post_processor"], template]});
    json
}

/// SentencePiece-style BPE with byte fallback, as Llama 2's: 0 to 2 are marks, then the bytes from
/// id 3, then 259 "▁", 260 "h", 261 "i", 262 "▁h", 263 "▁hi". A text gets <s> in front and </s>
/// behind it.
pub fn sentence_piece() -> Value {
    let mut vocab = serde_json::Map::new();
    let marks = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let pieces = ["▁", "h", "i", "▁h", "▁hi"].map(str::to_owned);
    for (id, token) in marks.chain(bytes).chain(pieces).enumerate() {
        vocab.insert(token, id.into());
    }
    let model = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>",
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
        "byte_fallback": true, "vocab": vocab, "merges": [["▁", "h"], ["▁h", "i"]]});
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let marks = vec![added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)];
    let mut json = tokenizer_json(model, marks, decoder);
    json["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    json["post_processor"] = post_processor(&[("<s>", 1)], &[("</s>", 2)]);
    json
}

pub fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

pub fn open_with(tokenizer: &Value, files: &[(&str, &str)]) -> Result<Tokenizer, Error> {
    let folder = folder(files);
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Tokenizer::open(folder.path())
}

pub fn open(tokenizer: &Value) -> Tokenizer {
    open_with(tokenizer, &[]).unwrap()
}

pub fn text_of(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|&id| tokenizer.bytes(id)).copied().collect()
}

#[track_caller]
pub fn has_words(error: &Error, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

pub fn format(tokenizer: Tokenizer, chat: bool) -> PromptFormat {
    let template = Template::parse("--base-template", "Say: {prompt}").unwrap();
    PromptFormat {
        tokenizer: Arc::new(tokenizer),
        template,
        chat,
        system: None,
        date: None,
        bos: Bos::Auto,
    }
}

pub fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}
