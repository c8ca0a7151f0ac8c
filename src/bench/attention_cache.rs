//! Attention of a few new tokens of each sequence against a long cache: a step of generation, token by token and block by
//! block.

use super::attended::Attended;
use super::operation::operation;
use super::reference::{row, worst_of};
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::kernels::attention::{Attention, KvCache, Mask};
use crate::ops;
use crate::tensor::Tensor;

/// New tokens of a step of block diffusion.
const BLOCK: usize = 4;

/// What is cached: as many positions of each sequence.
#[derive(Clone, Copy)]
struct Cached {
    sequences: usize,
    length: usize,
    groups: usize,
    dim: usize,
    dtype: DType,
}

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    // Sequences, cached positions, query heads, key-value heads and their width.
    let [sequences, length, heads, groups, dim] =
        size(device, quick, [[3, 72, 4, 2, 16], [8, 2048, 8, 4, 64], [32, 8192, 32, 8, 128]]);
    for dtype in [DType::F32, DType::Bf16] {
        let of = Cached { sequences, length, groups, dim, dtype };
        let cache = of.fill(device)?;
        for (part, new, mask) in [
            ("decode", 1, Mask::Causal),
            ("decode_block", BLOCK, Mask::BlockCausal { block: BLOCK }),
        ] {
            let spec = Attention { mask, ..Attention::causal(heads, groups, dim) };
            let q = inputs::tensor(device, dtype, &[sequences * new, heads, dim], 5)?;
            let segments: Vec<usize> = (0..=sequences).map(|row| row * new).collect();
            let (read, cache) = (q.clone(), cache.clone());
            let work = operation(
                move || ops::cached_attention(&read, &spec, &cache, 0, &segments),
                move |out: &Tensor| of.error(spec, &q, new, out),
            );
            // The cache is read once whatever the number of new tokens; these are few.
            let bytes = 2 * (sequences * length * groups + sequences * new * heads) * dim;
            let shape = [sequences, length, heads, groups, dim];
            give(Case::bytes(part, &shape, dtype, bytes * dtype.size(), work))?;
        }
    }
    Ok(())
}

impl Cached {
    /// The keys (0) or values (1) of a sequence.
    fn tensor(&self, device: &Device, sequence: usize, which: u64) -> Result<Tensor> {
        let shape = [self.length, self.groups, self.dim];
        inputs::tensor(device, self.dtype, &shape, 10 + 2 * sequence as u64 + which)
    }

    fn fill(&self, device: &Device) -> Result<KvCache> {
        let heads = [self.groups, self.dim];
        let mut cache = KvCache::new_on(device, self.dtype, 1, self.sequences, heads, self.length)?;
        for sequence in 0..self.sequences {
            let (k, v) = (self.tensor(device, sequence, 0)?, self.tensor(device, sequence, 1)?);
            let mut segments = vec![0; sequence + 1];
            segments.resize(self.sequences + 1, self.length);
            ops::append_to_cache(&mut cache, 0, &k, &v, &segments)?;
        }
        Ok(cache)
    }

    /// The last new token of the first and of the last sequence, which sees the whole cache.
    fn error(&self, spec: Attention, q: &Tensor, new: usize, out: &Tensor) -> Result<f64> {
        let allowed = if self.dtype == DType::F32 { 1e-4 } else { 2e-2 };
        let seen: Vec<usize> = (0..self.length).collect();
        [0, self.sequences - 1].into_iter().try_fold(0f64, |largest, sequence| {
            let of = |which| self.tensor(&Device::Cpu, sequence, which);
            let token = (sequence + 1) * new - 1;
            let want = Attended::new(spec, &of(0)?, &of(1)?)?.output(&row(q, token)?, &seen);
            Ok(largest.max(worst_of(&row(out, token)?, &want, allowed, allowed)))
        })
    }
}
