//! Floor 1: what a number in a buffer can be, and a matrix on the host.

use std::borrow::Cow;

pub use half::bf16;

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
