//! One tensor in a file, and the numbers in it.

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::shard::Shard;
use crate::error::Result;
use crate::tensor::bf16;

/// A tensor as it lies in its file: little-endian, row-major, at any alignment.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    info: &'a TensorInfo,
    shard: &'a Shard,
}

impl<'a> TensorView<'a> {
    /// `None` for a dtype that cannot be read.
    pub(super) fn new(info: &'a TensorInfo, shard: &'a Shard) -> Option<Self> {
        matches!(info.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
            .then_some(Self { info, shard })
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.info.shape
    }

    /// The numbers as bf16, row-major; wider ones are rounded once, to the nearest, ties to even.
    ///
    /// # Errors
    /// As [`TensorView::to_f32`].
    pub fn to_bf16(&self) -> Result<Vec<bf16>> {
        match self.info.dtype {
            Dtype::BF16 => self.read(bf16::from_le_bytes),
            Dtype::F16 => self.read(|b| bf16::from_f32(f16::from_le_bytes(b).to_f32())),
            Dtype::F64 => self.read(|b| rounded(f64::from_le_bytes(b))),
            _ => self.read(|b| bf16::from_f32(f32::from_le_bytes(b))),
        }
    }

    /// The numbers as f32, row-major; exact but for f64, which is rounded.
    ///
    /// # Errors
    /// [`Error::Checkpoint`](crate::error::Error::Checkpoint) where the file was cut since it was opened,
    /// [`Error::Io`](crate::error::Error::Io) where it cannot be read.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.info.dtype {
            Dtype::BF16 => self.read(|b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => self.read(|b| f16::from_le_bytes(b).to_f32()),
            Dtype::F64 => self.read(|b| f64::from_le_bytes(b) as f32),
            _ => self.read(f32::from_le_bytes),
        }
    }

    /// Whether the two agree in dtype, shape and every byte. Stricter than equal numbers, so that
    /// a tensor may be stored once for both.
    ///
    /// # Errors
    /// As [`TensorView::to_f32`].
    pub fn same_bytes(&self, other: &TensorView<'_>) -> Result<bool> {
        if self.info.dtype != other.info.dtype || self.info.shape != other.info.shape {
            return Ok(false);
        }
        let (mut ours, mut theirs) = (self.shard.parts(self.info), other.shard.parts(other.info));
        while let Some(part) = ours.next()? {
            if theirs.next()? != Some(part) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads by copying `N` bytes at a time: the format promises no alignment.
    fn read<const N: usize, T>(&self, number: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let mut numbers = Vec::with_capacity(self.info.shape.iter().product());
        self.shard.each_part(self.info, |part| {
            let (chunks, rest) = part.as_chunks::<N>();
            debug_assert!(rest.is_empty());
            numbers.extend(chunks.iter().map(|&chunk| number(chunk)));
        })?;
        Ok(numbers)
    }
}

/// The nearest bf16, ties to even. By way of the nearest f32 a number just above a tie would become the tie, so the
/// f32 in between is rounded to odd: cut off, with its last bit set if that loses something (Boldo and
/// Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
fn rounded(number: f64) -> bf16 {
    let near = number as f32;
    if f64::from(near) == number || !near.is_finite() {
        return bf16::from_f32(near);
    }
    let cut = near.to_bits() - u32::from(f64::from(near).abs() > number.abs());
    bf16::from_f32(f32::from_bits(cut | 1))
}
