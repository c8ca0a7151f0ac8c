//! The surrogates' arithmetic: value and exact derivative of one token, each the twin of a functor in
//! `kernels/objective.cuh`. Branch-free, to be inlined into the loops of `walk`.

use super::replay::{Replay, ReplayRatio, ReplayShape};
use super::surrogate::{RatioShape, Surrogate};
use crate::device::cpu::math::exp;

/// A token as a surrogate sees it. One that is not live has zeros, and ratio 1.
#[derive(Clone, Copy)]
pub(super) struct Token {
    pub logprob: f32,
    pub old_logprob: f32,
    pub advantage: f32,
    pub log_ratio: f32,
    pub ratio: f32,
    /// A clamp of the log ratio acts: no gradient passes through the ratio.
    pub stopped: bool,
}

/// What a surrogate makes of it.
#[derive(Clone, Copy)]
pub(super) struct Point {
    pub value: f32,
    /// Its derivative by the log-prob.
    pub slope: f32,
    /// What the metrics of ratios count.
    pub reported: f32,
    pub clipped: bool,
    pub high: bool,
    pub low: bool,
    pub dual: bool,
}

impl Point {
    #[inline(always)]
    fn free(value: f32, slope: f32, reported: f32) -> Point {
        Point { value, slope, reported, clipped: false, high: false, low: false, dual: false }
    }
}

/// A surrogate.
pub(super) trait Formula: Copy {
    fn at<const FMA: bool>(&self, token: &Token) -> Point;
}

/// Where a token's ratio comes from: `(log ratio, ratio, stopped)`.
pub(super) trait RatioSource: Copy {
    fn of<const FMA: bool>(&self, difference: f32) -> (f32, f32, bool);
}

/// `exp` of the token's own difference, clamped.
#[derive(Clone, Copy)]
pub(super) struct TokenRatio {
    pub limit: f32,
}

impl RatioSource for TokenRatio {
    #[inline(always)]
    fn of<const FMA: bool>(&self, d: f32) -> (f32, f32, bool) {
        let clamped = clamp(d, self.limit);
        (clamped, exp::<FMA>(clamped), (clamped < d) | (clamped > d))
    }
}

/// Within `±limit`; NaN passes.
#[inline(always)]
pub(super) fn clamp(d: f32, limit: f32) -> f32 {
    let clamped = if d > limit { limit } else { d };
    if clamped < -limit { -limit } else { clamped }
}

/// The ratio of the token's sequence; the token's own difference is clamped and stops alone.
#[derive(Clone, Copy)]
pub(super) struct SequenceRatio {
    pub ratio: f32,
    pub stopped: bool,
    /// Of the token's own difference.
    pub limit: f32,
}

impl RatioSource for SequenceRatio {
    #[inline(always)]
    fn of<const FMA: bool>(&self, d: f32) -> (f32, f32, bool) {
        let clamped = clamp(d, self.limit);
        (clamped, self.ratio, self.stopped | (clamped < d) | (clamped > d))
    }
}

/// The PPO-clip family as intervals: the loss is `-A clamp(r, low, high)` with bounds chosen by the sign of `A`, and
/// its gradient is `-A r'` where the clamp left `r` alone. Every member (asymmetric, dual, two-sided, none) is such a
/// pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Largest ratio for `A >= 0`; there is no smallest.
    pub high_positive: f32,
    /// Smallest ratio for `A < 0`.
    pub low_negative: f32,
    /// Largest ratio for `A < 0`; it wins over `low_negative`.
    pub high_negative: f32,
    /// Above it a positive advantage counts as clipped; infinite where `delta` already stops every ratio below it.
    pub report_high: f32,
    /// Below it a negative advantage counts as clipped.
    pub report_low: f32,
}

impl Bounds {
    /// No clip.
    pub const NONE: Bounds = Bounds {
        high_positive: f32::INFINITY,
        low_negative: f32::NEG_INFINITY,
        high_negative: f32::INFINITY,
        report_high: f32::INFINITY,
        report_low: f32::NEG_INFINITY,
    };

    pub fn of(surrogate: &Surrogate) -> Bounds {
        let Surrogate::PpoClip { clip_low, clip_high, dual_clip, delta } = surrogate else {
            return Bounds::NONE;
        };
        let (low, high) = (1.0 - clip_low, 1.0 + clip_high);
        let cap = delta.unwrap_or(f32::INFINITY);
        Bounds {
            high_positive: high.min(cap),
            low_negative: low,
            high_negative: high.max(cap).min(dual_clip.unwrap_or(f32::INFINITY)),
            report_high: if cap > high { high } else { f32::INFINITY },
            // With a cap below `low` every ratio of the unclipped branch is.
            report_low: if cap < low { f32::INFINITY } else { low },
        }
    }

