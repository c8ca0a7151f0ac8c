//! Settings of a run: a recipe's defaults, a TOML file over them, `key=value` overrides over both.
//!
//! A recipe is any struct with serde's `deny_unknown_fields` at every level. Tables are merged key by key over the
//! defaults, except that a table whose `kind` differs from the default's replaces it whole: another kind has other
//! keys. So does a table with a `preset`, or the name of one where a table was: what a preset does not say is not the
//! default's to fill in. A key that does not exist is an error that names it and the nearest one that does.

use crate::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::{Table, Value};

/// The key that tells which of several shapes a table has.
const KIND: &str = "kind";
/// The key that names what the other keys of a table start from.
const PRESET: &str = "preset";

/// `defaults` with a TOML file and `key=value` overrides over them. Keys are dotted (`optimizer.learning_rate=1e-4`);
/// a value is TOML, and one that is not (`name=abc`) is taken as a string.
///
/// # Errors
/// [`Error::is_io`] when the file cannot be read, [`Error::is_invalid`] naming file and line, or the override, when a
/// key is unknown or a value has the wrong type.
pub fn load<T: Serialize + DeserializeOwned>(
    defaults: &T,
    file: Option<&Path>,
    overrides: &[String],
) -> Result<T> {
    let mut settings = table(defaults)?;
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
        let place = path.display().to_string();
        settings = with_text::<T>(settings, &text, &place)?;
    }
    overridden(settings, overrides)
}

/// `defaults` with tables over them, one after the other, and `key=value` overrides over all. Each table comes with the
/// words that say in an error where it was written.
///
/// # Errors
/// [`Error::is_invalid`] naming the table, or the override, when a key is unknown or a value has the wrong type.
pub fn layered<T: Serialize + DeserializeOwned>(
    defaults: &T,
    layers: &[(&str, &Table)],
    overrides: &[String],
) -> Result<T> {
    let mut settings = table(defaults)?;
    for (place, over) in layers {
        merge(&mut settings, (*over).clone());
        let whole: T =
            read(&settings).map_err(|e| Error::invalid(format!("{place}: {}", explain(&e))))?;
        settings = table(&whole)?;
    }
    overridden(settings, overrides)
}

fn overridden<T: Serialize + DeserializeOwned>(
    mut settings: Table,
    overrides: &[String],
) -> Result<T> {
    for setting in overrides {
        let place = format!("--set {setting}");
        let Some((key, value)) = setting.split_once('=') else {
            return Err(Error::invalid(format!("{place}: not key=value")));
        };
        let over = nested(key.trim(), parse_value(value.trim())).map_err(|e| e.at(&place))?;
        let elsewhere = elsewhere(&settings, key.trim());
        merge(&mut settings, over);
        let whole: T = read(&settings).map_err(|e| {
            let message = explain(&e);
            let unknown = message.starts_with("unknown key") && !message.contains("did you mean");
            Error::invalid(match elsewhere.filter(|_| unknown) {
                Some(near) => {
                    format!("{place}: unknown key `{}`; did you mean `{near}`?", key.trim())
                }
                None => format!("{place}: {message}"),
            })
        })?;
        // What was given as a name is a table from here on, so that the next override can change a part of it.
        settings = table(&whole)?;
    }
    read(&settings).map_err(|e| Error::invalid(explain(&e)))
}

/// Every setting as a table of TOML.
///
/// # Errors
/// [`Error::is_invalid`] when the struct is not expressible in TOML.
pub fn table<T: Serialize>(settings: &T) -> Result<Table> {
    Table::try_from(settings)
        .map_err(|e| Error::invalid(format!("settings cannot be written as TOML: {e}")))
}

/// Every setting as TOML, as `config.toml` holds it.
///
/// # Errors
/// [`Error::is_invalid`] when the struct is not expressible in TOML.
pub fn to_toml<T: Serialize>(settings: &T) -> Result<String> {
    toml::to_string(settings).map_err(|e| Error::invalid(format!("settings are not TOML: {e}")))
}

/// Reads what [`to_toml`] wrote.
///
/// # Errors
/// [`Error::is_invalid`] with `place` and the line.
pub fn from_toml<T: DeserializeOwned>(text: &str, place: &str) -> Result<T> {
    let settings: Table = text.parse().map_err(|e| syntax(&e, text, place))?;
    read(&settings).map_err(|e| located(&e, text, place))
}

/// Reads a document that has no defaults and must be complete.
///
/// # Errors
/// [`Error::is_invalid`] with `place` and the line of the key that is unknown, missing or of the wrong type.
pub fn document<T: DeserializeOwned>(text: &str, place: &str) -> Result<T> {
    toml::from_str(text).map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| line_of(text, span.start));
        let message = unknown_key(e.message(), "").unwrap_or_else(|| e.message().to_owned());
        Error::invalid(format!("{place}:{line}: {message}"))
    })
}

