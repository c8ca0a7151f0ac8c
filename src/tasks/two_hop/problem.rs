//! Making problems: which facts are given, what is asked, what is missing.

use super::{BEGIN, ENTITIES, FACTS, FAINT, PROMPT, QUESTION, RELATIONS, SMUDGED, tail};
use crate::error::{Error, Result};
use crate::rng::{Sequence, Stream, bits};
use serde::{Deserialize, Serialize};

/// How much the prompt gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Both facts.
    Answerable,
    /// Both, but the second is faint.
    Faint,
    /// Both, but the second is smudged.
    Smudged,
    /// The first fact is missing.
    FirstMissing,
    /// The second fact is missing.
    SecondMissing,
}

impl Class {
    /// All of them, in the order of reports.
    pub const ALL: [Class; 5] = [
        Class::Answerable,
        Class::Faint,
        Class::Smudged,
        Class::FirstMissing,
        Class::SecondMissing,
    ];

    /// A fact is missing: only a refusal is right.
    pub fn is_unanswerable(self) -> bool {
        matches!(self, Class::FirstMissing | Class::SecondMissing)
    }
}

/// One given fact; the relation may be worn off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Entity.
    pub head: i32,
    /// Relation, [`FAINT`] or [`SMUDGED`].
    pub relation: i32,
    /// Entity.
    pub tail: i32,
}

/// A question with what is given and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The prompt's tokens.
    pub prompt: Vec<i32>,
    /// The given facts.
    pub facts: Vec<Fact>,
    /// The entity that the question begins with.
    pub start: i32,
    /// The first relation and the second.
    pub relations: [i32; 2],
    /// Where the first relation leads.
    pub middle: i32,
    /// The answer key: where the second leads, given or not.
    pub key: i32,
    /// How much is given.
    pub class: Class,
}

impl Problem {
    /// The tail that the facts give for a look-up; a worn-off relation may be any.
    pub fn given(&self, head: i32, relation: i32) -> Option<i32> {
        let fits = |fact: &&Fact| {
            fact.head == head && (fact.relation == relation || fact.relation >= FAINT)
        };
        self.facts.iter().find(fits).map(|fact| fact.tail)
    }

    /// True when the facts contain a claim; a worn-off relation supports any.
    pub fn supports(&self, claim: &Fact) -> bool {
        self.facts.iter().any(|fact| {
            fact.head == claim.head
                && fact.tail == claim.tail
                && (fact.relation == claim.relation || fact.relation >= FAINT)
        })
    }
}

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
        }
    }
}

/// One problem in this many is held out.
const HELD_OUT: u32 = 8;

/// A source of problems. A problem is a function of the configuration, a seed and an index.
#[derive(Clone, Debug)]
pub struct TwoHop {
    config: TwoHopConfig,
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
        Ok(TwoHop { config })
    }

    /// Training problem `index` of `seed`: never a held-out one.
    pub fn problem(&self, seed: u64, index: u64) -> Problem {
        self.first_that(Stream::Task, seed, index, |held_out| !held_out)
    }

    /// Held-out problem `index` of `seed`: never a training one, whatever the seeds.
    pub fn held_out(&self, seed: u64, index: u64) -> Problem {
        self.first_that(Stream::HeldOut, seed, index, |held_out| held_out)
    }

    fn first_that(
        &self,
        stream: Stream,
        seed: u64,
        index: u64,
        wanted: impl Fn(bool) -> bool,
    ) -> Problem {
        let mut draws = Sequence::new(seed, stream, index);
        loop {
            let problem = self.draw(&mut draws);
            if wanted(is_held_out(&problem.prompt)) {
                return problem;
            }
        }
    }

    fn draw(&self, draws: &mut Sequence) -> Problem {
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
        let mut prompt = Vec::with_capacity(PROMPT);
        prompt.push(BEGIN);
        prompt.extend(facts.iter().flat_map(|fact| [fact.head, fact.relation, fact.tail]));
        prompt.extend([QUESTION, start, relations[0], relations[1]]);
        Problem { prompt, facts, start, relations, middle, key, class }
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
            let problem = source.problem(3, index);
            counts[Class::ALL.iter().position(|c| *c == problem.class).unwrap()] += 1;
            assert_eq!((problem.prompt.len(), problem.facts.len()), (PROMPT, FACTS));
            let first = problem.given(problem.start, problem.relations[0]);
            let second = problem.given(problem.middle, problem.relations[1]);
            match problem.class {
                Class::Answerable => {
                    assert_eq!((first, second), (Some(problem.middle), Some(problem.key)));
                }
                Class::FirstMissing => assert_eq!((first, second), (None, Some(problem.key))),
                Class::SecondMissing => assert_eq!((first, second), (Some(problem.middle), None)),
                Class::Faint => assert_eq!(first, Some(problem.middle)),
                Class::Smudged => {
                    smudged += 1;
                    shown += usize::from(second == Some(problem.key));
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
            assert!(is_held_out(&source.held_out(9, index).prompt));
            assert!(!is_held_out(&source.problem(9, index).prompt));
        }
        assert_eq!(source.problem(9, 4), source.problem(9, 4));
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
