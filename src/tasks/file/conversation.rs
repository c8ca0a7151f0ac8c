//! The messages of a conversation in a record.

use crate::tasks::json::Json;
use crate::tasks::problem::Message;

/// The role of the model.
pub(super) const ASSISTANT: &str = "assistant";

/// True for a list of messages of which the last is the assistant's.
pub(super) fn ends_with_a_reply(value: &Json) -> bool {
    matches!(messages(value, ""), Ok(Some(all)) if all.last().is_some_and(|last| last.role == ASSISTANT))
}

/// The messages of a list of objects; `None` for anything else.
pub(super) fn messages(value: &Json, name: &str) -> Result<Option<Vec<Message>>, String> {
    let Json::List(items) = value else { return Ok(None) };
    if !matches!(items.first(), Some(Json::Object(_))) {
        return Ok(None);
    }
    items
        .iter()
        .zip(1..)
        .map(|(item, number)| message(item, number, name))
        .collect::<Result<_, _>>()
        .map(Some)
}

fn message(value: &Json, number: usize, name: &str) -> Result<Message, String> {
    let Json::Object(fields) = value else {
        return Err(format!("`{name}`: message {number} is not an object"));
    };
    let Some(Json::Text(role)) = fields.get("role") else {
        return Err(format!("`{name}`: message {number} has no `role`"));
    };
    let content = fields.get("content").and_then(content);
    let content =
        content.ok_or_else(|| format!("`{name}`: message {number} has no text in `content`"))?;
    Ok(Message { role: role.clone(), content })
}

/// The text of a message: a string, or a list of parts that are all text.
fn content(value: &Json) -> Option<String> {
    let piece = |part: &Json| match part {
        Json::Object(fields) => match (fields.get("type"), fields.get("text")) {
            (None, Some(Json::Text(text))) => Some(text.clone()),
            (Some(Json::Text(kind)), Some(Json::Text(text))) if kind == "text" => {
                Some(text.clone())
            }
            _ => None,
        },
        _ => None,
    };
    match value {
        Json::Text(text) => Some(text.clone()),
        Json::List(parts) => parts.iter().map(piece).collect(),
        _ => None,
    }
}
