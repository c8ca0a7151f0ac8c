//! What settings mean: the documentation comments of their types, read from the source text that declares them, so that
//! `gradstone list settings` says what the library's documentation says.
//!
//! Only what settings are made of is understood: structs with named fields, enums whose variants have named fields, one
//! type or nothing, and serde's `rename_all`. A test fails when a setting of any recipe is not found.

use toml::{Table, Value};

macro_rules! sources {
    ($($path:literal)*) => {
        &[$(($path, include_str!(concat!("../", $path)))),*]
    };
}

/// Every source that declares a type which settings are made of.
const SOURCES: &[(&str, &str)] = sources! {
    "kernels/advantage/estimator.rs"
    "kernels/block_noise/curve.rs"
    "kernels/block_noise/mod.rs"
    "kernels/policy_loss/aggregation.rs"
    "kernels/policy_loss/kl.rs"
    "kernels/policy_loss/objective.rs"
    "kernels/policy_loss/replay.rs"
    "kernels/policy_loss/surrogate.rs"
    "kernels/step_credit/credit.rs"
    "kernels/step_credit/span.rs"
    "kernels/token_selection/mod.rs"
    "optim/adamw.rs"
    "optim/schedule.rs"
    "recipes/exgrpo/settings.rs"
    "recipes/faithrl/settings.rs"
    "recipes/stable_diffcoder/experiment.rs"
    "rl/critic.rs"
    "rl/dynamic_sampling.rs"
    "rl/entropy_control.rs"
    "rl/filling_policy.rs"
    "rl/masked_policy.rs"
    "rl/faithful.rs"
    "rl/preference/cpo.rs"
    "rl/preference/divergence.rs"
    "rl/preference/dpo.rs"
    "rl/preference/kto.rs"
    "rl/preference/orpo.rs"
    "rl/process_reward.rs"
    "rl/resampling.rs"
    "rl/stage/correction.rs"
    "rl/stage/credit.rs"
    "rl/stage/logprobs.rs"
    "rl/stage/reward.rs"
    "rl/stage/token_reward.rs"
    "rl/replay/settings.rs"
    "rl/length.rs"
    "rl/replay/buckets.rs"
    "rl/unmasking.rs"
    "tasks/arithmetic.rs"
    "tasks/equality/percent.rs"
    "tasks/file/settings.rs"
    "tasks/permutation_chain/mod.rs"
    "tasks/settings/source.rs"
    "tasks/settings/verifier.rs"
    "tasks/settings/mod.rs"
    "tasks/source_text.rs"
    "tasks/two_hop/source.rs"
    "tasks/two_hop/trace.rs"
    "train/diffusion/noising.rs"
    "train/diffusion/settings.rs"
    "train/offline/settings.rs"
    "train/settings.rs"
};

/// A setting in a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Dotted.
    pub key: String,
    /// As TOML writes it; empty for a table, whose keys follow.
    pub value: String,
    /// In words.
    pub about: String,
}

/// The settings of a type with their values, in the order in which the type declares them. `type_name` is the path that
/// the compiler gives the type.
pub(super) fn rows(prefix: &str, type_name: &str, values: &Table) -> Vec<Row> {
    let declared: Vec<Declared> =
        SOURCES.iter().flat_map(|(path, text)| parse(path, text)).collect();
    let mut listing = Listing { declared: &declared, rows: Vec::new() };
    let name = type_name.rsplit("::").next().unwrap_or_default();
    let path = type_name.replace("::", "/");
    let root = declared.iter().find(|one| {
        one.name == name && path.contains(one.path.trim_end_matches(".rs").trim_end_matches("/mod"))
    });
    // A public name may stand above the file that declares it.
    if let Some(root) = root.or_else(|| declared.iter().find(|one| one.name == name)) {
        listing.fields(prefix, root, &root.fields, values);
    }
    listing.rows
}

/// A type that a source declares.
#[derive(Debug)]
struct Declared {
    path: &'static str,
    text: &'static str,
    name: &'static str,
    /// Those of a struct.
    fields: Vec<Field>,
    /// Those of an enum.
    variants: Vec<Variant>,
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    kind: &'static str,
    about: String,
    /// Its keys stand among those of the struct.
    flattened: bool,
}

#[derive(Debug)]
struct Variant {
    /// As TOML writes it.
    name: String,
    fields: Vec<Field>,
    /// The one type in parentheses.
    inner: Option<&'static str>,
}

impl Declared {
    fn names(&self, kind: &str) -> bool {
        self.variants.iter().any(|variant| variant.name == kind)
    }
}

struct Listing<'a> {
    declared: &'a [Declared],
    rows: Vec<Row>,
}

