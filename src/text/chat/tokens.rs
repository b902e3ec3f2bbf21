//! The tags of a template, in pieces.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
}

/// `{{ … }}` or `{% … %}`, in pieces: its opening, its tokens, its end.
pub(super) struct Tag<'a> {
    pub(super) open: &'a str,
    pub(super) tokens: Vec<Token<'a>>,
    pub(super) close: &'a str,
    pub(super) len: usize,
}

impl<'a> Tag<'a> {
    /// The tag that a text begins with. One that does not end has no closing.
    pub(super) fn read(text: &'a str) -> Self {
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

/// The length of a tag `{% name %}` that the text begins with.
pub(super) fn raw_tag(text: &str, name: &str) -> Option<usize> {
    let inside = text.strip_prefix("{%")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    let inside = inside.trim_start().strip_prefix(name)?.trim_start();
    let behind = inside.strip_prefix(['-', '+']).unwrap_or(inside).strip_prefix("%}")?;
    Some(text.len() - behind.len())
}

/// The length of a raw block behind its opening tag, its closing tag included.
pub(super) fn raw_end(text: &str) -> Option<usize> {
    let tags = text.match_indices("{%").map(|(at, _)| at);
    tags.filter_map(|at| raw_tag(&text[at..], "endraw").map(|len| at + len)).next()
}
