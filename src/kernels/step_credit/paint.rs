//! Painting: spans of sequences become one label a token.

use super::span::Span;
use crate::error::{Error, Result};
use crate::kernels::offsets;

/// The label of every token: that of the last span that covers it, `background` where none does.
///
/// # Shapes
/// `offsets [sequences + 1]` from 0 to `labels.len()`; `labels [tokens]`.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_index`] for offsets that do not cover the tokens or a span outside its sequence.
pub fn paint(spans: &[Span], offsets: &[i64], background: f32, labels: &mut [f32]) -> Result<()> {
    let offsets = offsets::checked("step_credit", "sequence", offsets, labels.len())?;
    for (i, span) in spans.iter().enumerate() {
        span.check(i, &offsets)?;
    }
    labels.fill(background);
    for span in spans {
        let first = offsets[span.sequence];
        labels[first + span.start..first + span.end].fill(span.label);
    }
    Ok(())
}

impl Span {
    fn check(&self, index: usize, offsets: &[usize]) -> Result<()> {
        let Span { sequence, start, end, .. } = *self;
        let sequences = offsets.len() - 1;
        if sequence >= sequences {
            return Err(Error::index(format!(
                "step_credit: span {index} is of sequence {sequence}; there are {sequences}"
            )));
        }
        let length = offsets[sequence + 1] - offsets[sequence];
        if start > end || end > length {
            return Err(Error::index(format!(
                "step_credit: span {index} is tokens {start}..{end} of sequence {sequence}, which has {length}"
            )));
        }
        Ok(())
    }
}
