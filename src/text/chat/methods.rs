//! The methods of Python's strings, lists and dicts that templates call.

use std::collections::HashSet;

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat;

use super::limits::MAX_BYTES;
use super::python::{self, arguments, bounded, failed, is_space, is_true, lines, without_end};

/// Minijinja asks here for each method that a value does not have.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match (value.kind(), value.as_str()) {
        (_, Some(text)) => string(text, method, args)?,
        (ValueKind::Seq | ValueKind::Iterable, _) => sequence(state, value, method, args)?,
        (ValueKind::Map, _) if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn sequence(
    state: &State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "copy" => {
            let () = from_args(args)?;
            value.clone()
        }
        "index" => {
            let (wanted, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let items: Vec<Value> = value.try_iter()?.collect();
            state.consume_fuel(items.len() as u64)?;
            let range = range(items.len(), start, end);
            let found = items[range.clone()].iter().position(|item| item == wanted);
            let index = found.ok_or_else(|| failed(format!("{wanted:?} is not in the list")))?;
            Value::from(range.start + index)
        }
        _ => return Ok(None),
    }))
}

/// `[start:end]` of `len` items.
fn range(len: usize, start: Option<i64>, end: Option<i64>) -> std::ops::Range<usize> {
    let place = |index: i64| {
        let index =
            if index < 0 { index.saturating_add_unsigned(len as u64).max(0) } else { index };
        (index as usize).min(len)
    };
    let (start, end) = (start.map_or(0, place), end.map_or(len, place));
    start..end.max(start)
}

/// `text[start:end]`, and how many characters stand before it; none where Python finds nothing, not
/// even an empty text, there.
fn part(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(&str, usize)> {
    let len = text.chars().count();
    if start.is_some_and(|start| start > len as i64) {
        return None;
    }
    let range = range(len, start, end);
    let place = |index| text.char_indices().nth(index).map_or(text.len(), |(at, _)| at);
    Some((&text[place(range.start)..place(range.end)], range.start))
}

fn string(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, method != "rstrip", method != "lstrip"))
        }
        "split" | "rsplit" => {
            let [separator, most] = arguments(args, ["sep", "maxsplit"])?;
            let separator = separator.filter(|separator| !separator.is_none());
            let separator = match &separator {
                None => None,
                Some(text) => Some(text.as_str().ok_or_else(|| failed("split: by a string only"))?),
            };
            let most = most.map_or(Ok(-1), i64::try_from)?;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            split(text, separator, most, method == "rsplit")?
        }
        "splitlines" => {
            let [keep] = arguments(args, ["keepends"])?;
            let keep = is_true(keep);
            let line = |line| if keep { line } else { without_end(line) };
            lines(text).into_iter().map(line).collect()
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let mut joined = String::new();
            for (index, item) in items.try_iter()?.enumerate() {
                let item = item.as_str().ok_or_else(|| failed("join: an item is no string"))?;
                joined.push_str(if index > 0 { text } else { "" });
                joined.push_str(item);
                bounded(&joined)?;
            }
            Value::from(joined)
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "startswith" | "endswith" => {
            let (wanted, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let Some((part, _)) = part(text, start, end) else { return Ok(Some(false.into())) };
            let matches = |wanted: &Value| match wanted.as_str() {
                Some(wanted) if method == "startswith" => Ok(part.starts_with(wanted)),
                Some(wanted) => Ok(part.ends_with(wanted)),
                None => Err(failed(format!("{method}: {wanted:?} is no string"))),
            };
            let found = if wanted.is_tuple() {
                let found: Result<Vec<bool>, _> =
                    wanted.try_iter()?.map(|one| matches(&one)).collect();
                found?.contains(&true)
            } else {
                matches(wanted)?
            };
            Value::from(found)
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (wanted, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let found = part(text, start, end).and_then(|(part, before)| {
                let from_the_end = method.starts_with('r');
                let at = if from_the_end { part.rfind(wanted) } else { part.find(wanted) };
                at.map(|at| before + part[..at].chars().count())
            });
            match found {
                Some(index) => Value::from(index),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(failed(format!("{method}: {wanted:?} is not in the string"))),
            }
        }
        "count" => {
            let (wanted, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            Value::from(part(text, start, end).map_or(0, |(part, _)| part.matches(wanted).count()))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let from_the_end = method == "rpartition";
            let found = match separator {
                "" => return Err(failed(format!("{method}: the separator is empty"))),
                _ if from_the_end => text.rsplit_once(separator),
                _ => text.split_once(separator),
            };
            let parts = match found {
                Some((before, behind)) => [before, separator, behind],
                None if from_the_end => ["", "", text],
                None => [text, "", ""],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let sign = usize::from(text.starts_with(['+', '-']));
            let zeros = padding(text, width, "0")?.1;
            Value::from(format!("{}{zeros}{}", &text[..sign], &text[sign..]))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            let (len, all) = padding(text, width, fill.unwrap_or(" "))?;
            let front = match method {
                "ljust" => 0,
                "rjust" => len,
                // As CPython does it: the odd one is in front where the width is odd.
                _ => len / 2 + (len & usize::try_from(width).unwrap_or(0) & 1),
            };
            let fill = &all[..all.len() / len.max(1)];
            Value::from(format!("{}{text}{}", fill.repeat(front), fill.repeat(len - front)))
        }
        "format" => {
            bounded_format(text, args)?;
            return Ok(None);
        }
        "isspace" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(is_space))
        }
        "isdigit" | "isdecimal" | "isnumeric" => {
            let () = from_args(args)?;
            let is_ascii = |c: char| c.is_ascii_digit();
            if text.chars().any(|c| c.is_ascii() && !is_ascii(c)) || text.is_empty() {
                Value::from(false)
            } else if text.chars().all(is_ascii) {
                Value::from(true)
            } else {
                return Err(failed(format!("{method}: characters beyond ASCII are not supported")));
            }
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text)?)
        }
        "swapcase" => {
            let () = from_args(args)?;
            let mut swapped = String::new();
            for c in text.chars() {
                match c.is_uppercase() {
                    true => swapped.extend(c.to_lowercase()),
                    false => swapped.extend(c.to_uppercase()),
                }
            }
            Value::from(swapped)
        }
        "capitalize" => {
            let () = from_args(args)?;
            let mut rest = text.chars();
            let first = rest.next().map(title_case).transpose()?.unwrap_or_default();
            Value::from(first + &rest.as_str().to_lowercase())
        }
        _ => return Ok(None),
    }))
}

