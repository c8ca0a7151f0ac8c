//! Checked CSR offsets: how kernels are told where packed sequences and groups begin.

use crate::error::{Error, Result};

/// The offsets as `usize`: `count + 1` of them, from 0 to `total`, never falling.
///
/// No offsets at all stand for no segments, which fits `total` 0 only.
///
/// # Errors
/// [`Error::is_shape`] when they do not run from 0 to `total`, [`Error::is_index`] when one falls.
pub(crate) fn checked(op: &str, what: &str, offsets: &[i64], total: usize) -> Result<Vec<usize>> {
    let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else {
        return if total == 0 {
            Ok(vec![0])
        } else {
            Err(Error::shape(format!("{op}: no {what} offsets for {total} elements")))
        };
    };
    if *first != 0 || *last != total as i64 {
        return Err(Error::shape(format!(
            "{op}: {what} offsets run from {first} to {last}, not from 0 to {total}"
        )));
    }
    if let Some(i) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
        return Err(Error::index(format!(
            "{op}: {what} offset {} falls from {} to {}",
            i + 1,
            offsets[i],
            offsets[i + 1]
        )));
    }
    Ok(offsets.iter().map(|offset| *offset as usize).collect())
}
