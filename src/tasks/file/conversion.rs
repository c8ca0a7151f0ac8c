//! A record as a problem.

use super::columns::Columns;
use super::conversation::{ASSISTANT, messages};
use super::records::value_at;
use crate::tasks::json::{Json, Object};
use crate::tasks::problem::{Part, Problem};

/// The problem of a record. The columns of prompt and answer are taken out of its fields; a value inside an object stays there.
///
/// # Errors
/// What is wrong with the record.
pub(super) fn problem(mut fields: Object, columns: &Columns) -> Result<Problem, String> {
    let Columns { prompt, answer } = columns;
    for name in [prompt, answer].into_iter().filter(|name| !name.is_empty()) {
        if value_at(&fields, name).is_none() {
            let names: Vec<&str> = fields.keys().map(String::as_str).take(8).collect();
            return Err(format!("no field `{name}` (it has {})", names.join(", ")));
        }
    }
    let given = value_at(&fields, prompt).cloned().unwrap_or(Json::Null);
    let mut part = part(given, prompt)?;
    let last = last_reply(&mut part, prompt, columns)?;
    let known = match answer.as_str() {
        "" => String::new(),
        name if name == prompt => {
            last.ok_or_else(|| format!("the last message of `{prompt}` is not the assistant's"))?
        }
        name => reference(value_at(&fields, name), name)?,
    };
    for name in [prompt, answer] {
        fields.shift_remove(name);
    }
    Ok(Problem { fields, ..Problem::new(0, part, known) })
}

/// Takes a reply at the end of a whole conversation away: the policy must not read it. A column `prompt` holds prompts, and
/// a reply that it ends with is one to go on with, unless it is named as the answer.
fn last_reply(part: &mut Part, column: &str, columns: &Columns) -> Result<Option<String>, String> {
    let Part::Messages(all) = part else { return Ok(None) };
    if column == "prompt" && columns.answer != column {
        return Ok(None);
    }
    let reply = all.pop_if(|last| last.role == ASSISTANT).map(|last| last.content);
    if all.is_empty() {
        return Err(format!("`{column}` has no message but the reply"));
    }
    Ok(reply)
}

/// A string, a list of messages or a list of token ids, `name` its column.
///
/// # Errors
/// What is wrong with it.
pub fn part(value: Json, name: &str) -> Result<Part, String> {
    match value {
        Json::Text(text) if text.is_empty() => Err(format!("`{name}` is empty")),
        Json::Text(text) => Ok(Part::Text(text)),
        Json::List(items) if items.is_empty() => Err(format!("`{name}` is empty")),
        list => match messages(&list, name)? {
            Some(messages) => Ok(Part::Messages(messages)),
            None => tokens(&list, name),
        },
    }
}

fn tokens(value: &Json, name: &str) -> Result<Part, String> {
    let Json::List(ids) = value else {
        return Err(format!("`{name}` is not a string, a list of messages or a list of token ids"));
    };
    let id = |value: &Json| match value {
        Json::Number(text) => text.parse::<i32>().ok().filter(|id| *id >= 0),
        _ => None,
    };
    let ids = ids
        .iter()
        .map(|value| id(value).ok_or_else(|| format!("`{name}`: {value} is not a token id")));
    ids.collect::<Result<_, _>>().map(Part::Tokens)
}

