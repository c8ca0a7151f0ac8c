//! Items that are drawn one after another from one stream, each beginning where the one before it ended.

use crate::rng::{Sequence, Stream};
use std::sync::{Mutex, PoisonError};

/// Draws item by item. An item is a function of the seed and its index, although it depends on all items before it: they
/// are drawn again where an index is asked for out of turn. Asking in turn costs one item each.
#[derive(Debug)]
pub(super) struct InOrder {
    stream: Stream,
    number: u64,
    next: Mutex<Next>,
}

/// Where the item `index` of a seed begins.
#[derive(Clone, Copy, Debug, Default)]
struct Next {
    seed: u64,
    index: u64,
    position: u64,
}

impl InOrder {
    /// Items of sub-stream `number` of a stream.
    pub(super) fn new(stream: Stream, number: u64) -> InOrder {
        InOrder { stream, number, next: Mutex::default() }
    }

    /// Item `index` of `seed`, where `make` draws the item of a given index.
    pub(super) fn item<T>(
        &self,
        seed: u64,
        index: u64,
        mut make: impl FnMut(u64, &mut Sequence) -> T,
    ) -> T {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if next.seed != seed || next.index > index {
            *next = Next { seed, ..Next::default() };
        }
        let mut draws = Sequence::at(seed, self.stream, self.number, next.position);
        for earlier in next.index..index {
            make(earlier, &mut draws);
        }
        let item = make(index, &mut draws);
        *next = Next { seed, index: index + 1, position: draws.position() };
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_does_not_depend_on_what_was_asked_before() {
        let make = |index: u64, draws: &mut Sequence| -> Vec<u32> {
            (0..index % 3 + 1).map(|_| draws.next_u32()).collect()
        };
        let mut whole = Sequence::new(5, Stream::Free, 2);
        let expected: Vec<Vec<u32>> = (0..10).map(|index| make(index, &mut whole)).collect();
        let items = InOrder::new(Stream::Free, 2);
        for index in [0, 1, 2, 7, 8, 3, 3, 9, 0] {
            assert_eq!(items.item(5, index, make), expected[index as usize], "{index}");
        }
        assert_ne!(items.item(6, 4, make), expected[4]);
        assert_eq!(items.item(5, 4, make), expected[4]);
    }
}
