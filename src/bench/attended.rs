//! What a query attends to, in f64.

use super::reference::host;
use crate::error::Result;
use crate::kernels::attention::Attention;
use crate::tensor::Tensor;

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Keys and values of one sequence, `[tokens, kv_heads, head_dim]`.
pub(super) struct Attended {
    spec: Attention,
    pub(super) k: Vec<f64>,
    pub(super) v: Vec<f64>,
}

impl Attended {
    pub(super) fn new(spec: Attention, k: &Tensor, v: &Tensor) -> Result<Attended> {
        let wide = |x: &Tensor| Ok(host(x)?.into_iter().map(f64::from).collect());
        Ok(Attended { spec, k: wide(k)?, v: wide(v)? })
    }

    /// What query head `head` sees of `values` (these keys or values) at a token.
    pub(super) fn at<'a>(&self, values: &'a [f64], token: usize, head: usize) -> &'a [f64] {
        let Attention { query_heads, kv_heads, head_dim, .. } = self.spec;
        let start = (token * kv_heads + head / (query_heads / kv_heads)) * head_dim;
        &values[start..start + head_dim]
    }

    /// How much query `q` of a head attends to each token of `seen`.
    pub(super) fn weights(&self, head: usize, q: &[f64], seen: &[usize]) -> Vec<f64> {
        let score =
            |token: &usize| f64::from(self.spec.scale) * dot(q, self.at(&self.k, *token, head));
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }

    /// The sum of `values` at the tokens of `seen`, each by its weight.
    pub(super) fn mix(
        &self,
        head: usize,
        weights: &[f64],
        seen: &[usize],
        values: &[f64],
    ) -> Vec<f64> {
        let mut sum = vec![0f64; self.spec.head_dim];
        for (weight, token) in weights.iter().zip(seen) {
            let value = self.at(values, *token, head);
            sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight * value);
        }
        sum
    }

    /// The output of one token, `[query_heads, head_dim]`, from its queries of that shape.
    pub(super) fn output(&self, q: &[f64], seen: &[usize]) -> Vec<f64> {
        let of_head = |(head, q): (usize, &[f64])| {
            self.mix(head, &self.weights(head, q, seen), seen, &self.v)
        };
        q.chunks(self.spec.head_dim).enumerate().flat_map(of_head).collect()
    }
}
