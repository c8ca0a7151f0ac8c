//! Arithmetic by element: a sum, a function and its gradient.

use super::by_element::ByElement;
use super::{Give, size};
use crate::device::Device;
use crate::error::Result;
use crate::ops;

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let shape = [size(device, quick, [1001, 1 << 24, 1 << 28])];
    let add = ByElement {
        run: |x| ops::add(&x[0], &x[1]),
        inputs: 2,
        value: |x| x[0] + x[1],
        slope: |_, _| 1.0,
    };
    let exp = ByElement {
        run: |x| ops::exp(&x[0]),
        inputs: 1,
        value: |x| x[0].exp(),
        slope: |x, _| x[0].exp(),
    };
    add.forward("add", device, &shape, give)?;
    exp.forward("exp", device, &shape, give)?;
    exp.backward("exp_backward", device, &shape, give)
}
