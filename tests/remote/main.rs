//! A base model elsewhere: against a server that writes by a script, and fails on purpose.
#![allow(clippy::unwrap_used)]

mod cli;
#[path = "../hostile/damage.rs"]
mod damage;
mod faults;
mod serve;
mod server;
#[path = "../toy/mod.rs"]
mod toy;

use std::time::Duration;

use server::{Asked, Reply, Server, completion, scripted};
use toy::{Judge, settings};
use trimtab::error::Result;
use trimtab::guide::{Guide, Score, Scoring};
use trimtab::kv_cache::Lifetime;
use trimtab::proposer::{Endpoint, Finish, Prompt, RemoteFormat, RemoteProposer, UNTOLD};
use trimtab::scheduler::{Finished, Scheduler};
use trimtab::search::{Outcome, Settings};
use trimtab::text::{Bos, PromptFormat, StopStrings, Template, Tokenizer};

/// A guide that reads text.
#[derive(Default)]
struct Reader(Judge);

impl Guide for Reader {
    type Prompt = ();
    type State = ();

    fn reader(&self) -> trimtab::guide::Reader<()> {
        std::sync::Arc::new(|_, _, _| Ok(()))
    }

    fn pages_needed(&self, _: &(), _: &Lifetime) -> Vec<usize> {
        vec![]
    }

    fn page_capacity(&self) -> Vec<usize> {
        vec![]
    }

    fn open(&mut self, prompts: &[&()]) -> Result<Vec<()>> {
        Ok(vec![(); prompts.len()])
    }

    fn score(&mut self, items: &mut [Scoring<'_, ()>]) -> Result<Vec<Result<Score>>> {
        let score = |item: &Scoring<'_, ()>| {
            let mut letters: Vec<u32> =
                item.response.text.iter().map(|&byte| u32::from(byte)).collect();
            letters.extend((item.response.finish == Some(Finish::Eos)).then_some(0));
            let gain = self.0.gain(&letters);
            Ok(Score { logp_tuned: gain, logp_untuned: 0.0, gain, tokens: letters.len() })
        };
        Ok(items.iter().map(score).collect())
    }
}

fn endpoint(server: &Server) -> Endpoint {
    Endpoint {
        url: server.url.clone(),
        model: "m".into(),
        key: None,
        timeout: Duration::from_secs(20),
        retries: 4,
        backoff: Duration::from_millis(1),
        requests: 8,
        choices: usize::MAX,
        trouble: |_| {},
    }
}

fn scheduler(endpoint: Endpoint, in_flight: usize) -> Scheduler<RemoteProposer, Reader> {
    let template = Template::parse("--base-template", "Q: {prompt} A:").unwrap();
    let proposer = RemoteProposer::new(endpoint, RemoteFormat::Template(template)).unwrap();
    Scheduler::new(proposer, Reader::default(), in_flight)
}

/// Runs searches together; results in order.
fn run_all(endpoint: Endpoint, jobs: &[(&str, Settings)]) -> Vec<Result<Outcome>> {
    let mut scheduler = scheduler(endpoint, jobs.len());
    for (id, (prompt, settings)) in jobs.iter().enumerate() {
        scheduler.submit(id, &Prompt::Text((*prompt).into()), settings.clone()).unwrap();
    }
    let mut finished: Vec<Finished> = Vec::new();
    while scheduler.pending() > 0 {
        finished.extend(scheduler.tick().unwrap());
    }
    finished.sort_by_key(|done| done.id);
    finished.into_iter().map(|done| done.result).collect()
}

fn run(endpoint: Endpoint, prompt: &str, settings: Settings) -> Result<Outcome> {
    run_all(endpoint, &[(prompt, settings)]).remove(0)
}

/// All that a search says, to compare with another's.
fn told(outcome: &Outcome) -> (String, usize, f64, String) {
    let text = outcome.response.to_text();
    let trace = serde_json::to_string(&outcome.trace).unwrap();
    (text, outcome.response.tokens.len(), outcome.score.gain, trace)
}

