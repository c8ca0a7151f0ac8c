//! Causal attention with grouped heads, alone and with its gradients.

use super::{Amount, Case, Work, inputs, worst};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::kernels::attention::Attention;
use crate::ops;
use crate::tensor::Tensor;
use crate::tensor::autograd::{Gradients, ParamId, backward_from};

struct Layer {
    spec: Attention,
    tokens: usize,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Of the output, and the name that the gradient of q gets; `None`: forward alone.
    upstream: Option<(Tensor, ParamId)>,
    out: Option<Tensor>,
    dq: Option<Tensor>,
}

pub(super) fn cases(
    device: &Device,
    quick: bool,
    give: &mut dyn FnMut(Case) -> Result<()>,
) -> Result<()> {
    let (tokens, heads, groups, dim, dtypes): (_, _, _, _, &[DType]) = match (quick, device.gpu()) {
        (true, _) => (33, 4, 2, 16, &[DType::F32]),
        (false, None) => (1024, 8, 4, 64, &[DType::F32]),
        (false, Some(_)) => (8192, 32, 8, 128, &[DType::Bf16]),
    };
    for dtype in dtypes.iter().copied() {
        let new = |heads, seed| inputs::tensor(device, dtype, &[tokens, heads, dim], seed);
        // Two products over the half of the square that is seen; five more for the gradients.
        let product = (tokens * (tokens + 1) * heads * dim) as f64;
        for (part, flops) in [("forward", 2.0 * product), ("forward_backward", 7.0 * product)] {
            let upstream = match part {
                "forward" => None,
                _ => {
                    let of_out = inputs::tensor(device, DType::F32, &[tokens, heads, dim], 4)?;
                    Some((of_out, ParamId::fresh()))
                }
            };
            let work = Layer {
                spec: Attention::causal(heads, groups, dim),
                tokens,
                q: new(heads, 1)?,
                k: new(groups, 2)?,
                v: new(groups, 3)?,
                upstream,
                out: None,
                dq: None,
            };
            give(Case {
                part,
                shape: vec![tokens, heads, groups, dim],
                dtype,
                amount: Amount::Flops(flops),
                work: Box::new(work),
            })?;
        }
    }
    Ok(())
}

impl Work for Layer {
    fn run(&mut self) -> Result<()> {
        let segments = [0, self.tokens];
        let Some((upstream, id)) = &self.upstream else {
            let out = ops::attention(&self.q, &self.k, &self.v, &self.spec, &segments)?;
            self.out = Some(out);
            return Ok(());
        };
        // All three gradients are computed; the one of q is looked at.
        let [k, v] = [&self.k, &self.v].map(|x| x.tracked(ParamId::fresh()));
        let out = ops::attention(&self.q.tracked(*id), &k, &v, &self.spec, &segments)?;
        let mut gradients = Gradients::new();
        self.out = Some(out.detach());
        backward_from(vec![(out, upstream.clone())], &mut gradients)?;
        self.dq = gradients.get(*id).cloned();
        Ok(())
    }

    /// The last query of every head, which sees everything, in f64.
    fn error(&mut self) -> Result<f64> {
        let Attention { query_heads, kv_heads, head_dim: dim, scale, .. } = self.spec;
        let host = |x: &Tensor| -> Result<Vec<f64>> {
            let x = x.to_device(&Device::Cpu)?;
            Ok(x.to_f32s()?.iter().map(|x| f64::from(*x)).collect())
        };
        let Some(out) = &self.out else { return Ok(f64::INFINITY) };
        let (q, k, v, out) = (host(&self.q)?, host(&self.k)?, host(&self.v)?, host(out)?);
        let last = (self.tokens - 1) * query_heads * dim;
        let upstream = match (&self.upstream, &self.dq) {
            (None, _) => None,
            (Some((upstream, _)), Some(dq)) => Some((host(upstream)?, host(dq)?)),
            (Some(_), None) => return Ok(f64::INFINITY),
        };
        let allowed = if self.q.dtype() == DType::F32 { 1e-4 } else { 2e-2 };
        let mut largest = 0f64;
        for head in 0..query_heads {
            let group = head / (query_heads / kv_heads);
            let at = |token: usize| (token * kv_heads + group) * dim;
            let here = last + head * dim..last + (head + 1) * dim;
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let scores: Vec<f64> = (0..self.tokens)
                .map(|token| {
                    f64::from(scale) * dot(&q[here.clone()], &k[at(token)..at(token) + dim])
                })
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
            let p: Vec<f64> = scores.iter().map(|score| (score - most).exp() / sum).collect();
            let mix = |weights: &[f64], values: &[f64], d: usize| -> f64 {
                weights.iter().enumerate().map(|(token, w)| w * values[at(token) + d]).sum()
            };
            let want = (0..dim).map(|d| mix(&p, &v, d));
            largest =
                largest.max(worst(out[here.clone()].iter().copied().zip(want), allowed, allowed));
            let Some((upstream, dq)) = &upstream else { continue };
            let dp: Vec<f64> = (0..self.tokens)
                .map(|token| dot(&upstream[here.clone()], &v[at(token)..at(token) + dim]))
                .collect();
            let mean = dot(&p, &dp);
            let ds: Vec<f64> =
                p.iter().zip(&dp).map(|(p, dp)| f64::from(scale) * p * (dp - mean)).collect();
            let want = (0..dim).map(|d| mix(&ds, &k, d));
            largest = largest.max(worst(dq[here].iter().copied().zip(want), allowed, allowed));
        }
        Ok(largest)
    }
}
