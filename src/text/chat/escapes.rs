//! Python's escapes in the strings of a template.

use super::python::push_code;

/// A character of a string in a template's source.
pub(super) enum Piece {
    /// As it is written there.
    Plain(char),
    /// The character that an escape means.
    Escaped(char),
}

/// The characters of a string as Jinja2 reads it: by Python's escapes.
pub(super) fn unescaped(body: &str) -> impl Iterator<Item = Result<Piece, String>> {
    let mut rest = body;
    // The rest of an unknown escape, which stays as it is.
    let mut pending = String::new();
    std::iter::from_fn(move || {
        loop {
            if let Some(c) = (!pending.is_empty()).then(|| pending.remove(0)) {
                return Some(Ok(Piece::Plain(c)));
            }
            let c = rest.chars().next()?;
            rest = &rest[c.len_utf8()..];
            if c != '\\' {
                return Some(Ok(Piece::Plain(c)));
            }
            let Some(escape) = rest.chars().next() else {
                return Some(Ok(Piece::Plain('\\')));
            };
            rest = &rest[escape.len_utf8()..];
            let simple = match escape {
                '\n' => continue,
                '\\' | '\'' | '"' => escape,
                'a' => '\u{7}',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\u{b}',
                '0'..='7' => {
                    let more = rest.chars().take(2).take_while(|c| c.is_digit(8)).count();
                    let digits = format!("{escape}{}", &rest[..more]);
                    rest = &rest[more..];
                    match u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32) {
                        Some(c) => c,
                        None => return Some(Err(format!("\\{digits} is no character"))),
                    }
                }
                'x' | 'u' | 'U' => {
                    let len = match escape {
                        'x' => 2,
                        'u' => 4,
                        _ => 8,
                    };
                    let digits =
                        rest.get(..len).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
                    let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
                    let Some(c) = code.and_then(char::from_u32) else {
                        return Some(Err(format!("an escape \\{escape} is no character")));
                    };
                    rest = &rest[len..];
                    c
                }
                'N' => {
                    return Some(Err("\\N{…}, a character by its name, is not supported".into()));
                }
                other => {
                    // Jinja2 makes ASCII of the string before Python reads the escapes.
                    if other.is_ascii() {
                        pending.push(other);
                    } else {
                        push_code(&mut pending, other);
                        pending.remove(0);
                    }
                    return Some(Ok(Piece::Plain('\\')));
                }
            };
            return Some(Ok(Piece::Escaped(simple)));
        }
    })
}
