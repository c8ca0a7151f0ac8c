//! The losses in f64, from their published forms: no intervals, no lanes, one token after another.

use gradstone::kernels::policy_loss::{
    Aggregation, Clamp, KlEstimator, LogRatio, Objective, Rows, Surrogate, Totals,
};
use std::ops::Range;

#[derive(Clone)]
pub struct Batch {
    pub logprob: Vec<f32>,
    pub old_logprob: Vec<f32>,
    pub reference: Vec<f32>,
    pub advantage: Vec<f32>,
    pub entropy: Vec<f32>,
    pub weight: Vec<f32>,
    pub mask: Vec<u8>,
    pub offsets: Vec<i64>,
}

impl Batch {
    pub fn logprob_f64(&self) -> Vec<f64> {
        self.logprob.iter().map(|x| f64::from(*x)).collect()
    }

    /// One sequence alone.
    pub fn part(&self, range: Range<usize>) -> Batch {
        let cut = |values: &[f32]| values[range.clone()].to_vec();
        Batch {
            logprob: cut(&self.logprob),
            old_logprob: cut(&self.old_logprob),
            reference: cut(&self.reference),
            advantage: cut(&self.advantage),
            entropy: cut(&self.entropy),
            weight: cut(&self.weight),
            mask: self.mask[range.clone()].to_vec(),
            offsets: vec![0, range.len() as i64],
        }
    }
}

#[derive(Default)]
pub struct Want {
    pub loss: f64,
    /// Sum of the absolute contributions: what rounding is relative to.
    pub magnitude: f64,
    pub kl: f64,
    pub kl_magnitude: f64,
    pub approx_kl: f64,
    pub log_ratio_magnitude: f64,
    pub ratio_mean: f64,
    pub ratio_max: f64,
    pub entropy: f64,
    pub high: f64,
    pub low: f64,
    pub live_tokens: u64,
    pub live_sequences: u64,
    /// The ratio is so near a bound that f32 rounding may put it on the other side.
    pub borderline: Vec<bool>,
    pub dlogprob: Vec<f64>,
    pub dentropy: Vec<f64>,
}

fn clamp_with_slope(x: f64, low: f64, high: f64) -> (f64, f64) {
    if x < low {
        (low, 0.0)
    } else if x > high {
        (high, 0.0)
    } else {
        (x, 1.0)
    }
}

