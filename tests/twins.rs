//! Models that have one tokenizer and tables of different sizes: a token added to one of them, or rows that
//! no token has.
#![allow(clippy::unwrap_used)]

mod oracle;
mod resized;

use std::path::Path;
use std::sync::{Arc, Mutex};

use oracle::Oracle;
use resized::{add_token, resized};
use trimtab::backend::Backend;
use trimtab::backend::cpu::CpuBackend;
use trimtab::backend::cuda::CudaBackend;
use trimtab::engine::{Engine, Limits, Model, Pair, Span};
use trimtab::error::Result;
use trimtab::guide::{Guide, GuideTokens, PairGuide, Score, Scoring, WeightedPair};
use trimtab::kv_cache::{Lifetime, PagePool};
use trimtab::philox::Draw;
use trimtab::proposer::{
    Draft, Finish, Guidance, LocalProposer, Prompt, Proposer, Response, Sampling, StopStrings,
};
use trimtab::text::{Bos, PromptFormat, Template, Tokenizer};

const LIMITS: Limits = Limits { pages: 128, rows: 64, logit_rows: 8 };
const LIFE: Lifetime = Lifetime { response: 40, chunk: 40, beams: 1, candidates: 1 };

/// Runs a block on the CPU, on the emulator, and on the GPU where `TRIMTAB_TEST_DEVICE` is `cuda`.
macro_rules! on_every_device {
    (|$backend:ident| $body:block) => {{
        {
            let $backend = Arc::new(CpuBackend::new(Some(1)).unwrap());
            $body
        }
        {
            let $backend = Arc::new(CudaBackend::emulated(1).unwrap());
            $body
        }
        if std::env::var_os("TRIMTAB_TEST_DEVICE").is_some_and(|device| device == "cuda") {
            let $backend = Arc::new(CudaBackend::open().unwrap());
            $body
        }
    }};
}

fn format(folder: &Path) -> PromptFormat {
    let tokenizer = Arc::new(Tokenizer::open(folder).unwrap());
    let template = Template::default();
    PromptFormat { tokenizer, template, chat: false, system: None, date: None, bos: Bos::Never }
}

fn guide<B: Backend>(
    backend: &Arc<B>,
    [tuned, untuned]: [&Path; 2],
    tokens: GuideTokens,
) -> PairGuide<B> {
    let format = format(tuned);
    let pair = Pair::open(backend, tuned, untuned, LIMITS, 0).unwrap();
    PairGuide::new(
        vec![WeightedPair {
            pair: Arc::new(Mutex::new(pair)),
            weight: 1.0,
            eos: format.tokenizer.eos(),
            longest_token: format.tokenizer.longest_token(),
            format,
            tokens,
        }],
        None,
    )
}

fn text(text: &str) -> Response {
    let finish = Some(Finish::Length);
    Response { text: text.as_bytes().to_vec(), finish, ..Response::default() }
}

/// Each response's score, in one call.
fn scores<B: Backend>(
    guide: &mut PairGuide<B>,
    prompt: &str,
    responses: &[Response],
) -> Vec<Result<Score>> {
    let prompt = guide.prepare(&Prompt::Text(prompt.into()), &LIFE).unwrap();
    let mut states = guide.open(&vec![&prompt; responses.len()]).unwrap();
    let items = states.iter_mut().zip(responses);
    let mut items: Vec<_> = items.map(|(state, response)| Scoring { state, response }).collect();
    guide.score(&mut items).unwrap()
}

/// Goal: each softmax is over its model's own rows, also those that no token has: the log-probabilities of
/// either twin are to the bit those that it has beside itself, are the oracle's, and are not those that it
/// would have without the rows.
#[test]
fn each_twin_counts_its_own_rows() {
    let response = [text(" a quiet harbour – 你好")];
    let one =
        |guide: &mut PairGuide<CpuBackend>| scores(guide, "The film", &response).remove(0).unwrap();
    let cpu = Arc::new(CpuBackend::new(Some(1)).unwrap());
    let folders = |more| [resized("gpt2_tuned", more, 0.3), resized("gpt2", more, 0.3)];
    let all = [0, 1, 24].map(folders);
    let alone = |size: usize, which: usize| {
        let folder = all[size][which].path();
        one(&mut guide(&cpu, [folder, folder], GuideTokens::Text)).logp_tuned
    };
    for (tuned, untuned) in [(1, 0), (0, 1), (2, 1), (1, 2), (2, 2), (0, 2)] {
        let pair = [all[tuned][0].path(), all[untuned][1].path()];
        let score = one(&mut guide(&cpu, pair, GuideTokens::Text));
        assert_eq!(score.logp_tuned, alone(tuned, 0), "{tuned}, {untuned}");
        assert_eq!(score.logp_untuned, alone(untuned, 1), "{tuned}, {untuned}");
        let mut exact = guide(&Arc::new(Oracle), pair, GuideTokens::Text);
        let exact = scores(&mut exact, "The film", &response).remove(0).unwrap();
        assert_eq!(score.tokens, exact.tokens);
        let per_token = (score.gain - exact.gain).abs() / score.tokens as f64;
        assert!(per_token < 0.1, "{tuned}, {untuned}: {per_token} per token");
    }
    for which in [0, 1] {
        let [none, more] = [0, 2].map(|size| alone(size, which));
        assert!(none - more > 0.1, "{more} is {none} less the new rows' share");
    }
    on_every_device!(|device| {
        let pair = [all[2][0].path(), all[1][1].path()];
        let on_cpu = one(&mut guide(&cpu, pair, GuideTokens::Text));
        let mut guide = guide(&device, pair, GuideTokens::Text);
        let score = scores(&mut guide, "The film", &response).remove(0).unwrap();
        assert!((score.gain - on_cpu.gain).abs() < 0.2 * score.tokens as f64);
    });
}

