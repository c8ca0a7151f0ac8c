//! Which column of a file is what: as the settings say, or by the names that published sets use.

use super::conversation::ends_with_a_reply;
use super::records::{Records, value_at};
use crate::error::{Error, Result};
use crate::tasks::json::{Json, Object};

/// The setting that leaves the choice of a column to the names.
pub const GUESS: &str = "guess";

/// Names of prompts. Those of one line are equally likely, and two of them in one file are ambiguous; a line counts where no
/// line before it does. GSM8K has `question`, MATH `problem`, trl and verl `prompt` or `messages`.
const PROMPTS: &[&[&str]] = &[
    &["prompt", "question", "problem", "query"],
    &["messages", "conversation", "conversations"],
    &["instruction", "input"],
];

/// Names of answers, in the same way: a final answer before a whole solution before a reply. verl keeps the answer in
/// `reward_model`; trl calls a reply `completion`.
const ANSWERS: &[&[&str]] = &[
    &[
        "answer",
        "final_answer",
        "expected_answer",
        "ground_truth",
        "reward_model.ground_truth",
        "target",
    ],
    &["solution"],
    &["completion", "response", "output"],
];

/// The columns of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    /// Of the prompt.
    pub prompt: String,
    /// Of the answer. Empty: there is none; that of the prompt: its last message.
    pub answer: String,
}

impl Columns {
    /// The columns that settings mean; `key` is the table of settings that an error advises to change.
    ///
    /// # Errors
    /// [`Error::is_format`] listing the columns where one is not there, or where the names decide nothing.
    pub(super) fn of(records: &Records, prompt: &str, answer: &str, key: &str) -> Result<Columns> {
        let wrong = |what: String| {
            let (name, columns) = (&records.source.name, listed(records));
            Error::format(format!("{name}: {what}\nits columns are {columns}"))
        };
        let has = |path: &str| records.good.iter().any(|one| value_at(&one.fields, path).is_some());
        for (setting, column) in [("prompt", prompt), ("answer", answer)] {
            if ![GUESS, ""].contains(&column) && !has(column) {
                return Err(wrong(format!("there is no column `{column}` ({key}.{setting})")));
            }
        }
        let prompt = match prompt {
            GUESS => guess(records, PROMPTS, "").map_err(|names| {
                wrong(format!("its prompt may be {}: choose with {key}.prompt", either(&names)))
            })?,
            given => Some(given.to_owned()),
        };
        let Some(prompt) = prompt else {
            let known = PROMPTS.concat().join(", ");
            return Err(wrong(format!(
                "no column is called {known}: name that of the prompt with {key}.prompt"
            )));
        };
        let answer = match answer {
            GUESS => guess(records, ANSWERS, &prompt).map_err(|names| {
                wrong(format!("its answer may be {}: choose with {key}.answer", either(&names)))
            })?,
            given => Some(given.to_owned()),
        };
        let replies = |fields: &Object| value_at(fields, &prompt).is_some_and(ends_with_a_reply);
        let answer = answer.unwrap_or_else(|| {
            if in_most(records, replies) { prompt.clone() } else { String::new() }
        });
        Ok(Columns { prompt, answer })
    }

    /// In words.
    pub(super) fn said(&self) -> String {
        let prompt = &self.prompt;
        match &self.answer {
            answer if answer.is_empty() => format!("prompt `{prompt}`, no answer"),
            answer if answer == prompt => format!("prompt `{prompt}`, answer its last message"),
            answer => format!("prompt `{prompt}`, answer `{answer}`"),
        }
    }
}

/// The columns of a file, and what is in those that are objects.
pub(super) fn listed(records: &Records) -> String {
    const MOST: usize = 24;
    let columns = records.columns();
    let inside = |name: &str| match records.good.iter().find_map(|one| one.fields.get(name)) {
        Some(Json::Object(fields)) if !fields.is_empty() => {
            let names: Vec<&str> = fields.keys().take(MOST).map(String::as_str).collect();
            format!("{name} {{{}}}", names.join(", "))
        }
        _ => name.to_owned(),
    };
    let mut names: Vec<String> = columns.iter().take(MOST).map(|name| inside(name)).collect();
    if columns.len() > MOST {
        names.push(format!("{} more", columns.len() - MOST));
    }
    names.join(", ")
}

fn either(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ")
}

