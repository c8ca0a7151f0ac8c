//! Advantages over groups, as verl and LUFFY spread them over tokens and as TRL gives them a response.

use crate::case::{Array, Case, Outcome};
use gradstone::kernels::advantage::{
    Combination, Estimator, Gae, Groups, Holes, Masked, Outputs, Positions, Responses, Scale,
    SeveralRewards, Singleton, TokenBaseline, TokenOutputs, Tokens, gae, of_responses,
    reinforce_plus_plus, several_rewards, token_baseline,
};

const WHITEN: &str = "masked mean, masked variance with Bessel correction, rsqrt(var+1e-8)";

pub fn run(case: &mut Case) -> Result<Outcome, String> {
    let estimator = case.config.text("estimator")?.ok_or("no estimator is named")?;
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    case.config.labels(&["rewards"]);
    case.config.always("ddof", 1.0)?;
    match estimator.as_str() {
        "trl_grpo" => trl(case),
        "gae" => generalised(case),
        "reinforce_plus_plus" => reinforce(case),
        "optimal_token_baseline" => baseline(case, Positions::Position),
        "tir_optimal_token_baseline" => baseline(case, Positions::LiveToken),
        name => {
            let estimator = outcome(case, name)?;
            per_token(case, &estimator)
        }
    }
}

/// An estimator that gives one advantage a response.
fn outcome(case: &mut Case, name: &str) -> Result<Estimator, String> {
    // What verl does to a group of one, whether the case says so or not: all but the vectorised RLOO keep the reward.
    case.config.one_of("singleton", &["", "mean=0,std=1", "mean=0"])?;
    case.config.one_of("zero_std", &["", "std replaced by 1"])?;
    let singleton = Singleton::Reward;
    Ok(match name {
        "grpo" | "grpo_vectorized" | "grpo_split" => {
            let epsilon = case.config.need("epsilon")?;
            let variance_floor = case.config.number("variance_floor")?.unwrap_or(0.0);
            let (scale, variance_threshold) = (Scale::Group, 0.0);
            if case.config.flag("norm_by_std")?.unwrap_or(true) {
                Estimator::Grpo { epsilon, scale, singleton, variance_floor, variance_threshold }
            } else {
                Estimator::DrGrpo { singleton }
            }
        }
        "grpo_passk" => {
            let divide = case.config.flag("norm_by_std")?.unwrap_or(true);
            Estimator::PassK { epsilon: case.config.need("epsilon")?, divide }
        }
        "rloo" => Estimator::Rloo { singleton },
        "rloo_vectorized" => Estimator::Rloo { singleton: Singleton::Zero },
        "opo" => Estimator::Opo { singleton },
        "gpg" => {
            case.config.one_of("alpha", &["B / count_nonzero(rewards)"])?;
            Estimator::Gpg { f_norm: case.config.need("f_norm")?, singleton }
        }
        "remax" => Estimator::Remax {},
        "reinforce_plus_plus_baseline" => {
            case.config.one_of("whiten", &[WHITEN])?;
            Estimator::ReinforcePlusPlusBaseline { singleton, epsilon: 1e-8 }
        }
        _ => return Err(format!("unknown estimator `{name}`")),
    })
}

/// Token rewards and a mask on `[B, T]`: packed sequences of T tokens.
struct Padded {
    rewards: Vec<f32>,
    mask: Vec<u8>,
    offsets: Vec<i64>,
    rows: usize,
    length: usize,
}

impl Padded {
    fn read(case: &mut Case) -> Result<Padded, String> {
        let rewards = case.tensor("in.token_level_rewards")?;
        let [rows, length] = rewards.matrix()?;
        let mask = case.tensor("in.mask")?.values;
        if let Some(stated) = case.optional("in.rewards") {
            let row = |row: usize| rewards.values[row * length..][..length].iter().sum::<f64>();
            if (0..rows).any(|i| row(i) as f32 != stated.f32()[i]) {
                return Err("in.rewards are not the sums of in.token_level_rewards".to_string());
            }
        }
        Ok(Padded {
            rewards: rewards.f32(),
            mask: mask.iter().map(|m| u8::from(*m != 0.0)).collect(),
            offsets: (0..=rows).map(|row| (row * length) as i64).collect(),
            rows,
            length,
        })
    }

