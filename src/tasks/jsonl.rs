//! Problems from a file: one JSON object per line with a prompt and an answer.
//!
//! The whole file is read and checked before training starts, so that line 40000 cannot end a run after an hour. The other
//! fields of a record go with its problem, for a verifier to read.

use super::episode::Example;
use super::epochs::Epochs;
use super::final_answer::FinalAnswer;
use super::problem::{Part, Problem};
use super::task::{Language, Task};
use super::template::Template;
use super::verifier::Verifier;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;

/// How a JSONL file is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JsonlConfig {
    /// Name of the field with the prompt: a string, or a list of token ids.
    pub prompt: String,
    /// Name of the field with the answer: a string or a number. Empty: there is none, for a verifier that needs none.
    pub answer: String,
    /// How a prompt is put to the model: `auto` (the chat template of the model folder, where it has one), `chat`, `none`, the
    /// path of a chat template (`*.jinja`), or a text that is written around it, in which `{prompt}` stands for it.
    pub template: Template,
    /// What the system says before a prompt, for a chat template; empty: nothing.
    pub system: String,
    /// How many of the last problems are held out; 0: a tenth of them, at least one.
    pub held_out: usize,
}

impl Default for JsonlConfig {
    fn default() -> Self {
        JsonlConfig {
            prompt: "prompt".into(),
            answer: "answer".into(),
            template: Template::Auto,
            system: String::new(),
            held_out: 0,
        }
    }
}

/// The problems of a JSONL file, the last of them held out.
#[derive(Debug)]
pub struct Jsonl {
    trained: Vec<Problem>,
    held_out: Vec<Problem>,
    epochs: Epochs,
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
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut problems = Vec::new();
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let read = problem(line, config);
            problems.push(read.map_err(|e| e.at(format!("{place}:{}", number + 1)))?);
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
        held_out.retain(|problem| seen.insert(problem.parts.clone()));
        problems.retain(|problem| !seen.contains(&problem.parts));
        if problems.is_empty() {
            return Err(Error::format(format!("{place}: every training prompt is also held out")));
        }
        let size = u32::try_from(problems.len())
            .map_err(|_| Error::format(format!("{place}: {} problems", problems.len())))?;
        for (problem, id) in problems.iter_mut().chain(&mut held_out).zip(0..) {
            problem.id = id;
        }
        Ok(Jsonl { trained: problems, held_out, epochs: Epochs::new(size) })
    }

    /// How many problems are trained on and how many are held out.
    pub fn sizes(&self) -> (usize, usize) {
        (self.trained.len(), self.held_out.len())
    }
}

fn problem(line: &[u8], config: &JsonlConfig) -> Result<Problem> {
    let value: Value = serde_json::from_slice(line).map_err(|e| {
        // serde_json counts from line 1 of what it was given; only the column means something here.
        let text = e.to_string();
        let what = text.split(" at line ").next().unwrap_or_default();
        Error::format(format!("not a JSON object: {what} (column {})", e.column()))
    })?;
    let Value::Object(mut fields) = value else {
        return Err(Error::format("not a JSON object"));
    };
    for name in [&config.prompt, &config.answer].into_iter().filter(|name| !name.is_empty()) {
        if !fields.contains_key(name) {
            let names: Vec<&str> = fields.keys().map(String::as_str).take(8).collect();
            return Err(Error::format(format!("no field `{name}` (it has {})", names.join(", "))));
        }
    }
    let mut taken = |name: &str| fields.shift_remove(name).unwrap_or(Value::Null);
    let part = match taken(&config.prompt) {
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(Part::Text(text)),
        Value::Array(ids) if ids.is_empty() => None,
        Value::Array(ids) => Some(Part::Tokens(tokens(&ids, &config.prompt)?)),
        _ => {
            let what = format!("`{}` is not a string or a list of token ids", config.prompt);
            return Err(Error::format(what));
        }
    };
    let Some(part) = part else {
        return Err(Error::format(format!("`{}` is empty", config.prompt)));
    };
    let answer = match config.answer.as_str() {
        "" => String::new(),
        name => match taken(name) {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            _ => return Err(Error::format(format!("`{name}` is not a string or a number"))),
        },
    };
    Ok(Problem { fields, ..Problem::new(0, part, answer) })
}

fn tokens(ids: &[Value], name: &str) -> Result<Vec<i32>> {
    let id =
        |value: &Value| value.as_i64().and_then(|id| i32::try_from(id).ok()).filter(|id| *id >= 0);
    ids.iter()
        .map(|value| {
            id(value).ok_or_else(|| Error::format(format!("`{name}`: {value} is not a token id")))
        })
        .collect()
}

