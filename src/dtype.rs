//! Element types, and typed views of caller-owned memory.
//!
//! Kernels take [`FloatSlice`]s: a storage type chosen at run time, converted to f32 on load. No tensor lives here.

use crate::error::{Error, Result};
use half::{bf16, f16};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// The element type of a tensor or a kernel argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float; every accumulator, softmax, loss and optimizer state.
    F32,
    /// Brain float: f32 with a 7-bit mantissa.
    Bf16,
    /// IEEE half precision.
    F16,
    /// 32-bit signed integer: token ids, offsets, positions.
    I32,
    /// 64-bit signed integer; only for ids read from files.
    I64,
    /// Bytes and masks.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::I64 => 8,
            DType::U8 => 1,
        }
    }

    /// True for f32, bf16 and f16.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16 | DType::F16)
    }

    /// The lower-case name: `f32`, `bf16`, `f16`, `i32`, `i64`, `u8`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = Error;

    /// Reads a [`DType::name`], or PyTorch's long names (`float32`, `bfloat16`, `float16`).
    fn from_str(text: &str) -> Result<DType> {
        Ok(match text {
            "f32" | "float32" => DType::F32,
            "bf16" | "bfloat16" => DType::Bf16,
            "f16" | "float16" => DType::F16,
            "i32" => DType::I32,
            "i64" => DType::I64,
            "u8" => DType::U8,
            _ => return Err(Error::invalid(format!("unknown dtype `{text}` (f32, bf16 or f16)"))),
        })
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

/// A float storage type: f32, bf16 or f16. Arithmetic is always f32.
pub trait Float: sealed::Sealed + Copy + Send + Sync + Default + bytemuck::Pod {
    /// Its run-time name.
    const DTYPE: DType;
    /// Widens; exact.
    fn to_f32(self) -> f32;
    /// Rounds to nearest even.
    fn from_f32(value: f32) -> Self;
}

impl Float for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
}

impl Float for bf16 {
    const DTYPE: DType = DType::Bf16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        // Branch-free so that it vectorises: add half a unit in the last place (ties to even); NaN stays a quiet NaN.
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { quiet as u16 } else { rounded as u16 })
    }
}

impl Float for f16 {
    const DTYPE: DType = DType::F16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        // Branch-free so that it vectorises. Shifted into f32's fields the exponent is 112 too small; multiplying by
        // 2^112 mends that for subnormal numbers too. Only infinities and NaNs need their exponent set.
        const EXPONENT: f32 = f32::from_bits(0x7780_0000);
        let bits = u32::from(self.to_bits());
        let fields = (bits & 0x7fff) << 13;
        let finite = (f32::from_bits(fields) * EXPONENT).to_bits();
        let magnitude = if fields >= 0x0f80_0000 { fields | 0x7f80_0000 } else { finite };
        f32::from_bits(magnitude | ((bits & 0x8000) << 16))
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f16 {
        let bits = value.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        // Ties to even; a carry out of the fraction is right, up to infinity.
        let normal = (magnitude.wrapping_add(0xc800_0fff + ((magnitude >> 13) & 1))) >> 13;
        // The unit in the last place of 0.5 is f16's smallest number: the addition rounds.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
        let large = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        let magnitude = if magnitude >= 0x4780_0000 { large } else { finite };
        f16::from_bits((magnitude | ((bits >> 16) & 0x8000)) as u16)
    }
}

