//! Jinja as `transformers` sets it up for chat templates: its globals, its `tojson`, loop controls, `{% generation %}`
//! blocks, and the methods of Python's strings and dictionaries.
//!
//! Templates come with model folders, so their work and their results are bounded: `fuel` counts instructions and every 64
//! bytes that a template makes.

use super::python::method;
use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::Value as Json;

/// How deep macros and blocks may nest: more than any schema of a tool does, and little enough for the stack of a thread.
const DEEPEST: usize = 200;

/// An environment without templates. `now` is what `strftime_now` tells the time of; none: the moment of the call.
///
/// # Errors
/// None that a caller can cause.
pub(super) fn environment(now: Option<DateTime>) -> Result<Environment<'static>, Error> {
    let mut jinja = Environment::new();
    jinja.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    jinja.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    jinja.set_recursion_limit(DEEPEST);
    jinja.set_unknown_method_callback(method);
    minijinja_contrib::add_to_environment(&mut jinja);
    jinja.add_filter("tojson", to_json);
    jinja.add_filter("int", to_int);
    jinja.add_filter("float", to_float);
    // To Jinja2 everything that has a length and elements is a sequence, a string or a dictionary as well.
    jinja.add_test("sequence", |value: &Value| value.is_undefined() || value.len().is_some());
    jinja.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    jinja.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.to_string()))
    });
    jinja.add_function("strftime_now", move |format: &str| {
        formatted(now.unwrap_or_else(|| jiff::ZonedDateTime::now().datetime()), format)
    });
    Ok(jinja)
}

/// A template as the engine takes it. `{% generation %}` and `{% endgeneration %}`, which mark what the model wrote, become
/// blocks that it knows: they have a scope of their own and print what is in them. Lines end in one way, as in Jinja2.
pub(super) fn prepared(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    let mut raw = false;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out += before;
        if tag.starts_with("{#") && !raw {
            let end = tag.find("#}").map_or(tag.len(), |end| end + 2);
            out += &tag[..end];
            rest = &tag[end..];
            continue;
        }
        let (opening, name, known) = match block(tag) {
            Some((opening, name @ "raw")) if !raw => {
                raw = true;
                (opening, name, name)
            }
            Some((opening, name @ "endraw")) => {
                raw = false;
                (opening, name, name)
            }
            Some((opening, name @ "generation")) if !raw => (opening, name, "with"),
            Some((opening, name @ "endgeneration")) if !raw => (opening, name, "endwith"),
            _ => ("{", "", ""),
        };
        out += opening;
        out += known;
        rest = &tag[opening.len() + name.len()..];
    }
    out + rest
}

/// The opening and the name of a block tag without arguments at the beginning of a text.
fn block(tag: &str) -> Option<(&str, &str)> {
    let inside = tag.strip_prefix("{%")?.trim_start_matches(['-', '+']).trim_start();
    let name = inside.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    let end = inside[name.len()..].trim_start().trim_start_matches(['-', '+']);
    end.starts_with("%}").then_some((&tag[..tag.len() - inside.len()], name))
}

/// `datetime.strftime` of Python for a time without a zone.
fn formatted(now: DateTime, format: &str) -> Result<String, Error> {
    let mut known = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        match (c, (c == '%').then(|| characters.clone().next()).flatten()) {
            // A time without a zone has no name and no offset of one.
            ('%', Some('Z' | 'z')) => {
                characters.next();
            }
            ('%', Some(next)) => {
                characters.next();
                known.extend(['%', next]);
            }
            _ => known.push(c),
        }
    }
    jiff::fmt::strtime::format(known.as_bytes(), now).map_err(|e| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now(\"{format}\"): {e}"))
    })
}

/// A whole number, or the default where there is none in the value: Jinja2 never complains.
fn to_int(value: &Value, default: Option<Value>) -> Value {
    let default = default.unwrap_or(Value::from(0));
    let text = value.as_str().map(str::trim);
    match text.and_then(|text| text.parse::<i64>().ok()) {
        Some(number) => number.into(),
        None => {
            match text.map_or_else(|| f64::try_from(value.clone()).ok(), |text| text.parse().ok()) {
                Some(number) if number.is_finite() => Value::from(number.trunc() as i64),
                _ => i64::try_from(value.clone()).map_or(default, Value::from),
            }
        }
    }
}

/// A number, or the default where there is none in the value.
fn to_float(value: &Value, default: Option<Value>) -> Value {
    let default = default.unwrap_or(Value::from(0.0));
    match value.as_str() {
        Some(text) => text.trim().parse::<f64>().map_or(default, Value::from),
        None => f64::try_from(value.clone()).map_or(default, Value::from),
    }
}

