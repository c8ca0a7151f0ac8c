//! How long a run still takes: each phase by the mean of its own last steps.

use crate::train::Phase;
use std::collections::VecDeque;
use std::time::Duration;

/// Steps that the mean is taken over.
const LATEST: usize = 20;

/// The phases of a run and how long their steps took.
#[derive(Debug, Default)]
pub(super) struct Remaining {
    phases: Vec<(Phase, u64)>,
    latest: VecDeque<f64>,
    current: Option<Phase>,
}

impl Remaining {
    pub(super) fn new(phases: &[(Phase, u64)]) -> Remaining {
        Remaining { phases: phases.to_vec(), ..Remaining::default() }
    }

    /// A step of `phase` took so many seconds.
    pub(super) fn add(&mut self, phase: Phase, seconds: f64) {
        if self.current != Some(phase) {
            self.latest.clear();
            self.current = Some(phase);
        }
        self.latest.push_back(seconds);
        if self.latest.len() > LATEST {
            self.latest.pop_front();
        }
    }

    /// After `step`: `3m12s left`, of the phase alone where others follow, whose steps nobody has seen yet.
    pub(super) fn words(&self, step: u64) -> String {
        let Some(at) = self.phases.iter().position(|(_, last)| step < *last) else {
            return String::new();
        };
        let (phase, last) = self.phases[at];
        if self.latest.is_empty() || self.current != Some(phase) {
            return String::new();
        }
        let mean = self.latest.iter().sum::<f64>() / self.latest.len() as f64;
        let left = short(Duration::from_secs_f64((mean * (last - step) as f64).min(1e9)));
        match at + 1 == self.phases.len() {
            true => format!("{left} left"),
            false => format!("{left} left of {}", phase.name()),
        }
    }
}

/// `42s`, `3m12s`, `2h05m`, `3d04h`.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_by_its_own_steps() {
        let mut remaining = Remaining::new(&[(Phase::Warmup, 10), (Phase::Rl, 30)]);
        assert_eq!(remaining.words(0), "");
        remaining.add(Phase::Warmup, 1.0);
        remaining.add(Phase::Warmup, 3.0);
        assert_eq!(remaining.words(2), "16s left of warmup");
        // The next phase has not been seen.
        assert_eq!(remaining.words(10), "");
        remaining.add(Phase::Rl, 60.0);
        assert_eq!(remaining.words(11), "19m00s left");
        for _ in 0..40 {
            remaining.add(Phase::Rl, 6.0);
        }
        assert_eq!(remaining.words(29), "6s left");
        assert_eq!(remaining.words(30), "");
    }

    #[test]
    fn times_are_short() {
        for (seconds, words) in
            [(0, "0s"), (61, "1m01s"), (7500, "2h05m"), (90_000, "1d01h"), (86_399, "23h59m")]
        {
            assert_eq!(short(Duration::from_secs(seconds)), words);
        }
    }
}
