//! The examples run to their end; each fails where what it shows does not work.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::process::Command;

/// `cargo test` builds the examples before it runs a test; with `--test examples`, `cargo build --examples` comes first.
fn runs(name: &str, args: &[&str]) -> String {
    let program =
        Path::new(env!("CARGO_BIN_EXE_gradstone")).parent().unwrap().join("examples").join(name);
    let output = Command::new(&program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let (out, err) = (output.stdout, output.stderr);
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&err));
    String::from_utf8(out).unwrap()
}

#[test]
fn kernels_alone() {
    assert!(runs("kernels_alone", &[]).contains("after"));
}

#[test]
fn own_op() {
    let line = runs("own_op", &[]);
    let slope: f64 = line.split_whitespace().nth(2).and_then(|word| word.parse().ok()).unwrap();
    assert!((slope - 3.0).abs() < 0.05, "{line}");
}

#[test]
fn own_task() {
    assert!(runs("own_task", &["20"]).contains("held out: "));
}

#[test]
fn own_policy() {
    assert!(runs("own_policy", &[]).contains("digits right: "));
}