/// Goal: a token that one of the twins lacks is named with that twin, whether it is in a prompt, in a
/// text, in another model's ids. The responses beside it are scored as if it were not there.
#[test]
fn a_token_that_a_twin_lacks_fails_its_own_text() {
    let cpu = Arc::new(CpuBackend::new(Some(1)).unwrap());
    let (larger, smaller) = (resized("gpt2_tuned", 1, 0.3), resized("gpt2", 0, 0.3));
    add_token(larger.path(), 400, "[PAD]");
    let beyond = resized("gpt2_tuned", 0, 0.3);
    add_token(beyond.path(), 400, "[PAD]");
    for (tuned, lacks) in [(&larger, "untuned"), (&beyond, "tuned")] {
        let pair = [tuned.path(), smaller.path()];
        let message = format!(
            "the {lacks} model has no token 400 (\"[PAD]\"): its vocabulary has 400 entries"
        );
        let mut texts = guide(&cpu, pair, GuideTokens::Text);
        let refused = texts.prepare(&Prompt::Text("x [PAD] y".into()), &LIFE).err().unwrap();
        assert!(refused.to_string().contains(&message), "{refused}");

        let responses = [text(" is"), text(" is[PAD]"), text(" a storm")];
        let together = scores(&mut texts, "The film", &responses);
        let refused = together[1].as_ref().unwrap_err().to_string();
        assert!(refused.contains(&message), "{refused}");
        let ids = |tokens: &[u32]| Response { tokens: tokens.to_vec(), ..text("") };
        let responses_of_ids = [ids(&[7, 8]), ids(&[7, 400]), ids(&[9])];
        let mut takes_ids = guide(&cpu, pair, GuideTokens::Ids);
        let of_ids = scores(&mut takes_ids, "The film", &responses_of_ids);
        let refused = of_ids[1].as_ref().unwrap_err().to_string();
        assert!(refused.contains(&message), "{refused}");
        for at in [0, 2] {
            let alone = scores(&mut texts, "The film", &responses[at..=at]).remove(0).unwrap();
            assert_eq!(together[at].as_ref().unwrap(), &alone);
            let alone =
                scores(&mut takes_ids, "The film", &responses_of_ids[at..=at]).remove(0).unwrap();
            assert_eq!(of_ids[at].as_ref().unwrap(), &alone);
        }
    }
}

/// The logits of the last tokens of three texts, shifted by a pair.
fn shifted<B: Backend>(backend: &Arc<B>, [base, tuned, untuned]: [&Path; 3]) -> Vec<f32> {
    let texts: [Vec<u32>; 3] =
        [1, 2, 3].map(|text: u32| (0..4 + 5 * text).map(|i| (i * 37 + text) % 400).collect());
    let model = Model::open(&**backend, base, None).unwrap();
    let mut base = Engine::new(backend.clone(), model, LIMITS).unwrap();
    let mut pair = Pair::open(backend, tuned, untuned, LIMITS, 0).unwrap();
    let pools = [PagePool::new(LIMITS.pages), pair.pages.clone()];
    let sequences = pools.map(|pool| {
        texts.each_ref().map(|text| {
            let mut sequence = pool.sequence();
            sequence.append(text.len()).unwrap();
            sequence
        })
    });
    let spans = |model: usize, last: bool| -> Vec<Span<'_>> {
        let span = |(text, sequence)| {
            let text: &[u32] = text;
            let start = if last { text.len() - 1 } else { 0 };
            let end = if last { text.len() } else { text.len() - 1 };
            Span::new(&text[start..end], start, sequence)
        };
        texts.iter().map(Vec::as_slice).zip(&sequences[model]).map(span).collect()
    };
    base.prefill(&spans(0, false)).unwrap();
    pair.prefill(&spans(1, false)).unwrap();
    base.begin(&spans(0, true), 1).unwrap();
    pair.begin(&spans(1, true), 1).unwrap();
    base.next_logits().unwrap();
    pair.next_logits().unwrap();
    base.add_guidance(1.0, &mut pair).unwrap();
    base.read_logits().unwrap()
}

