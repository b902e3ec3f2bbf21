//! A template's source, made ready for minijinja: where Jinja2 reads a text in another way, it is
//! written in another way.

use super::python;

/// The functions that stand for Python's `%` and `~`, which minijinja has only for some values.
pub(super) const MODULO: &str = "__modulo";
pub(super) const CONCAT: &str = "__concat";

/// A source that minijinja reads as Jinja2 reads the original.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) text: String,
    /// Whether some code compares with, or writes, exactly `developer`: the template knows that role.
    pub(super) names_developer: bool,
}

impl Source {
    /// Rewrites the original. Lines stay where they are. What is no valid Jinja stays as it is, and
    /// minijinja says why; the error is about valid Jinja that minijinja cannot be brought to read.
    pub(super) fn new(original: &str) -> Result<Self, String> {
        // Python's jinja2 does so before it reads anything, also within strings and raw blocks.
        let original = original.replace("\r\n", "\n").replace('\r', "\n");
        let mut writer = Writer { text: String::new(), names_developer: false, blocks: Vec::new() };
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
    ["{{", "{%", "{#"].iter().filter_map(|mark| text.find(mark)).min()
}

/// Copies up to `end`, or all of it.
fn verbatim(text: &str, end: Option<usize>, writer: &mut Writer) -> usize {
    let end = end.unwrap_or(text.len());
    writer.text.push_str(&text[..end]);
    end
}

/// The length of a tag `{% name %}` that the text begins with.
fn raw_tag(text: &str, name: &str) -> Option<usize> {
    let inside = text.strip_prefix("{%")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    let inside = inside.trim_start().strip_prefix(name)?.trim_start();
    let behind = inside.strip_prefix(['-', '+']).unwrap_or(inside).strip_prefix("%}")?;
    Some(text.len() - behind.len())
}

/// Where a raw block ends, its closing tag included.
fn raw_end(text: &str) -> Option<usize> {
    let tags = text.match_indices("{%").map(|(at, _)| at);
    tags.filter_map(|at| raw_tag(&text[at..], "endraw").map(|len| at + len)).next()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Space,
    Name,
    Number,
    /// With its quotes.
    Text,
    Open,
    Close,
    Operator,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
}

/// `{{ … }}` or `{% … %}`, in pieces: its opening, its tokens, its end.
struct Tag<'a> {
    open: &'a str,
    tokens: Vec<Token<'a>>,
    close: &'a str,
    len: usize,
}

impl<'a> Tag<'a> {
    /// The tag that a text begins with. One that does not end has no closing.
    fn read(text: &'a str) -> Self {
        let is_block = text.starts_with("{%");
        let sign = usize::from(text[2..].starts_with(['-', '+']));
        let open = &text[..2 + sign];
        let ends: &[&str] = if is_block { &["%}", "-%}", "+%}"] } else { &["}}", "-}}"] };
        let mut tokens = Vec::new();
        let (mut at, mut depth) = (open.len(), 0_usize);
        while at < text.len() {
            let rest = &text[at..];
            if let Some(end) = ends.iter().find(|end| depth == 0 && rest.starts_with(**end)) {
                let close = &rest[..end.len()];
                return Self { open, tokens, close, len: at + close.len() };
            }
            let token = token(rest);
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth = depth.saturating_sub(1),
                _ => {}
            }
            at += token.text.len();
            tokens.push(token);
        }
        Self { open, tokens, close: "", len: text.len() }
    }
}

