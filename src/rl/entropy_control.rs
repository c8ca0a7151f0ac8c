//! An entropy coefficient that follows the entropy: up while the policy is too sure, down while it is not.
//!
//! Source: Skywork-OR1 (arXiv 2505.22312), as TRL's `use_adaptive_entropy` has it.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the coefficient moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EntropyControl {
    /// The entropy, nats a token, below which the bonus acts.
    pub target: f64,
    /// How far the coefficient moves an update.
    pub step: f64,
    /// Its smallest value.
    pub least: f64,
    /// Its largest value.
    pub most: f64,
}

impl Default for EntropyControl {
    fn default() -> EntropyControl {
        EntropyControl { target: 0.2, step: 0.005, least: 0.0, most: 1.0 }
    }
}

/// The whole state: what a checkpoint keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyState {
    /// The coefficient before its gate.
    pub coefficient: f64,
    /// Mean entropy of the last update's tokens; `None` before the first.
    pub last_entropy: Option<f64>,
}

impl EntropyControl {
    /// The state before the first update.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for numbers that are not finite, a step below 0, or bounds that exclude `initial`.
    pub fn start(&self, initial: f64) -> Result<EntropyState> {
        let finite = [self.target, self.step, self.least, self.most].iter().all(|x| x.is_finite());
        if !finite || self.step < 0.0 || !(self.least..=self.most).contains(&initial) {
            return Err(Error::invalid(format!(
                "entropy control: {self:?} cannot start from the coefficient {initial}"
            )));
        }
        Ok(EntropyState { coefficient: initial, last_entropy: None })
    }

    /// The coefficient of the next update: 0 while the last entropy was above the target.
    pub fn coefficient(&self, state: &EntropyState) -> f32 {
        match state.last_entropy {
            Some(entropy) if entropy > self.target => 0.0,
            _ => state.coefficient as f32,
        }
    }

    /// After an update over tokens whose mean entropy was `entropy`. A NaN changes nothing.
    pub fn update(&self, state: &mut EntropyState, entropy: f64) {
        if entropy.is_nan() {
            return;
        }
        let moved = if entropy <= self.target { self.step } else { -self.step };
        state.coefficient = (state.coefficient + moved).clamp(self.least, self.most);
        state.last_entropy = Some(entropy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_below_the_target_and_rests_above_it() {
        let control = EntropyControl { target: 0.5, step: 0.25, least: 0.0, most: 0.6 };
        let mut state = control.start(0.25).unwrap();
        assert_eq!(control.coefficient(&state), 0.25);
        control.update(&mut state, 0.5);
        assert_eq!((state.coefficient, control.coefficient(&state)), (0.5, 0.5));
        control.update(&mut state, 0.1);
        assert_eq!(state.coefficient, 0.6);
        control.update(&mut state, 0.7);
        assert_eq!(control.coefficient(&state), 0.0, "gated");
        assert!((state.coefficient - 0.35).abs() < 1e-12);
        control.update(&mut state, f64::NAN);
        assert_eq!(state.last_entropy, Some(0.7));
        for _ in 0..9 {
            control.update(&mut state, 9.0);
        }
        assert_eq!(state.coefficient, 0.0);
        control.update(&mut state, 0.2);
        assert_eq!(control.coefficient(&state), 0.25, "it comes back");
        assert!(control.start(0.7).unwrap_err().is_invalid());
    }
}
