//! A draw from the most likely ids of a row, without sorting them.
//!
//! The ids stand in order, the likeliest first and of equal ones the lower; the bounds of top-k, top-p and min-p and the token
//! itself are places in that order, each the first where a number of ids or a weight is reached. A place is found in two
//! steps: its bucket, by the tallies of those before it, then partitions of what lies in the bucket.

use super::Truncation;
use crate::dtype::Float;
use crate::kernels::logprob::{Buckets, Candidate, Distribution, Tally};
use std::cmp::Ordering;

/// A draw from what a truncation leaves, and the share of the whole that this is. `depth`: how far below the largest logit
/// min-p reaches.
pub(super) fn draw<T: Float>(
    from: &mut Distribution<'_, T>,
    unit: f64,
    truncation: &Truncation,
    depth: f32,
) -> Option<(usize, f64)> {
    let mut ids = InOrder::new(from, truncation, depth)?;
    let mut sum = match truncation.top_k {
        Some(k) => ids.reach(Goal { count: k.into(), weight: 0 }).0.weight,
        None => ids.whole,
    };
    // Each bound keeps the first ids of one order: together they keep the fewest. The sum of all, which comes from the pieces
    // and may differ from that of the ids by its rounding, is compared with only where top-p asks for a share of it.
    if let Some(p) = truncation.top_p.filter(|p| *p < 1.0) {
        let nucleus = ((f64::from(p) * sum as f64).ceil() as u64).min(sum);
        sum = ids.reach(Goal { count: 1, weight: nucleus }).0.weight;
    }
    if depth > f32::NEG_INFINITY {
        sum = sum.min(ids.above(depth).weight);
    }
    let mass = (sum as f64 / ids.whole as f64).min(1.0);
    // The first id whose cumulative weight is above the random part of the sum; rounding may make that the sum.
    let before = ((unit * sum as f64) as u64).min(sum.saturating_sub(1));
    ids.reach(Goal { count: 1, weight: before + 1 }).1.map(|id| (id, mass))
}

/// What a number of the likeliest ids has to reach.
#[derive(Clone, Copy)]
struct Goal {
    count: u64,
    weight: u64,
}

impl Goal {
    fn is_met(&self, by: Tally) -> bool {
        by.count >= self.count && by.weight >= self.weight
    }
}

fn sum(a: Tally, b: Tally) -> Tally {
    Tally { count: a.count + b.count, weight: a.weight + b.weight }
}

/// The ids of a row in order, as far as they have been looked at.
struct InOrder<'a, 'b, T> {
    from: &'a mut Distribution<'b, T>,
    /// The weight of all, up to the rounding of the pieces' sums.
    whole: u64,
    buckets: Buckets,
    tallies: Vec<Tally>,
    /// Pieces by their largest logit, the largest first.
    pieces: Vec<(f32, usize)>,
    /// Buckets whose tallies are complete.
    known: usize,
    /// Buckets that are tallied next, and with those.
    next: usize,
    /// A bucket's ids, in any order, and which it is.
    gathered: (Option<usize>, Vec<Candidate>),
}

impl<'a, 'b, T: Float> InOrder<'a, 'b, T> {
    /// `None` where nothing can be drawn.
    fn new(from: &'a mut Distribution<'b, T>, truncation: &Truncation, depth: f32) -> Option<Self> {
        let mut pieces: Vec<_> = (0..from.pieces()).map(|at| (from.largest(at), at)).collect();
        pieces.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        pieces.retain(|(largest, _)| *largest > f32::NEG_INFINITY);
        let (max, _) = *pieces.first()?;
        let whole: f64 = (0..from.pieces()).map(|piece| from.mass(piece, max)).sum();
        let buckets = from.buckets(max, whole);
        let last = match truncation.top_k.map(|k| pieces.get(k as usize - 1)) {
            // No fewer than k ids are at least as likely as the k-th of the pieces' likeliest.
            Some(Some((largest, _))) => buckets.of(*largest),
            // What min-p leaves is known.
            _ if depth > f32::NEG_INFINITY => buckets.of(max + depth),
            // A guess: of a normal row, and of one that falls exponentially, not much less than p lies above.
            _ => {
                let rest = 1.0 - truncation.top_p.map_or(0.9, f64::from);
                buckets.below((from.depth(max) * (1.0 - rest.log10())).max(1.0))
            }
        };
        Some(InOrder {
            from,
            whole: (whole * buckets.largest_weight()) as u64,
            buckets,
            tallies: vec![Tally::default(); buckets.count()],
            pieces,
            known: 0,
            next: last + 1,
            gathered: (None, Vec::new()),
        })
    }

