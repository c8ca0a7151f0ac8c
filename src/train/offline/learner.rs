//! Records into gradients of a policy, and what a loss is worth on held-out ones.
//!
//! A policy scores the tokens, the loss is computed on the host from sums of these log-probs, and its derivative by each
//! token's log-prob goes backward. A loss whose pairs depend on each other needs all scores before its first gradient, which
//! is one more forward pass where a batch is several micro-batches.

use super::data::Record;
use super::encoding::Encoded;
use super::settings::OfflineObjective;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::rl::episode::{Scored, micro_batches};
use crate::rl::policy::Policy;
use crate::rl::preference::completion::MeasuredPairs;
use crate::rl::preference::kto::Labelled;
use crate::rl::preference::{Completion, Gradient, Kto, Pair, Totals};
use crate::rl::sampling::Distribution;
use crate::tensor::autograd::{self, no_grad};
use crate::tensor::{Gradients, Tensor};
use crate::train::supervised;
use std::ops::Range;

/// What a batch gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learned {
    /// The loss.
    pub loss: f64,
    /// Mean entropy per learned token, nats.
    pub entropy: f64,
    /// Tokens run through the model, those of forward passes alone among them.
    pub tokens: usize,
    /// Mean reward of chosen or desirable completions.
    pub reward_chosen: Option<f64>,
    /// Mean reward of rejected or undesirable completions.
    pub reward_rejected: Option<f64>,
    /// Of pairs, the share whose chosen completion has the larger reward; of labelled completions, the share on the right side
    /// of the reference point.
    pub accuracy: Option<f64>,
    /// The estimate of the KL divergence that KTO measures from, nats per completion.
    pub kl: Option<f64>,
}

impl Learned {
    /// What chosen completions are worth more than rejected ones.
    pub fn margin(&self) -> Option<f64> {
        Some(self.reward_chosen? - self.reward_rejected?)
    }
}

/// What is minimised, and how the work is cut.
#[derive(Clone, Copy)]
pub struct Learner<'a> {
    /// What is trained.
    pub policy: &'a dyn Policy,
    /// What is minimised.
    pub objective: &'a OfflineObjective,
    /// Tokens run through the model at once, whole records.
    pub micro_batch_tokens: usize,
}

/// Log-probs of learned tokens, sequence by sequence.
type TokenLogprobs = Vec<Vec<f32>>;

/// Sequences that were scored, on the host and where the policy is.
struct Scores {
    /// `[completion tokens]`, tracked where gradients are wanted.
    logprob: Tensor,
    tokens: TokenLogprobs,
    entropy: f64,
}

fn score(policy: &dyn Policy, sequences: &[&Encoded], temperature: f32) -> Result<Scores> {
    let scored: Vec<Scored<'_>> = sequences.iter().map(|one| one.scored()).collect();
    let scores = policy.score(&scored, &Distribution { temperature })?;
    let (logprob, entropy) =
        (scores.logprob.to_device(&Device::Cpu)?, scores.entropy.to_device(&Device::Cpu)?);
    let (mut values, mut entropies) = (logprob.f32s()?.iter(), entropy.f32s()?.iter());
    let (mut tokens, mut sum) = (Vec::with_capacity(sequences.len()), 0.0);
    for sequence in sequences {
        let mut own = Vec::with_capacity(sequence.learned());
        let all = values.by_ref().zip(entropies.by_ref()).zip(&sequence.mask);
        for ((logprob, entropy), _) in all.take(sequence.mask.len()).filter(|(_, mask)| **mask != 0)
        {
            own.push(*logprob);
            sum += f64::from(*entropy);
        }
        tokens.push(own);
    }
    Ok(Scores { logprob: scores.logprob, tokens, entropy: sum })
}

/// Log-probs of the learned tokens of some sequences under a policy, without gradients, its logits divided by `temperature`.
///
/// # Errors
/// As [`Policy::score`].
pub(super) fn token_logprobs(
    policy: &dyn Policy,
    sequences: &[&Encoded],
    micro_batch_tokens: usize,
    temperature: f32,
) -> Result<TokenLogprobs> {
    let scored: Vec<Scored<'_>> = sequences.iter().map(|one| one.scored()).collect();
    let (mut all, mut at) = (Vec::with_capacity(sequences.len()), 0);
    for part in micro_batches(&scored, micro_batch_tokens) {
        let own = &sequences[at..at + part.len()];
        at += part.len();
        all.extend(no_grad(|| score(policy, own, temperature))?.tokens);
    }
    Ok(all)
}