/// Refuses a `format` that would write too long a text: each place may take the longest value, and each
/// number in the text may be a width.
fn bounded_format(text: &str, args: &[Value]) -> Result<(), Error> {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let mut len = numbers
        .map(|digits| digits.parse().unwrap_or(usize::MAX))
        .fold(text.len(), usize::saturating_add);
    let (mut longest, mut widest) = (0_usize, 0_usize);
    for value in args {
        // A value by name is in the dict of all of them.
        longest = longest.max(python::text(value)?.len());
        widest = widest.max(value.as_usize().unwrap_or(0));
    }
    let places = text.matches('{').count();
    // A width may be a value: `{:{}}`.
    let each = if text.contains(":{") { longest.max(widest) } else { longest };
    len = len.saturating_add(places.saturating_mul(each));
    if len > MAX_BYTES {
        return Err(failed("format makes a text that is too long"));
    }
    Ok(())
}

/// A text without the characters at its ends that are among `chars`, or without white space.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, front: bool, back: bool) -> &'a str {
    let many: Option<HashSet<char>> =
        chars.filter(|chars| chars.len() > 16).map(|chars| chars.chars().collect());
    let is_taken = |c| match (&many, chars) {
        (Some(many), _) => many.contains(&c),
        (None, Some(few)) => few.contains(c),
        (None, None) => is_space(c),
    };
    let text = if front { text.trim_start_matches(is_taken) } else { text };
    if back { text.trim_end_matches(is_taken) } else { text }
}

fn split(text: &str, separator: Option<&str>, most: usize, last: bool) -> Result<Value, Error> {
    let parts = match separator {
        Some("") => return Err(failed("split: the separator is empty")),
        Some(separator) if last => {
            let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
            parts.reverse();
            parts
        }
        Some(separator) => text.splitn(most.saturating_add(1), separator).collect(),
        None if last => {
            let (mut parts, mut rest) = (Vec::new(), text.trim_end_matches(is_space));
            while !rest.is_empty() {
                let start = if parts.len() < most { rest.rfind(is_space) } else { None };
                let start =
                    start.map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
                parts.push(&rest[start..]);
                rest = rest[..start].trim_end_matches(is_space);
            }
            parts.reverse();
            parts
        }
        None => {
            let (mut parts, mut rest) = (Vec::new(), text.trim_start_matches(is_space));
            while !rest.is_empty() {
                let end = if parts.len() < most { rest.find(is_space) } else { None };
                let (part, behind) = rest.split_at(end.unwrap_or(rest.len()));
                parts.push(part);
                rest = behind.trim_start_matches(is_space);
            }
            parts
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The number of characters that a text lacks to a width, and as many of `fill`, which is one.
fn padding(text: &str, width: i64, fill: &str) -> Result<(usize, String), Error> {
    if fill.chars().count() != 1 {
        return Err(failed(format!("a text is filled up with one character, not with {fill:?}")));
    }
    let len = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    if len > MAX_BYTES {
        return Err(failed(format!("a width of {width} is too large")));
    }
    Ok((len, fill.repeat(len)))
}

/// `str.title`: a letter behind a letter is a small one.
fn title(text: &str) -> Result<String, Error> {
    let mut titled = String::new();
    let mut behind_a_letter = false;
    for c in text.chars() {
        if behind_a_letter {
            titled.extend(c.to_lowercase());
        } else {
            titled.push_str(&title_case(c)?);
        }
        behind_a_letter = c.is_lowercase() || c.is_uppercase();
    }
    Ok(titled)
}

/// A letter as it begins a word.
fn title_case(c: char) -> Result<String, Error> {
    let upper: String = c.to_uppercase().collect();
    // Rust does not know the few letters whose title case is not their upper case.
    let is_known = c.is_ascii()
        || (upper.chars().count() == 1
            && !matches!(c, 'Ǆ'..='ǌ' | 'Ǳ'..='ǳ' | 'ა'..='ჿ' | 'Ა'..='Ჿ' | 'ᾀ'..='ῼ'));
    match is_known {
        true => Ok(upper),
        false => Err(failed(format!("title: {c:?} is not supported"))),
    }
}
