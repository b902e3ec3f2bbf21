//! The base model on this machine's own engine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Draft, Lifetime, Prompt, Proposer, Reader, Unfinished};
use crate::backend::{Backend, NO_TOKEN, SampleRow};
use crate::engine::{Engine, Longest, Pair, Rows, Span};
use crate::error::{Error, Result};
use crate::kv_cache::{Mark, PageCopy, PagePool, Sequence};
use crate::text::PromptFormat;

/// The base model, alone or steered token by token.
pub struct LocalProposer<B: Backend> {
    engine: Engine<B>,
    pages: PagePool,
    format: PromptFormat,
    eos: Vec<u32>,
    guidance: Vec<Guidance<B>>,
}

/// A pair that shifts the base model's logits: emulated fine-tuning (Mitchell et al., arXiv
/// 2310.12962). Its tokens must mean the same as the base model's; tokens that it lacks are not drawn.
pub struct Guidance<B: Backend> {
    /// The pair, shared with the guide.
    pub pair: Arc<Mutex<Pair<B>>>,
    /// How the pair is prompted.
    pub format: PromptFormat,
    /// Factor on log π_tuned − log π_untuned: the pair's weight / β.
    pub weight: f32,
}

impl<B: Backend> Guidance<B> {
    fn pair(&self) -> MutexGuard<'_, Pair<B>> {
        self.pair.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A prompt as tokens: the base model's, then each guidance pair's.
pub struct LocalPrompt {
    tokens: Vec<Vec<u32>>,
}

/// How one stream's model reads prompts, and how long they may be.
struct Reading {
    model: &'static str,
    format: PromptFormat,
    rows: Vec<Rows>,
    longest: Longest,
}

impl Reading {
    fn tokens(&self, prompt: &Prompt, life: &Lifetime) -> Result<Vec<u32>> {
        let Self { model, format, rows, longest } = self;
        let read = format.render(prompt).and_then(|text| format.encode(&text));
        let tokens = read.map_err(Error::unreadable(model))?;
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt { model });
        }
        rows.iter().try_for_each(|rows| rows.check(&tokens, &format.tokenizer))?;
        longest.check(model, tokens.len(), life.response)?;
        Ok(tokens)
    }
}

/// All tokens of a hypothesis but the last are cached; the last one is run with the next step.
#[derive(Clone)]
pub struct LocalState {
    /// The base model's, then each guidance pair's.
    sequences: Vec<Sequence>,
    /// The last token of each.
    pending: Vec<u32>,
}

impl<B: Backend> LocalProposer<B> {
    /// A proposer over `engine`; `eos` are the tokens that end a response.
    pub fn new(
        mut engine: Engine<B>,
        format: PromptFormat,
        eos: Vec<u32>,
        guidance: Vec<Guidance<B>>,
    ) -> Result<Self> {
        engine.end_at(&eos)?;
        let pages = PagePool::new(engine.limits().pages);
        Ok(Self { engine, pages, format, eos, guidance })
    }

    /// The same with responses that only end at the token limit, for measuring speed.
    pub fn ignoring_eos(mut self) -> Result<Self> {
        self.engine.end_at(&[])?;
        Ok(Self { eos: Vec::new(), ..self })
    }

    /// Whether what it reads may depend on the day.
    pub fn asks_for_date(&self) -> bool {
        self.format.asks_for_date()
    }

    /// The base model's engine.
    pub fn engine(&self) -> &Engine<B> {
        &self.engine
    }

    /// The base model's cache pages.
    pub fn pages(&self) -> &PagePool {
        &self.pages
    }

