//! The lines that go to a program and come back: one JSON object each.

use crate::tasks::json::{Json, Object};
use crate::tasks::judgement::{Extent, Fault, Judgement, Label, StepVerdict};
use crate::tasks::problem::Problem;
use crate::tasks::steps::Segmented;
use crate::tasks::verifier::Attempt;
use serde_json::{Map, Value};

/// Fields of a request that are not the record's. A record's field of one of these names is under `record`.
const OURS: [&str; 7] = ["id", "prompt", "completion", "answer", "truncated", "steps", "record"];

/// The line that asks for a judgement. `steps`: where the steps are that a verdict is wanted about.
pub(super) fn request(
    id: u64,
    problem: &Problem,
    attempt: &Attempt<'_>,
    steps: Option<&Segmented>,
) -> Vec<u8> {
    let mut object = Object::new();
    let mut put = |name: &str, value: Json| object.insert(name.to_owned(), value);
    let string = |text: &str| Json::Text(text.to_owned());
    put("id", Json::Number(id.to_string()));
    put("prompt", string(&problem.prompt()));
    put("completion", string(attempt.text));
    put("answer", string(&problem.answer));
    put("truncated", Json::Bool(attempt.truncated));
    if let Some(parts) = steps {
        let text =
            |range: &std::ops::Range<usize>| attempt.text.get(range.clone()).unwrap_or_default();
        let steps = parts.steps.iter().map(|step| string(text(&step.body).trim()));
        put("steps", Json::List(steps.collect()));
    }
    let mut record = Object::new();
    for (name, value) in &problem.fields {
        if OURS.contains(&name.as_str()) {
            record.insert(name.clone(), value.clone());
        } else {
            put(name, value.clone());
        }
    }
    if !record.is_empty() {
        put("record", Json::Object(record));
    }
    let mut line = Json::Object(object).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The object of a line and the id that it answers.
///
/// # Errors
/// What is wrong with a line that answers nothing.
pub(super) fn reply(line: &[u8]) -> Result<(u64, Map<String, Value>), Fault> {
    let text = std::str::from_utf8(line).map_err(|_| Fault::NotJson)?;
    let value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => serde_json::from_str(&quoted(text)).map_err(|_| Fault::NotJson)?,
    };
    let Value::Object(object) = value else { return Err(Fault::NotJson) };
    match object.get("id").and_then(Value::as_u64) {
        Some(id) => Ok((id, object)),
        None => Err(Fault::UnknownId),
    }
}

/// What is expected of an answer.
pub(super) struct Expected<'a> {
    /// The names of the rewards.
    pub(super) rewards: &'a [String],
    /// It must have a label.
    pub(super) label: bool,
    /// It must have a verdict about each of these steps.
    pub(super) steps: Option<&'a Segmented>,
}

/// The judgement of an answer.
///
/// # Errors
/// What is wrong with it, and in words.
pub(super) fn judgement(
    answer: &Map<String, Value>,
    expected: &Expected<'_>,
) -> Result<Judgement, (Fault, String)> {
    let rewards = rewards(answer, expected.rewards)?;
    let label = match answer.get("label") {
        None | Some(Value::Null) if expected.label => return malformed("no `label`"),
        None | Some(Value::Null) => None,
        Some(value) => match value.as_str() {
            Some("right") => Some(Label::Right),
            Some("wrong") => Some(Label::Wrong),
            Some("refused") => Some(Label::Refused),
            _ => {
                return malformed(format!(
                    "`label` is {}, not right, wrong or refused",
                    short(value)
                ));
            }
        },
    };
    let judgement = Judgement { rewards, label, ..Judgement::default() };
    let Some(parts) = expected.steps else {
        return match answer.get("steps") {
            None | Some(Value::Null) => Ok(judgement),
            Some(_) => malformed("`steps` that nobody asked for (task.verifier.steps)"),
        };
    };
    Ok(Judgement {
        steps: steps(answer, parts)?,
        markup: parts.markup.iter().cloned().map(Extent::Text).collect(),
        answer: parts.answer.clone().map(Extent::Text),
        ..judgement
    })
}

fn rewards(answer: &Map<String, Value>, names: &[String]) -> Result<Vec<f32>, (Fault, String)> {
    match (answer.get("reward"), answer.get("rewards"), names) {
        (Some(reward), None, [_]) => Ok(vec![number(reward, "reward")?]),
        (Some(_), None, _) => {
            malformed(format!("one `reward`, but there are {}", names.join(", ")))
        }
        (None, Some(Value::Object(rewards)), _) => {
            if let Some(name) = rewards.keys().find(|name| !names.contains(name)) {
                return malformed(format!("a reward `{name}`; there are {}", names.join(", ")));
            }
            let of = |name: &String| match rewards.get(name) {
                Some(reward) => number(reward, name),
                None => malformed(format!("no reward `{name}`")),
            };
            names.iter().map(of).collect()
        }
        (None, Some(_), _) => malformed("`rewards` is not an object of numbers by name"),
        (None, None, _) => malformed("neither `reward` nor `rewards`"),
        (Some(_), Some(_), _) => malformed("both `reward` and `rewards`"),
    }
}