    /// What the fewest likeliest ids that meet the goal come to, and the last of them; all ids where they do not meet it.
    fn reach(&mut self, goal: Goal) -> (Tally, Option<usize>) {
        let mut before = Tally::default();
        for bucket in 0..self.buckets.count() {
            self.complete(bucket);
            let with = sum(before, self.tallies[bucket]);
            if goal.is_met(with) {
                return self.reach_within(bucket, before, goal);
            }
            before = with;
        }
        (before, None)
    }

    /// What the ids come to that lie at most `depth` below the largest logit.
    fn above(&mut self, depth: f32) -> Tally {
        let floor = self.pieces.first().map_or(f32::NEG_INFINITY, |(max, _)| max + depth);
        // An id of a lower bucket than the floor's lies above the floor, one of a higher bucket below it.
        let bucket = self.buckets.of(floor);
        let mut all = Tally::default();
        for lower in 0..bucket {
            self.complete(lower);
            all = sum(all, self.tallies[lower]);
        }
        self.complete(bucket);
        self.gather(bucket);
        let kept = self.gathered.1.iter().filter(|candidate| candidate.logit >= floor);
        kept.fold(all, |all, one| sum(all, Tally { count: 1, weight: one.weight }))
    }

    /// Gathers the ids of a bucket.
    fn gather(&mut self, bucket: usize) {
        let (of, gathered) = &mut self.gathered;
        if *of == Some(bucket) {
            return;
        }
        (*of, _) = (Some(bucket), gathered.clear());
        for (largest, piece) in &self.pieces {
            if self.buckets.of(*largest) > bucket {
                break;
            }
            self.from.gather(*piece, &self.buckets, bucket, gathered);
        }
    }

    /// Completes the tally of a bucket. Only pieces with an id among the likely ones are read: of a row whose weight lies
    /// in few ids these are few.
    fn complete(&mut self, bucket: usize) {
        while self.known <= bucket {
            let to = self.next.min(self.buckets.count());
            for (largest, piece) in &self.pieces {
                if self.buckets.of(*largest) >= to {
                    break;
                }
                self.from.tally(*piece, &self.buckets, self.known..to, &mut self.tallies);
            }
            // Few passes, should the first have been too short by far.
            (self.known, self.next) = (to, 4 * to);
        }
    }

    fn reach_within(
        &mut self,
        bucket: usize,
        mut before: Tally,
        goal: Goal,
    ) -> (Tally, Option<usize>) {
        self.gather(bucket);
        // Halves that the goal lies in, down to one id.
        let mut rest = self.gathered.1.as_mut_slice();
        while rest.len() > 1 {
            let half = rest.len() / 2;
            rest.select_nth_unstable_by(half, by_likelihood);
            let (likelier, others) = rest.split_at_mut(half);
            let with = sum(before, total(likelier));
            if goal.is_met(with) {
                rest = likelier;
            } else {
                (before, rest) = (with, others);
            }
        }
        (sum(before, total(rest)), rest.first().map(|last| last.id as usize))
    }
}

fn total(of: &[Candidate]) -> Tally {
    Tally { count: of.len() as u64, weight: of.iter().map(|candidate| candidate.weight).sum() }
}

/// The likeliest first; of equal ones the lower id.
fn by_likelihood(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}
