//! The optimal token baseline: for each position of a group the baseline that makes the gradient's variance least.

use super::estimator::{Estimator, Masked, Positions};
use super::groups::Groups;
use super::scan::{TokenOutputs, Tokens};
use crate::error::{Error, Result};

/// What [`token_baseline`] reads, `[tokens]` each.
#[derive(Clone, Copy, Debug)]
pub struct TokenBaseline<'a> {
    /// Rewards of the tokens.
    pub rewards: &'a [f32],
    /// Log-probs under the policy that sampled, nats.
    pub logprob: &'a [f32],
    /// Sum of the squared probabilities of the vocabulary at each place.
    pub sum_squares: &'a [f32],
    /// Importance weights, squared into the variance; `None`: 1.
    pub weight: Option<&'a [f32]>,
}

/// What [`token_baseline`] is asked to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) epsilon: f64,
    pub(super) zero_tail: bool,
    pub(super) positions: Positions,
}

impl Options {
    pub(super) fn of(estimator: &Estimator) -> Result<Options> {
        estimator.check()?;
        match *estimator {
            Estimator::OptimalTokenBaseline { epsilon, zero_tail, positions } => {
                Ok(Options { epsilon, zero_tail, positions })
            }
            other => Err(Error::invalid(format!(
                "advantage: `{}` is not `optimal-token-baseline`",
                other.kind()
            ))),
        }
    }
}

/// One sequence as slots: positions, or its live tokens alone.
struct Slots {
    /// The token of each slot.
    token: Vec<usize>,
    /// The reward from it on.
    to_go: Vec<f64>,
    /// The variance accumulated up to it; 0 where it is masked.
    energy: Vec<f64>,
    live: usize,
}

/// `A = G - B` with the return `G[t]` and, over the sequences of a group, `B[t] = Σ G[t] W[t] / (Σ W[t] + epsilon)`. The weight
/// `W[t] = Σ_{j <= t} (1 - 2 pi[j] + Σ_v pi_v²)` is the variance of the gradient up to `t`, times the squared importance
/// weights where there are any. A sequence alone in its group has no baseline.
///
/// `masked` says what the returns of masked tokens are; their advantage is 0.
///
/// # Shapes
/// As [`TokenBaseline`], [`Tokens`] and [`TokenOutputs`] say; `groups` are groups of sequences.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_index`] for lengths, groups and offsets that do not fit, [`Error::is_invalid`] for an option
/// or another estimator.
///
/// # Source
/// verl `compute_optimal_token_baseline_advantage` and `compute_multi_turn_optimal_token_baseline_advantage`.
pub fn token_baseline(
    estimator: &Estimator,
    of: &TokenBaseline<'_>,
    tokens: Tokens<'_>,
    groups: Groups<'_>,
    masked: Masked,
    mut out: TokenOutputs<'_>,
) -> Result<()> {
    let options = Options::of(estimator)?;
    let offsets = tokens.check(
        of.rewards.len(),
        &[
            ("logprob", Some(of.logprob.len())),
            ("sum_squares", Some(of.sum_squares.len())),
            ("weight", of.weight.map(<[f32]>::len)),
            ("output `advantage`", Some(out.advantage.len())),
            ("output `returns`", out.returns.as_ref().map(|x| x.len())),
        ],
    )?;
    let plan = groups.plan(offsets.len() - 1)?;
    out.advantage.fill(0.0);
    let slots: Vec<Slots> = offsets
        .windows(2)
        .map(|bounds| {
            let returns = out.returns.as_deref_mut();
            slots_of(of, tokens.mask, bounds[0]..bounds[1], options.positions, masked, returns)
        })
        .collect();
    for group in 0..plan.count() {
        let members: Vec<&Slots> = plan.members(group).map(|i| &slots[i]).collect();
        group_advantage(&options, &members, tokens.mask, out.advantage);
    }
    Ok(())
}

fn slots_of(
    of: &TokenBaseline<'_>,
    mask: &[u8],
    tokens: std::ops::Range<usize>,
    positions: Positions,
    masked: Masked,
    mut returns: Option<&mut [f32]>,
) -> Slots {
    let live = |token: usize| mask[token] != 0;
    let taken = |token: &usize| positions == Positions::Position || live(*token);
    let mut energy = Vec::new();
    let mut sum = 0f64;
    for token in tokens.clone() {
        if live(token) {
            let weight = of.weight.map_or(1.0, |weight| f64::from(weight[token]));
            let own =
                1.0 - 2.0 * f64::from(of.logprob[token]).exp() + f64::from(of.sum_squares[token]);
            sum += own * weight * weight;
        }
        if taken(&token) {
            energy.push(if live(token) { sum } else { 0.0 });
        }
    }
    let mut to_go = Vec::new();
    let mut after = 0f64;
    for token in tokens.clone().rev() {
        after += if live(token) { f64::from(of.rewards[token]) } else { 0.0 };
        if taken(&token) {
            to_go.push(if live(token) { after } else { 0.0 });
        }
        if let Some(returns) = returns.as_deref_mut() {
            let shown = live(token) || masked == Masked::Carried;
            returns[token] = if shown { after as f32 } else { 0.0 };
        }
    }
    to_go.reverse();
    let live = tokens.clone().filter(|token| live(*token)).count();
    Slots { token: tokens.filter(taken).collect(), to_go, energy, live }
}

fn group_advantage(options: &Options, members: &[&Slots], mask: &[u8], advantage: &mut [f32]) {
    let by_token = options.positions == Positions::LiveToken;
    let counted = members.iter().filter(|slots| !by_token || slots.live > 0).count();
    let mut lengths: Vec<usize> = members.iter().map(|slots| slots.live).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let longest = lengths.first().copied().unwrap_or(0);
    let second = lengths.get(1).copied().unwrap_or(longest);
    let slots = members.iter().map(|slots| slots.token.len()).max().unwrap_or(0);
    for slot in 0..slots {
        let (mut sum, mut energy) = (0f64, 0f64);
        for member in members.iter().filter(|member| slot < member.token.len()) {
            sum += member.to_go[slot] * member.energy[slot];
            energy += member.energy[slot];
        }
        let baseline = if counted > 1 { sum / (energy + options.epsilon) } else { 0.0 };
        for member in members.iter().filter(|member| slot < member.token.len()) {
            let token = member.token[slot];
            let alone = longest > second && member.live == longest && slot >= second;
            let baseline = if options.zero_tail && alone { 0.0 } else { baseline };
            if mask[token] != 0 {
                advantage[token] = (member.to_go[slot] - baseline) as f32;
            }
        }
    }
}
