//! Where a model's tensors come from: a checkpoint, or thin air.

use crate::error::Result;
use crate::hash::Fnv;
use crate::tensor::{bf16, random};
use crate::weights::Checkpoint;

/// A source of tensors by name.
pub enum Tensors {
    /// Files, still open: a twin compares its tensors with them.
    Files(Checkpoint),
    /// Weights that nobody trained, for measuring speed: the same for the same seed and name.
    Random {
        /// Names the numbers.
        seed: u64,
    },
}

impl Tensors {
    /// A matrix, row-major.
    pub fn matrix(&self, name: &str, shape: &[usize; 2]) -> Result<Vec<bf16>> {
        match self {
            Self::Files(checkpoint) => checkpoint.tensor(name, shape)?.to_bf16(),
            Self::Random { seed } => Ok(random(named(*seed, name), WIDEST, shape[0] * shape[1])),
        }
    }

    /// A bias, or the weight of a norm.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        match self {
            Self::Files(checkpoint) => checkpoint.tensor(name, &[len])?.to_f32(),
            // As models are before training.
            Self::Random { .. } => Ok(vec![if name.ends_with(".weight") { 1.0 } else { 0.0 }; len]),
        }
    }

    /// Whether `other` has this matrix too, byte for byte; an error if there is none here.
    pub fn shares(&self, other: &Tensors, name: &str, shape: &[usize; 2]) -> Result<bool> {
        match (self, other) {
            (Self::Files(ours), Self::Files(theirs)) => {
                let ours = ours.tensor(name, shape)?;
                theirs.tensor(name, shape).map_or(Ok(false), |theirs| ours.same_bytes(&theirs))
            }
            // Random ones are nobody's twin.
            _ => Ok(false),
        }
    }
}

/// Half the width of an even distribution with a standard deviation of 0.02, as models are
/// initialised with.
const WIDEST: f32 = 0.02 * 1.732_050_8;

/// A seed for the numbers of one tensor.
fn named(seed: u64, name: &str) -> u64 {
    let mut hash = Fnv::seeded(seed);
    hash.add(name.as_bytes());
    hash.finish()
}
