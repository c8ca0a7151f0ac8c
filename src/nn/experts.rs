//! A mixture of experts: several gated MLPs, of which a router chooses a few for each token.
//!
//! The tokens of one expert are gathered and go through it together. Every product works on one row at a time in a fixed
//! order, and a token adds its experts' outputs in the order of their numbers, so a token's bits depend on no other token.
//! Source: Shazeer et al. 2017 (top-k gating), as Qwen 3 MoE has it.

use super::builder::Builder;
use super::gated_mlp::{Activation, GatedMlp};
use super::linear::Linear;
use super::weights::Weights;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::Tensor;

/// Sizes of a mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertSizes {
    /// How many experts there are.
    pub experts: usize,
    /// How many of them work on a token.
    pub per_token: usize,
    /// Inner width of an expert.
    pub inner: usize,
    /// Whether the shares of the chosen experts are scaled to a sum of 1.
    pub normalized: bool,
}

/// A router and its experts.
#[derive(Clone, Debug)]
pub struct Experts {
    sizes: ExpertSizes,
    router: Linear,
    experts: Vec<GatedMlp>,
}

/// Which rows of the gathered tokens belong to whom.
struct Routes {
    /// The token of each gathered row, expert after expert: `[tokens · per_token]`.
    tokens: Vec<usize>,
    /// Where the rows of each expert begin, and the end of the last: `[experts + 1]`.
    starts: Vec<usize>,
    /// `places[j][t]`: the gathered row of the j-th expert of token t, by the experts' numbers.
    places: Vec<Vec<usize>>,
    /// `chosen[t · per_token + j]`: `t · experts +` the number of that expert.
    chosen: Vec<usize>,
}

impl Routes {
    /// The `per_token` experts with the largest logits of each token; of equal ones the first.
    fn new(logits: &[f32], sizes: ExpertSizes) -> Routes {
        let ExpertSizes { experts, per_token, .. } = sizes;
        let tokens = logits.len() / experts.max(1);
        let mut chosen = Vec::with_capacity(tokens * per_token);
        let mut counts = vec![0; experts + 1];
        let mut order: Vec<usize> = Vec::with_capacity(experts);
        for (t, row) in logits.chunks_exact(experts.max(1)).enumerate() {
            order.clear();
            order.extend(0..experts);
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
            order.truncate(per_token);
            order.sort_unstable();
            for expert in &order {
                counts[expert + 1] += 1;
                chosen.push(t * experts + expert);
            }
        }
        for expert in 0..experts {
            counts[expert + 1] += counts[expert];
        }
        let starts = counts.clone();
        let mut next = counts;
        let mut routed = vec![0; chosen.len()];
        let mut places = vec![vec![0; tokens]; per_token];
        for (pair, which) in chosen.iter().enumerate() {
            let (token, expert) = (which / experts, which % experts);
            let place = next[expert];
            next[expert] += 1;
            routed[place] = token;
            places[pair % per_token][token] = place;
        }
        Routes { tokens: routed, starts, places, chosen }
    }
}

impl Experts {
    /// Adds `name.gate` `[experts, width]` and the experts `name.experts.N`.
    ///
    /// # Errors
    /// As [`Builder::tensor`], and [`Error::is_invalid`] where a token is to have more experts than there are.
    pub fn new(
        builder: &mut Builder<'_>,
        name: &str,
        width: usize,
        sizes: ExpertSizes,
        activation: Activation,
    ) -> Result<Experts> {
        if !(1..=sizes.experts).contains(&sizes.per_token) {
            let ExpertSizes { experts, per_token, .. } = sizes;
            return Err(Error::invalid(format!("{per_token} of {experts} experts for a token")));
        }
        let router = Linear::new(builder, &format!("{name}.gate"), [sizes.experts, width], false)?;
        let experts = (0..sizes.experts)
            .map(|expert| {
                let name = format!("{name}.experts.{expert}");
                GatedMlp::new(builder, &name, [width, sizes.inner], false, activation)
            })
            .collect::<Result<_>>()?;
        Ok(Experts { sizes, router, experts })
    }

