//! An exercise: facts, a question, and what would be right.

use super::ids::{BEGIN, FACTS, FAINT, PROMPT, QUESTION, SMUDGED, is_entity, is_relation};
use crate::tasks::problem::{Part, Problem};

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
pub struct Exercise {
    /// The given facts.
    pub facts: Vec<Fact>,
    /// The entity that the question begins with.
    pub start: i32,
    /// The first relation and the second.
    pub relations: [i32; 2],
    /// Where the first relation leads, as far as a fact says so.
    pub middle: Option<i32>,
    /// The answer key: where the second leads, given or not.
    pub key: i32,
    /// How much is given.
    pub class: Class,
}

impl Exercise {
    /// The prompt: the facts in their order, then the question.
    pub fn prompt(&self) -> Vec<i32> {
        let mut prompt = Vec::with_capacity(PROMPT);
        prompt.push(BEGIN);
        prompt.extend(self.facts.iter().flat_map(|fact| [fact.head, fact.relation, fact.tail]));
        prompt.extend([QUESTION, self.start, self.relations[0], self.relations[1]]);
        prompt
    }

    /// The exercise as a problem: its prompt, and the key as the answer.
    pub fn problem(&self, id: u64) -> Problem {
        Problem::new(id, Part::Tokens(self.prompt()), self.key.to_string())
    }

    /// The exercise of a problem; `None` for one that [`Exercise::problem`] never makes.
    pub fn read(problem: &Problem) -> Option<Exercise> {
        let (&BEGIN, rest) = problem.tokens()?.split_first()? else { return None };
        let (facts, question) = rest.split_at_checked(3 * FACTS)?;
        let &[QUESTION, start, first, second] = question else { return None };
        let fact = |ids: &[i32]| match *ids {
            [head, relation, tail] => Some(Fact { head, relation, tail }),
            _ => None,
        };
        let facts = facts.chunks(3).map(fact).collect::<Option<Vec<Fact>>>()?;
        let worn = |relation| relation == FAINT || relation == SMUDGED;
        let sound = |fact: &Fact| {
            is_entity(fact.head)
                && is_entity(fact.tail)
                && (is_relation(fact.relation) || worn(fact.relation))
        };
        let key = problem.answer.parse().ok()?;
        let asked = is_entity(start) && is_relation(first) && is_relation(second);
        if !asked || !is_entity(key) || !facts.iter().all(sound) {
            return None;
        }
        let relations = [first, second];
        let class = Class::FirstMissing;
        let mut exercise = Exercise { facts, start, relations, middle: None, key, class };
        exercise.middle = exercise.given(start, first);
        if let Some(middle) = exercise.middle {
            let of_middle = |fact: &&Fact| fact.head == middle && worn(fact.relation);
            exercise.class = match exercise.facts.iter().find(of_middle) {
                Some(fact) if fact.relation == FAINT => Class::Faint,
                Some(_) => Class::Smudged,
                None if exercise.given(middle, second).is_some() => Class::Answerable,
                None => Class::SecondMissing,
            };
        }
        Some(exercise)
    }

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

#[cfg(test)]
mod tests {
    use super::super::source::{TwoHop, TwoHopConfig};
    use super::*;

    #[test]
    fn a_problem_says_its_exercise() {
        let source = TwoHop::new(TwoHopConfig { faint: 0.1, ..TwoHopConfig::default() }).unwrap();
        let mut classes = [false; 5];
        for index in 0..500 {
            let exercise = source.exercise(3, index);
            assert_eq!(exercise.prompt().len(), PROMPT);
            classes[exercise.class as usize] = true;
            assert_eq!(Exercise::read(&exercise.problem(index)), Some(exercise));
        }
        assert_eq!(classes, [true; 5]);
    }

    #[test]
    fn another_problem_is_no_exercise() {
        let source = TwoHop::new(TwoHopConfig::default()).unwrap();
        let good = source.exercise(1, 1).problem(1);
        assert!(Exercise::read(&Problem { answer: "16".to_owned(), ..good.clone() }).is_none());
        assert!(Exercise::read(&Problem { answer: String::new(), ..good.clone() }).is_none());
        assert!(Exercise::read(&Problem::text(0, "1+1=", "2")).is_none());
        let ids = good.tokens().unwrap().to_vec();
        for at in 0..ids.len() {
            let mut wrong = ids.clone();
            wrong[at] = 29;
            assert!(Exercise::read(&Problem::new(0, Part::Tokens(wrong), "3")).is_none(), "{at}");
        }
        for short in [&ids[1..], &ids[..ids.len() - 1], &[]] {
            assert!(Exercise::read(&Problem::new(0, Part::Tokens(short.to_vec()), "3")).is_none());
        }
    }
}
