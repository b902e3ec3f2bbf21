//! The queues of a device: models that run side by side give what they give one after the other.
//!
//! The emulator does what its queues were asked for as late as it may and in a shuffled order, so a
//! join that is missing gives other numbers under some seed; tools/planted_bugs.sh removes each join
//! and shows that these tests see it.

use std::sync::Arc;

use super::{folder, gpu};
use trimtab::backend::cuda::CudaBackend;
use trimtab::backend::{Backend, SampleRow};
use trimtab::engine::{Engine, Limits, Model, Pair, Span};
use trimtab::kv_cache::{PageCopy, PagePool, Sequence};
use trimtab::philox::Draw;

/// Orders of the emulator's queues.
const ORDERS: u64 = 12;
const LIMITS: Limits = Limits { pages: 24, rows: 7, logit_rows: 3 };
/// Sequences that are continued together.
const ROWS: usize = 3;

/// Any tokens of the golden GPT-2s.
fn tokens(count: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 37 + seed * 101 + 5) % 300) as u32).collect()
}

fn engine<B: Backend>(backend: &Arc<B>, name: &str) -> Engine<B> {
    let model = Model::open(&**backend, &folder(name), None).unwrap();
    Engine::new(backend.clone(), model, LIMITS).unwrap()
}

fn pair<B: Backend>(backend: &Arc<B>) -> Pair<B> {
    Pair::open(backend, &folder("gpt2_tuned"), &folder("gpt2"), LIMITS, 0).unwrap()
}

/// A pair, or its models as they are on one queue.
enum Models<B: Backend> {
    Pair(Pair<B>),
    OneQueue([Engine<B>; 2]),
}

impl<B: Backend> Models<B> {
    fn copy_pages(&mut self, copies: &[PageCopy]) {
        match self {
            Self::Pair(pair) => pair.copy_pages(copies).unwrap(),
            Self::OneQueue(engines) => {
                engines.iter_mut().for_each(|e| e.copy_pages(copies).unwrap())
            }
        }
    }

