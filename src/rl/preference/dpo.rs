//! Direct preference optimization and its kin: losses of pairs that measure from a reference policy.

use super::completion::{Gradient, MeasuredPairs, Pair, Totals};
use super::divergence::FDivergence;
use super::logistic::{log_sigmoid, sigmoid, smoothed};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A loss of pairs. `c` and `r` are the log-ratios of the chosen and the rejected completion to the reference policy, `δ` is
/// the difference of their scores ([`FDivergence`]; by default `c - r`), `ε` is `label_smoothing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// `-log σ(βδ)` (DPO, arXiv 2305.18290, equation 7).
    #[default]
    Sigmoid,
    /// `-log σ(βδ)` with scores per token of each completion (length-normalised DPO, arXiv 2411.15124).
    SigmoidNorm,
    /// `max(0, 1 - βδ)` (SLiC, arXiv 2305.10425; RSO, arXiv 2309.06657).
    Hinge,
    /// `(δ - 1/(2β))²` with scores per token (IPO, arXiv 2310.12036, equation 17).
    Ipo,
    /// The reverse KL from the smoothed labels, `label_smoothing` > 0 (EXO, arXiv 2402.00856, equation 16).
    ExoPair,
    /// `-log σ(βc) - ½ log σ(-βc) - ½ log σ(-βr)` (NCA, arXiv 2402.05369).
    NcaPair,
    /// The loss that is unbiased where a share ε of the labels is flipped (robust DPO, arXiv 2403.00409).
    Robust,
    /// `-log σ(βc) - log σ(-βr)` (BCO, arXiv 2404.04656).
    BcoPair,
    /// `(c - 1/(2β))² + (r + 1/(2β))²` (SPPO, arXiv 2405.00675, with certain preferences).
    SppoHard,
    /// The smoothed sigmoid loss between sorted log-ratios of the policy and sorted ones of the reference, over the whole
    /// batch (AOT, arXiv 2406.05882, paired).
    Aot,
    /// The same between sorted chosen and sorted rejected log-ratios: pairs do not matter (AOT, unpaired).
    AotUnpaired,
    /// `1 - σ(βc) + σ(βr)` (APO-zero, arXiv 2408.06266, equation 7).
    ApoZero,
    /// `σ(βc) + 1 - σ(β(c - r))` (APO-down, arXiv 2408.06266, equation 8).
    ApoDown,
    /// The loss that was found by search: a blend of logistic and exponential (DiscoPOP, arXiv 2406.08414, equation 5).
    Discopop,
    /// The mean negative log-prob of the chosen completions' tokens: a term beside others (MPO, arXiv 2411.10442).
    Sft,
}

impl LossType {
    /// The losses whose value depends on the difference of scores alone, in which the part of an f-divergence that is not
    /// known cancels.
    fn takes_divergence(self) -> bool {
        use LossType::{Discopop, ExoPair, Hinge, Ipo, Robust, Sft, Sigmoid, SigmoidNorm};
        matches!(self, Sigmoid | SigmoidNorm | Hinge | Ipo | ExoPair | Robust | Discopop | Sft)
    }

    fn sorts(self) -> bool {
        matches!(self, LossType::Aot | LossType::AotUnpaired)
    }
}

/// A weighted sum of losses of pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dpo {
    /// How strongly the policy is held to the reference; > 0.
    pub beta: f64,
    /// The losses that are added.
    pub loss_type: Vec<LossType>,
    /// Their weights (MPO, arXiv 2411.10442: 0.8, 0.2, 1 for `sigmoid`, `bco_pair`, `sft`); empty: 1 each.
    pub loss_weights: Vec<f64>,
    /// The share of labels that is taken to be wrong, by `exo_pair`, `robust`, `aot` and `aot_unpaired`.
    pub label_smoothing: f64,
    /// The divergence from the reference.
    pub f_divergence_type: FDivergence,
    /// α of `alpha_divergence`.
    pub f_alpha_divergence_coef: f64,
    /// Tokens past the length of the pair's shorter completion count so many times, 0 to 1 (LD-DPO, arXiv 2409.06411).
    pub ld_alpha: f64,
    /// The temperature of the blend of `discopop`.
    pub discopop_tau: f64,
    /// Pairs are weighted by how likely the policy is to write them (WPO, arXiv 2406.11827). Costs another forward pass.
    pub use_weighting: bool,
}

