//! Policy-gradient losses over packed sequences: the loss, its exact gradient and its metrics in one pass.
//!
//! Contract: f32 tokens `[tokens]`, a byte mask, CSR offsets of the sequences, caller-owned gradients. The objective is
//! data ([`Objective`]); a masked token is never read into arithmetic, so NaN in padding does not matter. Log-probs
//! come from `kernels::logprob`, advantages from [`super::advantage`].
//!
//! Floor: 17 bytes read and 4 written a token without a reference and entropies. Algorithm: a sequence pass counts live
//! tokens (1 byte a token) and turns the aggregation into one coefficient a sequence; a token pass walks fixed blocks
//! of `steps::BLOCK` tokens, each cut where sequences end, and leaves one record of sums a block; the records are
//! added in order. Blocks are a function of the token count alone, so bits do not depend on the thread count; a
//! token's gradient depends on its own sequence's coefficient only. Objectives that need something of a whole sequence
//! (GSPO, GMPO, VESPO, the off-policy mask) read it first: in the sequence pass where it lies in several blocks, and just
//! before its tokens where a block holds it whole.
//!
//! The body keeps a few words a sequence and one record a block on the host heap, and nothing else.
//!
#![doc = include_str!("../../../docs/kernels/policy_loss.md")]

mod adjust;
mod aggregation;
mod formula;
mod kl;
mod lanes;
pub mod launch;
mod metrics;
mod objective;
mod pass;
mod penalty;
mod preset;
mod replay;
mod rule;
mod run;
mod sequence;
mod steps;
mod surrogate;
mod tile;
mod token;
mod value;
mod walk;

pub use aggregation::{Aggregation, Rows, Totals};
pub use kl::{Clamp, Estimator as KlEstimator, Kl};
pub use metrics::{Metrics, ReplayMetrics};
pub use objective::Objective;
pub use preset::{PRESETS, Preset};
pub use replay::{Replay, ReplayRatio, ReplayShape};
pub use surrogate::{Drift, ImportanceLevel, LogRatio, RatioShape, Surrogate};
pub(in crate::kernels) use token::TokenGradients;
pub use value::{ValueGradient, ValueInputs, ValueLoss, ValueMetrics, value_loss};

use crate::error::{Error, Result};
use surrogate::together;

/// The advantages: one a token, or one a sequence.
#[derive(Clone, Copy, Debug)]
pub enum Advantages<'a> {
    /// `[tokens]`.
    PerToken(&'a [f32]),
    /// `[sequences]`, the same for each of its tokens.
    PerSequence(&'a [f32]),
}

/// What [`forward_backward`] reads. `[tokens]` unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Log-prob of each taken token under the policy, nats.
    pub logprob: &'a [f32],
    /// The same under the policy that ratios compare with.
    pub old_logprob: &'a [f32],
    /// Advantages, no gradient.
    pub advantage: Advantages<'a>,
    /// Non-zero: the token counts.
    pub mask: &'a [u8],
    /// `[sequences + 1]`: sequence `i` is the tokens `offsets[i]..offsets[i + 1]`.
    pub offsets: &'a [i64],
    /// The same under the reference policy; needed when the objective has a `kl`, not read otherwise.
    pub reference_logprob: Option<&'a [f32]>,
    /// Entropy of each token's distribution, nats; needed when the objective has an entropy coefficient.
    pub entropy: Option<&'a [f32]>,
    /// Factors of the surrogate, no gradient: importance weights between the sampler and the old policy.
    pub weight: Option<&'a [f32]>,
    /// The same log-prob under the policy that sampled; read by the off-policy mask, `None`: the old policy's.
    pub sampler_logprob: Option<&'a [f32]>,
    /// Non-zero: the token was written by another policy and has the objective's `replay` term in place of its
    /// surrogate.
    pub off_policy: Option<&'a [u8]>,
    /// Non-zero: the token was picked by the objective's `selection` (`kernels::token_selection`).
    pub selected: Option<&'a [u8]>,
    /// What this call must know of the whole batch.
    pub totals: Totals,
}

