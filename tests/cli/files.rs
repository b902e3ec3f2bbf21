use std::os::unix::fs::symlink;
use std::process::Stdio;

use super::*;

/// Runs the program below a shell that first does `before`, such as setting a limit, and with redirections.
fn under_shell(before: &str, args: &[&str], redirections: &str) -> Output {
    let script = format!("{before}; exec \"$@\" {redirections}");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_trimtab")]).args(args);
    command.env("TRIMTAB_DEVICE", device()).output().unwrap()
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn in_folder(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

/// A search without a guide over `prompts` that writes into `folder`.
fn sampling(prompts: &str, folder: &tempfile::TempDir, more: &[&str]) -> Vec<String> {
    let (base, output) = (model("gpt2"), in_folder(folder, "out"));
    let flags = ["search", "--method", "sample", "--base", &base, "--prompts", prompts];
    let flags = [&flags[..], &["--output", &output], more].concat();
    flags.iter().map(|&flag| flag.to_owned()).collect()
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Goal: no entry of a model's folder makes the program wait or read without an end: a pipe, a device, a
/// folder, a link to nowhere and a huge file are errors that name it.
#[test]
fn entries_that_are_no_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    copy_model("gpt2", folder.path());
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "model.safetensors",
    ] {
        let path = folder.path().join(name);
        let before = std::fs::read(&path).ok();
        let refused = |part: &str| {
            let path = folder.path().to_str().unwrap();
            // Killed if it waits, which is another exit code.
            let args = ["inspect", path];
            let output = under_shell("ulimit -t 20", &args, "</dev/null");
            assert_refused(&output, name);
            assert_refused(&output, part);
        };
        let remove = || {
            let _ = std::fs::remove_file(&path);
        };
        remove();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        refused("is not a file");
        remove();
        symlink("/dev/zero", &path).unwrap();
        refused("is not a file");
        remove();
        symlink("nowhere", &path).unwrap();
        refused("is a link to nowhere, which is missing");
        remove();
        std::fs::create_dir(&path).unwrap();
        refused("is not a file");
        std::fs::remove_dir(&path).unwrap();
        if name != "model.safetensors" {
            std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
            refused("a file of this kind has at most");
            remove();
        }
        if let Some(before) = before {
            std::fs::write(&path, before).unwrap();
        }
    }
}

/// Goal: the demo's judge is such a file too.
#[test]
fn a_judge_that_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models");
    for entry in std::fs::read_dir(models).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            symlink(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let judge = folder.path().join("judge.json");
    assert!(Command::new("mkfifo").arg(&judge).status().unwrap().success());
    let args = ["demo", "--models", folder.path().to_str().unwrap(), "--device", "cpu"];
    assert_refused(&trimtab(&args), "judge.json: is not a file");
}

/// Goal: files that a user names may be pipes: standard input and what a shell puts in place of a command.
#[test]
fn prompts_may_come_through_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = prompts_file(folder.path(), 3);
    let base = model("gpt2");
    let flags = ["search", "--method", "sample", "--base", &base, "--max-new-tokens", "2"];
    fn from<'a>(flags: &[&'a str], name: &'a str) -> Vec<&'a str> {
        [flags, &["--prompts", name]].concat()
    }
    let whole = stdout(&trimtab(&from(&flags, &prompts)));
    assert_eq!(stdout(&under_shell(":", &from(&flags, "-"), &format!("< {prompts}"))), whole);
    let pipe = in_folder(&folder, "pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let before = format!("cat {prompts} > {pipe} &");
    assert_eq!(stdout(&under_shell(&format!("{before} :"), &from(&flags, &pipe), "")), whole);
}

/// Goal: what lies where an output's settings go is another program's, unless it is an earlier run's.
#[test]
fn only_settings_are_replaced_by_settings() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = prompts_file(folder.path(), 1);
    let (output, settings) = (in_folder(&folder, "out"), in_folder(&folder, "out.settings.json"));
    let args = sampling(&prompts, &folder, &["--max-new-tokens", "2"]);
    for foreign in ["{\"mine\": 1}\n", "not JSON", "[]", "{\"version\": \"3\"}"] {
        std::fs::write(&settings, foreign).unwrap();
        assert_refused(&trimtab(&args), "out.settings.json: it exists and holds no settings");
        assert_eq!(std::fs::read_to_string(&settings).unwrap(), foreign);
        assert_eq!(names(folder.path()), ["out.settings.json", "prompts.jsonl"]);
    }
    std::fs::remove_file(&settings).unwrap();
    symlink("elsewhere", &settings).unwrap();
    assert_refused(&trimtab(&args), "out.settings.json: it exists and holds no settings");
    assert_eq!(names(folder.path()), ["out.settings.json", "prompts.jsonl"]);
    std::fs::remove_file(&settings).unwrap();
    // Those of a run whose output is gone are no longer needed, nor is an empty file.
    stdout(&trimtab(&args));
    let before = std::fs::read(&settings).unwrap();
    for left in [&before[..], b""] {
        std::fs::write(&settings, left).unwrap();
        std::fs::remove_file(&output).unwrap();
        stdout(&trimtab(&args));
        assert_eq!(std::fs::read(&settings).unwrap(), before);
    }
}

