//! The losses in f64, from their published forms: values only, one token after another, no derivative of anything.
//!
//! What a paper holds constant (`sg`) is computed from `frozen` log-probs, so that a central difference of the loss in
//! `logprob`, with `frozen` at rest, is the gradient that the paper means.

use gradstone::kernels::policy_loss::{
    Aggregation, Clamp, ImportanceLevel, Kl, KlEstimator, LogRatio, Objective, RatioShape, Replay,
    ReplayRatio, ReplayShape, Rows, Surrogate, Totals,
};
use gradstone::kernels::token_selection::Selection;
use std::ops::Range;

#[derive(Clone)]
pub struct Batch {
    pub logprob: Vec<f32>,
    pub old_logprob: Vec<f32>,
    pub reference: Vec<f32>,
    pub sampler: Vec<f32>,
    /// One a token; the same over a sequence where the objective wants one a sequence.
    pub advantage: Vec<f32>,
    pub entropy: Vec<f32>,
    pub weight: Vec<f32>,
    pub mask: Vec<u8>,
    pub off_policy: Vec<u8>,
    pub selected: Vec<u8>,
    pub offsets: Vec<i64>,
}

impl Batch {
    pub fn logprob_f64(&self) -> Vec<f64> {
        self.logprob.iter().map(|x| f64::from(*x)).collect()
    }

    /// One sequence alone.
    pub fn part(&self, range: Range<usize>) -> Batch {
        let cut = |values: &[f32]| values[range.clone()].to_vec();
        let bytes = |values: &[u8]| values[range.clone()].to_vec();
        Batch {
            logprob: cut(&self.logprob),
            old_logprob: cut(&self.old_logprob),
            reference: cut(&self.reference),
            sampler: cut(&self.sampler),
            advantage: cut(&self.advantage),
            entropy: cut(&self.entropy),
            weight: cut(&self.weight),
            mask: bytes(&self.mask),
            off_policy: bytes(&self.off_policy),
            selected: bytes(&self.selected),
            offsets: vec![0, range.len() as i64],
        }
    }

    pub fn sequences(&self) -> Vec<Range<usize>> {
        self.offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize).collect()
    }
}

/// Sums over some tokens.
#[derive(Clone, Copy, Default)]
pub struct Sums {
    pub loss: f64,
    /// Of absolute contributions: what rounding is relative to.
    pub magnitude: f64,
    pub kl: f64,
    pub kl_magnitude: f64,
    pub log_ratio: f64,
    pub log_ratio_magnitude: f64,
    pub ratio: f64,
    pub ratio_max: f64,
    pub shaped: f64,
    pub entropy: f64,
    pub replayed: f64,
    pub dropped: f64,
    /// A value is so near a kink that f32 rounding, or the step of a difference, may lie beyond.
    pub borderline: bool,
}

impl Sums {
    fn kink(&mut self, x: f64, bound: f64) {
        self.borderline |= bound.is_finite() && (x - bound).abs() <= 2e-5 * bound.abs().max(1.0);
    }
}

pub struct Oracle<'a> {
    pub objective: &'a Objective,
    pub batch: &'a Batch,
    pub totals: Totals,
    pub lives: Vec<f64>,
}

/// The weights of a sequence.
struct Weights {
    loss: f64,
    kl: f64,
    entropy: f64,
}

