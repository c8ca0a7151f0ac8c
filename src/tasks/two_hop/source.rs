//! Making exercises: a function of the configuration, a seed and an index.

use super::exercise::{Class, Exercise, Fact};
use super::ids::{ENTITIES, FACTS, FAINT, RELATIONS, SMUDGED, tail};
use super::trace::NoiseConfig;
use crate::error::{Error, Result};
use crate::rng::{Sequence, Stream, bits};
use crate::tasks::in_order::InOrder;
use serde::{Deserialize, Serialize};

/// What shares of the problems are of which kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TwoHopConfig {
    /// Share of problems that miss a fact, the first and the second alike.
    pub unanswerable: f32,
    /// Share of problems whose second fact is faint.
    pub faint: f32,
    /// Probability that a faint fact's tail is the answer.
    pub faint_truth: f32,
    /// Share of problems whose second fact is smudged.
    pub smudged: f32,
    /// Probability that a smudged fact's tail is the answer.
    pub smudged_truth: f32,
    /// Further facts with the second relation.
    pub same_relation: usize,
    /// Further facts of the entity that the question begins with.
    pub same_head: usize,
    /// How wrong worked examples are; absent: they are sound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<NoiseConfig>,
    /// Labels know which prompts miss a fact: there a refusal is right and an answer wrong. Else the answer key decides, so
    /// that a lucky guess is right, and a refusal is a refusal.
    pub flagged: bool,
}

impl Default for TwoHopConfig {
    fn default() -> TwoHopConfig {
        TwoHopConfig {
            unanswerable: 0.3,
            faint: 0.0,
            faint_truth: 0.4,
            smudged: 0.15,
            smudged_truth: 0.75,
            same_relation: 2,
            same_head: 1,
            noise: None,
            flagged: false,
        }
    }
}

/// One problem in this many is held out.
const HELD_OUT: u32 = 8;

/// A source of exercises.
#[derive(Debug)]
pub struct TwoHop {
    pub(super) config: TwoHopConfig,
    pub(super) noisy: InOrder,
}

impl TwoHop {
    /// A source with these shares.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for shares that are not in `0..=1` or add up to more, or for more facts than there is room.
    pub fn new(config: TwoHopConfig) -> Result<TwoHop> {
        let shares = [config.unanswerable, config.faint, config.smudged];
        let truths = [config.faint_truth, config.smudged_truth];
        let unit = |value: &f32| (0.0..=1.0).contains(value);
        if !shares.iter().chain(&truths).all(unit) || shares.iter().sum::<f32>() > 1.0 {
            return Err(Error::invalid(format!(
                "two_hop: shares {shares:?} and truths {truths:?} must be in 0..=1, the shares together at most 1"
            )));
        }
        if config.same_relation + config.same_head + 2 > FACTS {
            return Err(Error::invalid(format!(
                "two_hop: same_relation {} and same_head {} leave no room for both facts among {FACTS}",
                config.same_relation, config.same_head
            )));
        }
        Ok(TwoHop { config, noisy: InOrder::new(Stream::Free, 1) })
    }

    /// Exercise `index` of `seed` to train on: never a held-out one.
    pub fn exercise(&self, seed: u64, index: u64) -> Exercise {
        self.first_that(Stream::Task, seed, index, |held_out| !held_out)
    }

    /// Held-out exercise `index` of `seed`: never one to train on, whatever the seeds.
    pub fn held_out_exercise(&self, seed: u64, index: u64) -> Exercise {
        self.first_that(Stream::HeldOut, seed, index, |held_out| held_out)
    }

    fn first_that(
        &self,
        stream: Stream,
        seed: u64,
        index: u64,
        wanted: impl Fn(bool) -> bool,
    ) -> Exercise {
        let mut draws = Sequence::new(seed, stream, index);
        loop {
            let exercise = self.draw(&mut draws);
            if wanted(is_held_out(&exercise.prompt())) {
                return exercise;
            }
        }
    }

    fn draw(&self, draws: &mut Sequence) -> Exercise {
        let config = &self.config;
        let class = self.class(draws);
        let key = tail(draws);
        let mut start_and_middle = || {
            let start = other_than(draws, &[key]);
            (start, other_than(draws, &[key, start]))
        };
        let (start, middle) = start_and_middle();
        let relations = [relation(draws), relation(draws)];
        let mut keys = vec![(start, relations[0]), (middle, relations[1])];
        let mut facts = Vec::new();
        if class != Class::FirstMissing {
            facts.push(Fact { head: start, relation: relations[0], tail: middle });
        }
        match class {
            Class::SecondMissing => {}
            Class::Faint | Class::Smudged => {
                let (worn, truth) = match class {
                    Class::Faint => (FAINT, config.faint_truth),
                    _ => (SMUDGED, config.smudged_truth),
                };
                let shown = if draws.next_unit() < truth { key } else { wrong_tail(draws, key) };
                facts.push(Fact { head: middle, relation: worn, tail: shown });
            }
            _ => facts.push(Fact { head: middle, relation: relations[1], tail: key }),
        }
        // A worn-off fact supports any relation of its head, so nothing else may be said of it.
        let unique = matches!(class, Class::Faint | Class::Smudged).then_some(middle);
        let mut add =
            |facts: &mut Vec<Fact>, draws: &mut Sequence, head: Option<i32>, of: Option<i32>| {
                loop {
                    let head = head.unwrap_or_else(|| draws.below(ENTITIES as u32) as i32);
                    let relation = of.unwrap_or_else(|| relation(draws));
                    if !keys.contains(&(head, relation)) && unique != Some(head) {
                        keys.push((head, relation));
                        facts.push(Fact { head, relation, tail: tail(draws) });
                        return;
                    }
                }
            };
        for _ in 0..config.same_relation {
            add(&mut facts, draws, None, Some(relations[1]));
        }
        for _ in 0..config.same_head.min(RELATIONS as usize - 1) {
            add(&mut facts, draws, Some(start), None);
        }
        while facts.len() < FACTS {
            add(&mut facts, draws, None, None);
        }
        draws.shuffle(&mut facts);
        let middle = (class != Class::FirstMissing).then_some(middle);
        Exercise { facts, start, relations, middle, key, class }
    }

