//! The surroundings that transformers gives a template: filters, tests and functions.

use std::borrow::Cow;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, State, Value, filters, functions};
use minijinja_contrib::globals;

use super::json::tojson;
use super::limits::{Limits, MAX_SUMMED};
use super::methods;
use super::printf::{format_filter, modulo};
use super::python::{
    self, arguments, bounded, failed, indentation, is_generator, is_true, lines, text, without_end,
};
use super::source::{CONCAT, KEPT, KEPT_IN_NAMESPACE, MODULO, TICK};
use crate::text::date::{Date, now, strftime};

/// Arguments by place, and then by name.
pub(super) type Arguments = Rest<ValueOrKwargs>;

/// An environment as transformers makes it, except that the date is UTC, or a given day, which has
/// just begun.
pub(super) fn environment(
    date: Option<Date>,
    limits: Limits,
) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(move |out, _, value| {
        limits.tick()?;
        let written = match value.as_str() {
            Some(text) => out.write_str(text),
            None => out.write_str(&text(value)?),
        };
        written.map_err(|_| failed("the text cannot be written"))
    });

    environment.add_function("raise_exception", |message: String| -> Result<Value, _> {
        Err(failed(message))
    });
    environment.add_function("strftime_now", move |format: String| {
        strftime(&format, date.map_or_else(now, Date::start)).map_err(failed)
    });
    environment.add_function("dict", move |state: &State<'_, '_>, given: Arguments| {
        limits.kept(state, &dict(given)?, false)
    });
    environment.add_function("namespace", move |state: &State<'_, '_>, given: Arguments| {
        let entries = limits.kept(state, &dict(given)?, false)?;
        functions::namespace(Some(ValueOrKwargs::from(entries)))
    });
    environment.add_function("cycler", move |state: &State<'_, '_>, items: Rest<Value>| {
        // A cycler cannot be looked into later.
        limits.kept(state, &Value::from(items.0.clone()), true)?;
        globals::cycler(items.0)
    });
    environment.add_function("joiner", globals::joiner);
    environment.remove_global("debug");
    environment.add_function(MODULO, |state: &State<'_, '_>, left: &Value, right: &Value| {
        state.consume_fuel(texts(left) + texts(right))?;
        modulo(left, right)
    });
    environment.add_function(CONCAT, concat);
    environment.add_function(KEPT, move |state: &State<'_, '_>, value: &Value| {
        limits.kept(state, value, false)
    });
    environment.add_function(KEPT_IN_NAMESPACE, move |state: &State<'_, '_>, value: &Value| {
        limits.kept(state, value, true)
    });
    environment.add_function(TICK, move || limits.tick());

    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| text(value));
    environment.add_filter("format", format_filter);
    environment.add_filter("trim", |value: &Value, chars: Option<&str>| {
        text(value).map(|text| methods::strip(&text, chars, true, true).to_owned())
    });
    environment.add_filter("join", join);
    environment.add_filter("sum", sum);
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    // Of a dict `attr` gives entries, where Jinja2 has only attributes; `pprint` breaks lines elsewhere.
    environment.remove_filter("attr");
    environment.remove_filter("pprint");
    // Jinja2 does not have them.
    environment.remove_filter("chain");
    environment.remove_filter("zip");
    for name in ["length", "count"] {
        environment.add_filter(name, |value: &Value| match is_generator(value) {
            true => Err(failed("a generator has no length; make it a list")),
            false => filters::length(value),
        });
    }
    add_generators(&mut environment, limits);

    environment.add_test("sequence", |value: &Value| match value.kind() {
        ValueKind::Iterable => !is_generator(value),
        kind => matches!(
            kind,
            ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined
        ),
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    Ok(environment)
}

/// `sum(values, attribute=None, start=0)`.
fn sum(
    state: &State<'_, '_>,
    value: Value,
    attribute: Option<&str>,
    start: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let first = match &start {
        Some(start) => Some(start.clone()),
        None => named.get("start")?,
    };
    let of_numbers = first.is_none_or(|first| first.is_number());
    if !of_numbers && value.try_iter()?.take(MAX_SUMMED + 1).count() > MAX_SUMMED {
        return Err(failed(format!("sum: more than {MAX_SUMMED} values that are no numbers")));
    }
    filters::sum(state, value, attribute, start, named)
}

/// The filters that give generators in Python.
fn add_generators(environment: &mut Environment<'_>, limits: Limits) {
    type Name<'a> = Option<Cow<'a, str>>;
    environment.add_filter(
        "map",
        move |state: &mut State<'_, '_>, value: Value, args: Arguments| {
            let items = filters::map(state, value, args)?;
            limits.generator(state, items)
        },
    );
    environment.add_filter(
        "select",
        move |state: &mut State<'_, '_>, value: Value, test: Name<'_>, args: Arguments| {
            let items = filters::select(state, value, test, args)?;
            limits.generator(state, items)
        },
    );
    environment.add_filter(
        "reject",
        move |state: &mut State<'_, '_>, value: Value, test: Name<'_>, args: Arguments| {
            let items = filters::reject(state, value, test, args)?;
            limits.generator(state, items)
        },
    );
    environment.add_filter(
        "selectattr",
        move |state: &mut State<'_, '_>,
              value: Value,
              name: Cow<'_, str>,
              test: Name<'_>,
              args: Arguments| {
            let items = filters::selectattr(state, value, name, test, args)?;
            limits.generator(state, items)
        },
    );
    environment.add_filter(
        "rejectattr",
        move |state: &mut State<'_, '_>,
              value: Value,
              name: Cow<'_, str>,
              test: Name<'_>,
              args: Arguments| {
            let items = filters::rejectattr(state, value, name, test, args)?;
            limits.generator(state, items)
        },
    );
    environment.add_filter(
        "unique",
        move |state: &State<'_, '_>, value: Value, options: Kwargs| {
            let items = filters::unique(state, value, options)?.try_iter()?.collect();
            limits.generator(state, items)
        },
    );
    environment.add_filter("reverse", move |state: &State<'_, '_>, value: &Value| {
        let reversed = filters::reverse(&limits.kept(state, value, false)?)?;
        match value.kind() {
            ValueKind::String => Ok(reversed),
            _ => limits.generator(state, reversed.try_iter()?.collect()),
        }
    });
    type Fill = Option<Value>;
    environment.add_filter(
        "batch",
        move |state: &State<'_, '_>, value: Value, count: usize, fill: Fill| {
            limits.kept(state, &filters::batch(state, value, count, fill)?, false)
        },
    );
    environment.add_filter(
        "slice",
        move |state: &State<'_, '_>, value: Value, count: usize, fill: Fill| {
            limits.kept(state, &filters::slice(state, value, count, fill)?, false)
        },
    );
}