    /// At the ratio `r` with derivative `slope` by the log-prob.
    #[inline(always)]
    fn at(&self, r: f32, slope: f32, stopped: bool, a: f32) -> Point {
        let negative = a < 0.0;
        let low = if negative { self.low_negative } else { f32::NEG_INFINITY };
        let high = if negative { self.high_negative } else { self.high_positive };
        let s = if r < low { low } else { r };
        let s = if s > high { high } else { s };
        // What was not clamped passes, and NaN does, so that it reaches the gradient.
        let stopped = (s < r) | (s > r) | stopped;
        let (above, below) = ((a > 0.0) & (r > self.report_high), negative & (r < self.report_low));
        Point {
            value: -a * s,
            slope: if stopped { 0.0 } else { -a * slope },
            reported: r,
            clipped: above | below,
            high: above,
            low: below,
            dual: negative & (r > self.high_negative),
        }
    }
}

/// [`Surrogate::PpoClip`] and [`Surrogate::Ratio`].
#[derive(Clone, Copy)]
pub(super) struct Clip(pub Bounds);

impl Formula for Clip {
    #[inline(always)]
    fn at<const FMA: bool>(&self, t: &Token) -> Point {
        self.0.at(t.ratio, t.ratio, t.stopped, t.advantage)
    }
}

/// The same of a reshaped ratio.
#[derive(Clone, Copy)]
pub(super) struct Reshaped {
    pub bounds: Bounds,
    pub shape: RatioShape,
}

impl Formula for Reshaped {
    #[inline(always)]
    fn at<const FMA: bool>(&self, t: &Token) -> Point {
        let (r, slope, stopped) = match self.shape {
            RatioShape::Plain => (t.ratio, t.ratio, t.stopped),
            RatioShape::Logarithm {} => (t.log_ratio, 1.0, t.stopped),
            RatioShape::RatioPlusLogarithm { weight } => {
                (t.ratio + weight * t.log_ratio, t.ratio + weight, t.stopped)
            }
            RatioShape::Power { exponent } => {
                let r = exp::<FMA>(exponent * t.log_ratio);
                (r, exponent * r, t.stopped)
            }
            RatioShape::Probability { offset } => {
                let share = |logprob: f32| sigmoid::<FMA>(logprob - offset.ln());
                let (now, old) = (share(t.logprob), share(t.old_logprob));
                let r = now.0 / old.0;
                (r, r * (1.0 - now.0), false)
            }
        };
        self.bounds.at(r, slope, stopped, t.advantage)
    }
}

/// `sigmoid(x)` and its derivative, from `e^-|x|`, which does not overflow.
#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> (f32, f32) {
    let e = exp::<FMA>(-x.abs());
    let whole = 1.0 + e;
    (if x < 0.0 { e / whole } else { 1.0 / whole }, e / (whole * whole))
}

/// [`Surrogate::Cispo`].
#[derive(Clone, Copy)]
pub(super) struct Cispo {
    pub least: f32,
    pub most: f32,
}

impl Formula for Cispo {
    #[inline(always)]
    fn at<const FMA: bool>(&self, t: &Token) -> Point {
        let (above, below) = (t.ratio > self.most, t.ratio < self.least);
        let weight = if above { self.most } else { t.ratio };
        let weight = if below { self.least } else { weight };
        let slope = -weight * t.advantage;
        Point {
            value: slope * t.logprob,
            slope,
            reported: t.ratio,
            clipped: above | below,
            high: above & (t.advantage > 0.0),
            low: below & (t.advantage < 0.0),
            dual: false,
        }
    }
}

/// [`Surrogate::Gmpo`]: the ratio is the sequence's geometric mean.
#[derive(Clone, Copy)]
pub(super) struct Gmpo {
    pub low: f32,
    pub high: f32,
}

impl Formula for Gmpo {
    #[inline(always)]
    fn at<const FMA: bool>(&self, t: &Token) -> Point {
        let (positive, negative) = (t.advantage > 0.0, t.advantage < 0.0);
        let (above, below) = (t.log_ratio > self.high, t.log_ratio < self.low);
        let stopped = (positive & above) | (negative & below) | t.stopped;
        let value = -t.advantage * t.ratio;
        Point {
            value,
            slope: if stopped { 0.0 } else { value },
            reported: t.ratio,
            clipped: (positive | negative) & (above | below),
            // At either end, as verl counts.
            high: positive & (above | below),
            low: negative & (above | below),
            dual: false,
        }
    }
}

/// [`Surrogate::Sapo`].
#[derive(Clone, Copy)]
pub(super) struct Sapo {
    pub positive: f32,
    pub negative: f32,
}

impl Formula for Sapo {
    #[inline(always)]
    fn at<const FMA: bool>(&self, t: &Token) -> Point {
        let temperature = if t.advantage > 0.0 { self.positive } else { self.negative };
        let (gate, slope) = sigmoid::<FMA>(temperature * (t.ratio - 1.0));
        let passed = 4.0 * slope * t.ratio;
        // A gate that is shut is so for an infinite ratio too.
        let stopped = t.stopped | (slope == 0.0);
        let slope = if stopped { 0.0 } else { -t.advantage * passed };
        Point::free(-t.advantage * (gate * (4.0 / temperature)), slope, t.ratio)
    }
}

