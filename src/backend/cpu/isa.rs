//! What this processor can do, found out once.

/// The instruction set that the kernels run on.
///
/// Each is a path of its own: results are reproducible on one path, and differ in the last bits
/// between paths (fused multiply-add, and how `vdpbf16ps` adds its pairs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Whatever the compiler makes of plain Rust.
    Portable,
    /// 8 lanes with fused multiply-add.
    Avx2,
    /// 16 lanes.
    Avx512,
    /// 16 lanes of pairs of bf16.
    Avx512Bf16,
}

impl Isa {
    /// All that this machine has, the best last.
    pub fn available() -> Vec<Isa> {
        let mut list = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                list.push(Isa::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                {
                    list.push(Isa::Avx512);
                    if is_x86_feature_detected!("avx512bf16") {
                        list.push(Isa::Avx512Bf16);
                    }
                }
            }
        }
        list
    }

    /// The best that this machine has.
    pub fn best() -> Isa {
        Self::available().pop().unwrap_or(Isa::Portable)
    }

    /// Runs `f` compiled for this instruction set, as far as the compiler inlines it.
    #[inline(always)]
    pub fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        match self {
            // SAFETY: values of `Isa` other than `Portable` come from `available`, which checked
            // that the processor has these features.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => unsafe { with_avx512(f) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { with_avx2(f) },
            _ => f(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
#[inline]
fn with_avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline]
fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}
