//! Methods of Python's strings, lists and dictionaries that chat templates call.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Calls a method: those of `minijinja-contrib`, and those that it does not have.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let (Some(text), "title") = (value.as_str(), name) {
        let () = from_args(args)?;
        return Ok(title(text).into());
    }
    match unknown_method_callback(state, value, name, args) {
        Err(error) if error.kind() == ErrorKind::UnknownMethod => {
            match (value.as_str(), value.kind()) {
                (Some(text), _) => of_string(state, text, name, args),
                // What a template may not change needs no copy.
                (None, ValueKind::Seq | ValueKind::Map) if name == "copy" => {
                    let () = from_args(args)?;
                    Ok(value.clone())
                }
                (None, ValueKind::Seq) if name == "index" => {
                    let (wanted,): (&Value,) = from_args(args)?;
                    let mut items = value.try_iter()?;
                    let place = items.position(|item| item == *wanted);
                    place.map(Value::from).ok_or_else(|| {
                        Error::new(
                            ErrorKind::InvalidOperation,
                            "index: the value is not in the list",
                        )
                    })
                }
                _ => Err(error),
            }
        }
        done => done,
    }
}

/// Every letter that follows no letter in upper case, the others in lower case.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

fn of_string(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let parts = |found: Option<(&str, &str)>, separator: &str, last: bool| match found {
        Some((before, after)) => tuple([before, separator, after]),
        None if last => tuple(["", "", text]),
        None => tuple([text, "", ""]),
    };
    Ok(match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            parts(text.split_once(separator), separator, false)
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            parts(text.rsplit_once(separator), separator, true)
        }
        "rsplit" => {
            let (separator, most): (&str, Option<i64>) = from_args(args)?;
            let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            let mut found: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
            found.reverse();
            list(found)
        }
        "index" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at = text.find(wanted).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, "index: the text is not in the string")
            })?;
            text[..at].chars().count().into()
        }
        "isspace" => {
            let () = from_args(args)?;
            (!text.is_empty() && text.chars().all(char::is_whitespace)).into()
        }
        "casefold" => {
            let () = from_args(args)?;
            text.to_lowercase().into()
        }
        "ljust" | "rjust" | "zfill" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            let missing = width.saturating_sub(text.chars().count());
            // The result is paid for before it is made.
            state.consume_fuel(missing as u64)?;
            let fill = fill.unwrap_or(if name == "zfill" { "0" } else { " " }).repeat(missing);
            match (name, text.strip_prefix(['+', '-'])) {
                ("ljust", _) => format!("{text}{fill}"),
                ("zfill", Some(digits)) => format!("{}{fill}{digits}", &text[..1]),
                _ => format!("{fill}{text}"),
            }
            .into()
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn tuple(items: [&str; 3]) -> Value {
    Value::from(Tuple::from(items.map(Value::from)))
}

fn list<'a>(items: impl IntoIterator<Item = &'a str>) -> Value {
    items.into_iter().map(Value::from).collect()
}
