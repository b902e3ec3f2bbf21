//! The second implementors of seam 1: a scripted base model and a scripted guide, pure functions
//! of the tokens written so far, so that search can be held against brute force.
#![allow(dead_code)] // each test file uses a part

use std::sync::Arc;

use trimtab::error::{Error, Result};
use trimtab::guide::{self, Guide, Score, Scoring};
use trimtab::kv_cache::Lifetime;
use trimtab::proposer::{self, Draft, Finish, Prompt, Proposer, Response, Sampling, StopStrings};
use trimtab::search::Settings;

/// A repeatable number in [0, 1) from a list of tokens.
pub fn noise(salt: u64, tokens: &[u32]) -> f64 {
    let mut hash = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD6E8_FEB8_6659_FD93;
    for &token in tokens {
        hash = (hash ^ u64::from(token)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        hash ^= hash >> 32;
    }
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// The number that a prompt's random numbers are named by, computed once more.
pub fn stream(text: &str) -> u64 {
    let bytes = (text.len() as u64).to_le_bytes();
    bytes.iter().chain(text.as_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Writes tokens `0..vocab`; token 0 ends a response.
#[derive(Clone)]
pub struct Script {
    pub vocab: u32,
    /// How a draft's next token comes about.
    pub pick: Pick,
    pub pages: usize,
    /// Tokens drawn so far.
    pub drawn: usize,
}

#[derive(Clone, Copy)]
pub enum Pick {
    /// By the draft's own random number, shifted by what is written.
    Random,
    /// The candidate's number, modulo the vocabulary: all continuations in turn.
    Enumerate,
    /// Always the same one.
    Constant(u32),
}

impl Script {
    pub fn new(vocab: u32, pick: Pick) -> Self {
        Self { vocab, pick, pages: 1 << 20, drawn: 0 }
    }

    /// The script itself: also used by the brute-force search.
    pub fn next(&self, prompt: &str, written: &[u32], uniform: f32, candidate: u32) -> u32 {
        match self.pick {
            Pick::Random => {
                let shift = noise(prompt.len() as u64, written);
                ((f64::from(uniform) + shift).fract() * f64::from(self.vocab)) as u32
            }
            Pick::Enumerate => candidate % self.vocab,
            Pick::Constant(token) => token,
        }
    }
}

impl Proposer for Script {
    type Prompt = String;
    type State = String;

    fn reader(&self) -> proposer::Reader<String> {
        Arc::new(|prompt, _| match prompt {
            Prompt::Text(text) if text.is_empty() => Err(Error::EmptyPrompt { model: "base" }),
            Prompt::Text(text) => Ok(text.clone()),
            Prompt::Chat(_) => unreachable!("the tests give texts"),
        })
    }

    fn pages_needed(&self, prompt: &String, life: &Lifetime) -> Vec<usize> {
        vec![life.pages(prompt.len())]
    }

    fn page_capacity(&self) -> Vec<usize> {
        vec![self.pages]
    }

    fn open(&mut self, prompts: &[&String]) -> Result<Vec<String>> {
        Ok(prompts.iter().map(|prompt| prompt.to_string()).collect())
    }

    fn extend(&mut self, drafts: &mut [Draft<'_, String>]) -> Result<()> {
        for draft in drafts {
            for _ in 0..draft.steps {
                if draft.response.finish.is_some() {
                    break;
                }
                let mut draw = draft.draw;
                draw.position = draft.response.tokens.len() as u32;
                let written = &draft.response.tokens;
                let token = self.next(draft.state, written, draw.uniform(), draw.candidate);
                self.drawn += 1;
                if token == 0 {
                    draft.response.push_eos(0);
                } else {
                    let letter = [b'a' + (token - 1) as u8];
                    draft.response.push(token, &letter, draft.stop);
                }
            }
        }
        Ok(())
    }
}

/// Types tokens of a real vocabulary, or of one that the test makes up, at random.
#[derive(Clone)]
pub struct Typist {
    /// What it draws from: a token and its bytes.
    pub keys: Vec<(u32, Vec<u8>)>,
    /// Ends a response, once in about 15 tokens.
    pub eos: u32,
}

impl Typist {
    /// The next token: also used by the re-implementation of the paper's code.
    pub fn next(&self, written: &[u32], uniform: f32) -> usize {
        let choice = (f64::from(uniform) + noise(7, written)).fract() * 15.0;
        if choice < 1.0 {
            self.keys.len()
        } else {
            (choice.fract() * self.keys.len() as f64) as usize
        }
    }
}

impl Proposer for Typist {
    type Prompt = ();
    type State = ();

    fn reader(&self) -> proposer::Reader<()> {
        Arc::new(|_, _| Ok(()))
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

    fn extend(&mut self, drafts: &mut [Draft<'_, ()>]) -> Result<()> {
        for draft in drafts {
            for _ in 0..draft.steps {
                if draft.response.finish.is_some() {
                    break;
                }
                let mut draw = draft.draw;
                draw.position = draft.response.tokens.len() as u32;
                match self.keys.get(self.next(&draft.response.tokens, draw.uniform())) {
                    Some((token, bytes)) if *token != self.eos => {
                        draft.response.push(*token, bytes, draft.stop);
                    }
                    _ => draft.response.push_eos(self.eos),
                }
            }
        }
        Ok(())
    }
}

/// Gains are sums of noise over prefixes, as log-ratios are.
#[derive(Clone, Default)]
pub struct Judge {
    pub salt: u64,
    /// All gains are equal.
    pub indifferent: bool,
    /// Responses that contain this token have no gain.
    pub poison: Option<u32>,
    /// N where one of N responses cannot be read, by its tokens; 0 for none.
    pub unreadable: u64,
    /// Responses scored so far.
    pub scored: usize,
}

impl Judge {
    /// Whether a response cannot be read.
    pub fn loses(&self, tokens: &[u32]) -> bool {
        self.unreadable > 0 && noise(self.salt ^ 77, tokens) * (self.unreadable as f64) < 1.0
    }

    /// The gain by its definition.
    pub fn gain(&self, tokens: &[u32]) -> f64 {
        if self.indifferent {
            return 0.0;
        }
        (1..=tokens.len()).map(|end| noise(self.salt, &tokens[..end]) - 0.5).sum()
    }
}

impl Guide for Judge {
    type Prompt = ();
    type State = Vec<u32>;

    fn reader(&self) -> guide::Reader<()> {
        Arc::new(|_, _, _| Ok(()))
    }

    fn pages_needed(&self, _: &(), _: &Lifetime) -> Vec<usize> {
        vec![]
    }

    fn page_capacity(&self) -> Vec<usize> {
        vec![]
    }

    fn open(&mut self, prompts: &[&()]) -> Result<Vec<Vec<u32>>> {
        Ok(vec![Vec::new(); prompts.len()])
    }

    fn score(&mut self, items: &mut [Scoring<'_, Vec<u32>>]) -> Result<Vec<Result<Score>>> {
        self.scored += items.len();
        Ok(items
            .iter_mut()
            .map(|item| {
                let tokens = &item.response.tokens;
                // A state must be that of the candidate's own past.
                assert_eq!(item.state[..], tokens[..item.state.len()], "a state went astray");
                item.state.clone_from(tokens);
                if self.poison.is_some_and(|token| tokens.contains(&token)) {
                    return Err(Error::NotFinite { what: "the gain of a candidate".into() });
                }
                if self.loses(tokens) {
                    let (context, new_tokens) = (100, tokens.len());
                    let model = "guide";
                    return Err(Error::ContextTooShort { model, context, tokens: 1, new_tokens });
                }
                let gain = self.gain(tokens);
                Ok(Score { logp_tuned: gain, logp_untuned: 0.0, gain, tokens: tokens.len() })
            })
            .collect())
    }
}

/// Settings with plain sampling.
pub fn settings(
    w: usize,
    k: usize,
    l: Option<usize>,
    max_new_tokens: usize,
    seed: u64,
) -> Settings {
    Settings {
        beam_width: w,
        successors: k,
        chunk_len: l,
        max_new_tokens,
        sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
        seed,
        stop: StopStrings::default(),
        compat: false,
    }
}

/// `Response` from tokens, for tests of the guide.
pub fn response(tokens: &[u32], text: &str, finish: Option<Finish>) -> Response {
    Response { tokens: tokens.to_vec(), text: text.as_bytes().to_vec(), stop: None, finish }
}
