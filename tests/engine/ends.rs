//! Rows that end between two looks of the host: they stand still on the device, and it makes no
//! difference when the host looks.

use std::sync::{Arc, Mutex};

use super::{folder, gpu};
use crate::oracle::Oracle;
use trimtab::backend::cpu::CpuBackend;
use trimtab::backend::cuda::CudaBackend;
use trimtab::backend::{Backend, SampleRow};
use trimtab::engine::{Engine, Limits, Model, Pair, Span};
use trimtab::kv_cache::PagePool;
use trimtab::philox::Draw;
use trimtab::proposer::{
    Draft, Finish, Guidance, Lifetime, LocalProposer, Prompt, Proposer, Response, Sampling,
};
use trimtab::text::{Bos, PromptFormat, StopStrings, Template, Tokenizer};

const LIMITS: Limits = Limits { pages: 64, rows: 16, logit_rows: 8 };
const ROWS: usize = 8;
const STEPS: usize = 24;

fn engine<B: Backend>(backend: &Arc<B>) -> Engine<B> {
    let model = Model::open(&**backend, &folder("gpt2"), None).unwrap();
    Engine::new(backend.clone(), model, LIMITS).unwrap()
}

/// What is drawn in one chunk, `[ROWS][STEPS]`, when rows end at `ends`.
fn chunk<B: Backend>(backend: &Arc<B>, ends: &[u32]) -> Vec<Vec<u32>> {
    let mut engine = engine(backend);
    engine.end_at(ends).unwrap();
    let pool = PagePool::new(LIMITS.pages);
    let sequences: Vec<_> = (0..ROWS)
        .map(|_| {
            let mut sequence = pool.sequence();
            sequence.append(STEPS).unwrap();
            sequence
        })
        .collect();
    let first: Vec<u32> = (0..ROWS as u32).map(|row| 40 + row).collect();
    let spans: Vec<Span<'_>> = first
        .chunks(1)
        .zip(&sequences)
        .map(|(tokens, sequence)| Span::new(tokens, 0, sequence))
        .collect();
    engine.begin(&spans, STEPS).unwrap();
    for step in 0..STEPS {
        engine.next_logits().unwrap();
        let row = |candidate| SampleRow {
            logits: candidate,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            draw: Draw { candidate, position: step as u32, ..Draw::default() },
        };
        engine.draw(&(0..ROWS as u32).map(row).collect::<Vec<_>>()).unwrap();
        engine.advance(step).unwrap();
    }
    let drawn = engine.drawn(STEPS).unwrap();
    (0..ROWS).map(|row| drawn.iter().skip(row).step_by(ROWS).copied().collect()).collect()
}

/// Goal: in a model's own chunk, a row draws what it would draw without ends up to its end, then
/// that token over and over; rows that go on are not touched by those that stand still.
fn rows_end<B: Backend>(backend: &Arc<B>) {
    assert!(backend.steps_per_look() >= STEPS, "a chunk without a look");
    let free = chunk(backend, &[]);
    // Tokens that end some rows early, some late, and some not at all.
    let ends = [free[0][2], free[3][STEPS / 2]];
    let ended = chunk(backend, &ends);
    let mut standing = 0;
    for (free, ended) in free.iter().zip(&ended) {
        let end = free.iter().position(|token| ends.contains(token));
        let kept = end.map_or(STEPS, |end| end + 1);
        assert_eq!(free[..kept], ended[..kept], "{}", backend.describe());
        assert!(ended[kept..].iter().all(|token| token == &free[kept - 1]), "{ended:?}");
        standing += usize::from(kept < STEPS);
    }
    assert!((2..ROWS).contains(&standing), "{standing} rows stood still");
}

#[test]
fn rows_that_end_between_two_looks_stand_still() {
    let emulated = Arc::new(CudaBackend::emulated(5).unwrap());
    rows_end(&emulated);
    // All steps of two chunks but the first two, which are recorded: the first comes without `advance`.
    assert_eq!(emulated.graphs_started(), 2 * STEPS as u64 - 2);
    rows_end(&Arc::new(Oracle));
    if let Some(gpu) = gpu() {
        rows_end(&gpu);
    }
}

