//! A template's source, made ready for minijinja: where Jinja2 reads a text in another way, it is
//! written in another way.

use std::collections::BTreeSet;

use super::escapes::{Piece, unescaped};
use super::tokens::{Kind, Tag, Token, raw_end, raw_tag};

/// The functions for Python's `%` and `~`, which minijinja has only for some values.
pub(super) const MODULO: &str = "__modulo";
pub(super) const CONCAT: &str = "__concat";

/// Brackets in brackets, and `%` in a row: more than minijinja would read.
const MAX_DEPTH: usize = 200;

/// A source that minijinja reads as Jinja2 reads the original.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) text: String,
    /// Some string of the template is exactly `developer`, so that it knows that role.
    pub(super) names_developer: bool,
}

impl Source {
    /// Rewrites the original. Lines stay where they are. Text that is no valid Jinja stays as it is, and
    /// minijinja says why; the error is about valid Jinja that minijinja cannot be brought to read.
    pub(super) fn new(original: &str) -> Result<Self, String> {
        // Python's jinja2 does so before it reads anything, also within strings and raw blocks.
        let original = original.replace("\r\n", "\n").replace('\r', "\n");
        let mut writer = Writer::default();
        let mut rest = &original[..];
        while let Some(at) = next_mark(rest) {
            writer.text.push_str(&rest[..at]);
            rest = &rest[at..];
            let taken = if rest.starts_with("{#") {
                verbatim(rest, rest.find("#}").map(|end| end + 2), &mut writer)
            } else if let Some(begin) = raw_tag(rest, "raw") {
                let end = raw_end(&rest[begin..]).map(|end| begin + end);
                verbatim(rest, end, &mut writer)
            } else {
                let tag = Tag::read(rest);
                writer.tag(&tag).map_err(|reason| {
                    let line = original[..original.len() - rest.len()].matches('\n').count() + 1;
                    format!("{reason} (line {line})")
                })?;
                tag.len
            };
            rest = &rest[taken..];
        }
        writer.text.push_str(rest);
        Ok(Self { text: writer.text, names_developer: writer.names_developer })
    }
}

fn next_mark(text: &str) -> Option<usize> {
    let mut braces = text.match_indices('{').map(|(at, _)| at);
    braces.find(|at| text[at + 1..].starts_with(['{', '%', '#']))
}

/// Copies up to `end`, or all of it.
fn verbatim(text: &str, end: Option<usize>, writer: &mut Writer) -> usize {
    let end = end.unwrap_or(text.len());
    writer.text.push_str(&text[..end]);
    end
}

/// The kinds of tokens that may be in front of one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing, at the beginning of a block's tag.
    Statement,
    /// An operator, a comma, a keyword: an operand follows.
    Operator,
    /// `.` or `|`: a name that belongs to the operand follows.
    Member,
    /// `is`, perhaps with `not`: the name of a test follows.
    Is,
    /// The name of a test, which may have one operand behind it.
    Test,
    /// A string, with which another one is joined.
    Text,
    Operand,
}

/// The beginnings, in the text that is written, of the operands on the left of `~` and of `%`; and
/// the calls that are still open: `a * b % c` becomes `__modulo(a * b, c)`.
struct Chains {
    concat: usize,
    product: usize,
    concat_is_open: bool,
    product_is_open: bool,
    modulos: usize,
}

#[derive(Default)]
struct Writer {
    text: String,
    names_developer: bool,
    depth: usize,
    /// The blocks that are open, but for `if`, the innermost last.
    blocks: Vec<String>,
}

impl Writer {
    fn tag(&mut self, tag: &Tag<'_>) -> Result<(), String> {
        self.text.push_str(tag.open);
        let is_block = tag.open.starts_with("{%");
        if is_block {
            defaults_stand_alone(&tag.tokens)?;
            self.statement(&tag.tokens)?;
        }
        let before = if is_block { Before::Statement } else { Before::Operator };
        let mut tokens = &tag.tokens[..];
        self.level(&mut tokens, before)?;
        // Brackets that close more than is open: no valid Jinja.
        while let Some((first, rest)) = tokens.split_first() {
            self.text.push_str(first.text);
            tokens = rest;
            self.level(&mut tokens, Before::Operand)?;
        }
        self.text.push_str(tag.close);
        Ok(())
    }

