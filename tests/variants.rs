//! Ordinary checkpoints that are easy to read wrongly, against transformers.
//!
//! Each case of tests/golden/variants.json and side_files.json is a golden checkpoint with some changes, and what
//! transformers makes of it (tools/golden/variants.py). The test makes the same changes in a folder of its own.
#![allow(clippy::unwrap_used)]

mod oracle;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oracle::Oracle;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Map, Value};
use tempfile::TempDir;
use trimtab::backend::Backend;
use trimtab::backend::cpu::CpuBackend;
use trimtab::backend::cuda::CudaBackend;
use trimtab::engine::{Engine, Limits, Model, ModelFiles, Span};
use trimtab::kv_cache::PagePool;
use trimtab::text::{Bos, Tokenizer};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A tensor that owns its bytes.
#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Tensor>;

fn tensors_of(model: &str) -> Tensors {
    let file = fs::read(golden(model).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let owned = tensors.iter().map(|(name, view)| {
        let (dtype, shape, bytes) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        (name.to_owned(), Tensor { dtype, shape, bytes })
    });
    owned.collect()
}

fn save(tensors: &Tensors, folder: &Path) {
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap();
        (name.clone(), view)
    });
    fs::write(folder.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
}

const TABLE: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The changes that tools/golden/variants.py has under the same names.
fn change(mut tensors: Tensors, name: Option<&str>) -> Tensors {
    let table = tensors.get(TABLE).cloned();
    match name {
        None => {}
        Some("head differs") => {
            let table = table.unwrap();
            let row = table.bytes.len() / table.shape[0];
            let bytes = table.bytes.chunks(row).rev().flatten().copied().collect();
            tensors.insert(HEAD.into(), Tensor { bytes, ..table });
        }
        Some("head alike") => drop(tensors.insert(HEAD.into(), table.unwrap())),
        Some("head alone") => {
            tensors.remove(TABLE);
            tensors.insert(HEAD.into(), table.unwrap());
        }
        Some("float64") => {
            for tensor in tensors.values_mut() {
                let numbers = tensor.bytes.as_chunks::<4>().0.iter();
                let wide = numbers.flat_map(|n| f64::from(f32::from_le_bytes(*n)).to_le_bytes());
                tensor.bytes = wide.collect();
                tensor.dtype = Dtype::F64;
            }
        }
        Some(other) => panic!("no change {other}"),
    }
    tensors
}

/// A case's folder, without a tokenizer.
fn model_folder(case: &Value) -> TempDir {
    let model = case["model"].as_str().unwrap();
    let mut config = read(&golden(model).join("config.json"));
    for (name, value) in case["config"].as_object().unwrap() {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(name)),
            value => config[name] = value.clone(),
        }
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    save(&change(tensors_of(model), case["tensors"].as_str()), folder.path());
    folder
}

/// The log-probabilities of all golden tokens but the first.
fn logprobs<B: Backend>(backend: &Arc<B>, folder: &Path, model: &str) -> Vec<f32> {
    let tokens = read(&golden(model).join("golden.json"))["tokens"].clone();
    let tokens: Vec<u32> = serde_json::from_value(tokens).unwrap();
    let limits = Limits { pages: 64, rows: 128, logit_rows: 4 };
    let model = Model::open(&**backend, folder, None).unwrap();
    let mut engine = Engine::new(backend.clone(), model, limits).unwrap();
    let pool = PagePool::new(64);
    let mut sequence = pool.sequence();
    sequence.append(tokens.len()).unwrap();
    let targets: Vec<u32> = tokens[1..].iter().copied().chain([0]).collect();
    let mut logprobs = engine.logprobs(&[Span::new(&tokens, 0, &sequence)], &targets).unwrap();
    logprobs.pop();
    logprobs
}

