//! Chat templates: a conversation as the text that a model was trained to read, rendered as `transformers` renders it.
//!
//! A model folder has its template in `chat_template.jinja`, or in `tokenizer_config.json` under `chat_template`: a text, or a
//! list of named ones of which `default` is taken. A file wins.

use super::guard::guarded;
use super::jinja::{environment, prepared};
use super::special;
use crate::error::{Error, Result};
use jiff::civil::DateTime;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use serde::Serialize;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;

/// What a rendering may cost: instructions, and 64 bytes that it makes, one each. Half a second of work or 128 MiB; published
/// templates take some thousands.
const FUEL: u64 = 1 << 21;

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
        let found =
            ChatTemplate::of_files(file.as_deref(), &tokenizer_config["chat_template"], names);
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
        let source = prepared(source);
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
        let tokens =
            self.tokens.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str())));
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
        (ErrorKind::OutOfFuel, _) => {
            "the template does more work than a template may do".to_owned()
        }
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    let what: String =
        what.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect();
    let message = format!("{place}{line}: {what}");
    match kind {
        ErrorKind::UnknownFilter
        | ErrorKind::UnknownTest
        | ErrorKind::UnknownFunction
        | ErrorKind::UnknownMethod
        | ErrorKind::OutOfFuel => Error::unsupported(message),
        _ => Error::format(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(source: &str) -> Result<ChatTemplate> {
        ChatTemplate::new(source, "chat_template.jinja", BTreeMap::new())
    }

    fn render(source: &str) -> Result<String> {
        template(source)?.render(&[json!({"role": "user", "content": "hi"})], true)
    }

    #[test]
    fn errors_name_the_file_and_the_line() {
        for (source, unsupported, says) in [
            ("a\n{% if %}", false, "chat_template.jinja line 2: syntax error"),
            (
                "{{ raise_exception('no\n system') }}",
                false,
                "chat_template.jinja line 1: no system",
            ),
            ("\n\n{{ messages.a.b }}", false, "chat_template.jinja line 3: undefined value"),
            (
                "{{ messages[0].content.nope() }}",
                true,
                "line 1: unknown method: string has no method named nope",
            ),
            ("{{ 'a' | nope }}", true, "line 1: unknown filter"),
            ("{{ nope() }}", true, "line 1: unknown function"),
            ("{% include 'x' %}", false, "line 1: "),
            ("{{ strftime_now('%') }}", false, "line 1: strftime_now"),
        ] {
            let error = render(source).unwrap_err();
            assert!(
                error.is_unsupported() == unsupported && error.to_string().contains(says),
                "{error:?}"
            );
            assert!(error.is_unsupported() || error.is_format(), "{error:?}");
        }
    }

    #[test]
    fn a_template_cannot_work_for_ever_or_make_endless_text() {
        let started = std::time::Instant::now();
        for source in [
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
            "{% set n = namespace(t='ab') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
            "{{ 'a' * 100000000000 }}",
            "{{ 'a'.ljust(100000000000) }}",
            "{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
        ] {
            assert!(render(source).is_err(), "{source}");
        }
        let deep = format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(render(&format!("{{{{ {deep} }}}}")).is_err());
        let nested = "{% if true %}".repeat(100_000);
        assert!(render(&nested).is_err());
        assert!(started.elapsed().as_secs() < 120, "{:?}", started.elapsed());
    }

    #[test]
    fn the_folder_says_which_template() {
        let chosen = |file: Option<&str>, config: Json| {
            let found = ChatTemplate::of_files(file.map(str::as_bytes), &config, BTreeMap::new())?;
            found.map(|template| template.render(&[json!({"role": "user"})], false)).transpose()
        };
        let named =
            json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(chosen(None, Json::Null).unwrap(), None);
        assert_eq!(chosen(None, json!("c")).unwrap(), Some("c".to_owned()));
        assert_eq!(chosen(None, named.clone()).unwrap(), Some("d".to_owned()));
        assert_eq!(chosen(None, json!({"default": "o"})).unwrap(), Some("o".to_owned()));
        assert_eq!(chosen(Some("f"), named).unwrap(), Some("f".to_owned()));
        for wrong in
            [json!([]), json!([{"name": "rag", "template": "t"}]), json!(5), json!({"x": "y"})]
        {
            assert!(chosen(None, wrong).unwrap_err().is_format());
        }
        assert!(
            ChatTemplate::of_files(Some(b"\xff"), &Json::Null, BTreeMap::new())
                .unwrap_err()
                .is_format()
        );
    }

    #[test]
    fn a_date_stays() {
        let source = "{% if true %}{{ strftime_now('%Y-%m-%d %H') }}{% endif %}";
        let template = template(source).unwrap();
        assert!(
            template.tells_time() && !super::tests::template("strftime_now").unwrap().tells_time()
        );
        let rendered = template.render(&[json!({})], false).unwrap();
        assert!(rendered.starts_with("20") && rendered.len() == 13, "{rendered}");
        let dated = template.dated("2001-02-03").unwrap();
        assert_eq!(dated.render(&[json!({})], false).unwrap(), "2001-02-03 00");
        assert!(dated.dated("tomorrow").unwrap_err().is_invalid());
        assert_eq!(today().len(), 10);
    }
}
