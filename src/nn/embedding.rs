//! A table of vectors, one per id.

use super::builder::Builder;
use super::weights::Weights;
use crate::error::Result;
use crate::ops;
use crate::tensor::Tensor;

/// Rows of a table by id.
#[derive(Clone, Copy, Debug)]
pub struct Embedding {
    table: usize,
}

impl Embedding {
    /// Adds the table `name [ids, width]`.
    ///
    /// # Errors
    /// As [`Builder::tensor`].
    pub fn new(
        builder: &mut Builder<'_>,
        name: &str,
        [ids, width]: [usize; 2],
    ) -> Result<Embedding> {
        Ok(Embedding { table: builder.tensor(name, &[ids, width])? })
    }

    /// The index of the table.
    pub fn index(self) -> usize {
        self.table
    }

    /// `ids [T]`; `[T, width]` in the table's dtype.
    ///
    /// # Errors
    /// As [`ops::embedding`].
    pub fn forward(self, weights: Weights<'_>, ids: &[i32]) -> Result<Tensor> {
        ops::embedding(&weights.get(self.table), ids)
    }
}
