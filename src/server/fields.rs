//! What the objects of a request may hold besides the fields that are honoured: tables, and the
//! reader that goes by them.
//!
//! A field that nothing here can honour is taken where it changes no answer: it labels or routes a
//! request, or its value says what is so anyway. Clients send such fields unasked. `null` says
//! nothing in any field that is known. All else is refused by its name.

use std::fmt;

use serde::de::value::StringDeserializer;
use serde::de::{DeserializeSeed, Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::Value;

/// A known field that nothing here can honour.
pub struct Field {
    name: &'static str,
    silent: Silent,
    /// Why another value is refused; continues the sentence that the name begins.
    reason: &'static str,
}

/// The values with which a field changes no answer, besides `null`.
enum Silent {
    /// All of them.
    All,
    /// This one, in JSON.
    One(&'static str),
    /// None.
    None,
}

const UNSUPPORTED: &str = "is not supported";
const NO_LOGPROBS: &str = "cannot be had: the base model's log-probabilities are not kept; the \
                           guide's are in `choices[].trimtab`";

/// Labels or routes a request.
const fn label(name: &'static str) -> Field {
    Field { name, silent: Silent::All, reason: UNSUPPORTED }
}

/// Says nothing with this value, in JSON.
const fn only(name: &'static str, value: &'static str) -> Field {
    Field { name, silent: Silent::One(value), reason: UNSUPPORTED }
}

/// Says nothing only where it is `null`.
const fn null(name: &'static str) -> Field {
    Field { name, silent: Silent::None, reason: UNSUPPORTED }
}

/// Of a request to write: OpenAI's fields, then what others have added to them.
pub const REQUEST: &[Field] = &[
    label("metadata"),
    label("prompt_cache_key"),
    label("prompt_cache_retention"),
    label("safety_identifier"),
    label("service_tier"),
    label("store"),
    label("user"),
    // A guess at the answer, which could only hasten it.
    label("prediction"),
    // There are no tools that could be called one at a time.
    label("parallel_tool_calls"),
    null("audio"),
    only("echo", "false"),
    only("frequency_penalty", "0"),
    only("function_call", "\"none\""),
    only("functions", "[]"),
    only("logit_bias", "{}"),
    Field { name: "logprobs", silent: Silent::One("false"), reason: NO_LOGPROBS },
    only("modalities", "[\"text\"]"),
    only("presence_penalty", "0"),
    only("reasoning_effort", "\"none\""),
    only("response_format", "{\"type\":\"text\"}"),
    only("suffix", "\"\""),
    only("tool_choice", "\"none\""),
    only("tools", "[]"),
    Field { name: "top_logprobs", silent: Silent::One("0"), reason: NO_LOGPROBS },
    only("verbosity", "\"medium\""),
    null("web_search_options"),
    label("priority"),
    label("request_id"),
    only("add_generation_prompt", "true"),
    only("bad_words", "[]"),
    only("continue_final_message", "false"),
    only("ignore_eos", "false"),
    only("include_stop_str_in_output", "false"),
    only("length_penalty", "1"),
    only("min_p", "0"),
    only("min_tokens", "0"),
    Field { name: "prompt_logprobs", silent: Silent::None, reason: NO_LOGPROBS },
    only("repetition_penalty", "1"),
    only("skip_special_tokens", "true"),
    only("stop_token_ids", "[]"),
    only("use_beam_search", "false"),
];

/// Of a message: what answers carry, which clients send back with the next question.
pub const MESSAGE: &[Field] = &[
    // Who speaks; chat templates are given roles alone.
    label("name"),
    only("annotations", "[]"),
    null("audio"),
    null("function_call"),
    only("reasoning_content", "\"\""),
    only("refusal", "\"\""),
    null("tool_call_id"),
    only("tool_calls", "[]"),
];

/// Of `stream_options`.
pub const STREAM_OPTIONS: &[Field] =
    &[only("continuous_usage_stats", "false"), only("include_obfuscation", "false")];

impl Field {
    fn says_nothing(&self, value: &Value) -> bool {
        let silent = match self.silent {
            Silent::All => return true,
            Silent::One(json) => serde_json::from_str(json).unwrap_or_default(),
            Silent::None => Value::Null,
        };
        // 0 and 0.0 are two values of JSON's, and one number.
        let same_number = silent.is_number() && silent.as_f64() == value.as_f64();
        value.is_null() || *value == silent || same_number
    }
}

/// What may stand in an object beside the fields that its type honours.
pub trait Fields {
    /// The table.
    const TABLE: &'static [Field] = &[];
}

/// An object of a request: `T` has the fields that are honoured.
#[derive(Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de> + Fields> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        T::deserialize(Checked { json, table: T::TABLE }).map(Object)
    }
}

/// Shows a struct only the fields that it knows, once the others have been judged.
struct Checked<D> {
    json: D,
    table: &'static [Field],
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Checked<D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        honoured: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.json.deserialize_map(Entries { inner: visitor, honoured, table: self.table })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.json.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// First a visitor, which sees an object and nothing else, then what it sees.
struct Entries<I> {
    inner: I,
    honoured: &'static [&'static str],
    table: &'static [Field],
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Entries<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let Self { inner, honoured, table } = self;
        inner.visit_map(Entries { inner: map, honoured, table })
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.inner.next_key::<String>()? {
            if self.honoured.contains(&&*key) {
                let key: StringDeserializer<A::Error> = key.into_deserializer();
                return seed.deserialize(key).map(Some);
            }
            // With the value, so that an error is found at this field.
            self.inner
                .next_value_seed(Judged(self.table.iter().find(|field| field.name == key)))?;
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(seed)
    }
}

/// The value of a field that is not honoured, which is in the table or not.
struct Judged(Option<&'static Field>);

impl<'de> DeserializeSeed<'de> for Judged {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        let Some(field) = self.0 else {
            return Err(D::Error::custom("is not a field that trimtab knows"));
        };
        let value = Value::deserialize(json)?;
        if field.says_nothing(&value) { Ok(()) } else { Err(D::Error::custom(field.reason)) }
    }
}
