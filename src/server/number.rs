//! Numbers of a request, or of a flag of the same name, that must be whole: `5`, or in a request `5.0` as
//! some clients write it.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use crate::search::ChunkLen;

/// How many.
#[derive(Clone, Copy)]
pub struct Count(pub usize);

/// A seed; a negative one is taken by its bits, so that −1 is 2^64 − 1.
#[derive(Clone, Copy)]
pub struct Seed(pub u64);

/// How many tokens to draw from; 0 and −1 are all.
#[derive(Clone, Copy)]
pub struct TopK(pub u32);

/// The tokens of a chunk, or `"inf"`.
#[derive(Clone, Copy)]
pub struct Length(pub ChunkLen);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "must be a number or \"inf\"")]
        enum Wire {
            Number(Count),
            Text(Inf),
        }
        #[derive(Deserialize)]
        enum Inf {
            #[serde(rename = "inf")]
            Inf,
        }
        Ok(match Wire::deserialize(json)? {
            Wire::Number(Count(number)) => Self(ChunkLen(Some(number))),
            Wire::Text(Inf::Inf) => Self(ChunkLen(None)),
        })
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        let whole =
            Whole { least: 0, most: usize::MAX as i128, name: "a whole number, not negative" };
        Ok(Self(json.deserialize_any(whole)? as usize))
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        Ok(Self::of(json.deserialize_any(Self::WHOLE)?))
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::WHOLE.parse(text).map(Self::of)
    }
}

impl Seed {
    const WHOLE: Whole = Whole {
        least: i64::MIN as i128,
        most: u64::MAX as i128,
        name: "a whole number of at most 64 bits",
    };

    fn of(number: i128) -> Self {
        Self(number as u64)
    }
}

impl<'de> Deserialize<'de> for TopK {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        Ok(Self::of(json.deserialize_any(Self::WHOLE)?))
    }
}

impl FromStr for TopK {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::WHOLE.parse(text).map(Self::of)
    }
}

impl TopK {
    const WHOLE: Whole =
        Whole { least: -1, most: u32::MAX as i128, name: "a whole number, or -1 for all tokens" };

    fn of(number: i128) -> Self {
        Self(number.max(0) as u32)
    }
}

/// Reads a whole number within bounds.
struct Whole {
    least: i128,
    most: i128,
    name: &'static str,
}

impl Whole {
    fn has(&self, number: i128) -> bool {
        (self.least..=self.most).contains(&number)
    }

    fn bounded<E: Error>(&self, number: i128, found: Unexpected<'_>) -> Result<i128, E> {
        if self.has(number) { Ok(number) } else { Err(E::invalid_value(found, self)) }
    }

    /// As a flag has it.
    fn parse(&self, text: &str) -> Result<i128, String> {
        let number = text.parse().ok().filter(|&number| self.has(number));
        number.ok_or_else(|| format!("must be {}", self.name))
    }
}

impl Visitor<'_> for Whole {
    type Value = i128;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<i128, E> {
        self.bounded(number.into(), Unexpected::Unsigned(number))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<i128, E> {
        self.bounded(number.into(), Unexpected::Signed(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<i128, E> {
        // Beyond 2^53 a float does not say which whole number was meant.
        let exact = number.fract() == 0.0 && number.abs() < (1_u64 << f64::MANTISSA_DIGITS) as f64;
        let found = Unexpected::Float(number);
        if exact {
            self.bounded(number as i128, found)
        } else {
            Err(E::invalid_value(found, &self))
        }
    }
}
