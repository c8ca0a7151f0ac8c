//! Prompts of text as ids: as they are, inside a text, or as a conversation in the form of the model's chat template.

use crate::error::{Error, Result};
use crate::tasks::Part;
use crate::tasks::problem::Message;
use crate::tasks::template::{Prompting, Template};
use crate::text::{ChatTemplate, Tokenizer};
use std::collections::BTreeMap;
use std::path::Path;

/// A tokenizer, and what is made of a prompt before it is encoded.
pub struct TextCodec {
    tokenizer: Tokenizer,
    form: Form,
}

enum Form {
    /// The prompt as it is. Messages are an error unless the settings ask for it.
    Plain {
        messages: bool,
    },
    /// The prompt inside a text.
    Around(Template),
    Chat {
        template: Box<ChatTemplate>,
        system: String,
    },
}

impl TextCodec {
    /// Prompts as they are.
    pub fn plain(tokenizer: Tokenizer) -> TextCodec {
        TextCodec { tokenizer, form: Form::Plain { messages: true } }
    }

    /// Prompts as the settings have them put. `date` is the day that a chat template is told; none: that of the call.
    ///
    /// # Errors
    /// [`Error::is_invalid`] where a chat template is asked for, or something said to it, and there is none; [`Error::is_io`]
    /// and [`Error::is_format`] for one that cannot be read.
    pub fn new(
        tokenizer: Tokenizer,
        prompting: &Prompting,
        date: Option<&str>,
    ) -> Result<TextCodec> {
        let (tokenizer, found) = match &prompting.template {
            Template::Plain | Template::Around(_) => (tokenizer, None),
            Template::Auto | Template::Chat => {
                let found = tokenizer.chat_template()?;
                (tokenizer, found)
            }
            Template::File(path) => {
                let place = path.display().to_string();
                let tokenizer = tokenizer.with_chat_template(&read(path)?, &place)?;
                let found = tokenizer.chat_template()?;
                (tokenizer, found)
            }
        };
        let form = match (found, &prompting.template) {
            (Some(template), _) => {
                let template = match date {
                    Some(date) => template.dated(date).map_err(|e| e.at("model.date"))?,
                    None => template,
                };
                Form::Chat { template: Box::new(template), system: prompting.system.clone() }
            }
            (None, Template::Chat) => {
                return Err(Error::invalid("the model folder has no chat template"));
            }
            (None, _) if !prompting.system.is_empty() => {
                return Err(Error::invalid(
                    "what the system says needs a chat template: the model folder has none, or the settings use none",
                ));
            }
            (None, around @ Template::Around(_)) => Form::Around(around.clone()),
            (None, template) => Form::Plain { messages: *template == Template::Plain },
        };
        Ok(TextCodec { tokenizer, form })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template and what the system says before a conversation, where prompts are turns of one.
    pub fn chat(&self) -> Option<(&ChatTemplate, &str)> {
        match &self.form {
            Form::Chat { template, system } => Some((template, system)),
            Form::Plain { .. } | Form::Around(_) => None,
        }
    }

    /// The ids of a prompt. One that has ids among its parts is given as it is, whatever the template.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for text that cannot be encoded, or messages where there is no template; what the template
    /// reports.
    pub fn prompt(&self, parts: &[Part]) -> Result<Vec<i32>> {
        let text = || parts.iter().map(Part::text).collect::<String>();
        let ids = parts.iter().any(|part| matches!(part, Part::Tokens(_)));
        let messages = parts.iter().any(|part| matches!(part, Part::Messages(_)));
        match &self.form {
            Form::Chat { template, system } if !ids => {
                let rendered = template.render(&conversation(parts, system), true)?;
                // The template has written all special tokens that there are to be.
                self.tokenizer.encode(&rendered)
            }
            Form::Around(template) if !ids => {
                self.tokenizer.encode_prompt(&template.around(&text()))
            }
            Form::Plain { messages: false } if messages => Err(Error::invalid(
                "messages need a chat template, and the model folder has none\n\
                 template = \"none\" gives the contents alone, one a line",
            )),
            _ => self.joined(parts),
        }
    }

    /// The ids of the parts, one after another.
    fn joined(&self, parts: &[Part]) -> Result<Vec<i32>> {
        let mut ids = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            ids.extend(match part {
                Part::Tokens(own) => own.clone(),
                text if i == 0 => self.tokenizer.encode_prompt(&text.text())?,
                text => self.tokenizer.encode(&text.text())?,
            });
        }
        Ok(ids)
    }
}

/// True when prompts put in this way depend on the day, because the template of the model folder or of a file writes the date.
///
/// # Errors
/// As [`TextCodec::new`], for the template.
pub fn tells_time(folder: &Path, prompting: &Prompting) -> Result<bool> {
    let found = match &prompting.template {
        Template::Plain | Template::Around(_) => None,
        Template::Auto | Template::Chat => ChatTemplate::load(folder)?,
        Template::File(path) => {
            let source = read(path)?;
            Some(ChatTemplate::new(&source, path.display().to_string(), BTreeMap::new())?)
        }
    };
    Ok(found.is_some_and(|template| template.tells_time()))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io(format!("reading {}", path.display()), e))
}