    fn tokens(&self) -> Tokens<'_> {
        Tokens { mask: &self.mask, offsets: &self.offsets }
    }

    fn of_row<'a, T>(&self, values: &'a [T], row: usize) -> &'a [T] {
        &values[row * self.length..][..self.length]
    }

    /// Compares where the mask is set: what a peer leaves in masked tokens, its loss never reads.
    fn compare_live(&self, case: &mut Case, name: &str, got: &[f32]) -> Result<(), String> {
        let Some(want) = case.optional(name) else { return Ok(()) };
        let live = |i: usize| self.mask[i] != 0;
        let filled: Vec<f64> = got
            .iter()
            .enumerate()
            .map(|(i, got)| if live(i) { f64::from(*got) } else { want.values[i] })
            .collect();
        case.compare(name, &filled)
    }
}

/// verl: a response's reward is the sum of its token rewards; every live token gets its advantage.
fn per_token(case: &mut Case, estimator: &Estimator) -> Result<Outcome, String> {
    let batch = Padded::read(case)?;
    let ids: Vec<i32> = match case.optional("in.group_ids") {
        Some(ids) => ids.i32(),
        None => (0..batch.rows as i32).collect(),
    };
    let rewards: Vec<f32> =
        (0..batch.rows).map(|row| batch.of_row(&batch.rewards, row).iter().sum()).collect();
    let lengths: Vec<i64> = (0..batch.rows)
        .map(|row| batch.of_row(&batch.mask, row).iter().map(|m| i64::from(*m)).sum())
        .collect();
    let greedy = case.optional("in.reward_baselines").map(|x| x.f32());
    let basis: Option<Vec<u8>> = case
        .optional("in.on_policy_mask")
        .map(|x| x.values.iter().map(|m| u8::from(*m != 0.0)).collect());
    let mut advantage = vec![0f32; batch.rows];
    let outputs = Outputs { advantage: &mut advantage, mean: None, std: None, flags: None };
    let responses = Responses {
        lengths: Some(&lengths),
        greedy: greedy.as_deref(),
        basis: basis.as_deref(),
        ..Responses::new(&rewards, Groups::Ids(&ids))
    };
    of_responses(estimator, &responses, outputs).map_err(|e| e.to_string())?;
    let spread: Vec<f32> = (0..batch.rows * batch.length)
        .map(|i| if batch.mask[i] != 0 { advantage[i / batch.length] } else { 0.0 })
        .collect();
    if matches!(estimator, Estimator::Remax {}) {
        // The peer leaves rewards to go in masked tokens. Its returns are these: the reward, which is on the last live token.
        batch.compare_live(case, "out.advantages", &spread)?;
        let returns: Vec<f32> =
            (0..batch.rows * batch.length).map(|i| rewards[i / batch.length]).collect();
        batch.compare_live(case, "out.returns", &returns)?;
    } else {
        case.compare("out.advantages", &spread)?;
        case.compare("out.returns", &spread)?;
    }
    Ok(Outcome::Passed)
}

fn generalised(case: &mut Case) -> Result<Outcome, String> {
    let whitened = format!("{WHITEN}; whitened values are NOT re-masked");
    case.config.one_of("whiten", &[whitened.as_str()])?;
    let settings = Gae {
        gamma: case.config.need("gamma")?,
        lambda: case.config.need("lam")?,
        masked: Masked::Carried,
        ..Gae::default()
    };
    let batch = Padded::read(case)?;
    let values = case.tensor("in.values")?.f32();
    let tokens = batch.rewards.len();
    let (mut advantage, mut returns) = (vec![f32::NAN; tokens], vec![f32::NAN; tokens]);
    let out = TokenOutputs { advantage: &mut advantage, returns: Some(&mut returns) };
    gae(&settings, &batch.rewards, &values, batch.tokens(), out).map_err(|e| e.to_string())?;
    case.compare("out.advantages", &advantage)?;
    case.compare("out.returns", &returns)?;
    Ok(Outcome::Passed)
}