    fn prefill(&mut self, spans: &[Span<'_>]) {
        match self {
            Self::Pair(pair) => pair.prefill(spans).unwrap(),
            Self::OneQueue(engines) => engines.iter_mut().for_each(|e| e.prefill(spans).unwrap()),
        }
    }

    fn logprobs(&mut self, spans: &[Span<'_>], targets: &[u32]) -> [Vec<f32>; 2] {
        match self {
            Self::Pair(pair) => pair.logprobs(spans, targets).unwrap(),
            Self::OneQueue(engines) => {
                engines.each_mut().map(|engine| engine.logprobs(spans, targets).unwrap())
            }
        }
    }
}

/// Scores of two texts with one prompt, more rows than run together, and of forks of them.
fn scores<B: Backend>(mut models: Models<B>) -> [[Vec<f32>; 2]; 2] {
    let pool = PagePool::new(LIMITS.pages);
    let prompt = tokens(11, 0);
    let mut first = pool.sequence();
    first.append(prompt.len()).unwrap();
    models.prefill(&[Span::new(&prompt, 0, &first)]);
    let mut second = first.clone();
    let mut score = |texts: [Vec<u32>; 2]| {
        let starts = [first.len(), second.len()];
        let copies = [first.append(texts[0].len()), second.append(texts[1].len())];
        models.copy_pages(&copies.into_iter().filter_map(|copy| copy.unwrap()).collect::<Vec<_>>());
        let spans =
            [Span::new(&texts[0], starts[0], &first), Span::new(&texts[1], starts[1], &second)];
        models.logprobs(&spans, &texts.concat())
    };
    [score([tokens(9, 1), tokens(6, 2)]), score([tokens(4, 3), tokens(5, 4)])]
}

fn sample_rows(step: usize) -> Vec<SampleRow> {
    let row = |candidate| SampleRow {
        logits: candidate,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        draw: Draw { seed: 1, stream: 2, candidate, position: step as u32 },
    };
    (0..ROWS as u32).map(row).collect()
}

/// Sequences that hold all of their prompt but its last token.
fn prompted(pool: &PagePool, prompts: &[Vec<u32>]) -> Vec<Sequence> {
    let sequence = |prompt: &Vec<u32>| {
        let mut sequence = pool.sequence();
        sequence.append(prompt.len() - 1).unwrap();
        sequence
    };
    prompts.iter().map(sequence).collect()
}

fn prompts() -> Vec<Vec<u32>> {
    (0..ROWS).map(|row| tokens(6 + 5 * row, row)).collect()
}

fn prompt_spans<'a>(prompts: &'a [Vec<u32>], sequences: &'a [Sequence]) -> Vec<Span<'a>> {
    let all_but_last = |prompt: &'a Vec<u32>| &prompt[..prompt.len() - 1];
    prompts
        .iter()
        .zip(sequences)
        .map(|(prompt, sequence)| Span::new(all_but_last(prompt), 0, sequence))
        .collect()
}

/// Spans of one token each, after room for `steps` was made.
fn next_spans<'a>(last: &'a [u32], sequences: &'a [Sequence], steps: usize) -> Vec<Span<'a>> {
    last.chunks(1)
        .zip(sequences)
        .map(|(tokens, sequence)| Span::new(tokens, sequence.len() - steps, sequence))
        .collect()
}

/// Emulated fine-tuning for several chunks. With `one_by_one`, every model is waited for after each
/// thing that is asked of any.
fn guided<B: Backend>(backend: &Arc<B>, one_by_one: bool) -> Vec<u32> {
    const STEPS: usize = 4;
    let (mut base, mut pair) = (engine(backend, "gpt2_bare"), pair(backend));
    let wait = |base: &Engine<B>, pair: &Pair<B>| {
        for engine in [base, &pair.tuned, &pair.untuned] {
            if one_by_one {
                engine.read_logits().unwrap();
            }
        }
    };
    let prompts = prompts();
    let pools = [PagePool::new(LIMITS.pages), pair.pages.clone()];
    let [mut ours, mut theirs] = pools.map(|pool| prompted(&pool, &prompts));
    base.prefill(&prompt_spans(&prompts, &ours)).unwrap();
    pair.prefill(&prompt_spans(&prompts, &theirs)).unwrap();
    let mut last: Vec<u32> = prompts.iter().map(|prompt| prompt[prompt.len() - 1]).collect();
    let mut all = Vec::new();
    for chunk in 0..3 {
        for sequence in ours.iter_mut().chain(&mut theirs) {
            assert!(sequence.append(STEPS).unwrap().is_none(), "nothing is shared");
        }
        base.begin(&next_spans(&last, &ours, STEPS), STEPS).unwrap();
        pair.begin(&next_spans(&last, &theirs, STEPS), STEPS).unwrap();
        for step in 0..STEPS {
            base.next_logits().unwrap();
            wait(&base, &pair);
            pair.next_logits().unwrap();
            wait(&base, &pair);
            base.add_guidance(1.5, &mut pair).unwrap();
            wait(&base, &pair);
            if step + 1 == STEPS {
                // The pair does something else before it follows.
                pair.begin(&next_spans(&last, &theirs, STEPS), STEPS).unwrap();
                pair.next_logits().unwrap();
                wait(&base, &pair);
            }
            base.draw(&sample_rows(chunk * STEPS + step)).unwrap();
            wait(&base, &pair);
            base.advance(step).unwrap();
            wait(&base, &pair);
            pair.follow(step, &mut base).unwrap();
            wait(&base, &pair);
        }
        let drawn = base.drawn(STEPS).unwrap();
        last = drawn[drawn.len() - ROWS..].to_vec();
        all.extend(drawn);
    }
    all
}

/// What a leader drew and what its follower went on to, in two rounds: without guidance nothing but
/// the drawn tokens joins the two queues.
fn followed<B: Backend>(backend: &Arc<B>) -> [[Vec<u32>; 2]; 2] {
    const STEPS: usize = 6;
    let (mut leader, pair) = (engine(backend, "gpt2_bare"), pair(backend));
    let mut follower = pair.tuned;
    let prompts = prompts();
    let pools = [PagePool::new(LIMITS.pages), PagePool::new(LIMITS.pages)];
    let [mut ours, mut theirs] = pools.map(|pool| prompted(&pool, &prompts));
    leader.prefill(&prompt_spans(&prompts, &ours)).unwrap();
    let mut last: Vec<u32> = prompts.iter().map(|prompt| prompt[prompt.len() - 1]).collect();
    let mut round = |first: usize| {
        for sequence in ours.iter_mut().chain(&mut theirs) {
            sequence.append(STEPS).unwrap();
        }
        leader.begin(&next_spans(&last, &ours, STEPS), STEPS).unwrap();
        follower.begin(&next_spans(&last, &theirs, STEPS), STEPS).unwrap();
        for step in 0..STEPS {
            leader.next_logits().unwrap();
            leader.draw(&sample_rows(first + step)).unwrap();
            leader.advance(step).unwrap();
            follower.follow(step, &mut leader).unwrap();
            if step % 2 == 0 {
                // Drawn again for nobody, at once.
                leader.draw(&sample_rows(first + step + 1000)).unwrap();
            }
        }
        // The next thing that uses the leader's tokens.
        leader.logprobs(&next_spans(&last, &ours, 1), &last).unwrap();
        let drawn = leader.drawn(STEPS).unwrap();
        last = drawn[drawn.len() - ROWS..].to_vec();
        [drawn, follower.drawn(STEPS).unwrap()]
    };
    [round(0), round(STEPS)]
}

/// Checks `backends` against a run on one queue, or with waits everywhere, on the first of them.
fn check<B: Backend>(backends: &[Arc<B>]) {
    let first = &backends[0];
    let one_queue = ["gpt2_tuned", "gpt2"].map(|name| engine(first, name));
    let (one_queue, one_by_one) = (scores(Models::OneQueue(one_queue)), guided(first, true));
    for (order, backend) in backends.iter().enumerate() {
        let name = format!("{}, order {order}", backend.describe());
        assert_eq!(scores(Models::Pair(pair(backend))), one_queue, "{name}: other scores");
        assert_eq!(guided(backend, false), one_by_one, "{name}: other tokens under guidance");
        let [first, second] = followed(backend);
        assert_eq!(first[0], first[1], "{name}: the follower read other tokens");
        assert_eq!(second[0], second[1], "{name}: the follower read other tokens");
    }
}

/// Goal: no order that the queues leave open changes a bit of what a pair scores, of what is drawn
/// under guidance, and of what a follower follows: all is as if each model was waited for.
#[test]
fn models_side_by_side_give_what_they_give_one_by_one() {
    let emulators = (0..ORDERS).map(|seed| Arc::new(CudaBackend::emulated(seed).unwrap()));
    check(&emulators.collect::<Vec<_>>());
    if let Some(gpu) = gpu() {
        check(&[gpu.clone(), gpu.clone(), gpu]);
    }
}

/// Goal: who waits for a pair has waited for both of its queues: nothing is left to be read.
#[test]
fn waiting_for_a_pair_waits_for_both_models() {
    for order in 0..ORDERS {
        let backend = Arc::new(CudaBackend::emulated(order).unwrap());
        let mut pair = pair(&backend);
        let prompt = tokens(LIMITS.rows, 0);
        let mut sequence = pair.pages.sequence();
        sequence.append(prompt.len()).unwrap();
        pair.prefill(&[Span::new(&prompt, 0, &sequence)]).unwrap();
        pair.wait().unwrap();
        let waited = backend.device().copied_bytes();
        // Freeing memory waits for all queues.
        drop(pair);
        assert!(waited > 0, "order {order}: attention copies pages");
        assert_eq!(backend.device().copied_bytes(), waited, "order {order}: something was left");
    }
}
