//! How a prompt is put to a model that reads text: as it is, inside a text, or as a turn of a conversation.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What stands for the prompt in a text that is written around it.
const PROMPT: &str = "{prompt}";

/// What is made of a prompt. In TOML it is a string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Template {
    /// `auto`: the chat template of the model folder, or the prompt as it is where the folder has none.
    #[default]
    Auto,
    /// `chat`: the chat template of the model folder, which must have one.
    Chat,
    /// `none`: the prompt as it is; of a conversation the contents, one a line.
    Plain,
    /// The path of a chat template (`*.jinja`), in the place of the folder's.
    File(PathBuf),
    /// A text with `{prompt}` in it, which stands for the prompt as [`Template::Plain`] has it.
    Around(String),
}

impl Template {
    /// The prompt with the text of [`Template::Around`] around it; any other template leaves it as it is.
    pub fn around(&self, prompt: &str) -> String {
        match self {
            Template::Around(text) => text.replace(PROMPT, prompt),
            _ => prompt.to_owned(),
        }
    }
}

impl FromStr for Template {
    type Err = Error;

    fn from_str(text: &str) -> Result<Template> {
        Ok(match text {
            "auto" => Template::Auto,
            "chat" => Template::Chat,
            "none" => Template::Plain,
            path if path.ends_with(".jinja") => Template::File(path.into()),
            text if text.contains(PROMPT) => Template::Around(text.to_owned()),
            other => {
                return Err(Error::invalid(format!(
                    "template `{other}` is none of auto, chat, none, a file *.jinja and a text with {PROMPT}"
                )));
            }
        })
    }
}

impl TryFrom<String> for Template {
    type Error = Error;

    fn try_from(text: String) -> Result<Template> {
        text.parse()
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Template::Auto => f.write_str("auto"),
            Template::Chat => f.write_str("chat"),
            Template::Plain => f.write_str("none"),
            Template::File(path) => write!(f, "{}", path.display()),
            Template::Around(text) => f.write_str(text),
        }
    }
}

impl From<Template> for String {
    fn from(template: Template) -> String {
        template.to_string()
    }
}

/// How prompts are put to a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompting {
    /// What is made of each.
    pub template: Template,
    /// What the system says before a conversation that does not begin with a system's turn; empty: nothing.
    pub system: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_says_which() {
        for (text, template) in [
            ("auto", Template::Auto),
            ("chat", Template::Chat),
            ("none", Template::Plain),
            ("a/b.jinja", Template::File("a/b.jinja".into())),
            ("Q: {prompt}\nA:", Template::Around("Q: {prompt}\nA:".into())),
        ] {
            assert_eq!(text.parse::<Template>().unwrap(), template);
            assert_eq!(String::from(template), text);
        }
        let error = "Q: prompt".parse::<Template>().unwrap_err();
        assert!(
            error.is_invalid() && error.to_string().contains("a text with {prompt}"),
            "{error}"
        );
        assert_eq!(Template::Around("Q: {prompt} {prompt}".into()).around("x"), "Q: x x");
    }
}