impl Listing<'_> {
    fn fields(&mut self, prefix: &str, of: &Declared, fields: &[Field], values: &Table) {
        for field in fields {
            if field.flattened {
                let all = Value::Table(values.clone());
                self.field(prefix.trim_end_matches('.'), of, field, Some(&all));
            } else {
                self.field(&format!("{prefix}{}", field.name), of, field, values.get(field.name));
            }
        }
    }

    fn field(&mut self, key: &str, of: &Declared, field: &Field, value: Option<&Value>) {
        let kind = inside(field.kind, "Option");
        let (declared, about) = (self.declared, field.about.clone());
        let found = find(declared, inside(kind, "Vec"), of);
        match (found, value) {
            (Some(found), Some(Value::Table(values))) if found.variants.is_empty() => {
                self.push(key, String::new(), about);
                self.fields(&format!("{key}."), found, &found.fields, values);
            }
            (Some(found), Some(Value::Table(values))) => {
                let name = values.get("kind").and_then(Value::as_str).unwrap_or_default();
                let holders = holders(declared, found);
                let holder = holders.iter().find(|holder| holder.names(name)).unwrap_or(&found);
                let chosen = holder.variants.iter().find(|variant| variant.name == name);
                let names = one_of(holders.iter().flat_map(|holder| &holder.variants));
                self.push(&format!("{key}.kind"), format!("{name:?}"), format!("{about} {names}"));
                let Some(chosen) = chosen else { return };
                let prefix = format!("{key}.");
                self.fields(&prefix, holder, &chosen.fields, values);
                if let Some(inner) = chosen.inner.and_then(|inner| find(declared, inner, holder)) {
                    self.fields(&prefix, inner, &inner.fields, values);
                }
            }
            (found, value) => {
                let names = found.map(|found| one_of(&found.variants)).unwrap_or_default();
                let value = value.map_or("unset".to_owned(), written);
                self.push(key, value, format!("{about} {names}").trim_end().to_owned());
            }
        }
    }

    fn push(&mut self, key: &str, value: String, about: String) {
        self.rows.push(Row { key: key.to_owned(), value, about });
    }
}

/// `T` of `Option<T>`; other types as they are.
fn inside<'a>(kind: &'a str, wrapper: &str) -> &'a str {
    let inner = kind.strip_prefix(wrapper).and_then(|rest| rest.strip_prefix('<'));
    inner.and_then(|rest| rest.strip_suffix('>')).unwrap_or(kind)
}

fn one_of<'a>(variants: impl IntoIterator<Item = &'a Variant>) -> String {
    let names: Vec<&str> = variants.into_iter().map(|variant| variant.name.as_str()).collect();
    if names.is_empty() { String::new() } else { format!("One of {}.", names.join(", ")) }
}

/// A value as TOML writes it. A number of 32 bits has the digits of one.
fn written(value: &Value) -> String {
    match value {
        Value::Float(number) if f64::from(*number as f32) == *number => {
            format!("{:?}", *number as f32)
        }
        Value::Float(number) => format!("{number:?}"),
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(written).collect();
            format!("[{}]", values.join(", "))
        }
        other => other.to_string(),
    }
}

/// The type that `name` means in the source of `of`: the one there, else the one that a `use` brings, else the only one.
fn find<'a>(declared: &'a [Declared], name: &str, of: &Declared) -> Option<&'a Declared> {
    let named = || declared.iter().filter(|one| one.name == name);
    let brought = || {
        let mut uses =
            of.text.lines().filter_map(|line| line.strip_prefix("use crate")?.strip_prefix("::"));
        uses.find_map(|line| {
            let names = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            let brings = names.clone().any(|word| word == name);
            let (room, _) = line.rsplit_once("::").filter(|_| brings)?;
            let folder = room.replace("::", "/");
            named().find(|one| one.path.starts_with(&folder))
        })
    };
    let here = named().find(|one| one.path == of.path);
    here.or_else(brought).or_else(|| named().next().filter(|_| named().count() == 1))
}

/// The enums whose variants a `kind` chooses from: the one itself, or those that it joins without a name of its own.
fn holders<'a>(declared: &'a [Declared], of: &'a Declared) -> Vec<&'a Declared> {
    let inner = |variant: &Variant| find(declared, variant.inner?, of);
    let joined: Vec<&Declared> =
        of.variants.iter().filter_map(inner).filter(|inner| !inner.variants.is_empty()).collect();
    if joined.len() == of.variants.len() { joined } else { vec![of] }
}

/// The types that a source declares before its tests.
fn parse(path: &'static str, text: &'static str) -> Vec<Declared> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let (mut lines, mut found) = (code.lines(), Vec::new());
    let mut rename = "";
    while let Some(line) = lines.next() {
        let declaration = line.strip_prefix("pub ").unwrap_or(line).strip_suffix(" {");
        let named = |keyword: &str| declaration.and_then(|text| text.strip_prefix(keyword));
        if let Some(after) = line.split("rename_all = \"").nth(1) {
            rename = after.split('"').next().unwrap_or_default();
        } else if let Some(name) = named("struct ") {
            let fields = fields(&mut lines, "}");
            found.push(Declared { path, text, name, fields, variants: Vec::new() });
            rename = "";
        } else if let Some(name) = named("enum ") {
            let variants = variants(&mut lines, rename);
            found.push(Declared { path, text, name, fields: Vec::new(), variants });
            rename = "";
        }
    }
    found
}