    fn class(&self, draws: &mut Sequence) -> Class {
        let TwoHopConfig { unanswerable, faint, smudged, .. } = self.config;
        let unit = draws.next_unit();
        if unit < unanswerable / 2.0 {
            Class::FirstMissing
        } else if unit < unanswerable {
            Class::SecondMissing
        } else if unit < unanswerable + faint {
            Class::Faint
        } else if unit < unanswerable + faint + smudged {
            Class::Smudged
        } else {
            Class::Answerable
        }
    }
}

fn relation(draws: &mut Sequence) -> i32 {
    ENTITIES + draws.below(RELATIONS as u32) as i32
}

fn other_than(draws: &mut Sequence, taken: &[i32]) -> i32 {
    loop {
        let entity = draws.below(ENTITIES as u32) as i32;
        if !taken.contains(&entity) {
            return entity;
        }
    }
}

fn wrong_tail(draws: &mut Sequence, key: i32) -> i32 {
    loop {
        let entity = tail(draws);
        if entity != key {
            return entity;
        }
    }
}

/// A property of the prompt alone, so that no seed trains on what another holds out.
fn is_held_out(prompt: &[i32]) -> bool {
    let mixed = prompt.iter().fold(0u64, |hash, token| {
        let [low, high, ..] = bits(hash, Stream::HeldOut, *token as u64, 0);
        u64::from(high) << 32 | u64::from(low)
    });
    (mixed as u32).is_multiple_of(HELD_OUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> TwoHop {
        TwoHop::new(TwoHopConfig { faint: 0.1, ..TwoHopConfig::default() }).unwrap()
    }

    #[test]
    fn classes_have_their_shares_and_facts() {
        let source = source();
        let mut counts = [0usize; 5];
        let (mut shown, mut smudged) = (0, 0);
        for index in 0..4000 {
            let exercise = source.exercise(3, index);
            counts[Class::ALL.iter().position(|c| *c == exercise.class).unwrap()] += 1;
            assert_eq!(exercise.facts.len(), FACTS);
            let [first, second] = exercise.relations;
            assert_eq!(exercise.given(exercise.start, first), exercise.middle);
            let given = exercise.middle.and_then(|middle| exercise.given(middle, second));
            match exercise.class {
                Class::Answerable => assert_eq!(given, Some(exercise.key)),
                Class::FirstMissing => {
                    assert_eq!(exercise.middle, None);
                    let second = |f: &Fact| (f.relation, f.tail) == (second, exercise.key);
                    assert!(exercise.facts.iter().any(second));
                }
                Class::SecondMissing => assert!(exercise.middle.is_some() && given.is_none()),
                Class::Faint => assert!(given.is_some()),
                Class::Smudged => {
                    smudged += 1;
                    shown += usize::from(given == Some(exercise.key));
                }
            }
        }
        for (count, share) in counts.iter().zip([0.45, 0.1, 0.15, 0.15, 0.15]) {
            assert!((*count as f64 / 4000.0 - share).abs() < 0.03, "{counts:?}");
        }
        assert!((shown as f64 / smudged as f64 - 0.75).abs() < 0.06, "{shown} of {smudged}");
    }

    #[test]
    fn held_out_problems_are_never_trained_on() {
        let source = source();
        for index in 0..300 {
            assert!(is_held_out(&source.held_out_exercise(9, index).prompt()));
            assert!(!is_held_out(&source.exercise(9, index).prompt()));
        }
        assert_eq!(source.exercise(9, 4), source.exercise(9, 4));
    }

    #[test]
    fn shares_are_checked() {
        let bad = |config: TwoHopConfig| TwoHop::new(config).unwrap_err().is_invalid();
        assert!(bad(TwoHopConfig { unanswerable: 1.5, ..TwoHopConfig::default() }));
        assert!(bad(TwoHopConfig { faint: 0.9, ..TwoHopConfig::default() }));
        assert!(bad(TwoHopConfig { faint_truth: f32::NAN, ..TwoHopConfig::default() }));
        assert!(bad(TwoHopConfig { same_relation: 4, ..TwoHopConfig::default() }));
    }
}
