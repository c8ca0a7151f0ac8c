//! Cases computed by other projects' published code: inputs and outputs in `.safetensors` files.
//!
//! `GRADSTONE_GOLDEN_DIR` is a list of folders, separated as `PATH` is; by default `../shared/golden` and
//! `../shared/golden-more` beside the repository. A folder that is not there is named loudly and left out. A case whose
//! operation, value, config field or tensor is not known or not used fails: nothing is passed by in silence. Operations
//! that nothing computes yet stand in [`suite::NOT_COVERED`], and every case left out is printed by name.
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

fn folders() -> Vec<PathBuf> {
    match std::env::var_os("GRADSTONE_GOLDEN_DIR") {
        Some(list) => std::env::split_paths(&list).collect(),
        None => ["golden", "golden-more"]
            .map(|name| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared").join(name))
            .to_vec(),
    }
}

/// The cases of this repository, which `make.py` beside them wrote: they run wherever the tests do.
#[test]
fn committed_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-data");
    let report = suite::run(&folder).unwrap();
    println!("{}", report.lines.join("\n"));
    assert!(report.failed.is_empty(), "{}", report.failed.join("\n"));
    assert_eq!((report.passed, report.skipped), (15, 0));
}

#[test]
fn golden_cases() {
    let (mut passed, mut skipped, mut failed) = (0, 0, Vec::new());
    for folder in folders() {
        if !folder.is_dir() {
            println!("\n!!! GOLDEN CASES SKIPPED: there is no folder {}", folder.display());
            println!("!!! Set GRADSTONE_GOLDEN_DIR to run them.\n");
            continue;
        }
        let report = suite::run(&folder).unwrap();
        for line in &report.lines {
            println!("{line}");
        }
        assert!(!report.lines.is_empty(), "{} holds no case", folder.display());
        passed += report.passed;
        skipped += report.skipped;
        failed.extend(report.failed);
    }
    println!("golden: {passed} passed, {skipped} skipped, {} failed", failed.len());
    assert!(failed.is_empty(), "golden cases failed:\n{}", failed.join("\n"));
}
