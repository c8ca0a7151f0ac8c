//! What a record says: a prompt, and what is written after it.
//!
//! The forms are those of TRL's data sets: `messages`, `prompt` and `completion`, or `text`; `prompt`, `chosen` and
//! `rejected`, where a conversation's prompt may stand inside the other two; `prompt`, `completion` and `label`.

use super::settings::{OfflineColumns, OfflineObjective};
use crate::tasks::file::{self, value_at};
use crate::tasks::json::{Json, Object};
use crate::tasks::{Message, Part};

/// What an objective learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Demonstrations,
    Pairs,
    Labels,
}

impl Wanted {
    pub(super) fn of(objective: &OfflineObjective) -> Wanted {
        match objective {
            OfflineObjective::Sft(_) => Wanted::Demonstrations,
            OfflineObjective::Kto(_) => Wanted::Labels,
            OfflineObjective::Dpo(_) | OfflineObjective::Cpo(_) | OfflineObjective::Orpo(_) => {
                Wanted::Pairs
            }
        }
    }

    fn forms(self) -> &'static str {
        match self {
            Wanted::Demonstrations => "`messages`, `prompt` and `completion`, or `text`",
            Wanted::Pairs => "`prompt`, `chosen` and `rejected`",
            Wanted::Labels => {
                "`prompt`, `completion` and `label`, or `prompt`, `chosen` and `rejected`"
            }
        }
    }
}

/// A prompt and what is written after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// `None`: running text, of which everything is learned.
    pub prompt: Option<Part>,
    /// One, or the chosen and the rejected one.
    pub replies: Vec<Part>,
    /// It is desirable.
    pub label: bool,
}

/// The role whose turns are learned.
pub(super) const ASSISTANT: &str = "assistant";

/// What a record says; of a pair where labels are wanted, two completions.
///
/// # Errors
/// What is missing or wrong.
pub(super) fn written(
    fields: &Object,
    columns: &OfflineColumns,
    wanted: Wanted,
) -> Result<Vec<Written>, String> {
    let own = |column: &str| value_at(fields, column).filter(|value| **value != Json::Null);
    let (prompt, completion) = (own(&columns.prompt), own(&columns.completion));
    let pair = (own(&columns.chosen), own(&columns.rejected));
    match (wanted, pair) {
        (Wanted::Demonstrations, _) => {
            if let Some(value) = own(&columns.messages) {
                return Ok(vec![conversation(value, &columns.messages)?]);
            }
            if let (Some(prompt), Some(completion)) = (prompt, completion) {
                return Ok(vec![answered(prompt, completion, columns)?]);
            }
            if let Some(value) = own(&columns.text) {
                let reply = part(value, &columns.text)?;
                return match reply {
                    Part::Messages(_) => Err(format!("`{}` is no text", columns.text)),
                    reply => Ok(vec![Written { prompt: None, replies: vec![reply], label: true }]),
                };
            }
        }
        (Wanted::Pairs, (Some(chosen), Some(rejected))) => {
            return Ok(vec![preference(prompt, chosen, rejected, columns)?]);
        }
        (Wanted::Labels, (Some(chosen), Some(rejected))) => {
            let Written { prompt, replies, .. } = preference(prompt, chosen, rejected, columns)?;
            let one =
                |(reply, label)| Written { prompt: prompt.clone(), replies: vec![reply], label };
            return Ok(replies.into_iter().zip([true, false]).map(one).collect());
        }
        (Wanted::Labels, _) => {
            let label = own(&columns.label);
            if let (Some(prompt), Some(completion), Some(label)) = (prompt, completion, label) {
                let label = truth(label)
                    .ok_or_else(|| format!("`{}` is {label}, not true or false", columns.label))?;
                return Ok(vec![Written { label, ..answered(prompt, completion, columns)? }]);
            }
        }
        (Wanted::Pairs, _) => {}
    }
    let names: Vec<&str> = fields.keys().map(String::as_str).take(8).collect();
    let preferences = pair.0.is_some() && pair.1.is_some();
    let advice = match wanted {
        Wanted::Demonstrations if preferences => {
            "; it is a preference, which the recipes dpo, orpo and kto learn from"
        }
        _ => "",
    };
    Err(format!("wanted are {}; it has {}{advice}", wanted.forms(), names.join(", ")))
}

/// A prompt or a completion; a number is its digits.
fn part(value: &Json, name: &str) -> Result<Part, String> {
    match value {
        Json::Number(digits) => Ok(text(digits)),
        value => file::part(value.clone(), name),
    }
}