impl Task for Jsonl {
    fn name(&self) -> &str {
        "jsonl"
    }

    fn problem(&self, seed: u64, index: u64) -> Problem {
        self.trained[self.epochs.item(seed, index) as usize].clone()
    }

    fn size(&self) -> Option<u64> {
        Some(self.trained.len() as u64)
    }

    fn by_id(&self, _seed: u64, id: u64) -> Option<Problem> {
        self.trained.get(usize::try_from(id).ok()?).cloned()
    }

    fn held_out(&self, _seed: u64, count: usize) -> Vec<Problem> {
        self.held_out.iter().take(count).cloned().collect()
    }

    fn worked_example(&self, _seed: u64, _index: u64) -> Option<Example> {
        None
    }

    fn verifier(&self) -> Box<dyn Verifier> {
        Box::new(FinalAnswer::default())
    }

    fn language(&self) -> Language<'_> {
        Language::FreeText
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
        assert_eq!((task.sizes(), task.size()), ((22, 3), Some(22)));
        let held_out: Vec<String> =
            task.held_out(0, 99).iter().map(|p| p.prompt().into_owned()).collect();
        assert_eq!(held_out, ["q22", "q23", "q24"]);
        for (seed, epoch) in [(0, 0), (0, 1), (9, 1 << 30)] {
            let mut ids: Vec<u64> =
                (0..22).map(|i| task.problem(seed, epoch * 22 + i).id).collect();
            ids.sort_unstable();
            assert_eq!(ids, (0..22).collect::<Vec<u64>>());
        }
        for id in 0..22 {
            assert_eq!(task.by_id(7, id).unwrap().prompt(), format!("q{id}"));
        }
        assert!(task.by_id(7, 22).is_none() && task.by_id(7, u64::MAX).is_none());
    }

    #[test]
    fn other_fields_go_with_the_problem_and_an_answer_may_be_absent() {
        let text = r#"{"id": "a7", "prompt": "x", "answer": "1", "facts": ["p", {"q": 2}]}"#;
        let task = parse(&format!("{text}\n{}", lines(1))).unwrap();
        let problem = task.problem(0, 0);
        assert_eq!(
            Value::Object(problem.fields),
            serde_json::json!({"id": "a7", "facts": ["p", {"q": 2}]})
        );
        let config = JsonlConfig { answer: String::new(), held_out: 1, ..JsonlConfig::default() };
        let bare = "{\"prompt\": \"x\"}\n{\"prompt\": \"y\", \"answer\": [1]}";
        let task = Jsonl::parse(bare.as_bytes(), &config, "p").unwrap();
        assert_eq!(task.problem(0, 0).answer, "");
        assert_eq!(task.held_out(0, 1)[0].fields["answer"], serde_json::json!([1]));
    }

    #[test]
    fn a_prompt_may_be_ids() {
        let text = format!("{{\"prompt\": [5, 0, 7], \"answer\": 1}}\n{}", lines(1));
        assert_eq!(parse(&text).unwrap().problem(0, 0).tokens(), Some(&[5, 0, 7][..]));
    }

    #[test]
    fn names_numbers_and_a_byte_order_mark() {
        let config = JsonlConfig {
            prompt: "question".into(),
            answer: "gold".into(),
            held_out: 1,
            ..JsonlConfig::default()
        };
        let text = "\u{feff}{\"question\": \"1/2?\", \"gold\": 0.5}\r\n\n{\"question\": \"x\", \"gold\": \"-3\"}";
        let task = Jsonl::parse(text.as_bytes(), &config, "p").unwrap();
        let problem = task.problem(0, 0);
        assert_eq!((&*problem.prompt(), problem.answer.as_str()), ("1/2?", "0.5"));
    }

    #[test]
    fn a_held_out_prompt_is_not_trained_on() {
        let text = format!("{}{}", lines(5), "{\"prompt\": \"q1\", \"answer\": 1}");
        let task = parse(&text).unwrap();
        assert_eq!(task.sizes(), (4, 1));
        assert!((0..40).all(|i| task.problem(0, i).prompt() != "q1"));
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
            (
                "{\"prompt\": 7, \"answer\": 1}",
                "p.jsonl:2: `prompt` is not a string or a list of token ids",
            ),
            ("{\"prompt\": \"\", \"answer\": 1}", "p.jsonl:2: `prompt` is empty"),
            ("{\"prompt\": [], \"answer\": 1}", "p.jsonl:2: `prompt` is empty"),
            ("{\"prompt\": [1, -1], \"answer\": 1}", "p.jsonl:2: `prompt`: -1 is not a token id"),
            ("{\"prompt\": [1.5], \"answer\": 1}", "p.jsonl:2: `prompt`: 1.5 is not a token id"),
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
