//! Cases computed by other projects' published code: inputs and outputs in `.safetensors` files.
//!
//! The directory comes from `GRADSTONE_GOLDEN_DIR` (default `../shared/golden` beside the repository). Without it the
//! test says so loudly and passes. A case whose operation, config field, value or tensor is not known fails: nothing
//! is passed by in silence. What is not covered yet stands in lists ([`suite::NOT_COVERED`] for operations, one in
//! each operation's file for its variants), and every case left out is printed by name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "golden/block_diffusion.rs"]
mod block_diffusion;
#[path = "golden/case.rs"]
mod case;
#[path = "golden/causal_lm.rs"]
mod causal_lm;
#[path = "golden/config.rs"]
mod config;
#[path = "golden/faithrl.rs"]
mod faithrl;
#[path = "golden/group_advantage.rs"]
mod group_advantage;
#[path = "golden/linear_logprob.rs"]
mod linear_logprob;
#[path = "golden/linear_policy_loss.rs"]
mod linear_policy_loss;
#[path = "golden/logprob.rs"]
mod logprob;
#[path = "golden/peer_objective.rs"]
mod peer_objective;
#[path = "golden/policy_loss.rs"]
mod policy_loss;
#[path = "golden/replay.rs"]
mod replay;
#[path = "golden/rollout_correction.rs"]
mod rollout_correction;
#[path = "golden/runner_tests.rs"]
mod runner_tests;
#[path = "golden/suite.rs"]
mod suite;
#[path = "golden/text_decode.rs"]
mod text_decode;
#[path = "golden/vq.rs"]
mod vq;

use std::path::{Path, PathBuf};

fn directory() -> PathBuf {
    match std::env::var_os("GRADSTONE_GOLDEN_DIR") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/golden")),
    }
}

/// The cases of this repository, which `make.py` beside them wrote: they run wherever the tests do.
#[test]
fn committed_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-data");
    let report = suite::run(&folder).unwrap();
    println!("{}", report.lines.join("\n"));
    assert!(report.failed.is_empty(), "{}", report.failed.join("\n"));
    assert_eq!((report.passed, report.skipped), (5, 0));
}

#[test]
fn golden_cases() {
    let directory = directory();
    if !directory.is_dir() {
        println!("\n!!! GOLDEN CASES SKIPPED: there is no directory {}", directory.display());
        println!("!!! Set GRADSTONE_GOLDEN_DIR to run them.\n");
        return;
    }
    let report = suite::run(&directory).unwrap();
    for line in &report.lines {
        println!("{line}");
    }
    let suite::Report { passed, skipped, failed, .. } = &report;
    println!("golden: {passed} passed, {skipped} skipped, {} failed", failed.len());
    assert!(failed.is_empty(), "golden cases failed:\n{}", failed.join("\n"));
    assert!(passed + skipped > 0, "{} holds no case", directory.display());
}
