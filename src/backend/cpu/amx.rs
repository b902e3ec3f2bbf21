//! [`Tiles`] in AMX's instructions.
//!
//! One instruction a function, by inline assembly: the intrinsics are not stable yet. The compiler
//! uses no tile registers of its own, and assembly that may touch memory keeps its order, so tiles
//! keep what was put into them from one function to the next. The caller vouches for the processor:
//! values of `Isa` with AMX come from [`available`].

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _MM_HINT_T1, _mm_prefetch};
use std::sync::OnceLock;

use super::matmul::Row;
use super::matrix::{PANEL, WeightPairs};
use super::simd::LANES;
use super::tiles::{TILE, Tiles};
use crate::tensor::bf16;

/// The state components of tiles in XCR0: their configuration and their data.
const TILE_STATE: u64 = 0b11 << 17;
/// The second of them, which Linux gives only to who asks for it.
const TILE_DATA: u64 = 18;
/// `arch_prctl`, and what to ask it for (Linux, arch/x86/include/uapi/asm/prctl.h).
const SYS_ARCH_PRCTL: u64 = 158;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;

/// Whether the processor has tiles of bf16 and the system lets this process use them.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| cfg!(target_os = "linux") && processor_has_them() && permitted())
}

fn processor_has_them() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const OSXSAVE: u32 = 1 << 27;
    let most = __cpuid_count(0, 0).eax;
    if most < 7 || __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
        return false;
    }
    if __cpuid_count(7, 0).edx & (BF16 | TILE) != BF16 | TILE {
        return false;
    }
    let (low, high): (u32, u32);
    // SAFETY: the system has enabled xgetbv (OSXSAVE); it only reads a register.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    (u64::from(high) << 32 | u64::from(low)) & TILE_STATE == TILE_STATE
}

/// Asks Linux for the tiles' state, for all threads of the process.
fn permitted() -> bool {
    let mut result = SYS_ARCH_PRCTL;
    // SAFETY: a system call that takes two numbers and changes nothing that Rust knows of.
    unsafe {
        asm!("syscall", inlateout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILE_DATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile; of 16, the last 8 must be 0.
    row_bytes: [u16; 16],
    /// Rows of each tile, likewise.
    rows: [u8; 16],
}

/// Eight tiles of 16 rows of 64 bytes.
static CONFIGURATION: Configuration = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        row_bytes[tile] = 64;
        rows[tile] = TILE as u8;
        tile += 1;
    }
    Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// This thread's tiles.
pub struct Amx(());

impl Tiles for Amx {
    #[inline(always)]
    fn new() -> Self {
        // SAFETY: see the module's head; 64 bytes of a valid configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack)) };
        Self(())
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: see the module's head.
        unsafe { asm!("tilezero tmm{}", const T, options(nostack)) };
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const bf16, stride: usize) {
        // SAFETY: see the module's head; the caller says that the rows are there.
        unsafe {
            asm!("tileloadd tmm{}, [{} + {}]", const T, in(reg) from,
                in(reg) stride * size_of::<bf16>(), options(nostack));
        }
    }

    #[inline(always)]
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: see the module's head.
        unsafe {
            asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const C, const A, const B, options(nostack))
        };
    }

    #[inline(always)]
    fn store<const T: usize>(&mut self, to: &mut [Row], vector: usize) {
        assert!(to.len() >= TILE && (vector + 1) * LANES <= PANEL, "16 rows of a panel");
        let to = to.as_mut_ptr().cast::<f32>().wrapping_add(vector * LANES);
        // SAFETY: see the module's head; 16 rows of 64 bytes lie within `to`.
        unsafe {
            asm!("tilestored [{} + {}], tmm{}", in(reg) to, in(reg) size_of::<Row>(),
                const T, options(nostack));
        }
    }

    #[inline(always)]
    fn resume<const T: usize>(&mut self, from: &[Row], vector: usize) {
        assert!(from.len() >= TILE && (vector + 1) * LANES <= PANEL, "16 rows of a panel");
        let from = from.as_ptr().cast::<f32>().wrapping_add(vector * LANES);
        // SAFETY: see the module's head; 16 rows of 64 bytes lie within `from`.
        unsafe {
            asm!("tileloadd tmm{}, [{} + {}]", const T, in(reg) from,
                in(reg) size_of::<Row>(), options(nostack));
        }
    }

    #[inline(always)]
    fn prefetch(address: *const bf16) {
        // SAFETY: prefetching never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn touch(line: &WeightPairs) {
        // SAFETY: reads eight bytes of the line.
        unsafe {
            asm!("mov {}, qword ptr [{}]", out(reg) _, in(reg) line,
                options(nostack, readonly, preserves_flags));
        }
    }
}

impl Drop for Amx {
    #[inline(always)]
    fn drop(&mut self) {
        // So that a switch of threads need not save them.
        // SAFETY: see the module's head.
        unsafe { asm!("tilerelease", options(nostack)) };
    }
}
