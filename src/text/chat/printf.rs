//! Python's `%`: the rest of a division, or a string that is formatted.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, Value};

use super::filters::Arguments;
use super::limits::MAX_BYTES;
use super::python::{failed, push_code, repr, text};

/// `left % right`.
pub(super) fn modulo(left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(pattern) = left.as_str() {
        return printf(pattern, right).map(Value::from);
    }
    let unsupported = || {
        let (left, right) = (left.kind(), right.kind());
        failed(format!("tried to use % operator on unsupported types {left} and {right}"))
    };
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !is_number(left) || !is_number(right) {
        return Err(unsupported());
    }
    let is_int = |value: &Value| value.kind() == ValueKind::Bool || value.is_integer();
    if is_int(left) && is_int(right) {
        let (a, b) = (i128::try_from(left.clone())?, i128::try_from(right.clone())?);
        let rest = a.checked_rem(b).ok_or_else(|| failed("the rest of a division by zero"))?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    let float = |value: &Value| match i128::try_from(value.clone()) {
        Ok(whole) if is_int(value) => Ok(whole as f64),
        _ => f64::try_from(value.clone()),
    };
    let (a, b) = (float(left)?, float(right)?);
    if b == 0.0 {
        return Err(failed("the rest of a division by zero"));
    }
    let rest = a % b;
    Ok(Value::from(match rest {
        0.0 => 0_f64.copysign(b),
        rest if (rest < 0.0) != (b < 0.0) => rest + b,
        rest => rest,
    }))
}

/// The filter `format`: `pattern % arguments`.
pub(super) fn format_filter(pattern: &Value, given: Arguments) -> Result<String, Error> {
    let arguments = given.into_values();
    match arguments.last() {
        Some(named) if named.is_kwargs() => {
            if arguments.len() > 1 {
                return Err(failed("format takes arguments by place or by name, not both"));
            }
            printf(&text(pattern)?, named)
        }
        _ => printf(&text(pattern)?, &Value::from(Tuple::from(arguments))),
    }
}

/// `pattern % right`, where a tuple holds several values and a dict named ones.
fn printf(pattern: &str, right: &Value) -> Result<String, Error> {
    let mut values: Vec<Value> =
        if right.is_tuple() { right.try_iter()?.collect() } else { vec![right.clone()] };
    values.reverse();
    let mut out = String::new();
    let mut is_named = false;
    let mut rest = pattern;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let spec = Spec::read(&rest[at..])?;
        rest = &rest[at + spec.len..];
        if spec.conversion == '%' {
            out.push('%');
            continue;
        }
        let mut next = || values.pop().ok_or_else(|| failed("% has too few arguments"));
        let width = if spec.width == "*" { text(&next()?)? } else { spec.width.to_owned() };
        let precision = match spec.precision {
            Some("*") => Some(text(&next()?)?),
            other => other.map(str::to_owned),
        };
        let value = match spec.name {
            None => next()?,
            Some(name) => {
                is_named = true;
                let value = right.get_item(&Value::from(name))?;
                if right.kind() != ValueKind::Map || value.is_undefined() {
                    return Err(failed(format!("% has no argument {name:?}")));
                }
                value
            }
        };
        spec.write(&mut out, &value, &width, precision.as_deref())?;
        if out.len() > MAX_BYTES {
            return Err(failed("% makes a text that is too long"));
        }
    }
    out.push_str(rest);
    // A value that has entries may be there for its names, of which none need be used.
    let has_entries =
        matches!(right.kind(), ValueKind::Map | ValueKind::Seq | ValueKind::Undefined);
    let may_be_left = is_named || (has_entries && !right.is_tuple());
    if !values.is_empty() && !may_be_left {
        return Err(failed("% has more arguments than its text has places for"));
    }
    Ok(out)
}

/// `%(name)-10.3s`, in parts.
struct Spec<'a> {
    name: Option<&'a str>,
    flags: &'a str,
    width: &'a str,
    precision: Option<&'a str>,
    conversion: char,
    len: usize,
}

impl<'a> Spec<'a> {
    fn read(text: &'a str) -> Result<Self, Error> {
        let incomplete = || failed("% is followed by an incomplete format");
        let mut rest = &text[1..];
        let mut name = None;
        if let Some(named) = rest.strip_prefix('(') {
            let end = named.find(')').ok_or_else(incomplete)?;
            name = Some(&named[..end]);
            rest = &named[end + 1..];
        }
        let mut take = |is_part: fn(char) -> bool| {
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            let (taken, behind) = rest.split_at(end);
            rest = behind;
            taken
        };
        let flags = take(|c| "#0- +".contains(c));
        let width = take(|c| c.is_ascii_digit() || c == '*');
        let precision = match take(|c| c == '.') {
            "" => None,
            _ => Some(take(|c| c.is_ascii_digit() || c == '*')),
        };
        // The size of a number, which Python does not look at.
        take(|c| "hlL".contains(c));
        let conversion = rest.chars().next().ok_or_else(incomplete)?;
        let len = text.len() - rest.len() + conversion.len_utf8();
        Ok(Self { name, flags, width, precision, conversion, len })
    }

    fn write(
        &self,
        out: &mut String,
        value: &Value,
        width: &str,
        precision: Option<&str>,
    ) -> Result<(), Error> {
        let number = |digits: &str| {
            let number = if digits.is_empty() { Ok(0) } else { digits.parse::<usize>() };
            number.ok().filter(|&n| n <= MAX_BYTES).ok_or_else(|| failed("% has too large a width"))
        };
        let width_of = number(width)?;
        let precision_of = precision.map(number).transpose()?;
        let mut written = match self.conversion {
            's' => text(value)?,
            'r' => repr(value)?,
            'a' => {
                let mut ascii = String::new();
                for c in repr(value)?.chars() {
                    if c.is_ascii() { ascii.push(c) } else { push_code(&mut ascii, c) }
                }
                ascii
            }
            conversion => {
                let precision = precision.map_or_else(String::new, |digits| format!(".{digits}"));
                let spec = format!("%{}{width}{precision}{conversion}", self.flags);
                let whole = match f64::try_from(value.clone()) {
                    Ok(number) if "diu".contains(conversion) && !value.is_integer() => {
                        if !number.is_finite() || number.abs() >= 1e38 {
                            return Err(failed(format!(
                                "%{conversion} of {number} is not supported"
                            )));
                        }
                        Value::from(number.trunc() as i128)
                    }
                    _ => value.clone(),
                };
                let text = format(FormatStyle::Printf, &spec, &[whole])?;
                out.push_str(&text);
                return Ok(());
            }
        };
        if let Some(precision) = precision_of {
            written = written.chars().take(precision).collect();
        }
        let padding = width_of.saturating_sub(written.chars().count());
        if self.flags.contains('-') {
            out.push_str(&written);
            out.extend(std::iter::repeat_n(' ', padding));
        } else {
            out.extend(std::iter::repeat_n(' ', padding));
            out.push_str(&written);
        }
        Ok(())
    }
}
