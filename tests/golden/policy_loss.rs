//! Policy losses on padded `[B, T]` tensors, which are packed sequences with a mask here.

use crate::case::{Array, Case, Outcome};
use crate::peer_objective::{Ask, Counts, faithrl, trl, verl};
use gradstone::kernels::policy_loss::{
    Advantages, Gradients, Inputs, Metrics, Objective, Surrogate, forward_backward,
};
use gradstone::kernels::rollout_correction::{self, Bound, Level, RolloutCorrection, Weight};
use gradstone::kernels::token_selection::{self, Selection};

pub fn run(case: &mut Case) -> Result<Outcome, String> {
    let surrogate = case.config.text("surrogate")?.ok_or("no surrogate is named")?;
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    case.config.labels(&["fully_masked_row", "full_masked", "mask_holes", "holes", "scale"]);

    let mut batch = Batch::read(case)?;
    let peer = case.config.text("peer")?.ok_or("no peer is named")?;
    let ask = match (peer.as_str(), surrogate.as_str()) {
        ("verl", surrogate) => verl(case, surrogate, &mut batch)?,
        ("trl" | "liger", surrogate) => {
            batch.weigh_by_sampler(case)?;
            let ask = trl(case, &peer, surrogate, batch.rows)?;
            if surrogate == "vespo" {
                batch.spread_weights();
            }
            ask
        }
        ("faithrl", "ppo_clip") => faithrl(case)?,
        _ => return Err(format!("unknown surrogate `{surrogate}` of peer `{peer}`")),
    };
    batch.select(&ask.objective)?;
    compare(case, &batch, &ask)?;
    Ok(Outcome::Passed)
}

/// The padded inputs of a case.
#[derive(Clone)]
pub struct Batch {
    pub rows: usize,
    pub length: usize,
    pub logprob: Vec<f32>,
    pub old_logprob: Vec<f32>,
    pub advantage: Array,
    pub mask: Vec<u8>,
    pub reference: Option<Vec<f32>>,
    pub entropy: Option<Vec<f32>>,
    pub weight: Option<Vec<f32>>,
    /// One weight for each row.
    pub sequence_weights: bool,
    pub selected: Option<Vec<u8>>,
}

impl Batch {
    fn read(case: &mut Case) -> Result<Batch, String> {
        let logprob = case.tensor("in.logp")?;
        let [rows, length] = logprob.matrix()?;
        let mask = case.tensor("in.mask")?;
        let weight = case.optional("in.rollout_is_weights");
        let sequence_weights =
            weight.as_ref().is_some_and(|w| w.values.len() == rows && length != 1);
        let weight = weight.map(|w| match sequence_weights {
            true => w.f32().iter().flat_map(|w| vec![*w; length]).collect(),
            false => w.f32(),
        });
        Ok(Batch {
            rows,
            length,
            logprob: logprob.f32(),
            old_logprob: case.tensor("in.old_logp")?.f32(),
            advantage: case.tensor("in.advantages")?,
            mask: mask.values.iter().map(|m| u8::from(*m != 0.0)).collect(),
            reference: case.optional("in.ref_logp").map(|x| x.f32()),
            entropy: case.optional("in.entropy").map(|x| x.f32()),
            weight,
            sequence_weights,
            selected: None,
        })
    }