/// Steps that it takes to read a value's texts, or those in a list.
fn texts(value: &Value) -> u64 {
    let len = |value: &Value| value.as_str().map_or(0, |text| text.len() as u64 / 64);
    let items = match value.kind() {
        ValueKind::Seq => value.try_iter().map_or(0, |items| items.map(|item| len(&item)).sum()),
        _ => 0,
    };
    len(value) + items
}

/// `first ~ second ~ …`.
fn concat(values: &Value) -> Result<String, Error> {
    let mut joined = String::new();
    for value in values.try_iter()? {
        joined.push_str(&text(&value)?);
        bounded(&joined)?;
    }
    Ok(joined)
}

/// `dict(mapping or pairs, name=value)`.
fn dict(given: Arguments) -> Result<Value, Error> {
    let given = given.into_values();
    let (value, named): (Option<Value>, Kwargs) = from_args(&given)?;
    let pairs = match value {
        Some(pairs) if matches!(pairs.kind(), ValueKind::Seq | ValueKind::Iterable) => pairs,
        mapping => return functions::dict(mapping, named),
    };
    let mut entries = Vec::new();
    for pair in pairs.try_iter()? {
        match &pair.try_iter()?.collect::<Vec<_>>()[..] {
            [key, value] => entries.push((key.clone(), value.clone())),
            _ => return Err(failed("dict: an entry is no pair")),
        }
    }
    functions::dict(Some(Value::from_pairs(entries)), named)
}

