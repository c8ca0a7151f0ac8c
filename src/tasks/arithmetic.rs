//! Arithmetic made in code: `12+34=` with the answer `46`.
//!
//! A hash of the operation and its operands decides whether a problem is held out, so the two sets cannot meet, and
//! neither can `12+34` and `34+12`: operands of a commutative operation are hashed in sorted order.

use super::episode::Example;
use super::exact::ExactMatch;
use super::problem::{Part, Problem};
use super::task::{Language, Task};
use super::verifier::Verifier;
use crate::error::{Error, Result};
use crate::rng::{Sequence, Stream, philox, unit};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Keeps the split apart from every other use of Philox; it must never change.
const SPLIT_KEY: [u32; 2] = [0x6172_6974, 0x686d_6574];

/// Spaces with at most this many problems are checked for two non-empty sides one by one.
const ENUMERATED: u64 = 1 << 16;

/// What is done with the two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `a+b`
    Add,
    /// `a-b`; negative results are written with a minus sign.
    Subtract,
    /// `a*b`
    Multiply,
}

impl Operation {
    /// All of them; the index of one is part of a problem's id.
    const ALL: [Operation; 3] = [Operation::Add, Operation::Subtract, Operation::Multiply];

    fn sign(self) -> char {
        match self {
            Operation::Add => '+',
            Operation::Subtract => '-',
            Operation::Multiply => '*',
        }
    }

    fn apply(self, a: i64, b: i64) -> i64 {
        match self {
            Operation::Add => a + b,
            Operation::Subtract => a - b,
            Operation::Multiply => a * b,
        }
    }

    fn commutes(self) -> bool {
        self != Operation::Subtract
    }
}

/// Which problems an [`Arithmetic`] task makes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArithmeticConfig {
    /// Drawn from with equal probability.
    pub operations: Vec<Operation>,
    /// Smallest operand.
    pub smallest: u32,
    /// Largest operand (inclusive; at most 10⁹).
    pub largest: u32,
    /// Results are taken modulo this, and prompts say so (`7*8%10=`); 0: not.
    pub modulus: u32,
    /// Share of all problems that is held out, above 0 and at most 0.9.
    pub held_out: f64,
    /// Share of worked examples whose answer is wrong, from 0 to 1.
    pub noise: f64,
}

impl Default for ArithmeticConfig {
    fn default() -> Self {
        ArithmeticConfig {
            operations: vec![Operation::Add],
            smallest: 0,
            largest: 49,
            modulus: 0,
            held_out: 0.2,
            noise: 0.0,
        }
    }
}

/// The task that [`ArithmeticConfig`] describes.
#[derive(Clone, Debug)]
pub struct Arithmetic {
    config: ArithmeticConfig,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Operands {
    operation: Operation,
    a: u32,
    b: u32,
}

impl Arithmetic {
    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when there is no operation, the range is empty or too large, a share is out of range, or
    /// one side of the split would be empty.
    pub fn new(config: ArithmeticConfig) -> Result<Arithmetic> {
        let bad = |what: String| Err(Error::invalid(format!("arithmetic task: {what}")));
        if config.operations.is_empty() {
            return bad("`operations` is empty (add, subtract, multiply)".into());
        }
        if config.smallest > config.largest || config.largest > 1_000_000_000 {
            return bad(format!(
                "operands {}..={} (at most 10^9)",
                config.smallest, config.largest
            ));
        }
        if !(config.held_out > 0.0 && config.held_out <= 0.9) {
            return bad(format!("`held_out` is {} (above 0, at most 0.9)", config.held_out));
        }
        if !(0.0..=1.0).contains(&config.noise) {
            return bad(format!("`noise` is {} (0 to 1)", config.noise));
        }
        let task = Arithmetic { config };
        let (mut trained, mut held_out) =
            (task.problems() > ENUMERATED, task.problems() > ENUMERATED);
        if !trained {
            for problem in task.every_problem() {
                let side = task.is_held_out(problem);
                held_out |= side;
                trained |= !side;
            }
        }
        if !(trained && held_out) {
            let side = if trained { "held-out" } else { "training" };
            return bad(format!("no {side} problem among {}: widen the range", task.problems()));
        }
        Ok(task)
    }