fn worst(ours: &[f32], theirs: &Value) -> f64 {
    let theirs: Vec<f64> = serde_json::from_value(theirs.clone()).unwrap();
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(&theirs).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

fn gpu_wanted() -> bool {
    std::env::var_os("TRIMTAB_TEST_DEVICE").is_some_and(|device| device == "cuda")
}

/// Goal: each of them is the model that transformers loads. The oracle shows that what is read is the same, to the
/// tolerance of tests/models.rs; the CPU and the emulator, that each of their ops obeys it.
#[test]
fn ordinary_checkpoints_are_read_as_transformers_reads_them() {
    let cases = read(&golden("variants.json"));
    let cpu = Arc::new(CpuBackend::new(Some(1)).unwrap());
    let emulator = Arc::new(CudaBackend::emulated(3).unwrap());
    assert!(cases.as_array().unwrap().len() > 20);
    for case in cases.as_array().unwrap() {
        let (name, model) = (&case["name"], case["model"].as_str().unwrap());
        let folder = model_folder(case);
        let exact = worst(&logprobs(&Arc::new(Oracle), folder.path(), model), &case["logprobs"]);
        assert!(exact < 2e-5, "{name}: off by {exact:e}");
        let on_cpu = worst(&logprobs(&cpu, folder.path(), model), &case["logprobs"]);
        let emulated = worst(&logprobs(&emulator, folder.path(), model), &case["logprobs"]);
        assert!(on_cpu < 0.2 && emulated < 0.2, "{name}: off by {on_cpu} and {emulated}");
        if gpu_wanted() {
            let gpu = Arc::new(CudaBackend::open().unwrap());
            let off = worst(&logprobs(&gpu, folder.path(), model), &case["logprobs"]);
            assert!(off < 0.2, "{name} on cuda: off by {off}");
        }
    }
}

/// Goal: a head that is not the tied table is said, and one that is the table is stored once.
#[test]
fn a_head_beside_a_tied_table_is_said() {
    let notes = |change: &str| {
        let case = serde_json::json!({"model": "llama", "config": {}, "tensors": change});
        let files = ModelFiles::open(model_folder(&case).path()).unwrap();
        (files.config.tied_head, files.notes.warnings)
    };
    let (tied, warnings) = notes("head differs");
    assert!(!tied && warnings.len() == 1 && warnings[0].contains(HEAD), "{warnings:?}");
    assert_eq!(notes("head alike"), (true, vec![]));
    assert_eq!(notes("head alone"), (true, vec![]));
}

/// Goal: a prefix that a program puts in front of all names changes nothing, whatever other prefix there is.
#[test]
fn a_prefix_that_is_only_a_prefix_is_taken() {
    let cpu = Arc::new(CpuBackend::new(Some(1)).unwrap());
    for (model, own) in [("llama", "model."), ("gpt2", "transformer.")] {
        let plain = logprobs(&cpu, &golden(model), model);
        for prefix in ["_orig_mod.", "language_model.", "module.", ""] {
            for bare in [false, true] {
                let renamed = |name: String| match name.strip_prefix(own) {
                    Some(rest) if bare => format!("{prefix}{rest}"),
                    _ => format!("{prefix}{name}"),
                };
                let tensors = tensors_of(model);
                let tensors =
                    tensors.into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect();
                let folder = tempfile::tempdir().unwrap();
                fs::copy(golden(model).join("config.json"), folder.path().join("config.json"))
                    .unwrap();
                save(&tensors, folder.path());
                assert_eq!(logprobs(&cpu, folder.path(), model), plain, "{model} {prefix} {bare}");
            }
        }
    }
}

/// Goal: tensors that no part of the model reads are said.
#[test]
fn tensors_that_are_not_used_are_said() {
    let mut tensors = tensors_of("llama");
    let table = tensors[TABLE].clone();
    tensors.insert("value_head.weight".into(), table);
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden("llama/config.json"), folder.path().join("config.json")).unwrap();
    save(&tensors, folder.path());
    let warnings = ModelFiles::open(folder.path()).unwrap().notes.warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("value_head.weight"), "{warnings:?}");
    for plain in ["llama", "gpt2", "gpt2_bare", "llama3", "mistral"] {
        assert_eq!(ModelFiles::open(&golden(plain)).unwrap().notes.warnings, Vec::<String>::new());
    }
}

/// A case's folder with a tokenizer alone.
fn tokenizer_folder(case: &Value) -> TempDir {
    let mut tokenizer = read(&golden(case["model"].as_str().unwrap()).join("tokenizer.json"));
    for (path, value) in case["tokenizer"].as_object().unwrap() {
        *tokenizer.pointer_mut(&format!("/{path}")).unwrap_or_else(|| {
            panic!("{path} is not in tokenizer.json");
        }) = value.clone();
    }
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &Value| {
        fs::write(folder.path().join(name), content.to_string()).unwrap();
    };
    write("tokenizer.json", &tokenizer);
    write("tokenizer_config.json", &case["config"]);
    let files: &Map<String, Value> = case["files"].as_object().unwrap();
    files.iter().for_each(|(name, content)| write(name, content));
    folder
}

/// Goal: tokens and flags that only side files name are those of transformers, id by id.
#[test]
fn side_files_are_read_as_transformers_reads_them() {
    let cases = read(&golden("side_files.json"));
    assert!(cases.as_array().unwrap().len() > 15);
    for case in cases.as_array().unwrap() {
        let tokenizer = Tokenizer::open(tokenizer_folder(case).path()).unwrap();
        let texts = case["texts"].as_array().unwrap().iter().zip(case["ids"].as_array().unwrap());
        for (text, ids) in texts {
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            let ours = tokenizer.encode(text.as_str().unwrap(), Bos::Never).unwrap();
            assert_eq!(ours, ids, "{}: {text}", case["name"]);
        }
    }
}
