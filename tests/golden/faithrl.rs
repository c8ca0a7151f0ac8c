//! FaithRL's code: modulated advantages, rewards by label and length, shaping.

use crate::case::{Case, Outcome};
use gradstone::kernels::advantage::{Estimator, Groups, Outputs, Scale, Singleton, forward};
use gradstone::kernels::policy_loss::Advantages;
use gradstone::kernels::step_credit::{self, Inputs, Shaping, StepCredit, Window};
use gradstone::rl::faithful::{Baseline, OutcomeReward, calibration_reward, length_penalty};

/// Rows of a padded batch as packed sequences.
fn offsets(rows: usize, length: usize) -> Vec<i64> {
    (0..=rows).map(|row| (row * length) as i64).collect()
}

fn bytes(mask: &[f64]) -> Vec<u8> {
    mask.iter().map(|m| u8::from(*m != 0.0)).collect()
}

pub fn advantage(case: &mut Case) -> Result<Outcome, String> {
    case.config.one_of("compute_dtype", &["f64"])?;
    case.config.one_of("estimator", &["faithrl_grpo"])?;
    case.config.labels(&["rewards"]);
    case.config.one_of("singleton", &["mean=0,std=1,var=0"])?;
    let strategies = ["grpo_evar_math_weighted", "fspo", "grpo", "knowrl"];
    let strategy = case.config.one_of("strategy", &strategies)?;
    case.config.always("ddof", 1.0)?;
    let estimator = Estimator::Grpo {
        epsilon: case.config.need("epsilon")?,
        scale: Scale::Group,
        singleton: Singleton::Reward,
        variance_floor: 0.0,
        variance_threshold: case.config.need("variance_threshold")?,
    };
    let token_mask = case.tensor("in.mask")?;
    let [rows, length] = token_mask.matrix()?;
    let mask = bytes(&token_mask.values);
    let rewards = case.tensor("in.rewards")?.f32();
    let token_rewards = case.tensor("in.token_level_rewards")?.values;
    let sums: Vec<f32> =
        token_rewards.chunks(length).map(|row| row.iter().sum::<f64>() as f32).collect();
    if sums != rewards {
        return Err("in.rewards are not the sums of in.token_level_rewards".to_string());
    }
    let ids = case.tensor("in.group_ids")?.i32();
    let mut base = vec![0f32; rows];
    let out = Outputs { advantage: &mut base, mean: None, std: None, flags: None };
    forward(&estimator, &rewards, Groups::Ids(&ids), out).map_err(|e| e.to_string())?;
    let spread: Vec<f32> =
        (0..rows * length).map(|i| if mask[i] != 0 { base[i / length] } else { 0.0 }).collect();
    case.compare("out.base_advantages", &spread)?;
    if ["grpo", "knowrl"].contains(&strategy.as_str()) {
        // These have no credit of steps.
        case.compare("out.advantages", &spread)?;
        case.compare("out.returns", &spread)?;
        return Ok(Outcome::Passed);
    }

    let alpha = case.config.need("alpha")? as f32;
    let labels = case.tensor("in.step_mask")?.f32();
    let offsets = offsets(rows, length);
    let inputs = Inputs {
        advantage: Advantages::PerSequence(&base),
        labels: &labels,
        mask: &mask,
        offsets: &offsets,
    };
    let mut credited = vec![f32::NAN; rows * length];
    let out = step_credit::Outputs { advantage: &mut credited, kept: None };
    let rule = StepCredit::Modulate { alpha, alpha_failed: None };
    let counts = step_credit::forward(&rule, &inputs, out).map_err(|e| e.to_string())?;
    case.compare("out.advantages", &credited)?;
    case.compare("out.returns", &credited)?;
    // The peer divides by the live tokens plus 1e-6.
    for (name, count) in [
        ("out.ratio_pos_valid", counts.positive_valid),
        ("out.ratio_pos_invalid", counts.positive_invalid),
        ("out.ratio_neg_valid", counts.negative_valid),
        ("out.ratio_neg_invalid", counts.negative_invalid),
    ] {
        case.compare(name, &[count as f64 / (counts.live as f64 + 1e-6)])?;
    }
    Ok(Outcome::Passed)
}