    /// Keeps account of blocks, and refuses to leave a loop out of another block inside it: of such a
    /// block minijinja would not know that it has ended.
    fn statement(&mut self, tokens: &[Token<'_>]) -> Result<(), String> {
        let Some(first) = tokens.iter().find(|token| token.kind != Kind::Space) else {
            return Ok(());
        };
        match first.text {
            "break" | "continue" => match self.blocks.last() {
                Some(block) if block != "for" => {
                    return Err(format!("{} inside {block} is not supported", first.text));
                }
                _ => {}
            },
            "set" if assigns(tokens) => {}
            "for" | "with" | "generation" | "filter" | "call" | "macro" | "set" | "block" => {
                self.blocks.push(first.text.to_owned());
            }
            "autoescape" => return Err("the block autoescape is not supported".into()),
            "endif" => {}
            end if end.starts_with("end") => {
                self.blocks.pop();
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes tokens up to the bracket that closes this level.
    fn level(&mut self, tokens: &mut &[Token<'_>], mut before: Before) -> Result<(), String> {
        let mut chains = self.chains();
        while let Some((&Token { kind, text }, rest)) = tokens.split_first() {
            if kind == Kind::Close {
                break;
            }
            *tokens = rest;
            let has_operand = matches!(before, Before::Operand | Before::Test | Before::Text);
            before = match kind {
                Kind::Space => {
                    self.text.push_str(text);
                    before
                }
                Kind::Number => {
                    self.text.push_str(text);
                    Before::Operand
                }
                Kind::Text => {
                    self.literal(text)?;
                    Before::Text
                }
                Kind::Open => {
                    self.text.push_str(text);
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err("brackets are nested too deeply".into());
                    }
                    self.level(tokens, Before::Operator)?;
                    self.depth -= 1;
                    if let Some((close, rest)) = tokens.split_first() {
                        self.text.push_str(close.text);
                        *tokens = rest;
                    }
                    Before::Operand
                }
                Kind::Name if before == Before::Statement => {
                    // Blocks of a scope of their own, which is all that `generation` is here.
                    self.text.push_str(match text {
                        "generation" => "with",
                        "endgeneration" => "endwith",
                        other => other,
                    });
                    chains = self.chains();
                    Before::Operator
                }
                Kind::Name if before == Before::Member => {
                    self.text.push_str(text);
                    Before::Operand
                }
                Kind::Name if before == Before::Is => {
                    self.text.push_str(text);
                    if text == "not" { Before::Is } else { Before::Test }
                }
                Kind::Name if text == "is" => {
                    self.text.push_str(text);
                    Before::Is
                }
                Kind::Name => {
                    let is_keyword = ["and", "or", "not", "in", "if", "else"].contains(&text);
                    // A name behind an operand is a word of a statement, such as `recursive`.
                    if is_keyword || (has_operand && before != Before::Test) {
                        self.boundary(&mut chains, text);
                        Before::Operator
                    } else {
                        self.text.push_str(text);
                        Before::Operand
                    }
                }
                Kind::Operator => match text {
                    "." | "|" => {
                        self.text.push_str(text);
                        Before::Member
                    }
                    "~" => {
                        self.close_product(&mut chains);
                        if !chains.concat_is_open {
                            self.text.insert_str(chains.concat, &format!(" {CONCAT}(["));
                        }
                        self.text.push(',');
                        let concat = chains.concat;
                        chains = Chains { concat, concat_is_open: true, ..self.chains() };
                        Before::Operator
                    }
                    "*" | "/" | "//" | "%" => {
                        self.close_product(&mut chains);
                        if text == "%" {
                            chains.modulos += 1;
                            if chains.modulos > MAX_DEPTH {
                                return Err("too many % in a row".into());
                            }
                            self.text.insert_str(chains.product, &format!(" {MODULO}("));
                            self.text.push(',');
                            chains.product_is_open = true;
                        } else {
                            self.text.push_str(text);
                        }
                        Before::Operator
                    }
                    "**" => {
                        self.text.push_str(text);
                        Before::Operator
                    }
                    // Signs belong to their operand.
                    "+" | "-" if !has_operand => {
                        self.text.push_str(text);
                        Before::Operator
                    }
                    _ => {
                        self.boundary(&mut chains, text);
                        Before::Operator
                    }
                },
                Kind::Close => before,
            };
        }
        self.close(&mut chains);
        Ok(())
    }

    fn chains(&self) -> Chains {
        let here = self.text.len();
        Chains {
            concat: here,
            product: here,
            concat_is_open: false,
            product_is_open: false,
            modulos: 0,
        }
    }

    /// A token that binds less than `~`: the operands end before it, and others begin behind it.
    fn boundary(&mut self, chains: &mut Chains, text: &str) {
        self.close(chains);
        self.text.push_str(text);
        *chains = self.chains();
    }

    fn close(&mut self, chains: &mut Chains) {
        self.close_product(chains);
        if std::mem::take(&mut chains.concat_is_open) {
            self.text.push_str("])");
        }
    }

    fn close_product(&mut self, chains: &mut Chains) {
        if std::mem::take(&mut chains.product_is_open) {
            self.text.push(')');
        }
    }

    /// A string, whose escapes are those of Python.
    fn literal(&mut self, text: &str) -> Result<(), String> {
        let quote = &text[..1];
        let body = text.strip_prefix(quote).and_then(|body| body.strip_suffix(quote));
        let Some(body) = body.filter(|_| text.len() > 1) else {
            self.text.push_str(text);
            return Ok(());
        };
        self.names_developer |= body == "developer";
        if !body.contains('\\') {
            self.text.push_str(text);
            return Ok(());
        }
        self.text.push_str(quote);
        for piece in unescaped(body) {
            match piece.map_err(|reason| format!("{reason} in the string {text}"))? {
                // As an escape, so that lines stay where they are.
                Piece::Escaped('\n') => self.text.push_str("\\n"),
                Piece::Escaped(c) | Piece::Plain(c) => {
                    if c == '\\' || quote.starts_with(c) {
                        self.text.push('\\');
                    }
                    self.text.push(c);
                }
            }
        }
        self.text.push_str(quote);
        Ok(())
    }
}

/// True for `set x = …`, and not for `set x`, which begins a block.
fn assigns(tokens: &[Token<'_>]) -> bool {
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
fn defaults_stand_alone(tokens: &[Token<'_>]) -> Result<(), String> {
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
