//! The house stands on its floors: a file imports from lower floors only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the ground; rooms of one floor do not know each other.
const FLOORS: [&[&str]; 15] = [
    &["error"],
    &["dtype", "rng"],
    &["device", "files"],
    &["kernels"],
    &["text"],
    &["tensor"],
    &["ops"],
    &["nn"],
    &["optim"],
    &["models"],
    &["tasks"],
    &["rl"],
    &["train"],
    &["recipes", "bench"],
    &["cli"],
];

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The rooms that a file names after `crate::`, tests included, comments left out.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for after in code.split("crate::").skip(1) {
            let group = after.strip_prefix('{').map_or(after, |rest| rest);
            let braces = after.starts_with('{');
            let names = if braces { group.split(',').collect() } else { vec![group] };
            for name in names {
                let room: String =
                    name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                found.push((number + 1, room));
            }
        }
    }
    found
}

/// What `pub use` and `macro_export` in lib.rs make available at the top: the floor it comes from.
fn reexported(room: &str) -> Option<usize> {
    match room {
        "Error" | "Result" => floor("error"),
        "DType" | "with_float" => floor("dtype"),
        "typed_kernel" => floor("device"),
        "Tensor" => floor("tensor"),
        _ => floor(room),
    }
}

#[test]
fn imports_go_downward() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let (mut checked, mut wrong) = (0, Vec::new());
    for path in &files {
        let inside = path.strip_prefix(&root).unwrap();
        let room =
            inside.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_string();
        if room == "lib" || room == "main" {
            continue;
        }
        let Some(own) = floor(&room) else {
            wrong.push(format!("{}: room `{room}` is on no floor", inside.display()));
            continue;
        };
        for (line, name) in imports(&fs::read_to_string(path).unwrap()) {
            checked += 1;
            let place = format!("{}:{line}", inside.display());
            match reexported(&name) {
                Some(other) if other < own || name == room => {}
                Some(_) => {
                    wrong.push(format!("{place}: `{room}` imports `{name}`, which is not below it"))
                }
                None => wrong.push(format!("{place}: `{name}` is on no floor")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {checked} imports:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked > 50, "{checked} imports in {} files", files.len());
}

/// The module path of a source file: `["rl", "stage", "credit"]`.
fn module(inside: &Path) -> Vec<String> {
    let text = inside.with_extension("").to_string_lossy().into_owned();
    let mut parts: Vec<String> = text.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib" || last == "main") {
        parts.pop();
    }
    parts
}

/// The paths that the `use` declarations of a file name, braces written out; comments left out.
fn used(text: &str) -> Vec<Vec<String>> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(" ");
    let mut found = Vec::new();
    for after in code.split(" use ").skip(1).chain(code.strip_prefix("use ")) {
        let Some(statement) = after.split(';').next() else { continue };
        expand(&[], statement.trim(), &mut found);
    }
    found
}

/// `a::{b, c::d}` as `a::b` and `a::c::d`.
fn expand(before: &[String], rest: &str, found: &mut Vec<Vec<String>>) {
    let rest = rest.trim();
    if let Some(inside) = rest.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        let (mut depth, mut start) = (0i32, 0);
        for (at, c) in inside.char_indices() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if c == ',' && depth == 0 {
                expand(before, &inside[start..at], found);
                start = at + 1;
            }
        }
        return expand(before, &inside[start..], found);
    }
    if rest.is_empty() {
        return;
    }
    let mut path = before.to_vec();
    match rest.split_once("::") {
        Some((name, more)) => {
            path.push(name.trim().to_owned());
            expand(&path, more, found);
        }
        None => {
            path.push(rest.split_whitespace().next().unwrap_or_default().to_owned());
            found.push(path);
        }
    }
}