pub fn evaluate(objective: &Objective, batch: &Batch, logprob: &[f64], totals: Totals) -> Want {
    let Surrogate::PpoClip { clip_low, clip_high, dual_clip, delta } = &objective.surrogate else {
        panic!("an oracle is missing for {:?}", objective.surrogate)
    };
    // The bounds as the kernel sees them, in f32: 1 + 0.2f32 is not 1.2.
    let (least, most) = (f64::from(1.0 - clip_low), f64::from(1.0 + clip_high));
    let cap = delta.map_or(f64::INFINITY, f64::from);
    let dual = dual_clip.map_or(f64::INFINITY, f64::from);
    let limit = if objective.log_ratio == LogRatio::Clamped { 20.0 } else { f64::INFINITY };

    let sequences: Vec<Range<usize>> =
        batch.offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize).collect();
    let lives: Vec<f64> = sequences
        .iter()
        .map(|range| batch.mask[range.clone()].iter().filter(|m| **m != 0).count() as f64)
        .collect();
    let live_tokens: f64 = lives.iter().sum();
    let live_sequences = lives.iter().filter(|n| **n > 0.0).count();
    let count = |rows: Rows| {
        totals.sequences.unwrap_or(match rows {
            Rows::NonEmpty => live_sequences as f64,
            Rows::All => lives.len() as f64,
        })
    };
    let mut want = Want {
        live_tokens: live_tokens as u64,
        live_sequences: live_sequences as u64,
        borderline: vec![false; logprob.len()],
        dlogprob: vec![0.0; logprob.len()],
        dentropy: vec![0.0; logprob.len()],
        ..Want::default()
    };
    for (range, n) in sequences.into_iter().zip(&lives) {
        let weight_of = |mode: &Aggregation| {
            totals.scale
                / match mode {
                    Aggregation::TokenMean {} => totals.tokens.unwrap_or(live_tokens),
                    Aggregation::SequenceMeanTokenMean { rows } => count(*rows) * n,
                    Aggregation::SequenceMeanTokenSum { rows, length } => {
                        count(*rows) * f64::from(*length)
                    }
                    Aggregation::TokenSum { length } => f64::from(*length),
                }
        };
        let coefficient = weight_of(&objective.aggregation);
        let of_entropy =
            weight_of(objective.entropy_aggregation.as_ref().unwrap_or(&objective.aggregation));
        for t in range.filter(|t| batch.mask[*t] != 0) {
            let d = logprob[t] - f64::from(batch.old_logprob[t]);
            let (d, d_slope) = clamp_with_slope(d, -limit, limit);
            let (w, dw) = (d.exp(), d.exp() * d_slope);
            want.borderline[t] =
                [least, most, cap, dual].iter().any(|bound| (w / bound - 1.0).abs() < 3e-6);
            let a = f64::from(batch.advantage[t]);
            let (capped, cap_slope) = clamp_with_slope(w, f64::NEG_INFINITY, cap);
            let (clipped, clip_slope) = clamp_with_slope(w, least, most);
            let (mut value, mut slope) = if -a * clipped > -a * capped {
                (-a * clipped, -a * clip_slope * dw)
            } else {
                (-a * capped, -a * cap_slope * dw)
            };
            if a < 0.0 && value > -a * dual {
                (value, slope) = (-a * dual, 0.0);
            }
            let weight = f64::from(batch.weight[t]);
            (value, slope) = (value * weight, slope * weight);
            want.high += f64::from(a > 0.0 && capped > most) / live_tokens;
            want.low += f64::from(a < 0.0 && capped < least) / live_tokens;

            if let Some(kl) = &objective.kl {
                let d = logprob[t] - f64::from(batch.reference[t]);
                let clamped = kl.clamp == Clamp::Clamped;
                let (mut estimate, mut kl_slope) = match kl.estimator {
                    KlEstimator::K1 => (d, 1.0),
                    KlEstimator::K2 => (0.5 * d * d, d),
                    KlEstimator::Abs => (d.abs(), d.signum()),
                    KlEstimator::K3 => {
                        let bound = if clamped { 20.0 } else { f64::INFINITY };
                        let (x, x_slope) = clamp_with_slope(-d, -bound, bound);
                        let bound = if clamped { 10.0 } else { f64::INFINITY };
                        let (y, y_slope) = clamp_with_slope(x.exp_m1() - x, -bound, bound);
                        (y, -y_slope * x_slope * x.exp_m1())
                    }
                };
                if kl.bias_correction {
                    (estimate, kl_slope) = (w * estimate, dw * estimate + w * kl_slope);
                }
                value += f64::from(kl.coefficient) * estimate;
                slope += f64::from(kl.coefficient) * kl_slope;
                want.kl += estimate / live_tokens;
                want.kl_magnitude += estimate.abs() / live_tokens;
                want.magnitude += (coefficient * f64::from(kl.coefficient) * estimate).abs();
            }
            let entropy = f64::from(batch.entropy[t]);
            let bonus = f64::from(objective.entropy_coefficient);
            want.loss += coefficient * value - of_entropy * bonus * entropy;
            want.magnitude += (coefficient * value).abs() + (of_entropy * bonus * entropy).abs();
            want.dlogprob[t] = coefficient * slope;
            want.dentropy[t] = -of_entropy * bonus;
            want.approx_kl -= d / live_tokens;
            want.log_ratio_magnitude += d.abs() / live_tokens;
            want.ratio_mean += w / live_tokens;
            want.ratio_max = want.ratio_max.max(w);
            want.entropy += entropy / live_tokens;
        }
    }
    want
}