/// A read-only run of floats whose storage type is known at run time.
#[derive(Clone, Copy, Debug)]
pub enum FloatSlice<'a> {
    /// f32 storage.
    F32(&'a [f32]),
    /// bf16 storage.
    Bf16(&'a [bf16]),
    /// f16 storage.
    F16(&'a [f16]),
}

/// A writable run of floats whose storage type is known at run time.
#[derive(Debug)]
pub enum FloatSliceMut<'a> {
    /// f32 storage.
    F32(&'a mut [f32]),
    /// bf16 storage.
    Bf16(&'a mut [bf16]),
    /// f16 storage.
    F16(&'a mut [f16]),
}

/// Runs `$body` with `$name` bound to the typed slice inside a [`FloatSlice`] or [`FloatSliceMut`].
#[macro_export]
macro_rules! with_float {
    ($Enum:ident, $value:expr, |$name:ident| $body:expr) => {
        match $value {
            $crate::dtype::$Enum::F32($name) => $body,
            $crate::dtype::$Enum::Bf16($name) => $body,
            $crate::dtype::$Enum::F16($name) => $body,
        }
    };
}

impl<'a> FloatSlice<'a> {
    /// Elements.
    pub fn len(self) -> usize {
        with_float!(FloatSlice, self, |s| s.len())
    }

    /// True when there is no element.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The storage type.
    pub fn dtype(self) -> DType {
        match self {
            FloatSlice::F32(_) => DType::F32,
            FloatSlice::Bf16(_) => DType::Bf16,
            FloatSlice::F16(_) => DType::F16,
        }
    }

    /// The sub-range, or a shape error when it does not lie inside.
    pub fn slice(self, range: Range<usize>) -> Result<FloatSlice<'a>> {
        let len = self.len();
        let outside = || Error::shape(format!("range {range:?} of a slice of {len} elements"));
        Ok(match self {
            FloatSlice::F32(s) => FloatSlice::F32(s.get(range.clone()).ok_or_else(outside)?),
            FloatSlice::Bf16(s) => FloatSlice::Bf16(s.get(range.clone()).ok_or_else(outside)?),
            FloatSlice::F16(s) => FloatSlice::F16(s.get(range.clone()).ok_or_else(outside)?),
        })
    }

    /// All elements as f32: borrowed when they are, converted otherwise.
    pub fn to_f32(self) -> Cow<'a, [f32]> {
        match self {
            FloatSlice::F32(s) => Cow::Borrowed(s),
            FloatSlice::Bf16(s) => Cow::Owned(s.iter().map(|x| Float::to_f32(*x)).collect()),
            FloatSlice::F16(s) => Cow::Owned(s.iter().map(|x| Float::to_f32(*x)).collect()),
        }
    }
}

impl<'a> FloatSliceMut<'a> {
    /// Consecutive pieces of `size` elements, the last one perhaps shorter.
    pub fn chunks(self, size: usize) -> Vec<FloatSliceMut<'a>> {
        let size = size.max(1);
        match self {
            FloatSliceMut::F32(s) => s.chunks_mut(size).map(FloatSliceMut::F32).collect(),
            FloatSliceMut::Bf16(s) => s.chunks_mut(size).map(FloatSliceMut::Bf16).collect(),
            FloatSliceMut::F16(s) => s.chunks_mut(size).map(FloatSliceMut::F16).collect(),
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        with_float!(FloatSliceMut, self, |s| s.len())
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The storage type.
    pub fn dtype(&self) -> DType {
        match self {
            FloatSliceMut::F32(_) => DType::F32,
            FloatSliceMut::Bf16(_) => DType::Bf16,
            FloatSliceMut::F16(_) => DType::F16,
        }
    }

    /// A read-only view of the same elements.
    pub fn as_slice(&self) -> FloatSlice<'_> {
        match self {
            FloatSliceMut::F32(s) => FloatSlice::F32(s),
            FloatSliceMut::Bf16(s) => FloatSlice::Bf16(s),
            FloatSliceMut::F16(s) => FloatSlice::F16(s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_half_does() {
        for bits in (0..=u32::MAX).step_by(65_521) {
            let value = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Float>::from_f32(value), bf16::from_f32(value));
            assert!(
                ours.to_bits() == theirs.to_bits() || (value.is_nan() && ours.is_nan()),
                "{value:e}"
            );
        }
    }

    #[test]
    fn f16_converts_as_half_does() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            let (ours, theirs) = (<f16 as Float>::to_f32(value), f16::to_f32(value));
            assert!(
                ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                "{bits:x}"
            );
        }
        let halfway = (0..0x7c00u16).map(|bits| {
            let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
            if high.is_finite() { ((low + high) / 2.0).to_bits() } else { 65520f32.to_bits() }
        });
        let near = halfway.flat_map(|bits| [bits - (bits > 0) as u32, bits, bits + 1]);
        for bits in near.chain((0..=u32::MAX).step_by(65_521)) {
            for value in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let (ours, theirs) = (<f16 as Float>::from_f32(value), f16::from_f32(value));
                assert!(
                    ours.to_bits() == theirs.to_bits() || (value.is_nan() && ours.is_nan()),
                    "{value:e}"
                );
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for dtype in [DType::F32, DType::Bf16, DType::F16, DType::I32, DType::I64, DType::U8] {
            assert_eq!(dtype.name().parse::<DType>().unwrap(), dtype);
        }
        assert!("f64".parse::<DType>().is_err());
    }
}
