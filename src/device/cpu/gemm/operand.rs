//! An operand of a product: where its elements are and how they are read.

use crate::device::cpu::convert::{transpose, widen};
use crate::device::cpu::pool;
use crate::dtype::FloatSlice;
use crate::with_float;
use gemmkit::MatRef;
use std::ops::Range;

/// An operand: row-major `[rows, cols]` in f32, bf16 or f16, read as its transpose where `transposed`.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    data: FloatSlice<'a>,
    transposed: bool,
    /// Elements from one stored row to the next; `None` for a dense matrix.
    stride: Option<usize>,
}

/// `data` as it is stored.
pub fn plain(data: &[f32]) -> Operand<'_> {
    Operand::new(FloatSlice::F32(data), false)
}

/// The transpose of `data`.
pub fn transposed(data: &[f32]) -> Operand<'_> {
    Operand::new(FloatSlice::F32(data), true)
}

/// True when `len` elements hold `rows` rows of `cols` at this stride.
pub(super) fn fits(len: usize, [rows, cols]: [usize; 2], stride: usize) -> bool {
    rows == 0
        || cols == 0
        || (stride >= cols && len >= (rows - 1).saturating_mul(stride).saturating_add(cols))
}

impl<'a> Operand<'a> {
    /// A dense matrix of any float type, or its transpose.
    pub fn new(data: FloatSlice<'a>, transposed: bool) -> Operand<'a> {
        Operand { data, transposed, stride: None }
    }

    /// The same with `stride` elements from one stored row to the next: some columns of a wider matrix.
    pub fn with_stride(self, stride: usize) -> Operand<'a> {
        Operand { stride: Some(stride), ..self }
    }

    pub(super) fn len(self) -> usize {
        self.data.len()
    }

    pub(super) fn is_transposed(self) -> bool {
        self.transposed
    }

    /// Its stored rows lie one after the other.
    pub(super) fn is_dense(self) -> bool {
        self.stride.is_none()
    }

    /// The engine can read it where it is.
    pub(super) fn is_f32(self) -> bool {
        matches!(self.data, FloatSlice::F32(_))
    }

    /// Bytes of `elements` of it.
    pub(super) fn bytes(self, elements: usize) -> usize {
        elements.saturating_mul(self.data.dtype().size())
    }

    /// It holds `[rows, cols]` after any transposition.
    pub(super) fn fits(self, rows: usize, cols: usize) -> bool {
        let stored = if self.transposed { [cols, rows] } else { [rows, cols] };
        match self.stride {
            None => Some(self.data.len()) == rows.checked_mul(cols),
            Some(stride) => fits(self.data.len(), stored, stride),
        }
    }

    /// Some rows and columns of what is `[_, width]` after any transposition (`[height, _]` where it is transposed, whose
    /// stored rows have `height` elements): where they lie, or widened into `scratch`.
    pub(super) fn block<'s>(
        self,
        rows: Range<usize>,
        cols: Range<usize>,
        [height, width]: [usize; 2],
        scratch: &'s mut [f32],
    ) -> MatRef<'s, f32>
    where
        'a: 's,
    {
        let size = [rows.len(), cols.len()];
        let (down, across, dense) =
            if self.transposed { (cols, rows, height) } else { (rows, cols, width) };
        let stride = self.stride.unwrap_or(dense);
        let matrix = |data: &'s [f32], stride: usize| {
            let stride = stride as isize;
            let (row, col) = if self.transposed { (1, stride) } else { (stride, 1) };
            MatRef::new(data, size[0], size[1], row, col)
        };
        if let FloatSlice::F32(data) = self.data {
            return matrix(&data[down.start * stride + across.start..], stride);
        }
        let across_len = across.len();
        let scratch = &mut scratch[..down.len() * across_len];
        self.copy(down, across, stride, scratch);
        matrix(scratch, across_len)
    }

    /// The rows `rows` of an operand `[_, width]` that is not transposed, columns `cols`, as f32 at the beginning of `into`.
    pub(super) fn copy_rows(
        self,
        rows: Range<usize>,
        cols: Range<usize>,
        width: usize,
        into: &mut [f32],
    ) {
        let stride = self.stride.unwrap_or(width);
        with_float!(FloatSlice, self.data, |data| {
            let block = &data[rows.start * stride + cols.start..];
            let rows = into.chunks_mut(cols.len()).zip(block.chunks(stride)).take(rows.len());
            rows.for_each(|(to, from)| widen(&from[..cols.len()], to));
        });
    }

    /// The columns `cols` of a dense operand `[depth, _]` that is stored as its transpose, as f32 `[depth, cols]`.
    pub(super) fn copy_cols(self, cols: Range<usize>, depth: usize, into: &mut [f32]) {
        with_float!(FloatSlice, self.data, |data| {
            transpose(&data[cols.start * depth..cols.end * depth], depth, into)
        });
    }

    /// Stored rows `down`, stored columns `across`, dense and as f32.
    fn copy(self, down: Range<usize>, across: Range<usize>, stride: usize, into: &mut [f32]) {
        let width = across.len();
        let together = pool::rows_per_task(width * size_of::<f32>());
        with_float!(FloatSlice, self.data, |data| {
            let block = &data[down.start * stride + across.start..];
            pool::each(
                into.chunks_mut(width).zip(block.chunks(stride)),
                together,
                |_, (to, from)| widen(&from[..width], to),
            );
        });
    }
}