impl Default for Dpo {
    fn default() -> Dpo {
        Dpo {
            beta: 0.1,
            loss_type: vec![LossType::Sigmoid],
            loss_weights: Vec::new(),
            label_smoothing: 0.0,
            f_divergence_type: FDivergence::ReverseKl,
            f_alpha_divergence_coef: 0.5,
            ld_alpha: 1.0,
            discopop_tau: 0.05,
            use_weighting: false,
        }
    }
}

/// A loss of one pair with its derivatives by the two log-ratios.
struct Slopes {
    loss: f64,
    chosen: f64,
    rejected: f64,
}

impl Slopes {
    /// Of a loss of `factor` times the difference of two scores; `slopes` are the scores' own.
    fn of_difference((loss, slope): (f64, f64), slopes: [f64; 2]) -> Slopes {
        Slopes { loss, chosen: slope * slopes[0], rejected: -slope * slopes[1] }
    }
}

impl Dpo {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the setting.
    pub fn check(&self) -> Result<()> {
        let has = |one: LossType| self.loss_type.contains(&one);
        let bad = |what: String| Err(Error::invalid(what));
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return bad(format!("beta is {}; it must be positive", self.beta));
        }
        if self.loss_type.is_empty() {
            return bad("loss_type names no loss".into());
        }
        if !self.loss_weights.is_empty() && self.loss_weights.len() != self.loss_type.len() {
            return bad(format!(
                "loss_weights has {} numbers, and loss_type {} losses",
                self.loss_weights.len(),
                self.loss_type.len()
            ));
        }
        if self.loss_weights.iter().any(|weight| !weight.is_finite()) {
            return bad("loss_weights has a number that is not finite".into());
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return bad(format!("label_smoothing is {}; it is a share", self.label_smoothing));
        }
        if has(LossType::Robust) && self.label_smoothing >= 0.5 {
            return bad("label_smoothing must be under 0.5 for loss_type robust".into());
        }
        if has(LossType::ExoPair) && self.label_smoothing == 0.0 {
            return bad(
                "label_smoothing must be over 0 for loss_type exo_pair (its paper has 1e-3)".into(),
            );
        }
        if !(0.0..=1.0).contains(&self.ld_alpha) {
            return bad(format!("ld_alpha is {}; it must be from 0 to 1", self.ld_alpha));
        }
        if !(self.discopop_tau > 0.0 && self.f_alpha_divergence_coef.is_finite()) {
            return bad("discopop_tau must be positive, f_alpha_divergence_coef finite".into());
        }
        let alone = self.loss_type.iter().find(|one| !one.takes_divergence());
        if let Some(alone) = alone.filter(|_| self.f_divergence_type != FDivergence::ReverseKl) {
            return bad(format!(
                "f_divergence_type is for losses of the difference of two scores, and loss_type {alone:?} is not one"
            ));
        }
        if self.use_weighting && self.loss_type.iter().any(|one| one.sorts()) {
            return bad("use_weighting weights pairs, which aot and aot_unpaired take apart".into());
        }
        Ok(())
    }

    /// True where a pair's gradient depends on the other pairs of its batch: the whole batch is then scored before the first
    /// gradient.
    pub fn couples_pairs(&self) -> bool {
        let weighted_mean = self.use_weighting && self.loss_type.contains(&LossType::Sft);
        weighted_mean || self.loss_type.iter().any(|one| one.sorts())
    }

    /// The loss of some pairs of a batch. Where [`Dpo::couples_pairs`], they are the whole batch.
    pub fn measure(&self, pairs: &[Pair], totals: Totals) -> MeasuredPairs {
        let mut done = MeasuredPairs {
            loss: 0.0,
            gradients: vec![[Gradient::default(); 2]; pairs.len()],
            rewards: pairs
                .iter()
                .map(|pair| [pair.chosen, pair.rejected].map(|one| self.beta * one.log_ratio()))
                .collect(),
        };
        for (i, loss_type) in self.loss_type.iter().enumerate() {
            let weight = self.loss_weights.get(i).copied().unwrap_or(1.0);
            match loss_type {
                LossType::Aot => self.sorted_by_pair(pairs, totals, weight, &mut done),
                LossType::AotUnpaired => self.sorted_by_side(pairs, totals, weight, &mut done),
                LossType::Sft => self.supervised(pairs, totals, weight, &mut done),
                own => {
                    for (pair, gradients) in pairs.iter().zip(&mut done.gradients) {
                        let scale = weight / totals.count.max(1) as f64 * self.weight_of(pair);
                        let slopes = self.of_pair(*own, pair);
                        done.loss += slopes.loss * scale;
                        gradients[0].logprob += slopes.chosen * scale;
                        gradients[1].logprob += slopes.rejected * scale;
                    }
                }
            }
        }
        done
    }

    fn weight_of(&self, pair: &Pair) -> f64 {
        if self.use_weighting { pair.chosen.weight * pair.rejected.weight } else { 1.0 }
    }

    /// A loss that looks at one pair at a time.
    fn of_pair(&self, loss_type: LossType, pair: &Pair) -> Slopes {
        let (beta, smoothing) = (self.beta, self.label_smoothing);
        let (c, r) = (pair.chosen.log_ratio(), pair.rejected.log_ratio());
        let score = |ratio| self.f_divergence_type.score(ratio, self.f_alpha_divergence_coef);
        let ((score_c, slope_c), (score_r, slope_r)) = (score(c), score(r));
        let logit = beta * (score_c - score_r);
        let by_logit = |(loss, slope): (f64, f64)| {
            Slopes::of_difference((loss, beta * slope), [slope_c, slope_r])
        };
        let lengths = [pair.chosen.length(), pair.rejected.length()];
        let by_token = score_c / lengths[0] - score_r / lengths[1];
        let slopes_by_token = [slope_c / lengths[0], slope_r / lengths[1]];
        match loss_type {
            LossType::Sigmoid => by_logit(smoothed(logit, 0.0)),
            LossType::SigmoidNorm => {
                let (loss, slope) = smoothed(beta * by_token, 0.0);
                Slopes::of_difference((loss, beta * slope), slopes_by_token)
            }
            LossType::Hinge => {
                let slope = if logit < 1.0 { -1.0 } else { 0.0 };
                by_logit(((1.0 - logit).max(0.0), slope))
            }
            LossType::Ipo => {
                let error = by_token - 0.5 / beta;
                Slopes::of_difference((error * error, 2.0 * error), slopes_by_token)
            }
            LossType::ExoPair => {
                // Σ q log(q/p) over the two, with q = σ(±logit); its derivative is q(1 - q)(log odds of q - log odds of p).
                let (log_p, log_not_p) = ((-smoothing).ln_1p(), smoothing.ln());
                let (q, not_q) = (sigmoid(logit), sigmoid(-logit));
                let loss =
                    q * (log_sigmoid(logit) - log_p) + not_q * (log_sigmoid(-logit) - log_not_p);
                by_logit((loss, q * not_q * (logit - (log_p - log_not_p))))
            }
            LossType::Robust => {
                let (kept, flipped) = (smoothed(logit, 0.0), smoothed(-logit, 0.0));
                let mix = |a: f64, b: f64| {
                    ((1.0 - smoothing) * a - smoothing * b) / (1.0 - 2.0 * smoothing)
                };
                by_logit((mix(kept.0, flipped.0), mix(kept.1, -flipped.1)))
            }
            LossType::Discopop => {
                let blend = sigmoid(logit / self.discopop_tau);
                let blend_slope = blend * (1.0 - blend) / self.discopop_tau;
                let (logistic, slope) = smoothed(logit, 0.0);
                let exponential = (-logit).exp();
                by_logit((
                    logistic * (1.0 - blend) + exponential * blend,
                    slope * (1.0 - blend) - exponential * blend
                        + (exponential - logistic) * blend_slope,
                ))
            }
            LossType::NcaPair => Slopes {
                loss: -log_sigmoid(beta * c)
                    - 0.5 * log_sigmoid(-beta * c)
                    - 0.5 * log_sigmoid(-beta * r),
                chosen: beta * (0.5 * sigmoid(beta * c) - sigmoid(-beta * c)),
                rejected: beta * 0.5 * sigmoid(beta * r),
            },
            LossType::BcoPair => Slopes {
                loss: -log_sigmoid(beta * c) - log_sigmoid(-beta * r),
                chosen: -beta * sigmoid(-beta * c),
                rejected: beta * sigmoid(beta * r),
            },
            LossType::SppoHard => {
                let (won, lost) = (c - 0.5 / beta, r + 0.5 / beta);
                Slopes { loss: won * won + lost * lost, chosen: 2.0 * won, rejected: 2.0 * lost }
            }
            LossType::ApoZero => Slopes {
                loss: sigmoid(-beta * c) + sigmoid(beta * r),
                chosen: -beta * slope_of_sigmoid(beta * c),
                rejected: beta * slope_of_sigmoid(beta * r),
            },
            LossType::ApoDown => {
                let apart = beta * slope_of_sigmoid(beta * (c - r));
                Slopes {
                    loss: sigmoid(beta * c) + sigmoid(-beta * (c - r)),
                    chosen: beta * slope_of_sigmoid(beta * c) - apart,
                    rejected: apart,
                }
            }
            // Whole batches, not pairs: `measure` has them.
            LossType::Aot | LossType::AotUnpaired | LossType::Sft => {
                Slopes { loss: 0.0, chosen: 0.0, rejected: 0.0 }
            }
        }
    }

    fn supervised(&self, pairs: &[Pair], totals: Totals, weight: f64, done: &mut MeasuredPairs) {
        let mean_weight = if self.use_weighting {
            pairs.iter().map(|pair| self.weight_of(pair)).sum::<f64>() / pairs.len().max(1) as f64
        } else {
            1.0
        };
        let each = weight * mean_weight / totals.chosen_tokens.max(1) as f64;
        for (pair, gradients) in pairs.iter().zip(&mut done.gradients) {
            done.loss -= pair.chosen.likelihood * each;
            gradients[0].likelihood -= each;
        }
    }

    /// Sorted differences `log π(chosen) - log π(rejected)` of the policy against those of the reference.
    fn sorted_by_pair(
        &self,
        pairs: &[Pair],
        totals: Totals,
        weight: f64,
        done: &mut MeasuredPairs,
    ) {
        let own = order(pairs, |pair| pair.chosen.logprob - pair.rejected.logprob);
        let reference =
            order(pairs, |pair| pair.chosen.reference_logprob - pair.rejected.reference_logprob);
        for ((i, own), (_, reference)) in own.into_iter().zip(reference) {
            let (loss, slope) = self.of_sorted(own - reference, totals, weight);
            done.loss += loss;
            done.gradients[i][0].logprob += slope;
            done.gradients[i][1].logprob -= slope;
        }
    }

    /// Sorted log-ratios of the chosen completions against those of the rejected ones.
    fn sorted_by_side(
        &self,
        pairs: &[Pair],
        totals: Totals,
        weight: f64,
        done: &mut MeasuredPairs,
    ) {
        let chosen = order(pairs, |pair| pair.chosen.log_ratio());
        let rejected = order(pairs, |pair| pair.rejected.log_ratio());
        for ((i, chosen), (j, rejected)) in chosen.into_iter().zip(rejected) {
            let (loss, slope) = self.of_sorted(chosen - rejected, totals, weight);
            done.loss += loss;
            done.gradients[i][0].logprob += slope;
            done.gradients[j][1].logprob -= slope;
        }
    }

    fn of_sorted(&self, difference: f64, totals: Totals, weight: f64) -> (f64, f64) {
        let (loss, slope) = smoothed(self.beta * difference, self.label_smoothing);
        let scale = weight / totals.count.max(1) as f64;
        (loss * scale, self.beta * slope * scale)
    }
}

