//! A template's source, made ready for minijinja: where Jinja2 reads a text in another way, it is
//! written in another way.

use super::escapes::{Piece, unescaped};
use super::limits::MAX_SOURCE;
use super::shape::{
    Assigned, assigned, assigns, compares, defaults_stand_alone, has_parts, next_is, repeats,
};
use super::tokens::{Kind, Tag, Token, raw_end, raw_tag};

/// The functions for Python's `%` and `~`, which minijinja has only for some values.
pub(super) const MODULO: &str = "__modulo";
pub(super) const CONCAT: &str = "__concat";
/// The functions that hold a template to its limits.
pub(super) const KEPT: &str = "__kept";
pub(super) const KEPT_IN_NAMESPACE: &str = "__kept_in_namespace";
pub(super) const TICK: &str = "__tick";
const TICKED: &str = "__ticked";

/// Operators, filters, members and brackets that one value of an expression may be behind or inside of,
/// together: minijinja reads and frees expressions by recursion.
const MAX_LINKS: usize = 250;
/// `%` in a row, each a call in a call: more than minijinja would read.
const MAX_MODULOS: usize = 200;
/// Branches of one `if`, which minijinja nests.
const MAX_BRANCHES: usize = 250;

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
        if original.len() > MAX_SOURCE {
            return Err(format!("it has {} bytes, more than {MAX_SOURCE}", original.len()));
        }
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

/// The beginnings, in the text that is written, of a sum and of the operands on the left of `~` and of `%`;
/// and the calls that are still open: `a * b % c` becomes `__modulo(a * b, c)`, and `a + b` becomes
/// `__kept(a + b)`.
struct Chains {
    sum: usize,
    concat: usize,
    product: usize,
    sum_is_open: bool,
    concat_is_open: bool,
    product_is_open: bool,
    modulos: usize,
}

#[derive(Default)]
struct Writer {
    text: String,
    names_developer: bool,
    /// What the next token is behind or inside of.
    links: usize,
    /// The blocks that are open, but for `if`, the innermost last.
    blocks: Vec<String>,
    /// Branches of each `if` that is open.
    branches: Vec<usize>,
    /// What follows are names that get values, with or without brackets.
    is_target: bool,
}

impl Writer {
    fn tag(&mut self, tag: &Tag<'_>) -> Result<(), String> {
        self.text.push_str(tag.open);
        let is_block = tag.open.starts_with("{%");
        // Before the work of a tag that writes nothing, a look at the clock. What the tag says of the space in
        // front of it, the first tag has to say.
        if is_block && compares(&tag.tokens) {
            self.text.push_str(&format!(" set {TICKED} = {TICK}() %}}{{%"));
        }
        if is_block {
            defaults_stand_alone(&tag.tokens)?;
            self.statement(&tag.tokens)?;
        }
        let before = if is_block { Before::Statement } else { Before::Operator };
        let mut tokens = &tag.tokens[..];
        (self.links, self.is_target) = (0, false);
        let assigned = if is_block { assigned(tokens) } else { Assigned::Nothing };
        self.level(&mut tokens, before, assigned)?;
        // Brackets that close more than is open: no valid Jinja.
        while let Some((first, rest)) = tokens.split_first() {
            self.text.push_str(first.text);
            tokens = rest;
            self.level(&mut tokens, Before::Operand, Assigned::Nothing)?;
        }
        // Each round of a loop, and each call of a macro, looks at the clock. What the tag says of the space
        // behind it, the last tag has to say.
        if is_block && repeats(&tag.tokens) && !tag.close.is_empty() {
            self.text.push_str(&format!("%}}{{% set {TICKED} = {TICK}() "));
        }
        self.text.push_str(tag.close);
        Ok(())
    }

