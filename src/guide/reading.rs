//! From prompts, and responses that are given, to a pair's tokens, without its models.

use std::sync::Arc;

use super::cached::{Share, reserved};
use super::{GuideTokens, Lifetime, Prompt};
use crate::engine::{Longest, Rows};
use crate::error::{Error, Result};
use crate::proposer::{Finish, Response};
use crate::text::{PromptFormat, PromptText};

/// A prompt for each pair.
pub struct PairPrompt {
    pub(super) pairs: Vec<Rendered>,
}

pub(super) struct Rendered {
    pub text: Arc<PromptText>,
    pub tokens: Arc<[u32]>,
    /// Those of the prompt and the response that was given with it.
    pub given: Option<Arc<[u32]>>,
    pub share: Share,
}

/// An error if one of the models has no row for one of these tokens.
pub(super) fn check_rows(format: &PromptFormat, rows: [Rows; 2], tokens: &[u32]) -> Result<()> {
    rows.into_iter().try_for_each(|rows| rows.check(tokens, &format.tokenizer))
}

/// What it takes to read for a pair, which is all but its models.
pub(super) struct Reading {
    pub format: PromptFormat,
    pub tokens: GuideTokens,
    pub eos: Option<u32>,
    pub longest_token: usize,
    pub longest: Longest,
    pub rows: [Rows; 2],
    /// Whether any end of a response counts.
    pub compat: bool,
}

impl Reading {
    /// Whether tokens come as they are, and no more of them than a search has been told.
    pub fn takes_ids(&self, life: &Lifetime) -> bool {
        self.tokens == GuideTokens::Ids && !life.is_given()
    }

    /// What a search reserves for what its hypotheses keep cached.
    pub fn reserved(&self, life: &Lifetime) -> Lifetime {
        let longest = self.longest.tokens();
        if self.takes_ids(life) || life.is_given() {
            Lifetime { response: life.response.min(longest), ..*life }
        } else {
            reserved(life, longest)
        }
    }

    /// Tokens of the longest text that a search may meet beyond what it keeps cached.
    pub fn longest_text(&self, prompt: &Rendered, life: &Lifetime) -> usize {
        if self.takes_ids(life) {
            return 0;
        }
        let token = if life.is_given() { 1 } else { self.longest_token };
        let bytes = prompt.text.text.len().saturating_add(life.response.saturating_mul(token));
        let end = usize::from(self.eos.is_some());
        (self.format.tokenizer.most_tokens(bytes) + end).min(self.longest.tokens())
    }

    pub fn prompt(
        &self,
        prompt: &Prompt,
        life: &Lifetime,
        given: Option<&Response>,
    ) -> Result<Rendered> {
        let unreadable = || Error::unreadable("guide");
        let text = self.format.render(prompt).map_err(unreadable())?;
        let tokens = self.format.encode(&text).map_err(unreadable())?;
        check_rows(&self.format, self.rows, &tokens)?;
        // Text may have fewer tokens; that is found out while scoring.
        let new_tokens = if self.takes_ids(life) { life.response } else { 1 };
        let check = |new_tokens| self.longest.check("guide", tokens.len(), new_tokens);
        // The message is of what was asked for.
        check(new_tokens).or_else(|_| check(life.response))?;
        let given = given.map(|response| self.given(&text, &tokens, response)).transpose()?;
        let share = Share::new(&self.reserved(life), tokens.len());
        Ok(Rendered { text: text.into(), tokens: tokens.into(), given, share })
    }

    /// The tokens of a prompt and a response that comes as text.
    fn given(&self, text: &PromptText, prompt: &[u32], response: &Response) -> Result<Arc<[u32]>> {
        let whole = text.with(&String::from_utf8_lossy(&response.text));
        let tokens = with_end(&self.format, &whole, self.eos, ended(response, self.compat))?;
        self.longest.check("guide", prompt.len(), tokens.len().saturating_sub(prompt.len()))?;
        check_rows(&self.format, self.rows, &tokens)?;
        Ok(tokens.into())
    }
}

/// Whether the end of a response counts.
pub(super) fn ended(response: &Response, compat: bool) -> bool {
    match response.finish {
        Some(Finish::Eos) => true,
        Some(Finish::Stop | Finish::Length) => compat,
        None => false,
    }
}

/// The tokens of a whole text, and of its end where that counts.
pub(super) fn with_end(
    format: &PromptFormat,
    whole: &PromptText,
    eos: Option<u32>,
    ended: bool,
) -> Result<Vec<u32>> {
    let mut tokens = format.encode(whole).map_err(Error::unreadable("guide"))?;
    if ended {
        tokens.push(eos.ok_or(Error::NoEndToken)?);
    }
    Ok(tokens)
}