/// The first token of a text, which is not empty.
fn token(text: &str) -> Token<'_> {
    let first = text.chars().next().unwrap_or(' ');
    let until = |is_part: &dyn Fn(char) -> bool| text.find(|c| !is_part(c)).unwrap_or(text.len());
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let (kind, len) = match first {
        c if c.is_whitespace() => (Kind::Space, until(&char::is_whitespace)),
        '0'..='9' => (Kind::Number, number(text)),
        c if is_name(c) => (Kind::Name, until(&is_name)),
        '\'' | '"' => (Kind::Text, quoted(text, first)),
        '(' | '[' | '{' => (Kind::Open, 1),
        ')' | ']' | '}' => (Kind::Close, 1),
        _ => {
            let pairs = ["**", "//", "==", "!=", "<=", ">="];
            let is_pair = pairs.iter().any(|pair| text.starts_with(pair));
            (Kind::Operator, if is_pair { 2 } else { first.len_utf8() })
        }
    };
    Token { kind, text: &text[..len] }
}

/// The length of a number: digits of any base, then a fraction, then an exponent.
fn number(text: &str) -> usize {
    let digits = |from: usize| {
        let rest = &text[from..];
        from + rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())
    };
    let is_digit = |at: usize| text[at..].starts_with(|c: char| c.is_ascii_digit());
    let mut len = digits(0);
    if text[len..].starts_with('.') && is_digit(len + 1) {
        len = digits(len + 1);
    }
    let is_hex = text.starts_with("0x") || text.starts_with("0X");
    let has_exponent = !is_hex && text[..len].ends_with(['e', 'E']);
    if has_exponent && text[len..].starts_with(['+', '-']) && is_digit(len + 1) {
        len = digits(len + 1);
    }
    len
}

/// The length of a string with its quotes; all that is left if it does not end.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// What stands in front of a token.
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

/// Where, in what is written, the operands on the left of `~` and of `%` begin, and whether one of
/// them is open: `a * b % c` becomes `__modulo(a * b, c)`.
struct Chains {
    concat: usize,
    product: usize,
    concat_is_open: bool,
    product_is_open: bool,
}

struct Writer {
    text: String,
    names_developer: bool,
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
            "set" if tokens.iter().any(|token| token.text == "=") => {}
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
                    self.level(tokens, Before::Operator)?;
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
                        self.close(&mut chains);
                        self.text.insert_str(chains.concat, &format!(" {CONCAT}("));
                        self.text.push(',');
                        chains.concat_is_open = true;
                        chains.product = self.text.len();
                        Before::Operator
                    }
                    "*" | "/" | "//" | "%" => {
                        self.close_product(&mut chains);
                        if text == "%" {
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
        Chains { concat: here, product: here, concat_is_open: false, product_is_open: false }
    }

    /// What binds less than `~`: the operands end before it, and others begin behind it.
    fn boundary(&mut self, chains: &mut Chains, text: &str) {
        self.close(chains);
        self.text.push_str(text);
        *chains = self.chains();
    }

    fn close(&mut self, chains: &mut Chains) {
        self.close_product(chains);
        if std::mem::take(&mut chains.concat_is_open) {
            self.text.push(')');
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
        for piece in python::unescaped(body) {
            match piece.map_err(|reason| format!("{reason} in the string {text}"))? {
                // As an escape, so that lines stay where they are.
                python::Piece::Escaped('\n') => self.text.push_str("\\n"),
                python::Piece::Escaped(c) | python::Piece::Plain(c) => {
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

/// Refuses a macro's default that names another parameter, `macro f(a, b=a)`: minijinja would take
/// it as undefined.
fn defaults_stand_alone(tokens: &[Token<'_>]) -> Result<(), String> {
    let tokens: Vec<_> = tokens.iter().filter(|token| token.kind != Kind::Space).collect();
    if tokens.first().is_none_or(|first| first.text != "macro") {
        return Ok(());
    }
    let (mut parameters, mut depth, mut in_default) = (Vec::new(), 0_usize, false);
    for (index, token) in tokens.iter().enumerate().skip(2) {
        let follows = |text: &str| tokens[index - 1].text == text;
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            Kind::Name if depth == 1 && !in_default => parameters.push(token.text),
            Kind::Name if !follows(".") && !follows("|") && parameters.contains(&token.text) => {
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
