//! What this processor can do, found out once.

/// The instruction set that the kernels run on.
///
/// Each is a path of its own: results are reproducible on one path, and differ in the last bits
/// between paths (fused multiply-add, and how `vdpbf16ps` adds its pairs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// [`Isa::Amx`]'s tiles in plain Rust: so slow that only tests choose it.
    PortableTiles,
    /// Whatever the compiler makes of plain Rust.
    Portable,
    /// 8 lanes with fused multiply-add.
    Avx2,
    /// 16 lanes.
    Avx512,
    /// 16 lanes of pairs of bf16.
    Avx512Bf16,
    /// Matmuls and attention's scores on tiles of bf16; all else as [`Isa::Avx512`], since processors with tiles multiply
    /// pairs of bf16 in lanes at half the rate of f32.
    Amx,
}

impl Isa {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::PortableTiles => "portable tiles",
            Isa::Portable => "portable",
            Isa::Avx2 => "AVX2",
            Isa::Avx512 => "AVX-512",
            Isa::Avx512Bf16 => "AVX-512 BF16",
            Isa::Amx => "AMX",
        }
    }

    /// All that this machine has, the best last.
    pub fn available() -> Vec<Isa> {
        let mut list = vec![Isa::PortableTiles, Isa::Portable];
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
                    if super::amx::available() {
                        list.push(Isa::Amx);
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
}

/// Makes `fn name(isa, arguments)` from an `#[inline(always)]` function of the same arguments:
/// the body compiled once for each instruction set, and the choice between them. A body that is
/// generic over [`Lanes`](super::simd::Lanes), written `body::<S>`, gets the set's own lanes.
///
/// A function is compiled for what its caller may use, so the body must be inlined into one that
/// has the features; closures give no such promise.
macro_rules! vectorized {
    ($(
        $(#[$doc:meta])*
        $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)?
            = $body:ident $(::<$lanes:ident>)?;
    )*) => {$(
        $(#[$doc])*
        $vis fn $name(isa: $crate::backend::cpu::Isa, $($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
            fn avx512_bf16($($arg: $type),*) $(-> $out)? {
                $(type $lanes = $crate::backend::cpu::avx512::Avx512Bf16;)?
                $body$(::<$lanes>)?($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
            fn avx512($($arg: $type),*) $(-> $out)? {
                $(type $lanes = $crate::backend::cpu::avx512::Avx512;)?
                $body$(::<$lanes>)?($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $out)? {
                $(type $lanes = $crate::backend::cpu::avx2::Avx2;)?
                $body$(::<$lanes>)?($($arg),*)
            }
            fn portable($($arg: $type),*) $(-> $out)? {
                $(type $lanes = $crate::backend::cpu::simd::Portable;)?
                $body$(::<$lanes>)?($($arg),*)
            }
            use $crate::backend::cpu::Isa;
            match isa {
                // SAFETY: values of `Isa` that are not portable come from `available`, which checked
                // that the processor has these features.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16 => unsafe { avx512_bf16($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Amx => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => portable($($arg),*),
            }
        }
    )*};
}
pub(super) use vectorized;
