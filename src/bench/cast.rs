//! Conversions between storage types.

use super::operation::operation;
use super::reference::{differs, host, runs};
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::ops;
use crate::tensor::Tensor;

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let len = size(device, quick, [1001, 1 << 24, 1 << 28]);
    for (part, from, to) in
        [("to_bf16", DType::F32, DType::Bf16), ("to_f32", DType::Bf16, DType::F32)]
    {
        let x = inputs::tensor(device, from, &[len], 1)?;
        let read = x.clone();
        let error = move |y: &Tensor| {
            let mut largest = 0f64;
            for run in runs(len) {
                let want = inputs::rounded(to, &host(&x.rows(run.clone())?)?);
                largest = largest.max(differs(&host(&y.rows(run)?)?, &want));
            }
            Ok(largest)
        };
        let work = operation(move || ops::cast(&read, to), error);
        give(Case::bytes(part, &[len], from, 6 * len, work))?;
    }
    Ok(())
}
