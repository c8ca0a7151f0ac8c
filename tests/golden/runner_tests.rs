//! The runner itself: what it must not pass by.

use crate::suite::{self, Report};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;

const CONFIG: &str = r#"{"surrogate": "vanilla", "peer": "verl", "compute_dtype": "f64", "kind": "normal",
    "aggregation": "token-mean", "clip_low": 0.2, "clip_high": 0.2, "clip_c": 3.0, "kl_coef": 0.0,
    "mask_holes": false, "fully_masked_row": false}"#;

/// A case of one token on the policy, with advantage 2: loss -2, gradient -2.
fn write(path: &Path, op: &str, config: &str, loss: f64, extra: Option<&str>) {
    let metadata = HashMap::from([
        ("op".to_string(), op.to_string()),
        ("config".to_string(), config.to_string()),
        ("tolerance".to_string(), r#"{"rtol": 1e-5, "atol": 1e-6}"#.to_string()),
        ("source".to_string(), "{}".to_string()),
        ("note".to_string(), String::new()),
    ]);
    let (one, two) = (1f32.to_le_bytes(), 2f32.to_le_bytes());
    let (loss, gradient) = (loss.to_le_bytes(), (-2f64).to_le_bytes());
    let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes);
    let mut tensors = vec![
        ("in.logp", view(Dtype::F32, &[1, 1], &one)),
        ("in.old_logp", view(Dtype::F32, &[1, 1], &one)),
        ("in.mask", view(Dtype::F32, &[1, 1], &one)),
        ("in.advantages", view(Dtype::F32, &[1, 1], &two)),
        ("out.loss", view(Dtype::F64, &[], &loss)),
        ("out.dlogp", view(Dtype::F64, &[1, 1], &gradient)),
    ];
    tensors.extend(extra.map(|name| (name, view(Dtype::F32, &[1, 1], &one))));
    let tensors = tensors.into_iter().map(|(name, view)| (name, view.unwrap()));
    safetensors::serialize_to_file(tensors, Some(metadata), path).unwrap();
}

fn report(op: &str, config: &str, loss: f64, extra: Option<&str>) -> Report {
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("a.safetensors"), op, config, loss, extra);
    suite::run(directory.path()).unwrap()
}

/// The message of the one case, which must fail.
fn failure(op: &str, config: &str, loss: f64, extra: Option<&str>) -> String {
    let report = report(op, config, loss, extra);
    assert_eq!((report.passed, report.skipped, report.failed.len()), (0, 0, 1));
    report.failed[0].clone()
}

#[test]
fn a_good_case_passes_and_a_wrong_value_fails() {
    assert_eq!(report("policy_loss", CONFIG, -2.0, None).passed, 1);
    let why = failure("policy_loss", CONFIG, -2.1, None);
    assert!(why.contains("out.loss[0] is -2e0, wanted -2.1e0"), "{why}");
}

#[test]
fn what_is_unknown_fails_by_name() {
    let changed = |from: &str, to: &str| {
        assert!(CONFIG.contains(from));
        failure("policy_loss", &CONFIG.replace(from, to), -2.0, None)
    };
    let why = failure("policy_los", CONFIG, -2.0, None);
    assert!(why.contains("unknown operation `policy_los`"), "{why}");
    let why = changed(r#""clip_c""#, r#""clip_d""#);
    assert!(why.contains("`clip_d`"), "{why}");
    for (from, to) in [
        (r#""vanilla""#, r#""vanilla2""#),
        (r#""verl""#, r#""nobody""#),
        (r#""token-mean""#, r#""token-median""#),
        (r#""f64""#, r#""f16""#),
        ("3.0", r#""3""#),
    ] {
        changed(from, to);
    }
    let with = |field: &str| changed("{", &format!("{{{field},"));
    assert!(with(r#""kl_estimator": "k9""#).contains("k9"));
    // Fields of another peer, which this one does not read.
    assert!(with(r#""importance_sampling_level": "token""#).contains("importance_sampling_level"));
    assert!(with(r#""num_items_in_batch": 7"#).contains("num_items_in_batch"));
    let why = failure("policy_loss", CONFIG, -2.0, Some("in.surprise"));
    assert!(why.contains("in.surprise"), "{why}");
    let why = failure("policy_loss", CONFIG, -2.0, Some("out.surprise"));
    assert!(why.contains("out.surprise"), "{why}");
}

#[test]
fn labels_may_say_anything() {
    let drawn = CONFIG
        .replace(r#""normal""#, r#""of a kind that nobody has heard of""#)
        .replace(r#""mask_holes": false"#, r#""mask_holes": "some""#);
    assert_eq!(report("policy_loss", &drawn, -2.0, None).passed, 1);
    // This one sets the tolerance: an error is relative to the largest entry.
    let extreme = CONFIG.replace(r#""normal""#, r#""extreme""#);
    assert_eq!(report("policy_loss", &extreme, -2.0, None).passed, 1);
}

#[test]
fn what_is_not_covered_is_named() {
    let other = report("flow_matching", "{}", 0.0, None);
    assert!(other.lines[0].contains("`flow_matching` is not covered yet"), "{}", other.lines[0]);
}

#[test]
fn strange_files_fail_and_all_failures_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    write(&at("good.safetensors"), "policy_loss", CONFIG, -2.0, None);
    write(&at("wrong.safetensors"), "policy_loss", CONFIG, 0.0, None);
    std::fs::write(at("truncated.safetensors"), b"12345").unwrap();
    std::fs::write(at("notes.txt"), b"?").unwrap();
    std::fs::write(at("README.md"), b"text").unwrap();
    std::fs::write(at("new.json"), r#"{"op": "unheard_of"}"#).unwrap();
    std::fs::write(at("alone.tokenizer.json"), "{}").unwrap();
    std::fs::write(at("text.json"), r#"{"op": "text_decode"}"#).unwrap();
    std::fs::write(at("text.tokenizer.json"), "{}").unwrap();
    std::fs::create_dir(at("empty_folder")).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    write(&at("folder/case.safetensors"), "flow_matching", "{}", 0.0, None);
    let report = suite::run(directory.path()).unwrap();
    assert_eq!((report.passed, report.skipped, report.failed.len()), (1, 1, 7));
    for name in
        ["wrong", "truncated", "notes.txt", "new.json", "alone", "text.json", "empty_folder"]
    {
        assert!(report.failed.iter().any(|line| line.contains(name)), "{name}");
    }
}