impl<'a> Inputs<'a> {
    /// What every objective needs; everything else is absent.
    pub fn new(
        logprob: &'a [f32],
        old_logprob: &'a [f32],
        advantage: Advantages<'a>,
        mask: &'a [u8],
        offsets: &'a [i64],
    ) -> Inputs<'a> {
        Inputs {
            logprob,
            old_logprob,
            advantage,
            mask,
            offsets,
            reference_logprob: None,
            entropy: None,
            weight: None,
            sampler_logprob: None,
            off_policy: None,
            selected: None,
            totals: Totals::default(),
        }
    }
}

/// Where [`forward_backward`] writes. `[tokens]`; masked tokens get 0.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// The loss's derivative by each log-prob.
    pub logprob: &'a mut [f32],
    /// The loss's derivative by each entropy; `None`: not wanted.
    pub entropy: Option<&'a mut [f32]>,
}

/// The loss of an objective, its gradient and its metrics.
///
/// A masked token has gradient 0 and counts nowhere. No live token: loss 0, gradients 0. NaN or infinity in a live
/// token reaches the loss and that token's gradient.
///
/// # Shapes
/// As [`Inputs`] and [`Gradients`] say.
///
/// # Errors
/// [`Error::is_shape`] for a length that does not fit, [`Error::is_index`] for offsets that fall,
/// [`Error::is_invalid`] for an objective out of range or one that needs an input that is missing.
///
/// # Source
/// PPO: arXiv 1707.06347; aggregations and clamps as verl and TRL publish them (see each type).
pub fn forward_backward(
    objective: &Objective,
    inputs: &Inputs<'_>,
    gradients: Gradients<'_>,
) -> Result<Metrics> {
    let weights = Weights::new(objective, inputs, Some(&gradients))?;
    let shared = sequence::shared(objective, inputs, &weights.offsets, &weights.live);
    let rule = steps::Rule::of(objective);
    let sums = pass::tokens(&rule, inputs, gradients, &weights.sequences(shared));
    let of_kl = objective.kl.as_ref().map_or(0.0, |kl| kl.coefficient);
    let of_drift = objective.drift.map_or(0.0, |drift| drift.coefficient);
    Ok(sums.report(&weights.live, [of_kl, objective.entropy_coefficient, of_drift]))
}

/// The sequences of a call and the weights of their tokens, which follow from the masks.
struct Weights {
    offsets: Vec<usize>,
    /// Live tokens of each sequence.
    live: Vec<u32>,
    of_loss: Vec<f32>,
    /// Where it is not that of the loss.
    of_kl: Option<Vec<f32>>,
    /// Where it is not that of the loss.
    of_entropy: Option<Vec<f32>>,
}

impl Weights {
    /// Checks the whole call.
    fn new(
        objective: &Objective,
        inputs: &Inputs<'_>,
        gradients: Option<&Gradients<'_>>,
    ) -> Result<Weights> {
        objective.check()?;
        inputs.totals.check()?;
        let tokens = inputs.logprob.len();
        let offsets = super::offsets::checked("policy_loss", "sequence", inputs.offsets, tokens)?;
        check_lengths(inputs, gradients, tokens, offsets.len() - 1)?;
        check_needs(
            objective,
            &Given {
                reference: inputs.reference_logprob.is_some(),
                entropy: inputs.entropy.is_some(),
                off_policy: inputs.off_policy.is_some(),
                selected: inputs.selected.is_some(),
                per_token_advantage: matches!(inputs.advantage, Advantages::PerToken(_)),
            },
        )?;
        let live = sequence::count_live(inputs.mask, &offsets);
        let by = |mode: &Aggregation| mode.coefficients(&live, &inputs.totals);
        let of_kl = objective.kl.as_ref().and_then(|kl| kl.aggregation.as_ref()).map(by);
        let of_entropy = objective.entropy_aggregation.as_ref().map(by);
        Ok(Weights { of_loss: by(&objective.aggregation), of_kl, of_entropy, offsets, live })
    }

    fn sequences<'a>(&'a self, shared: Option<sequence::Shared<'a>>) -> run::Sequences<'a> {
        run::Sequences {
            offsets: &self.offsets,
            coefficients: &self.of_loss,
            kl_coefficients: self.of_kl.as_deref().unwrap_or(&self.of_loss),
            entropy_coefficients: self.of_entropy.as_deref().unwrap_or(&self.of_loss),
            shared,
        }
    }
}

