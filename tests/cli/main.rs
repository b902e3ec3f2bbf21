//! The program as its users see it: what it prints, what it writes, what it refuses. On the
//! CPU, and as part of tests/cli_emulator.rs with the GPU's kernels on the emulator.
#![allow(clippy::unwrap_used)]

mod answers;
mod bad_input;
mod bench;
mod devices;
mod files;
mod folders;
mod lines;
mod lost;
mod memory;
mod resume;
mod score;
mod search;
mod twins;

#[path = "../resized/mod.rs"]
mod resized;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A golden model's folder.
fn model(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    folder.to_str().unwrap().to_owned()
}

/// Copies a golden model's files into a folder.
fn copy_model(name: &str, to: &Path) {
    for entry in std::fs::read_dir(model(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Where the program computes: `cuda` if `TRIMTAB_TEST_DEVICE` says so.
fn device() -> String {
    let emulated = env!("CARGO_CRATE_NAME") == "cli_emulator";
    let default = if emulated { "emulator" } else { "cpu" };
    std::env::var("TRIMTAB_TEST_DEVICE").unwrap_or_else(|_| default.to_owned())
}

/// `many` where computing is fast, `few` on the emulator.
fn many_or_few(many: usize, few: usize) -> usize {
    if device() == "emulator" { few } else { many }
}

/// Runs the program.
fn trimtab<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
    command.args(args).env("TRIMTAB_DEVICE", device()).output().unwrap()
}

/// The flags of a guided search with the golden GPT-2s.
fn guided() -> Vec<String> {
    [
        "search",
        "--base",
        &model("gpt2"),
        "--tuned",
        &model("gpt2_tuned"),
        "--untuned",
        &model("gpt2"),
    ]
    .map(str::to_owned)
    .to_vec()
}

/// `guided` with more flags.
fn search(more: &[&str]) -> Output {
    let mut args = guided();
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    trimtab(&args)
}

fn stdout(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Lines of JSON.
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The run must have failed with exit code 2 and a message with `part` in it.
fn assert_refused(output: &Output, part: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains(part), "{part:?} is not in: {errors}");
    assert!(!errors.contains("panicked"), "{errors}");
}

/// A prompts file of `count` different prompts.
fn prompts_file(folder: &Path, count: usize) -> String {
    let words = ["The film", "A quiet harbour", "Nothing", "This is the story", "é 你好"];
    let lines: String = (0..count)
        .map(|i| format!("{{\"prompt\":\"{} {i}\",\"id\":\"p{i}\"}}\n", words[i % words.len()]))
        .collect();
    let path = folder.join("prompts.jsonl");
    std::fs::write(&path, lines).unwrap();
    path.to_str().unwrap().to_owned()
}