/// Goal: one request per live beam with n = K and max_tokens = L, all W·K in the first step; each
/// continues the prompt and what the beam has written, and the answer is one of its choices.
#[test]
fn each_live_beam_is_one_request() {
    let server = scripted();
    let outcome = run(endpoint(&server), "Why?", settings(3, 4, Some(5), 18, 7)).unwrap();
    let asked = server.asked();
    assert_eq!((asked[0].prompt(), asked[0].number("n")), ("Q: Why? A:", 12));
    assert_eq!(asked[0].path, "/v1/completions");
    assert_eq!(asked[0].body["model"], "m");
    assert_eq!(asked[0].body["temperature"], 1.0);
    assert_eq!(asked[0].body.get("top_k"), None, "0 says nothing");
    let mut beams: Vec<(usize, String, bool)> = vec![];
    let mut seen = 1;
    for (step, chunk) in outcome.trace.iter().enumerate() {
        if step > 0 {
            let live: Vec<_> = beams.iter().filter(|(_, _, ended)| !ended).collect();
            let mut expected: Vec<String> =
                live.iter().map(|(_, text, _)| format!("Q: Why? A:{text}")).collect();
            let mut prompts: Vec<String> = Vec::new();
            for request in &asked[seen..seen + live.len()] {
                assert_eq!(request.number("n"), 4);
                assert_eq!(request.number("max_tokens"), if step == 3 { 3 } else { 5 });
                prompts.push(request.prompt().into());
            }
            seen += live.len();
            expected.sort();
            prompts.sort();
            assert_eq!(prompts, expected, "step {step}");
        }
        let mut kept: Vec<_> = chunk
            .candidates
            .iter()
            .filter_map(|candidate| {
                let before = candidate.parent.map_or("", |parent| &beams[parent].1);
                let text = format!("{before}{}", candidate.text);
                Some((candidate.rank?, text, candidate.finish_reason.is_some()))
            })
            .collect();
        kept.sort();
        beams = kept;
    }
    assert_eq!(seen, asked.len(), "nothing else was asked");
    assert_eq!(beams[0].1, outcome.response.to_text());
    assert!(outcome.response.tokens.iter().all(|&token| token == UNTOLD));
    let mut seeds: Vec<usize> = asked.iter().map(|request| request.number("seed")).collect();
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), asked.len(), "each request has random numbers of its own");
}

/// Goal: the same seed gives the same bytes, alone and among others with other chunk lengths, and
/// another seed gives others.
#[test]
fn a_search_does_not_notice_its_neighbours() {
    let server = scripted();
    let jobs: Vec<(&str, Settings)> = ["Why?", "How?", "Why?", "When?", "Why?"]
        .into_iter()
        .zip([Some(5), Some(3), None, Some(1), Some(4)])
        .enumerate()
        .map(|(i, (prompt, l))| (prompt, settings(1 + i % 3, 2, l, 9, 3)))
        .collect();
    let together = run_all(endpoint(&server), &jobs);
    for ((prompt, settings), together) in jobs.iter().zip(&together) {
        let alone = run(endpoint(&server), prompt, settings.clone()).unwrap();
        assert_eq!(told(together.as_ref().unwrap()), told(&alone));
        let other = run(endpoint(&server), prompt, Settings { seed: 99, ..settings.clone() });
        assert_ne!(told(&other.unwrap()).3, told(&alone).3);
    }
}

/// Goal: requests of all searches run at the same time, and not more of them than allowed.
#[test]
fn requests_run_at_the_same_time_up_to_a_limit() {
    let server = Server::new(|asked| {
        Reply::Late(Duration::from_millis(30), completion(asked, asked.number("n")))
    });
    let jobs: Vec<(&str, Settings)> =
        ["a", "b", "c", "d", "e", "f"].map(|p| (p, settings(2, 2, Some(2), 4, 1))).to_vec();
    let limited = Endpoint { requests: 4, ..endpoint(&server) };
    assert!(run_all(limited, &jobs).iter().all(|result| result.is_ok()));
    assert_eq!(server.most_at_once(), 4);
}

