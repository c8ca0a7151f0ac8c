//! Tokens that are picked before the loss: at random among candidates, by covariance, by entropy.

use super::operation::operation;
use super::packed::Packed;
use super::reference::{differs, host, host_bytes};
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::kernels::token_selection::{Inputs, Selection, launch, select};
use crate::rng::{self, Stream};
use crate::tensor::{Storage, Tensor};
use std::rc::Rc;

const CLIP: (f32, f32) = (0.8, 1.2);
const DRAW: (u64, u64) = (7, 3);

/// Covariances this near to a bound are either side's.
const NEAR: f64 = 1e-5;

struct Problem {
    packed: Packed,
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    entropy: Tensor,
}

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let shape = size(device, quick, [[3, 50], [256, 4096], [1024, 4096]]);
    let of = Rc::new(Problem::new(device, shape)?);
    for selection in [
        Selection::ClipCov { ratio: 0.02, least: 0.1, most: 5.0 },
        Selection::KlCov { ratio: 0.02, coefficient: 1.0 },
        Selection::TopEntropy { fraction: 0.2 },
    ] {
        // Numbers that are read, the mask, and the byte that comes out.
        let (part, each) = match selection {
            Selection::ClipCov { .. } => ("clip_cov", 14),
            Selection::KlCov { .. } => ("kl_cov", 10),
            Selection::TopEntropy { .. } => ("top_entropy", 6),
        };
        let (run, known) = (Rc::clone(&of), Rc::clone(&of));
        let error = move |out: &Tensor| known.error(&selection, out);
        let work = operation(move || run.selected(&selection), error);
        give(Case::bytes(part, &shape, DType::F32, each * of.packed.tokens(), work))?;
    }
    Ok(())
}

impl Problem {
    fn new(device: &Device, shape: [usize; 2]) -> Result<Problem> {
        let packed = Packed::new(device, shape)?;
        let [logprob, old_logprob] = inputs::two_logprobs(packed.tokens(), 0.2);
        let entropy = inputs::normal(packed.tokens(), 5).iter().map(|x| x.abs()).collect();
        let put = |values: Vec<f32>| {
            let len = values.len();
            Tensor::from_f32(values, &[len])?.to_device(device)
        };
        Ok(Problem {
            logprob: put(logprob)?,
            old_logprob: put(old_logprob)?,
            advantage: put(inputs::normal(packed.tokens(), 4))?,
            entropy: put(entropy)?,
            packed,
        })
    }

    fn selected(&self, selection: &Selection) -> Result<Tensor> {
        let tokens = [self.packed.tokens()];
        let Some([mask, _]) = self.packed.on_gpu() else {
            let mut out = Storage::recycled(DType::U8, tokens[0]);
            let read = Inputs {
                logprob: self.logprob.f32s()?,
                old_logprob: self.old_logprob.f32s()?,
                advantage: self.advantage.f32s()?,
                entropy: self.entropy.f32s()?,
                mask: &self.packed.mask,
                clip: CLIP,
                draw: DRAW,
            };
            select(selection, &read, out.bytes_mut())?;
            return Tensor::new(out, &tokens);
        };
        let mut out = Tensor::recycled_on(&tokens, DType::U8, mask.gpu())?;
        let read = launch::Inputs {
            logprob: Some(self.logprob.device_slice()?),
            old_logprob: Some(self.old_logprob.device_slice()?),
            advantage: Some(self.advantage.device_slice()?),
            entropy: Some(self.entropy.device_slice()?),
            mask,
            clip: CLIP,
            draw: DRAW,
        };
        launch::select(selection, &read, out.device_slice_mut()?)?;
        Ok(out)
    }

