//! Advantages and returns of tokens: a scan from the last token of a sequence to its first.

use super::estimator::{Estimator, Gae, Masked};
use super::whiten::whiten;
use crate::error::{Error, Result};
use crate::kernels::offsets;

/// Added to a variance before its root, as verl's `masked_whiten` has it.
pub(super) const WHITEN_EPSILON: f64 = 1e-8;

/// Packed sequences and which of their tokens are live.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// `[tokens]`, non-zero: live. Nothing else of another token is read, unless [`Masked::Carried`] asks for it.
    pub mask: &'a [u8],
    /// `[sequences + 1]`, from 0 to `tokens`.
    pub offsets: &'a [i64],
}

/// Where a scan writes, `[tokens]`.
#[derive(Debug)]
pub struct TokenOutputs<'a> {
    /// The advantage of each token.
    pub advantage: &'a mut [f32],
    /// The return of each token, what a critic learns; `None`: not wanted.
    pub returns: Option<&'a mut [f32]>,
}

/// What masked tokens inside a sequence do to the returns before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Holes {
    /// Nothing: they pass on what comes after them.
    #[default]
    Pass,
    /// They end it: verl's REINFORCE++, where a token before tool output gets no credit for what follows. A quirk.
    Reset,
}

/// What a scan does.
pub(super) struct Scan<'a> {
    pub(super) gae: Gae,
    pub(super) holes: Holes,
    /// For each sequence what is taken off its rewards and what is added to its advantages.
    pub(super) shifts: Option<&'a [Shift]>,
}

/// What is the same for all tokens of a sequence.
#[derive(Clone, Copy, Default)]
pub(super) struct Shift {
    pub(super) center: f64,
    pub(super) bonus: f64,
}

impl Scan<'_> {
    fn lambda(&self, live: usize) -> f64 {
        let adapted = |alpha: f64| (1.0 - 1.0 / (alpha * live.max(1) as f64)).max(0.0);
        self.gae.length_alpha.map_or(self.gae.lambda, adapted)
    }

    /// Advantages and returns of one sequence.
    fn sequence(
        &self,
        rewards: &[f32],
        values: Option<&[f32]>,
        mask: &[u8],
        shift: Shift,
        mut write: impl FnMut(usize, f64, f64),
    ) {
        let Gae { gamma, critic_lambda, masked, .. } = self.gae;
        let lambda = self.lambda(mask.iter().filter(|m| **m != 0).count());
        let critic_lambda = critic_lambda.unwrap_or(lambda);
        let value_at = |t: usize| values.map_or(0.0, |values| f64::from(values[t]));
        let (mut advantage, mut critic, mut value_after) = (0f64, 0f64, 0f64);
        for t in (0..mask.len()).rev() {
            if mask[t] != 0 {
                let value = value_at(t);
                let delta = f64::from(rewards[t]) - shift.center + gamma * value_after - value;
                advantage = delta + gamma * lambda * advantage;
                critic = delta + gamma * critic_lambda * critic;
                value_after = value;
                write(t, advantage + shift.bonus, critic + value);
            } else {
                if self.holes == Holes::Reset {
                    (advantage, critic) = (0.0, 0.0);
                }
                match masked {
                    Masked::Zero => write(t, 0.0, 0.0),
                    Masked::Carried => write(t, advantage, critic + value_at(t)),
                }
            }
        }
    }

    pub(super) fn run(
        &self,
        rewards: &[f32],
        values: Option<&[f32]>,
        of: Tokens<'_>,
        mut out: TokenOutputs<'_>,
    ) -> Result<()> {
        self.gae.check()?;
        let offsets = of.check(
            rewards.len(),
            &[
                ("values", values.map(<[f32]>::len)),
                ("output `advantage`", Some(out.advantage.len())),
                ("output `returns`", out.returns.as_ref().map(|x| x.len())),
            ],
        )?;
        for (sequence, bounds) in offsets.windows(2).enumerate() {
            let (from, to) = (bounds[0], bounds[1]);
            let values = values.map(|values| &values[from..to]);
            let shift = self.shifts.and_then(|all| all.get(sequence)).copied().unwrap_or_default();
            let write = |t: usize, advantage: f64, value: f64| {
                out.advantage[from + t] = advantage as f32;
                if let Some(returns) = out.returns.as_deref_mut() {
                    returns[from + t] = value as f32;
                }
            };
            self.sequence(&rewards[from..to], values, &of.mask[from..to], shift, write);
        }
        Ok(())
    }
}