/// Goal: a server that gives fewer choices than asked for, down to one, is asked for the others,
/// and for no others; every candidate is written with random numbers of its own.
#[test]
fn missing_choices_are_asked_for_again() {
    for most in [1, 3] {
        let server = Server::new(move |asked| {
            Reply::Json(200, completion(asked, asked.number("n").min(most)))
        });
        let outcome = run(endpoint(&server), "Why?", settings(2, 4, Some(6), 12, 5)).unwrap();
        let asked = server.asked();
        let given: usize = asked.iter().map(|request| request.number("n").min(most)).sum();
        let live: usize = outcome
            .trace
            .iter()
            .map(|chunk| chunk.candidates.iter().filter(|candidate| !candidate.carried).count())
            .sum();
        assert_eq!(given, live, "each candidate was given once");
        assert_eq!(asked[0].number("n"), 8);
        assert!(asked[1..].iter().all(|request| request.number("n") <= 7.min(8 - most).max(most)));
        let first = &outcome.trace[0].candidates;
        let distinct = first.iter().filter(|candidate| candidate.duplicate_of.is_none()).count();
        assert!(distinct > 4, "{distinct} of 8 differ");
    }
}

/// Goal: no request asks for more choices than allowed.
#[test]
fn choices_of_a_request_can_be_limited() {
    let server = scripted();
    let limited = Endpoint { choices: 3, ..endpoint(&server) };
    let outcome = run(limited, "Why?", settings(2, 4, Some(6), 12, 5)).unwrap();
    let mut first: Vec<usize> = server.asked()[..3].iter().map(|a| a.number("n")).collect();
    first.sort_unstable();
    assert_eq!(first, [2, 3, 3]);
    assert!(server.asked().iter().all(|asked| asked.number("n") <= 3));
    assert_eq!(outcome.trace[0].candidates.len(), 8);
}

/// A server whose choices all are these.
fn always(text: &'static str, reason: &'static str) -> Server {
    Server::new(move |asked| {
        let choice = serde_json::json!({"text": text, "finish_reason": reason});
        Reply::Json(200, serde_json::json!({"choices": vec![choice; asked.number("n")]}))
    })
}

/// Goal: text that ends, ends early, is empty, or is cut within a character.
#[test]
fn every_kind_of_text_is_taken_for_what_it_is() {
    let one = || settings(1, 1, Some(4), 10, 0);
    let ended = run(endpoint(&always(" yes.", "stop")), "q", one()).unwrap();
    assert_eq!((ended.finish, ended.response.to_text().as_str()), (Finish::Eos, " yes."));
    let nothing = run(endpoint(&always("", "stop")), "q", one()).unwrap();
    assert_eq!((nothing.finish, nothing.response.to_text().as_str()), (Finish::Eos, ""));
    assert_eq!(nothing.trace.len(), 1);

    let server = always("", "length");
    let never = run(endpoint(&server), "q", one()).unwrap();
    assert_eq!((never.finish, never.response.tokens.len()), (Finish::Length, 10));
    let lengths: Vec<usize> = server.asked().iter().map(|a| a.number("max_tokens")).collect();
    assert_eq!(lengths, [4, 4, 2]);

    let server = always(" é\u{fffd}", "length");
    let cut = run(endpoint(&server), "q", one()).unwrap();
    assert_eq!(cut.response.to_text(), " é é é");
    assert_eq!(server.asked()[1].prompt(), "Q: q A: é", "the broken character is not sent back");
    let kept = run(endpoint(&always(" é\u{fffd}", "stop")), "q", one()).unwrap();
    assert_eq!(kept.response.to_text(), " é\u{fffd}", "the end of a text is what it is");
}

/// Goal: tokens are counted as far as a server tells: a cut text has all that were asked for.
#[test]
fn usage_counts_the_tokens_of_texts_that_ended() {
    let server = Server::new(|asked| {
        let choices = [(" a b c d", "length"), (" a b", "stop"), (" c d", "stop")]
            .map(|(text, reason)| serde_json::json!({"text": text, "finish_reason": reason}));
        assert_eq!(asked.number("n"), 3);
        Reply::Json(
            200,
            serde_json::json!({"choices": choices, "usage": {"completion_tokens": 10}}),
        )
    });
    let outcome = run(endpoint(&server), "q", settings(1, 3, Some(4), 4, 0)).unwrap();
    let tokens: Vec<usize> = outcome.trace[0].candidates.iter().map(|c| c.tokens).collect();
    assert_eq!(tokens, [4, 3, 3]);
}