    /// Its linear layers.
    pub fn linears(&self) -> impl Iterator<Item = Linear> {
        let experts = self.experts.iter().flat_map(GatedMlp::linears);
        std::iter::once(self.router).chain(experts)
    }

    /// `x [tokens, width]`; of its shape and dtype. Which experts a token has is no part of the gradient; their shares are.
    ///
    /// On a device the router's logits are read by the host, which waits for them once a layer.
    ///
    /// # Errors
    /// As [`ops::linear`].
    pub fn forward(&self, weights: Weights<'_>, x: &Tensor) -> Result<Tensor> {
        let ExpertSizes { experts, per_token, normalized, .. } = self.sizes;
        let tokens = x.leading();
        if tokens == 0 {
            return Ok(x.clone());
        }
        let logits = self.router.forward(weights, x)?;
        let routes = Routes::new(&logits.to_device(&Device::Cpu)?.to_f32s()?, self.sizes);

        // The share of each chosen expert, in f32: `[tokens, per_token]`.
        let logits = ops::cast(&logits, DType::F32)?;
        let entries = |x: &Tensor| -> Result<Tensor> {
            let flat = ops::reshape(x, &[tokens * experts, 1])?;
            ops::reshape(&ops::gather(&flat, &routes.chosen)?, &[tokens, per_token])
        };
        // Shares scaled to a sum of 1 are the softmax over the chosen logits.
        let shares = match normalized {
            true => ops::softmax(&entries(&logits)?)?,
            false => entries(&ops::softmax(&logits)?)?,
        };
        let shares = ops::cast(&shares, x.dtype())?;
        let shares = ops::reshape(&shares, &[tokens * per_token, 1])?;

        let gathered = ops::gather(x, &routes.tokens)?;
        let sizes: Vec<usize> = routes.starts.windows(2).map(|range| range[1] - range[0]).collect();
        let mut outputs = Vec::with_capacity(experts);
        for (expert, rows) in self.experts.iter().zip(ops::split(&gathered, &sizes)?) {
            if rows.leading() > 0 {
                outputs.push(expert.forward(weights, &rows)?);
            }
        }
        let outputs = ops::concat(&outputs.iter().collect::<Vec<_>>())?;

        // A product with a column of ones repeats a share over the width.
        let ones = vec![1.0; x.last_dim()];
        let ones = Tensor::from_buffer(ones.into(), &[x.last_dim(), 1], x.dtype())?;
        let ones = ones.to_device(&x.device())?;
        let mut sum: Option<Tensor> = None;
        for (j, places) in routes.places.iter().enumerate() {
            let own: Vec<usize> = (0..tokens).map(|t| t * per_token + j).collect();
            let share = ops::linear(&ops::gather(&shares, &own)?, &ones, None)?;
            let part = ops::mul(&ops::gather(&outputs, places)?, &share)?;
            sum = Some(match sum {
                Some(sum) => ops::add(&sum, &part)?,
                None => part,
            });
        }
        sum.ok_or_else(|| Error::state("experts: none for a token"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_those_of_the_largest_logits() {
        let sizes = ExpertSizes { experts: 3, per_token: 2, inner: 4, normalized: true };
        let routes = Routes::new(&[0.1, 0.3, 0.2, 5.0, 5.0, 5.0, -1.0, -2.0, -0.5], sizes);
        assert_eq!(routes.chosen, [1, 2, 3, 4, 6, 8]);
        assert_eq!(routes.starts, [0, 2, 4, 6]);
        assert_eq!(routes.tokens, [1, 2, 0, 1, 0, 2]);
        assert_eq!(routes.places, [[2, 0, 1], [4, 3, 5]]);
    }
}