    /// The parameters.
    pub fn config(&self) -> &ArithmeticConfig {
        &self.config
    }

    /// How many problems there are on both sides together, `a∘b` and `b∘a` counted twice.
    pub fn problems(&self) -> u64 {
        let range = self.range();
        range.saturating_mul(range).saturating_mul(self.config.operations.len() as u64)
    }

    /// The largest number of characters a right answer can have.
    pub fn longest_answer(&self) -> usize {
        let (low, high) = (self.config.smallest, self.config.largest);
        let longest = |operation: &Operation| {
            let corners = [(high, high), (low, high), (high, low)];
            corners.map(|(a, b)| self.result(*operation, a, b).to_string().len()).into_iter().max()
        };
        if self.config.modulus > 0 {
            return (self.config.modulus - 1).to_string().len();
        }
        self.config.operations.iter().filter_map(longest).max().unwrap_or(1)
    }

    fn every_problem(&self) -> impl Iterator<Item = Operands> + '_ {
        let range = self.config.smallest..=self.config.largest;
        self.config.operations.iter().flat_map(move |&operation| {
            let inner = range.clone();
            range
                .clone()
                .flat_map(move |a| inner.clone().map(move |b| Operands { operation, a, b }))
        })
    }

    fn is_held_out(&self, problem: Operands) -> bool {
        let Operands { operation, mut a, mut b } = problem;
        if operation.commutes() && a > b {
            std::mem::swap(&mut a, &mut b);
        }
        let word = philox([a, b, operation as u32, 0], SPLIT_KEY)[0];
        f64::from(unit(word)) < self.config.held_out
    }

    fn draw(&self, from: &mut Sequence) -> Operands {
        let range = self.config.largest - self.config.smallest + 1;
        let which = from.below(self.config.operations.len() as u32) as usize;
        let operation = self.config.operations.get(which).copied().unwrap_or(Operation::Add);
        let a = self.config.smallest + from.below(range);
        let b = self.config.smallest + from.below(range);
        Operands { operation, a, b }
    }

    fn draw_trained(&self, from: &mut Sequence) -> Operands {
        loop {
            let problem = self.draw(from);
            if !self.is_held_out(problem) {
                return problem;
            }
        }
    }

    fn result(&self, operation: Operation, a: u32, b: u32) -> i64 {
        let value = operation.apply(i64::from(a), i64::from(b));
        match self.config.modulus {
            0 => value,
            modulus => value.rem_euclid(i64::from(modulus)),
        }
    }

    /// Operands of a range.
    fn range(&self) -> u64 {
        u64::from(self.config.largest - self.config.smallest) + 1
    }

    /// The number of a problem among all that the range allows: at most 3·(10⁹ + 1)², which is below 2⁶³.
    fn id(&self, Operands { operation, a, b }: Operands) -> u64 {
        let [a, b] = [a, b].map(|operand| u64::from(operand - self.config.smallest));
        (operation as u64 * self.range() + a) * self.range() + b
    }

    fn operands(&self, id: u64) -> Option<Operands> {
        let range = self.range();
        let operation = *Operation::ALL.get(usize::try_from(id / range / range).ok()?)?;
        let operand =
            |offset: u64| Some(self.config.smallest + u32::try_from(offset % range).ok()?);
        let (a, b) = (operand(id / range)?, operand(id)?);
        self.config.operations.contains(&operation).then_some(Operands { operation, a, b })
    }

    fn write(&self, operands: Operands) -> Problem {
        let Operands { operation, a, b } = operands;
        let sign = operation.sign();
        let prompt = match self.config.modulus {
            0 => format!("{a}{sign}{b}="),
            modulus => format!("{a}{sign}{b}%{modulus}="),
        };
        let answer = self.result(operation, a, b).to_string();
        let level = a.max(b).to_string().len() as u32;
        Problem { level, ..Problem::text(self.id(operands), prompt, answer) }
    }
}

impl Task for Arithmetic {
    fn name(&self) -> &str {
        "arithmetic"
    }

