//! Chat templates: a conversation as the text that a model was trained to read, rendered as `transformers` renders it.
//!
//! A model folder has its template in `chat_template.jinja`, or in `tokenizer_config.json` under `chat_template`: a text, or a
//! list of named ones of which `default` is taken. A file wins. [`jinja`](super::jinja) is the language.

use super::guard::guarded;
use super::jinja::{environment, without_generation};
use super::special;
use crate::error::{Error, Result};
use jiff::civil::DateTime;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use serde::Serialize;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;

/// What a rendering may cost: instructions, and 64 bytes that it makes, one each. A second of work or a quarter of a
/// gibibyte; published templates take some thousands.
const FUEL: u64 = 1 << 22;

/// The file of a model folder that has a template and nothing else.
pub(super) const FILE: &str = "chat_template.jinja";

/// The name under which the environment knows the template.
const NAME: &str = "chat";

/// The characters that an error shows of what a template says.
const SHOWN: usize = 300;

/// A template that makes one text of a list of messages.
#[derive(Debug)]
pub struct ChatTemplate {
    jinja: Environment<'static>,
    /// The file and the key that it was read from.
    place: String,
    /// Special tokens by their names: `bos_token`, …
    tokens: BTreeMap<String, String>,
    tells_time: bool,
}

impl ChatTemplate {
    /// A template from its source. `place` is the file that errors name; `tokens` are variables of the template.
    ///
    /// # Errors
    /// [`Error::is_format`] with `place` and the line when the syntax is wrong.
    pub fn new(
        source: &str,
        place: impl Into<String>,
        tokens: BTreeMap<String, String>,
    ) -> Result<ChatTemplate> {
        ChatTemplate::with_time(source, place.into(), tokens, None)
    }

    /// The template of a model folder; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::is_io`] for a file that cannot be read, [`Error::is_format`] for a template that cannot be understood.
    pub fn load(folder: &Path) -> Result<Option<ChatTemplate>> {
        let read = |name: &str| {
            let path = folder.join(name);
            match path.exists() {
                true => std::fs::read(&path)
                    .map(Some)
                    .map_err(|e| Error::io(format!("reading {}", path.display()), e)),
                false => Ok(None),
            }
        };
        let json = |name: &str| match read(name)? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::format(format!("{}/{name}: {e}", folder.display()))),
            None => Ok(Json::Null),
        };
        let (tokenizer_config, special_tokens_map) =
            (json("tokenizer_config.json")?, json("special_tokens_map.json")?);
        let names = special::names(&tokenizer_config, &special_tokens_map);
        let file = read(FILE)?;
        let found = ChatTemplate::of_files(file.as_deref(), &tokenizer_config["chat_template"], names);
        found.map_err(|e| e.at(folder.display()))
    }

    /// The same template that takes `date` (`2026-11-29`, or with a time, `2026-11-29T18:30:00`) for the time at which it is
    /// rendered. Without, that is the moment of the rendering, in the time zone of the machine.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for another form.
    pub fn dated(self, date: &str) -> Result<ChatTemplate> {
        let now: DateTime = date.parse().map_err(|e| {
            Error::invalid(format!("`{date}` is no date of the form 2026-11-29: {e}"))
        })?;
        let source = self.jinja.get_template(NAME).map(|template| template.source().to_owned());
        let source = source.map_err(|e| error(&self.place, &e))?;
        ChatTemplate::with_time(&source, self.place, self.tokens, Some(now))
    }

    fn with_time(
        source: &str,
        place: String,
        tokens: BTreeMap<String, String>,
        now: Option<DateTime>,
    ) -> Result<ChatTemplate> {
        let source = without_generation(source).into_owned();
        let made = guarded(&place, || -> Result<_, minijinja::Error> {
            let mut jinja = environment(now)?;
            jinja.set_fuel(Some(FUEL));
            jinja.add_template_owned(NAME, source)?;
            let names = jinja.get_template(NAME)?.undeclared_variables(false);
            Ok((jinja, names.contains("strftime_now")))
        })?;
        let (jinja, tells_time) = made.map_err(|e| error(&place, &e))?;
        Ok(ChatTemplate { jinja, place, tokens, tells_time })
    }

    /// The template of a model folder's files, or of what `tokenizer_config.json` says of templates; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::is_format`] for a template that is no text, a list without a `default`, and wrong syntax.
    pub(super) fn of_files(
        file: Option<&[u8]>,
        templates: &Json,
        tokens: BTreeMap<String, String>,
    ) -> Result<Option<ChatTemplate>> {
        const KEY: &str = "tokenizer_config.json, chat_template";
        if let Some(bytes) = file {
            let source = std::str::from_utf8(bytes)
                .map_err(|_| Error::format(format!("{FILE}: it is not UTF-8")))?;
            return ChatTemplate::new(source, FILE, tokens).map(Some);
        }
        let source = match templates {
            Json::Null => return Ok(None),
            Json::String(source) => Some(source.as_str()),
            Json::Array(named) => {
                let default = named.iter().find(|one| one["name"] == "default");
                default.and_then(|one| one["template"].as_str())
            }
            Json::Object(named) => named.get("default").and_then(Json::as_str),
            _ => None,
        };
        let Some(source) = source else {
            return Err(Error::format(format!(
                "{KEY}: neither a text nor a list of templates with one that is called `default`"
            )));
        };
        ChatTemplate::new(source, KEY, tokens).map(Some)
    }

    /// True when the text may depend on the day: the template calls `strftime_now`.
    pub fn tells_time(&self) -> bool {
        self.tells_time
    }

    /// The text of a conversation. Each message is an object with `role` and `content`, and whatever else the template reads;
    /// `add_generation_prompt` adds the opening of the assistant's next turn.
    ///
    /// # Errors
    /// [`Error::is_format`] with the file and the line for what the template itself raises or cannot compute,
    /// [`Error::is_unsupported`] for filters, methods and functions that are not there, and for more work than a template may do.
    pub fn render<M: Serialize>(
        &self,
        messages: &[M],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let tokens = self.tokens.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str())));
        let own = [
            ("messages".to_owned(), Value::from(Serde(messages))),
            ("tools".to_owned(), Value::from(())),
            ("documents".to_owned(), Value::from(())),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
        ];
        let context = Value::from_pairs(tokens.chain(own));
        let rendered = guarded(&self.place, || self.jinja.get_template(NAME)?.render(context))?;
        rendered.map_err(|e| error(&self.place, &e))
    }
}

/// The day, in the time zone of the machine, in the form that [`ChatTemplate::dated`] takes.
pub fn today() -> String {
    jiff::ZonedDateTime::now().date().to_string()
}

fn error(place: &str, error: &minijinja::Error) -> Error {
    let kind = error.kind();
    let line = error.line().map_or(String::new(), |line| format!(" line {line}"));
    let what = match (kind, error.detail()) {
        (ErrorKind::OutOfFuel, _) => "the template does more work than a template may do".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    let what: String = what.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect();
    let message = format!("{place}{line}: {what}");
    match kind {
        ErrorKind::UnknownFilter
        | ErrorKind::UnknownTest
        | ErrorKind::UnknownFunction
        | ErrorKind::UnknownMethod
        | ErrorKind::TemplateNotFound
        | ErrorKind::OutOfFuel => Error::unsupported(message),
        _ => Error::format(message),
    }
}
