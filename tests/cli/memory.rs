//! `--device-memory`: too little, just enough, and who else knows of it.

use super::*;

/// The first whole number after `before` in a text.
fn number_after(text: &str, before: &str) -> usize {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("{before:?}: {text}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{before:?} and a number: {text}"))
}

/// A small search with such a budget.
fn within(budget: usize) -> Output {
    let budget = budget.to_string();
    let flags = ["--prompt", "The film", "-w", "2", "-k", "2", "-l", "3", "--max-new-tokens", "6"];
    search(&[&flags[..], &["--device-memory", &budget]].concat())
}

/// The least budget with which `run` does its work: what it asks for where it has far too little, which must
/// be enough.
fn enough(run: &dyn Fn(usize) -> Output) -> usize {
    // On a GPU the kernels' own scratch memory is taken before anybody asks for more.
    let refused = if device() == "cpu" { 1000 } else { 20 << 20 };
    let output = run(refused);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_refused(&output, "do not fit");
    assert_eq!(number_after(&errors, " of the "), refused, "{errors}");
    let taken_and_asked =
        number_after(&errors, "do not fit: ") + number_after(&errors, "trimtab: ");
    let advice = number_after(&errors, "raise --device-memory to at least ");
    assert_eq!(advice, taken_and_asked, "{errors}");
    assert!(advice > refused, "{errors}");
    stdout(&run(advice));
    advice
}

/// Goal: a budget that is too small is refused with what was asked for, what is taken, the budget and
/// how much would do; following the advice once ends at a search whose answer is that of a large budget,
/// and a little less than that is refused.
#[test]
fn the_advice_about_device_memory_leads_to_what_is_enough() {
    let enough = enough(&within);
    assert_eq!(stdout(&within(enough)), stdout(&within(1 << 30)));
    assert!(!within(enough / 2).status.success());
}

/// Goal: so it is for every command, and for models whose matrices are filled up.
#[test]
fn the_advice_is_enough_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = folder.path().join("pairs.jsonl");
    std::fs::write(&pairs, "{\"prompt\":\"The film\",\"response\":\" is\"}\n").unwrap();
    let shipped = |name: &str| format!("{}/models/{name}", env!("CARGO_MANIFEST_DIR"));
    let (base, tuned, untuned) = (shipped("base"), shipped("tuned"), shipped("untuned"));
    let pair = ["--tuned", &tuned, "--untuned", &untuned];
    let few = ["--max-new-tokens", "2"];
    let once = ["--base", &base, "--batch", "1,2", "--repeat", "1", "--prompt-len", "4"];
    for command in [
        [&["search", "--base", &base, "--prompt", "hi"], &pair[..], &few].concat(),
        [&["score", "--input", pairs.to_str().unwrap()], &pair[..]].concat(),
        [&["bench", "decode"], &once[..], &few].concat(),
        [&["bench", "score"], &once[..]].concat(),
    ] {
        enough(&|budget| {
            trimtab(&[&command[..], &["--device-memory", &budget.to_string()]].concat())
        });
    }
    if device() == "cpu" {
        // It would take minutes on the emulator.
        enough(&|budget| trimtab(&["demo", "--device-memory", &budget.to_string()]));
    }
}

/// Goal: every command that computes knows the flag, and so does the environment; what is not a
/// number is refused by name.
#[test]
fn every_command_has_a_budget() {
    let (tuned, untuned) = (model("gpt2_tuned"), model("gpt2"));
    let pair = ["--tuned", &tuned, "--untuned", &untuned];
    for command in [
        &["search", "--prompt", "x", "--base", &untuned][..],
        &["score", "--input", "-"],
        &["serve", "--base", &untuned, "--port", "0"],
        &["stdio", "--base", &untuned],
    ] {
        let flags = [command, &pair, &["--device-memory", "2K"]].concat();
        assert_refused(&trimtab(&flags), "--device-memory to at least");
    }
    assert_refused(&trimtab(&["demo", "--device-memory", "2K"]), "--device-memory to at least");
    assert_refused(&search(&["--prompt", "x", "--device-memory", "much"]), "--device-memory");
    let output = Command::new(env!("CARGO_BIN_EXE_trimtab"))
        .args(guided())
        .args(["--prompt", "x"])
        .env("TRIMTAB_DEVICE", device())
        .env("TRIMTAB_DEVICE_MEMORY", "2K")
        .output()
        .unwrap();
    assert_refused(&output, "--device-memory to at least");
}

/// Goal: people are told what may be taken, and what was.
#[test]
fn the_budget_is_told() {
    let output = trimtab(&["devices"]);
    assert!(number_after(&stdout(&output), "--device-memory ") > 1 << 20);
    let output = within(1 << 30);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains(" of 1.0 GiB of memory"), "{errors}");
}