impl Learner<'_> {
    /// Adds the gradient of the mean loss over some records.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for a record without a completion or the log-probs of the reference that the objective reads; as
    /// [`Policy::score`].
    pub fn gradients(&self, records: &[&Record], gradients: &mut Gradients) -> Result<Learned> {
        records.iter().try_for_each(|record| self.check(record))?;
        match self.objective {
            OfflineObjective::Sft(_) => self.demonstrations(records, gradients),
            OfflineObjective::Kto(kto) => self.labels(kto, records, gradients),
            _ => self.pairs(records, gradients),
        }
    }

    fn check(&self, record: &Record) -> Result<()> {
        let wanted = match self.objective {
            OfflineObjective::Sft(_) | OfflineObjective::Kto(_) => 1,
            _ => 2,
        };
        let sequences = record.sequences.len();
        let scored = record.reference.iter().zip(&record.sequences);
        let reference = record.reference.len() == sequences
            && scored.into_iter().all(|(own, sequence)| own.len() == sequence.learned());
        if sequences < wanted || (self.objective.has_reference() && !reference) {
            return Err(Error::invalid(format!(
                "offline learning: a record has {sequences} completions, {wanted} are read, and of the reference policy {} are scored",
                record.reference.len()
            )));
        }
        Ok(())
    }

    /// The loss over some records, without gradients.
    ///
    /// # Errors
    /// As [`Learner::gradients`].
    pub fn measure(&self, records: &[&Record]) -> Result<Learned> {
        no_grad(|| self.gradients(records, &mut Gradients::new()))
    }

    fn demonstrations(&self, records: &[&Record], gradients: &mut Gradients) -> Result<Learned> {
        let all: Vec<Scored<'_>> = records
            .iter()
            .flat_map(|record| record.sequences.first())
            .map(Encoded::scored)
            .collect();
        let done = supervised::gradients(self.policy, &all, self.micro_batch_tokens, gradients)?;
        Ok(Learned {
            loss: f64::from(done.loss),
            entropy: f64::from(done.entropy),
            tokens: done.tokens,
            ..Learned::default()
        })
    }

    /// Runs of records, whose first `sequences` sequences are together at most a micro-batch; a longer record stands alone.
    fn parts(&self, records: &[&Record], sequences: usize) -> Vec<Range<usize>> {
        let (mut parts, mut start, mut held) = (Vec::new(), 0, 0);
        for (i, record) in records.iter().enumerate() {
            let own: usize = record.sequences.iter().take(sequences).map(Encoded::tokens).sum();
            if i > start && held + own > self.micro_batch_tokens {
                parts.push(start..i);
                (start, held) = (i, 0);
            }
            held += own;
        }
        if start < records.len() {
            parts.push(start..records.len());
        }
        parts
    }

    fn pairs(&self, records: &[&Record], gradients: &mut Gradients) -> Result<Learned> {
        let totals = Totals {
            count: records.len(),
            chosen_tokens: records.iter().map(|record| record.sequences[0].learned()).sum(),
        };
        let parts = self.parts(records, 2);
        let mut learned = Learned::default();
        // The loss over the whole batch, where no part of it can be told alone.
        let whole = if self.couples_pairs() && parts.len() > 1 {
            let mut pairs = Vec::with_capacity(records.len());
            for part in &parts {
                let sequences = both(&records[part.clone()]);
                learned.tokens += run(&sequences);
                let scores = no_grad(|| score(self.policy, &sequences, 1.0))?;
                pairs.extend(self.paired(&records[part.clone()], &sequences, &scores.tokens)?);
            }
            Some(self.loss(&pairs, totals))
        } else {
            None
        };
        let (mut rewards, mut entropy, mut tokens) = (Vec::new(), 0.0, 0);
        for part in parts {
            let own = &records[part.clone()];
            let sequences = both(own);
            let scores = score(self.policy, &sequences, 1.0)?;
            learned.tokens += run(&sequences);
            entropy += scores.entropy;
            tokens += sequences.iter().map(|one| one.learned()).sum::<usize>();
            let measured = match &whole {
                Some(whole) => MeasuredPairs {
                    loss: 0.0,
                    gradients: whole.gradients[part.clone()].to_vec(),
                    rewards: whole.rewards[part].to_vec(),
                },
                None => self.loss(&self.paired(own, &sequences, &scores.tokens)?, totals),
            };
            learned.loss += measured.loss;
            rewards.extend(measured.rewards);
            let each = measured.gradients.iter().flatten().copied();
            let shared = own.iter().flat_map(|record| [shared(record); 2]);
            backward(scores.logprob, &sequences, each.zip(shared), self.ld_alpha(), gradients)?;
        }
        learned.loss += whole.map_or(0.0, |whole| whole.loss);
        learned.entropy = entropy / tokens.max(1) as f64;
        let mean = |side: usize| {
            rewards.iter().map(|pair| pair[side]).sum::<f64>() / rewards.len().max(1) as f64
        };
        let right = rewards.iter().filter(|pair| pair[0] > pair[1]).count();
        learned.reward_chosen = Some(mean(0));
        learned.reward_rejected = Some(mean(1));
        learned.accuracy = Some(right as f64 / rewards.len().max(1) as f64);
        Ok(learned)
    }

    fn couples_pairs(&self) -> bool {
        matches!(self.objective, OfflineObjective::Dpo(dpo) if dpo.couples_pairs())
    }

    fn ld_alpha(&self) -> f64 {
        match self.objective {
            OfflineObjective::Dpo(dpo) => dpo.ld_alpha,
            _ => 1.0,
        }
    }

    fn loss(&self, pairs: &[Pair], totals: Totals) -> MeasuredPairs {
        match self.objective {
            OfflineObjective::Dpo(dpo) => dpo.measure(pairs, totals),
            OfflineObjective::Cpo(cpo) => cpo.measure(pairs, totals),
            OfflineObjective::Orpo(orpo) => orpo.measure(pairs, totals),
            // `gradients` sends these elsewhere.
            OfflineObjective::Sft(_) | OfflineObjective::Kto(_) => MeasuredPairs {
                loss: 0.0,
                gradients: vec![Default::default(); pairs.len()],
                rewards: vec![Default::default(); pairs.len()],
            },
        }
    }

    /// The numbers of pairs that losses read.
    fn paired(
        &self,
        records: &[&Record],
        sequences: &[&Encoded],
        tokens: &[Vec<f32>],
    ) -> Result<Vec<Pair>> {
        let weights = self.weights(sequences, tokens)?;
        let mut sides = tokens.iter().enumerate().map(|(i, own)| {
            let record = records[i / 2];
            let reference = record.reference.get(i % 2).map_or(&[][..], Vec::as_slice);
            let completion = completion(own, reference, shared(record), self.ld_alpha());
            Completion { weight: weights.as_ref().map_or(1.0, |all| all[i]), ..completion }
        });
        let mut pairs = Vec::with_capacity(records.len());
        while let (Some(chosen), Some(rejected)) = (sides.next(), sides.next()) {
            pairs.push(Pair { chosen, rejected });
        }
        Ok(pairs)
    }

    /// WPO's weights: the geometric mean over the tokens of `p / Σ p²`, the sum over the vocabulary. The log-prob at temperature ½
    /// is `log p² / Σ p²`, so that a second score gives the sums.
    fn weights(&self, sequences: &[&Encoded], tokens: &[Vec<f32>]) -> Result<Option<Vec<f64>>> {
        if !matches!(self.objective, OfflineObjective::Dpo(dpo) if dpo.use_weighting) {
            return Ok(None);
        }
        let sharpened = token_logprobs(self.policy, sequences, self.micro_batch_tokens, 0.5)?;
        let weight = |(own, sharp): (&Vec<f32>, &Vec<f32>)| {
            let pairs = own.iter().zip(sharp);
            let sum: f64 = pairs.map(|(own, sharp)| f64::from(*sharp) - f64::from(*own)).sum();
            (sum / own.len().max(1) as f64).exp()
        };
        Ok(Some(tokens.iter().zip(&sharpened).map(weight).collect()))
    }

    fn labels(&self, kto: &Kto, records: &[&Record], gradients: &mut Gradients) -> Result<Learned> {
        let mut learned = Learned::default();
        let kl = self.estimated_kl(records, &mut learned)?;
        let (mut sums, mut counts, mut right) = ([0.0; 2], [0usize; 2], 0);
        let (mut entropy, mut tokens) = (0.0, 0);
        for part in self.parts(records, 1) {
            let own = &records[part];
            let sequences: Vec<&Encoded> = own.iter().map(|record| &record.sequences[0]).collect();
            let scores = score(self.policy, &sequences, 1.0)?;
            learned.tokens += run(&sequences);
            entropy += scores.entropy;
            tokens += sequences.iter().map(|one| one.learned()).sum::<usize>();
            let labelled: Vec<Labelled> = own
                .iter()
                .zip(&scores.tokens)
                .map(|(record, tokens)| Labelled {
                    completion: completion(tokens, &record.reference[0], usize::MAX, 1.0),
                    label: record.label,
                })
                .collect();
            let measured = kto.measure(&labelled, kl, records.len());
            learned.loss += measured.loss;
            for (one, reward) in labelled.iter().zip(&measured.rewards) {
                let side = usize::from(!one.label);
                sums[side] += reward;
                counts[side] += 1;
                right += usize::from((one.completion.log_ratio() > kl) == one.label);
            }
            let each = measured.gradients.into_iter().map(|gradient| (gradient, usize::MAX));
            backward(scores.logprob, &sequences, each, 1.0, gradients)?;
        }
        let mean = |side: usize| (counts[side] > 0).then(|| sums[side] / counts[side] as f64);
        learned.entropy = entropy / tokens.max(1) as f64;
        learned.reward_chosen = mean(0);
        learned.reward_rejected = mean(1);
        learned.accuracy = Some(right as f64 / records.len().max(1) as f64);
        learned.kl = kto.estimates_kl().then_some(kl);
        Ok(learned)
    }

    /// KTO's reference point: how far the policy is from the reference on completions of other prompts.
    fn estimated_kl(&self, records: &[&Record], learned: &mut Learned) -> Result<f64> {
        let mixed: Vec<&Record> =
            records.iter().copied().filter(|record| record.sequences.len() > 1).collect();
        let sequences: Vec<&Encoded> = mixed.iter().map(|record| &record.sequences[1]).collect();
        let scored = token_logprobs(self.policy, &sequences, self.micro_batch_tokens, 1.0)?;
        learned.tokens += run(&sequences);
        let ratios: Vec<f64> = mixed
            .iter()
            .zip(&scored)
            .map(|(record, own)| completion(own, &record.reference[1], usize::MAX, 1.0).log_ratio())
            .collect();
        Ok(Kto::kl(&ratios))
    }
}

