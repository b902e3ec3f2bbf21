//! The base model on this machine's own engine.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Draft, Lifetime, Prompt, Proposer};
use crate::backend::{Backend, SampleRow};
use crate::engine::{Engine, Pair, Span};
use crate::error::{Error, Result};
use crate::kv_cache::{PageCopy, PagePool, Sequence};
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
/// 2310.12962). Its vocabulary must be the base model's.
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
        engine: Engine<B>,
        format: PromptFormat,
        eos: Vec<u32>,
        guidance: Vec<Guidance<B>>,
    ) -> Self {
        let pages = PagePool::new(engine.limits().pages);
        Self { engine, pages, format, eos, guidance }
    }

    /// The same with responses that only end at the token limit, for measuring speed.
    pub fn ignoring_eos(self) -> Self {
        Self { eos: Vec::new(), ..self }
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

    fn context(&self, index: usize) -> usize {
        match index.checked_sub(1) {
            None => self.engine.context(),
            Some(pair) => self.guidance[pair].pair().context(),
        }
    }

    /// The next token of every draft.
    fn step(&mut self, drafts: &mut [&mut Draft<'_, LocalState>]) -> Result<Vec<u32>> {
        for stream in 0..=self.guidance.len() {
            let copies = drafts
                .iter_mut()
                .filter_map(|draft| draft.state.sequences[stream].append(1).transpose())
                .collect::<Result<Vec<PageCopy>>>()?;
            match stream.checked_sub(1) {
                None => self.engine.copy_pages(&copies)?,
                Some(pair) => self.guidance[pair].pair().copy_pages(&copies)?,
            }
        }
        let rows: Vec<SampleRow> = drafts.iter().map(|draft| sample_row(draft)).collect();
        if self.guidance.is_empty() {
            return self.engine.sample(&spans(drafts, 0), &rows);
        }
        let mut tokens = Vec::with_capacity(rows.len());
        let group = self.engine.limits().logit_rows;
        for (drafts, rows) in drafts.chunks(group).zip(rows.chunks(group)) {
            self.engine.logits(&spans(drafts, 0))?;
            for (index, guidance) in self.guidance.iter().enumerate() {
                let mut pair = guidance.pair();
                pair.logits(&spans(drafts, index + 1))?;
                let Pair { tuned, untuned, .. } = &*pair;
                self.engine.add_guidance(rows.len(), guidance.weight, tuned, untuned)?;
            }
            tokens.extend(self.engine.sample_logits(rows)?);
        }
        Ok(tokens)
    }
}

/// Each draft's pending token in one stream.
fn spans<'a>(drafts: &'a [&mut Draft<'_, LocalState>], stream: usize) -> Vec<Span<'a>> {
    drafts
        .iter()
        .map(|draft| {
            let sequence = &draft.state.sequences[stream];
            let tokens = std::slice::from_ref(&draft.state.pending[stream]);
            Span { tokens, start: sequence.len() - 1, sequence }
        })
        .collect()
}

fn sample_row<S>(draft: &Draft<'_, S>) -> SampleRow {
    let mut draw = draft.draw;
    draw.position = draft.response.tokens.len() as u32;
    SampleRow {
        temperature: draft.sampling.temperature,
        top_k: draft.sampling.top_k,
        top_p: draft.sampling.top_p,
        draw,
    }
}

impl<B: Backend> Proposer for LocalProposer<B> {
    type Prompt = LocalPrompt;
    type State = LocalState;

    fn prepare(&self, prompt: &Prompt, life: &Lifetime) -> Result<LocalPrompt> {
        let formats = std::iter::once(&self.format).chain(self.guidance.iter().map(|g| &g.format));
        let tokens = formats
            .enumerate()
            .map(|(index, format)| {
                let tokens = format.encode(&format.render(prompt)?)?;
                if tokens.is_empty() {
                    return Err(Error::EmptyPrompt { model: Self::model_name(index) });
                }
                let context = self.context(index);
                // The last token drawn is never run.
                if tokens.len() + life.response - 1 > context {
                    return Err(Error::ContextTooShort {
                        model: Self::model_name(index),
                        context,
                        tokens: tokens.len(),
                        new_tokens: life.response,
                    });
                }
                Ok(tokens)
            })
            .collect::<Result<_>>()?;
        Ok(LocalPrompt { tokens })
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
                    Span { tokens: &tokens[..tokens.len() - 1], start: 0, sequence }
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
        let steps = drafts.iter().map(|draft| draft.steps).max().unwrap_or(0);
        for step in 0..steps {
            let mut live: Vec<_> = drafts
                .iter_mut()
                .filter(|draft| step < draft.steps && draft.response.finish.is_none())
                .collect();
            if live.is_empty() {
                break;
            }
            let tokens = self.step(&mut live)?;
            for (draft, token) in live.into_iter().zip(tokens) {
                draft.state.pending.fill(token);
                if self.eos.contains(&token) {
                    draft.response.push_eos(token);
                } else {
                    draft.response.push(token, self.format.tokenizer.bytes(token), draft.stop);
                }
            }
        }
        Ok(())
    }
}