/// `join(value, d='', attribute=None)`.
fn join(state: &mut State<'_, '_>, value: Value, given: Arguments) -> Result<String, Error> {
    let [separator, attribute] = arguments(given.into_values(), ["d", "attribute"])?;
    let separator = separator.map_or_else(|| Ok(String::new()), |d| text(&d))?;
    let items: Vec<Value> = match attribute {
        _ if value.is_undefined() => Vec::new(),
        None => value.try_iter()?.collect(),
        Some(name) => {
            let named = Value::from(Kwargs::from_iter([("attribute", name)]));
            filters::map(state, value, Rest(vec![named.into()]))?
        }
    };
    let mut joined = String::new();
    for (index, item) in items.iter().enumerate() {
        joined.push_str(if index > 0 { &separator } else { "" });
        joined.push_str(&text(item)?);
        bounded(&joined)?;
    }
    Ok(joined)
}

/// `indent(s, width=4, first=False, blank=False)`.
fn indent(value: &Value, given: Arguments) -> Result<String, Error> {
    let [width, first, blank] = arguments(given.into_values(), ["width", "first", "blank"])?;
    let indent = width.map_or_else(|| Ok(" ".repeat(4)), |width| indentation(&width))?;
    let (first, blank) = (is_true(first), is_true(blank));
    let text = text(value)? + "\n";
    let mut indented = String::new();
    for (index, line) in lines(&text).into_iter().map(without_end).enumerate() {
        if index > 0 {
            indented.push('\n');
        }
        if (index == 0 && first) || (index > 0 && (blank || !line.is_empty())) {
            indented.push_str(&indent);
        }
        indented.push_str(line);
        bounded(&indented)?;
    }
    Ok(indented)
}

/// `int(value, default=0, base=10)`.
fn int(value: &Value, given: Arguments) -> Result<Value, Error> {
    let [default, base] = arguments(given.into_values(), ["default", "base"])?;
    let base = base.map_or(Ok(10), u32::try_from)?;
    let number = match value.as_str() {
        Some(text) => match python::int(text, base)? {
            Some(whole) => return Ok(Value::from(whole)),
            None => python::parse_float(text),
        },
        None => match value.kind() {
            ValueKind::Bool => return Ok(Value::from(i64::from(value.is_true()))),
            ValueKind::Number if value.is_integer() => return Ok(value.clone()),
            ValueKind::Number => Some(f64::try_from(value.clone())?),
            ValueKind::Undefined => return Err(failed("int: the value is undefined")),
            _ => None,
        },
    };
    match number.filter(|number| number.is_finite()) {
        None => Ok(default.unwrap_or_else(|| Value::from(0))),
        // Beyond it are numbers that no template needs.
        Some(number) if number.abs() < 1e38 => Ok(Value::from(number.trunc() as i128)),
        Some(number) => Err(failed(format!("int: {number:e} is larger than is supported"))),
    }
}

/// `float(value, default=0.0)`.
fn float(value: &Value, given: Arguments) -> Result<Value, Error> {
    let [default] = arguments(given.into_values(), ["default"])?;
    let number = match value.as_str() {
        Some(text) => python::parse_float(text),
        None => match value.kind() {
            ValueKind::Bool => Some(f64::from(value.is_true())),
            ValueKind::Number => Some(f64::try_from(value.clone())?),
            ValueKind::Undefined => return Err(failed("float: the value is undefined")),
            _ => None,
        },
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

/// As markupsafe escapes HTML.
fn escape(value: &Value) -> Result<Value, Error> {
    let text = text(value)?;
    if value.is_safe() {
        return Ok(value.clone());
    }
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            c => escaped.push(c),
        }
    }
    Ok(Value::from_safe_string(escaped))
}