/// Both completions of each pair.
fn both<'a>(records: &[&'a Record]) -> Vec<&'a Encoded> {
    records.iter().flat_map(|record| record.sequences.iter().take(2)).collect()
}

/// Tokens that the model reads.
fn run(sequences: &[&Encoded]) -> usize {
    sequences.iter().map(|one| one.scored().tokens()).sum()
}

/// Learned tokens of the shorter completion of a pair.
fn shared(record: &Record) -> usize {
    record.sequences.iter().take(2).map(Encoded::learned).min().unwrap_or(0)
}

fn completion(own: &[f32], reference: &[f32], shared: usize, ld_alpha: f64) -> Completion {
    let wide = |all: &[f32]| all.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    Completion::new(&wide(own), &wide(reference), shared, ld_alpha)
}

/// Sends the derivatives of a loss by sums of log-probs back through the log-probs. With each comes the number of tokens from
/// which on one counts `ld_alpha` times.
fn backward(
    logprob: Tensor,
    sequences: &[&Encoded],
    each: impl Iterator<Item = (Gradient, usize)>,
    ld_alpha: f64,
    gradients: &mut Gradients,
) -> Result<()> {
    if !logprob.is_tracked() {
        return Ok(());
    }
    let mut upstream = Vec::with_capacity(logprob.len());
    for (sequence, (gradient, shared)) in sequences.iter().zip(each) {
        let mut own = gradient.by_token(sequence.learned(), shared, ld_alpha);
        // A token that is only read has no row: its gradient goes nowhere.
        upstream.extend(sequence.mask.iter().map(|mask| match mask {
            0 => 0.0,
            _ => own.next().unwrap_or(0.0) as f32,
        }));
    }
    let upstream = Tensor::from_f32(upstream, logprob.shape())?.to_device(&logprob.device())?;
    autograd::backward_from(vec![(logprob, upstream)], gradients)
}