impl Tokens<'_> {
    /// The offsets, when they and all other lengths fit `tokens`.
    pub(super) fn check(
        &self,
        tokens: usize,
        lengths: &[(&str, Option<usize>)],
    ) -> Result<Vec<usize>> {
        let offsets = offsets::checked("advantage", "sequence", self.offsets, tokens)?;
        check_token_lengths(tokens, self.mask.len(), lengths)?;
        Ok(offsets)
    }
}

pub(super) fn check_token_lengths(
    tokens: usize,
    mask: usize,
    lengths: &[(&str, Option<usize>)],
) -> Result<()> {
    for (name, got) in [("mask", Some(mask))].iter().chain(lengths) {
        if let Some(got) = got.filter(|got| *got != tokens) {
            return Err(Error::shape(format!(
                "advantage: {name} has {got} elements for {tokens} token rewards"
            )));
        }
    }
    Ok(())
}

/// Generalised advantage estimation; a masked token (an observation) passes on advantage and value of what follows it.
///
/// # Shapes
/// `rewards`, `values` `[tokens]` and as [`Tokens`] and [`TokenOutputs`] say.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_index`] for lengths and offsets that do not fit, [`Error::is_invalid`] for an option.
///
/// # Source
/// arXiv 1506.02438; masked tokens as verl `compute_gae_advantage_return`; lambda by length: VAPO, arXiv 2504.05118.
pub fn gae(
    settings: &Gae,
    rewards: &[f32],
    values: &[f32],
    of: Tokens<'_>,
    mut out: TokenOutputs<'_>,
) -> Result<()> {
    let scan = Scan { gae: *settings, holes: Holes::Pass, shifts: None };
    scan.run(rewards, Some(values), of, out.reborrow())?;
    match settings.whiten {
        true => whiten(out.advantage, of.mask, WHITEN_EPSILON, settings.masked),
        false => Ok(()),
    }
}

/// The discounted sum of the rewards from every token on.
///
/// # Shapes
/// `rewards`, `out` `[tokens]` and as [`Tokens`] says.
///
/// # Errors
/// As [`gae`].
pub fn returns(
    gamma: f64,
    holes: Holes,
    rewards: &[f32],
    of: Tokens<'_>,
    out: &mut [f32],
) -> Result<()> {
    let settings = Gae { gamma, whiten: false, ..Gae::default() };
    let out = TokenOutputs { advantage: out, returns: None };
    Scan { gae: settings, holes, shifts: None }.run(rewards, None, of, out)
}

/// REINFORCE++: the returns, whitened over the live tokens of the batch. KL penalties are in the rewards already.
///
/// # Shapes
/// As [`gae`].
///
/// # Errors
/// As [`gae`]; [`Error::is_invalid`] naming the estimator when it is another.
///
/// # Source
/// arXiv 2501.03262; verl `compute_reinforce_plus_plus_outcome_advantage` with [`Holes::Reset`].
pub fn reinforce_plus_plus(
    estimator: &Estimator,
    holes: Holes,
    rewards: &[f32],
    of: Tokens<'_>,
    out: TokenOutputs<'_>,
) -> Result<()> {
    let (gamma, epsilon) = reinforce_options(estimator)?;
    let TokenOutputs { advantage, returns: wanted } = out;
    returns(gamma, holes, rewards, of, advantage)?;
    if let Some(wanted) = wanted {
        if wanted.len() != advantage.len() {
            let (got, tokens) = (wanted.len(), advantage.len());
            return check_token_lengths(tokens, tokens, &[("output `returns`", Some(got))]);
        }
        wanted.copy_from_slice(advantage);
    }
    whiten(advantage, of.mask, epsilon, Masked::Zero)
}

pub(super) fn reinforce_options(estimator: &Estimator) -> Result<(f64, f64)> {
    estimator.check()?;
    match *estimator {
        Estimator::ReinforcePlusPlus { gamma, epsilon } => Ok((gamma, epsilon)),
        other => Err(Error::invalid(format!(
            "advantage: `{}` is not `reinforce-plus-plus`",
            other.kind()
        ))),
    }
}

impl TokenOutputs<'_> {
    fn reborrow(&mut self) -> TokenOutputs<'_> {
        TokenOutputs { advantage: self.advantage, returns: self.returns.as_deref_mut() }
    }
}
