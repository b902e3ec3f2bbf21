//! Refuses a `tokenizer.json` that would make too much of a text, or of itself, before anything is built of it.

use std::collections::HashMap;

use serde_json::Value;
use serde_json::value::RawValue;

/// Bytes of the description of one part: real ones have up to 500,000, most of them in a table of characters.
const MAX_PART_BYTES: usize = 4 << 20;
/// Values in the description of one part, such as the post-processor: real ones have some dozens.
const MAX_VALUES: usize = 4096;
/// Bytes that normalizer and pre-tokenizer, or the decoder, may make of one, Unicode's own forms apart: real
/// ones make 6.
const MAX_GROWTH: usize = 64;
/// Bytes that a normalizer may put in front of each piece of a text: real ones put 3.
const MAX_FRONT: usize = 64;
/// Bytes that a table of characters may write in the place of one character: Unicode's longest has 33.
const MAX_REPLACEMENT: usize = 64;
/// Added tokens: models of speech and images have up to 200,000.
const MAX_ADDED: usize = 1 << 18;
/// Bytes that all of them have together.
const MAX_ADDED_BYTES: usize = 16 << 20;

/// The sizes of all parts.
pub(super) fn check_parts(fields: &HashMap<&str, &RawValue>) -> Result<(), String> {
    let mut parts = HashMap::new();
    for name in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        let Some(field) = fields.get(name) else { continue };
        if field.get().len() > MAX_PART_BYTES {
            return Err(format!(
                "has a {name} of {} bytes; up to {MAX_PART_BYTES} are supported",
                field.get().len()
            ));
        }
        let part: Value = serde_json::from_str(field.get())
            .map_err(|e| format!("has a {name} that is none: {e}"))?;
        let values = values(&part);
        if values > MAX_VALUES {
            return Err(format!(
                "has a {name} of {values} values; up to {MAX_VALUES} are supported"
            ));
        }
        parts.insert(name, part);
    }
    let growth_of = |name| parts.get(name).map_or(Ok(1), growth);
    let of_texts = growth_of("normalizer")?.saturating_mul(growth_of("pre_tokenizer")?);
    let of_tokens = growth_of("decoder")?;
    for (growth, what) in [(of_texts, "normalizer and pre_tokenizer"), (of_tokens, "decoder")] {
        if growth > MAX_GROWTH {
            return Err(format!(
                "may make {growth} bytes of one by its {what}; up to {MAX_GROWTH} are supported"
            ));
        }
    }
    Ok(())
}

/// The number of added tokens, and their length.
pub(super) fn check_added<'a>(tokens: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let (count, bytes) =
        tokens.fold((0, 0), |(count, bytes), token| (count + 1, bytes + token.len()));
    if count > MAX_ADDED || bytes > MAX_ADDED_BYTES {
        return Err(format!(
            "has {count} added tokens of {bytes} bytes; up to {MAX_ADDED} of {MAX_ADDED_BYTES} bytes \
             are supported"
        ));
    }
    Ok(())
}

fn values(json: &Value) -> usize {
    1 + match json {
        Value::Array(list) => list.iter().map(values).sum(),
        Value::Object(map) => map.values().map(values).sum(),
        _ => 0,
    }
}

/// Bytes that a normalizer, pre-tokenizer or decoder makes of one byte of a text, at most. Unicode's forms are
/// not counted: however many there are, they grow a text but once.
fn growth(part: &Value) -> Result<usize, String> {
    let text = |name: &str| part[name].as_str().unwrap_or_default();
    Ok(match text("type") {
        "Sequence" => {
            let lists = ["normalizers", "pretokenizers", "decoders"];
            let parts = lists.iter().filter_map(|name| part[name].as_array()).flatten();
            parts
                .map(growth)
                .try_fold(1_usize, |all, one| one.map(|one| all.saturating_mul(one)))?
        }
        // What a regular expression matches may be one byte, or none.
        "Replace" => {
            let replaced = part["pattern"]["String"].as_str().map_or(1, str::len).max(1);
            text("content").len().div_ceil(replaced).max(1)
        }
        "Prepend" if text("prepend").len() > MAX_FRONT => {
            return Err(format!(
                "has a normalizer that puts {} bytes in front of a text; up to {MAX_FRONT} are supported",
                text("prepend").len()
            ));
        }
        // Each byte becomes a character of up to two.
        "ByteLevel" => 2,
        "Precompiled" => {
            let longest = longest_replacement(text("precompiled_charsmap"));
            if longest > MAX_REPLACEMENT {
                return Err(format!(
                    "has a normalizer that writes {longest} bytes for one character; up to \
                     {MAX_REPLACEMENT} are supported"
                ));
            }
            1
        }
        _ => 1,
    })
}

/// The longest text in a table of characters: in base 64 the length of an index, the index, and texts with a
/// zero byte behind each.
fn longest_replacement(table: &str) -> usize {
    let value = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Vec<u8> = table.bytes().filter_map(value).collect();
    let bytes: Vec<u8> = digits
        .chunks(4)
        .flat_map(|four| {
            let bits = four.iter().fold(0_u32, |bits, &digit| bits << 6 | u32::from(digit));
            let bits = bits << (6 * (4 - four.len()));
            let [_, all @ ..] = bits.to_be_bytes();
            all.into_iter().take(four.len().saturating_sub(1))
        })
        .collect();
    let Some((len, rest)) = bytes.split_first_chunk() else { return 0 };
    let texts = rest.get(u32::from_le_bytes(*len) as usize..).unwrap_or_default();
    texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0)
}
