//! What a template may take: a folder's file must not keep a thread busy for ever, or fill the memory.
//!
//! Minijinja counts steps and data as fuel, but not what it finds inside values: a list that holds another one
//! twice, and so on, is small and has no end when it is written or compared. So each value that a template
//! makes of others passes [`Limits::kept`], which bounds how deep it is and how many parts it has when it is
//! written out; and each round of a loop, each call of a macro and each text that is written looks at the clock.

use std::time::{Duration, Instant};

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, State, Value};

use super::python::{Generator, failed};

/// Bytes of a template: models have some of 30,000.
pub(super) const MAX_SOURCE: usize = 2 << 20;
/// Steps after which a template is stopped, each also 64 bytes of data: far more than any conversation takes.
pub(super) const MAX_STEPS: u64 = 2_000_000;
/// Bytes after which it is stopped.
pub(super) const MAX_BYTES: usize = 16 << 20;
/// As deep as values may be nested.
pub(super) const MAX_DEPTH: usize = 100;
/// Parts that a value may have, each counted as often as it would be written.
const MAX_PARTS: usize = 1 << 18;
/// Values, other than numbers, that can be summed: each sum is a new value.
pub(super) const MAX_SUMMED: usize = 100;
/// Parts that one step pays for.
const PARTS_PER_STEP: u64 = 4;
/// Time after which a template is stopped that has not used up its steps.
const MAX_TIME: Duration = Duration::from_secs(3);
/// Enough for all that may be nested within these limits.
pub(super) const STACK: usize = 64 << 20;

/// What a rendering may still take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits(Instant);

impl Limits {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    /// Refuses to go on when the time is over.
    pub(super) fn tick(self) -> Result<(), Error> {
        if self.0.elapsed() > MAX_TIME {
            return Err(failed(format!("it takes more than {} seconds", MAX_TIME.as_secs())));
        }
        Ok(())
    }

    /// The value, if it is neither too large nor too deep: what is in it stays as it is, but for lists that
    /// minijinja would make later, such as slices, which are made now. One for a namespace must not have
    /// another namespace in it, or a loop or function, which might have one: it could come to contain itself.
    pub(super) fn kept(
        self,
        state: &State<'_, '_>,
        value: &Value,
        for_namespace: bool,
    ) -> Result<Value, Error> {
        self.tick()?;
        if is_plain(value) {
            return Ok(value.clone());
        }
        let mut look = Look { state, for_namespace, parts: 0, bytes: 0 };
        Ok(look.at(value, 0)?.unwrap_or_else(|| value.clone()))
    }

    /// The same for the items of a generator.
    pub(super) fn generator(
        self,
        state: &State<'_, '_>,
        items: Vec<Value>,
    ) -> Result<Value, Error> {
        let items = self.kept(state, &Value::from(items), false)?;
        Ok(Generator::value(items.try_iter()?.collect()))
    }
}

/// Values without parts.
fn is_plain(value: &Value) -> bool {
    value.as_object().is_none()
}

/// A walk through a value.
struct Look<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    for_namespace: bool,
    parts: usize,
    bytes: usize,
}

impl Look<'_, '_, '_> {
    /// A copy of the value, if something in it had to be made.
    fn at(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        self.parts += 1;
        self.bytes = self.bytes.saturating_add(value.as_str().map_or(0, str::len));
        if (self.parts as u64).is_multiple_of(PARTS_PER_STEP) {
            self.state.consume_fuel(1)?;
        }
        if depth > MAX_DEPTH {
            return Err(failed("a value is nested too deeply"));
        }
        if self.parts > MAX_PARTS || self.bytes > MAX_BYTES {
            return Err(failed(format!(
                "a value has more than {MAX_PARTS} parts or {MAX_BYTES} bytes"
            )));
        }
        let Some(object) = value.as_object() else { return Ok(None) };
        if let Some(generator) = object.downcast_ref::<Generator>() {
            for item in generator.items() {
                self.at(&item, depth + 1)?;
            }
            return Ok(None);
        }
        // Minijinja's own types, which have no other names outside of it. What they hold may change later.
        let name = object.type_name();
        let is_namespace = name.ends_with("::Namespace");
        if (is_namespace || name.ends_with("::Loop")) && self.for_namespace {
            return Err(failed("a namespace or loop cannot be put into a namespace"));
        }
        if name.ends_with("::Loop") {
            return Ok(None);
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                let is_made = value.is_tuple() || object.downcast_ref::<Vec<Value>>().is_some();
                let mut items = Vec::new();
                let mut is_changed = !is_made;
                for item in value.try_iter()? {
                    let other = self.at(&item, depth + 1)?;
                    is_changed |= other.is_some();
                    items.push(other.unwrap_or(item));
                }
                Ok(match (is_changed, value.is_tuple()) {
                    (false, _) => None,
                    (true, true) => Some(Value::from(Tuple::from(items))),
                    (true, false) => Some(Value::from(items)),
                })
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                let mut is_changed = false;
                for key in value.try_iter()? {
                    self.at(&key, depth + 1)?;
                    let entry = value.get_item(&key)?;
                    let other = self.at(&entry, depth + 1)?;
                    is_changed |= other.is_some();
                    entries.push((key, other.unwrap_or(entry)));
                }
                // What a namespace holds has been looked at.
                Ok((is_changed && !is_namespace).then(|| Value::from_pairs(entries)))
            }
            _ if self.for_namespace => Err(failed("a function cannot be put into a namespace")),
            _ => Ok(None),
        }
    }
}
