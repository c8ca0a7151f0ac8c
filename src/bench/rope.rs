//! Rotary positions. The gradient is the same kernel with angles turned over.

use super::operation::operation;
use super::reference::{allowed, places, row, worst_of};
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::kernels::rope::{Angles, Layout};
use crate::ops;
use crate::tensor::Tensor;
use std::sync::Arc;

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    // [tokens, heads, width of a head]
    let shape = size(device, quick, [[5, 3, 16], [8192, 32, 64], [8192, 32, 128]]);
    let [tokens, _, dim] = shape;
    let positions: Vec<i32> = (0..tokens as i32).collect();
    let frequencies: Vec<f32> =
        (0..dim / 2).map(|pair| 10_000f32.powf(-2.0 * pair as f32 / dim as f32)).collect();
    let angles = Arc::new(Angles::new(&positions, &frequencies, 1.0));
    for dtype in [DType::F32, DType::Bf16] {
        let x = inputs::tensor(device, dtype, &shape, 1)?;
        let (read, angles) = (x.clone(), Arc::clone(&angles));
        let frequencies = frequencies.clone();
        let error = move |y: &Tensor| {
            places(tokens).into_iter().try_fold(0f64, |largest, token| {
                // The angle is an f32 product, as models were trained.
                let turn = |pair: usize| f64::from(token as f32 * frequencies[pair]).sin_cos();
                let mut want = row(&x, token)?;
                for head in want.chunks_mut(dim) {
                    for pair in 0..dim / 2 {
                        let ((sin, cos), a, b) = (turn(pair), head[pair], head[pair + dim / 2]);
                        (head[pair], head[pair + dim / 2]) = (a * cos - b * sin, b * cos + a * sin);
                    }
                }
                let allowed = allowed(dtype);
                Ok(largest.max(worst_of(&row(y, token)?, &want, allowed, allowed)))
            })
        };
        let work = operation(move || ops::rope_with(&read, &angles, Layout::RotateHalf), error);
        // A cosine and a sine of each pair of a token, for all heads.
        let elements: usize = shape.iter().product();
        let bytes = 2 * elements * dtype.size() + 4 * tokens * dim;
        give(Case::bytes("forward", &shape, dtype, bytes, work))?;
    }
    Ok(())
}