/// Responses of one proposer, alone or steered, that is asked for `steps` tokens at a time.
fn responses<B: Backend>(backend: &Arc<B>, eos: u32, steered: bool, steps: usize) -> Vec<Response> {
    let tokenizer = Arc::new(Tokenizer::open(&folder("gpt2")).unwrap());
    let format = PromptFormat {
        tokenizer,
        template: Template::default(),
        chat: false,
        system: None,
        date: None,
        bos: Bos::Never,
    };
    let (tuned, untuned) = (folder("gpt2_tuned"), folder("gpt2"));
    let guidance = steered.then(|| Guidance {
        pair: Arc::new(Mutex::new(
            Pair::open(backend, &tuned, &untuned, LIMITS, LIMITS.pages).unwrap(),
        )),
        format: format.clone(),
        weight: 1.0,
    });
    let guidance = guidance.into_iter().collect();
    let mut proposer = LocalProposer::new(engine(backend), format, vec![eos], guidance).unwrap();
    let life = Lifetime { response: STEPS, chunk: STEPS, beams: ROWS, candidates: ROWS };
    let prompt = proposer.prepare(&Prompt::Text("The film".into()), &life).unwrap();
    let state = proposer.open(&[&prompt]).unwrap().remove(0);
    let mut states = vec![state; ROWS];
    let mut responses = vec![Response::default(); ROWS];
    let stop = StopStrings::default();
    for _ in (0..STEPS).step_by(steps) {
        let mut unfinished: Vec<_> = (0..ROWS).map(|_| None).collect();
        let drafts = states.iter_mut().zip(&mut responses).zip(&mut unfinished).enumerate();
        let mut drafts: Vec<Draft<'_, _>> = drafts
            .map(|(candidate, ((state, response), unfinished))| Draft {
                state,
                response,
                steps,
                sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
                stop: &stop,
                draw: Draw { candidate: candidate as u32, ..Draw::default() },
                unfinished,
            })
            .collect();
        proposer.extend(&mut drafts).unwrap();
    }
    responses
}

/// Goal: a model whose responses end early writes the same, to the token, whether the host looks
/// after every step or once; alone and steered by a pair that follows it.
fn looks_make_no_difference<B: Backend>(backend: &Arc<B>) {
    for steered in [false, true] {
        // A token that some responses have and some have not.
        let free = responses(backend, u32::MAX, steered, STEPS);
        let eos = free[0].tokens[STEPS / 3];
        let each = responses(backend, eos, steered, 1);
        let once = responses(backend, eos, steered, STEPS);
        assert_eq!(each, once, "{}, steered: {steered}", backend.describe());
        let ended = once.iter().filter(|response| response.finish == Some(Finish::Eos)).count();
        assert!((1..ROWS).contains(&ended), "{ended} responses ended");
        for (free, ended) in free.iter().zip(&once) {
            assert!(free.tokens.starts_with(&ended.tokens));
        }
    }
}

#[test]
fn responses_that_end_early_are_the_same_whenever_the_host_looks() {
    looks_make_no_difference(&Arc::new(CpuBackend::new(Some(1)).unwrap()));
    looks_make_no_difference(&Arc::new(CudaBackend::emulated(6).unwrap()));
    if let Some(gpu) = gpu() {
        looks_make_no_difference(&gpu);
    }
}

/// Goal: all steps of all three models but the first two, which are recorded, are started as graphs, those
/// of a pair and its base as those of a base alone.
#[test]
fn steps_of_a_steered_model_are_graphs_too() {
    let emulated = Arc::new(CudaBackend::emulated(7).unwrap());
    let started = |steered| {
        let before = emulated.graphs_started();
        responses(&emulated, u32::MAX, steered, STEPS);
        emulated.graphs_started() - before
    };
    let alone = STEPS as u64 - 2;
    assert_eq!((started(false), started(true)), (alone, 3 * alone));
}
