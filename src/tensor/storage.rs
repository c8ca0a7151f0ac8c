//! The memory behind a tensor: one buffer of one element type. Shapes and gradients live elsewhere.

use crate::device::cpu::memory::{Buffer, Element};
use crate::device::cpu::pool;
use crate::dtype::{DType, Float, FloatSlice, FloatSliceMut};
use half::{bf16, f16};

/// An owned run of elements whose type is known at run time.
#[derive(Clone)]
pub enum Storage {
    /// f32 elements.
    F32(Buffer<f32>),
    /// bf16 elements.
    Bf16(Buffer<bf16>),
    /// f16 elements.
    F16(Buffer<f16>),
    /// i32 elements.
    I32(Buffer<i32>),
    /// i64 elements.
    I64(Buffer<i64>),
    /// Bytes.
    U8(Buffer<u8>),
}

macro_rules! each {
    ($storage:expr, $buffer:ident => $body:expr) => {
        match $storage {
            Storage::F32($buffer) => $body,
            Storage::Bf16($buffer) => $body,
            Storage::F16($buffer) => $body,
            Storage::I32($buffer) => $body,
            Storage::I64($buffer) => $body,
            Storage::U8($buffer) => $body,
        }
    };
}

impl Storage {
    /// `len` zeros.
    pub fn zeros(dtype: DType, len: usize) -> Storage {
        let mut storage = Storage::recycled(dtype, len);
        each!(&mut storage, buffer => buffer.fill(bytemuck::Zeroable::zeroed()));
        storage
    }

    /// `len` elements of arbitrary content, to be written whole.
    pub fn recycled(dtype: DType, len: usize) -> Storage {
        match dtype {
            DType::F32 => Storage::F32(Buffer::recycled(len)),
            DType::Bf16 => Storage::Bf16(Buffer::recycled(len)),
            DType::F16 => Storage::F16(Buffer::recycled(len)),
            DType::I32 => Storage::I32(Buffer::recycled(len)),
            DType::I64 => Storage::I64(Buffer::recycled(len)),
            DType::U8 => Storage::U8(Buffer::recycled(len)),
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        each!(self, buffer => buffer.len())
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Storage::F32(_) => DType::F32,
            Storage::Bf16(_) => DType::Bf16,
            Storage::F16(_) => DType::F16,
            Storage::I32(_) => DType::I32,
            Storage::I64(_) => DType::I64,
            Storage::U8(_) => DType::U8,
        }
    }

    /// All elements as bytes in memory order (little endian on every supported machine).
    pub fn bytes(&self) -> &[u8] {
        each!(self, buffer => bytemuck::cast_slice(buffer))
    }

    /// All elements as writable bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        each!(self, buffer => bytemuck::cast_slice_mut(buffer))
    }

    /// The elements as floats, or `None` for an integer type.
    pub fn floats(&self) -> Option<FloatSlice<'_>> {
        match self {
            Storage::F32(buffer) => Some(FloatSlice::F32(buffer)),
            Storage::Bf16(buffer) => Some(FloatSlice::Bf16(buffer)),
            Storage::F16(buffer) => Some(FloatSlice::F16(buffer)),
            _ => None,
        }
    }

    /// The elements as writable floats, or `None` for an integer type.
    pub fn floats_mut(&mut self) -> Option<FloatSliceMut<'_>> {
        match self {
            Storage::F32(buffer) => Some(FloatSliceMut::F32(buffer)),
            Storage::Bf16(buffer) => Some(FloatSliceMut::Bf16(buffer)),
            Storage::F16(buffer) => Some(FloatSliceMut::F16(buffer)),
            _ => None,
        }
    }

    /// Stores f32 values in `dtype`, rounding to nearest even. An f32 buffer is taken as it is; an integer `dtype` is
    /// read as f32.
    pub fn from_f32(values: Buffer<f32>, dtype: DType) -> Storage {
        match dtype {
            DType::Bf16 => Storage::Bf16(narrow(&values)),
            DType::F16 => Storage::F16(narrow(&values)),
            _ => Storage::F32(values),
        }
    }
}

/// Elements handled by one task of a conversion.
const BLOCK: usize = 32 * 1024;

fn narrow<T: Float + Element>(values: &[f32]) -> Buffer<T> {
    let mut out = Buffer::<T>::recycled(values.len());
    pool::blocks(&mut out, BLOCK, |i, out| {
        let values = &values[i * BLOCK..];
        out.iter_mut().zip(values).for_each(|(out, value)| *out = T::from_f32(*value));
    });
    out
}

/// A fresh f32 copy of floats of any type.
pub(crate) fn widen(values: FloatSlice<'_>) -> Buffer<f32> {
    fn convert<T: Float>(values: &[T]) -> Buffer<f32> {
        let mut out = Buffer::<f32>::recycled(values.len());
        pool::blocks(&mut out, BLOCK, |i, out| {
            let values = &values[i * BLOCK..];
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_f32());
        });
        out
    }
    crate::with_float!(FloatSlice, values, |values| convert(values))
}
