//! Floor 1: what a number in a buffer can be, and a matrix on the host.

use std::borrow::Cow;

pub use half::bf16;
use rayon::prelude::*;

/// Tokens whose keys and values lie in one page of the K/V cache.
pub const PAGE_LEN: usize = 16;

/// A number that a device buffer can hold.
pub trait Element: Copy + Default + PartialEq + Send + Sync + std::fmt::Debug + 'static {
    /// The value, exactly.
    fn to_f64(self) -> f64;
    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;
}

impl Element for f32 {
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Element for bf16 {
    fn to_f64(self) -> f64 {
        bf16::to_f64(self)
    }
    fn from_f64(value: f64) -> Self {
        bf16::from_f64(value)
    }
}

impl Element for u32 {
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f64(value: f64) -> Self {
        value as u32
    }
}

/// A weight matrix on the host, `[rows, cols]` row-major: `rows` outputs by `cols` inputs, or
/// `rows` vocabulary entries by `cols` channels.
#[derive(Clone, Debug, PartialEq)]
pub struct HostMatrix<'a> {
    /// Outputs, or entries of a table.
    pub rows: usize,
    /// Inputs, or channels.
    pub cols: usize,
    /// `[rows, cols]`
    pub data: Cow<'a, [bf16]>,
}

impl<'a> HostMatrix<'a> {
    /// A matrix over `data`, whose length must be `rows * cols`.
    pub fn new(rows: usize, cols: usize, data: impl Into<Cow<'a, [bf16]>>) -> Self {
        let data = data.into();
        assert_eq!(data.len(), rows * cols, "a {rows} x {cols} matrix");
        Self { rows, cols, data }
    }

    /// One row, `[cols]`.
    pub fn row(&self, row: usize) -> &[bf16] {
        &self.data[row * self.cols..][..self.cols]
    }
}

/// `len` numbers evenly distributed between −`widest` and `widest`, for measuring: the same for the
/// same seed, on any number of threads.
pub fn random(seed: u64, widest: f32, len: usize) -> Vec<bf16> {
    // splitmix64 of the place, so that threads need not wait for one another.
    let number = |place: usize| {
        let mut bits = seed.wrapping_add((place as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bf16::from_f32(((bits >> 40) as f32 / (1 << 23) as f32 - 1.0) * widest)
    };
    (0..len).into_par_iter().with_min_len(1 << 12).map(number).collect()
}