fn check_lengths(
    inputs: &Inputs<'_>,
    gradients: Option<&Gradients<'_>>,
    tokens: usize,
    sequences: usize,
) -> Result<()> {
    let (advantage, advantages) = match inputs.advantage {
        Advantages::PerToken(values) => (values.len(), tokens),
        Advantages::PerSequence(values) => (values.len(), sequences),
    };
    let lengths = [
        ("old_logprob", Some(inputs.old_logprob.len()), tokens),
        ("advantage", Some(advantage), advantages),
        ("mask", Some(inputs.mask.len()), tokens),
        ("reference_logprob", inputs.reference_logprob.map(<[f32]>::len), tokens),
        ("entropy", inputs.entropy.map(<[f32]>::len), tokens),
        ("weight", inputs.weight.map(<[f32]>::len), tokens),
        ("sampler_logprob", inputs.sampler_logprob.map(<[f32]>::len), tokens),
        ("off_policy", inputs.off_policy.map(<[u8]>::len), tokens),
        ("selected", inputs.selected.map(<[u8]>::len), tokens),
        ("gradient of logprob", gradients.map(|g| g.logprob.len()), tokens),
        (
            "gradient of entropy",
            gradients.and_then(|g| g.entropy.as_ref()).map(|g| g.len()),
            tokens,
        ),
    ];
    check_each(&lengths, tokens, sequences)
}

/// Each given length against the one it must be.
fn check_each(
    lengths: &[(&str, Option<usize>, usize)],
    tokens: usize,
    sequences: usize,
) -> Result<()> {
    for (name, got, want) in lengths {
        if let Some(got) = got.filter(|got| got != want) {
            return Err(Error::shape(format!(
                "policy_loss: {name} has {got} elements, not {want} \
                 ({tokens} tokens in {sequences} sequences)"
            )));
        }
    }
    Ok(())
}

/// What a call gives beside what every objective needs.
struct Given {
    reference: bool,
    entropy: bool,
    off_policy: bool,
    selected: bool,
    per_token_advantage: bool,
}

fn check_needs(objective: &Objective, given: &Given) -> Result<()> {
    let missing = |part: String, input: &str| {
        Err(Error::invalid(format!("policy_loss: the objective has {part}, so {input} is needed")))
    };
    if objective.kl.is_some() && !given.reference {
        return missing("a KL penalty".to_string(), "reference_logprob");
    }
    if objective.entropy_coefficient != 0.0 && !given.entropy {
        return missing("an entropy coefficient".to_string(), "entropy");
    }
    match &objective.selection {
        Some(selection) if !given.selected => {
            return missing(format!("the selection `{}`", selection.name()), "selected");
        }
        None if given.selected => {
            return Err(together("selected", "an objective without a selection", NO_RULE));
        }
        _ => {}
    }
    if given.off_policy && objective.replay.is_none() {
        return Err(together("off_policy", "an objective without a replay term", NO_RULE));
    }
    match objective.one_advantage_a_sequence() {
        Some(part) if given.per_token_advantage => {
            Err(together("an advantage a token", part, ONE_ADVANTAGE))
        }
        _ => Ok(()),
    }
}

const ONE_ADVANTAGE: &str =
    "the loss of a sequence has one advantage (`sequence-token` takes one a token)";
const NO_RULE: &str = "nothing says what happens to the marked tokens";

/// A field of the objective in its range.
fn within(field: &str, value: f32, least: f32, most: f32) -> Result<()> {
    if value >= least && value <= most {
        return Ok(());
    }
    let range = match (least, most) {
        (f32::MIN_POSITIVE, f32::MAX) => "finite and above 0".to_string(),
        (least, f32::MAX) if least == -f32::MAX => "finite".to_string(),
        (least, f32::MAX) => format!("finite and at least {least}"),
        (f32::MIN_POSITIVE, most) => format!("above 0 and at most {most}"),
        _ => format!("in {least}..={most}"),
    };
    Err(Error::invalid(format!("policy_loss: {field} is {value}; it must be {range}")))
}