/// Goal: emulated fine-tuning of three sizes of vocabulary, for several rows: the tokens that all three models have are
/// shifted by softmaxes over each pair model's own rows, the rest is impossible.
#[test]
fn logits_are_shifted_where_all_three_models_have_the_token() {
    for [base, tuned, untuned] in [[30, 9, 0], [0, 30, 9], [9, 0, 30], [9, 30, 0], [30, 30, 30]] {
        let models = [
            resized("gpt2", base, 0.3),
            resized("gpt2_tuned", tuned, 0.3),
            resized("gpt2", untuned, 0.3),
        ];
        let folders = models.each_ref().map(tempfile::TempDir::path);
        let (vocab, common) = (400 + base, 400 + base.min(tuned).min(untuned));
        let exact = shifted(&Arc::new(Oracle), folders);
        on_every_device!(|device| {
            let ours = shifted(&device, folders);
            assert_eq!(ours.len(), 3 * vocab);
            for (at, (ours, exact)) in ours.into_iter().zip(&exact).enumerate() {
                if at % vocab < common {
                    assert!((ours - exact).abs() < 0.5, "{at}: {ours}, not {exact}");
                } else {
                    assert_eq!(ours, f32::NEG_INFINITY, "{at}");
                }
            }
        });
    }
}

/// Tokens that a base model writes, steered by a pair where there is one.
fn written<B: Backend>(
    backend: &Arc<B>,
    base: &Path,
    pair: Option<[&Path; 2]>,
    top_k: u32,
) -> Vec<u32> {
    let model = Model::open(&**backend, base, None).unwrap();
    let engine = Engine::new(backend.clone(), model, LIMITS).unwrap();
    let guidance = pair.map(|[tuned, untuned]| {
        let pair = Pair::open(backend, tuned, untuned, LIMITS, LIMITS.pages / 2).unwrap();
        Guidance { pair: Arc::new(Mutex::new(pair)), format: format(tuned), weight: 1.0 }
    });
    let guidance = guidance.into_iter().collect();
    let mut proposer = LocalProposer::new(engine, format(base), vec![], guidance).unwrap();
    let prompt = proposer.prepare(&Prompt::Text("The film".into()), &LIFE).unwrap();
    let mut states = proposer.open(&[&prompt; 4]).unwrap();
    let mut responses = vec![Response::default(); 4];
    let (stop, mut unfinished) = (StopStrings::default(), [None, None, None, None]);
    let mut drafts: Vec<_> = states
        .iter_mut()
        .zip(&mut responses)
        .zip(&mut unfinished)
        .zip(0..)
        .map(|(((state, response), unfinished), candidate)| Draft {
            state,
            response,
            steps: 20,
            sampling: Sampling { temperature: 1.0, top_k, top_p: 1.0 },
            stop: &stop,
            draw: Draw { candidate, ..Draw::default() },
            unfinished,
        })
        .collect();
    proposer.extend(&mut drafts).unwrap();
    assert!(unfinished.iter().all(Option::is_none), "{unfinished:?}");
    responses.into_iter().flat_map(|response| response.tokens).collect()
}

/// Goal: a base model that would nearly always draw rows that its pair does not have draws none of them where
/// the pair steers it, whichever of the three has the fewest.
#[test]
fn a_steered_base_draws_nothing_that_its_pair_cannot_follow() {
    // Long rows have large logits.
    let base = resized("gpt2", 60, 8.0);
    let [none, more] =
        [0, 20].map(|more| [resized("gpt2_tuned", more, 0.3), resized("gpt2", more, 0.3)]);
    on_every_device!(|device| {
        for (tuned, untuned, rows, top_k) in [
            (&none, &none, 400, 50),
            (&more, &none, 400, 0),
            (&none, &more, 400, 50),
            (&more, &more, 420, 0),
        ] {
            let alone = written(&device, base.path(), None, top_k);
            let beyond = alone.iter().filter(|&&token| token >= 420).count();
            assert!(beyond > 20, "{beyond} of {} are beyond the pair", alone.len());
            let pair = [tuned[0].path(), untuned[1].path()];
            let tokens = written(&device, base.path(), Some(pair), top_k);
            assert_eq!(tokens.len(), 80);
            assert!(tokens.iter().all(|&token| token < rows), "{tokens:?}");
        }
    });
}
