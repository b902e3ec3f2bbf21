//! Damages, drawn at random but always the same ones.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::Value;

/// A change of a file.
#[derive(Clone, Debug)]
pub enum Damage {
    Byte(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, &'static str),
    /// A value anywhere in a JSON text becomes another.
    Value(Index, &'static str),
}

const STRANGE: [&str; 20] = [
    "null",
    "-1",
    "0",
    "1",
    "0.5",
    "1e308",
    "4294967296",
    "18446744073709551615",
    "9999999999",
    "\"\"",
    "\"x\"",
    "\"../x\"",
    "[]",
    "{}",
    "[[]]",
    "true",
    "\"\\u0000\"",
    "[1,2]",
    "7",
    "\"GPT2\"",
];

fn damage() -> impl Strategy<Value = Damage> {
    let strange = || prop::sample::select(STRANGE.to_vec());
    prop_oneof![
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), 1..40usize).prop_map(|(at, len)| Damage::Remove(at, len)),
        1 => (any::<Index>(), strange()).prop_map(|(at, text)| Damage::Insert(at, text)),
        5 => (any::<Index>(), strange()).prop_map(|(at, text)| Damage::Value(at, text)),
    ]
}

impl Damage {
    /// The damaged bytes.
    pub fn apply(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.is_empty() {
            return bytes;
        }
        match self {
            Damage::Byte(at, byte) => *at.get_mut(&mut bytes) = *byte,
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Remove(at, len) => {
                let start = at.index(bytes.len());
                bytes.drain(start..bytes.len().min(start + len));
            }
            Damage::Insert(at, text) => {
                let start = at.index(bytes.len());
                bytes.splice(start..start, text.bytes());
            }
            Damage::Value(at, text) => {
                let Ok(mut json) = serde_json::from_slice::<Value>(&bytes) else { return bytes };
                let mut values = count(&json);
                values = at.index(values);
                replace(&mut json, &mut values, &serde_json::from_str(text).unwrap());
                return serde_json::to_vec(&json).unwrap();
            }
        }
        bytes
    }
}

/// Values in a JSON text; of long lists, such as merges, only the first ones.
fn count(json: &Value) -> usize {
    1 + match json {
        Value::Array(list) => list.iter().take(12).map(count).sum(),
        Value::Object(map) => map.values().take(40).map(count).sum(),
        _ => 0usize,
    }
}

/// Replaces the value that comes after `left` others.
fn replace(json: &mut Value, left: &mut usize, by: &Value) {
    if *left == 0 {
        *json = by.clone();
    }
    *left = left.wrapping_sub(1);
    let inner: Vec<&mut Value> = match json {
        Value::Array(list) => list.iter_mut().take(12).collect(),
        Value::Object(map) => map.values_mut().take(40).collect(),
        _ => return,
    };
    for value in inner {
        if *left < usize::MAX / 2 {
            replace(value, left, by);
        }
    }
}

/// A few changes one after the other.
pub fn damages() -> impl Strategy<Value = Vec<Damage>> {
    prop::collection::vec(damage(), 1..4)
}

/// Cases of a strategy, always the same ones.
pub fn cases<S: Strategy>(count: usize, strategy: S) -> impl Iterator<Item = S::Value> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(move |_| strategy.new_tree(&mut runner).unwrap().current())
}
