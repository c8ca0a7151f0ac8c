//! Rows of a table by token id, and the gradient that adds into them.

pub mod launch;

use crate::device::cpu::pool;
use crate::error::{Error, Result};

/// Checks every id against the table.
///
/// # Errors
/// [`Error::is_index`] naming the first bad id and its place.
pub fn check_ids(ids: &[i32], vocab: usize) -> Result<()> {
    match ids.iter().position(|id| usize::try_from(*id).map_or(true, |id| id >= vocab)) {
        None => Ok(()),
        Some(at) => Err(Error::index(format!(
            "embedding: token id {} at place {at}; the vocabulary has {vocab}",
            ids[at]
        ))),
    }
}

/// Copies rows, whatever their element type: `out[i] = table[ids[i]]`, a row being `row_bytes` bytes.
///
/// # Errors
/// [`Error::is_index`] for an id outside the table, [`Error::is_shape`] when a length does not fit.
pub fn gather(table: &[u8], ids: &[i32], row_bytes: usize, out: &mut [u8]) -> Result<()> {
    if out.len() != ids.len() * row_bytes || row_bytes == 0 {
        return Err(Error::shape(format!(
            "embedding: {} bytes for {} rows of {row_bytes}",
            out.len(),
            ids.len()
        )));
    }
    check_ids(ids, table.len() / row_bytes)?;
    let rows = pool::rows_per_task(row_bytes);
    pool::blocks(out, rows * row_bytes, |block, out| {
        for (row, id) in out.chunks_mut(row_bytes).zip(&ids[block * rows..]) {
            let start = *id as usize * row_bytes;
            row.copy_from_slice(&table[start..start + row_bytes]);
        }
    });
    Ok(())
}

/// `dtable[ids[i]] += dy[i]`, for each id in the order of its places.
///
/// # Shapes
/// `dy [ids, width]`, `dtable [vocab, width]`.
///
/// # Errors
/// [`Error::is_index`] for an id outside the table, [`Error::is_shape`] when a length does not fit.
pub fn scatter_add(dtable: &mut [f32], ids: &[i32], width: usize, dy: &[f32]) -> Result<()> {
    if width == 0 || dy.len() != ids.len() * width || !dtable.len().is_multiple_of(width) {
        return Err(Error::shape(format!(
            "embedding backward: {} elements for {} rows of {width}",
            dy.len(),
            ids.len()
        )));
    }
    check_ids(ids, dtable.len() / width)?;
    let mut places: Vec<usize> = (0..ids.len()).collect();
    // Stable: within an id the places stay in order, and that order is the order of additions.
    places.sort_by_key(|place| ids[*place]);
    // Cut the table where the ids change, so that each run of places has its own rows of it.
    let mut rest = dtable;
    let mut done = 0;
    let mut runs: Vec<(&mut [f32], &[usize])> = Vec::new();
    for run in places.chunk_by(|a, b| ids[*a] == ids[*b]) {
        let id = ids[run[0]] as usize;
        let (_, from) = rest.split_at_mut((id - done) * width);
        let (row, after) = from.split_at_mut(width);
        runs.push((row, run));
        rest = after;
        done = id + 1;
    }
    pool::each(runs.into_iter(), 16, |_, (row, run)| {
        for place in run {
            let dy = &dy[place * width..(place + 1) * width];
            row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
        }
    });
    Ok(())
}