/// `σ'(x)`.
fn slope_of_sigmoid(x: f64) -> f64 {
    sigmoid(x) * sigmoid(-x)
}

/// Values of pairs in ascending order, each with the number of its pair.
fn order(pairs: &[Pair], value: impl Fn(&Pair) -> f64) -> Vec<(usize, f64)> {
    let mut all: Vec<(usize, f64)> = pairs.iter().map(value).enumerate().collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1));
    all
}

#[cfg(test)]
mod tests {
    use super::super::completion::differences;
    use super::*;

    const ALL: [LossType; 15] = [
        LossType::Sigmoid,
        LossType::SigmoidNorm,
        LossType::Hinge,
        LossType::Ipo,
        LossType::ExoPair,
        LossType::NcaPair,
        LossType::Robust,
        LossType::BcoPair,
        LossType::SppoHard,
        LossType::Aot,
        LossType::AotUnpaired,
        LossType::ApoZero,
        LossType::ApoDown,
        LossType::Discopop,
        LossType::Sft,
    ];
    const DIVERGENCES: [FDivergence; 4] = [
        FDivergence::ReverseKl,
        FDivergence::ForwardKl,
        FDivergence::JsDivergence,
        FDivergence::AlphaDivergence,
    ];

    fn of(loss_type: &[LossType]) -> Dpo {
        Dpo {
            beta: 0.4,
            loss_type: loss_type.to_vec(),
            label_smoothing: 0.1,
            discopop_tau: 0.5,
            ..Dpo::default()
        }
    }