/// Goal: stop strings are found in what came, also across chunks, and end the text.
#[test]
fn stop_strings_are_found_here() {
    let stop = StopStrings::new(vec!["b a".into()]).unwrap();
    let server = always(" a b", "length");
    let stopped = Settings { stop, ..settings(1, 1, Some(2), 10, 0) };
    let outcome = run(endpoint(&server), "q", stopped).unwrap();
    assert_eq!(outcome.finish, Finish::Stop);
    assert_eq!(outcome.response.to_text(), " a ");
    assert_eq!(server.asked().len(), 2);
}

/// Goal: greedy continuations are asked for once, since many servers refuse to write them twice.
#[test]
fn temperature_zero_asks_for_one_choice() {
    let server = scripted();
    let mut greedy = settings(2, 3, Some(4), 8, 0);
    greedy.sampling.temperature = 0.0;
    greedy.sampling.top_k = 50;
    let outcome = run(endpoint(&server), "q", greedy).unwrap();
    assert!(server.asked().iter().all(|request| request.number("n") == 1));
    assert_eq!(server.asked()[0].body["top_k"], 50);
    assert_eq!(outcome.trace[0].candidates.iter().filter(|c| c.rank.is_some()).count(), 1);
}

/// Goal: with a tokenizer, the server can be prompted with tokens, and conversations go through
/// the model's own chat template.
#[test]
fn prompts_may_be_tokens() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama3");
    let tokenizer = std::sync::Arc::new(Tokenizer::open(folder.as_ref()).unwrap());
    let format = PromptFormat { chat: true, ..PromptFormat::new(tokenizer.clone()) };
    for ids in [true, false] {
        let server = scripted();
        let remote = RemoteFormat::Model { format: format.clone(), ids };
        let proposer = RemoteProposer::new(endpoint(&server), remote).unwrap();
        let mut scheduler = Scheduler::new(proposer, Reader::default(), 1);
        let settings = settings(1, 2, Some(3), 6, 0);
        let counted = scheduler.submit(0, &Prompt::Text("Hello".into()), settings).unwrap();
        while scheduler.pending() > 0 {
            scheduler.tick().unwrap();
        }
        let text = format.render(&Prompt::Text("Hello".into())).unwrap();
        assert!(text.text.contains("<|start_header_id|>user"));
        let tokens = tokenizer.encode(&text.text, Bos::Auto).unwrap();
        assert_eq!(counted, Some(tokens.len()));
        let expected = if ids { serde_json::json!(tokens) } else { serde_json::json!(text.text) };
        assert_eq!(server.asked()[0].body["prompt"], expected);
    }
}

/// A conversation needs the base model's chat template, and an empty prompt is refused.
#[test]
fn prompts_that_cannot_be_sent_are_refused() {
    let server = scripted();
    let mut scheduler = scheduler(endpoint(&server), 1);
    let chat: Prompt = serde_json::from_str("[{\"role\":\"user\",\"content\":\"x\"}]").unwrap();
    let error = scheduler.submit(0, &chat, settings(1, 1, None, 5, 0)).unwrap_err();
    assert!(error.to_string().starts_with("--base-tokenizer"), "{error}");
    let plain = RemoteFormat::Template(Template::default());
    let proposer = RemoteProposer::new(endpoint(&server), plain).unwrap();
    let mut scheduler = Scheduler::new(proposer, Reader::default(), 1);
    let error =
        scheduler.submit(0, &Prompt::Text("".into()), settings(1, 1, None, 5, 0)).unwrap_err();
    assert!(error.to_string().contains("prompt is empty"), "{error}");
    assert!(server.asked().is_empty());
}
