//! Problems from a file: one JSON object a line with a prompt and an answer.
//!
//! The whole file is read and checked before training starts, so that line 40000 cannot end a run after an hour.

use crate::error::{Error, Result};
use crate::rng::{Sequence, Stream};
use crate::tasks::verifier::FinalAnswer;
use crate::tasks::{Problem, Task, Verifier};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// How a JSONL file is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JsonlConfig {
    /// Name of the field with the prompt (a string).
    pub prompt: String,
    /// Name of the field with the answer (a string or a number).
    pub answer: String,
    /// Written before and after each prompt: `{prompt}` stands for it.
    pub template: String,
    /// How many of the last problems are held out; 0: a tenth of them, at least one.
    pub held_out: usize,
}

impl Default for JsonlConfig {
    fn default() -> Self {
        JsonlConfig {
            prompt: "prompt".into(),
            answer: "answer".into(),
            template: "{prompt}".into(),
            held_out: 0,
        }
    }
}

/// The problems of a JSONL file, the last of them held out.
#[derive(Debug)]
pub struct Jsonl {
    trained: Vec<Problem>,
    held_out: Vec<Problem>,
    /// The order of the epoch that was asked for last.
    order: Mutex<Option<Order>>,
}

#[derive(Clone, Debug)]
struct Order {
    seed: u64,
    epoch: u64,
    indices: Arc<Vec<u32>>,
}

impl Jsonl {
    /// Reads and checks a whole file.
    ///
    /// Prompts that occur in the held-out part are left out of the training part, so the two never meet.
    ///
    /// # Errors
    /// [`Error::is_io`] when the file cannot be read; [`Error::is_format`] with file and line number when a line is
    /// not an object with both fields, when there is no problem, or when nothing would be left to train on.
    pub fn load(path: &Path, config: &JsonlConfig) -> Result<Jsonl> {
        let place = path.display();
        let bytes = std::fs::read(path).map_err(|e| Error::io(format!("reading {place}"), e))?;
        Jsonl::parse(&bytes, config, &place.to_string())
    }

    /// The same from memory; `place` is the name used in errors.
    ///
    /// # Errors
    /// As [`Jsonl::load`].
    pub fn parse(bytes: &[u8], config: &JsonlConfig, place: &str) -> Result<Jsonl> {
        if !config.template.contains("{prompt}") {
            let template = &config.template;
            return Err(Error::invalid(format!(
                "template `{template}` does not contain {{prompt}}"
            )));
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut problems = Vec::new();
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            problems
                .push(problem(line, config).map_err(|e| e.at(format!("{place}:{}", number + 1)))?);
        }
        if problems.is_empty() {
            return Err(Error::format(format!("{place}: no problem in the file")));
        }
        let wanted = match config.held_out {
            0 => problems.len().div_ceil(10),
            count => count,
        };
        if wanted >= problems.len() {
            let total = problems.len();
            return Err(Error::format(format!(
                "{place}: {wanted} of {total} problems are held out, none is left to train on"
            )));
        }
        let mut held_out = problems.split_off(problems.len() - wanted);
        let mut seen = HashSet::new();
        held_out.retain(|problem| seen.insert(problem.prompt.clone()));
        problems.retain(|problem| !seen.contains(&problem.prompt));
        if problems.is_empty() {
            return Err(Error::format(format!("{place}: every training prompt is also held out")));
        }
        Ok(Jsonl { trained: problems, held_out, order: Mutex::new(None) })
    }

    /// How many problems are trained on and how many are held out.
    pub fn sizes(&self) -> (usize, usize) {
        (self.trained.len(), self.held_out.len())
    }

    fn order(&self, seed: u64, epoch: u64) -> Arc<Vec<u32>> {
        let mut last = self.order.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(order) =
            last.as_ref().filter(|order| (order.seed, order.epoch) == (seed, epoch))
        {
            return order.indices.clone();
        }
        let mut indices: Vec<u32> = (0..self.trained.len() as u32).collect();
        Sequence::new(seed, Stream::Shuffle, epoch).shuffle(&mut indices);
        let indices = Arc::new(indices);
        *last = Some(Order { seed, epoch, indices: indices.clone() });
        indices
    }
}

fn problem(line: &[u8], config: &JsonlConfig) -> Result<Problem> {
    let value: Value = serde_json::from_slice(line).map_err(|e| {
        // serde_json counts from line 1 of what it was given; only the column means something here.
        let text = e.to_string();
        let what = text.split(" at line ").next().unwrap_or_default();
        Error::format(format!("not a JSON object: {what} (column {})", e.column()))
    })?;
    let Value::Object(fields) = value else {
        return Err(Error::format("not a JSON object"));
    };
    let field = |name: &str| {
        fields.get(name).ok_or_else(|| {
            let names: Vec<&str> = fields.keys().map(String::as_str).take(8).collect();
            Error::format(format!("no field `{name}` (it has {})", names.join(", ")))
        })
    };
    let Value::String(prompt) = field(&config.prompt)? else {
        return Err(Error::format(format!("`{}` is not a string", config.prompt)));
    };
    let answer = match field(&config.answer)? {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => {
            return Err(Error::format(format!("`{}` is not a string or a number", config.answer)));
        }
    };
    if prompt.is_empty() {
        return Err(Error::format(format!("`{}` is empty", config.prompt)));
    }
    Ok(Problem { prompt: config.template.replace("{prompt}", prompt), answer, level: 0 })
}

