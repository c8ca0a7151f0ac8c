//! An environment with a calculator: `<calc>12*7</calc>` is followed by `<result>84</result>`.

use super::calculation::{NoResult, calculate};
use super::environment::Environment;
use super::episode::{Author, Example, Turn};
use super::problem::{Part, Problem};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How a calculator is called and how it replies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CalculatorConfig {
    /// Stands before a call.
    pub open: String,
    /// Stands after a call, and ends the policy's turn.
    pub close: String,
    /// Stands before a reply.
    pub before: String,
    /// Stands after a reply.
    pub after: String,
    /// Most calls that are replied to in an episode; a further one ends it.
    pub most_calls: usize,
    /// Text before each prompt, which may tell a model that it has a calculator.
    pub instruction: String,
}

impl Default for CalculatorConfig {
    fn default() -> CalculatorConfig {
        CalculatorConfig {
            open: "<calc>".to_owned(),
            close: "</calc>".to_owned(),
            before: "<result>".to_owned(),
            after: "</result>".to_owned(),
            most_calls: 4,
            instruction: String::new(),
        }
    }
}

/// The environment that [`CalculatorConfig`] describes.
#[derive(Clone, Debug)]
pub struct Calculator {
    config: CalculatorConfig,
    stops: Vec<String>,
    alphabet: String,
}

impl Calculator {
    /// Checks the configuration.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for a call that is not marked at both ends, or with equal marks.
    pub fn new(config: CalculatorConfig) -> Result<Calculator> {
        let (open, close) = (&config.open, &config.close);
        if open.is_empty() || close.is_empty() || open == close {
            return Err(Error::invalid(format!(
                "calculator: a call is marked by `open` {open:?} and `close` {close:?}; they must differ"
            )));
        }
        let messages: String = NoResult::ALL.iter().map(NoResult::to_string).collect();
        let marks = [&config.open, &config.close, &config.before, &config.after];
        let marks = marks.into_iter().flat_map(|mark| mark.chars());
        let written = "0123456789.+-*/%()".chars().chain(messages.chars());
        let alphabet: BTreeSet<char> =
            marks.chain(written).chain(config.instruction.chars()).collect();
        let stops = vec![config.close.clone()];
        Ok(Calculator { config, stops, alphabet: alphabet.into_iter().collect() })
    }

    /// The first call of a turn.
    fn call<'a>(&self, turn: &'a str) -> Option<&'a str> {
        let (before, _) = turn.split_once(&self.config.close)?;
        let at = before.rfind(&self.config.open)?;
        before.get(at + self.config.open.len()..)
    }

    fn answered(&self, call: &str) -> Part {
        let result = calculate(call).unwrap_or_else(|why| why.to_string());
        Part::Text(format!("{}{result}{}", self.config.before, self.config.after))
    }
}

impl Environment for Calculator {
    fn name(&self) -> &str {
        "calculator"
    }

    fn begin(&self, problem: &Problem) -> Vec<Part> {
        let instruction = Some(self.config.instruction.clone()).filter(|text| !text.is_empty());
        instruction.map(Part::Text).into_iter().chain(problem.parts.iter().cloned()).collect()
    }

    fn stops(&self) -> &[String] {
        &self.stops
    }

    fn reply(&self, _problem: &Problem, turns: &[Turn]) -> Option<Part> {
        let replies = turns.iter().filter(|turn| turn.by == Author::Environment).count();
        match turns.last() {
            Some(Turn { by: Author::Policy, part: Part::Text(turn) })
                if replies < self.config.most_calls =>
            {
                self.call(turn).map(|call| self.answered(call))
            }
            _ => None,
        }
    }

    fn alphabet(&self) -> &str {
        &self.alphabet
    }