/// The turns of a prompt, `system` before them where it is not empty. Text is the user's; beside messages it belongs to the user's turn that is next.
pub fn conversation(parts: &[Part], system: &str) -> Vec<Message> {
    let says = |role: &str, content: String| Message { role: role.to_owned(), content };
    let mut messages: Vec<Message> = Vec::new();
    let mut text = String::new();
    for part in parts {
        match part {
            Part::Messages(own) => {
                let before = messages.len();
                messages.extend(own.iter().cloned());
                let user = messages[before..].iter_mut().find(|message| message.role == "user");
                if let Some(user) = user.filter(|_| !text.is_empty()) {
                    user.content.insert_str(0, &std::mem::take(&mut text));
                }
            }
            other => text += &other.text(),
        }
    }
    if !text.is_empty() || messages.is_empty() {
        messages.push(says("user", text));
    }
    if !system.is_empty() && messages.first().is_none_or(|first| first.role != "system") {
        messages.insert(0, says("system", system.to_owned()));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    fn text(text: &str) -> Part {
        Part::Text(text.into())
    }

    fn prompting(template: Template, system: &str) -> Prompting {
        Prompting { template, system: system.into() }
    }

    /// Characters, with or without a template that writes `role:content;` of each turn.
    fn tokenizer(template: bool) -> Tokenizer {
        let alphabet: String = (' '..='~').chain(['\n']).collect();
        let tokenizer = Tokenizer::characters(&alphabet).unwrap();
        let source = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";
        match template {
            true => tokenizer.with_chat_template(source, "own").unwrap(),
            false => tokenizer,
        }
    }

    fn read(codec: &TextCodec, parts: &[Part]) -> String {
        codec.tokenizer().decode(&codec.prompt(parts).unwrap()).unwrap()
    }

    #[test]
    fn a_prompt_is_a_turn_where_there_is_a_template() {
        let messages =
            Part::Messages(vec![says("user", "a"), says("assistant", "b"), says("user", "c")]);
        let own = Part::Messages(vec![says("system", "own"), says("user", "a")]);
        for (template, system, parts, wanted) in [
            (Template::Auto, "", vec![text("2+2?")], "user:2+2?;"),
            (Template::Chat, "S", vec![text("May "), text("x")], "system:S;user:May x;"),
            (Template::Auto, "S", vec![messages.clone()], "system:S;user:a;assistant:b;user:c;"),
            (Template::Auto, "S", vec![text("May "), own], "system:own;user:May a;"),
            (Template::Plain, "", vec![text("2+2?")], "2+2?"),
            (Template::Plain, "", vec![messages.clone()], "a\nb\nc"),
            (Template::Around("Q {prompt}!".into()), "", vec![messages.clone()], "Q a\nb\nc!"),
            (Template::Around("Q {prompt}!".into()), "", vec![text("x")], "Q x!"),
        ] {
            let codec =
                TextCodec::new(tokenizer(true), &prompting(template, system), None).unwrap();
            assert_eq!(read(&codec, &parts), wanted);
            assert_eq!(codec.prompt(&[Part::Tokens(vec![5, 4])]).unwrap(), [5, 4]);
        }
    }

    #[test]
    fn without_a_template_a_prompt_is_text() {
        let of =
            |template, system| TextCodec::new(tokenizer(false), &prompting(template, system), None);
        let auto = of(Template::Auto, "").unwrap();
        assert_eq!(read(&auto, &[text("2+2?")]), "2+2?");
        let messages = [Part::Messages(vec![says("user", "a")])];
        let error = auto.prompt(&messages).unwrap_err();
        assert!(
            error.is_invalid() && error.to_string().contains("need a chat template"),
            "{error}"
        );
        assert_eq!(read(&of(Template::Plain, "").unwrap(), &messages), "a");
        assert!(of(Template::Chat, "").err().unwrap().is_invalid());
        for template in [Template::Auto, Template::Plain, Template::Around("{prompt}".into())] {
            assert!(of(template, "S").err().unwrap().to_string().contains("needs a chat template"));
        }
        assert!(of(Template::File("/no/such.jinja".into()), "").err().unwrap().is_io());
    }

    #[test]
    fn a_file_takes_the_place_of_the_folders_template() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.jinja");
        std::fs::write(&path, "[{{ messages[0].content }} {{ strftime_now('%Y') }}]").unwrap();
        let template = prompting(Template::File(path), "");
        assert!(tells_time(folder.path(), &template).unwrap());
        let codec = TextCodec::new(tokenizer(true), &template, Some("1999-12-31")).unwrap();
        assert_eq!(read(&codec, &[text("x")]), "[x 1999]");
        // A checkpoint has it.
        let saved = tempfile::tempdir().unwrap();
        codec.tokenizer().save(saved.path()).unwrap();
        let again = Tokenizer::load(saved.path()).unwrap();
        let again =
            TextCodec::new(again, &prompting(Template::Chat, ""), Some("1999-12-31")).unwrap();
        assert_eq!(read(&again, &[text("x")]), "[x 1999]");
        let error = TextCodec::new(tokenizer(true), &template, Some("noon")).err().unwrap();
        assert!(error.to_string().starts_with("model.date: "), "{error}");
    }
}
