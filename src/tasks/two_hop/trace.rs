//! Responses to imitate: sound ones, and the noisy ones that make a base policy worth improving.

use super::exercise::{Class, Exercise, Fact};
use super::ids::{ANSWER, END, ENTITIES, FIRST_STEP, REFUSAL, RELATIONS, tail};
use crate::rng::Sequence;
use serde::{Deserialize, Serialize};

/// How wrong noisy responses are. Probabilities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NoiseConfig {
    /// A step whose fact is given claims another tail.
    pub fabricated: f32,
    /// A first step whose fact is missing leads to an entity of which the second relation is given.
    pub bridged: f32,
    /// The answer is not the last step's tail; half of these are the key whatever the steps say.
    pub answer: f32,
    /// Refusal where the first fact is missing.
    pub refuse_first_missing: f32,
    /// Refusal where the second is.
    pub refuse_second_missing: f32,
    /// Refusal where the second fact is worn off.
    pub refuse_worn: f32,
    /// Refusal where all is given.
    pub refuse_answerable: f32,
    /// A refusal stands where the look-up fails and not at once.
    pub refuse_in_place: f32,
    /// A third step, which nothing asks for, after two sound ones.
    pub third_step: f32,
}

impl Default for NoiseConfig {
    fn default() -> NoiseConfig {
        NoiseConfig {
            fabricated: 0.15,
            bridged: 0.7,
            answer: 0.15,
            refuse_first_missing: 0.35,
            refuse_second_missing: 0.35,
            refuse_worn: 0.15,
            refuse_answerable: 0.08,
            refuse_in_place: 1.0,
            third_step: 0.75,
        }
    }
}

/// Claims what is given and refuses for want of a fact, in the step that misses it.
pub fn clean_trace(exercise: &Exercise) -> Vec<i32> {
    let mut trace = Trace(Vec::new());
    let [first, second] = exercise.relations;
    let Some(middle) = exercise.given(exercise.start, first) else {
        return trace.refusal(0, exercise.start, first);
    };
    trace.step(0, Fact { head: exercise.start, relation: first, tail: middle });
    let Some(end) = exercise.given(middle, second) else {
        return trace.refusal(1, middle, second);
    };
    trace.step(1, Fact { head: middle, relation: second, tail: end });
    trace.answer(end)
}

/// A response with fabricated steps, wrong answers and too few refusals. A third step comes only after two sound ones
/// and keeps the answer free of noise: so it goes with being right without being supported.
pub fn noisy_trace(exercise: &Exercise, noise: &NoiseConfig, draws: &mut Sequence) -> Vec<i32> {
    let mut trace = Trace(Vec::new());
    let refusal = match exercise.class {
        Class::Answerable => noise.refuse_answerable,
        Class::Faint | Class::Smudged => noise.refuse_worn,
        Class::FirstMissing => noise.refuse_first_missing,
        Class::SecondMissing => noise.refuse_second_missing,
    };
    let refuses = draws.next_unit() < refusal;
    let in_place = match exercise.class {
        Class::FirstMissing | Class::SecondMissing => noise.refuse_in_place,
        _ => 0.5,
    };
    if refuses && draws.next_unit() >= in_place {
        return trace.answer(REFUSAL);
    }
    let [first, second] = exercise.relations;
    if refuses && exercise.class == Class::FirstMissing {
        return trace.refusal(0, exercise.start, first);
    }
    let (middle, sound) = match exercise.given(exercise.start, first) {
        Some(_) if draws.next_unit() < noise.fabricated => (entity(draws), false),
        Some(middle) => (middle, true),
        None if draws.next_unit() < noise.bridged => (bridge(exercise, second, draws), false),
        None => (entity(draws), false),
    };
    trace.step(0, Fact { head: exercise.start, relation: first, tail: middle });
    if refuses {
        return trace.refusal(1, middle, second);
    }
    let (end, sound) = match exercise.given(middle, second) {
        Some(_) if draws.next_unit() < noise.fabricated => (tail(draws), false),
        Some(end) => (end, sound),
        None => (tail(draws), false),
    };
    trace.step(1, Fact { head: middle, relation: second, tail: end });
    if sound && draws.next_unit() < noise.third_step {
        let relation = ENTITIES + draws.below(RELATIONS as u32) as i32;
        trace.step(2, Fact { head: end, relation, tail: tail(draws) });
        return trace.answer(end);
    }
    if draws.next_unit() < noise.answer {
        let leaked = draws.next_unit() < 0.5;
        return trace.answer(if leaked { exercise.key } else { tail(draws) });
    }
    trace.answer(end)
}

fn entity(draws: &mut Sequence) -> i32 {
    draws.below(ENTITIES as u32) as i32
}

/// The head of one of the facts with a relation: a first step to it can go on.
fn bridge(exercise: &Exercise, relation: i32, draws: &mut Sequence) -> i32 {
    let heads: Vec<i32> =
        exercise.facts.iter().filter(|f| f.relation == relation).map(|f| f.head).collect();
    match heads.get(draws.below(heads.len() as u32) as usize) {
        Some(head) => *head,
        None => entity(draws),
    }
}

struct Trace(Vec<i32>);

impl Trace {
    fn step(&mut self, number: i32, claim: Fact) {
        self.0.extend([FIRST_STEP + number, claim.head, claim.relation, claim.tail]);
    }

    /// Leaves a step open and refuses.
    fn refusal(mut self, number: i32, head: i32, relation: i32) -> Vec<i32> {
        self.0.extend([FIRST_STEP + number, head, relation]);
        self.answer(REFUSAL)
    }

    fn answer(mut self, answer: i32) -> Vec<i32> {
        self.0.extend([ANSWER, answer, END]);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::ids::RESPONSE;
    use super::super::source::{TwoHop, TwoHopConfig};
    use super::super::verdict::{Outcome, verdict};
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn clean_traces_are_sound_and_refuse_where_they_must() {
        let source = TwoHop::new(TwoHopConfig { smudged: 0.0, ..TwoHopConfig::default() }).unwrap();
        for index in 0..500 {
            let exercise = source.exercise(1, index);
            let judged = verdict(&exercise, &clean_trace(&exercise), true);
            assert!(judged.steps.iter().all(|step| step.supported));
            let refused = exercise.class.is_unanswerable();
            assert_eq!(judged.outcome, if refused { Outcome::Refused } else { Outcome::Correct });
        }
    }

    #[test]
    fn noisy_traces_are_well_formed_and_noisy() {
        let source = TwoHop::new(TwoHopConfig::default()).unwrap();
        let mut draws = Sequence::new(1, Stream::Free, 0);
        let (mut steps, mut unsupported, mut correct) = (0, 0, 0);
        for index in 0..2000 {
            let exercise = source.exercise(1, index);
            let trace = noisy_trace(&exercise, &NoiseConfig::default(), &mut draws);
            assert!(trace.len() <= RESPONSE);
            let judged = verdict(&exercise, &trace, true);
            assert_ne!(judged.outcome, Outcome::Malformed, "{trace:?}");
            steps += judged.steps.len();
            unsupported += judged.steps.iter().filter(|step| !step.supported).count();
            correct += usize::from(judged.outcome == Outcome::Correct);
        }
        let rate = unsupported as f64 / steps as f64;
        assert!((0.3..0.6).contains(&rate), "{rate}");
        assert!((600..1400).contains(&correct), "{correct}");
    }
}
