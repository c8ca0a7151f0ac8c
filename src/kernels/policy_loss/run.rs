//! What the sequence pass hands to the token pass, and the piece of a sequence that the latter works on.

use super::sequence::{Factors, Shared};

/// What the sequence pass found.
pub(super) struct Sequences<'a> {
    pub offsets: &'a [usize],
    /// The weight of each sequence's losses.
    pub coefficients: &'a [f32],
    /// The weight of each sequence's divergences.
    pub kl_coefficients: &'a [f32],
    /// The weight of each sequence's entropies.
    pub entropy_coefficients: &'a [f32],
    /// What its tokens share; `None`: nothing.
    pub shared: Option<Shared<'a>>,
}

/// One run of tokens of one sequence inside one block.
pub(super) struct Run<'a> {
    pub coefficient: f32,
    pub kl_coefficient: f32,
    pub entropy_coefficient: f32,
    pub factors: Factors,
    pub logprob: &'a [f32],
    pub old_logprob: &'a [f32],
    pub mask: &'a [u8],
    pub advantage: Lane<'a>,
    pub off_policy: Option<&'a [u8]>,
    pub selected: Option<&'a [u8]>,
    pub reference: Option<&'a [f32]>,
    pub entropy: Option<&'a [f32]>,
    pub weight: Option<&'a [f32]>,
    pub dlogprob: &'a mut [f32],
    pub dentropy: Option<&'a mut [f32]>,
}

/// A value a token, or one for all.
#[derive(Clone, Copy)]
pub(super) enum Lane<'a> {
    Each(&'a [f32]),
    Same(f32),
}