fn with_text<T: Serialize + DeserializeOwned>(
    mut settings: Table,
    text: &str,
    place: &str,
) -> Result<Table> {
    let mut over: Table = text.parse().map_err(|e| syntax(&e, text, place))?;
    // What says which recipe the file is of, the `config.toml` of a run among others, is no setting.
    for key in [KIND, "recipe"] {
        if !settings.contains_key(key) {
            over.remove(key);
        }
    }
    merge(&mut settings, over);
    let whole: T = read(&settings).map_err(|e| located(&e, text, place))?;
    table(&whole)
}

fn read<T: DeserializeOwned>(settings: &Table) -> Result<T, toml::de::Error> {
    Value::Table(settings.clone()).try_into()
}

fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over))
                // A preset begins afresh: beside the fields that were there it would mean nothing.
                if !over.contains_key(PRESET)
                    && over.get(KIND).is_none_or(|kind| under.get(KIND) == Some(kind)) =>
            {
                merge(under, over);
            }
            // A name that stands for a table is its preset: what is given later replaces single fields of it.
            (Some(Value::String(name)), Value::Table(over))
                if !over.contains_key(PRESET) && !over.contains_key(KIND) =>
            {
                let name = Value::String(std::mem::take(name));
                let mut table = Table::from_iter([(PRESET.to_string(), name)]);
                merge(&mut table, over);
                under.insert(key, Value::Table(table));
            }
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// The dotted key whose last part is that of `key`, in whatever table it is.
fn elsewhere(settings: &Table, key: &str) -> Option<String> {
    let last = key.rsplit('.').next()?;
    if settings.contains_key(last) {
        return Some(last.to_owned());
    }
    settings.iter().find_map(|(name, value)| {
        elsewhere(value.as_table()?, last).map(|found| format!("{name}.{found}"))
    })
}

fn parse_value(text: &str) -> Value {
    let wrapped: Option<Table> = format!("value = {text}").parse().ok();
    let parsed =
        wrapped.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| Value::String(text.to_string()))
}

fn nested(key: &str, value: Value) -> Result<Table> {
    let mut value = value;
    for part in key.rsplit('.') {
        if part.is_empty() {
            return Err(Error::invalid(format!("`{key}` is not a key")));
        }
        value = Value::Table(Table::from_iter([(part.to_string(), value)]));
    }
    match value {
        Value::Table(table) => Ok(table),
        _ => Err(Error::invalid(format!("`{key}` is not a key"))),
    }
}

fn syntax(error: &toml::de::Error, text: &str, place: &str) -> Error {
    let line = error.span().map(|span| line_of(text, span.start)).unwrap_or(1);
    Error::invalid(format!("{place}:{line}: not TOML: {}", error.message()))
}

/// A type error of merged settings has lost its place in the file: it is found again by the key it names.
fn located(error: &toml::de::Error, text: &str, place: &str) -> Error {
    let full = error.to_string();
    let path = full
        .rsplit("in `")
        .next()
        .filter(|_| full.contains("in `"))
        .and_then(|rest| rest.split('`').next());
    let unknown = quoted(error.message()).filter(|_| error.message().starts_with("unknown field"));
    let key = unknown.or(path.and_then(|path| path.rsplit('.').next()));
    let is_key = |line: &&str, key: &str| {
        let line = line.trim_start().trim_start_matches('[');
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
    };
    let line = key.and_then(|key| text.lines().position(|line| is_key(&line, key)));
    let place = line.map_or(place.to_string(), |line| format!("{place}:{}", line + 1));
    Error::invalid(format!("{place}: {}", explain(error)))
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

fn quoted(message: &str) -> Option<&str> {
    message.split('`').nth(1)
}

/// serde's message, with the nearest existing key instead of the list of all of them.
fn explain(error: &toml::de::Error) -> String {
    let full = error.to_string();
    let place = full.rsplit("in `").next().filter(|_| full.contains("in `"));
    let table = place
        .and_then(|rest| rest.split('`').next())
        .map(|table| format!("{table}."))
        .unwrap_or_default();
    unknown_key(error.message(), &table).unwrap_or_else(|| full.trim().replace('\n', " "))
}

/// The nearest existing key, or all of them, where serde's message is about a key that does not exist in `table`.
fn unknown_key(message: &str, table: &str) -> Option<String> {
    let rest = message.lines().next()?.strip_prefix("unknown field")?;
    let mut names = rest.split('`').skip(1).step_by(2);
    let unknown = names.next().unwrap_or_default();
    let known: Vec<&str> = names.collect();
    Some(match nearest(unknown, known.iter().copied()) {
        Some(name) => format!("unknown key `{table}{unknown}`; did you mean `{table}{name}`?"),
        None if known.is_empty() => format!("unknown key `{table}{unknown}`"),
        None => format!("unknown key `{table}{unknown}`; there are {}", known.join(", ")),
    })
}

/// The name that `unknown` was probably meant to be; `None` where none is near.
pub fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.map(|name| (distance(unknown, name), name)).min();
    near.filter(|(distance, _)| *distance <= 1 + unknown.chars().count() / 3).map(|(_, name)| name)
}