    fn problem(&self, seed: u64, index: u64) -> Problem {
        self.write(self.draw_trained(&mut Sequence::new(seed, Stream::Task, index)))
    }

    fn by_id(&self, _seed: u64, id: u64) -> Option<Problem> {
        let operands = self.operands(id)?;
        (!self.is_held_out(operands)).then(|| self.write(operands))
    }

    fn held_out(&self, seed: u64, count: usize) -> Vec<Problem> {
        let mut draws = Sequence::new(seed, Stream::HeldOut, 0);
        if self.problems() <= ENUMERATED {
            let mut all: Vec<Operands> =
                self.every_problem().filter(|problem| self.is_held_out(*problem)).collect();
            draws.shuffle(&mut all);
            return all.into_iter().take(count).map(|problem| self.write(problem)).collect();
        }
        // At least 65536 problems: draws repeat rarely, and the bound ends a search for more than there are.
        let (mut seen, mut found, mut left) =
            (HashSet::new(), Vec::new(), count.saturating_mul(1000));
        while found.len() < count && left > 0 {
            left -= 1;
            let problem = self.draw(&mut draws);
            if self.is_held_out(problem) && seen.insert(problem) {
                found.push(self.write(problem));
            }
        }
        found
    }

    fn worked_example(&self, seed: u64, index: u64) -> Option<Example> {
        // Sub-streams of worked examples lie in the upper half, those of problems in the lower.
        let mut draws = Sequence::new(seed, Stream::Task, index | 1 << 63);
        let operands = self.draw_trained(&mut draws);
        let problem = self.write(operands);
        let mut response = problem.answer.clone();
        if f64::from(draws.next_unit()) < self.config.noise {
            // A wrong answer is the right answer of other operands: it looks like an answer and is wrong.
            for _ in 0..64 {
                let other = self.draw(&mut draws);
                response = self.result(operands.operation, other.a, other.b).to_string();
                if response != problem.answer {
                    break;
                }
            }
        }
        Some(Example::one_shot(problem, Part::Text(response)))
    }

    fn verifier(&self) -> Box<dyn Verifier> {
        Box::new(ExactMatch)
    }

    fn language(&self) -> Language<'_> {
        Language::Characters("0123456789+-*%=")
    }
}

#[cfg(test)]
mod tests {
    use super::super::episode::Turn;
    use super::*;

    fn task(config: ArithmeticConfig) -> Arithmetic {
        Arithmetic::new(config).unwrap()
    }

    fn solve(problem: &Problem) -> i64 {
        let prompt = problem.prompt();
        let body = prompt.strip_suffix('=').unwrap();
        let (body, modulus) = match body.split_once('%') {
            Some((body, modulus)) => (body, modulus.parse::<i64>().unwrap()),
            None => (body, 0),
        };
        let at = body.find(['+', '-', '*']).unwrap();
        let (a, b): (i64, i64) = (body[..at].parse().unwrap(), body[at + 1..].parse().unwrap());
        let value = match &body[at..=at] {
            "+" => a + b,
            "-" => a - b,
            _ => a * b,
        };
        if modulus == 0 { value } else { value.rem_euclid(modulus) }
    }

    #[test]
    fn answers_are_right_and_fit_the_alphabet() {
        for modulus in [0, 7, 97] {
            let task = task(ArithmeticConfig {
                operations: vec![Operation::Add, Operation::Subtract, Operation::Multiply],
                smallest: 3,
                largest: 120,
                modulus,
                ..Default::default()
            });
            let Language::Characters(alphabet) = task.language() else { panic!("characters") };
            for index in 0..500 {
                let problem = task.problem(1, index);
                assert_eq!(problem.answer, solve(&problem).to_string(), "{problem:?}");
                assert!(problem.answer.len() <= task.longest_answer());
                let written = format!("{}{}", problem.prompt(), problem.answer);
                assert!(written.chars().all(|c| alphabet.contains(c)));
            }
        }
    }