    #[test]
    fn gradients_are_those_of_the_loss() {
        let pairs = differences::pairs(5, 3);
        for loss_type in ALL {
            for f_divergence_type in DIVERGENCES {
                for use_weighting in [false, true] {
                    let dpo = Dpo { f_divergence_type, use_weighting, ..of(&[loss_type]) };
                    if dpo.check().is_ok() {
                        differences::check(&pairs, |pairs| dpo.measure(pairs, Totals::of(pairs)));
                    }
                }
            }
        }
        let sum = Dpo { loss_weights: vec![0.8, -0.2, 1.0], ..of(&[ALL[0], ALL[7], ALL[14]]) };
        differences::check(&pairs, |pairs| sum.measure(pairs, Totals::of(pairs)));
    }

    /// A batch in parts gives what it gives as a whole, where the loss does not couple pairs.
    #[test]
    fn parts_add_up() {
        let pairs = differences::pairs(6, 4);
        let totals = Totals::of(&pairs);
        for loss_type in ALL {
            let dpo = of(&[loss_type, LossType::Sft]);
            let whole = dpo.measure(&pairs, totals);
            let (a, b) = pairs.split_at(2);
            let (a, b) = (dpo.measure(a, totals), dpo.measure(b, totals));
            let parts = [a.gradients, b.gradients].concat();
            let same = parts == whole.gradients && (a.loss + b.loss - whole.loss).abs() < 1e-12;
            assert_eq!(same, !dpo.couples_pairs(), "{loss_type:?}");
        }
        let weighted = Dpo { use_weighting: true, ..of(&[LossType::Sft]) };
        assert!(weighted.couples_pairs());
    }

