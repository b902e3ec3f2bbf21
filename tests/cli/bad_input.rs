use super::*;

/// Goal: flags that cannot work are refused by name.
#[test]
fn flags_that_cannot_work_are_refused() {
    for (flags, part) in [
        (&["-w", "0"][..], "--beam-width must be at least 1"),
        (&["-k", "0"], "--successors must be at least 1"),
        (&["-l", "0"], "--chunk-len must be at least 1"),
        (&["-l", "ten"], "must be a number or inf"),
        (&["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (&["--max-new-tokens", "500"], "context holds 128 tokens"),
        (&["--temperature", "-1"], "--temperature"),
        (&["--temperature", "nan"], "--temperature"),
        (&["--top-p", "0"], "--top-p must be above 0"),
        (&["--seed", "-9223372036854775809"], "must be a whole number of at most 64 bits"),
        (&["--seed", "18446744073709551616"], "must be a whole number of at most 64 bits"),
        (&["--top-k", "-2"], "must be a whole number, or -1 for all"),
        (&["--top-k", "many"], "must be a whole number, or -1 for all"),
        (&["--stop", ""], "--stop must not be empty"),
        (&["--base-template", "Review:"], "{prompt}"),
        (&["--guide-template", "Review:"], "--guide-template"),
        (&["--method", "sample", "-w", "2"], "--beam-width has no meaning"),
        (&["--method", "bon", "-l", "2"], "--chunk-len has no meaning"),
        (&["--beta", "1"], "--beta has no meaning with --method cbs"),
        (&["--method", "eft", "--beta", "0"], "--beta must be above 0"),
        (&["--max-new-tokens", "18446744073709551615"], "--max-new-tokens must be at most"),
        (&["--threads", "0"], "--threads must be at least 1"),
        (&["--threads", "99999999"], "--threads must be at least 1 and at most"),
        (&["--concurrency", "0"], "--concurrency must be at least 1"),
        (&["--kv-memory", "1K"], "--kv-memory must be at least"),
        (&["--kv-memory", "100K"], "raise --kv-memory"),
        (&["--method", "eft", "--beta", "1e-40"], "--beta is so small"),
        (&["--guide", "a,b,1e39"], "beyond all measure"),
        (&["--kv-memory", "lots"], "number of bytes"),
        (&["--guide", "a"], "TUNED,UNTUNED"),
        (&["--guide", "a,b,heavy"], "weight"),
        (&["--compat", "reference", "--guide-tokens", "ids"], "--guide-tokens"),
        (&["--compat", "reference", "--bos", "always"], "--bos"),
        (&["--device", "abacus"], "--device"),
        (&["--device-memory", "90000T"], "all that there is"),
        (&["--shard", "1/2"], "cannot be used with '--shard <I/N>'"),
        (&["--base-timeout", "3"], "cannot be used with '--base-timeout <SECONDS>'"),
    ] {
        let output = search(&[&["--prompt", "The film"], flags].concat());
        assert_refused(&output, part);
        assert!(output.stdout.is_empty());
    }
    assert_refused(&search(&["--prompt", ""]), "the prompt is empty for the base model");
    // The model's context is 128.
    let sample = ["search", "--base", &model("gpt2"), "--prompt", "x", "--method", "sample"];
    let little = trimtab(&[&sample[..], &["--kv-memory", "16K"]].concat());
    assert_refused(&little, "the base model's cache holds 32 tokens, but 1 prompt tokens");
    assert_refused(&little, "raise --kv-memory");
    let alone = trimtab(&["search", "--base", &model("gpt2"), "--prompt", "x"]);
    assert_refused(&alone, "--tuned and --untuned (or --guide) are needed");
    for (flag, value) in [("--guide-template", "A {prompt}"), ("--guide-tokens", "ids")] {
        let base = model("gpt2");
        let alone = ["search", "--base", &base, "--prompt", "x", "--method", "sample"];
        let output = trimtab(&[&alone, &[flag, value][..]].concat());
        assert_refused(&output, &format!("{flag} has no meaning without a guide"));
    }
    assert_refused(&trimtab(&["demo", "--seeds", "2"]), "--full");
    assert_refused(&search(&[]), "--prompt or --prompts is needed");
}

/// Goal: a prompt that only the guide's template makes too long is refused with which model and
/// how many tokens it is about, and files that are not there are named.
#[test]
fn what_does_not_fit_or_is_not_there_is_named() {
    let long = format!("{}{{prompt}}", "word ".repeat(120));
    let output = search(&["--prompt", "x", "--guide-template", &long]);
    assert_refused(&output, "the guide model's context holds 128 tokens, but ");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    assert_refused(&search(&["--prompts", &path("none.jsonl")]), "none.jsonl");
    assert_refused(&search(&["--prompt", "x", "--output", &path("no/out")]), "no/out");
    assert_refused(&search(&["--prompt", "x", "--trace", &path("no/trace")]), "no/trace");
    assert_refused(&trimtab(&["inspect".into(), path("")]), "config.json");
    assert_refused(&trimtab(&["inspect".into(), path("nowhere")]), "nowhere");
    std::fs::write(path("file"), "text").unwrap();
    assert_refused(&trimtab(&["inspect".into(), path("file")]), "not a folder");
    std::fs::create_dir(path("config.json")).unwrap();
    assert_refused(&trimtab(&["inspect".into(), path("")]), "config.json");
}

/// Goal: models that do not belong together are refused with how they differ.
#[test]
fn models_that_do_not_fit_together_are_refused() {
    let run = |base: &str, tuned: &str, untuned: &str, more: &[&str]| {
        let (base, tuned, untuned) = (model(base), model(tuned), model(untuned));
        let flags =
            ["search", "--base", &base, "--tuned", &tuned, "--untuned", &untuned, "--prompt", "x"];
        trimtab(&[&flags, more].concat())
    };
    assert_refused(&run("gpt2", "llama_tuned", "gpt2", &[]), "same vocabulary");
    // Same size, other tokens.
    assert_refused(&run("mistral", "llama", "mistral", &[]), "same vocabulary");
    assert_refused(&run("mistral", "llama_tuned", "llama", &["--method", "eft"]), "--method eft");
    let ids = run("mistral", "llama_tuned", "llama", &["--guide-tokens", "ids"]);
    assert_refused(&ids, "use --guide-tokens text");
    assert_refused(&run("nowhere", "gpt2_tuned", "gpt2", &[]), "not a folder");
}

/// A golden model with one file changed.
fn changed(name: &str, file: &str, change: impl Fn(String) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_model(name, folder.path());
    let path = folder.path().join(file);
    std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
    folder
}

/// Goal: a config with absurd, unsupported or missing fields is refused by the field's name.
#[test]
fn absurd_configs_are_refused() {
    let set = |field: &'static str, value: &'static str| {
        move |text: String| {
            let mut config: Value = serde_json::from_str(&text).unwrap();
            config[field] = serde_json::from_str(value).unwrap();
            config.to_string()
        }
    };
    for (name, field, value) in [
        ("gpt2", "n_layer", "0"),
        ("gpt2", "n_layer", "-3"),
        ("gpt2", "n_layer", "1e300"),
        ("gpt2", "n_embd", "18446744073709551615"),
        ("gpt2", "n_head", "7"),
        ("gpt2", "vocab_size", "\"many\""),
        ("gpt2", "vocab_size", "null"),
        ("gpt2", "layer_norm_epsilon", "-1"),
        ("gpt2", "activation_function", "\"relu\""),
        ("gpt2", "scale_attn_by_inverse_layer_idx", "3"),
        ("gpt2", "quantization_config", "{}"),
        ("llama3", "num_key_value_heads", "3"),
        ("llama3", "head_dim", "15"),
        ("llama3", "rope_theta", "0"),
        ("llama3", "hidden_act", "\"gelu\""),
        ("llama3", "attention_bias", "\"yes\""),
        ("mistral", "sliding_window", "0"),
        ("mistral", "max_position_embeddings", "9999999999999"),
        ("mistral", "tie_word_embeddings", "3"),
    ] {
        let folder = changed(name, "config.json", set(field, value));
        let output = trimtab(&["inspect".as_ref(), folder.path().as_os_str()]);
        assert_refused(&output, &format!("field `{field}`"));
    }
    let scaled = changed("llama3", "config.json", set("rope_scaling", "{\"type\":\"longrope\"}"));
    let output = trimtab(&["inspect".as_ref(), scaled.path().as_os_str()]);
    assert_refused(&output, "only default, linear, dynamic, llama3, yarn");
    let other = changed("gpt2", "config.json", set("architectures", "[\"BertForMaskedLM\"]"));
    let output = trimtab(&["inspect".as_ref(), other.path().as_os_str()]);
    assert_refused(&output, "GPT2LMHeadModel, LlamaForCausalLM, MistralForCausalLM");
    for text in ["", "[]", "{", "nonsense", "{}"] {
        let folder = changed("gpt2", "config.json", |_| text.to_owned());
        let output = trimtab(&["inspect".as_ref(), folder.path().as_os_str()]);
        assert_refused(&output, "config.json");
    }
}

/// Goal: a damaged tokenizer is an error with the file's name, and no panic is seen.
#[test]
fn damaged_tokenizers_are_refused() {
    for (from, to) in [("\"merges\"", "\"surges\""), ("\"BPE\"", "\"CPE\""), ("{", "")] {
        let folder = changed("gpt2", "tokenizer.json", |text| text.replacen(from, to, 1));
        let output = trimtab(&["inspect".as_ref(), folder.path().as_os_str()]);
        assert_refused(&output, "tokenizer.json");
    }
}

/// Goal: a config that promises other shapes than the file holds is refused by the tensor.
#[test]
fn wrong_shapes_are_refused() {
    let widen = |text: String| text.replace("\"n_positions\": 128", "\"n_positions\": 256");
    let folder = changed("gpt2", "config.json", widen);
    let path = folder.path().to_str().unwrap();
    let output = trimtab(&["search", "--base", path, "--method", "sample", "--prompt", "x"]);
    assert_refused(&output, "wpe.weight");
    let deepen = |text: String| text.replace("\"n_layer\": 2", "\"n_layer\": 3");
    let folder = changed("gpt2", "config.json", deepen);
    let path = folder.path().to_str().unwrap();
    let output = trimtab(&["search", "--base", path, "--method", "sample", "--prompt", "x"]);
    assert_refused(&output, "h.2.");
    // Fewer layers than there are would be another model, not an error of any shape.
    let flatten = |text: String| text.replace("\"n_layer\": 2", "\"n_layer\": 1");
    let folder = changed("gpt2", "config.json", flatten);
    let path = folder.path().to_str().unwrap();
    let output = trimtab(&["search", "--base", path, "--method", "sample", "--prompt", "x"]);
    assert_refused(&output, "h.1.attn.c_attn.bias\" has no place in the model");
}

/// A copy of a golden model none of whose weights is a number.
fn without_numbers(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_model(name, folder.path());
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for number in bytes[8 + header..].chunks_exact_mut(4) {
        number.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    folder
}

/// Goal: weights that are not numbers fail the search with a reason, whichever model has them and however
/// tokens are drawn, and no NaN reaches JSON.
#[test]
fn weights_that_are_not_numbers_fail_their_search() {
    let (good, tuned) = (model("gpt2"), model("gpt2_tuned"));
    let broken = without_numbers("gpt2_tuned");
    let broken = broken.path().to_str().unwrap();
    for (base, tuned, flags, part) in [
        (&good[..], broken, &[][..], "the gain of a candidate"),
        (broken, &tuned, &[], "a logit of the base model"),
        (
            broken,
            &tuned,
            &["--method", "sample", "--temperature", "0"],
            "a logit of the base model",
        ),
        (&good, broken, &["--method", "eft"], "a logit of the base model, or of a pair"),
    ] {
        let models = ["search", "--base", base, "--tuned", tuned, "--untuned", &good];
        let output = trimtab(&[&models, &["--prompt", "x", "--json"][..], flags].concat());
        assert_refused(&output, part);
        assert_refused(&output, "is not a finite number");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("NaN"));
    }
}

/// Goal: whoever reads results may go away, as `head` does: no panic, no message, no failure.
#[test]
#[cfg(unix)]
fn a_reader_that_has_gone_ends_the_program_quietly() {
    let search =
        ["search", "--method", "sample", "--prompt", "x", "--max-new-tokens", "2", "--base"];
    let (base, search) = (model("gpt2"), search.map(str::to_owned));
    let commands = [
        vec!["devices".to_owned()],
        vec!["inspect".into(), base.clone()],
        [&search[..], &[base]].concat(),
    ];
    for args in commands {
        // A pipe whose reading end is closed before anything is written.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_trimtab"))
            .args(&args)
            .env("TRIMTAB_DEVICE", device())
            .stdout(writer)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("stdout"), "{args:?}: {said}");
    }
}
