//! Verifiers that fail: a sample without a reward is left out, it does not end a run.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a verifier says of one sample; `None` where it panics.
///
/// Count the samples without a verdict, and show them. A reward of `None` goes to
/// [`advantage`](crate::kernels::advantage) as NaN, which leaves the sample out of its group's statistics and gives it
/// the advantage 0.
pub fn guarded<T>(verifier: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(verifier)).ok()
}

/// [`guarded`] for a reward: NaN where the verifier panics or returns something that is not finite.
pub fn guarded_reward(verifier: impl FnOnce() -> f32) -> f32 {
    guarded(verifier).filter(|reward| reward.is_finite()).unwrap_or(f32::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_verifier_gives_no_reward() {
        assert_eq!(guarded_reward(|| 0.5), 0.5);
        assert!(guarded_reward(|| f32::INFINITY).is_nan());
        let none: Vec<u32> = Vec::new();
        assert!(guarded_reward(|| none[std::hint::black_box(3)] as f32).is_nan());
        assert_eq!(guarded(|| 7), Some(7));
    }
}
