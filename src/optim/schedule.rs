//! Learning-rate schedules: a linear warm-up, then constant, linear or cosine.

use serde::{Deserialize, Serialize};

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// The peak rate to the end.
    #[default]
    Constant,
    /// Down to the floor in a straight line.
    Linear,
    /// Down to the floor along half a cosine.
    Cosine,
}

/// A factor on the learning rate for each update.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Updates over which the rate rises linearly to its peak.
    pub warmup: u64,
    /// What comes after.
    pub decay: Decay,
    /// The factor at the end of a decay.
    pub floor: f64,
}

impl Schedule {
    /// The factor of update `done + 1` of `total`.
    pub fn factor(&self, done: u64, total: u64) -> f64 {
        if done < self.warmup {
            return (done + 1) as f64 / self.warmup as f64;
        }
        let length = total.saturating_sub(self.warmup).max(1);
        let progress = ((done - self.warmup) as f64 / length as f64).min(1.0);
        let remaining = match self.decay {
            Decay::Constant => return 1.0,
            Decay::Linear => 1.0 - progress,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.floor + (1.0 - self.floor) * remaining
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls() {
        let schedule = Schedule { warmup: 4, decay: Decay::Cosine, floor: 0.1 };
        assert_eq!(schedule.factor(0, 104), 0.25);
        assert_eq!(schedule.factor(3, 104), 1.0);
        assert!((schedule.factor(54, 104) - 0.55).abs() < 1e-12);
        assert!((schedule.factor(104, 104) - 0.1).abs() < 1e-12);
        assert_eq!(Schedule::default().factor(0, 0), 1.0);
        let linear = Schedule { warmup: 0, decay: Decay::Linear, floor: 0.0 };
        assert_eq!(linear.factor(25, 100), 0.75);
    }
}