    #[test]
    fn held_out_problems_are_never_trained_on() {
        let small = ArithmeticConfig { largest: 30, ..Default::default() };
        let large = ArithmeticConfig { largest: 999, held_out: 0.05, ..Default::default() };
        for config in [small, large] {
            let task = task(config);
            let held_out: HashSet<String> = (0..3)
                .flat_map(|seed| task.held_out(seed, 400))
                .map(|p| p.prompt().into_owned())
                .collect();
            assert!(held_out.len() > 100);
            for index in 0..3000 {
                assert!(!held_out.contains(&*task.problem(index % 7, index).prompt()));
                let example = task.worked_example(2, index).unwrap();
                assert!(!held_out.contains(&*example.problem.prompt()));
            }
            for prompt in &held_out {
                let (a, b) = prompt.trim_end_matches('=').split_once('+').unwrap();
                let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
                assert!(task.is_held_out(Operands { operation: Operation::Add, a: b, b: a }));
            }
        }
    }

    #[test]
    fn held_out_problems_are_distinct_and_as_many_as_there_are() {
        let task = task(ArithmeticConfig { largest: 9, ..Default::default() });
        let all = task.held_out(0, 10_000);
        let distinct: HashSet<_> = all.iter().map(|p| p.prompt()).collect();
        assert_eq!(all.len(), distinct.len());
        assert!((5..40).contains(&all.len()), "{}", all.len());
        assert_eq!(task.held_out(0, 3), all[..3]);
        assert_ne!(task.held_out(1, 10_000), all);
    }

    #[test]
    fn a_seed_and_an_index_say_everything() {
        let task = task(ArithmeticConfig::default());
        assert_eq!(task.problem(3, 1 << 40), task.problem(3, 1 << 40));
        let prompts = |seed| (0..50).map(|i| task.problem(seed, i).id).collect::<Vec<_>>();
        assert_ne!(prompts(0), prompts(1));
    }

    #[test]
    fn an_id_gives_its_problem_again() {
        let all = [Operation::Multiply, Operation::Add, Operation::Subtract];
        for (operations, smallest, largest) in [
            (&all[..], 3, 40),
            (&all[..], 0, 1_000_000_000),
            (&all[1..2], 999_999_990, 1_000_000_000),
        ] {
            let operations = operations.to_vec();
            let task =
                task(ArithmeticConfig { operations, smallest, largest, ..Default::default() });
            for index in 0..300 {
                let problem = task.problem(4, index);
                assert_eq!(task.by_id(4, problem.id).as_ref(), Some(&problem));
            }
            for problem in task.held_out(4, 100) {
                assert_eq!(task.by_id(4, problem.id), None);
            }
        }
        let sums = task(ArithmeticConfig { largest: 9, ..Default::default() });
        let ids = (0..300).filter(|id| sums.by_id(0, *id).is_some()).count();
        assert_eq!(ids + sums.held_out(0, 1000).len(), 100);
        assert_eq!(sums.by_id(0, u64::MAX), None);
    }

    #[test]
    fn noise_is_the_share_of_wrong_examples() {
        for noise in [0.0, 0.3, 1.0] {
            let task = task(ArithmeticConfig { noise, ..Default::default() });
            let wrong = (0..2000)
                .filter_map(|index| task.worked_example(5, index))
                .filter(|example| {
                    let right = Turn::policy(Part::Text(example.problem.answer.clone()));
                    assert_eq!(solve(&example.problem).to_string(), example.problem.answer);
                    example.turns != [right]
                })
                .count();
            assert!((wrong as f64 / 2000.0 - noise).abs() < 0.04, "{noise}: {wrong}");
        }
    }

    #[test]
    fn bad_parameters_are_errors() {
        let default = ArithmeticConfig::default;
        for config in [
            ArithmeticConfig { operations: vec![], ..default() },
            ArithmeticConfig { smallest: 5, largest: 4, ..default() },
            ArithmeticConfig { largest: u32::MAX, ..default() },
            ArithmeticConfig { held_out: 0.0, ..default() },
            ArithmeticConfig { held_out: f64::NAN, ..default() },
            ArithmeticConfig { noise: 1.5, ..default() },
            ArithmeticConfig { smallest: 1, largest: 1, ..default() },
        ] {
            assert!(Arithmetic::new(config.clone()).unwrap_err().is_invalid(), "{config:?}");
        }
    }
}
