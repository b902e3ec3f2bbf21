//! Golden models with more rows in their embedding tables, or more tokens in their tokenizers.
#![allow(dead_code)] // each test file uses a part

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Changes a JSON file of a folder.
pub fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

/// A golden model, its head tied and in f32, whose table has `more` rows than before, of numbers between −`size`
/// and `size`.
pub fn resized(name: &str, more: usize, size: f32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let weights = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let is_table = |name: &str| name.ends_with("wte.weight") || name.ends_with("tokens.weight");
    let table = tensors.names().into_iter().find(|name| is_table(name)).unwrap();
    let view = tensors.tensor(table).unwrap();
    let [rows, width] = view.shape()[..] else { panic!("a table has rows") };
    let mut data = view.data().to_vec();
    for i in 0..more * width {
        let number = ((i * 7919 + 13) % 2003) as f32 / 1001.5 - 1.0;
        data.extend((number * size).to_le_bytes());
    }
    let shape = vec![rows + more, width];
    let larger = TensorView::new(view.dtype(), shape, &data).unwrap();
    let all = tensors.tensors().into_iter().filter(|(name, _)| name != table);
    let all: Vec<_> = all.chain([(table.to_owned(), larger)]).collect();
    let bytes = safetensors::serialize(all, None).unwrap();
    std::fs::write(weights, bytes).unwrap();
    edit(folder.path(), "config.json", |config| config["vocab_size"] = (rows + more).into());
    folder
}

/// Adds a special token to a folder's tokenizer.
pub fn add_token(folder: &Path, id: usize, content: &str) {
    let token = json!({"id": id, "content": content, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true});
    edit(folder, "tokenizer.json", |json| json["added_tokens"].as_array_mut().unwrap().push(token));
}