    /// A single turn about a prompt that is an expression (`12+34=`; a modulus is that of the whole) becomes a call, its reply
    /// and that turn. Other examples stay as they are.
    fn shown(&self, example: Example) -> Example {
        let prompt = example.problem.prompt();
        let asked = prompt.trim().trim_end_matches('=').trim();
        let call = match asked.rsplit_once('%') {
            Some((whole, modulus)) => format!("({whole})%{modulus}"),
            None => asked.to_owned(),
        };
        if self.config.most_calls == 0 || example.turns.len() != 1 || calculate(&call).is_err() {
            return example;
        }
        let written = format!("{}{call}{}", self.config.open, self.config.close);
        let mut turns =
            vec![Turn::policy(Part::Text(written)), Turn::environment(self.answered(&call))];
        turns.extend(example.turns);
        Example { problem: example.problem, turns }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arithmetic::{Arithmetic, ArithmeticConfig, Operation};
    use super::super::task::Task;
    use super::*;

    fn calculator() -> Calculator {
        Calculator::new(CalculatorConfig::default()).unwrap()
    }

    fn turn(text: &str) -> Turn {
        Turn::policy(Part::Text(text.to_owned()))
    }

    #[test]
    fn a_call_is_replied_to() {
        let calculator = calculator();
        let problem = Problem::text(0, "q", "a");
        let reply = |text: &str| calculator.reply(&problem, &[turn(text)]);
        let said = |text: &str| Some(Part::Text(text.to_owned()));
        assert_eq!(reply("so <calc>12*7</calc>"), said("<result>84</result>"));
        // What a token added after the mark does not matter, nor does an earlier mark.
        assert_eq!(reply("<calc> <calc>1/4</calc> an"), said("<result>0.25</result>"));
        assert_eq!(reply("<calc>1/0</calc>"), said("<result>error: division by zero</result>"));
        assert_eq!(reply("<calc>two</calc>"), said("<result>error: not an expression</result>"));
        assert_eq!(reply("<calc></calc>"), said("<result>error: not an expression</result>"));
        for none in ["12*7", "<calc>12*7", "</calc><calc>12*7", ""] {
            assert_eq!(reply(none), None, "{none}");
        }
        assert_eq!(calculator.reply(&problem, &[]), None);
        let ids = [Turn::policy(Part::Tokens(vec![1]))];
        assert_eq!(calculator.reply(&problem, &ids), None);
        assert_eq!(calculator.stops(), ["</calc>"]);
    }

    #[test]
    fn calls_are_bounded() {
        let config = CalculatorConfig { most_calls: 2, ..CalculatorConfig::default() };
        let calculator = Calculator::new(config).unwrap();
        let problem = Problem::text(0, "q", "a");
        let mut turns = vec![turn("<calc>1+1</calc>")];
        for _ in 0..2 {
            turns.push(Turn::environment(calculator.reply(&problem, &turns).unwrap()));
            turns.push(turn("<calc>1+1</calc>"));
        }
        assert_eq!(calculator.reply(&problem, &turns), None);
        turns.pop();
        assert_eq!(calculator.reply(&problem, &turns), None, "the last turn is its own");
    }

    #[test]
    fn examples_of_arithmetic_show_a_call() {
        for modulus in [0, 7] {
            let operations = vec![Operation::Add, Operation::Subtract, Operation::Multiply];
            let task =
                Arithmetic::new(ArithmeticConfig { operations, modulus, ..Default::default() });
            let (task, calculator) = (task.unwrap(), calculator());
            for index in 0..50 {
                let example = calculator.shown(task.worked_example(3, index).unwrap());
                let [call, reply, answer] = &example.turns[..] else { panic!("{example:?}") };
                let said = calculator.reply(&example.problem, &example.turns[..1]);
                assert_eq!(Some(&reply.part), said.as_ref());
                let right = &example.problem.answer;
                assert_eq!(reply.part.text(), format!("<result>{right}</result>"));
                assert_eq!(answer.part.text(), right.as_str());
                assert_eq!((call.by, reply.by), (Author::Policy, Author::Environment));
                let written: String = example.turns.iter().map(|turn| turn.part.text()).collect();
                assert!(written.chars().all(|c| calculator.alphabet().contains(c)));
            }
        }
        let other = Example::one_shot(Problem::text(0, "Why?", ""), Part::Text("So.".to_owned()));
        assert_eq!(calculator().shown(other.clone()), other);
    }

    #[test]
    fn an_instruction_comes_first() {
        let config = CalculatorConfig { instruction: "You may. ".to_owned(), ..Default::default() };
        let begun = Calculator::new(config).unwrap().begin(&Problem::text(0, "q", "a"));
        assert_eq!(begun, ["You may. ", "q"].map(|text| Part::Text(text.to_owned())));
        assert_eq!(calculator().begin(&Problem::text(0, "q", "a")).len(), 1);
        for (open, close) in [("", "b"), ("a", ""), ("a", "a")] {
            let [open, close] = [open, close].map(str::to_owned);
            let config = CalculatorConfig { open, close, ..CalculatorConfig::default() };
            assert!(Calculator::new(config).unwrap_err().is_invalid());
        }
    }
}