    fn error(&self, selection: &Selection, selected: &Tensor) -> Result<f64> {
        let selected = host_bytes(selected)?;
        let live: Vec<usize> =
            (0..self.packed.tokens()).filter(|token| self.packed.is_live(*token)).collect();
        let picked: Vec<usize> = (0..selected.len()).filter(|t| selected[*t] != 0).collect();
        if !picked.iter().all(|token| self.packed.is_live(*token)) {
            return Ok(f64::INFINITY);
        }
        let right = match selection {
            Selection::TopEntropy { fraction } => {
                let entropy = host(&self.entropy)?;
                let mut sorted: Vec<f32> = live.iter().map(|token| entropy[*token]).collect();
                sorted.sort_unstable_by(f32::total_cmp);
                let place = (1.0 - fraction) * (sorted.len() - 1) as f64;
                let below = place as usize;
                let (low, next) = (sorted[below], sorted[(below + 1).min(sorted.len() - 1)]);
                let threshold = f64::from(low) + (f64::from(next) - f64::from(low)) * place.fract();
                let is_high = |token: &usize| entropy[*token] >= threshold as f32;
                let want: Vec<usize> = live.into_iter().filter(is_high).collect();
                return Ok(differs(&picked, &want));
            }
            Selection::KlCov { ratio, .. } => {
                let cov = self.covariances(&live)?;
                let rest = live.iter().filter(|token| selected[**token] == 0);
                let least = picked.iter().map(|t| cov[*t]).fold(f64::INFINITY, f64::min);
                let most = rest.map(|t| cov[*t]).fold(f64::NEG_INFINITY, f64::max);
                picked.len() == count(*ratio, live.len()) && least + NEAR >= most
            }
            Selection::ClipCov { ratio, least, most } => {
                let bounds = [f64::from(*least), f64::from(*most)];
                self.are_the_first_candidates(&picked, &live, bounds, count(*ratio, live.len()))?
            }
        };
        Ok(if right { 0.0 } else { f64::INFINITY })
    }

    /// `(A - mean A) (logprob - mean logprob)` of every token, means over live ones.
    fn covariances(&self, live: &[usize]) -> Result<Vec<f64>> {
        let centred = |x: &Tensor| -> Result<Vec<f64>> {
            let x = host(x)?;
            let mean = live.iter().map(|t| f64::from(x[*t])).sum::<f64>() / live.len() as f64;
            Ok(x.iter().map(|x| f64::from(*x) - mean).collect())
        };
        let (advantage, logprob) = (centred(&self.advantage)?, centred(&self.logprob)?);
        Ok(advantage.iter().zip(&logprob).map(|(a, l)| a * l).collect())
    }

    /// Of the candidates the `count` with the least random numbers; what is near a bound may be one or not.
    fn are_the_first_candidates(
        &self,
        picked: &[usize],
        live: &[usize],
        [least, most]: [f64; 2],
        count: usize,
    ) -> Result<bool> {
        let (logprob, old) = (host(&self.logprob)?, host(&self.old_logprob)?);
        let (advantage, cov) = (host(&self.advantage)?, self.covariances(live)?);
        let is_candidate = |token: usize, slack: f64| {
            let ratio = (f64::from(logprob[token]) - f64::from(old[token])).exp();
            let clipped = match advantage[token] > 0.0 {
                true => ratio > f64::from(CLIP.1) + slack,
                false => ratio < f64::from(CLIP.0) - slack,
            };
            cov[token] > least - slack && cov[token] < most + slack && !clipped
        };
        let key = |token: &usize| {
            rng::bits(DRAW.0, Stream::Select, DRAW.1, (token / 4) as u32)[token % 4]
        };
        let last = picked.iter().map(key).max();
        let passed_over = live.iter().filter(|token| {
            is_candidate(**token, -NEAR)
                && Some(key(token)) < last
                && picked.binary_search(token).is_err()
        });
        let candidates = live.iter().filter(|token| is_candidate(**token, NEAR)).count();
        Ok(picked.len() == count.min(candidates)
            && picked.iter().all(|token| is_candidate(*token, NEAR))
            && passed_over.count() == 0)
    }
}

fn count(ratio: f64, live: usize) -> usize {
    ((ratio * live as f64) as usize).max(1)
}