    /// TRL's `vllm_importance_sampling_mode`, where a case has it and the sampler's log-probs in place of weights.
    fn weigh_by_sampler(&mut self, case: &mut Case) -> Result<(), String> {
        let modes = ["", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"];
        let mode = case.config.one_of("vllm_importance_sampling_mode", &modes)?;
        if mode.is_empty() {
            return Ok(());
        }
        let max = case.config.number("vllm_importance_sampling_clip_max")?.unwrap_or(f64::INFINITY);
        let min = case.config.number("vllm_importance_sampling_clip_min")?;
        self.sequence_weights = mode.starts_with("sequence");
        let level = if self.sequence_weights { Level::Sequence } else { Level::Token };
        let bound = match mode.ends_with("mask") {
            true => Bound::Mask { max, min },
            false => Bound::Truncate { max, min },
        };
        let weight = Some(Weight { level, bound, normalize: false });
        let correction = RolloutCorrection { weight, reject: Vec::new() };
        let sampler = case.tensor("in.sampling_logp")?.f32();
        let inputs = rollout_correction::Inputs {
            policy_logprob: &self.old_logprob,
            sampler_logprob: Some(&sampler),
            mask: &self.mask,
            offsets: &self.offsets(),
        };
        let (mut weight, mut mask) = (vec![0f32; sampler.len()], vec![0u8; sampler.len()]);
        let out = rollout_correction::Outputs { weight: &mut weight, mask: &mut mask };
        rollout_correction::forward(&correction, &inputs, out).map_err(|e| e.to_string())?;
        self.weight = Some(weight);
        Ok(())
    }

    /// The sum that VESPO takes over a row's weights: of their logarithms, of masked tokens too where each has one.
    fn log_weight(&self, row: usize) -> f64 {
        let Some(weight) = &self.weight else { return 0.0 };
        let count = if self.sequence_weights { 1 } else { self.length };
        let logs = weight[row * self.length..][..count].iter();
        logs.map(|w| f64::from(*w).ln().clamp(1e-8f64.ln(), 20.0)).sum()
    }

    /// The same sum, in equal parts on live tokens: the library reads no others.
    fn spread_weights(&mut self) {
        let Some(weight) = &self.weight else { return };
        let mut spread = vec![f32::NAN; weight.len()];
        for row in 0..self.rows {
            let range = row * self.length..(row + 1) * self.length;
            let live = self.mask[range.clone()].iter().filter(|m| **m != 0).count();
            spread[range].fill((self.log_weight(row) / live.max(1) as f64).exp() as f32);
        }
        self.weight = Some(spread);
        self.sequence_weights = false;
    }

    pub fn offsets(&self) -> Vec<i64> {
        (0..=self.rows).map(|row| (row * self.length) as i64).collect()
    }

    /// The step before the loss, where the objective has one.
    fn select(&mut self, objective: &Objective) -> Result<(), String> {
        let Some(selection) = &objective.selection else { return Ok(()) };
        let advantage = self.advantage.f32();
        let per_token: Vec<f32> = match self.advantage.shape.len() {
            1 => advantage.iter().flat_map(|a| vec![*a; self.length]).collect(),
            _ => advantage,
        };
        let clip = match &objective.surrogate {
            Surrogate::PpoClip { clip_low, clip_high, .. } => (1.0 - clip_low, 1.0 + clip_high),
            _ => (0.0, f32::INFINITY),
        };
        let inputs = token_selection::Inputs {
            logprob: &self.logprob,
            old_logprob: &self.old_logprob,
            advantage: &per_token,
            entropy: self.entropy.as_deref().unwrap_or_default(),
            mask: &self.mask,
            clip,
            draw: (1, 0),
        };
        let mut selected = vec![7; self.mask.len()];
        token_selection::select(selection, &inputs, &mut selected).map_err(|e| e.to_string())?;
        self.selected = Some(selected);
        Ok(())
    }

    /// One row alone.
    fn row(&self, row: usize) -> Batch {
        let range = row * self.length..(row + 1) * self.length;
        let cut = |values: &[f32]| values[range.clone()].to_vec();
        let advantage = match self.advantage.shape.len() {
            1 => Array { shape: vec![1], values: vec![self.advantage.values[row]] },
            _ => Array {
                shape: vec![1, self.length],
                values: self.advantage.values[range.clone()].to_vec(),
            },
        };
        Batch {
            rows: 1,
            length: self.length,
            logprob: cut(&self.logprob),
            old_logprob: cut(&self.old_logprob),
            advantage,
            mask: self.mask[range.clone()].to_vec(),
            reference: self.reference.as_deref().map(cut),
            entropy: self.entropy.as_deref().map(cut),
            weight: self.weight.as_deref().map(cut),
            sequence_weights: self.sequence_weights,
            selected: self.selected.as_ref().map(|selected| selected[range.clone()].to_vec()),
        }
    }

    /// The mean over rows of a metric of each, `empty` for rows without a token.
    fn mean_of_rows(
        &self,
        ask: &Ask,
        empty: f64,
        of: impl Fn(&Metrics) -> f64,
    ) -> Result<f64, String> {
        let mut sum = 0.0;
        for row in 0..self.rows {
            let (metrics, _) = self.row(row).evaluate(ask)?;
            sum += if metrics.live_tokens > 0 { of(&metrics) } else { empty };
        }
        Ok(sum / self.rows as f64)
    }

    /// The mean of VESPO's phi over rows. An empty row has the ratio 1, times its weights: as a row of one such token.
    fn mean_phi(&self, ask: &Ask) -> Result<f64, String> {
        let mut sum = 0.0;
        for row in 0..self.rows {
            let mut alone = self.row(row);
            if alone.mask.iter().all(|m| *m == 0) {
                alone.mask[0] = 1;
                (alone.logprob[0], alone.old_logprob[0]) = (0.0, 0.0);
            }
            sum += alone.evaluate(ask)?.0.ratio_mean;
        }
        Ok(sum / self.rows as f64)
    }

    fn evaluate(&self, ask: &Ask) -> Result<(Metrics, Vec<f32>), String> {
        let offsets = self.offsets();
        let advantage = self.advantage.f32();
        let mut dlogprob = vec![f32::NAN; self.logprob.len()];
        let inputs = Inputs {
            logprob: &self.logprob,
            old_logprob: &self.old_logprob,
            advantage: if self.advantage.shape.len() == 1 {
                Advantages::PerSequence(&advantage)
            } else {
                Advantages::PerToken(&advantage)
            },
            mask: &self.mask,
            offsets: &offsets,
            reference_logprob: self.reference.as_deref(),
            entropy: self.entropy.as_deref(),
            weight: self.weight.as_deref(),
            sampler_logprob: None,
            off_policy: None,
            selected: self.selected.as_deref(),
            totals: ask.totals,
        };
        let gradients = Gradients { logprob: &mut dlogprob, entropy: None };
        let metrics =
            forward_backward(&ask.objective, &inputs, gradients).map_err(|e| e.to_string())?;
        Ok((metrics, dlogprob))
    }

    /// The KL estimate of every token, masked ones too: each is a batch of its own.
    fn kl_of_each_token(&self, ask: &Ask) -> Result<Vec<f64>, String> {
        let reference = self.reference.as_ref().ok_or("out.kl_token without in.ref_logp")?;
        let one = |i: usize| Batch {
            rows: 1,
            length: 1,
            logprob: vec![self.logprob[i]],
            old_logprob: vec![self.old_logprob[i]],
            advantage: Array { shape: vec![1], values: vec![0.0] },
            mask: vec![1],
            reference: Some(vec![reference[i]]),
            entropy: None,
            weight: None,
            sequence_weights: false,
            selected: self.selected.as_ref().map(|_| vec![0]),
        };
        (0..self.logprob.len()).map(|i| Ok(one(i).evaluate(ask)?.0.kl)).collect()
    }
}

fn compare(case: &mut Case, batch: &Batch, ask: &Ask) -> Result<(), String> {
    let (metrics, dlogprob) = batch.evaluate(ask)?;
    case.compare("out.loss", &[metrics.loss])?;
    case.compare("out.dlogp", &dlogprob)?;
    case.compare("out.pg_loss", &[metrics.policy_loss])?;
    // TRL's has the penalty in it, and not the division by the steps of accumulation.
    let penalty = ask.objective.kl.as_ref().map_or(0.0, |kl| f64::from(kl.coefficient));
    let beside_bonus = (metrics.policy_loss + penalty * metrics.kl_loss) / ask.totals.scale;
    case.compare("out.policy_loss", &[beside_bonus])?;
    case.compare("out.kl_loss", &[metrics.kl_loss])?;
    case.compare("out.kl_mean", &[metrics.kl])?;
    let of_kl_cov = matches!(ask.objective.selection, Some(Selection::KlCov { .. }));
    let ppo_kl = if of_kl_cov { metrics.absolute_log_ratio } else { metrics.approx_kl };
    case.compare("out.ppo_kl", &[ppo_kl])?;
    let mut counted = metrics;
    if ask.counts == Counts::Rows {
        counted.clip_fraction = batch.mean_of_rows(ask, 0.0, |m| m.clip_fraction)?;
        counted.clip_fraction_high = batch.mean_of_rows(ask, 0.0, |m| m.clip_fraction_high)?;
        counted.clip_fraction_low = batch.mean_of_rows(ask, 0.0, |m| m.clip_fraction_low)?;
    }
    let clipped = match ask.counts {
        Counts::Tokens | Counts::Rows => counted.clip_fraction,
        Counts::Positive => counted.clip_fraction_high,
        Counts::Dropped => counted.dropped_fraction,
    };
    let of_gmpo = matches!(ask.objective.surrogate, Surrogate::Gmpo { .. });
    let lower = if of_gmpo { counted.clip_fraction_low } else { counted.dual_clip_fraction };
    case.compare("out.clipfrac", &[clipped])?;
    case.compare("out.clipfrac_high", &[counted.clip_fraction_high])?;
    case.compare("out.clipfrac_low", &[counted.clip_fraction_low])?;
    case.compare("out.clipfrac_lower", &[lower])?;
    if case.optional("out.phi_seq_mean").is_some() {
        let phi = batch.mean_phi(ask)?;
        case.compare("out.phi_seq_mean", &[phi])?;
    }
    if case.optional("out.kl_token").is_some() {
        case.compare("out.kl_token", &batch.kl_of_each_token(ask)?)?;
    }
    Ok(())
}
