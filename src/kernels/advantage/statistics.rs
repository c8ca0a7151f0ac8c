//! Mean, deviation and extent of numbers, in f64 and in two passes.

/// Mean, unbiased deviation and number of a set of rewards, NaN left out.
pub(super) struct Statistics {
    pub(super) scored: usize,
    pub(super) mean: f64,
    pub(super) std: f64,
    pub(super) all_equal: bool,
}

impl Statistics {
    pub(super) fn of(rewards: impl Iterator<Item = f32> + Clone) -> Statistics {
        let scored_rewards = || rewards.clone().filter(|r| !r.is_nan());
        let weighed = Weighed::of(scored_rewards().map(|reward| (reward, 1.0)));
        let scored = weighed.weight as usize;
        Statistics { scored, mean: weighed.mean, std: weighed.std, all_equal: weighed.all_equal }
    }
}

/// The same of values that count with weights; a value of weight 0 is not looked at.
pub(super) struct Weighed {
    pub(super) weight: f64,
    pub(super) mean: f64,
    pub(super) std: f64,
    pub(super) all_equal: bool,
}

impl Weighed {
    pub(super) fn of(values: impl Iterator<Item = (f32, f64)> + Clone) -> Weighed {
        let counted = || values.clone().filter(|(_, weight)| *weight > 0.0);
        let (mut weight, mut sum) = (0f64, 0f64);
        let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
        for (value, by) in counted() {
            weight += by;
            sum += by * f64::from(value);
            least = least.min(value);
            most = most.max(value);
        }
        // `max == min` and not a small deviation: rounding in the mean must never be divided by epsilon.
        let all_equal = weight == 0.0 || least == most;
        let mean = match all_equal {
            true if weight == 0.0 => 0.0,
            true => f64::from(most),
            false => sum / weight,
        };
        let squares: f64 = counted().map(|(x, by)| by * (f64::from(x) - mean).powi(2)).sum();
        let std = if all_equal { 0.0 } else { (squares / (weight - 1.0)).sqrt() };
        Weighed { weight, mean, std, all_equal }
    }
}