    /// Which model stream `index` belongs to, for messages.
    fn model_name(index: usize) -> &'static str {
        if index == 0 { "base" } else { "guide" }
    }

    fn longest(&self, index: usize) -> Longest {
        match index.checked_sub(1) {
            None => self.engine.longest(&self.pages),
            Some(pair) => {
                let pair = self.guidance[pair].pair();
                pair.longest(&pair.proposal_pages)
            }
        }
    }

    /// The tokens that all models of a stream have.
    fn rows(&self, index: usize) -> Vec<Rows> {
        match index.checked_sub(1) {
            None => vec![Rows { model: "base", count: self.engine.config().vocab }],
            Some(pair) => self.guidance[pair].pair().rows().to_vec(),
        }
    }

    /// Makes room for `steps` more tokens in all streams of these drafts.
    fn make_room(&mut self, drafts: &mut [&mut Draft<'_, LocalState>], steps: usize) -> Result<()> {
        for stream in 0..=self.guidance.len() {
            let copies = drafts
                .iter_mut()
                .filter_map(|draft| draft.state.sequences[stream].append(steps).transpose())
                .collect::<Result<Vec<PageCopy>>>()?;
            match stream.checked_sub(1) {
                None => self.engine.copy_pages(&copies)?,
                Some(pair) => self.guidance[pair].pair().copy_pages(&copies)?,
            }
        }
        Ok(())
    }

    /// Lays out these drafts' pending tokens; they have room for `steps` tokens from there on.
    fn begin(&mut self, drafts: &[&mut Draft<'_, LocalState>], steps: usize) -> Result<()> {
        self.engine.begin(&spans(drafts, 0, steps), steps)?;
        for (index, guidance) in self.guidance.iter().enumerate() {
            guidance.pair().begin(&spans(drafts, index + 1, steps), steps)?;
        }
        Ok(())
    }

    /// Runs what is laid out, and draws a token for each of `rows`.
    fn step(&mut self, rows: &[SampleRow]) -> Result<()> {
        self.engine.next_logits()?;
        for guidance in &self.guidance {
            let mut pair = guidance.pair();
            pair.next_logits()?;
            self.engine.add_guidance(guidance.weight, &mut pair)?;
        }
        self.engine.draw(rows)
    }

    /// The next `steps` tokens of every draft, `[steps, drafts]`, without looking at them.
    ///
    /// Drafts that so far are the same, successors of one beam, run their pending token once: the
    /// first of them runs it, and the others are forked from it after that.
    fn draw(
        &mut self,
        drafts: &mut [&mut Draft<'_, LocalState>],
        steps: usize,
    ) -> Result<Vec<u32>> {
        let firsts = firsts(drafts);
        let mut leaders = Vec::new();
        let mut rows = Vec::with_capacity(drafts.len());
        let mut row_of = vec![0; drafts.len()];
        for (index, draft) in drafts.iter_mut().enumerate() {
            if firsts[index] == index {
                row_of[index] = leaders.len();
                rows.push(sample_row(draft, 0, row_of[index]));
                leaders.push(&mut **draft);
            } else {
                rows.push(sample_row(draft, 0, row_of[firsts[index]]));
                draft.state.sequences.iter_mut().for_each(|sequence| sequence.truncate(0));
            }
        }
        self.make_room(&mut leaders, 1)?;
        self.begin(&leaders, 1)?;
        self.step(&rows)?;

        for (index, &first) in firsts.iter().enumerate() {
            if first < index {
                drafts[index].state.sequences = drafts[first].state.sequences.clone();
            }
        }
        self.make_room(drafts, steps - 1)?;
        self.begin(drafts, steps)?;
        for step in 0..steps {
            if step > 0 {
                let rows = drafts.iter().enumerate();
                let rows: Vec<_> = rows.map(|(row, draft)| sample_row(draft, step, row)).collect();
                self.step(&rows)?;
            }
            self.engine.advance(step)?;
            for guidance in &self.guidance {
                guidance.pair().follow(step, &mut self.engine)?;
            }
        }
        self.engine.drawn(steps)
    }

    /// Adds drawn tokens to a draft until it ends, or fails it where there was none to draw, and gives up
    /// the room of the others.
    fn take(&self, draft: &mut Draft<'_, LocalState>, tokens: impl ExactSizeIterator<Item = u32>) {
        let (steps, mut taken) = (tokens.len(), 0);
        for token in tokens {
            if token == NO_TOKEN {
                let what = "a logit of the base model, or of a pair that shifts its logits,".into();
                *draft.unfinished = Some(Unfinished::Failed(Error::NotFinite { what }));
                break;
            }
            draft.state.pending.fill(token);
            taken += 1;
            if self.eos.contains(&token) {
                draft.response.push_eos(token);
            } else {
                draft.response.push(token, self.format.tokenizer.bytes(token), draft.stop);
            }
            if draft.response.finish.is_some() {
                break;
            }
        }
        for sequence in &mut draft.state.sequences {
            sequence.truncate(sequence.len() - (steps - taken));
        }
    }
}

/// Each draft's pending token in one stream, whose sequences have room for `steps` tokens from it
/// on.
fn spans<'a>(
    drafts: &'a [&mut Draft<'_, LocalState>],
    stream: usize,
    steps: usize,
) -> Vec<Span<'a>> {
    drafts
        .iter()
        .map(|draft| {
            let sequence = &draft.state.sequences[stream];
            let tokens = std::slice::from_ref(&draft.state.pending[stream]);
            Span::new(tokens, sequence.len() - steps, sequence)
        })
        .collect()
}