/// The fields up to the line that ends them.
fn fields(lines: &mut std::str::Lines<'static>, end: &str) -> Vec<Field> {
    let (mut found, mut about, mut flattened) = (Vec::new(), Vec::new(), false);
    for line in lines.by_ref().take_while(|line| *line != end) {
        let line = line.trim();
        if let Some(words) = line.strip_prefix("///") {
            about.push(words.trim());
        } else if let Some((name, kind)) = line
            .strip_prefix("pub ")
            .unwrap_or(line)
            .split_once(": ")
            .filter(|_| !line.starts_with('#'))
        {
            let kind = kind.trim_end_matches(',');
            let about = plain(&std::mem::take(&mut about));
            found.push(Field { name, kind, about, flattened: std::mem::take(&mut flattened) });
        } else if line == "#[serde(flatten)]" {
            flattened = true;
        }
    }
    found
}

/// The variants of an enum, which ends with a brace at the margin.
fn variants(lines: &mut std::str::Lines<'static>, rename: &str) -> Vec<Variant> {
    let mut found = Vec::new();
    while let Some(line) = lines.next().filter(|line| *line != "}") {
        let line = line.trim();
        let name: &str = line.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        if !name.starts_with(|c: char| c.is_ascii_uppercase()) {
            continue;
        }
        let opened = line.ends_with('{');
        let fields = if opened { fields(lines, "    },") } else { Vec::new() };
        let inner = line.split_once('(').and_then(|(_, rest)| rest.split(')').next());
        found.push(Variant { name: renamed(name, rename), fields, inner });
    }
    found
}

/// As serde's `rename_all` writes a variant.
fn renamed(name: &str, rename: &str) -> String {
    let between = match rename {
        "snake_case" => "_",
        "kebab-case" => "-",
        "lowercase" => "",
        _ => return name.to_owned(),
    };
    let mut out = String::new();
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            out += between;
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// The first paragraph of a documentation comment, without the marks of its links.
fn plain(lines: &[&str]) -> String {
    let paragraph: Vec<&str> = lines.iter().copied().take_while(|line| !line.is_empty()).collect();
    let text = paragraph.join(" ");
    let mut out = String::new();
    let mut rest = text.as_str();
    // `[words](target)` and `[words]` become the words.
    while let Some((before, after)) = rest.split_once("[`") {
        let Some((words, behind)) = after.split_once("`]") else { break };
        out += &format!("{before}`{words}`");
        let target = behind.strip_prefix('(').and_then(|target| target.split_once(')'));
        rest = target.map_or(behind, |(_, behind)| behind);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes::REGISTRY;

    fn leaves(prefix: &str, values: &Table, found: &mut Vec<String>) {
        for (key, value) in values {
            match value {
                Value::Table(values) => leaves(&format!("{prefix}{key}."), values, found),
                _ => found.push(format!("{prefix}{key}")),
            }
        }
    }

    #[test]
    fn every_setting_of_every_recipe_has_its_default_and_its_words() {
        for recipe in REGISTRY {
            for described in super::super::list::settings(recipe).unwrap() {
                let rows = rows(&described.prefix, described.type_name, &described.values);
                let mut keys = Vec::new();
                leaves(&described.prefix, &described.values, &mut keys);
                for key in keys {
                    let row = rows.iter().find(|row| row.key == key);
                    let row = row.unwrap_or_else(|| {
                        panic!("{}: `{key}` is declared in no file of SOURCES", recipe.name)
                    });
                    assert!(!row.value.is_empty() && row.value != "unset", "{row:?}");
                    assert!(row.about.len() > 3, "{row:?}");
                }
            }
        }
    }

    #[test]
    fn settings_read_as_they_are_declared() {
        let recipe = crate::recipes::named("arithmetic").unwrap();
        let [described] = &super::super::list::settings(recipe).unwrap()[..] else { panic!() };
        let rows = rows("", described.type_name, &described.values);
        let row =
            |key: &str| rows.iter().find(|row| row.key == key).unwrap_or_else(|| panic!("{key}"));
        assert_eq!(rows[0].key, "seed");
        assert_eq!(rows[0].about, "The seed of every random draw.");
        assert_eq!(row("model.kind").value, "\"small\"");
        assert!(row("model.kind").about.ends_with("One of small, ids, folder."));
        assert_eq!(row("objective.surrogate.clip_high").value, "0.28");
        assert_eq!(row("rollout.overlong").value, "unset");
        assert_eq!(
            row("schedule.decay").about,
            "What comes after. One of constant, linear, cosine."
        );
        assert!(row("advantage.kind").about.contains("reinforce-plus-plus-baseline"));
        assert!(
            row("optimizer").value.is_empty()
                && row("optimizer").about.starts_with("The optimizer")
        );
        assert_eq!(plain(&["[`A`] of [`B`](c::B),", "then.", "", "More."]), "`A` of `B`, then.");
    }
}