impl<'a> Oracle<'a> {
    pub fn new(objective: &'a Objective, batch: &'a Batch, totals: Totals) -> Oracle<'a> {
        let live = |range: Range<usize>| batch.mask[range].iter().filter(|m| **m != 0).count();
        let lives = batch.sequences().into_iter().map(|range| live(range) as f64).collect();
        Oracle { objective, batch, totals, lives }
    }

    pub fn live_tokens(&self) -> f64 {
        self.lives.iter().sum()
    }

    pub fn live_sequences(&self) -> usize {
        self.lives.iter().filter(|n| **n > 0.0).count()
    }

    /// The loss of a token depends on the log-probs of its whole sequence.
    pub fn is_of_sequences(&self) -> bool {
        self.objective.importance_level != ImportanceLevel::Token
            || matches!(self.objective.surrogate, Surrogate::Gmpo { .. })
    }

    fn weight_of(&self, mode: &Aggregation, sequence: usize) -> f64 {
        let count = |rows: Rows| {
            self.totals.sequences.unwrap_or(match rows {
                Rows::NonEmpty => self.live_sequences() as f64,
                Rows::All => self.lives.len() as f64,
            })
        };
        let divisor = match mode {
            Aggregation::TokenMean {} => self.totals.tokens.unwrap_or(self.live_tokens()),
            Aggregation::SequenceMeanTokenMean { rows } => count(*rows) * self.lives[sequence],
            Aggregation::SequenceMeanTokenSum { rows, length } => count(*rows) * f64::from(*length),
            Aggregation::SequenceLength { rows } => count(*rows),
            Aggregation::TokenSum { length } => f64::from(*length),
        };
        self.totals.scale / divisor
    }

    fn weights(&self, sequence: usize) -> Weights {
        let of = |mode: Option<&Aggregation>| {
            self.weight_of(mode.unwrap_or(&self.objective.aggregation), sequence)
        };
        Weights {
            loss: of(None),
            kl: of(self.objective.kl.as_ref().and_then(|kl| kl.aggregation.as_ref())),
            entropy: of(self.objective.entropy_aggregation.as_ref()),
        }
    }

    fn live(&self, range: Range<usize>) -> impl Iterator<Item = usize> + '_ {
        range.filter(|t| self.batch.mask[*t] != 0)
    }

    /// Sums over the live tokens of `of`, which lie in the sequence `sequence` of tokens `whole`.
    pub fn sums(
        &self,
        sequence: usize,
        whole: Range<usize>,
        of: Range<usize>,
        logprob: &[f64],
        frozen: &[f64],
    ) -> Sums {
        let mut sums = Sums::default();
        if self.lives[sequence] == 0.0 {
            return sums;
        }
        let weights = self.weights(sequence);
        let (o, b) = (self.objective, self.batch);
        let shared = self.shared(sequence, whole, logprob, frozen, &mut sums);
        for t in self.live(of) {
            let off = o.replay.is_some() && b.off_policy[t] != 0;
            let a = f64::from(b.advantage[t]);
            let mut value = if off {
                self.replayed(&o.replay.unwrap(), t, a, logprob, &mut sums)
            } else {
                self.fresh(t, a, &shared, logprob, frozen, &mut sums)
            };
            let picked = b.selected[t] != 0;
            let mut dropped = false;
            match o.selection {
                Some(Selection::ClipCov { .. }) => dropped = picked,
                Some(Selection::TopEntropy { .. }) => dropped = !picked,
                Some(Selection::KlCov { coefficient, .. }) if picked && !off => {
                    let d = logprob[t] - f64::from(b.old_logprob[t]);
                    sums.kink(d, 0.0);
                    value += f64::from(coefficient) * d.abs();
                }
                _ => {}
            }
            dropped |= shared.drops_negative && a < 0.0;
            if dropped {
                value = 0.0;
                sums.dropped += 1.0;
            }
            value *= match o.surrogate {
                Surrogate::Vespo { .. } => 1.0,
                Surrogate::Gmpo { .. } => shared.weight,
                _ => f64::from(b.weight[t]),
            };
            let mut all = weights.loss * value;
            if let Some(drift) = o.drift.filter(|_| !off) {
                let excess =
                    (frozen[t] - f64::from(b.old_logprob[t])).clamp(-20.0, 20.0).exp() - 1.0;
                let capped = excess.min(f64::from(drift.cap));
                all += weights.loss * f64::from(drift.coefficient) * capped * logprob[t];
            }
            if let Some(kl) = &o.kl {
                let estimate = self.kl(kl, t, logprob, frozen, &mut sums);
                let estimate_value = self.kl(kl, t, logprob, logprob, &mut Sums::default());
                sums.kl += estimate_value;
                sums.kl_magnitude += estimate_value.abs();
                let part = weights.kl * f64::from(kl.coefficient) * estimate;
                all += part;
                sums.magnitude += part.abs();
            }
            let entropy = f64::from(b.entropy[t]);
            let bonus = weights.entropy * f64::from(o.entropy_coefficient) * entropy;
            sums.loss += all - bonus;
            sums.magnitude += (weights.loss * value).abs() + bonus.abs();
            sums.entropy += entropy;
            let d = logprob[t] - f64::from(b.old_logprob[t]);
            let of_sequences = o.importance_level != ImportanceLevel::Token;
            let limit = if of_sequences { f64::INFINITY } else { self.limit() };
            sums.log_ratio += d.clamp(-limit, limit);
            sums.log_ratio_magnitude += d.abs();
            sums.replayed += f64::from(u8::from(off));
        }
        sums
    }

    fn limit(&self) -> f64 {
        if self.objective.log_ratio == LogRatio::Clamped { 20.0 } else { f64::INFINITY }
    }

    fn sequence_limit(&self) -> f64 {
        if self.limit().is_finite() { 10.0 } else { f64::INFINITY }
    }

    fn difference(&self, t: usize, logprob: &[f64], sums: &mut Sums) -> f64 {
        let (d, limit) = (logprob[t] - f64::from(self.batch.old_logprob[t]), self.limit());
        sums.kink(d.abs(), limit);
        d.clamp(-limit, limit)
    }

    fn shared(
        &self,
        sequence: usize,
        whole: Range<usize>,
        logprob: &[f64],
        frozen: &[f64],
        sums: &mut Sums,
    ) -> Shared {
        let (o, b, n) = (self.objective, self.batch, self.lives[sequence]);
        let old = |t: usize| f64::from(b.old_logprob[t]);
        let mean = |of: &dyn Fn(usize) -> f64| self.live(whole.clone()).map(of).sum::<f64>() / n;
        let mut shared =
            Shared { log: 0.0, frozen_log: 0.0, weight: 1.0, phi: [1.0; 2], drops_negative: false };
        if let Some(threshold) = o.off_policy_threshold {
            let distance = mean(&|t| f64::from(b.sampler[t]) - frozen[t]);
            sums.kink(distance, f64::from(threshold));
            shared.drops_negative = distance > f64::from(threshold);
        }
        match o.surrogate {
            Surrogate::Gmpo { clip_low, clip_high } => {
                let (low, high) = (-f64::from(clip_low), f64::from(clip_high));
                let limit = self.limit();
                let kept = |t: usize| {
                    let (d, sign) = (logprob[t] - old(t), f64::from(b.advantage[t]).signum());
                    let d = d.clamp(-limit, limit);
                    if b.advantage[t] == 0.0 {
                        return 0.0;
                    }
                    sign * (sign * d).min(sign * d.clamp(low, high))
                };
                shared.log = mean(&kept);
                shared.weight = mean(&|t| (f64::from(b.weight[t]) + 1e-10).ln()).exp();
            }
            Surrogate::Vespo { k_positive, lambda_positive, k_negative, lambda_negative } => {
                let low = 1e-8f64.ln();
                let sum = n * mean(&|t| {
                    let weight = f64::from(b.weight[t]).ln().clamp(low, 20.0);
                    (frozen[t] - old(t)).clamp(-20.0, 20.0) + weight
                });
                let w = sum.clamp(low, 20.0);
                let phi = |k: f32, lambda: f32| {
                    let (k, lambda) = (f64::from(k), f64::from(lambda));
                    (lambda + k * w - lambda * w.exp()).exp()
                };
                shared.phi = [phi(k_positive, lambda_positive), phi(k_negative, lambda_negative)];
            }
            _ => {
                let highest = self.sequence_limit();
                let log = mean(&|t| logprob[t] - old(t));
                sums.borderline |= (log - highest).abs() < 1e-4;
                shared.log = log.min(highest);
                shared.frozen_log = mean(&|t| frozen[t] - old(t));
            }
        }
        shared
    }

    /// The ratio of a fresh token, before any reshaping.
    fn ratio(
        &self,
        t: usize,
        shared: &Shared,
        logprob: &[f64],
        frozen: &[f64],
        sums: &mut Sums,
    ) -> f64 {
        match self.objective.importance_level {
            ImportanceLevel::Sequence => shared.log.exp(),
            ImportanceLevel::SequenceToken => {
                let highest = self.sequence_limit();
                (shared.frozen_log + logprob[t] - frozen[t]).min(highest).exp()
            }
            _ => self.difference(t, logprob, sums).exp(),
        }
    }

    fn fresh(
        &self,
        t: usize,
        a: f64,
        shared: &Shared,
        logprob: &[f64],
        frozen: &[f64],
        sums: &mut Sums,
    ) -> f64 {
        let (o, b) = (self.objective, self.batch);
        let w = self.ratio(t, shared, logprob, frozen, sums);
        let mut reported = w;
        let value = match &o.surrogate {
            Surrogate::PpoClip { clip_low, clip_high, dual_clip, delta } => {
                // The bounds as the kernel sees them, in f32: 1 + 0.2f32 is not 1.2.
                let (least, most) = (f64::from(1.0 - clip_low), f64::from(1.0 + clip_high));
                let cap = delta.map_or(f64::INFINITY, f64::from);
                let dual = dual_clip.map_or(f64::INFINITY, f64::from);
                let r = self.reshaped(t, w, logprob, sums);
                reported = r;
                for bound in [least, most, cap, dual] {
                    sums.kink(r, bound);
                }
                let value = (-a * r.min(cap)).max(-a * r.clamp(least, most));
                if a < 0.0 { value.min(-a * dual) } else { value }
            }
            Surrogate::Ratio {} => {
                reported = self.reshaped(t, w, logprob, sums);
                -a * reported
            }
            Surrogate::Cispo { least, most } => {
                let held = match self.objective.importance_level {
                    ImportanceLevel::Token => self.ratio(t, shared, frozen, frozen, sums),
                    _ => shared.frozen_log.min(self.sequence_limit()).exp(),
                };
                sums.kink(held, f64::from(*most));
                sums.kink(held, least.map_or(f64::NEG_INFINITY, f64::from));
                let least = least.map_or(f64::NEG_INFINITY, f64::from);
                -held.clamp(least, f64::from(*most)) * a * logprob[t]
            }
            Surrogate::Gmpo { clip_low, clip_high } => {
                let d = logprob[t] - f64::from(b.old_logprob[t]);
                sums.kink(d, -f64::from(*clip_low));
                sums.kink(d, f64::from(*clip_high));
                reported = shared.log.exp();
                -a * reported
            }
            Surrogate::Sapo { temperature_positive, temperature_negative } => {
                let chosen = if a > 0.0 { temperature_positive } else { temperature_negative };
                let temperature = f64::from(*chosen);
                -a * 4.0 / temperature / (1.0 + (-temperature * (w - 1.0)).exp())
            }
            Surrogate::Reinforce {} => -a * logprob[t],
            Surrogate::Cpgd { clip_low, clip_high } => {
                let old = f64::from(b.old_logprob[t]);
                let (low, high) = ((-f64::from(*clip_low)).ln_1p(), f64::from(*clip_high).ln_1p());
                sums.kink(logprob[t] - old, low);
                sums.kink(logprob[t] - old, high);
                let positive = a > 0.0;
                -a * if positive { logprob[t].min(old + high) } else { logprob[t].max(old + low) }
            }
            Surrogate::Vespo { .. } => {
                reported = shared.phi[usize::from(a < 0.0)];
                -reported * a * logprob[t]
            }
            other => panic!("an oracle is missing for {other:?}"),
        };
        sums.ratio += reported;
        sums.ratio_max = sums.ratio_max.max(reported);
        value
    }

    fn reshaped(&self, t: usize, w: f64, logprob: &[f64], sums: &mut Sums) -> f64 {
        let d = || logprob[t] - f64::from(self.batch.old_logprob[t]);
        match self.objective.ratio_shape {
            RatioShape::Plain => w,
            RatioShape::Logarithm {} => self.difference(t, logprob, sums),
            RatioShape::RatioPlusLogarithm { weight } => {
                w + f64::from(weight) * d().clamp(-self.limit(), self.limit())
            }
            RatioShape::Power { exponent } => w.powf(f64::from(exponent)),
            RatioShape::Probability { offset } => {
                let share = |p: f64| p / (p + f64::from(offset));
                share(logprob[t].exp()) / share(f64::from(self.batch.old_logprob[t]).exp())
            }
            other => panic!("an oracle is missing for {other:?}"),
        }
    }

    fn replayed(&self, replay: &Replay, t: usize, a: f64, logprob: &[f64], sums: &mut Sums) -> f64 {
        let w = match replay.ratio {
            ReplayRatio::Probability => logprob[t].exp(),
            _ => self.difference(t, logprob, sums).exp(),
        };
        let f = match replay.shape {
            ReplayShape::Plain {} => w,
            ReplayShape::Logprob { weight } => f64::from(weight) * logprob[t],
            ReplayShape::RatioPlusLogprob { weight } => w + f64::from(weight) * logprob[t],
            ReplayShape::Power { exponent } => w.powf(f64::from(exponent)),
            ReplayShape::Sigmoid { beta, gain } => f64::from(gain) * w / (w + f64::from(beta)),
            other => panic!("an oracle is missing for {other:?}"),
        };
        let least = replay.least.map_or(f64::NEG_INFINITY, f64::from);
        let most = replay.most.map_or(f64::INFINITY, f64::from);
        sums.kink(f, least);
        sums.kink(f, most);
        let kept = f.clamp(least, most);
        sums.shaped += kept;
        -a * kept
    }

    fn kl(&self, kl: &Kl, t: usize, logprob: &[f64], frozen: &[f64], sums: &mut Sums) -> f64 {
        let reference = f64::from(self.batch.reference[t]);
        let clamped = kl.clamp == Clamp::Clamped;
        let mut estimate = |logprob: &[f64]| {
            let d = logprob[t] - reference;
            match kl.estimator {
                KlEstimator::K1 => d,
                KlEstimator::K2 => 0.5 * d * d,
                KlEstimator::Abs => {
                    sums.kink(d, 0.0);
                    d.abs()
                }
                KlEstimator::K3 => {
                    let bound = if clamped { 20.0 } else { f64::INFINITY };
                    sums.kink(d.abs(), bound);
                    let x = (-d).clamp(-bound, bound);
                    let bound = if clamped { 10.0 } else { f64::INFINITY };
                    sums.kink(x.exp_m1() - x, bound);
                    (x.exp_m1() - x).min(bound)
                }
            }
        };
        if kl.straight_through {
            // The value of the estimator, the slope of k2.
            let k2 = |logprob: &[f64]| 0.5 * (logprob[t] - reference).powi(2);
            return estimate(frozen) + k2(logprob) - k2(frozen);
        }
        let value = estimate(logprob);
        if kl.bias_correction { value * self.difference(t, logprob, sums).exp() } else { value }
    }
}

/// What a sequence's tokens share.
struct Shared {
    log: f64,
    frozen_log: f64,
    weight: f64,
    /// For `A >= 0` and for `A < 0`.
    phi: [f64; 2],
    drops_negative: bool,
}