    #[test]
    fn extreme_ratios_stay_finite() {
        let mut pair = differences::pairs(1, 5);
        for ratio in [-3000.0, 3000.0] {
            pair[0].chosen.logprob = pair[0].chosen.reference_logprob + ratio;
            for loss_type in ALL {
                // An exponential loss is as large as it is.
                if loss_type == LossType::Discopop && ratio < 0.0 {
                    continue;
                }
                let done = of(&[loss_type]).measure(&pair, Totals::of(&pair));
                assert!(done.loss.is_finite(), "{loss_type:?}");
                assert!(done.gradients[0].iter().all(|one| one.logprob.is_finite()));
            }
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let good = Dpo::default();
        good.check().unwrap();
        for (bad, says) in [
            (Dpo { beta: 0.0, ..good.clone() }, "beta"),
            (Dpo { loss_type: vec![], ..good.clone() }, "loss_type"),
            (Dpo { loss_weights: vec![1.0, 2.0], ..good.clone() }, "loss_weights"),
            (Dpo { ld_alpha: 1.5, ..good.clone() }, "ld_alpha"),
            (Dpo { loss_type: vec![LossType::ExoPair], ..good.clone() }, "exo_pair"),
            (
                Dpo { f_divergence_type: FDivergence::ForwardKl, ..of(&[LossType::ApoZero]) },
                "f_divergence_type",
            ),
            (Dpo { use_weighting: true, ..of(&[LossType::Aot]) }, "use_weighting"),
            (Dpo { label_smoothing: 0.5, ..of(&[LossType::Robust]) }, "robust"),
        ] {
            let error = bad.check().unwrap_err();
            assert!(error.is_invalid() && error.to_string().contains(says), "{error}");
        }
    }
}
