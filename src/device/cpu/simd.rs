//! Run-time choice of the instruction set, and the macro that compiles one body for each.
//!
//! Bodies are plain Rust over fixed-width lane arrays, which the compiler vectorises; there are no intrinsics. The
//! number of lanes is part of the body and not of the instruction set, so AVX2 and AVX-512 give the same bits. The
//! portable build has no fused multiply-add (as a library call it would cost 50 times more) and may differ in the
//! last bit.

use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set, from the weakest to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Whatever the crate was compiled for.
    Portable = 1,
    /// AVX2 and FMA.
    Avx2 = 2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512 = 3,
}

impl Level {
    /// `portable`, `avx2+fma` or `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2+fma",
            Level::Avx512 => "avx512",
        }
    }
}

static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// The strongest instruction set of this machine.
pub fn detected() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
            return Level::Portable;
        }
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if wide { Level::Avx512 } else { Level::Avx2 }
    }
    #[cfg(not(target_arch = "x86_64"))]
    Level::Portable
}

/// The instruction set in use.
#[inline]
pub fn level() -> Level {
    match CHOSEN.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => {
            let level = detected();
            CHOSEN.store(level as u8, Ordering::Relaxed);
            level
        }
    }
}

/// Uses at most `limit` from now on, never more than the machine has. For tests and measurements.
pub fn limit(limit: Level) {
    CHOSEN.store(limit.min(detected()) as u8, Ordering::Relaxed);
}

/// Defines a function whose body is compiled for every [`Level`] and chosen at each call.
///
/// Inside the body the constant `FMA` says whether `f32::mul_add` is one instruction: use
/// [`fma::<FMA>`](crate::device::cpu::math::fma). One generic parameter with one bound is allowed.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$T:ident: $Bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unused_variables, clippy::too_many_arguments)]
        $vis fn $name $(<$T: $Bound>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::extra_unused_type_parameters)]
            fn body<const FMA: bool $(, $T: $Bound)?>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2 $(<$T: $Bound>)? ($($arg: $ty),*) $(-> $ret)? {
                    body::<true $(, $T)?>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512 $(<$T: $Bound>)? ($($arg: $ty),*) $(-> $ret)? {
                    body::<true $(, $T)?>($($arg),*)
                }
                match $crate::device::cpu::simd::level() {
                    $crate::device::cpu::simd::Level::Portable => {}
                    // SAFETY: `level` never exceeds what the machine was found to have.
                    $crate::device::cpu::simd::Level::Avx2 => return unsafe { avx2 $(::<$T>)? ($($arg),*) },
                    // SAFETY: as above.
                    $crate::device::cpu::simd::Level::Avx512 => return unsafe { avx512 $(::<$T>)? ($($arg),*) },
                }
            }
            body::<false $(, $T)?>($($arg),*)
        }
    };
}

pub(crate) use simd_fn;