/// The column that the names decide for, `taken` left out.
///
/// # Errors
/// The names between which they do not decide.
fn guess<'a>(
    records: &Records,
    lines: &[&[&'a str]],
    taken: &str,
) -> Result<Option<String>, Vec<&'a str>> {
    for line in lines {
        let there = |name: &&&str| {
            **name != taken
                && in_most(records, |fields| {
                    value_at(fields, name).is_some_and(|value| *value != Json::Null)
                })
        };
        let found: Vec<&str> = line.iter().filter(there).copied().collect();
        match &found[..] {
            [] => {}
            [one] => return Ok(Some((*one).to_owned())),
            _ => return Err(found),
        }
    }
    Ok(None)
}

/// True where it holds for half of the records: one bad record decides nothing.
fn in_most(records: &Records, holds: impl Fn(&Object) -> bool) -> bool {
    let count = records.good.iter().filter(|one| holds(&one.fields)).count();
    count > 0 && count * 2 >= records.good.len()
}

#[cfg(test)]
mod tests {
    use super::super::format::records;
    use super::*;
    use std::path::Path;

    fn of(text: &str, prompt: &str, answer: &str) -> Result<(String, String)> {
        let records = records(text.as_bytes().to_vec(), Path::new("p.jsonl"))?;
        let columns = Columns::of(&records, prompt, answer, "task.format")?;
        Ok((columns.prompt, columns.answer))
    }

    #[test]
    fn the_usual_sets() {
        let turn = r#"[{"role": "user", "content": "q"}]"#;
        let talk = r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#;
        for (record, prompt, answer) in [
            (r#"{"question": "q", "answer": "so #### 4"}"#.to_owned(), "question", "answer"),
            (
                r#"{"problem": "q", "level": "1", "type": "t", "solution": "s"}"#.to_owned(),
                "problem",
                "solution",
            ),
            (
                r#"{"problem": "q", "solution": "s", "answer": "4", "unique_id": "u"}"#.to_owned(),
                "problem",
                "answer",
            ),
            (
                format!(r#"{{"problem": "q", "solution": "s", "messages": {talk}}}"#),
                "problem",
                "solution",
            ),
            (
                format!(
                    r#"{{"data_source": "d", "prompt": {turn}, "reward_model": {{"ground_truth": "4", "style": "s"}}}}"#
                ),
                "prompt",
                "reward_model.ground_truth",
            ),
            (format!(r#"{{"prompt": {turn}}}"#), "prompt", ""),
            (format!(r#"{{"prompt": {turn}, "completion": {turn}}}"#), "prompt", "completion"),
            (r#"{"prompt": "q", "chosen": "c", "rejected": "r"}"#.to_owned(), "prompt", ""),
            (format!(r#"{{"messages": {talk}}}"#), "messages", "messages"),
            (format!(r#"{{"messages": {talk}, "answer": 4}}"#), "messages", "answer"),
            (format!(r#"{{"messages": {turn}}}"#), "messages", ""),
            (
                r#"{"query": "q", "response": "r", "target": "4", "answer": null}"#.to_owned(),
                "query",
                "target",
            ),
            (r#"{"instruction": "q", "output": "r"}"#.to_owned(), "instruction", "output"),
        ] {
            let found = of(&record, GUESS, GUESS).unwrap();
            assert_eq!((found.0.as_str(), found.1.as_str()), (prompt, answer), "{record}");
        }
        let named =
            of(r#"{"question": "q", "problem": "p", "gold": {"x": 1}}"#, "problem", "gold.x");
        assert_eq!(named.unwrap(), ("problem".to_owned(), "gold.x".to_owned()));
        let none = of(r#"{"question": "q", "answer": "p"}"#, GUESS, "").unwrap();
        assert_eq!(none, ("question".to_owned(), String::new()));
    }

    #[test]
    fn what_the_names_do_not_decide_is_an_error() {
        for (record, prompt, answer, says) in [
            (
                r#"{"question": "q", "problem": "p"}"#,
                GUESS,
                "",
                "its prompt may be `question` or `problem`: choose with task.format.prompt\nits columns are question, problem",
            ),
            (
                r#"{"prompt": "q", "answer": "1", "reward_model": {"style": "s", "ground_truth": "p"}}"#,
                GUESS,
                GUESS,
                "its answer may be `answer` or `reward_model.ground_truth`: choose with task.format.answer\nits columns are prompt, answer, reward_model {style, ground_truth}",
            ),
            (
                r#"{"text": "q", "n": 1}"#,
                GUESS,
                GUESS,
                "name that of the prompt with task.format.prompt\nits columns are text, n",
            ),
            (
                r#"{"prompt": "q", "n": 1}"#,
                GUESS,
                "gold",
                "there is no column `gold` (task.format.answer)\nits columns are prompt, n",
            ),
        ] {
            let error = of(record, prompt, answer).unwrap_err();
            assert!(error.is_format() && error.to_string().starts_with("p.jsonl: "), "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
