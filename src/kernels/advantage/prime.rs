//! PRIME: the outcome against the others' and the implicit process rewards still to come, each less a leave-one-out mean.

use super::estimator::{Estimator, Gae, Singleton};
use super::groups::Groups;
use super::outcome::{Outputs, forward};
use super::scan::{Holes, Scan, Shift, TokenOutputs, Tokens, check_token_lengths};
use crate::error::{Error, Result};

/// What [`prime`] reads.
#[derive(Clone, Copy, Debug)]
pub struct Prime<'a> {
    /// `[sequences]` rewards of outcomes; NaN: not scored, which adds nothing.
    pub outcome: &'a [f32],
    /// `[tokens]` implicit process rewards, `beta (log pi_phi - log pi_ref)`.
    pub process: &'a [f32],
    /// The discount of process rewards, over live tokens.
    pub gamma: f64,
}

/// The reward minus the mean of the others, 0 for a sequence alone.
pub(super) const LEAVE_ONE_OUT: Estimator = Estimator::Rloo { singleton: Singleton::Zero };

/// `A[t] = RLOO(outcome) + Σ_{j >= t} gamma^(j - t) (process[j] - mean of the other sequences' mean process reward)` over live
/// tokens; 0 where masked. A sequence alone in its group is compared with its own mean.
///
/// # Shapes
/// As [`Prime`] and [`Tokens`] say; `groups` are groups of sequences; `advantage [tokens]`.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_index`] for lengths, groups and offsets that do not fit, [`Error::is_invalid`] for an infinite
/// outcome or a discount outside `0..=1`.
///
/// # Source
/// PRIME, arXiv 2502.01456.
pub fn prime(
    of: &Prime<'_>,
    tokens: Tokens<'_>,
    groups: Groups<'_>,
    advantage: &mut [f32],
) -> Result<()> {
    let count = of.process.len();
    check_token_lengths(
        count,
        tokens.mask.len(),
        &[("output `advantage`", Some(advantage.len()))],
    )?;
    let offsets = tokens.check(count, &[])?;
    check_outcomes(of.outcome.len(), offsets.len() - 1)?;
    let mean = |bounds: &[usize]| {
        let live = (bounds[0]..bounds[1]).filter(|token| tokens.mask[*token] != 0);
        let (sum, count) =
            live.fold((0f64, 0f64), |(sum, n), t| (sum + f64::from(of.process[t]), n + 1.0));
        if count > 0.0 { (sum / count) as f32 } else { f32::NAN }
    };
    let means: Vec<f32> = offsets.windows(2).map(mean).collect();
    let left_out = |rewards: &[f32]| -> Result<Vec<f32>> {
        let mut relative = vec![0f32; rewards.len()];
        let out = Outputs { advantage: &mut relative, mean: None, std: None, flags: None };
        forward(&LEAVE_ONE_OUT, rewards, groups, out)?;
        Ok(relative)
    };
    let (relative, bonus) = (left_out(&means)?, left_out(of.outcome)?);
    let shifts: Vec<Shift> = (0..means.len())
        .map(|i| Shift {
            center: f64::from(means[i]) - f64::from(relative[i]),
            bonus: f64::from(bonus[i]),
        })
        .collect();
    let settings = Gae { gamma: of.gamma, whiten: false, ..Gae::default() };
    let scan = Scan { gae: settings, holes: Holes::Pass, shifts: Some(&shifts) };
    scan.run(of.process, None, tokens, TokenOutputs { advantage, returns: None })
}

pub(super) fn check_outcomes(outcomes: usize, sequences: usize) -> Result<()> {
    if outcomes != sequences {
        return Err(Error::shape(format!(
            "advantage: {outcomes} outcome rewards for {sequences} sequences"
        )));
    }
    Ok(())
}
