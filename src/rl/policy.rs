//! What the trainer asks of a model: draw episodes, and score them again with gradients.
//!
//! A decoder that writes from left to right, one that fills masked blocks and the small GPT of problems made in code all
//! are policies. Your own model becomes one by implementing [`Policy`]; the loop, the learner and every stage then take it.

use super::episode::{Episode, Scored};
use super::sampling::{Distribution, Sampling};
use crate::device::Device;
use crate::error::Result;
use crate::kernels::policy_loss::Objective;
use crate::nn::Parameters;
use crate::ops::{self, PolicyColumns, PolicyLoss};
use crate::tensor::Tensor;
use std::path::Path;

/// What is scored: for each token the hidden state that predicts it, and the head that turns it into logits.
pub struct Rows {
    /// `[rows, width]`, tracked where the parameters are.
    pub hidden: Tensor,
    /// `[vocab, width]`, tracked where the parameters are.
    pub head: Tensor,
    /// `[rows]` the token that each row predicts; negative: not scored.
    pub targets: Vec<i32>,
    /// The cap of the logits, if the model has one.
    pub softcap: Option<f32>,
}

impl Rows {
    /// The log-prob and the entropy of every row, f32 `[rows]`.
    ///
    /// # Errors
    /// [`Error::is_index`](crate::Error::is_index) for a target outside the vocabulary.
    pub fn score(&self, drawn: &Distribution) -> Result<Scores> {
        let softmax = drawn.of(self.softcap);
        let (logprob, entropy) =
            ops::linear_logprob(&self.hidden, &self.head, None, &self.targets, &softmax)?;
        Ok(Scores { logprob, entropy })
    }

    /// The loss of an objective over these rows, and its gradient by hidden states and head. Log-probs and entropies are the
    /// bits of [`Rows::score`].
    ///
    /// # Errors
    /// As [`ops::linear_policy_loss`].
    pub fn loss(
        &self,
        drawn: &Distribution,
        objective: &Objective,
        columns: &PolicyColumns<'_>,
    ) -> Result<PolicyLoss> {
        let (hidden, head, softmax) = (&self.hidden, &self.head, drawn.of(self.softcap));
        ops::linear_policy_loss(objective, columns, hidden, head, None, &self.targets, &softmax)
    }
}

/// Log-probs and entropies of the tokens of some completions, one completion after another.
pub struct Scores {
    /// f32 `[Σ completion lengths]`, nats; 0 where a token is not scored.
    pub logprob: Tensor,
    /// f32 `[Σ completion lengths]`, nats.
    pub entropy: Tensor,
}

/// How an environment answers while episodes are drawn.
pub trait Replies: Sync {
    /// True when the policy's turn is over with its last token, which is not one that ends a completion.
    ///
    /// # Errors
    /// Whatever the environment reports.
    fn ends_turn(&self, _episode: &Episode) -> Result<bool> {
        Ok(false)
    }

    /// The tokens that the environment adds to an episode whose policy has just ended its turn; `None`: the episode is over.
    ///
    /// # Errors
    /// Whatever the environment reports.
    fn reply(&self, episode: &Episode) -> Result<Option<Vec<i32>>>;
}

/// A model that writes, and whose writing can be scored.
pub trait Policy: Send + Sync {
    /// Its parameters.
    fn parameters(&self) -> &Parameters;

    /// Its parameters, for an optimizer.
    fn parameters_mut(&mut self) -> &mut Parameters;

    /// Where it is.
    fn device(&self) -> Device;

    /// Ids are below this.
    fn vocab(&self) -> usize;

    /// The longest sequence, prompt and completion together.
    fn context(&self) -> usize;

    /// Draws `counts[p]` episodes from prompt `p`: prompt 0's first, then prompt 1's.
    ///
    /// An episode is a function of the weights, its prompt, the seed and its number alone.
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::Error::is_invalid) for a prompt that is empty or leaves no room in the context.
    fn generate(
        &self,
        prompts: &[Vec<i32>],
        counts: &[usize],
        sampling: &Sampling,
        replies: Option<&dyn Replies>,
    ) -> Result<Vec<Episode>>;

    /// True when the log-probs that [`Policy::generate`] records are those that [`Policy::score`] computes with the same
    /// weights. Where they are not, the old log-probs of a step are computed before its first update.
    fn records_scores(&self) -> bool {
        true
    }

    /// Log-probs and entropies of every token of some completions. For a policy that writes from left to right they are,
    /// to the bit, the log-probs that [`Policy::generate`] recorded with the same weights.
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::Error::is_invalid) for an empty prompt,
    /// [`Error::is_index`](crate::Error::is_index) for a token outside the vocabulary.
    fn score(&self, batch: &[Scored<'_>], drawn: &Distribution) -> Result<Scores>;

    /// The hidden states behind [`Policy::score`], where every token is scored by one row; `None` where a log-prob is made of
    /// several rows. A value head reads them, and a loss that is fused with the head.
    ///
    /// # Errors
    /// As [`Policy::score`].
    fn rows(&self, batch: &[Scored<'_>]) -> Result<Option<Rows>>;

    /// The width of [`Rows::hidden`].
    fn width(&self) -> usize;

    /// A policy of its own with the same weights: a reference, a critic.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn copy(&self) -> Result<Box<dyn Policy>>;

    /// Writes the model into a folder that exists.
    ///
    /// # Errors
    /// [`Error::is_io`](crate::Error::is_io).
    fn save(&self, folder: &Path) -> Result<()>;

    /// The policy that [`Policy::save`] wrote, of this one's kind and where this one is.
    ///
    /// # Errors
    /// What is wrong with the files.
    fn loaded(&self, folder: &Path) -> Result<Box<dyn Policy>>;
}