fn truth(value: &Json) -> Option<bool> {
    match value {
        Json::Bool(label) => Some(*label),
        Json::Number(text) | Json::Text(text) => match text.to_ascii_lowercase().as_str() {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// A conversation: everything from the assistant's first turn on is written after the prompt.
fn conversation(value: &Json, name: &str) -> Result<Written, String> {
    let Part::Messages(mut prompt) = part(value, name)? else {
        return Err(format!("`{name}` is not a list of messages"));
    };
    let Some(first) = prompt.iter().position(|message| message.role == ASSISTANT) else {
        return Err(format!("`{name}` has no turn of the assistant"));
    };
    if first == 0 {
        return Err(format!("`{name}` begins with a turn of the assistant"));
    }
    let replies = vec![Part::Messages(prompt.split_off(first))];
    Ok(Written { prompt: Some(Part::Messages(prompt)), replies, label: true })
}

fn answered(prompt: &Json, completion: &Json, columns: &OfflineColumns) -> Result<Written, String> {
    let prompt = part(prompt, &columns.prompt)?;
    let replies = vec![reply(completion, &columns.completion)?];
    Ok(Written { prompt: Some(prompt), replies, label: true })
}

/// A completion. Messages must have a turn of the assistant.
fn reply(value: &Json, name: &str) -> Result<Part, String> {
    let reply = part(value, name)?;
    match &reply {
        Part::Messages(all) if all.iter().all(|one| one.role != ASSISTANT) => {
            Err(format!("`{name}` has no turn of the assistant"))
        }
        _ => Ok(reply),
    }
}

/// A pair. What both completions begin with is the prompt, where there is none of their form or both repeat it.
fn preference(
    prompt: Option<&Json>,
    chosen: &Json,
    rejected: &Json,
    columns: &OfflineColumns,
) -> Result<Written, String> {
    let chosen = reply(chosen, &columns.chosen)?;
    let rejected = reply(rejected, &columns.rejected)?;
    let prompt = prompt.map(|value| part(value, &columns.prompt)).transpose()?;
    let both = format!("`{}` and `{}`", columns.chosen, columns.rejected);
    let (prompt, chosen, rejected) = match (prompt, chosen, rejected) {
        (Some(Part::Messages(prompt)), Part::Messages(mut a), Part::Messages(mut b)) => {
            if a.starts_with(&prompt) && b.starts_with(&prompt) {
                (a, b) = (a.split_off(prompt.len()), b.split_off(prompt.len()));
            }
            (Part::Messages(prompt), Part::Messages(a), Part::Messages(b))
        }
        (_, Part::Messages(mut a), Part::Messages(mut b)) => {
            let shared = shared_turns(&a, &b);
            let prompt = a[..shared].to_vec();
            (a, b) = (a.split_off(shared), b.split_off(shared));
            (Part::Messages(prompt), Part::Messages(a), Part::Messages(b))
        }
        (Some(prompt), a, b) => (prompt, a, b),
        (None, Part::Text(a), Part::Text(b)) => {
            let shared = shared_text(&a, &b);
            let (prompt, a_rest) = a.split_at(shared);
            (text(prompt), text(a_rest), text(&b[shared..]))
        }
        (None, ..) => return Err(format!("no `{}`, and {both} are no texts", columns.prompt)),
    };
    let nothing = |part: &Part| match part {
        Part::Text(text) => text.is_empty(),
        Part::Tokens(ids) => ids.is_empty(),
        Part::Messages(all) => all.is_empty(),
    };
    if nothing(&prompt) {
        return Err(format!("there is no `{}`, and {both} begin alike nowhere", columns.prompt));
    }
    if nothing(&chosen) || nothing(&rejected) {
        return Err(format!("one of {both} is nothing but the prompt"));
    }
    if chosen == rejected {
        return Err(format!("{both} are the same"));
    }
    Ok(Written { prompt: Some(prompt), replies: vec![chosen, rejected], label: true })
}

fn text(text: &str) -> Part {
    Part::Text(text.to_owned())
}

/// The turns that two conversations begin with alike.
fn shared_turns(a: &[Message], b: &[Message]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The bytes that two texts begin with alike; a blank before the first difference belongs to the completions.
fn shared_text(a: &str, b: &str) -> usize {
    let shared = a.char_indices().zip(b.chars()).take_while(|((_, a), b)| a == b).last();
    match shared {
        None => 0,
        Some(((at, ' '), _)) => at,
        Some(((at, last), _)) => at + last.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, wanted: Wanted) -> Result<Vec<Written>, String> {
        let Json::Object(fields) = Json::parse(text).unwrap() else { unreachable!() };
        written(&fields, &OfflineColumns::default(), wanted)
    }

    fn says(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    fn one(prompt: Part, replies: &[Part], label: bool) -> Written {
        Written { prompt: Some(prompt), replies: replies.to_vec(), label }
    }

    const Q: &str = r#"{"role": "user", "content": "q"}"#;
    const A: &str = r#"{"role": "assistant", "content": "a"}"#;
    const B: &str = r#"{"role": "assistant", "content": "b"}"#;

    #[test]
    fn demonstrations() {
        let turns = |list: &[(&str, &str)]| {
            Part::Messages(list.iter().map(|(role, text)| says(role, text)).collect())
        };
        let (q, a) = (turns(&[("user", "q")]), turns(&[("assistant", "a")]));
        let wanted = Wanted::Demonstrations;
        assert_eq!(
            of(&format!(r#"{{"messages": [{Q}, {A}, {Q}, {B}]}}"#), wanted).unwrap(),
            [one(
                q.clone(),
                &[turns(&[("assistant", "a"), ("user", "q"), ("assistant", "b")])],
                true
            )]
        );
        assert_eq!(
            of(r#"{"prompt": "q", "completion": "a", "text": "t"}"#, wanted).unwrap(),
            [one(text("q"), &[text("a")], true)]
        );
        assert_eq!(
            of(&format!(r#"{{"prompt": [{Q}], "completion": [{A}]}}"#), wanted).unwrap(),
            [one(q, &[a], true)]
        );
        assert_eq!(of(r#"{"text": "t"}"#, wanted).unwrap()[0].prompt, None);
        let number = of(r#"{"prompt": "q", "completion": 1.50}"#, wanted).unwrap();
        assert_eq!(number[0].replies, [text("1.50")]);
        for (text, says) in [
            (
                r#"{"prompt": "q"}"#,
                "wanted are `messages`, `prompt` and `completion`, or `text`; it has prompt",
            ),
            (r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#, "the recipes dpo, orpo and kto"),
            (r#"{"messages": [{"role": "user", "content": "q"}]}"#, "no turn of the assistant"),
            (r#"{"messages": "q"}"#, "not a list of messages"),
            (r#"{"prompt": "q", "completion": ""}"#, "`completion` is empty"),
        ] {
            let error = of(text, wanted).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn preferences() {
        let q = Part::Messages(vec![says("user", "q")]);
        let (a, b) = (
            Part::Messages(vec![says("assistant", "a")]),
            Part::Messages(vec![says("assistant", "b")]),
        );
        let same = [one(q, &[a, b], true)];
        for text in [
            format!(r#"{{"prompt": [{Q}], "chosen": [{A}], "rejected": [{B}]}}"#),
            format!(r#"{{"chosen": [{Q}, {A}], "rejected": [{Q}, {B}]}}"#),
            format!(r#"{{"prompt": "q", "chosen": [{Q}, {A}], "rejected": [{Q}, {B}]}}"#),
            format!(r#"{{"prompt": [{Q}], "chosen": [{Q}, {A}], "rejected": [{Q}, {B}]}}"#),
        ] {
            assert_eq!(of(&text, Wanted::Pairs).unwrap(), same, "{text}");
        }
        assert_eq!(
            of(r#"{"chosen": "Sky: is blue", "rejected": "Sky: is red"}"#, Wanted::Pairs).unwrap(),
            [one(text("Sky: is"), &[text(" blue"), text(" red")], true)]
        );
        for (text, says) in [
            (r#"{"prompt": "q", "chosen": "a"}"#, "wanted are `prompt`, `chosen` and `rejected`"),
            (r#"{"prompt": "q", "chosen": "a", "rejected": "a"}"#, "are the same"),
            (r#"{"chosen": "a", "rejected": "b"}"#, "begin alike nowhere"),
            (r#"{"chosen": "a", "rejected": "ab"}"#, "nothing but the prompt"),
        ] {
            let error = of(text, Wanted::Pairs).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn labels() {
        let labelled =
            |label: &str| format!(r#"{{"prompt": "q", "completion": "a", "label": {label}}}"#);
        for (label, wanted) in [("true", true), ("0", false), ("\"True\"", true)] {
            let read = of(&labelled(label), Wanted::Labels).unwrap();
            assert_eq!(read, [one(text("q"), &[text("a")], wanted)]);
        }
        assert!(
            of(&labelled("\"good\""), Wanted::Labels).unwrap_err().contains("not true or false")
        );
        let pair =
            of(r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#, Wanted::Labels).unwrap();
        assert_eq!(pair, [one(text("q"), &[text("a")], true), one(text("q"), &[text("b")], false)]);
    }
}
