//! Kernels in x86-64's own instructions, where the compiler would not find them.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::matmul::{Tile, tile_widened};
use super::matrix::PANEL;
use crate::tensor::bf16;

/// Vectors of sixteen outputs in a panel.
const VECTORS: usize = PANEL / 16;

/// The sums of `ROWS` rows, `x: [ROWS, pairs]`, and one panel, `[pairs, PANEL, 2]`.
///
/// `vdpbf16ps` adds both products of a pair to a sum in f32, flushing denormals to zero.
///
/// # Safety
/// The processor has AVX512-BF16; `x` and `panel` are at least as long as said.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn tile_bf16<const ROWS: usize>(
    pairs: usize,
    x: &[u32],
    panel: &[bf16],
    sums: &mut Tile,
) {
    let mut acc: [[__m512; VECTORS]; ROWS] = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    let mut weights = panel.as_ptr().cast::<__m512i>();
    for pair in 0..pairs {
        // SAFETY: `pair` is below `pairs`, and a pair has VECTORS vectors; `x` has `pairs` words
        // for each row. __m512i and __m512bh are the same 64 bytes.
        unsafe {
            let w: [__m512bh; VECTORS] = std::array::from_fn(|vector| {
                std::mem::transmute(_mm512_loadu_si512(weights.add(vector)))
            });
            weights = weights.add(VECTORS);
            for (row, acc) in acc.iter_mut().enumerate() {
                let word = *x.get_unchecked(row * pairs + pair);
                let word: __m512bh = std::mem::transmute(_mm512_set1_epi32(word as i32));
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = _mm512_dpbf16_ps(*acc, w, word);
                }
            }
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.chunks_exact_mut(16).zip(acc) {
            // SAFETY: the chunk has sixteen numbers.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
        }
    }
}

/// The widened sums with sixteen lanes and fused multiply-add.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
pub fn tile_avx512<const ROWS: usize>(pairs: usize, x: &[u32], panel: &[bf16], sums: &mut Tile) {
    tile_widened::<ROWS, true>(pairs, x, panel, sums);
}

/// The widened sums with eight lanes and fused multiply-add.
#[target_feature(enable = "avx2,fma")]
pub fn tile_avx2<const ROWS: usize>(pairs: usize, x: &[u32], panel: &[bf16], sums: &mut Tile) {
    tile_widened::<ROWS, true>(pairs, x, panel, sums);
}
