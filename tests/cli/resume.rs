use super::*;

struct Run {
    folder: tempfile::TempDir,
    prompts: String,
}

fn good_prompts() -> usize {
    many_or_few(9, 4)
}

impl Run {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let prompts = prompts_file(folder.path(), good_prompts());
        Self { folder, prompts }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// All flags of a run that writes `name`.
    fn args(&self, name: &str, more: &[&str]) -> Vec<String> {
        let (output, trace) = (self.path(name), self.path(&format!("{name}.trace")));
        let files = ["--prompts", &self.prompts, "--output", &output, "--trace", &trace];
        let settings = ["--max-new-tokens", "8", "-w", "2", "-k", "2", "-l", "3"];
        let flags = files.iter().chain(&settings).chain(more).map(|&flag| flag.to_owned());
        guided().into_iter().chain(flags).collect()
    }

    fn search(&self, name: &str, more: &[&str]) -> Output {
        trimtab(&self.args(name, more))
    }

    /// Puts two prompts among the others, the third and the sixth, that cannot be answered.
    fn damage_prompts(&self) {
        let text = std::fs::read_to_string(&self.prompts).unwrap();
        let mut lines_in: Vec<&str> = text.lines().collect();
        lines_in.insert(2, "{\"prompt\": 7}");
        let long = format!("{{\"prompt\":\"{}\",\"id\":\"long\"}}", "word ".repeat(200));
        lines_in.insert(5, &long);
        std::fs::write(&self.prompts, lines_in.join("\n")).unwrap();
    }
}

