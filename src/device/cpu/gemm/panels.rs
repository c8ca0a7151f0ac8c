//! How a product is cut so that what is widened or rounded at a time is small.

use std::ops::Range;

/// f32 elements of all panels together, at most: they stay in the caches.
const MOST: usize = 1 << 20;
/// f32 elements that are taken however small the product is.
const FEWEST: usize = 1 << 14;
/// Rows and columns of a panel, at least: with fewer, packing costs the engine more than multiplying.
const SHORTEST: usize = 32;

/// Rows, columns and depth of what is multiplied at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Panels {
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
}

/// Which matrices of a product are not f32, so that a panel of each is held as f32 beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Narrow {
    pub a: bool,
    pub b: bool,
    pub c: bool,
}

impl Panels {
    /// Panels of `whole` that hold at most a sixteenth of `bytes`, those of the operands and the result; `slice` is the depth
    /// that they are cut to where they must be cut.
    pub(super) fn new(mut whole: Panels, slice: usize, narrow: Narrow, bytes: usize) -> Panels {
        let held = |p: &Panels| {
            let count = |narrow: bool, one: usize, two: usize| {
                if narrow { one.saturating_mul(two) } else { 0 }
            };
            count(narrow.a, p.rows, p.depth)
                .saturating_add(count(narrow.b, p.cols, p.depth))
                .saturating_add(count(narrow.c, p.rows, p.cols))
        };
        let most = most(bytes);
        if held(&whole) > most {
            whole.depth = slice;
        }
        while held(&whole) > most {
            let half = |len: usize| if len > SHORTEST { len.div_ceil(2) } else { len };
            let fewer_rows = Panels { rows: half(whole.rows), ..whole };
            let fewer_cols = Panels { cols: half(whole.cols), ..whole };
            let better =
                if held(&fewer_rows) < held(&fewer_cols) { fewer_rows } else { fewer_cols };
            if held(&better) == held(&whole) {
                break;
            }
            whole = better;
        }
        whole
    }
}

/// f32 elements that may be held beside operands and result of so many bytes.
fn most(bytes: usize) -> usize {
    (bytes / (16 * size_of::<f32>())).clamp(FEWEST, MOST)
}

/// Columns of a transposed weight that are widened together, over the whole depth, for every row of a product: as many as
/// the engine reads where they are, in whole tiles of its registers. `beside` is what is held besides, for a column and in
/// any case.
pub(super) fn resident_columns(
    cols: usize,
    depth: usize,
    beside: [usize; 2],
    bytes: usize,
) -> usize {
    const TILE: usize = 32;
    const WIDEST: usize = 512;
    let fit = most(bytes).saturating_sub(beside[1]) / depth.saturating_add(beside[0]).max(1);
    cols.min((fit / TILE * TILE).clamp(TILE, WIDEST))
}

/// `0..len` in as few ranges of at most `most` as there can be, as equal as they can be.
pub(super) fn pieces(len: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = len.div_ceil(most.max(1));
    (0..count).map(move |i| i * len / count..(i + 1) * len / count)
}

/// `0..len` in ranges of `most`, the last one perhaps shorter.
pub(super) fn slices(len: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(most.max(1)).map(move |first| first..len.min(first + most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_are_small_and_cut_only_what_must_be() {
        let all = Narrow { a: true, b: true, c: true };
        let whole = Panels { rows: 64, cols: 64, depth: 64 };
        assert_eq!(Panels::new(whole, 32, all, 0), whole);
        // A weight of 8192 x 2048 in bf16 and 512 rows.
        let whole = Panels { rows: 512, cols: 8192, depth: 2048 };
        let bytes = 2 * (512 * 2048 + 8192 * 2048 + 512 * 8192);
        let panels = Panels::new(whole, 512, all, bytes);
        assert_eq!(panels, Panels { rows: 512, cols: 256, depth: 512 });
        // Nothing is widened: nothing is cut.
        let none = Narrow { a: false, b: false, c: false };
        assert_eq!(Panels::new(whole, 512, none, 0), whole);
        // Few rows stay together.
        let panels = Panels::new(Panels { rows: 8, ..whole }, 512, all, bytes);
        assert_eq!((panels.rows, panels.depth), (8, 512));
        assert!(panels.cols * panels.depth * 16 * 4 <= bytes, "{panels:?}");
    }

    #[test]
    fn resident_columns_fill_tiles() {
        let bytes = 2 * (1024 * 1024 * 3);
        let columns = resident_columns(1024, 1024, [24, 24 * 1024], bytes);
        assert_eq!(columns, 64);
        assert_eq!(resident_columns(1024, 1 << 20, [24, 0], bytes), 32);
        assert_eq!(resident_columns(5, 1024, [24, 0], bytes), 5);
        assert_eq!(resident_columns(100_000, 16, [24, 0], 1 << 30), 512);
    }

    #[test]
    fn pieces_cover_all() {
        for (len, most) in [(0, 4), (1, 4), (4, 4), (5, 4), (33, 32), (100, 7)] {
            let found: Vec<_> = pieces(len, most).collect();
            assert_eq!(found.len(), len.div_ceil(most));
            assert!(
                found.iter().all(|piece| piece.len() <= most && piece.len() >= most.min(len) / 2)
            );
            assert_eq!(
                found.into_iter().flatten().collect::<Vec<_>>(),
                (0..len).collect::<Vec<_>>()
            );
            let all: Vec<_> = slices(len, most).flatten().collect();
            assert_eq!(all, (0..len).collect::<Vec<_>>());
        }
    }
}
