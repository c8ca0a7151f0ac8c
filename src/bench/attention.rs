//! Attention with grouped heads: causal, alone and with its gradients, under the mask of block diffusion, and against a
//! cache.

use super::attended::{Attended, dot};
use super::operation::operation;
use super::reference::{row, worst_of};
use super::sizes::Sizes;
use super::{Case, Give, Work, attention_cache, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::attention::{Attention, Mask};
use crate::ops;
use crate::tensor::Tensor;
use crate::tensor::autograd::{Gradients, ParamId, backward_from};

/// A block of block diffusion, and of the tiny size.
const BLOCK: usize = 32;
const TINY_BLOCK: usize = 4;

pub(super) fn cases(device: &Device, sizes: &Sizes, give: &mut Give<'_>) -> Result<()> {
    // Tokens, query heads, key-value heads and their width.
    let own = size(device, sizes.quick, [[34, 4, 2, 16], [1024, 8, 4, 64], [8192, 32, 8, 128]]);
    let dtype = size(device, sizes.quick, [DType::F32, DType::F32, DType::Bf16]);
    for shape in sizes.shapes(&[own]) {
        for dtype in sizes.dtypes(&[dtype]) {
            let block = if sizes.quick { TINY_BLOCK } else { BLOCK };
            of_shape(device, shape, block, dtype, give)?;
        }
    }
    // A cache has another shape.
    if sizes.asked() { Ok(()) } else { attention_cache::cases(device, sizes.quick, give) }
}

fn of_shape(
    device: &Device,
    shape: [usize; 4],
    block: usize,
    dtype: DType,
    give: &mut Give<'_>,
) -> Result<()> {
    let [tokens, heads, groups, dim] = shape;
    if !heads.is_multiple_of(groups) {
        return Err(Error::shape(format!(
            "{heads} heads do not share {groups} of keys and values evenly"
        )));
    }
    let causal = Attention::causal(heads, groups, dim);
    let q = inputs::tensor(device, dtype, &[tokens, heads, dim], 1)?;
    let k = inputs::tensor(device, dtype, &[tokens, groups, dim], 2)?;
    let v = inputs::tensor(device, dtype, &[tokens, groups, dim], 3)?;
    let forward = |spec: Attention, checked: Vec<(usize, Vec<usize>)>| {
        let (qkv, known) = ([&q, &k, &v].map(Tensor::clone), [&q, &k, &v].map(Tensor::clone));
        let error = move |out: &Tensor| output_error(spec, &known, out, &checked);
        operation(move || ops::attention(&qkv[0], &qkv[1], &qkv[2], &spec, &[0, tokens]), error)
    };
    // Two products over the half of the square that is seen; five more for the gradients.
    let product = (tokens * (tokens + 1) * heads * dim) as f64;
    let last = (tokens - 1, (0..tokens).collect());
    let work = forward(causal, vec![last]);
    give(Case::flops("forward", &shape, dtype, 2.0 * product, work))?;

    // Of two copies of `half` tokens a noised one sees its own block and the clean ones before, a clean one the clean
    // blocks up to its own.
    if tokens.is_multiple_of(2) {
        let spec = Attention { mask: Mask::BlockDiffusion { block }, ..causal };
        let half = tokens / 2;
        let own = (half - 1) / block * block;
        let noised = (half - 1, (own..half).chain(half..half + own).collect());
        let clean = (tokens - 1, (half..tokens).collect());
        let work = forward(spec, vec![noised, clean]);
        let flops = 4.0 * (seen_pairs(half, block) * heads * dim) as f64;
        give(Case::flops("block_diffusion", &shape, dtype, flops, work))?;
    }

    let upstream = inputs::tensor(device, DType::F32, &[tokens, heads, dim], 4)?;
    let id = ParamId::fresh();
    let work = Layer { spec: causal, q, k, v, upstream, id, out: None, dq: None };
    give(Case::flops("forward_backward", &shape, dtype, 7.0 * product, Box::new(work)))
}

/// Pairs of a query and a key that it sees, over both copies of `half` tokens: a block of either sees as many keys as
/// there are up to its end.
fn seen_pairs(half: usize, block: usize) -> usize {
    let of_block = |start: usize| {
        let own = block.min(half - start);
        2 * own * (start + own)
    };
    (0..half).step_by(block).map(of_block).sum()
}

fn allowed(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-4 } else { 2e-2 }
}

/// Some tokens, each with what it sees.
fn output_error(
    spec: Attention,
    [q, k, v]: &[Tensor; 3],
    out: &Tensor,
    checked: &[(usize, Vec<usize>)],
) -> Result<f64> {
    let keys = Attended::new(spec, k, v)?;
    checked.iter().try_fold(0f64, |largest, (token, seen)| {
        let want = keys.output(&row(q, *token)?, seen);
        let allowed = allowed(q.dtype());
        Ok(largest.max(worst_of(&row(out, *token)?, &want, allowed, allowed)))
    })
}

/// Causal attention with its gradients.
struct Layer {
    spec: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Of the output.
    upstream: Tensor,
    /// The name that the gradient of q gets.
    id: ParamId,
    out: Option<Tensor>,
    dq: Option<Tensor>,
}

impl Work for Layer {
    fn run(&mut self) -> Result<()> {
        // All three gradients are computed; the one of q is looked at.
        let [k, v] = [&self.k, &self.v].map(|x| x.tracked(ParamId::fresh()));
        let segments = [0, self.q.shape()[0]];
        let out = ops::attention(&self.q.tracked(self.id), &k, &v, &self.spec, &segments)?;
        let mut gradients = Gradients::new();
        self.out = Some(out.detach());
        backward_from(vec![(out, self.upstream.clone())], &mut gradients)?;
        self.dq = gradients.get(self.id).cloned();
        Ok(())
    }

    /// The last query of every head, which sees everything, in f64.
    fn error(&mut self) -> Result<f64> {
        let (Some(out), Some(dq)) = (&self.out, &self.dq) else { return Ok(f64::INFINITY) };
        let last = self.q.shape()[0] - 1;
        let seen: Vec<usize> = (0..=last).collect();
        let of = [&self.q, &self.k, &self.v].map(Tensor::clone);
        let of_output = output_error(self.spec, &of, out, &[(last, seen.clone())])?;
        let keys = Attended::new(self.spec, &self.k, &self.v)?;
        let (q, upstream) = (row(&self.q, last)?, row(&self.upstream, last)?);
        let dim = self.spec.head_dim;
        let mut want = Vec::with_capacity(q.len());
        for (head, (q, upstream)) in q.chunks(dim).zip(upstream.chunks(dim)).enumerate() {
            let p = keys.weights(head, q, &seen);
            let dp: Vec<f64> =
                seen.iter().map(|token| dot(upstream, keys.at(&keys.v, *token, head))).collect();
            let mean = dot(&p, &dp);
            let scale = f64::from(self.spec.scale);
            let ds: Vec<f64> = p.iter().zip(&dp).map(|(p, dp)| scale * p * (dp - mean)).collect();
            want.extend(keys.mix(head, &ds, &seen, &keys.k));
        }
        let allowed = allowed(self.q.dtype());
        Ok(of_output.max(worst_of(&row(dq, last)?, &want, allowed, allowed)))
    }
}
