//! One tensor in a mapped file, and the numbers in it.

use half::f16;
use safetensors::Dtype;

use crate::tensor::bf16;

/// A tensor as it lies in its file: little-endian, row-major, at any alignment.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// `bytes` must be exactly the shape's numbers; `None` for a dtype that cannot be read.
    pub(super) fn new(dtype: Dtype, shape: &'a [usize], bytes: &'a [u8]) -> Option<Self> {
        matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16).then(|| {
            let numbers: usize = shape.iter().product();
            assert_eq!(bytes.len(), numbers * (dtype.bitsize() / 8), "checked with the header");
            Self { dtype, shape, bytes }
        })
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        self.shape
    }

    /// The numbers as bf16, row-major; wider ones are rounded once, to the nearest, ties to even.
    pub fn to_bf16(&self) -> Vec<bf16> {
        match self.dtype {
            Dtype::BF16 => self.map(bf16::from_le_bytes),
            Dtype::F16 => self.map(|b| bf16::from_f32(f16::from_le_bytes(b).to_f32())),
            Dtype::F64 => self.map(|b| rounded(f64::from_le_bytes(b))),
            _ => self.map(|b| bf16::from_f32(f32::from_le_bytes(b))),
        }
    }

    /// The numbers as f32, row-major; exact but for f64, which is rounded.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::BF16 => self.map(|b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => self.map(|b| f16::from_le_bytes(b).to_f32()),
            Dtype::F64 => self.map(|b| f64::from_le_bytes(b) as f32),
            _ => self.map(f32::from_le_bytes),
        }
    }

    /// Whether the two agree in dtype, shape and every byte. Stricter than equal numbers, so that
    /// a tensor may be stored once for both.
    pub fn same_bytes(&self, other: &TensorView<'_>) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes == other.bytes
    }

    /// Reads by copying `N` bytes at a time: the format promises no alignment.
    fn map<const N: usize, T>(&self, number: impl Fn([u8; N]) -> T) -> Vec<T> {
        let (chunks, rest) = self.bytes.as_chunks::<N>();
        debug_assert!(rest.is_empty());
        chunks.iter().map(|&chunk| number(chunk)).collect()
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
