//! What a tag is about, by its tokens.

use std::collections::BTreeSet;

use super::tokens::{Kind, Token};

/// The values that a tag gives names to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Assigned {
    Nothing,
    /// `set x = …`, to the end.
    All,
    /// `set x.y = …`, to the end.
    InNamespace,
    /// `with x = …, y = …`.
    Each,
}

pub(super) fn assigned(tokens: &[Token<'_>]) -> Assigned {
    let mut names = tokens.iter().filter(|token| token.kind != Kind::Space);
    match names.next().map(|first| first.text) {
        Some("with") => Assigned::Each,
        Some("set") if assigns(tokens) => {
            match names.find(|token| [".", "="].contains(&token.text)) {
                Some(token) if token.text == "." => Assigned::InNamespace,
                _ => Assigned::All,
            }
        }
        _ => Assigned::Nothing,
    }
}

/// Whether a tag's block may run more than once.
pub(super) fn repeats(tokens: &[Token<'_>]) -> bool {
    next_is(tokens, &["for", "macro"])
}

/// Whether a tag works something out that it may then not use.
pub(super) fn compares(tokens: &[Token<'_>]) -> bool {
    next_is(tokens, &["if", "for", "call", "filter"])
}

/// Whether the first token, behind spaces, is one of these.
pub(super) fn next_is(tokens: &[Token<'_>], texts: &[&str]) -> bool {
    let next = tokens.iter().find(|token| token.kind != Kind::Space);
    next.is_some_and(|next| texts.contains(&next.text))
}

/// Whether an opening bracket makes something out of values that have names: parentheses only with a comma.
pub(super) fn has_parts(open: &str, tokens: &[Token<'_>]) -> bool {
    let (mut depth, mut has_name, mut has_comma) = (0_usize, false, open != "(");
    for token in tokens {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close if depth == 0 => break,
            Kind::Close => depth -= 1,
            Kind::Name => has_name = true,
            _ => has_comma |= depth == 0 && token.text == ",",
        }
    }
    has_name && has_comma
}

/// True for `set x = …`, and not for `set x`, which begins a block.
pub(super) fn assigns(tokens: &[Token<'_>]) -> bool {
    let mut depth = 0_usize;
    tokens.iter().any(|token| {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && token.text == "="
    })
}

/// Refuses a macro's default that names another parameter, `macro f(a, b=a)`: minijinja would take
/// it as undefined.
pub(super) fn defaults_stand_alone(tokens: &[Token<'_>]) -> Result<(), String> {
    let tokens: Vec<_> = tokens.iter().filter(|token| token.kind != Kind::Space).collect();
    if tokens.first().is_none_or(|first| first.text != "macro") {
        return Ok(());
    }
    let (mut parameters, mut depth, mut in_default) = (BTreeSet::new(), 0_usize, false);
    for (index, token) in tokens.iter().enumerate().skip(2) {
        let follows = |text: &str| tokens[index - 1].text == text;
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            Kind::Name if depth == 1 && !in_default => {
                parameters.insert(token.text);
            }
            Kind::Name if !follows(".") && !follows("|") && parameters.contains(token.text) => {
                let is_keyword = tokens.get(index + 1).is_some_and(|next| next.text == "=");
                if !is_keyword {
                    return Err(format!(
                        "the macro {} has a default that names its parameter {}, which is not \
                         supported",
                        tokens[1].text, token.text
                    ));
                }
            }
            _ if depth == 1 && token.text == "=" => in_default = true,
            _ if depth == 1 && token.text == "," => in_default = false,
            _ => {}
        }
    }
    Ok(())
}
