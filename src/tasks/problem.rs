//! A problem: what the model is given, in parts, and what would be right.

use super::json::Object;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A piece of what a model reads or writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Part {
    /// Text, which a tokenizer turns into ids.
    Text(String),
    /// Ids as the model takes them, for problems that are made of ids and need no tokenizer.
    Tokens(Vec<i32>),
    /// A conversation, which a chat template turns into text.
    Messages(Vec<Message>),
}

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Whose turn it is: `system`, `user`, `assistant`, or what else the model's chat template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Part {
    /// The part as text: ids are written as decimal numbers with blanks between them, messages as their contents, one a line.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Part::Text(text) => Cow::Borrowed(text),
            Part::Tokens(ids) => Cow::Owned(written(ids)),
            Part::Messages(messages) => {
                let contents: Vec<&str> = messages.iter().map(|one| one.content.as_str()).collect();
                Cow::Owned(contents.join("\n"))
            }
        }
    }
}

/// Ids as text: decimal numbers with blanks between them.
pub fn written(ids: &[i32]) -> String {
    ids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ")
}

/// A prompt and the answer that a verifier compares with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A number that names the problem among the training problems of its task: [`Task::by_id`] gives it again.
    ///
    /// [`Task::by_id`]: super::Task::by_id
    pub id: u64,
    /// What the model is given.
    pub parts: Vec<Part>,
    /// The right answer; empty where there is none to compare with.
    pub answer: String,
    /// How hard the task thinks it is; 0 when it does not know. Larger is harder.
    pub level: u32,
    /// The other fields of the record that the problem was read from; empty for problems made in code.
    pub fields: Object,
}

impl Problem {
    /// A problem of one part, of level 0 and without fields.
    pub fn new(id: u64, part: Part, answer: impl Into<String>) -> Problem {
        Problem { id, parts: vec![part], answer: answer.into(), level: 0, fields: Object::new() }
    }

    /// A problem whose prompt is text, of level 0 and without fields.
    pub fn text(id: u64, prompt: impl Into<String>, answer: impl Into<String>) -> Problem {
        Problem::new(id, Part::Text(prompt.into()), answer)
    }

    /// The prompt as text: its parts one after another, each as [`Part::text`] writes it.
    pub fn prompt(&self) -> Cow<'_, str> {
        match &self.parts[..] {
            [part] => part.text(),
            parts => Cow::Owned(parts.iter().map(Part::text).collect()),
        }
    }

    /// The prompt's ids, for a problem whose only part is ids; `None` for any other.
    pub fn tokens(&self) -> Option<&[i32]> {
        match &self.parts[..] {
            [Part::Tokens(ids)] => Some(ids),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_its_parts_in_order() {
        let mut problem = Problem::text(3, "what is ", "7");
        assert_eq!((problem.prompt(), problem.tokens()), ("what is ".into(), None));
        problem.parts.push(Part::Tokens(vec![5, -1]));
        problem.parts.push(Part::Text("?".to_owned()));
        assert_eq!(problem.prompt(), "what is 5 -1?");
        let ids = Problem::new(0, Part::Tokens(vec![1, 2]), "");
        assert_eq!((ids.prompt(), ids.tokens()), ("1 2".into(), Some(&[1, 2][..])));
        let says =
            |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let messages = vec![says("system", "Be brief."), says("user", "2+2?")];
        let chat = Problem::new(0, Part::Messages(messages), "4");
        assert_eq!((chat.prompt(), chat.tokens()), ("Be brief.\n2+2?".into(), None));
    }
}