/// How many characters must be added, removed, changed or swapped with a neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let swap = if swapped { rows[i - 2][j - 2] + 1 } else { usize::MAX };
                change.min(swap).min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1)
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Recipe {
        steps: u64,
        name: String,
        limit: Option<f64>,
        optimizer: Optimizer,
        task: Task,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Optimizer {
        learning_rate: f64,
        betas: [f64; 2],
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
    enum Task {
        Sums { largest: u32 },
        File { path: String },
    }

    fn defaults() -> Recipe {
        Recipe {
            steps: 10,
            name: "default".into(),
            limit: None,
            optimizer: Optimizer { learning_rate: 1e-3, betas: [0.9, 0.95] },
            task: Task::Sums { largest: 9 },
        }
    }

    fn with(text: &str, sets: &[&str]) -> Result<Recipe> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.toml");
        std::fs::write(&path, text).unwrap();
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_string()).collect();
        load(&defaults(), Some(&path), &sets)
    }

    #[test]
    fn layers_override_each_other() {
        assert_eq!(load(&defaults(), None, &[]).unwrap(), defaults());
        let text = "steps = 20\n[optimizer]\nlearning_rate = 1\n[task]\nlargest = 99\n";
        let recipe =
            with(text, &["steps=30", "limit=0.5", "name=a b", "optimizer.betas=[0.8, 0.9]"])
                .unwrap();
        assert_eq!(recipe.steps, 30);
        assert_eq!(recipe.limit, Some(0.5));
        assert_eq!(recipe.name, "a b");
        assert_eq!(recipe.optimizer, Optimizer { learning_rate: 1.0, betas: [0.8, 0.9] });
        assert_eq!(recipe.task, Task::Sums { largest: 99 });
        let recipe = with("[task]\nkind = \"file\"\npath = \"x\"\n", &[]).unwrap();
        assert_eq!(recipe.task, Task::File { path: "x".into() });
        let recipe = with("", &["task={kind=\"file\", path=\"y\"}", "name=\"3\""]).unwrap();
        assert_eq!((recipe.task, recipe.name), (Task::File { path: "y".into() }, "3".into()));
    }

    #[test]
    fn settings_round_trip() {
        let text = to_toml(&defaults()).unwrap();
        assert_eq!(from_toml::<Recipe>(&text, "config.toml").unwrap(), defaults());
        assert!(
            from_toml::<Recipe>(&format!("x = 1\n{text}"), "c")
                .unwrap_err()
                .to_string()
                .starts_with("c:1: ")
        );
    }

    #[test]
    fn mistakes_name_the_key_and_the_line() {
        for (text, sets, says) in [
            (
                "steps = 1\nstesp = 2\n",
                vec![],
                "r.toml:2: unknown key `stesp`; did you mean `steps`?",
            ),
            (
                "\n[optimizer]\nlerning_rate = 1\n",
                vec![],
                "r.toml:3: unknown key `optimizer.lerning_rate`; did you mean `optimizer.learning_rate`?",
            ),
            ("zebra = 1\n", vec![], "r.toml:1: unknown key `zebra`; there are steps, name"),
            (
                "steps = \"many\"\n",
                vec![],
                "r.toml:1: invalid type: string \"many\", expected u64 in `steps`",
            ),
            ("steps = -1\n", vec![], "r.toml:1: invalid value: integer `-1`, expected u64"),
            ("steps = \n", vec![], "r.toml:1: not TOML"),
            ("steps = 1\nsteps = 2\n", vec![], "r.toml:2: not TOML: duplicate key"),
            ("[task]\nkind = \"nope\"\n", vec![], "unknown variant `nope`"),
            ("", vec!["stpes=1"], "--set stpes=1: unknown key `stpes`; did you mean `steps`?"),
            (
                "",
                vec!["optimizer.beta=1"],
                "--set optimizer.beta=1: unknown key `optimizer.beta`; did you mean",
            ),
            (
                "",
                vec!["learning_rate=1"],
                "--set learning_rate=1: unknown key `learning_rate`; did you mean `optimizer.learning_rate`?",
            ),
            (
                "",
                vec!["sampling.betas=1"],
                "unknown key `sampling.betas`; did you mean `optimizer.betas`?",
            ),
            ("", vec!["steps"], "--set steps: not key=value"),
            ("", vec!["=1"], "--set =1: `` is not a key"),
            ("", vec!["a..b=1"], "`a..b` is not a key"),
            (
                "",
                vec!["steps=0.5"],
                "--set steps=0.5: invalid type: floating point `0.5`, expected u64",
            ),
            ("", vec!["steps.x=1"], "--set steps.x=1: invalid type: map, expected u64"),
            ("", vec!["optimizer=1"], "--set optimizer=1: invalid type: integer `1`"),
        ] {
            let error = with(text, &sets).unwrap_err();
            assert!(error.is_invalid(), "{error:?}");
            assert!(error.to_string().contains(says), "{error}\n{says}");
        }
        assert!(load(&defaults(), Some(Path::new("/no/such.toml")), &[]).unwrap_err().is_io());
    }

    #[test]
    fn distances() {
        for (a, b, edits) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("kitten", "sitting", 3),
            ("", "xy", 2),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }
}
