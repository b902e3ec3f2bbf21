//! The gain: against its definition, and incremental scoring against scoring at once.
#![allow(clippy::unwrap_used)]

mod oracle;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use oracle::Oracle;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use trimtab::backend::Backend;
use trimtab::backend::cpu::CpuBackend;
use trimtab::backend::cuda::CudaBackend;
use trimtab::engine::{Limits, Pair};
use trimtab::guide::{Guide, GuideTokens, PairGuide, Score, Scoring, WeightedPair};
use trimtab::kv_cache::Lifetime;
use trimtab::proposer::{Finish, Response};
use trimtab::text::{Bos, Prompt, PromptFormat, Template, Tokenizer};

/// Runs a block on the CPU, and where `TRIMTAB_TEST_DEVICE` names another device there too.
macro_rules! on_every_device {
    (|$backend:ident| $body:block) => {{
        {
            let $backend = Arc::new(CpuBackend::new(Some(1)).unwrap());
            $body
        }
        match std::env::var("TRIMTAB_TEST_DEVICE").as_deref() {
            Ok("cuda") => {
                let $backend = Arc::new(CudaBackend::open().unwrap());
                $body
            }
            Ok("emulator") => {
                let $backend = Arc::new(CudaBackend::emulated(1).unwrap());
                $body
            }
            _ => {}
        }
    }};
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn weighted<B: Backend>(
    backend: &Arc<B>,
    tuned: &str,
    untuned: &str,
    weight: f64,
    tokens: GuideTokens,
) -> WeightedPair<B> {
    let limits = Limits { pages: 512, rows: 64, logit_rows: 1 };
    let tokenizer = Arc::new(Tokenizer::open(&folder(tuned)).unwrap());
    WeightedPair {
        pair: Arc::new(Mutex::new(
            Pair::open(backend, &folder(tuned), &folder(untuned), limits, 0).unwrap(),
        )),
        weight,
        eos: tokenizer.eos(),
        longest_token: tokenizer.longest_token(),
        format: PromptFormat {
            tokenizer,
            template: Template::default(),
            chat: false,
            system: None,
            date: None,
            bos: Bos::Never,
        },
        tokens,
    }
}

fn guide<B: Backend>(
    backend: &Arc<B>,
    tuned: &str,
    untuned: &str,
    tokens: GuideTokens,
) -> PairGuide<B> {
    PairGuide::new(vec![weighted(backend, tuned, untuned, 1.0, tokens)], None)
}

const LIFE: Lifetime = Lifetime { response: 60, chunk: 60, beams: 1, candidates: 1 };

/// Scores the responses one after the other in one state, as chunks of a search are.
fn scores<B: Backend>(
    guide: &mut PairGuide<B>,
    prompt: &str,
    responses: &[Response],
) -> Vec<Score> {
    let prompt = guide.prepare(&Prompt::Text(prompt.into()), &LIFE).unwrap();
    let mut state = guide.open(&[&prompt]).unwrap().remove(0);
    responses
        .iter()
        .map(|response| {
            let mut items = [Scoring { state: &mut state, response }];
            guide.score(&mut items).unwrap().remove(0).unwrap()
        })
        .collect()
}

fn text_response(text: &[u8], finish: Option<Finish>) -> Response {
    Response { tokens: vec![], text: text.to_vec(), stop: None, finish }
}

/// Goal: the gain of whole texts is the paper's, computed by transformers in float64.
///
/// Tolerance: as in tests/models.rs, per token and model; the oracle almost exactly (2e-5 per
/// token), a device within 0.2 per token, and 0.1 in the mean over a text.
#[test]
fn gains_agree_with_the_reference_definition() {
    let text = std::fs::read_to_string(folder("gains.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 20);
    let oracle = Arc::new(Oracle);
    on_every_device!(|device| {
        for names in [["gpt2_tuned", "gpt2"], ["llama_tuned", "llama"]] {
            let mut on_device = guide(&device, names[0], names[1], GuideTokens::Text);
            let mut on_oracle = guide(&oracle, names[0], names[1], GuideTokens::Text);
            for case in cases.iter().filter(|case| case["tuned"] == names[0]) {
                let (prompt, response) =
                    (case["prompt"].as_str().unwrap(), case["response"].as_str().unwrap());
                let finish = Some(if case["eos"] == true { Finish::Eos } else { Finish::Length });
                let response = [text_response(response.as_bytes(), finish)];
                let tokens = case["tokens"].as_u64().unwrap() as usize;
                for (score, per_token) in [
                    (scores(&mut on_oracle, prompt, &response)[0], 2e-5),
                    (scores(&mut on_device, prompt, &response)[0], 0.1),
                ] {
                    assert_eq!(score.tokens, tokens, "{case}");
                    let bound = per_token * tokens as f64;
                    for (ours, field) in [
                        (score.logp_tuned, "logp_tuned"),
                        (score.logp_untuned, "logp_untuned"),
                        (score.gain, "gain"),
                    ] {
                        let theirs = case[field].as_f64().unwrap();
                        assert!((ours - theirs).abs() <= 2.0 * bound, "{field} {ours}: {case}");
                    }
                }
            }
        }
    });
}

/// Goal: however a text is cut into chunks, also inside a character, its last score is that of
/// the whole text, to the bit; and every chunk's score is that of the text so far.
#[test]
fn text_scores_do_not_depend_on_the_chunks() {
    on_every_device!(|device| {
        for (tuned, untuned) in [("gpt2_tuned", "gpt2"), ("llama_tuned", "llama")] {
            let mut guide = guide(&device, tuned, untuned, GuideTokens::Text);
            let mut runner = proptest::test_runner::TestRunner::deterministic();
            let cuts = prop::collection::vec(0..60usize, 0..8);
            let texts = prop::sample::select(vec![
                " a quiet harbour, then – 你好 🎬 – a storm.",
                "é tabs\tand\nlines; the the the the the the",
                "👩‍👩‍👧 family ",
            ]);
            let prompts = prop::sample::select(vec!["The film opens on", "x ", "naïve 🎬"]);
            let (proptest_config, strategy) = (40, (cuts, texts, prompts));
            for _ in 0..proptest_config {
                let (mut cuts, text, prompt) = strategy.new_tree(&mut runner).unwrap().current();
                let bytes = text.as_bytes();
                cuts.retain(|&cut| cut < bytes.len());
                cuts.sort_unstable();
                let mut responses: Vec<Response> =
                    cuts.iter().map(|&cut| text_response(&bytes[..cut], None)).collect();
                responses.push(text_response(bytes, Some(Finish::Eos)));
                for (score, response) in
                    scores(&mut guide, prompt, &responses).into_iter().zip(&responses)
                {
                    let alone = scores(&mut guide, prompt, std::slice::from_ref(response))[0];
                    assert_eq!(score, alone, "{prompt:?} {text:?} cut at {cuts:?}");
                }
            }
        }
    });
}

/// Goal: the same for tokens, with forks on the way, and each token is run once.
#[test]
fn token_scores_do_not_depend_on_the_chunks_and_every_token_is_run_once() {
    on_every_device!(|device| {
        let mut guide = guide(&device, "gpt2_tuned", "gpt2", GuideTokens::Ids);
        let tokens: Vec<u32> = (0..45).map(|i| (i * 37 + 5) % 300).collect();
        let response = |count: usize, finish| Response {
            tokens: tokens[..count].to_vec(),
            finish,
            ..Response::default()
        };
        let prompt = "The film opens on";
        let prompt_tokens =
            Tokenizer::open(&folder("gpt2")).unwrap().encode(prompt, Bos::Never).unwrap().len();
        let cuts = [1, 2, 9, 16, 17, 33, 45];
        let before = guide.rows_run();
        let chunks: Vec<Response> = cuts.map(|cut| response(cut, None)).to_vec();
        let incremental = scores(&mut guide, prompt, &chunks);
        assert_eq!(guide.rows_run() - before, (prompt_tokens + 45 - 1) as u64, "work ratio 1.0");
        for (cut, score) in cuts.into_iter().zip(&incremental) {
            assert_eq!(scores(&mut guide, prompt, &[response(cut, None)])[0], *score);
            assert_eq!(score.tokens, cut);
        }

        // Two forks of one state go different ways; neither disturbs the other.
        let prepared = guide.prepare(&Prompt::Text(prompt.into()), &LIFE).unwrap();
        let mut left = guide.open(&[&prepared]).unwrap().remove(0);
        let common = response(20, None);
        guide.score(&mut [Scoring { state: &mut left, response: &common }]).unwrap();
        let mut right = left.clone();
        let mut other = response(20, None);
        other.tokens.extend([7, 8, 9]);
        let whole = response(40, None);
        let scored = guide
            .score(&mut [
                Scoring { state: &mut left, response: &whole },
                Scoring { state: &mut right, response: &other },
            ])
            .unwrap();
        let together: Vec<Score> = scored.into_iter().map(Result::unwrap).collect();
        assert_eq!(together[0], scores(&mut guide, prompt, &[whole])[0]);
        assert_eq!(together[1], scores(&mut guide, prompt, &[other])[0]);
    });
}

/// Goal: an end-of-sequence token counts when the response has ended, and not when it was cut;
/// with compat it counts for both.
#[test]
fn the_end_counts_only_when_there_is_one() {
    on_every_device!(|device| {
        let ended = text_response(b" a storm.", Some(Finish::Eos));
        let cut = text_response(b" a storm.", Some(Finish::Length));
        let open = text_response(b" a storm.", None);
        let mut plain = guide(&device, "gpt2_tuned", "gpt2", GuideTokens::Text);
        fn score<B: Backend>(guide: &mut PairGuide<B>, response: &Response) -> Score {
            scores(guide, "The film", std::slice::from_ref(response))[0]
        }
        let (e, c, o) =
            (score(&mut plain, &ended), score(&mut plain, &cut), score(&mut plain, &open));
        assert_eq!(c, o);
        assert_eq!(e.tokens, c.tokens + 1);
        let pair = weighted(&device, "gpt2_tuned", "gpt2", 1.0, GuideTokens::Text);
        let base = pair.format.tokenizer.clone();
        let tokens = base.encode(" a storm.", Bos::Never).unwrap();
        let mut compat = PairGuide::new(vec![pair], Some(base));
        assert_eq!(score(&mut compat, &cut), e, "a text that somebody else wrote has no tokens");
        assert_eq!(score(&mut compat, &Response { tokens: tokens.clone(), ..cut }), e);
        assert_eq!(score(&mut compat, &Response { tokens, ..open }), o);
    });
}

/// Goal: the gains of several pairs add up with their weights, tokenizers notwithstanding.
#[test]
fn gains_of_weighted_pairs_add_up() {
    on_every_device!(|device| {
        let response = text_response(" a quiet harbour 你好".as_bytes(), Some(Finish::Length));
        let one = |tuned: &str, untuned: &str| {
            let mut guide = guide(&device, tuned, untuned, GuideTokens::Text);
            scores(&mut guide, "The film", std::slice::from_ref(&response))[0]
        };
        let (a, b) = (one("gpt2_tuned", "gpt2"), one("llama_tuned", "llama"));
        let pairs = vec![
            weighted(&device, "gpt2_tuned", "gpt2", 0.5, GuideTokens::Text),
            weighted(&device, "llama_tuned", "llama", -2.0, GuideTokens::Text),
        ];
        let mut both = PairGuide::new(pairs, None);
        let sum = scores(&mut both, "The film", std::slice::from_ref(&response))[0];
        assert!((sum.gain - (0.5 * a.gain - 2.0 * b.gain)).abs() < 1e-9);
        assert!((sum.logp_tuned - (0.5 * a.logp_tuned - 2.0 * b.logp_tuned)).abs() < 1e-9);
    });
}

/// Goal: a chunk of more tokens than its hypothesis may keep is kept page by page: the chunks after it do not
/// run all of it again, and the scores are the same to the bit.
#[test]
fn what_outgrows_its_chunk_is_caught_up_with() {
    on_every_device!(|device| {
        let mut guide = guide(&device, "llama_tuned", "llama", GuideTokens::Text);
        let life = Lifetime { response: 60, chunk: 2, beams: 1, candidates: 1 };
        let prompt = guide.prepare(&Prompt::Text("The film".into()), &life).unwrap();
        let mut state = guide.open(&[&prompt]).unwrap().remove(0);
        // A token for each byte.
        for (chunk, count) in [11, 12, 13, 14, 15].into_iter().enumerate() {
            let response = text_response("龘".repeat(count).as_bytes(), None);
            let before = guide.rows_run();
            let mut items = [Scoring { state: &mut state, response: &response }];
            let score = guide.score(&mut items).unwrap().remove(0).unwrap();
            let run = guide.rows_run() - before;
            assert!(score.tokens >= 3 * count, "{} tokens", score.tokens);
            assert!(chunk < 2 || run <= 4, "{run} rows for a few new tokens");
            assert_eq!(score, scores(&mut guide, "The film", &[response])[0]);
        }
    });
}

/// Goal: half of a cache is not the whole: where a pair also proposes, a prompt that its part for scoring cannot
/// hold is refused, and the message is of the cache.
#[test]
fn what_the_cache_cannot_hold_is_refused_beforehand() {
    let device = Arc::new(CpuBackend::new(Some(1)).unwrap());
    let mut pair = weighted(&device, "gpt2_tuned", "gpt2", 1.0, GuideTokens::Text);
    let limits = Limits { pages: 8, rows: 64, logit_rows: 1 };
    let (tuned, untuned) = (folder("gpt2_tuned"), folder("gpt2"));
    pair.pair = Arc::new(Mutex::new(Pair::open(&device, &tuned, &untuned, limits, 4).unwrap()));
    let mut guide = PairGuide::new(vec![pair], None);
    let life = Lifetime::given(3);
    let prompt = |words: usize| Prompt::Text(" film".repeat(words));
    let refused = guide.prepare(&prompt(50), &life).err().unwrap().to_string();
    assert!(refused.contains("guide model's cache holds 64 tokens"), "{refused}");
    assert!(refused.contains("--kv-memory"), "{refused}");
    let fits = guide.prepare(&prompt(25), &life).unwrap();
    assert!(guide.open(&[&fits]).is_ok());
}

/// Goal: an end is never left out of a score in silence.
#[test]
fn an_end_that_cannot_be_scored_is_an_error() {
    let device = Arc::new(CpuBackend::new(Some(1)).unwrap());
    let with = |tuned, untuned| weighted(&device, tuned, untuned, 1.0, GuideTokens::Text);
    let endless = WeightedPair { eos: None, ..with("llama_tuned", "llama") };
    let mut guide = PairGuide::new(vec![with("gpt2_tuned", "gpt2"), endless], None);
    let prompt = guide.prepare(&Prompt::Text("The film".into()), &LIFE).unwrap();
    let mut state = guide.open(&[&prompt]).unwrap().remove(0);
    let mut score = |finish| {
        let response = text_response(b" is", Some(finish));
        guide.score(&mut [Scoring { state: &mut state, response: &response }]).unwrap().remove(0)
    };
    assert!(score(Finish::Length).is_ok());
    let error = score(Finish::Eos).unwrap_err().to_string();
    assert!(error.contains("no end-of-sequence token"), "{error}");
}

/// Goal: a text that outgrows the guide's context fails by itself, and says so.
#[test]
fn a_text_beyond_the_context_fails_alone() {
    on_every_device!(|device| {
        let mut guide = guide(&device, "gpt2_tuned", "gpt2", GuideTokens::Text);
        let prompt = guide.prepare(&Prompt::Text("The film".into()), &LIFE).unwrap();
        let mut states = guide.open(&[&prompt, &prompt]).unwrap();
        let (long, short) =
            (text_response("你好".repeat(99).as_bytes(), None), text_response(b" is", None));
        let (first, second) = states.split_at_mut(1);
        let mut items = [
            Scoring { state: &mut first[0], response: &long },
            Scoring { state: &mut second[0], response: &short },
        ];
        let results = guide.score(&mut items).unwrap();
        let error = results[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("guide model's context holds 128 tokens"), "{error}");
        assert!(results[1].is_ok());
    });
}

/// Goal: a text that one of several pairs refuses takes no page and leaves the cache as it was, and the
/// pairs behind it run nothing of it: the same state scores the next text as a fresh one does.
#[test]
fn a_refused_text_leaves_no_trace() {
    on_every_device!(|device| {
        let with = |tuned, untuned| weighted(&device, tuned, untuned, 1.0, GuideTokens::Text);
        let (small, large) = (with("gpt2_tuned", "gpt2"), with("llama_tuned", "llama"));
        let behind = large.pair.clone();
        let rows_run = || behind.lock().unwrap().tuned.rows_run();
        let mut guide = PairGuide::new(vec![small, large], None);
        let prompt = guide.prepare(&Prompt::Text("The film".into()), &LIFE).unwrap();
        let all = guide.pages_free();
        let mut state = guide.open(&[&prompt]).unwrap().remove(0);
        let begun = " is a storm";
        let response = text_response(begun.as_bytes(), None);
        guide.score(&mut [Scoring { state: &mut state, response: &response }]).unwrap();
        let (free, rows) = (guide.pages_free(), rows_run());
        let long = format!("{begun}{}", "你好".repeat(99));
        let response = text_response(long.as_bytes(), None);
        // As a fork that loses, and in its parent's own state.
        for state in [&mut state.clone(), &mut state] {
            let mut items = [Scoring { state, response: &response }];
            let error = guide.score(&mut items).unwrap().remove(0).unwrap_err();
            assert!(error.is_of_the_text(), "{error}");
            assert!(error.to_string().contains("context holds 128 tokens"), "{error}");
        }
        assert_eq!((guide.pages_free(), rows_run()), (free, rows));
        let next = text_response(b" is a storm and silence", Some(Finish::Eos));
        let mut items = [Scoring { state: &mut state, response: &next }];
        let after = guide.score(&mut items).unwrap().remove(0).unwrap();
        drop(state);
        assert_eq!(guide.pages_free(), all, "pages were lost");
        assert_eq!(after, scores(&mut guide, "The film", &[next])[0]);
    });
}

/// Goal: a response that somebody else wrote is read as text also by a guide that takes tokens, and
/// the number of its bytes does not count against the context.
#[test]
fn a_given_response_is_read_as_text() {
    on_every_device!(|device| {
        let response = text_response(" quiet harbour".repeat(6).as_bytes(), Some(Finish::Eos));
        let life = Lifetime::given(200);
        let prompt = "The film opens on a quiet harbour.";
        let [ids, text] = [GuideTokens::Ids, GuideTokens::Text].map(|tokens| {
            let mut guide = guide(&device, "gpt2_tuned", "gpt2", tokens);
            let prompt = guide.prepare(&Prompt::Text(prompt.into()), &life).unwrap();
            let mut state = guide.open(&[&prompt]).unwrap().remove(0);
            let mut items = [Scoring { state: &mut state, response: &response }];
            guide.score(&mut items).unwrap().remove(0).unwrap()
        });
        assert_eq!(ids, text);
        assert!(ids.tokens > 12, "{}", ids.tokens);
    });
}
