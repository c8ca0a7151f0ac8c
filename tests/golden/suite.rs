//! Finding the cases of a directory, running each, and reporting all of them.

use crate::case::{Case, Outcome};
use crate::{
    block_diffusion, causal_lm, faithrl, group_advantage, linear_logprob, linear_policy_loss,
    logprob, policy_loss, replay, text_decode, vq,
};
use std::path::Path;

/// Operations that no kernel or model computes yet.
pub const NOT_COVERED: &[&str] = &["flow_matching"];

#[derive(Default)]
pub struct Report {
    pub passed: usize,
    pub skipped: usize,
    /// One line a failing case.
    pub failed: Vec<String>,
    /// One line a case.
    pub lines: Vec<String>,
}

/// Runs every case of `directory`. Anything in it that is no case and no text is a failure.
pub fn run(directory: &Path) -> std::io::Result<Report> {
    let mut names: Vec<String> = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    names.sort();
    let mut report = Report::default();
    for name in &names {
        let path = directory.join(name);
        let outcome = if name.starts_with('.') || name.ends_with(".md") || name.ends_with(".py") {
            continue;
        } else if let Some(stem) = name.strip_suffix(".tokenizer.json") {
            // It belongs to the case beside it.
            if names.contains(&format!("{stem}.json")) {
                continue;
            }
            Err("a tokenizer without its case".to_string())
        } else if name.ends_with(".json") {
            run_json(&path)
        } else if name.ends_with(".safetensors") {
            Case::read(&path).and_then(|mut case| run_case(&mut case))
        } else if path.join("case.safetensors").is_file() {
            Case::read(&path.join("case.safetensors"))
                .and_then(|mut case| run_folder(&path, &mut case))
        } else {
            Err("neither a case nor text".to_string())
        };
        match outcome {
            Ok(Outcome::Passed) => {
                report.passed += 1;
                report.lines.push(format!("golden: pass {name}"));
            }
            Ok(Outcome::Skipped(why)) => {
                report.skipped += 1;
                report.lines.push(format!("golden: SKIP {name}: {why}"));
            }
            Err(why) => {
                report.lines.push(format!("golden: FAIL {name}: {why}"));
                report.failed.push(format!("{name}: {why}"));
            }
        }
    }
    Ok(report)
}

fn run_case(case: &mut Case) -> Result<Outcome, String> {
    let outcome = match case.op.as_str() {
        "logprob" => logprob::run(case)?,
        "linear_logprob" => linear_logprob::run(case)?,
        "faithrl_advantage" => faithrl::advantage(case)?,
        "faithrl_reward" => faithrl::reward(case)?,
        "faithrl_shaping" => faithrl::shaping(case)?,
        "group_advantage" => group_advantage::run(case)?,
        "policy_loss" => policy_loss::run(case)?,
        "linear_policy_loss" => linear_policy_loss::run(case)?,
        "replay" => replay::loss(case)?,
        "replay_bucket_weights" => replay::bucket_weights(case)?,
        "block_diffusion_mask" => block_diffusion::mask(case)?,
        "block_diffusion_loss" => block_diffusion::loss(case)?,
        "vq_quantize" => vq::quantize(case)?,
        "vq_decode" => vq::decode(case)?,
        op => return not_covered(op),
    };
    if outcome == Outcome::Passed {
        case.finish()?;
    }
    Ok(outcome)
}

fn run_folder(path: &Path, case: &mut Case) -> Result<Outcome, String> {
    if case.op != "causal_lm" {
        return run_case(case);
    }
    let outcome = causal_lm::run(path, case)?;
    case.finish()?;
    Ok(outcome)
}

fn run_json(path: &Path) -> Result<Outcome, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let case: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    match case.get("op").and_then(serde_json::Value::as_str) {
        Some("text_decode") => text_decode::run(path, &case),
        Some(op) => Err(format!("no JSON case of operation `{op}` is known")),
        None => Err("a JSON file without `op`".to_string()),
    }
}

fn not_covered(op: &str) -> Result<Outcome, String> {
    if NOT_COVERED.contains(&op) {
        return Ok(Outcome::Skipped(format!("operation `{op}` is not covered yet")));
    }
    Err(format!("unknown operation `{op}`"))
}