/// Goal: a run whose output is taken away ends at once with an error, and what has come in its place is left
/// alone.
#[test]
fn an_output_that_is_taken_away_ends_the_run() {
    type Deed = fn(&Path);
    let deeds: [(Deed, &str); 4] = [
        (|path| std::fs::remove_file(path).unwrap(), "it was removed or replaced"),
        (|path| std::fs::rename(path, path.with_extension("moved")).unwrap(), "it was removed or"),
        (
            |path| {
                std::fs::write(path.with_extension("other"), "mine").unwrap();
                std::fs::rename(path.with_extension("other"), path).unwrap();
            },
            "it was removed or replaced",
        ),
        (
            |path| std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(3).unwrap(),
            "it has 3 bytes where the run had written ",
        ),
    ];
    for (deed, part) in deeds {
        let folder = tempfile::tempdir().unwrap();
        let prompts = prompts_file(folder.path(), 500);
        let args = sampling(&prompts, &folder, &["--max-new-tokens", "60", "--concurrency", "1"]);
        let path = folder.path().join("out");
        let child = Command::new(env!("CARGO_BIN_EXE_trimtab"))
            .env("TRIMTAB_DEVICE", device())
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while std::fs::metadata(&path).map_or(true, |data| data.len() == 0) {
            std::thread::yield_now();
        }
        deed(&path);
        assert_refused(&child.wait_with_output().unwrap(), part);
        if part.contains("replaced") && path.exists() {
            assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        }
    }
}

/// Goal: a disk that is full, or a file that reaches the limit of file sizes, is an error. Where not even the
/// first answer was written nothing is left behind; else `--resume` goes on.
#[test]
fn a_full_disk_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = prompts_file(folder.path(), 40);
    let trace = in_folder(&folder, "trace");
    let args = sampling(&prompts, &folder, &["--trace", &trace, "--max-new-tokens", "4"]);
    // A shell counts in blocks of 512 bytes, or of 1,024.
    let full = under_shell("ulimit -f 0", &strs(&args), "");
    assert_refused(&full, "out.settings.json: File too large");
    assert_eq!(names(folder.path()), ["prompts.jsonl"]);
    let full = under_shell("ulimit -f 5", &strs(&args), "");
    assert_refused(&full, ": File too large");
    assert_eq!(names(folder.path()), ["out", "out.settings.json", "prompts.jsonl", "trace"]);
    let resumed = [&strs(&args)[..], &["--resume"]].concat();
    stdout(&trimtab(&resumed));
    let [answers, steps] =
        ["out", "trace"].map(|name| std::fs::read(in_folder(&folder, name)).unwrap());
    for name in ["out", "trace"] {
        std::fs::remove_file(in_folder(&folder, name)).unwrap();
    }
    stdout(&trimtab(&args));
    assert_eq!(std::fs::read(in_folder(&folder, "out")).unwrap(), answers);
    assert_eq!(std::fs::read(&trace).unwrap(), steps);
}

/// Goal: results that cannot be written to stdout are an error, whatever the command: a disk that is full, or
/// a stdout that is closed.
#[test]
#[cfg(target_os = "linux")]
fn a_stdout_that_takes_nothing_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (base, tuned) = (model("gpt2"), model("gpt2_tuned"));
    let pairs = in_folder(&folder, "pairs.jsonl");
    std::fs::write(&pairs, "{\"prompt\":\"A\",\"response\":\"b\"}\n").unwrap();
    let trace = in_folder(&folder, "trace");
    let search = ["search", "--method", "sample", "--base", &base, "--max-new-tokens", "2"];
    for args in [
        [&search[..], &["--prompt", "x", "--trace", &trace]].concat(),
        vec!["score", "--tuned", &tuned, "--untuned", &base, "--input", &pairs],
        vec!["inspect", &base],
        vec!["inspect", "--json", &base],
        vec!["devices"],
        vec!["--help"],
        vec!["search", "--help"],
        vec!["--version"],
    ] {
        let full = under_shell(":", &args, "> /dev/full");
        assert_refused(&full, "cannot write to stdout: No space left");
        assert_refused(&under_shell(":", &args, ">&-"), "cannot write to stdout: it is closed");
        assert_eq!(names(folder.path()), ["pairs.jsonl"], "{args:?}");
    }
    // Where answers go to a file it is not needed.
    let output = in_folder(&folder, "out");
    let args = [&search[..], &["--prompt", "x", "--output", &output]].concat();
    stdout(&under_shell(":", &args, ">&-"));
    assert!(std::fs::metadata(&output).unwrap().len() > 0);
}

/// Goal: a system that gives no threads is an error, and no panic.
#[test]
fn a_system_without_threads_is_an_error() {
    let args =
        ["search", "--method", "sample", "--base", &model("gpt2"), "--prompt", "x", "--json"];
    for threads in [&[][..], &["--threads", "1"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_trimtab"))
            .args(args)
            .args(threads)
            // Stacks that no system has the memory for: no thread is to be had.
            .env("RUST_MIN_STACK", (1_u64 << 46).to_string())
            .env("TRIMTAB_DEVICE", device())
            .output()
            .unwrap();
        assert_refused(&output, "--threads asks for threads, which the system refuses");
    }
}