    /// One more operator, member or bracket that what follows is behind or inside of.
    fn link(&mut self) -> Result<(), String> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err("an expression is nested too deeply, or has too many operators".into());
        }
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
            "if" => self.branches.push(0),
            "elif" => {
                if let Some(branches) = self.branches.last_mut() {
                    *branches += 1;
                }
                if self.branches.iter().sum::<usize>() > MAX_BRANCHES {
                    return Err("an if has too many branches".into());
                }
            }
            "endif" => {
                self.branches.pop();
            }
            end if end.starts_with("end") => {
                self.blocks.pop();
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes tokens up to the bracket that closes this level.
    fn level(
        &mut self,
        tokens: &mut &[Token<'_>],
        mut before: Before,
        mut assigned: Assigned,
    ) -> Result<(), String> {
        let mut chains = self.chains();
        let links = self.links;
        // What is to be written behind the value that a tag assigns.
        let mut end = "";
        while let Some((&Token { kind, text }, rest)) = tokens.split_first() {
            if kind == Kind::Close {
                break;
            }
            *tokens = rest;
            self.is_target &= !matches!(text, "in" | "=");
            match (kind, text) {
                // The operands of `~` become a list.
                (Kind::Operator, "," | "~") => self.links = links,
                (Kind::Operator | Kind::Open, _)
                | (Kind::Name, "and" | "or" | "not" | "in" | "is" | "if" | "else") => {
                    self.link()?
                }
                _ => {}
            }
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
                    // A list, dict or tuple of what the template has, and no subscript or call.
                    let is_made = !has_operand && !self.is_target && has_parts(text, rest);
                    if is_made {
                        self.text.push_str(&format!(" {KEPT}("));
                    }
                    self.text.push_str(text);
                    let links = self.links;
                    self.level(tokens, Before::Operator, Assigned::Nothing)?;
                    self.links = links;
                    if let Some((close, rest)) = tokens.split_first() {
                        self.text.push_str(close.text);
                        *tokens = rest;
                    }
                    if is_made {
                        self.text.push(')');
                    }
                    Before::Operand
                }
                Kind::Name if before == Before::Statement => {
                    self.is_target = ["for", "set", "with"].contains(&text);
                    // Blocks of a scope of their own, which is all that `generation` is here.
                    self.text.push_str(match text {
                        "generation" => "with",
                        "endgeneration" => "endwith",
                        other => other,
                    });
                    if text == "call" && next_is(tokens, &["("]) {
                        self.parameters(tokens)?;
                    }
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
                        let Chains { sum, sum_is_open, concat, .. } = chains;
                        let concat_is_open = true;
                        chains =
                            Chains { sum, sum_is_open, concat, concat_is_open, ..self.chains() };
                        Before::Operator
                    }
                    "+" | "-" if has_operand => {
                        self.close_concat(&mut chains);
                        self.open_sum(&mut chains);
                        self.text.push_str(text);
                        let Chains { sum, sum_is_open, .. } = chains;
                        chains = Chains { sum, sum_is_open, ..self.chains() };
                        Before::Operator
                    }
                    "*" | "/" | "//" | "%" => {
                        self.close_product(&mut chains);
                        if text == "*" && has_operand {
                            self.open_sum(&mut chains);
                        }
                        if text == "%" {
                            chains.modulos += 1;
                            if chains.modulos > MAX_MODULOS {
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
                    "=" if assigned != Assigned::Nothing => {
                        self.boundary(&mut chains, text);
                        let (begin, behind) = match assigned {
                            Assigned::InNamespace => (KEPT_IN_NAMESPACE, "))"),
                            // What is assigned may be a tuple without brackets.
                            Assigned::All => (KEPT, "))"),
                            _ => (KEPT, ")"),
                        };
                        let brackets = &"(("[..behind.len()];
                        self.text.push_str(&format!(" {begin}{brackets}"));
                        if assigned != Assigned::Each {
                            assigned = Assigned::Nothing;
                        }
                        end = behind;
                        chains = self.chains();
                        Before::Operator
                    }
                    "," if assigned == Assigned::Each => {
                        self.close(&mut chains);
                        self.text.push_str(std::mem::take(&mut end));
                        self.boundary(&mut chains, text);
                        self.is_target = true;
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
        self.text.push_str(end);
        Ok(())
    }

    /// Writes the parameters of a call block, which are no tuple.
    fn parameters(&mut self, tokens: &mut &[Token<'_>]) -> Result<(), String> {
        while let Some((first, rest)) = tokens.split_first() {
            self.text.push_str(first.text);
            *tokens = rest;
            if first.kind == Kind::Open {
                self.level(tokens, Before::Operator, Assigned::Nothing)?;
            } else if first.kind == Kind::Close {
                break;
            }
        }
        Ok(())
    }

    fn chains(&self) -> Chains {
        let here = self.text.len();
        Chains {
            sum: here,
            concat: here,
            product: here,
            sum_is_open: false,
            concat_is_open: false,
            product_is_open: false,
            modulos: 0,
        }
    }

    /// A token that binds less than `+`: the operands end before it, and others begin behind it.
    fn boundary(&mut self, chains: &mut Chains, text: &str) {
        self.close(chains);
        self.text.push_str(text);
        *chains = self.chains();
    }

    /// Begins the call around a sum or product, which may be one of lists.
    fn open_sum(&mut self, chains: &mut Chains) {
        if !std::mem::replace(&mut chains.sum_is_open, true) {
            let call = format!(" {KEPT}(");
            self.text.insert_str(chains.sum, &call);
            chains.concat += call.len();
            chains.product += call.len();
        }
    }

    fn close(&mut self, chains: &mut Chains) {
        self.close_concat(chains);
        if std::mem::take(&mut chains.sum_is_open) {
            self.text.push(')');
        }
    }

    fn close_concat(&mut self, chains: &mut Chains) {
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
