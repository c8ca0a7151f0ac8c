//! Outcome advantages over groups, as verl spreads them over tokens and as TRL gives them a response.

use crate::case::{Case, Outcome};
use gradstone::kernels::advantage::{Estimator, Groups, Outputs, Scale, Singleton, forward};

/// Estimators that the library does not have yet.
const NOT_COVERED: &[&str] = &[
    "gae",
    "gpg",
    "grpo_passk",
    "grpo_split",
    "opo",
    "optimal_token_baseline",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "tir_optimal_token_baseline",
];

/// Every field that a case of this operation may have.
const FIELDS: &[&str] = &[
    "alpha",
    "compute_dtype",
    "ddof",
    "epsilon",
    "estimator",
    "f_norm",
    "gamma",
    "handle_zero_tail",
    "kind",
    "lam",
    "multi_objective_aggregation",
    "nan_ok",
    "norm_by_std",
    "num_generations",
    "rewards",
    "scale_rewards",
    "singleton",
    "variance_floor",
    "whiten",
    "zero_std",
];

pub fn run(case: &mut Case) -> Result<Outcome, String> {
    case.config.check_names(FIELDS)?;
    let estimator = case.config.text("estimator")?.ok_or("no estimator is named")?;
    if NOT_COVERED.contains(&estimator.as_str()) {
        return Ok(Outcome::Skipped(format!("estimator `{estimator}` is not covered yet")));
    }
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    case.config.one_of(
        "kind",
        &["normal", "binary", "equal", "mixed", "nan", "pairs", "singletons", "uneven"],
    )?;
    case.config.one_of("rewards", &["normal", "binary", "nearly"])?;
    case.config.always("ddof", 1.0)?;
    match estimator.as_str() {
        "grpo" | "grpo_vectorized" => {
            let singleton = singleton(case)?;
            let estimator = if case.config.flag("norm_by_std")?.unwrap_or(true) {
                let epsilon = case.config.need("epsilon")?;
                let variance_floor = case.config.number("variance_floor")?.unwrap_or(0.0);
                Estimator::Grpo { epsilon, scale: Scale::Group, singleton, variance_floor }
            } else {
                case.config.number("epsilon")?;
                case.config.number("variance_floor")?;
                Estimator::DrGrpo { singleton }
            };
            per_token(case, &estimator)
        }
        "rloo" => per_token(case, &Estimator::Rloo { singleton: Singleton::Reward }),
        "rloo_vectorized" => per_token(case, &Estimator::Rloo { singleton: Singleton::Zero }),
        "trl_grpo" => trl(case),
        _ => Err(format!("unknown estimator `{estimator}`")),
    }
}

fn singleton(case: &mut Case) -> Result<Singleton, String> {
    match case.config.text("singleton")?.as_deref() {
        None => Ok(Singleton::Zero),
        Some("mean=0,std=1") => Ok(Singleton::Reward),
        Some(other) => Err(format!("config field `singleton` has the unknown value `{other}`")),
    }
}

/// verl: a response's reward is the sum of its token rewards; every live token gets its advantage.
fn per_token(case: &mut Case, estimator: &Estimator) -> Result<Outcome, String> {
    let token_rewards = case.tensor("in.token_level_rewards")?;
    let [rows, length] = token_rewards.matrix()?;
    let mask = case.tensor("in.mask")?.values;
    let ids = case.tensor("in.group_ids")?.i32();
    let sum = |row: usize| token_rewards.values[row * length..][..length].iter().sum::<f64>();
    let rewards: Vec<f32> = (0..rows).map(|row| sum(row) as f32).collect();
    if let Some(stated) = case.optional("in.rewards")
        && stated.f32() != rewards
    {
        return Err("in.rewards are not the sums of in.token_level_rewards".to_string());
    }
    let mut advantage = vec![0f32; rows];
    let outputs = Outputs { advantage: &mut advantage, mean: None, std: None, flags: None };
    forward(estimator, &rewards, Groups::Ids(&ids), outputs).map_err(|e| e.to_string())?;
    let spread: Vec<f32> = (0..rows * length)
        .map(|i| if mask[i] != 0.0 { advantage[i / length] } else { 0.0 })
        .collect();
    case.compare("out.advantages", &spread)?;
    case.compare("out.returns", &spread)?;
    Ok(Outcome::Passed)
}

/// TRL: groups of one size, rewards of several functions added with weights, NaN where a function cannot score.
fn trl(case: &mut Case) -> Result<Outcome, String> {
    let aggregation = case
        .config
        .one_of("multi_objective_aggregation", &["sum_then_normalize", "normalize_then_sum"])?;
    if aggregation == "normalize_then_sum" {
        return Ok(Outcome::Skipped(format!("`{aggregation}` is not covered yet")));
    }
    let per_function = case.tensor("in.rewards_per_func")?;
    let [rows, functions] = per_function.matrix()?;
    let weights = case.tensor("in.reward_weights")?.values;
    if weights.len() != functions {
        return Err(format!("{} weights for {functions} reward functions", weights.len()));
    }
    let rewards: Vec<f32> = (0..rows)
        .map(|row| {
            let scores = &per_function.values[row * functions..][..functions];
            let scored = scores.iter().zip(&weights).filter(|(score, _)| !score.is_nan());
            let terms: Vec<f64> = scored.map(|(score, weight)| score * weight).collect();
            if terms.is_empty() { f32::NAN } else { terms.iter().sum::<f64>() as f32 }
        })
        .collect();
    if let Some(stated) = case.optional("in.rewards")
        && stated.values.len() != rows
    {
        return Err("in.rewards has another length than in.rewards_per_func".to_string());
    }
    let size = case.config.need("num_generations")? as usize;
    let ids = case.tensor("in.group_ids")?.i32();
    if ids.iter().enumerate().any(|(i, id)| *id as usize != i / size.max(1)) {
        return Err("in.group_ids are not consecutive groups of num_generations".to_string());
    }

    let epsilon = case.config.need("epsilon")?;
    let singleton = Singleton::Zero;
    let grpo = |scale| Estimator::Grpo {
        epsilon,
        scale,
        singleton,
        variance_floor: 0.0,
        variance_threshold: 0.0,
    };
    let scale = case.config.one_of("scale_rewards", &["group", "batch", "none"])?;
    let estimator = match scale.as_str() {
        "group" => grpo(Scale::Group),
        "batch" => grpo(Scale::Batch),
        _ => Estimator::DrGrpo { singleton },
    };
    let groups = Groups::Ids(&ids);
    let mut advantage = vec![0f32; rows];
    let mut std = vec![0f32; groups.count().map_err(|e| e.to_string())?];
    let outputs =
        Outputs { advantage: &mut advantage, mean: None, std: Some(&mut std), flags: None };
    forward(&estimator, &rewards, groups, outputs).map_err(|e| e.to_string())?;
    case.compare("out.advantages", &advantage)?;
    let per_row: Vec<f32> = if scale == "batch" {
        let mut std = [0f32];
        let mut unused = vec![0f32; rows];
        let outputs =
            Outputs { advantage: &mut unused, mean: None, std: Some(&mut std), flags: None };
        let whole = [0, rows as i64];
        forward(&estimator, &rewards, Groups::Offsets(&whole), outputs)
            .map_err(|e| e.to_string())?;
        vec![std[0]; rows]
    } else {
        (0..rows).map(|row| std[row / size]).collect()
    };
    case.compare("out.std_rewards", &per_row)?;
    Ok(Outcome::Passed)
}