/// [`Surrogate::Reinforce`].
#[derive(Clone, Copy)]
pub(super) struct Reinforce;

impl Formula for Reinforce {
    #[inline(always)]
    fn at<const FMA: bool>(&self, t: &Token) -> Point {
        Point::free(-t.advantage * t.logprob, -t.advantage, t.ratio)
    }
}

/// [`Surrogate::Cpgd`]; bounds of the log ratio.
#[derive(Clone, Copy)]
pub(super) struct Cpgd {
    pub low: f32,
    pub high: f32,
}

impl Formula for Cpgd {
    #[inline(always)]
    fn at<const FMA: bool>(&self, t: &Token) -> Point {
        let d = t.logprob - t.old_logprob;
        let positive = t.advantage > 0.0;
        let (above, below) = (positive & (d > self.high), !positive & (d < self.low));
        let bound = t.old_logprob + if positive { self.high } else { self.low };
        let stopped = above | below;
        let negative = t.advantage < 0.0;
        Point {
            value: -t.advantage * if stopped { bound } else { t.logprob },
            slope: if stopped { 0.0 } else { -t.advantage },
            reported: t.ratio,
            clipped: above | (below & negative),
            high: above,
            low: below & negative,
            dual: false,
        }
    }
}

/// [`Surrogate::Vespo`]: φ of the sequence, by the sign of the advantage. What metrics of ratios report is φ.
#[derive(Clone, Copy)]
pub(super) struct Vespo {
    pub positive: f32,
    pub negative: f32,
}

impl Formula for Vespo {
    #[inline(always)]
    fn at<const FMA: bool>(&self, t: &Token) -> Point {
        let phi = if t.advantage < 0.0 { self.negative } else { self.positive };
        let slope = -phi * t.advantage;
        Point::free(slope * t.logprob, slope, phi)
    }
}

/// The clipped error of a value function: `logprob` is the value, `old_logprob` the value when it was sampled, `advantage`
/// the target.
#[derive(Clone, Copy)]
pub(super) struct Value {
    pub clip: f32,
}

impl Formula for Value {
    #[inline(always)]
    fn at<const FMA: bool>(&self, t: &Token) -> Point {
        let (least, most) = (t.old_logprob - self.clip, t.old_logprob + self.clip);
        let kept = if t.logprob > most { most } else { t.logprob };
        let kept = if kept < least { least } else { kept };
        let (error, of_kept) = (t.logprob - t.advantage, kept - t.advantage);
        let (plain, clipped) = (error * error, of_kept * of_kept);
        let acts = clipped > plain;
        Point {
            value: 0.5 * if acts { clipped } else { plain },
            slope: if acts { 0.0 } else { error },
            reported: t.logprob,
            clipped: acts,
            high: acts & (kept == most),
            low: acts & (kept == least),
            dual: false,
        }
    }
}

/// A replayed token's term.
pub(super) struct Shaped {
    /// `f(w)`, clipped.
    pub value: f32,
    /// Its derivative by the log-prob.
    pub slope: f32,
    /// `w`.
    pub ratio: f32,
    pub high: bool,
    pub low: bool,
}

impl Replay {
    /// `log_ratio` is clamped, `stopped` says that it was.
    #[inline(always)]
    pub(super) fn at<const FMA: bool>(
        &self,
        logprob: f32,
        log_ratio: f32,
        stopped: bool,
    ) -> Shaped {
        let (x, stopped) = match self.ratio {
            ReplayRatio::Recorded => (log_ratio, stopped),
            ReplayRatio::Probability => (logprob, false),
        };
        let ratio = exp::<FMA>(x);
        let pass = |slope: f32| if stopped { 0.0 } else { slope };
        let (value, slope) = match self.shape {
            ReplayShape::Plain {} => (ratio, pass(ratio)),
            ReplayShape::Logprob { weight } => (weight * logprob, weight),
            ReplayShape::RatioPlusLogprob { weight } => {
                (ratio + weight * logprob, pass(ratio) + weight)
            }
            ReplayShape::Power { exponent } => {
                let power = exp::<FMA>(exponent * x);
                (power, pass(exponent * power))
            }
            ReplayShape::Sigmoid { beta, gain } => {
                let (share, slope) = sigmoid::<FMA>(x - beta.ln());
                (gain * share, pass(gain * slope))
            }
        };
        let (low, high) = (
            self.least.is_some_and(|least| value < least),
            self.most.is_some_and(|most| value > most),
        );
        let kept = if high { self.most.unwrap_or(value) } else { value };
        let kept = if low { self.least.unwrap_or(kept) } else { kept };
        Shaped { value: kept, slope: if low | high { 0.0 } else { slope }, ratio, high, low }
    }
}