/// A reference: a string, a number with its digits, or a reply.
fn reference(value: Option<&Json>, name: &str) -> Result<String, String> {
    match value {
        Some(Json::Text(text) | Json::Number(text)) => return Ok(text.clone()),
        Some(list @ Json::List(_)) => {
            if let [reply] = messages(list, name)?.as_deref().unwrap_or_default() {
                return Ok(reply.content.clone());
            }
        }
        _ => {}
    }
    Err(format!("`{name}` is not a string, a number or a single reply"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::problem::Message;

    fn of(record: &str, prompt: &str, answer: &str) -> Result<Problem, String> {
        let Json::Object(fields) = Json::parse(record).unwrap() else { unreachable!() };
        let columns = Columns { prompt: prompt.to_owned(), answer: answer.to_owned() };
        problem(fields, &columns)
    }

    fn said(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn prompts_of_every_kind() {
        let text =
            of(r#"{"q": "a", "a": 36893488147419103232, "x": 0.10000000000000000555}"#, "q", "a")
                .unwrap();
        assert_eq!((&*text.prompt(), text.answer.as_str()), ("a", "36893488147419103232"));
        assert_eq!(text.fields["x"].to_string(), "0.10000000000000000555");
        let ids = of(r#"{"q": [5, 0, 7], "a": "b"}"#, "q", "a").unwrap();
        assert_eq!(ids.tokens(), Some(&[5, 0, 7][..]));
        let talk = r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]},
            {"role": "assistant", "content": "r", "name": null}], "answer": 4}"#;
        for (answer, known) in [("messages", "r"), ("answer", "4"), ("", "")] {
            let problem = of(talk, "messages", answer).unwrap();
            assert_eq!(
                problem.parts,
                [Part::Messages(vec![said("system", "s"), said("user", "u")])]
            );
            assert_eq!(problem.answer, known);
            assert_eq!(problem.fields.contains_key("answer"), answer != "answer");
        }
        let prefilled = talk.replace("messages", "prompt");
        let Part::Messages(all) = &of(&prefilled, "prompt", "answer").unwrap().parts[0] else {
            unreachable!()
        };
        assert_eq!(all.last(), Some(&said("assistant", "r")));
        let nested = r#"{"prompt": "p", "reward_model": {"ground_truth": "7", "style": "rule"}}"#;
        let nested = of(nested, "prompt", "reward_model.ground_truth").unwrap();
        assert_eq!(nested.answer, "7");
        assert_eq!(
            nested.fields["reward_model"].to_string(),
            r#"{"ground_truth":"7","style":"rule"}"#
        );
        let reply =
            of(r#"{"p": "x", "c": [{"role": "assistant", "content": "r"}]}"#, "p", "c").unwrap();
        assert_eq!(reply.answer, "r");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (record, says) in [
            (r#"{"p": "a"}"#, "no field `a` (it has p)"),
            (
                r#"{"p": 7, "a": 1}"#,
                "`p` is not a string, a list of messages or a list of token ids",
            ),
            (r#"{"p": {"x": 1}, "a": 1}"#, "`p` is not a string"),
            (r#"{"p": "", "a": 1}"#, "`p` is empty"),
            (r#"{"p": [], "a": 1}"#, "`p` is empty"),
            (r#"{"p": [1, -1], "a": 1}"#, "`p`: -1 is not a token id"),
            (r#"{"p": [1.5], "a": 1}"#, "`p`: 1.5 is not a token id"),
            (r#"{"p": [2147483648], "a": 1}"#, "`p`: 2147483648 is not a token id"),
            (r#"{"p": [{"role": "user"}], "a": 1}"#, "`p`: message 1 has no text in `content`"),
            (
                r#"{"p": [{"role": "user", "content": "x"}, 3], "a": 1}"#,
                "`p`: message 2 is not an object",
            ),
            (r#"{"p": [{"content": "x"}], "a": 1}"#, "`p`: message 1 has no `role`"),
            (
                r#"{"p": [{"role": "user", "content": [{"type": "image", "text": "x"}]}], "a": 1}"#,
                "message 1 has no text in `content`",
            ),
            (
                r#"{"p": [{"role": "assistant", "content": "x"}], "a": 1}"#,
                "`p` has no message but the reply",
            ),
            (r#"{"p": "x", "a": null}"#, "`a` is not a string, a number or a single reply"),
            (r#"{"p": "x", "a": [1]}"#, "`a` is not a string, a number or a single reply"),
        ] {
            let fault = of(record, "p", "a").unwrap_err();
            assert!(fault.contains(says), "{record}: {fault}");
        }
        let unanswered = of(r#"{"p": [{"role": "user", "content": "x"}]}"#, "p", "p").unwrap_err();
        assert_eq!(unanswered, "the last message of `p` is not the assistant's");
    }
}
