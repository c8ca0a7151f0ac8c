//! The learner: a batch of episodes into gradients of the policy, in micro-batches.
//!
//! Log-probs again, the objective over them, the backward pass. Every policy and every objective goes through here; which
//! columns the objective reads, stages have put into the [`Batch`] before. A policy that scores every token by one row of
//! hidden states has its loss straight from these ([`ops::linear_policy_loss`]): three products of the head for most
//! objectives, where log-probs first and gradients then would be four.

use crate::DType;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::policy_loss::{Metrics, Objective, Surrogate, Totals};
use crate::kernels::token_selection::{self, Selection};
use crate::ops::{self, Advantages, PolicyColumns, PolicyMetrics};
use crate::rl::activity::Activity;
use crate::rl::batch::{Advantage, Batch, Column, missing};
use crate::rl::episode::{Scored, micro_batches};
use crate::rl::policy::{Policy, Scores};
use crate::rl::score::joined;
use crate::rl::value_head::ValueHead;
use crate::tensor::autograd::{self, no_grad};
use crate::tensor::{Gradients, Tensor};

/// What is minimised, and how the work is cut.
#[derive(Clone, Copy)]
pub struct Minimise<'a> {
    /// The objective.
    pub objective: &'a Objective,
    /// Tokens run through the model at once. How episodes are cut into micro-batches changes the order of additions,
    /// nothing else.
    pub micro_batch_tokens: usize,
    /// The seed of random choices of tokens (Clip-Cov).
    pub seed: u64,
    /// A number that no other update of this seed has.
    pub number: u64,
    /// A value head on the policy, trained in the same pass.
    pub value_head: Option<&'a ValueHead>,
    /// Whether the policy learns too; while a critic warms up it does not.
    pub policy: bool,
    /// Told of every micro-batch.
    pub activity: Option<&'a Activity>,
}

/// What one update's forward and backward gave.
#[derive(Clone, Debug)]
pub struct Updated {
    /// The objective's metrics over all tokens.
    pub metrics: Metrics,
    /// Largest |log-prob now − log-prob when drawn| of tokens just sampled: 0 exactly while the weights are those that sampled.
    pub mismatch: f32,
    /// Tokens run through the model.
    pub tokens: usize,
    /// The loss of the value head, where there is one.
    pub value_loss: Option<f64>,
}

/// Adds the gradient of the objective over the episodes `members` of a batch.
///
/// An objective with a selection of tokens (Clip-Cov, KL-Cov, the top of the entropies) looks at all of them before its
/// first token: that is one more forward pass.
///
/// # Errors
/// [`Error::is_state`] naming a column that the objective reads and the batch has not; as [`Policy::score`] and
/// [`forward_backward`](crate::kernels::policy_loss::forward_backward).
pub fn gradients(
    policy: &dyn Policy,
    batch: &Batch,
    members: &[usize],
    how: &Minimise<'_>,
    gradients: &mut Gradients,
) -> Result<Updated> {
    let live: i64 = members.iter().map(|i| batch.live()[*i]).sum();
    let answered = members.iter().filter(|i| batch.live()[**i] > 0).count();
    let totals = Totals { tokens: Some(live as f64), sequences: Some(answered as f64), scale: 1.0 };
    let scored: Vec<Scored<'_>> = members.iter().map(|i| batch.scored(*i)).collect();
    let parts = micro_batches(&scored, how.micro_batch_tokens);
    let selected = match &how.objective.selection {
        Some(selection) => Some(select(policy, batch, members, &parts, selection, how)?),
        None => None,
    };
    if let Some(activity) = how.activity {
        activity.begin("updating", parts.len());
    }
    let mut pending = Vec::new();
    let (mut first, mut token) = (0, 0);
    for part in parts {
        let own = &members[first..first + part.len()];
        first += part.len();
        let tokens = token..token + part.iter().map(|one| one.completion.len()).sum::<usize>();
        token = tokens.end;
        let selected = selected.as_ref().map(|all| all.rows(tokens)).transpose()?;
        let run = part.iter().map(Scored::tokens).sum::<usize>();
        let columns = Columns::new(batch, own, how.objective, selected)?;
        let one = columns.backward(policy, batch, part, own, how, totals, gradients)?;
        pending.push((one, run));
        if let Some(activity) = how.activity {
            activity.advance(1);
        }
    }
    // Read when everything has been started: a device is waited for once.
    let mut result: Option<Updated> = None;
    for (one, tokens) in pending {
        let one = Updated {
            metrics: one.metrics.read()?,
            mismatch: one.mismatch()?,
            tokens,
            value_loss: one.value_loss,
        };
        result = Some(match result {
            None => one,
            Some(sum) => Updated {
                metrics: sum.metrics.merge(&one.metrics),
                mismatch: sum.mismatch.max(one.mismatch),
                tokens: sum.tokens + one.tokens,
                value_loss: sum.value_loss.zip(one.value_loss).map(|(a, b)| a + b),
            },
        });
    }
    result.ok_or_else(|| Error::invalid("update: no samples"))
}