pub fn reward(case: &mut Case) -> Result<Outcome, String> {
    case.config.text("compute_dtype")?;
    let modes = ["THS", "GRPO", "TRUTHRL", "KNOWRL", "RLCR", "THS_METRIC"];
    let mode = case.config.one_of("mode", &modes)?;
    match mode.as_str() {
        "RLCR" => calibration(case),
        "THS_METRIC" => helpfulness(case),
        _ => mapped(case, &mode),
    }
}

fn mapped(case: &mut Case, mode: &str) -> Result<Outcome, String> {
    let rule = match mode {
        "THS" => OutcomeReward::Geometric {
            // The peer's rates where none was measured.
            baseline: Baseline {
                correct: case.config.number("x0")?.unwrap_or(1.0),
                hallucinated: case.config.number("y0")?.unwrap_or(1.0),
            },
        },
        "TRUTHRL" => OutcomeReward::Ternary {},
        "KNOWRL" => OutcomeReward::Score {},
        _ => OutcomeReward::Binary {},
    };
    let scores = case.tensor("in.answer_score")?.values;
    let lengths = case.tensor("in.response_len")?.values;
    let penalties: Vec<f64> = lengths.iter().map(|n| length_penalty(*n as usize)).collect();
    let totals: Vec<f64> = scores.iter().zip(&penalties).map(|(s, p)| s - p).collect();
    // The mapping compares totals in f32, whose rounding stays far from the threshold.
    let rewards: Vec<f64> = totals.iter().map(|total| rule.of_total(*total)).collect();
    case.compare("out.length_penalty", &penalties)?;
    case.compare("out.total_score", &totals)?;
    case.compare("out.reward", &rewards)?;
    Ok(Outcome::Passed)
}

fn calibration(case: &mut Case) -> Result<Outcome, String> {
    let confidence = case.tensor("in.confidence")?.values;
    let correct = case.tensor("in.correct")?.values;
    let mask = case.tensor("in.mask")?;
    let [rows, length] = mask.matrix()?;
    let mut rewards = vec![0f64; rows * length];
    for row in 0..rows {
        let live = &mask.values[row * length..][..length];
        // The peer counts the live tokens, and an empty row has its reward on the first.
        let count = live.iter().filter(|m| **m != 0.0).count();
        let last = count.max(1) - 1;
        rewards[row * length + last] = calibration_reward(correct[row] != 0.0, confidence[row]);
    }
    case.compare("out.token_rewards", &rewards)?;
    Ok(Outcome::Passed)
}

fn helpfulness(case: &mut Case) -> Result<Outcome, String> {
    let (x0, y0) = (case.tensor("in.x0")?.values, case.tensor("in.y0")?.values);
    let (x1, y1) = (case.tensor("in.x1")?.values, case.tensor("in.y1")?.values);
    let score = |i: usize| {
        Baseline { correct: x0[i], hallucinated: y0[i] }.truthful_helpfulness(x1[i], y1[i])
    };
    let scores: Vec<f64> = (0..x0.len()).map(score).collect();
    case.compare("out.ths", &scores)?;
    Ok(Outcome::Passed)
}

pub fn shaping(case: &mut Case) -> Result<Outcome, String> {
    case.config.one_of("compute_dtype", &["f64"])?;
    let shaping = Shaping {
        gamma: case.config.need("gamma")? as f32,
        alpha: case.config.need("alpha")? as f32,
        window: case.config.need("smoothing_window")? as usize,
        clip: case.config.need("clip_value")? as f32,
        reads: Window::Literal,
    };
    let labels = case.tensor("in.step_mask")?;
    let [rows, length] = labels.matrix()?;
    let mask = bytes(&case.tensor("in.mask")?.values);
    let mut out = vec![f32::NAN; rows * length];
    step_credit::shape(&shaping, &labels.f32(), &mask, &offsets(rows, length), &mut out)
        .map_err(|e| e.to_string())?;
    case.compare("out.shaping", &out)?;
    Ok(Outcome::Passed)
}