impl Task for Jsonl {
    fn name(&self) -> &str {
        "jsonl"
    }

    fn problem(&self, seed: u64, index: u64) -> Problem {
        let count = self.trained.len() as u64;
        let order = self.order(seed, index / count);
        self.trained[order[(index % count) as usize] as usize].clone()
    }

    fn held_out(&self, _seed: u64, count: usize) -> Vec<Problem> {
        self.held_out.iter().take(count).cloned().collect()
    }

    fn worked_example(&self, _seed: u64, _index: u64) -> Option<Problem> {
        None
    }

    fn verifier(&self) -> Box<dyn Verifier> {
        Box::new(FinalAnswer)
    }

    fn alphabet(&self) -> Option<&str> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Jsonl> {
        Jsonl::parse(text.as_bytes(), &JsonlConfig::default(), "p.jsonl")
    }

    fn lines(count: usize) -> String {
        (0..count).map(|i| format!("{{\"prompt\": \"q{i}\", \"answer\": {i}}}\n")).collect()
    }

    #[test]
    fn an_epoch_visits_every_training_problem_once() {
        let task = parse(&lines(25)).unwrap();
        assert_eq!(task.sizes(), (22, 3));
        let held_out: Vec<String> = task.held_out(0, 99).into_iter().map(|p| p.prompt).collect();
        assert_eq!(held_out, ["q22", "q23", "q24"]);
        let epoch = |seed: u64, epoch: u64| {
            (0..22).map(|i| task.problem(seed, epoch * 22 + i).prompt).collect::<Vec<_>>()
        };
        for (seed, number) in [(0, 0), (0, 1), (9, 1 << 30)] {
            let mut prompts = epoch(seed, number);
            prompts.sort();
            prompts.dedup();
            assert_eq!(prompts.len(), 22);
            assert!(prompts.iter().all(|prompt| !held_out.contains(prompt)));
        }
        assert_ne!(epoch(0, 0), epoch(0, 1));
        assert_ne!(epoch(0, 0), epoch(1, 0));
        assert_eq!(epoch(0, 0), epoch(0, 0));
    }

    #[test]
    fn names_template_numbers_and_a_byte_order_mark() {
        let config = JsonlConfig {
            prompt: "question".into(),
            answer: "gold".into(),
            template: "Q: {prompt}\nA:".into(),
            held_out: 1,
        };
        let text = "\u{feff}{\"question\": \"1/2?\", \"gold\": 0.5}\r\n\n{\"question\": \"x\", \"gold\": \"-3\"}";
        let task = Jsonl::parse(text.as_bytes(), &config, "p").unwrap();
        let problem = task.problem(0, 0);
        assert_eq!((problem.prompt.as_str(), problem.answer.as_str()), ("Q: 1/2?\nA:", "0.5"));
    }

    #[test]
    fn a_held_out_prompt_is_not_trained_on() {
        let text = format!("{}{}", lines(5), "{\"prompt\": \"q1\", \"answer\": 1}");
        let task = parse(&text).unwrap();
        assert_eq!(task.sizes(), (4, 1));
        assert!((0..40).all(|i| task.problem(0, i).prompt != "q1"));
    }

    #[test]
    fn errors_name_file_and_line() {
        let good = "{\"prompt\": \"a\", \"answer\": \"b\"}\n";
        for (bad, says) in [
            ("{\"prompt\": \"a\", \"answer\"", "p.jsonl:2: not a JSON object: EOF"),
            ("[1, 2]", "p.jsonl:2: not a JSON object"),
            (
                "{\"prompt\": \"a\", \"anwser\": 1}",
                "p.jsonl:2: no field `answer` (it has prompt, anwser)",
            ),
            ("{\"prompt\": 7, \"answer\": 1}", "p.jsonl:2: `prompt` is not a string"),
            ("{\"prompt\": \"\", \"answer\": 1}", "p.jsonl:2: `prompt` is empty"),
            (
                "{\"prompt\": \"a\", \"answer\": null}",
                "p.jsonl:2: `answer` is not a string or a number",
            ),
            (
                "{\"prompt\": \"a\", \"answer\": [1]}",
                "p.jsonl:2: `answer` is not a string or a number",
            ),
            ("nonsense", "p.jsonl:2: not a JSON object: expected ident"),
        ] {
            let error = parse(&format!("{good}{bad}\n{good}")).unwrap_err();
            assert!(error.is_format() && error.to_string().starts_with(says), "{error}");
        }
        let error = Jsonl::parse(b"\xff\xfe{}\n", &JsonlConfig::default(), "p.jsonl").unwrap_err();
        assert!(error.to_string().starts_with("p.jsonl:1: not a JSON object"), "{error}");
        assert!(parse(" \n\n").unwrap_err().to_string().contains("no problem"));
        assert!(parse(good).unwrap_err().to_string().contains("none is left"));
        assert!(parse(&good.repeat(3)).unwrap_err().to_string().contains("also held out"));
        assert!(
            Jsonl::load(Path::new("/no/such.jsonl"), &JsonlConfig::default()).unwrap_err().is_io()
        );
    }
}