/// For each draft the first one, perhaps itself, that holds the same tokens in every stream.
fn firsts(drafts: &[&mut Draft<'_, LocalState>]) -> Vec<usize> {
    let mut seen = HashMap::new();
    let first = |(index, draft): (usize, &&mut Draft<'_, LocalState>)| {
        let LocalState { sequences, pending } = &*draft.state;
        let marks: Vec<Mark> = sequences.iter().map(Sequence::mark).collect();
        *seen.entry((marks, pending.clone())).or_insert(index)
    };
    drafts.iter().enumerate().map(first).collect()
}

/// How to draw a draft's token `step` tokens from now, from that row's logits.
fn sample_row<S>(draft: &Draft<'_, S>, step: usize, row: usize) -> SampleRow {
    let mut draw = draft.draw;
    draw.position = (draft.response.tokens.len() + step) as u32;
    SampleRow {
        logits: row as u32,
        temperature: draft.sampling.temperature,
        top_k: draft.sampling.top_k,
        top_p: draft.sampling.top_p,
        draw,
    }
}

impl<B: Backend> Proposer for LocalProposer<B> {
    type Prompt = LocalPrompt;
    type State = LocalState;

    fn reader(&self) -> Reader<LocalPrompt> {
        let formats = std::iter::once(&self.format).chain(self.guidance.iter().map(|g| &g.format));
        let readings = formats.enumerate().map(|(index, format)| Reading {
            model: Self::model_name(index),
            format: format.clone(),
            rows: self.rows(index),
            longest: self.longest(index),
        });
        let readings: Vec<Reading> = readings.collect();
        Arc::new(move |prompt, life| {
            let tokens = readings.iter().map(|reading| reading.tokens(prompt, life));
            Ok(LocalPrompt { tokens: tokens.collect::<Result<_>>()? })
        })
    }

    fn pages_needed(&self, prompt: &LocalPrompt, life: &Lifetime) -> Vec<usize> {
        prompt.tokens.iter().map(|tokens| life.pages(tokens.len())).collect()
    }

    fn page_capacity(&self) -> Vec<usize> {
        let pairs = self.guidance.iter().map(|g| g.pair().proposal_pages.capacity());
        std::iter::once(self.pages.capacity()).chain(pairs).collect()
    }

    fn pages_free(&self) -> Vec<usize> {
        let pairs = self.guidance.iter().map(|g| g.pair().proposal_pages.free());
        std::iter::once(self.pages.free()).chain(pairs).collect()
    }

    fn prompt_tokens(&self, prompt: &LocalPrompt) -> Option<usize> {
        prompt.tokens.first().map(Vec::len)
    }

    fn open(&mut self, prompts: &[&LocalPrompt]) -> Result<Vec<LocalState>> {
        let mut states: Vec<LocalState> =
            prompts.iter().map(|_| LocalState { sequences: vec![], pending: vec![] }).collect();
        for stream in 0..=self.guidance.len() {
            let pages = match stream.checked_sub(1) {
                None => self.pages.clone(),
                Some(pair) => self.guidance[pair].pair().proposal_pages.clone(),
            };
            for (state, prompt) in states.iter_mut().zip(prompts) {
                let tokens = &prompt.tokens[stream];
                let mut sequence = pages.sequence();
                sequence.append(tokens.len() - 1)?;
                state.sequences.push(sequence);
                state.pending.push(tokens[tokens.len() - 1]);
            }
            let spans: Vec<Span<'_>> = states
                .iter()
                .zip(prompts)
                .map(|(state, prompt)| {
                    let tokens = &prompt.tokens[stream];
                    let sequence = &state.sequences[stream];
                    Span::new(&tokens[..tokens.len() - 1], 0, sequence)
                })
                .collect();
            match stream.checked_sub(1) {
                None => self.engine.prefill(&spans)?,
                Some(pair) => self.guidance[pair].pair().prefill(&spans)?,
            }
        }
        Ok(states)
    }

    fn extend(&mut self, drafts: &mut [Draft<'_, LocalState>]) -> Result<()> {
        let ends: Vec<usize> =
            drafts.iter().map(|draft| draft.response.tokens.len() + draft.steps).collect();
        loop {
            let (mut live, left): (Vec<_>, Vec<_>) = drafts
                .iter_mut()
                .zip(&ends)
                .map(|(draft, end)| (end - draft.response.tokens.len(), draft))
                .filter(|(left, draft)| {
                    *left > 0 && draft.response.finish.is_none() && draft.unfinished.is_none()
                })
                .map(|(left, draft)| (draft, left))
                .unzip();
            let Some(nearest) = left.into_iter().min() else {
                return Ok(());
            };
            let steps = nearest.min(self.engine.steps_per_look());
            for group in live.chunks_mut(self.engine.limits().logit_rows) {
                let (tokens, rows) = (self.draw(group, steps)?, group.len());
                for (index, draft) in group.iter_mut().enumerate() {
                    self.take(draft, tokens.iter().skip(index).step_by(rows).copied());
                }
            }
        }
    }
}