/// `json.dumps` with `ensure_ascii=False`, whose options may be given.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let bad = |what: String| Error::new(ErrorKind::BadSerialization, what);
    if value.is_undefined() {
        return Err(bad("tojson: an undefined value".to_owned()));
    }
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(value) if value.is_none() => None,
        Some(value) if value.kind() == ValueKind::String => Some(value.to_string()),
        Some(value) => match i64::try_from(value)? {
            count @ ..=64 => Some(" ".repeat(usize::try_from(count).unwrap_or(0))),
            count => return Err(bad(format!("tojson: an indent of {count}"))),
        },
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        None if indent.is_some() => (",", ": "),
        None => (", ", ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(other) => return Err(bad(format!("tojson: {} separators", other.len()))),
    };
    let json = serde_json::to_value(value).map_err(|e| bad(format!("tojson: {e}")))?;
    let mut writer = JsonWriter { out: String::new(), ascii, sorted, indent, item, key };
    writer.value(&json, 0);
    Ok(writer.out)
}

/// Writes JSON as Python does.
struct JsonWriter<'a> {
    out: String,
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    item: &'a str,
    key: &'a str,
}

impl JsonWriter<'_> {
    fn value(&mut self, value: &Json, depth: usize) {
        match value {
            Json::String(text) => self.string(text),
            Json::Array(items) => {
                self.list('[', ']', items.len(), depth, |writer, i| {
                    writer.value(&items[i], depth + 1);
                });
            }
            Json::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                if self.sorted {
                    fields.sort_by_key(|(name, _)| *name);
                }
                self.list('{', '}', fields.len(), depth, |writer, i| {
                    writer.string(fields[i].0);
                    writer.out += writer.key;
                    writer.value(fields[i].1, depth + 1);
                });
            }
            other => self.out += &other.to_string(),
        }
    }

    fn list(
        &mut self,
        open: char,
        close: char,
        count: usize,
        depth: usize,
        mut item: impl FnMut(&mut Self, usize),
    ) {
        self.out.push(open);
        for i in 0..count {
            if i > 0 {
                self.out += self.item;
            }
            self.line(depth + 1);
            item(self, i);
        }
        if count > 0 {
            self.line(depth);
        }
        self.out.push(close);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out += indent);
        }
    }

    fn string(&mut self, text: &str) {
        let quoted = Json::from(text).to_string();
        if !self.ascii {
            self.out += &quoted;
            return;
        }
        for c in quoted.chars() {
            match c {
                c if c.is_ascii() => self.out.push(c),
                c => c
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .for_each(|half| self.out += &format!("\\u{half:04x}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> String {
        let now = "2024-07-05T09:08:07".parse().unwrap();
        let jinja = environment(Some(now)).unwrap();
        jinja.render_str(&prepared(template), Value::UNDEFINED).unwrap()
    }

    #[test]
    fn generation_blocks_print_what_is_in_them() {
        let template = "a\n{%- generation -%}\n b\n{%+ endgeneration %}\nc{% generation_x %}";
        assert_eq!(prepared(template), "a\n{%- with -%}\n b\n{%+ endwith %}\nc{% generation_x %}");
        for other in [
            "{% if generation %}{% endif %}{%",
            "{% raw %}{% generation %}{# {% endraw %}{# {% generation %} #}{",
            "{#",
        ] {
            assert_eq!(prepared(other), other);
        }
        assert_eq!(prepared("a\r\nb\rc"), "a\nb\nc");
        assert_eq!(
            render(
                "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
            ),
            "21"
        );
        assert_eq!(
            render(
                "{{ 'x' | int }}{{ '7' | int }}{{ 3.9 | int }}{{ true | int }}{{ 'x' | int(5) }}{{ 'x' | float }}"
            ),
            "073150.0"
        );
    }

    #[test]
    fn json_is_pythons() {
        let value = r#"{{ {"b": [1, "<é\n\u2028>", true, none], "a": {}, "c": []} | tojson"#;
        assert_eq!(
            render(&format!("{value} }}}}")),
            "{\"b\": [1, \"<é\\n\u{2028}>\", true, null], \"a\": {}, \"c\": []}"
        );
        assert_eq!(
            render(&format!("{value}(indent=2, sort_keys=true) }}}}")),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    \"<é\\n\u{2028}>\",\n    true,\n    null\n  ],\n  \"c\": []\n}"
        );
        assert_eq!(
            render("{{ [1, 'é😀'] | tojson(ensure_ascii=true, separators=(',', ':')) }}"),
            "[1,\"\\u00e9\\ud83d\\ude00\"]"
        );
    }

    #[test]
    fn the_time_is_told_as_python_tells_it() {
        assert_eq!(
            render("{{ strftime_now('%d %b %Y|%-d %B %y|%A %H:%M:%S|%Z%z|%%Z|%j') }}"),
            "05 Jul 2024|5 July 24|Friday 09:08:07||%Z|187"
        );
    }
}