fn steps(
    answer: &Map<String, Value>,
    parts: &Segmented,
) -> Result<Vec<StepVerdict>, (Fault, String)> {
    let verdicts: &[Value] = match answer.get("steps") {
        Some(Value::Array(verdicts)) => verdicts,
        None if parts.steps.is_empty() => &[],
        _ => return malformed("no list `steps`"),
    };
    if verdicts.len() != parts.steps.len() {
        return malformed(format!("{} verdicts for {} steps", verdicts.len(), parts.steps.len()));
    }
    let mut judged = Vec::new();
    for (step, verdict) in parts.steps.iter().zip(verdicts) {
        let score = match verdict {
            Value::Null => continue,
            Value::Bool(supported) => f32::from(u8::from(*supported)),
            value => number(value, "steps")?,
        };
        let [opening, body] = [&step.opening, &step.body].map(|range| Extent::Text(range.clone()));
        judged.push(StepVerdict { opening, body, score });
    }
    Ok(judged)
}

fn number(value: &Value, name: &str) -> Result<f32, (Fault, String)> {
    match value {
        Value::Null => Err((Fault::NotFinite, format!("`{name}` is null"))),
        Value::String(text) if text == NOT_FINITE => {
            Err((Fault::NotFinite, format!("`{name}` is NaN or infinite")))
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN) as f32;
            let finite = number.is_finite().then_some(number);
            finite.ok_or_else(|| (Fault::NotFinite, format!("`{name}` is {}", short(value))))
        }
        _ => malformed(format!("`{name}` is {}, not a number", short(value))),
    }
}

fn malformed<T>(what: impl Into<String>) -> Result<T, (Fault, String)> {
    Err((Fault::Malformed, what.into()))
}

/// A value as it is shown in a message.
fn short(value: &Value) -> String {
    shortened(&value.to_string())
}

/// The first characters of a text.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// The words for numbers that are not finite, which Python and JavaScript write although JSON has none.
const WORDS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
/// The string that stands for any of them in a value.
const NOT_FINITE: &str = "NaN";

