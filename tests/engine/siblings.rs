//! What siblings, candidates forked from one beam, have in common is run once, and none of them
//! notices.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use super::{folder, gpu};
use crate::oracle::Oracle;
use trimtab::backend::Backend;
use trimtab::backend::cpu::CpuBackend;
use trimtab::backend::cuda::CudaBackend;
use trimtab::engine::{Engine, Limits, Model, Pair};
use trimtab::guide::{Guide, GuideTokens, PairGuide, Score, Scoring, WeightedPair};
use trimtab::philox::Draw;
use trimtab::proposer::{
    Draft, Guidance, Lifetime, LocalProposer, LocalState, Prompt, Proposer, Response, Sampling,
};
use trimtab::text::{Bos, PromptFormat, StopStrings, Template, Tokenizer};

const PROMPT: &str = "The film opens on a quiet harbour";
const LIFE: Lifetime = Lifetime { response: 48, chunk: 24, beams: 2, candidates: 8 };

fn format() -> PromptFormat {
    let tokenizer = Arc::new(Tokenizer::open(&folder("gpt2")).unwrap());
    PromptFormat {
        tokenizer,
        template: Template::default(),
        chat: false,
        system: None,
        date: None,
        bos: Bos::Never,
    }
}

fn limits(rows: usize) -> Limits {
    Limits { pages: 160, rows, logit_rows: rows.min(8) }
}

fn pair<B: Backend>(backend: &Arc<B>, rows: usize, proposal_pages: usize) -> Arc<Mutex<Pair<B>>> {
    let (tuned, untuned) = (folder("gpt2_tuned"), folder("gpt2"));
    Arc::new(Mutex::new(
        Pair::open(backend, &tuned, &untuned, limits(rows), proposal_pages).unwrap(),
    ))
}

/// Runs a test on the CPU, the emulator and the oracle, and on a GPU if one is to be tested.
macro_rules! on_every_device {
    ($test:ident) => {
        $test(&Arc::new(CpuBackend::new(Some(1)).unwrap()));
        $test(&Arc::new(CudaBackend::emulated(3).unwrap()));
        $test(&Arc::new(Oracle));
        if let Some(gpu) = gpu() {
            $test(&gpu);
        }
    };
}

fn guide<B: Backend>(backend: &Arc<B>, rows: usize) -> PairGuide<B> {
    let pair = WeightedPair {
        pair: pair(backend, rows, 0),
        weight: 1.0,
        eos: None,
        longest_token: 1,
        format: format(),
        tokens: GuideTokens::Ids,
    };
    PairGuide::new(vec![pair], None)
}

/// Each response's score, in a state of its own.
fn alone<B: Backend>(guide: &mut PairGuide<B>, responses: &[Response]) -> Vec<Score> {
    let prompt = guide.prepare(&Prompt::Text(PROMPT.into()), &LIFE).unwrap();
    let each = responses.iter().map(|response| {
        let mut state = guide.open(&[&prompt]).unwrap().remove(0);
        guide.score(&mut [Scoring { state: &mut state, response }]).unwrap().remove(0).unwrap()
    });
    each.collect()
}

/// Four successors of 1 to 19 tokens, which have some of the first ones in common.
fn successors(beam: &Response, random: &mut Random) -> Vec<Response> {
    let common: Vec<u32> = (0..12).map(|_| random.below(300)).collect();
    let successor = |_| {
        let mut tokens = beam.tokens.clone();
        tokens.extend(&common[..random.below(13) as usize]);
        tokens.extend((0..=random.below(7)).map(|_| random.below(300)));
        Response { tokens, ..Response::default() }
    };
    (0..4).map(successor).collect()
}

struct Random(u32);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 += 1;
        Draw { position: self.0, ..Draw::default() }.bits() % bound
    }
}

/// Goal: scores of siblings are those that each has alone, to the bit, whatever they share, also
/// where a batch ends between them; and what they share is run once.
fn siblings_are_scored_as_if_alone<B: Backend>(backend: &Arc<B>) {
    for rows in [5, 64, 256] {
        let (mut guide, mut random) = (guide(backend, rows), Random(0));
        let prompt = guide.prepare(&Prompt::Text(PROMPT.into()), &LIFE).unwrap();
        let root = guide.open(&[&prompt]).unwrap().remove(0);
        // Two beams that differ, each with what has been run of it.
        let mut beams = vec![(root, Response::default())];
        for _ in 0..2 {
            let mut states = Vec::new();
            let (mut responses, mut fed) = (Vec::new(), HashSet::new());
            for (beam, (state, response)) in beams.iter().enumerate() {
                for successor in successors(response, &mut random) {
                    let new = response.tokens.len()..successor.tokens.len();
                    fed.extend(new.map(|end| (beam, successor.tokens[..end].to_vec())));
                    states.push(state.clone());
                    responses.push(successor);
                }
            }
            drop(beams);
            let before = guide.rows_run();
            let items = states.iter_mut().zip(&responses);
            let mut items: Vec<_> =
                items.map(|(state, response)| Scoring { state, response }).collect();
            let together: Vec<Score> =
                guide.score(&mut items).unwrap().into_iter().map(Result::unwrap).collect();
            let run = guide.rows_run() - before;
            assert_eq!(together, alone(&mut guide, &responses), "{}", backend.describe());
            let all: usize = responses.iter().map(|response| response.tokens.len()).sum();
            assert!(run <= all as u64, "{run} rows for {all} tokens");
            if rows == 256 {
                assert_eq!(run, fed.len() as u64, "rows for what is different");
            }
            beams = states.into_iter().zip(responses).skip(1).step_by(3).collect();
        }
    }
}