fn joined_scores(policy: &dyn Policy, parts: &[&[Scored<'_>]], batch: &Batch) -> Result<Scores> {
    let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
    for part in parts {
        let scores = no_grad(|| policy.score(part, &batch.drawn))?;
        logprobs.push(scores.logprob);
        entropies.push(scores.entropy);
    }
    let device = policy.device();
    Ok(Scores { logprob: joined(&logprobs, &device)?, entropy: joined(&entropies, &device)? })
}

/// The bounds that a clip leaves ratios in; Clip-Cov leaves the others alone.
fn clip_of(objective: &Objective) -> (f32, f32) {
    match objective.surrogate {
        Surrogate::PpoClip { clip_low, clip_high, .. } => (1.0 - clip_low, 1.0 + clip_high),
        _ => (0.0, f32::INFINITY),
    }
}

/// u8 `[tokens]`: the tokens that a selection picks of all members, from the log-probs and entropies of now.
fn select(
    policy: &dyn Policy,
    batch: &Batch,
    members: &[usize],
    parts: &[&[Scored<'_>]],
    selection: &Selection,
    how: &Minimise<'_>,
) -> Result<Tensor> {
    let Scores { logprob, entropy } = joined_scores(policy, parts, batch)?;
    let old = batch.part(&batch.old_logprob, members)?;
    let advantage = match &batch.advantage {
        Some(Advantage::PerToken(all)) => batch.part(all, members)?,
        Some(Advantage::PerEpisode(all)) => {
            let each = |i: &usize| std::iter::repeat_n(all[*i], batch.episodes[*i].tokens.len());
            let values: Vec<f32> = members.iter().flat_map(each).collect();
            let shape = [values.len()];
            Tensor::from_f32(values, &shape)?.to_device(batch.device())?
        }
        None => return Err(missing(Column::Advantage)),
    };
    let mask = batch.part(batch.mask(), members)?;
    let (clip, draw) = (clip_of(how.objective), (how.seed, how.number));
    let mut selected = Tensor::zeros_on(&[logprob.len()], DType::U8, &policy.device())?;
    match policy.device() {
        Device::Gpu(_) => {
            let inputs = token_selection::launch::Inputs {
                logprob: Some(logprob.device_slice()?),
                old_logprob: Some(old.device_slice()?),
                advantage: Some(advantage.device_slice()?),
                entropy: Some(entropy.device_slice()?),
                mask: mask.device_slice()?,
                clip,
                draw,
            };
            token_selection::launch::select(selection, &inputs, selected.device_slice_mut()?)?;
        }
        Device::Cpu => {
            let mut picked = vec![0u8; logprob.len()];
            let inputs = token_selection::Inputs {
                logprob: logprob.f32s()?,
                old_logprob: old.f32s()?,
                advantage: advantage.f32s()?,
                entropy: entropy.f32s()?,
                mask: mask.bytes()?,
                clip,
                draw,
            };
            token_selection::select(selection, &inputs, &mut picked)?;
            let shape = [picked.len()];
            selected = Tensor::new(crate::tensor::Storage::U8(picked.into()), &shape)?;
        }
    }
    Ok(selected)
}

/// What the objective reads beside the log-probs and entropies of now, for a micro-batch.
struct Columns {
    offsets: Vec<i64>,
    mask: Tensor,
    old_logprob: Tensor,
    sampler_logprob: Tensor,
    reference_logprob: Option<Tensor>,
    advantage: Advantage,
    weight: Option<Tensor>,
    off_policy: Option<Tensor>,
    selected: Option<Tensor>,
}

/// What a micro-batch gave, where it was computed.
struct Pending {
    metrics: PolicyMetrics,
    logprob: Tensor,
    /// On the host: the log-prob of each token when it was drawn, NaN for one that this policy did not draw just now.
    drawn_logprob: Vec<f32>,
    value_loss: Option<f64>,
}

impl Columns {
    fn new(
        batch: &Batch,
        members: &[usize],
        objective: &Objective,
        selected: Option<Tensor>,
    ) -> Result<Columns> {
        let mut offsets = vec![0i64];
        for i in members {
            offsets.push(offsets[offsets.len() - 1] + batch.episodes[*i].tokens.len() as i64);
        }
        let of = |column: &Tensor| batch.part(column, members);
        let optional = |column: &Option<Tensor>| column.as_ref().map(of).transpose();
        let advantage = match &batch.advantage {
            Some(Advantage::PerToken(all)) => Advantage::PerToken(of(all)?),
            Some(Advantage::PerEpisode(all)) => {
                Advantage::PerEpisode(members.iter().map(|i| all[*i]).collect())
            }
            None => return Err(missing(Column::Advantage)),
        };
        let off_policy = if objective.replay.is_some() {
            let mark = |i: &usize| {
                let mark = u8::from(batch.replayed[*i]);
                std::iter::repeat_n(mark, batch.episodes[*i].tokens.len())
            };
            let marks: Vec<u8> = members.iter().flat_map(mark).collect();
            let shape = [marks.len()];
            let marks = Tensor::new(crate::tensor::Storage::U8(marks.into()), &shape)?;
            Some(marks.to_device(batch.device())?)
        } else {
            None
        };
        let old_logprob = of(&batch.old_logprob)?;
        let reference_logprob = match &objective.kl {
            Some(_) => Some(of(batch
                .reference_logprob
                .as_ref()
                .ok_or_else(|| missing(Column::ReferenceLogprob))?)?),
            None => None,
        };
        Ok(Columns {
            offsets,
            mask: of(batch.mask())?,
            // Where nothing else is known, what ratios compare with is what sampled.
            sampler_logprob: optional(&batch.sampler_logprob)?
                .unwrap_or_else(|| old_logprob.detach()),
            old_logprob,
            reference_logprob,
            advantage,
            weight: optional(&batch.weight)?,
            off_policy,
            selected,
        })
    }

    /// True where every advantage is 0 and the objective has no term without one, so that its gradient is 0 whatever the
    /// log-probs are. Advantages that are per token, which may be on a device, are not looked at.
    fn teaches_nothing(&self, objective: &Objective) -> Result<bool> {
        let Advantage::PerEpisode(advantages) = &self.advantage else { return Ok(false) };
        let alone = objective.kl.is_none()
            && objective.drift.is_none()
            && objective.replay.is_none()
            && objective.selection.is_none()
            && objective.entropy_coefficient == 0.0;
        Ok(alone && advantages.iter().all(|advantage| *advantage == 0.0))
    }

    fn given(&self, totals: Totals) -> PolicyColumns<'_> {
        PolicyColumns {
            old_logprob: Some(&self.old_logprob),
            advantage: match &self.advantage {
                Advantage::PerEpisode(all) => Advantages::PerSequence(all),
                Advantage::PerToken(all) => Advantages::PerToken(all),
            },
            mask: &self.mask,
            offsets: &self.offsets,
            reference_logprob: self.reference_logprob.as_ref(),
            weight: self.weight.as_ref(),
            sampler_logprob: Some(&self.sampler_logprob),
            off_policy: self.off_policy.as_ref(),
            selected: self.selected.as_ref(),
            totals,
        }
    }

    /// Adds the gradient of the objective by the policy's parameters. Where every token is scored by one row of hidden
    /// states, the loss and its gradient come straight from these.
    fn backward(
        self,
        policy: &dyn Policy,
        batch: &Batch,
        part: &[Scored<'_>],
        members: &[usize],
        how: &Minimise<'_>,
        totals: Totals,
        gradients: &mut Gradients,
    ) -> Result<Pending> {
        let rows = policy.rows(part)?;
        let columns = self.given(totals);
        let compute = || match &rows {
            Some(rows) => rows.loss(&batch.drawn, how.objective, &columns),
            None => {
                let Scores { logprob, entropy } = policy.score(part, &batch.drawn)?;
                ops::policy_loss(how.objective, &columns, &logprob, &entropy)
            }
        };
        // Where every gradient is 0, only what is measured is computed.
        let learns = how.policy && !self.teaches_nothing(how.objective)?;
        let loss = if learns { compute()? } else { no_grad(compute)? };
        let mut roots = Vec::new();
        let mut value_loss = None;
        if let Some(head) = how.value_head {
            let rows = rows.as_ref().ok_or_else(|| {
                Error::unsupported("critic: this policy has no hidden state per token")
            })?;
            let (loss, root) = head.loss(&rows.hidden, batch, members, totals)?;
            value_loss = Some(loss);
            roots.push(root);
        }
        roots.extend(loss.roots);
        // What is left of the graph is freed as the walk goes.
        drop(rows);
        if !roots.is_empty() {
            autograd::backward_from(roots, gradients)?;
        }
        Ok(Pending {
            metrics: loss.metrics,
            logprob: loss.logprob,
            drawn_logprob: drawn_logprobs(batch, members),
            value_loss,
        })
    }
}

impl Pending {
    /// The largest |log-prob now − log-prob when drawn|; on a device waits for all that was started.
    fn mismatch(&self) -> Result<f32> {
        let now = self.logprob.to_device(&Device::Cpu)?;
        let pairs = now.f32s()?.iter().zip(&self.drawn_logprob);
        Ok(pairs.filter(|(_, drawn)| !drawn.is_nan()).fold(0f32, |worst, (now, drawn)| {
            let distance = (now - drawn).abs();
            // Not `max`: a NaN must stay visible.
            if distance <= worst { worst } else { distance }
        }))
    }
}

/// The log-probs under which the policy drew its tokens; NaN where the environment or an older policy wrote.
fn drawn_logprobs(batch: &Batch, members: &[usize]) -> Vec<f32> {
    let mut drawn = Vec::new();
    for i in members {
        let episode = &batch.episodes[*i];
        let own = |(logprob, mask): (&f32, &u8)| match *mask != 0 && !batch.replayed[*i] {
            true => *logprob,
            false => f32::NAN,
        };
        drawn.extend(episode.logprob.iter().zip(&episode.mask).map(own));
    }
    drawn
}