/// The text with a string in place of every word for a number that is not finite. Strings are left alone.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        let word = WORDS.into_iter().find(|word| !in_string && rest.starts_with(word));
        if let Some(word) = word {
            out.extend(["\"", NOT_FINITE, "\""]);
            rest = &rest[word.len()..];
            continue;
        }
        let escaped = in_string && c == '\\';
        let taken: usize = rest.chars().take(1 + usize::from(escaped)).map(char::len_utf8).sum();
        in_string ^= c == '"';
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::steps::{Segmentation, segment};
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_request_is_one_line_with_the_records_fields() {
        let record = r#"{"id": "a7", "facts": ["é\n"], "record": 3, "n": 36893488147419103232}"#;
        let Ok(Json::Object(fields)) = Json::parse(record) else { panic!() };
        let problem = Problem { fields, ..Problem::text(0, "2+2?\n", "4") };
        let text = "1. two\n2. more\n\\boxed{4}";
        let parts = segment(text, Segmentation::Numbered);
        let attempt = Attempt::one_shot(text, &[7], true);
        let line = request(12, &problem, &attempt, Some(&parts));
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(line.last(), Some(&b'\n'));
        assert!(String::from_utf8(line.clone()).unwrap().contains("\"n\":36893488147419103232"));
        let mut sent: Value = serde_json::from_slice(&line).unwrap();
        sent.as_object_mut().unwrap().remove("n");
        let expected = json!({
            "id": 12, "prompt": "2+2?\n", "completion": text, "answer": "4", "truncated": true, "steps": ["two", "more"],
            "facts": ["é\n"], "record": {"id": "a7", "record": 3},
        });
        assert_eq!(sent, expected);
        let bare = request(0, &Problem::text(0, "q", ""), &Attempt::one_shot("", &[], false), None);
        let expected =
            "{\"id\":0,\"prompt\":\"q\",\"completion\":\"\",\"answer\":\"\",\"truncated\":false}\n";
        assert_eq!(String::from_utf8(bare).unwrap(), expected);
    }

    fn judged(
        text: &str,
        names: &[&str],
        label: bool,
        steps: Option<&Segmented>,
    ) -> Result<Judgement, Fault> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let (id, answer) = reply(text.as_bytes())?;
        assert_eq!(id, 3);
        let expected = Expected { rewards: &names, label, steps };
        judgement(&answer, &expected).map_err(|(fault, _)| fault)
    }

    #[test]
    fn answers() {
        use Fault::{Malformed, NotFinite, NotJson, UnknownId};
        let reward = |text: &str| judged(text, &["reward"], false, None).map(|one| one.rewards[0]);
        for (text, expected) in [
            (r#"{"id": 3, "reward": 0.5}"#, Ok(0.5)),
            (r#"{"reward": -2, "id": 3, "why": "because"}"#, Ok(-2.0)),
            (r#"{"id": 3, "rewards": {"reward": 1}}"#, Ok(1.0)),
            (r#"{"id": 3, "reward": NaN}"#, Err(NotFinite)),
            (r#"{"id": 3, "reward": -Infinity, "why": "a \"NaN\\"}"#, Err(NotFinite)),
            (r#"{"id": 3, "reward": null}"#, Err(NotFinite)),
            (r#"{"id": 3, "reward": 1e300}"#, Err(NotFinite)),
            (r#"{"id": 3, "reward": "1"}"#, Err(Malformed)),
            (r#"{"id": 3, "reward": true}"#, Err(Malformed)),
            (r#"{"id": 3}"#, Err(Malformed)),
            (r#"{"id": 3, "reward": 1, "rewards": {"reward": 1}}"#, Err(Malformed)),
            (r#"{"id": 3, "rewards": [1]}"#, Err(Malformed)),
            (r#"{"id": 3, "rewards": {}}"#, Err(Malformed)),
            (r#"{"id": 3, "rewards": {"reward": 1, "other": 1}}"#, Err(Malformed)),
            (r#"{"id": 3, "reward": 1, "label": "fine"}"#, Err(Malformed)),
            (r#"{"id": 3, "reward": 1, "steps": []}"#, Err(Malformed)),
            (r#"{"reward": 1}"#, Err(UnknownId)),
            (r#"{"id": "3", "reward": 1}"#, Err(UnknownId)),
            (r#"{"id": -1, "reward": 1}"#, Err(UnknownId)),
            (r#"[3]"#, Err(NotJson)),
            (r#"3"#, Err(NotJson)),
            (r#"loading NaN"#, Err(NotJson)),
            (r#"{"id": 3, "reward": 1"#, Err(NotJson)),
            ("", Err(NotJson)),
        ] {
            assert_eq!(reward(text), expected, "{text}");
        }
        assert_eq!(reply(b"{\"id\": 3, \"a\": \"\xff\"}").unwrap_err(), NotJson);
        let two = |text: &str| judged(text, &["a", "b"], false, None).map(|one| one.rewards);
        assert_eq!(two(r#"{"id": 3, "rewards": {"b": 2, "a": 1}}"#), Ok(vec![1.0, 2.0]));
        assert_eq!(two(r#"{"id": 3, "rewards": {"a": 1}}"#), Err(Malformed));
        assert_eq!(two(r#"{"id": 3, "reward": 1}"#), Err(Malformed));
    }

    #[test]
    fn labels() {
        let label = |text: &str, wanted| judged(text, &["r"], wanted, None).map(|one| one.label);
        for (word, expected) in
            [("right", Label::Right), ("wrong", Label::Wrong), ("refused", Label::Refused)]
        {
            let text = format!("{{\"id\": 3, \"reward\": 0, \"label\": \"{word}\"}}");
            assert_eq!(label(&text, true), Ok(Some(expected)));
        }
        assert_eq!(label(r#"{"id": 3, "reward": 0}"#, false), Ok(None));
        assert_eq!(label(r#"{"id": 3, "reward": 0, "label": null}"#, true), Err(Fault::Malformed));
    }

    #[test]
    fn verdicts_about_steps() {
        let text = "<step>a</step><step>b</step><step>c</step> 4";
        let parts = segment(text, Segmentation::Tags);
        let of = |text: &str| judged(text, &["r"], false, Some(&parts));
        let one = of(r#"{"id": 3, "reward": 0, "steps": [true, null, -0.5]}"#).unwrap();
        let seen: Vec<(Extent, f32)> =
            one.steps.iter().map(|s| (s.body.clone(), s.score)).collect();
        assert_eq!(seen, [(Extent::Text(6..7), 1.0), (Extent::Text(34..35), -0.5)]);
        assert_eq!(one.steps[1].opening, Extent::Text(28..34));
        assert_eq!((one.markup.len(), one.answer), (3, Some(Extent::Text(42..44))));
        let none = segment("4", Segmentation::Tags);
        let bare = judged(r#"{"id": 3, "reward": 0}"#, &["r"], false, Some(&none)).unwrap();
        assert!(bare.steps.is_empty());
        for (wrong, fault) in [
            (r#"{"id": 3, "reward": 0}"#, Fault::Malformed),
            (r#"{"id": 3, "reward": 0, "steps": [true]}"#, Fault::Malformed),
            (r#"{"id": 3, "reward": 0, "steps": [true, true, "b"]}"#, Fault::Malformed),
            (r#"{"id": 3, "reward": 0, "steps": [true, true, NaN]}"#, Fault::NotFinite),
            (r#"{"id": 3, "reward": 0, "steps": {"0": true}}"#, Fault::Malformed),
        ] {
            assert_eq!(of(wrong), Err(fault), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60), text in "\\PC{0,60}") {
            let _ = reply(&bytes);
            let _ = reply(text.as_bytes());
            let whole = json!({"id": 1, "text": text}).to_string();
            prop_assert_eq!(quoted(&whole), whole.clone(), "strings are left alone");
            prop_assert_eq!(reply(whole.as_bytes()).map(|(id, _)| id), Ok(1));
        }
    }
}