#[test]
fn siblings_are_scored_as_if_they_were_alone() {
    on_every_device!(siblings_are_scored_as_if_alone);
}

type Hypothesis = (u32, LocalState, Response);

/// Adds `steps` tokens to hypotheses, which are numbered.
fn extend<B: Backend>(
    proposer: &mut LocalProposer<B>,
    hypotheses: &mut [Hypothesis],
    steps: usize,
    temperature: f32,
) {
    let stop = StopStrings::default();
    let mut unfinished: Vec<_> = hypotheses.iter().map(|_| None).collect();
    let mut drafts: Vec<Draft<'_, _>> = hypotheses
        .iter_mut()
        .zip(&mut unfinished)
        .map(|((candidate, state, response), unfinished)| Draft {
            state,
            response,
            steps,
            sampling: Sampling { temperature, top_k: 0, top_p: 1.0 },
            stop: &stop,
            draw: Draw { candidate: *candidate, ..Draw::default() },
            unfinished,
        })
        .collect();
    proposer.extend(&mut drafts).unwrap();
}

/// Goal: siblings draw the tokens that each draws alone, at once or token by token, with and without
/// a pair that steers; their beams are run once at the chunk's start.
fn siblings_draw_as_if_alone<B: Backend>(backend: &Arc<B>) {
    for (steered, temperature) in [(false, 1.0), (true, 1.0), (false, 0.4)] {
        let model = Model::open(&**backend, &folder("gpt2"), None).unwrap();
        let engine = Engine::new(backend.clone(), model, limits(8)).unwrap();
        let guidance = steered.then(|| Guidance {
            pair: pair(backend, 8, 160),
            format: format(),
            weight: 1.0,
        });
        let guidance = guidance.into_iter().collect();
        let mut proposer = LocalProposer::new(engine, format(), vec![], guidance).unwrap();
        let prompt = proposer.prepare(&Prompt::Text(PROMPT.into()), &LIFE).unwrap();
        let fresh = |proposer: &mut LocalProposer<B>| {
            (0, proposer.open(&[&prompt]).unwrap().remove(0), Response::default())
        };
        let fork = |(_, state, response): &Hypothesis, first: u32| -> Vec<Hypothesis> {
            (first..first + 4).map(|number| (number, state.clone(), response.clone())).collect()
        };
        // A path down the tree, alone: as the first chunk's candidate, then as the second's.
        let path = |proposer: &mut LocalProposer<B>, first: u32, second: u32| {
            let mut one = [fresh(proposer)];
            for (number, steps) in [(first, 13), (second, 7)] {
                one[0].0 = number;
                extend(proposer, &mut one, steps, temperature);
            }
            one[0].2.tokens.clone()
        };
        let expected: Vec<_> = (0..8).map(|i| path(&mut proposer, 1 + 2 * (i / 4), i)).collect();

        let mut hypotheses = fork(&fresh(&mut proposer), 0);
        let before = proposer.engine().rows_run();
        extend(&mut proposer, &mut hypotheses, 13, temperature);
        let run = proposer.engine().rows_run() - before;
        assert!(run <= 1 + 12 * 4, "{run} rows");
        let mut hypotheses: Vec<Hypothesis> =
            [1, 3].iter().zip([0, 4]).flat_map(|(&beam, n)| fork(&hypotheses[beam], n)).collect();
        let before = proposer.engine().rows_run();
        extend(&mut proposer, &mut hypotheses, 1, temperature);
        assert_eq!(proposer.engine().rows_run() - before, 2, "a row for each beam");
        for steps in [1, 5] {
            extend(&mut proposer, &mut hypotheses, steps, temperature);
        }
        let ours: Vec<_> = hypotheses.into_iter().map(|(.., response)| response.tokens).collect();
        assert_eq!(ours, expected, "{}, steered: {steered}", backend.describe());
    }
}

#[test]
fn siblings_draw_the_tokens_that_each_draws_alone() {
    on_every_device!(siblings_draw_as_if_alone);
}
