//! The line at the top of a report that says which run it is: what it learns with and from, on what, when and how long.

use super::measured::finite;
use crate::kernels::{advantage, policy_loss};
use crate::train::chart::escape;
use crate::train::metrics::Record;
use crate::train::starts::Start;
use std::fmt::Write;
use std::path::Path;
use toml::{Table, Value};

/// The facts as a list, each with its word.
pub(super) fn list(out: &mut String, config: &str, starts: &[Start], records: &[Record]) {
    let mut facts = config.parse().map_or(Vec::new(), |table| of_settings(&table));
    facts.extend(of_starts(starts));
    let seconds: f64 = finite(records, "seconds").iter().map(|point| point.1).sum();
    if seconds > 0.0 {
        facts.push(("time".into(), duration(seconds)));
    }
    out.push_str("<ul class=\"settings\">");
    for (word, value) in facts {
        let _ = write!(out, "<li><span>{}</span> {}</li>", escape(&word), escape(&value));
    }
    out.push_str("</ul>\n");
}

fn of_settings(table: &Table) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut fact = |word: &str, value: Option<String>| {
        facts.extend(value.map(|value| (word.to_owned(), value)));
    };
    for key in ["recipe", "kind"] {
        fact(key, table.get(key).map(text));
    }
    fact("objective", table.get("objective").map(objective));
    fact("advantage", table.get("advantage").map(estimator));
    for (phase, settings) in phases(table) {
        let rate = settings.get("optimizer").and_then(|optimizer| optimizer.get("learning_rate"));
        fact(&format!("{phase}learning rate"), rate.map(text));
    }
    fact("model", table.get("model").map(model));
    for key in ["task", "text"] {
        fact("data", table.get(key).map(source));
    }
    fact("seed", table.get("seed").map(text));
    facts
}

/// The tables with an optimizer, each with what its phase is called before "learning rate". A phase of no steps is left out.
fn phases(table: &Table) -> impl Iterator<Item = (String, &Table)> {
    let inner = table.iter().filter_map(|(key, value)| {
        let settings = value.as_table()?;
        let runs = settings.get("steps").and_then(Value::as_integer) != Some(0);
        let name = if key == "warmup" { "warm-up".into() } else { key.replace('_', " ") };
        runs.then(|| (name + " ", settings))
    });
    std::iter::once((String::new(), table)).chain(inner)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(number) => short(*number),
        other => other.to_string(),
    }
}

/// A setting as people write it: `0.001`, `1e-6`.
fn short(value: f64) -> String {
    if value == 0.0 || (1e-3..1e6).contains(&value.abs()) {
        format!("{value}")
    } else {
        format!("{value:e}")
    }
}

/// An objective's name where it is a named one, else what it is made of.
fn objective(value: &Value) -> String {
    let read = value.clone().try_into::<policy_loss::Objective>();
    let named = read.ok().and_then(|objective| {
        policy_loss::PRESETS.iter().find(|preset| preset.objective() == objective)
    });
    let part = |name: &str| Some(text(value.get(name)?.get("kind")?));
    let parts = ["surrogate", "ratio_shape", "aggregation"].into_iter().filter_map(part);
    let made = || parts.filter(|part| part != "plain").collect::<Vec<_>>().join(", ");
    named.map_or_else(made, |preset| preset.name.to_owned())
}

/// The same of an advantage.
fn estimator(value: &Value) -> String {
    let read = value.clone().try_into::<advantage::Estimator>();
    let named = read.ok().and_then(|estimator| {
        advantage::PRESETS.iter().find(|preset| preset.estimator == estimator)
    });
    let kind = || value.get("kind").map_or_else(|| text(value), text);
    named.map_or_else(kind, |preset| preset.name.to_owned())
}

/// The folder's name, or the family and size of a new model.
fn model(value: &Value) -> String {
    let get = |key: &str| value.get(key).map(text);
    if let Some(path) = get("path") {
        return last_part(&path);
    }
    let name = get("architecture").or_else(|| get("kind")).unwrap_or_default();
    match (get("layers"), get("hidden_size").or_else(|| get("width"))) {
        (Some(layers), Some(width)) => format!("{name}, {layers} layers of {width}"),
        _ => name,
    }
}

