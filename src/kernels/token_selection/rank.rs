//! The key at a place in the order of all keys, without sorting them.

use crate::device::cpu::pool;
use std::sync::{Mutex, PoisonError};

/// Bits of a key that say in which bucket it is.
const BITS: u32 = 12;

/// Keys that one task counts.
const PART: usize = 64 * 1024;

/// Keys, and how many of them lie in each bucket.
pub(super) struct Ranks<'a> {
    keys: &'a [u32],
    counts: Vec<usize>,
}

fn bucket(key: u32) -> usize {
    (key >> (u32::BITS - BITS)) as usize
}

impl Ranks<'_> {
    pub(super) fn new(keys: &[u32]) -> Ranks<'_> {
        let counts = Mutex::new(vec![0usize; 1 << BITS]);
        pool::each(keys.chunks(PART), 1, |_, keys| {
            let mut here = vec![0u32; 1 << BITS];
            keys.iter().for_each(|key| here[bucket(*key)] += 1);
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.iter_mut().zip(here).for_each(|(count, here)| *count += here as usize);
        });
        Ranks { keys, counts: counts.into_inner().unwrap_or_else(PoisonError::into_inner) }
    }

    /// The key with `rank` others before it, of equal ones any, and how many are smaller; `None` beyond the last.
    pub(super) fn at(&self, rank: usize) -> Option<(u32, usize)> {
        let mut before = 0;
        let place = self.counts.iter().position(|count| {
            before += count;
            before > rank
        })?;
        before -= self.counts[place];
        let mut inside = Vec::with_capacity(self.counts[place]);
        inside.extend(self.keys.iter().copied().filter(|key| bucket(*key) == place));
        let (smaller, key, _) = inside.select_nth_unstable(rank - before);
        let key = *key;
        Some((key, before + smaller.iter().filter(|other| **other < key).count()))
    }
}