fn reinforce(case: &mut Case) -> Result<Outcome, String> {
    let estimator =
        Estimator::ReinforcePlusPlus { gamma: case.config.need("gamma")?, epsilon: 1e-8 };
    let batch = Padded::read(case)?;
    let tokens = batch.rewards.len();
    let (mut advantage, mut returns) = (vec![f32::NAN; tokens], vec![f32::NAN; tokens]);
    let out = TokenOutputs { advantage: &mut advantage, returns: Some(&mut returns) };
    reinforce_plus_plus(&estimator, Holes::Reset, &batch.rewards, batch.tokens(), out)
        .map_err(|e| e.to_string())?;
    case.compare("out.advantages", &advantage)?;
    batch.compare_live(case, "out.returns", &returns)?;
    Ok(Outcome::Passed)
}

fn baseline(case: &mut Case, positions: Positions) -> Result<Outcome, String> {
    let estimator = Estimator::OptimalTokenBaseline {
        epsilon: case.config.need("epsilon")?,
        // The peer's form for several turns leaves it out unless it is told not to.
        zero_tail: case
            .config
            .flag("handle_zero_tail")?
            .unwrap_or(positions == Positions::LiveToken),
        positions,
    };
    let batch = Padded::read(case)?;
    let ids = case.tensor("in.group_ids")?.i32();
    let (logprob, sum_squares) =
        (case.tensor("in.old_logp")?.f32(), case.tensor("in.sum_pi_squared")?.f32());
    let weight = case.optional("in.rollout_is_weights").map(|x| x.f32());
    let inputs = TokenBaseline {
        rewards: &batch.rewards,
        logprob: &logprob,
        sum_squares: &sum_squares,
        weight: weight.as_deref(),
    };
    let tokens = batch.rewards.len();
    let (mut advantage, mut returns) = (vec![f32::NAN; tokens], vec![f32::NAN; tokens]);
    let out = TokenOutputs { advantage: &mut advantage, returns: Some(&mut returns) };
    let groups = Groups::Ids(&ids);
    token_baseline(&estimator, &inputs, batch.tokens(), groups, Masked::Carried, out)
        .map_err(|e| e.to_string())?;
    case.compare("out.advantages", &advantage)?;
    case.compare("out.returns", &returns)?;
    Ok(Outcome::Passed)
}

/// TRL: groups of one size, rewards of several functions, NaN where a function cannot score.
fn trl(case: &mut Case) -> Result<Outcome, String> {
    let per_function = case.tensor("in.rewards_per_func")?;
    let [rows, functions] = per_function.matrix()?;
    let weights = case.tensor("in.reward_weights")?.values;
    if weights.len() != functions {
        return Err(format!("{} weights for {functions} reward functions", weights.len()));
    }
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
    let known = ["sum_then_normalize", "normalize_then_sum"];
    let combination = match case.config.one_of("multi_objective_aggregation", &known)?.as_str() {
        "normalize_then_sum" => Combination::NormalizeThenSum,
        _ => Combination::SumThenNormalize,
    };
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
    let evaluated = Evaluated::of(&estimator, combination, &per_function, &weights, &ids)?;
    case.compare("out.advantages", &evaluated.advantage)?;
    let whole = vec![0; rows];
    let per_row: Vec<f32> = match (evaluated.batch_std, scale.as_str()) {
        (Some(std), _) => vec![std as f32; rows],
        (None, "batch") => {
            let all = Evaluated::of(&estimator, combination, &per_function, &weights, &whole)?;
            vec![all.std[0]; rows]
        }
        _ => (0..rows).map(|row| evaluated.std[row / size]).collect(),
    };
    case.compare("out.std_rewards", &per_row)?;
    Ok(Outcome::Passed)
}

struct Evaluated {
    advantage: Vec<f32>,
    std: Vec<f32>,
    batch_std: Option<f64>,
}

impl Evaluated {
    fn of(
        estimator: &Estimator,
        combination: Combination,
        rewards: &Array,
        weights: &[f64],
        ids: &[i32],
    ) -> Result<Evaluated, String> {
        let groups = Groups::Ids(ids);
        let mut advantage = vec![0f32; ids.len()];
        let mut std = vec![0f32; groups.count().map_err(|e| e.to_string())?];
        let outputs =
            Outputs { advantage: &mut advantage, mean: None, std: Some(&mut std), flags: None };
        let of = SeveralRewards { rewards: &rewards.f32(), weights, groups };
        let several =
            several_rewards(estimator, combination, &of, outputs).map_err(|e| e.to_string())?;
        Ok(Evaluated { advantage, std, batch_std: several.batch_std })
    }
}