/// Which files each file imports from. What a `mod.rs` takes from the files of its own folder is left out: it is their face.
fn imports_of_files() -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let modules: BTreeSet<Vec<String>> =
        files.iter().map(|path| module(path.strip_prefix(&root).unwrap())).collect();
    let mut graph = BTreeMap::new();
    for path in &files {
        let own = module(path.strip_prefix(&root).unwrap());
        let mut to = BTreeSet::new();
        for mut used in used(&fs::read_to_string(path).unwrap()) {
            let mut base = match used[0].as_str() {
                "crate" => Vec::new(),
                "super" => own[..own.len().saturating_sub(1)].to_vec(),
                "self" => own.clone(),
                _ => continue,
            };
            used.remove(0);
            while used.first().is_some_and(|part| part == "super") {
                base.pop();
                used.remove(0);
            }
            base.extend(used);
            // The longest beginning that is a module is the file.
            while !base.is_empty() && !modules.contains(&base) {
                base.pop();
            }
            if !base.is_empty() && base != own && !base.starts_with(&own) {
                to.insert(base);
            }
        }
        graph.insert(own, to);
    }
    graph
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut graph = imports_of_files();
    assert!(graph.values().map(BTreeSet::len).sum::<usize>() > 500, "{}", graph.len());
    // What imports nothing that is left is in no circle.
    loop {
        let free: Vec<Vec<String>> =
            graph.iter().filter(|(_, to)| to.is_empty()).map(|(own, _)| own.clone()).collect();
        if free.is_empty() {
            break;
        }
        for own in free {
            graph.remove(&own);
            graph.values_mut().for_each(|to| {
                to.remove(&own);
            });
        }
    }
    // Nor is what nothing that is left imports.
    loop {
        let imported: BTreeSet<Vec<String>> = graph.values().flatten().cloned().collect();
        let before = graph.len();
        graph.retain(|own, _| imported.contains(own));
        if graph.len() == before {
            break;
        }
    }
    let left: Vec<String> = graph
        .iter()
        .map(|(own, to)| {
            let to: Vec<String> = to.iter().map(|to| to.join("/")).collect();
            format!("{} -> {}", own.join("/"), to.join(", "))
        })
        .collect();
    assert!(left.is_empty(), "files in a circle:\n{}", left.join("\n"));
}

/// What a newcomer reads in two days: the files that docs/spine.md lists.
#[test]
fn the_spine_is_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/spine.md")).unwrap();
    let listed: Vec<&str> = text
        .split("](../")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap_or_default())
        .collect();
    let once: BTreeSet<&str> = listed.iter().copied().collect();
    assert_eq!(once.len(), listed.len(), "a file is listed twice");
    let lines = |path: &str| fs::read_to_string(root.join(path)).unwrap().lines().count();
    let total: usize = listed.iter().map(|path| lines(path)).sum();
    assert!(listed.len() > 30 && total <= 12_000, "{} files, {total} lines", listed.len());
}

#[test]
fn uses_are_written_out() {
    let text =
        "use crate::a::{b, c::{D, e::F}};\nuse super::{G, h as i}; // use crate::x\nuse std::fmt;";
    let paths: Vec<String> = used(text).into_iter().map(|path| path.join("::")).collect();
    let mut want =
        ["crate::a::b", "crate::a::c::D", "crate::a::c::e::F", "super::G", "super::h", "std::fmt"];
    let mut paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    paths.sort_unstable();
    want.sort_unstable();
    assert_eq!(paths, want);
}

#[test]
fn the_check_sees_every_form() {
    let text = "use crate::error::{Error, Result};\nlet x = crate::device::cpu::pool::threads(); // crate::cli\n\
                use crate::{Error, dtype::DType};\n";
    let rooms: Vec<String> = imports(text).into_iter().map(|(_, room)| room).collect();
    assert_eq!(rooms, ["error", "device", "Error", "dtype"]);
}

#[test]
fn no_file_is_named_for_nothing() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            !["utils", "util", "common", "base", "helpers", "misc"].contains(&name.as_str()),
            "{}",
            path.display()
        );
    }
}
