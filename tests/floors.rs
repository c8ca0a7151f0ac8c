//! The house stands on its floors: a file imports from lower floors only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

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
