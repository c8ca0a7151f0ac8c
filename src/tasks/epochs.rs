//! The order in which a finite task visits its training problems: each once in an epoch, in a new order every epoch.

use crate::rng::{Sequence, Stream};
use std::sync::{Arc, Mutex, PoisonError};

/// Orders of `0..size`, functions of a seed and the number of the epoch. The order asked for last is kept.
#[derive(Debug)]
pub struct Epochs {
    size: u32,
    last: Mutex<Option<Order>>,
}

#[derive(Clone, Debug)]
struct Order {
    seed: u64,
    epoch: u64,
    items: Arc<Vec<u32>>,
}

impl Epochs {
    /// Orders of so many items.
    pub fn new(size: u32) -> Epochs {
        Epochs { size, last: Mutex::new(None) }
    }

    /// The item at an index that counts through all epochs; 0 where there are no items.
    pub fn item(&self, seed: u64, index: u64) -> u32 {
        let size = u64::from(self.size).max(1);
        let order = self.order(seed, index / size);
        order.get((index % size) as usize).copied().unwrap_or(0)
    }

    fn order(&self, seed: u64, epoch: u64) -> Arc<Vec<u32>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(order) = last.as_ref().filter(|o| (o.seed, o.epoch) == (seed, epoch)) {
            return order.items.clone();
        }
        let mut items: Vec<u32> = (0..self.size).collect();
        Sequence::new(seed, Stream::Shuffle, epoch).shuffle(&mut items);
        let items = Arc::new(items);
        *last = Some(Order { seed, epoch, items: items.clone() });
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_has_each_item_once() {
        let epochs = Epochs::new(22);
        let epoch = |seed, epoch: u64| -> Vec<u32> {
            (0..22).map(|i| epochs.item(seed, epoch * 22 + i)).collect()
        };
        for (seed, number) in [(0, 0), (0, 1), (9, 1 << 30)] {
            let mut items = epoch(seed, number);
            items.sort_unstable();
            assert_eq!(items, (0..22).collect::<Vec<_>>());
        }
        assert_ne!(epoch(0, 0), epoch(0, 1));
        assert_ne!(epoch(0, 0), epoch(1, 0));
        assert_eq!(epoch(0, 0), epoch(0, 0));
        assert_eq!(Epochs::new(0).item(1, 5), 0);
    }
}