/// The name of a file of problems or text, or what is made in code.
fn source(value: &Value) -> String {
    let path = value.get("path").map(text).filter(|path| !path.is_empty());
    path.map_or_else(|| value.get("kind").map(text).unwrap_or_default(), |path| last_part(&path))
}

fn last_part(path: &str) -> String {
    Path::new(path).file_name().map_or(path.to_owned(), |name| name.to_string_lossy().into_owned())
}

fn of_starts(starts: &[Start]) -> Vec<(String, String)> {
    let (Some(first), Some(last)) = (starts.first(), starts.last()) else { return Vec::new() };
    let when = first.started.trim_end_matches('Z').replace('T', " ");
    let mut facts = vec![
        // That of the last start: earlier ones are in the file.
        ("device".to_owned(), last.machine.computes()),
        ("gradstone".to_owned(), last.machine.version()),
        ("started".to_owned(), format!("{when} UTC")),
    ];
    if starts.len() > 1 {
        let steps: Vec<String> = starts[1..].iter().map(|start| start.step.to_string()).collect();
        facts.push(("resumed".to_owned(), format!("after step {}", steps.join(", "))));
    }
    facts
}

pub(in crate::train) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..=99 => format!("{seconds:.1} s"),
        100..=5999 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    fn facts(config: &str) -> Vec<(String, String)> {
        of_settings(&config.parse().unwrap())
    }

    #[test]
    fn settings_become_facts() {
        let own = "kind = \"reinforcement\"\nadvantage = \"rloo\"\nobjective = {preset = \"gspo\"}\n\
                   optimizer = {learning_rate = 0.000001}\nwarmup = {steps = 0, optimizer = {learning_rate = 0.1}}\n\
                   model = {kind = \"folder\", path = \"/a/Qwen-1\"}\ntask = {kind = \"file\", path = \"/b/c.jsonl\"}\n";
        let want = [
            ("kind", "reinforcement"),
            ("objective", "gspo"),
            ("advantage", "rloo"),
            ("learning rate", "1e-6"),
            ("model", "Qwen-1"),
            ("data", "c.jsonl"),
        ];
        assert_eq!(facts(own), want.map(|(word, value)| (word.to_owned(), value.to_owned())));
        let other = "text = {kind = \"programs\"}\nmodel = {kind = \"ids\", width = 8, layers = 2}\n\
                     next_token = {steps = 3, optimizer = {learning_rate = 0.01}}\n\
                     objective = {preset = \"gspo\", entropy_coefficient = 0.25, surrogate = {kind = \"ppo-clip\", clip_low = 0.1, clip_high = 0.2}}\n";
        let want = [
            ("objective", "ppo-clip"),
            ("next token learning rate", "0.01"),
            ("model", "ids, 2 layers of 8"),
            ("data", "programs"),
        ];
        assert_eq!(facts(other), want.map(|(word, value)| (word.to_owned(), value.to_owned())));
        assert!(facts("").is_empty());
    }

    #[test]
    fn starts_become_facts() {
        assert!(of_starts(&[]).is_empty());
        let at = |step| Start {
            started: "2026-11-29T22:30:07Z".into(),
            ..Start::now(&Device::Cpu, step)
        };
        let facts = of_starts(&[at(0), at(20)]);
        assert!(facts.contains(&("started".into(), "2026-11-29 22:30:07 UTC".into())), "{facts:?}");
        assert!(facts.contains(&("resumed".into(), "after step 20".into())), "{facts:?}");
        assert_eq!(of_starts(&[at(0)]).len(), 3);
    }

    #[test]
    fn durations() {
        for (seconds, text) in
            [(0.0, "0.0 s"), (99.4, "99.4 s"), (125.0, "2 min 05 s"), (7260.0, "2 h 01 min")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
