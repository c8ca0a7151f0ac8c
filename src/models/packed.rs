//! Sequences laid end to end without padding: what a decoder's forward pass reads.

/// Packed sequences, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// Token ids `[T]`.
    pub ids: &'a [i32],
    /// The position of each token in its sequence `[T]`.
    pub positions: &'a [i32],
    /// Where each sequence begins, and the end of the last: `[sequences + 1]`, from 0 to T.
    pub segments: &'a [usize],
}

/// Packed sequences, each from a first position on.
pub struct Packed {
    /// Token ids `[T]`.
    pub ids: Vec<i32>,
    /// Positions `[T]`.
    pub positions: Vec<i32>,
    /// Offsets `[sequences + 1]`.
    pub segments: Vec<usize>,
}

impl Packed {
    /// Packs `(first position, tokens)` pairs.
    pub fn new<'a>(sequences: impl Iterator<Item = (usize, &'a [i32])>) -> Packed {
        let mut packed = Packed { ids: Vec::new(), positions: Vec::new(), segments: vec![0] };
        for (first, tokens) in sequences {
            packed.ids.extend_from_slice(tokens);
            packed.positions.extend((first..first + tokens.len()).map(|p| p as i32));
            packed.segments.push(packed.ids.len());
        }
        packed
    }

    /// As the decoder takes them.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens { ids: &self.ids, positions: &self.positions, segments: &self.segments }
    }
}
