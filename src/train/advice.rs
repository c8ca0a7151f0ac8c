//! Words about a run that learns nothing: why that is, and what helps.

/// Steps in a row after which something is said.
const STEPS: u64 = 20;

/// What one step of reinforcement showed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The largest reward; NaN where nothing was scored.
    pub highest: f32,
    /// The smallest reward.
    pub lowest: f32,
    /// The share of completions that were cut at the length limit.
    pub truncated: f64,
    /// No group had two different rewards.
    pub unmixed: bool,
}

/// How many steps in a row showed the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Advice {
    unrewarded: u64,
    cut: u64,
    unmixed: u64,
}

/// Counts a step; true where it is one after which a word is due.
fn due(count: &mut u64, again: bool) -> bool {
    *count = if again { *count + 1 } else { 0 };
    // After 20 steps, and then ever more rarely.
    *count >= STEPS && (*count / STEPS).is_power_of_two() && count.is_multiple_of(STEPS)
}

impl Advice {
    /// The lines that are due after a step; `limit` is the longest completion, tokens.
    pub fn after(&mut self, step: u64, seen: Seen, limit: usize) -> Vec<String> {
        let mut lines = Vec::new();
        let zero = seen.highest == 0.0 && seen.lowest == 0.0;
        let unrewarded = due(&mut self.unrewarded, zero);
        let cut = due(&mut self.cut, seen.truncated >= 1.0);
        let unmixed = due(&mut self.unmixed, seen.unmixed);
        if cut {
            lines.push(format!(
                "step {step}: every completion of the last {} steps was cut at rollout.max_new_tokens = {limit}, and an answer that \
                 is cut off rarely counts: raise the limit, ask for short answers in the prompt (task.format), or check that the \
                 model's tokenizer names the token that ends a turn",
                self.cut
            ));
        }
        if unrewarded {
            lines.push(format!(
                "step {step}: no completion of the last {} steps earned a reward, so nothing is learned. Read some in \
                 rollouts.jsonl: is the answer in the form that task.verifier expects, and is the prompt in the model's chat \
                 template? Easier problems, a larger rollout.group or a warm-up on demonstrations help where it cannot do them yet",
                self.unrewarded
            ));
        } else if unmixed {
            lines.push(format!(
                "step {step}: in none of the last {} steps had a group two different rewards, so every advantage was 0: the problems \
                 are too easy or too hard for the model. Other problems help, or a larger rollout.group, or a higher \
                 rollout.temperature",
                self.unmixed
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_after_twenty_steps_and_then_ever_more_rarely() {
        let mut advice = Advice::default();
        let none = Seen { highest: 0.0, lowest: 0.0, truncated: 1.0, unmixed: true };
        let mut said = Vec::new();
        for step in 1..=200 {
            let lines = advice.after(step, none, 64);
            if !lines.is_empty() {
                assert_eq!(lines.len(), 2, "{lines:?}");
                assert!(lines[0].contains("max_new_tokens") && lines[1].contains("verifier"));
                said.push(step);
            }
        }
        assert_eq!(said, [20, 40, 80, 160]);
    }

    #[test]
    fn a_step_that_teaches_ends_the_count() {
        let mut advice = Advice::default();
        let solved = Seen { highest: 1.0, lowest: 1.0, truncated: 0.0, unmixed: true };
        let mixed = Seen { lowest: 0.0, unmixed: false, ..solved };
        for step in 1..=19 {
            assert!(advice.after(step, solved, 64).is_empty());
        }
        assert!(advice.after(20, mixed, 64).is_empty());
        for step in 21..=39 {
            assert!(advice.after(step, solved, 64).is_empty());
        }
        assert!(advice.after(40, solved, 64)[0].contains("too easy or too hard"));
    }
}