/// Goal: wherever a run was killed, also within a line, going on gives the same bytes as a run
/// that was not: no torn line, no doubled one, in output and trace.
#[test]
fn a_killed_run_goes_on_where_it_stopped() {
    let run = Run::new();
    stdout(&run.search("whole", &[]));
    let (whole, trace) = (run.read("whole"), run.read("whole.trace"));
    for (cut, trace_cut) in [
        (0, 0),
        (10, 100),
        (whole.len() / 2, trace.len() * 2 / 3),
        (whole.len() - 1, trace.len()),
        (whole.len(), trace.len()),
    ] {
        std::fs::write(run.path("cut"), &whole[..cut]).unwrap();
        std::fs::write(run.path("cut.trace"), &trace[..trace_cut]).unwrap();
        std::fs::copy(run.path("whole.settings.json"), run.path("cut.settings.json")).unwrap();
        stdout(&run.search("cut", &["--resume", "--concurrency", "3"]));
        assert_eq!(run.read("cut"), whole, "cut at {cut}");
        assert_eq!(run.read("cut.trace"), trace, "cut at {trace_cut}");
    }
    let again = run.search("cut", &["--resume"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("0 prompts"), "nothing was left to do");
}

/// Goal: a real kill, in the middle of the work.
#[test]
fn a_run_survives_a_real_kill() {
    let run = Run::new();
    stdout(&run.search("whole", &[]));
    let output = run.path("killed");
    let mut child = Command::new(env!("CARGO_BIN_EXE_trimtab"))
        .env("TRIMTAB_DEVICE", device())
        .args(run.args("killed", &["--concurrency", "1"]))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // As soon as something is there; if it was quicker than that, nothing is lost either.
    while std::fs::metadata(&output).map_or(true, |data| data.len() == 0) {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    stdout(&run.search("killed", &["--resume"]));
    assert_eq!(run.read("killed"), run.read("whole"));
    assert_eq!(run.read("killed.trace"), run.read("whole.trace"));
}

/// Goal: answers of other settings or other prompts are never mixed, and nothing is overwritten.
#[test]
fn an_output_of_another_run_is_left_alone() {
    let run = Run::new();
    stdout(&run.search("first", &[]));
    let before = run.read("first");
    assert_refused(&run.search("first", &[]), "--resume");
    assert_refused(&run.search("first", &["--resume", "--seed", "7"]), "with --seed = 1, not 7");
    assert_refused(&run.search("first", &["--resume", "--shard", "1/2"]), "shard");
    let other = prompts_file(run.folder.path(), good_prompts());
    let text = std::fs::read_to_string(&other).unwrap();
    std::fs::write(&other, text.replace("The film 0", "Another film")).unwrap();
    assert_refused(&run.search("first", &["--resume"]), "line 1: answers another prompt");
    std::fs::write(&other, text.lines().next().unwrap()).unwrap();
    assert_refused(&run.search("first", &["--resume"]), "more answers than prompts");
    assert_eq!(run.read("first"), before);
    assert_refused(&search(&["--prompt", "A", "--resume"]), "needs --output");
}

/// Goal: a run goes on with the same models wherever they lie, and with no others, nor with arithmetic
/// that gives other bits.
#[test]
fn a_run_goes_on_with_the_same_models_alone() {
    let run = Run::new();
    stdout(&run.search("first", &[]));
    let before = run.read("first");
    let copy = |name: &str, from: &str| {
        let to = run.folder.path().join(name);
        std::fs::create_dir_all(&to).unwrap();
        copy_model(from, &to);
        to.to_str().unwrap().to_owned()
    };
    let go_on = |tuned: &str| {
        let args = run.args("first", &["--resume"]).into_iter();
        let swap = |arg| if arg == model("gpt2_tuned") { tuned.to_owned() } else { arg };
        trimtab(&args.map(swap).collect::<Vec<_>>())
    };
    stdout(&go_on(&copy("elsewhere", "gpt2_tuned")));
    assert_refused(&go_on(&copy("other", "gpt2")), "fingerprints and weights of the guide's pairs");
    // One bit of one number.
    let changed = copy("changed", "gpt2_tuned");
    let weights = Path::new(&changed).join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    assert_refused(&go_on(&changed), "fingerprints and weights of the guide's pairs");
    let settings = String::from_utf8(run.read("first.settings.json")).unwrap();
    let other = settings.replace("\"arithmetic\": \"", "\"arithmetic\": \"not ");
    std::fs::write(run.path("first.settings.json"), other).unwrap();
    assert_refused(&run.search("first", &["--resume"]), "made with arithmetic = \"not ");
    std::fs::remove_file(run.path("first.settings.json")).unwrap();
    assert_refused(&run.search("first", &["--resume"]), "what it was made with is not in");
    assert_eq!(run.read("first"), before);
}

/// Goal: a run that cannot begin leaves nothing behind that would stop the next one; `-` is stdout.
#[test]
fn a_run_that_cannot_begin_leaves_nothing() {
    let run = Run::new();
    let (output, nowhere) = (run.path("out"), run.path("no/where"));
    let to = |output: &str, trace: &str| {
        search(&["--prompt", "A", "--max-new-tokens", "2", "--output", output, "--trace", trace])
    };
    assert_refused(&to(&output, &nowhere), "cannot create");
    assert_refused(&to(&output, &output), "--trace must be another file");
    assert_refused(&to(&output, "-"), "--trace needs a file");
    let settings = format!("{output}.settings.json");
    assert_refused(&to(&output, &settings), "--trace must be another file than --output, and than");
    let trace = run.path("trace");
    let alone = search(&["--prompt", "A", "--resume", "--trace", &trace]);
    assert_refused(&alone, "--resume needs --output");
    std::fs::create_dir(&settings).unwrap();
    assert_refused(&to(&output, &trace), "cannot write to");
    std::fs::remove_dir(&settings).unwrap();
    let folder = run.folder.path().to_str().unwrap();
    assert_refused(&to(folder, &nowhere), "it is a folder; name a file");
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left, ["prompts.jsonl"]);
    let answer = stdout(&search(&["--prompt", "A", "--max-new-tokens", "2", "--output", "-"]));
    assert_eq!(answer, stdout(&search(&["--prompt", "A", "--max-new-tokens", "2"])));
}

/// Goal: prompts that fail leave a line of their own, and a run that goes on says so and fails too.
#[test]
fn failures_keep_their_place() {
    let run = Run::new();
    run.damage_prompts();
    let output = run.search("some", &[]);
    assert_refused(&output, "line 3");
    let answers = lines(&String::from_utf8(run.read("some")).unwrap());
    assert_eq!(answers.len(), good_prompts() + 2);
    assert_eq!(answers[2]["id"], 3);
    assert!(answers[5]["error"].as_str().unwrap().contains("base model's context holds 128"));
    let good = answers.iter().filter(|a| a.get("error").is_none());
    assert_eq!(good.count(), good_prompts());
    let resumed = run.search("some", &["--resume"]);
    let said = format!("2 lines of {} hold errors; --retry-failed runs them", run.path("some"));
    assert_refused(&resumed, &said);
    assert_eq!(lines(&String::from_utf8(run.read("some")).unwrap()), answers);
    // Up to its first failure.
    let text = String::from_utf8(run.read("some")).unwrap();
    let cut: String = text.split_inclusive('\n').take(3).collect();
    std::fs::write(run.path("some"), cut).unwrap();
    assert_refused(&run.search("some", &["--resume"]), "1 line of ");
    assert_eq!(lines(&String::from_utf8(run.read("some")).unwrap()), answers);
}

/// Goal: what failed is run again where that is asked for, and what comes of it is what a run without
/// failures gives, byte for byte, the trace too.
#[test]
fn failures_are_run_again() {
    let run = Run::new();
    let good = std::fs::read(&run.prompts).unwrap();
    run.damage_prompts();
    run.search("some", &[]);
    let (some, trace) = (run.read("some"), run.read("some.trace"));
    // Nothing was mended.
    let again = run.search("some", &["--resume", "--retry-failed"]);
    assert_refused(&again, "base model's context holds 128");
    assert!(!String::from_utf8_lossy(&again.stderr).contains("hold errors"));
    assert_eq!((run.read("some"), run.read("some.trace")), (some.clone(), trace.clone()));
    // Two lines are mended, one of them with an id of its own.
    let text = std::fs::read_to_string(&run.prompts).unwrap();
    let mended = text.lines().enumerate().map(|(index, line)| match index {
        2 => "{\"prompt\":\"Seven\",\"id\":\"seven\"}\n".to_owned(),
        5 => "{\"prompt\":\"word\",\"id\":\"long\"}\n".to_owned(),
        _ => format!("{line}\n"),
    });
    std::fs::write(&run.prompts, mended.collect::<String>()).unwrap();
    stdout(&run.search("whole", &[]));
    assert_refused(&run.search("some", &["--resume"]), "line 3: answers another prompt");
    stdout(&run.search("some", &["--resume", "--retry-failed"]));
    assert_eq!(run.read("some"), run.read("whole"));
    assert_eq!(run.read("some.trace"), run.read("whole.trace"));
    // Answers to other prompts are not thrown away, and a trace that cannot go on costs no answer.
    std::fs::write(run.path("some"), &some).unwrap();
    std::fs::write(run.path("some.trace"), &trace[1..]).unwrap();
    let retry = ["--resume", "--retry-failed"];
    assert_refused(&run.search("some", &retry), "--trace cannot go on");
    assert_eq!((run.read("some"), run.read("some.trace")), (some.clone(), trace[1..].to_vec()));
    std::fs::write(&run.prompts, good).unwrap();
    assert_refused(&run.search("some", &retry), "answers another prompt");
    assert_eq!(run.read("some"), some);
    assert_refused(&run.search("other", &["--retry-failed"]), "--resume");
}

/// Goal: settings are compared as they work, whether they were given or not, and shown as they were
/// given; those of another version are not taken for others.
#[test]
fn settings_are_compared_as_they_work() {
    let run = Run::new();
    let output = run.path("out");
    let settings = run.path("out.settings.json");
    let to = |more: &[&str]| {
        let files = ["--prompts", &run.prompts, "--output", &output, "--max-new-tokens", "4"];
        search(&[&files, more].concat())
    };
    stdout(&to(&["--top-p", "0.9"]));
    let resume = |more: &[&str]| to(&[&["--resume", "--top-p", "0.9"], more].concat());
    stdout(&resume(&["-w", "4", "-k", "4", "-l", "10", "--seed", "1", "--top-k", "50"]));
    assert_refused(&resume(&["-w", "8"]), "was made with --beam-width = 4, not 8\n");
    assert_refused(&resume(&["-l", "inf"]), "was made with --chunk-len = 10, not \"inf\"\n");
    assert_refused(&to(&["--resume"]), "was made with --top-p = 0.9, not 1.0\n");
    assert_refused(&resume(&["--temperature", "0.1"]), "--temperature = 0.7, not 0.1\n");
    let method = ["--method", "bon"];
    assert_refused(&resume(&method), "was made with --method = \"cbs\", not \"bon\"\n");
    let text = std::fs::read_to_string(&settings).unwrap();
    for (from, to) in [("--beam-width", "beam_width"), ("\"--seed\": 1,", "")] {
        std::fs::write(&settings, text.replace(from, to)).unwrap();
        assert_refused(&resume(&[]), "was written by another version of trimtab");
    }
    std::fs::remove_file(&output).unwrap();
    stdout(&to(&["--method", "eft"]));
    stdout(&to(&["--method", "eft", "--beta", "1", "-w", "1", "-l", "inf", "--resume"]));
}

/// Goal: a trace has the steps of every answer, or is refused.
#[test]
fn a_trace_has_no_holes() {
    let run = Run::new();
    stdout(&run.search("whole", &[]));
    let trace = String::from_utf8(run.read("whole.trace")).unwrap();
    let steps: Vec<&str> = trace.split_inclusive('\n').collect();
    let last_of_first = steps.iter().take_while(|step| step.contains("\"id\":\"p0\"")).count() - 1;
    assert!(last_of_first > 0);
    for (missing, id) in [(0, "p0"), (last_of_first, "p0"), (last_of_first + 1, "p1")] {
        let holed: String = steps
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != missing)
            .map(|(_, step)| *step)
            .collect();
        std::fs::write(run.path("whole.trace"), &holed).unwrap();
        let part = format!("it lacks steps of prompt \"{id}\", which is answered in");
        assert_refused(&run.search("whole", &["--resume"]), &part);
        assert_eq!(run.read("whole.trace"), holed.as_bytes());
    }
    std::fs::remove_file(run.path("whole.trace")).unwrap();
    assert_refused(&run.search("whole", &["--resume"]), "leave out --trace, or begin both anew");
    assert!(!Path::new(&run.path("whole.trace")).exists());
}

/// Goal: whoever names a trace that exists is told what helps.
#[test]
fn a_trace_that_exists_is_left_alone() {
    let run = Run::new();
    let trace = run.path("trace");
    std::fs::write(&trace, "mine").unwrap();
    for more in [&[][..], &["--output", &run.path("out")]] {
        let output = search(&[&["--prompt", "A", "--trace", &trace], more].concat());
        assert_refused(&output, "trace: it exists; name another file, or remove it");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("--resume"));
    }
    assert_eq!(run.read("trace"), b"mine");
}
