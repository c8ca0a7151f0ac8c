//! Autograd with an operation of your own: write the forward pass, record what the backward pass needs, and every optimizer
//! and every other operation works with it.
//!
//! The operation is the Huber loss `h(x) = x²/2` for `|x| <= d`, else `d (|x| - d/2)`, summed. A line is fitted through points of
//! which one is far off.
//!
//! ```sh
//! cargo run --release --example own_op
//! ```

use gradstone::nn::Parameters;
use gradstone::optim::{AdamW, AdamWSettings};
use gradstone::tensor::Gradients;
use gradstone::tensor::autograd::{self, Backward, Grads, record};
use gradstone::{DType, Error, Result, Tensor, ops};

/// What the gradient needs: the residuals, and where the loss turns from a square into a line.
struct Huber {
    residual: Tensor,
    bound: f32,
}

impl Backward for Huber {
    fn name(&self) -> &'static str {
        "huber"
    }

    fn backward(self: Box<Self>, grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let Some(Some(upstream)) = grads.first() else { return Ok(vec![None]) };
        let factor = upstream.item()?;
        let clipped =
            self.residual.f32s()?.iter().map(|x| factor * x.clamp(-self.bound, self.bound));
        Ok(vec![Some(Tensor::from_f32(clipped.collect(), self.residual.shape())?)])
    }
}

/// The summed Huber loss of `residual [n]`.
fn huber(residual: &Tensor, bound: f32) -> Result<Tensor> {
    let one = |x: &f32| {
        let size = x.abs();
        if size <= bound { 0.5 * x * x } else { bound * (size - 0.5 * bound) }
    };
    let loss = Tensor::scalar(residual.f32s()?.iter().map(one).sum());
    // The only door into the graph; nothing is saved where nothing is tracked.
    let save = || Huber { residual: residual.detach(), bound };
    record(&[residual], vec![loss], save).pop().ok_or_else(|| Error::state("no output"))
}

fn main() -> Result<()> {
    // y = 3 x + 1, and one point that is not.
    let x: Vec<f32> = (0..20).map(|i| i as f32 / 10.0).collect();
    let mut y: Vec<f32> = x.iter().map(|x| 3.0 * x + 1.0).collect();
    y[7] = 100.0;
    let (x, y) = (Tensor::from_f32(x, &[20, 1])?, Tensor::from_f32(y, &[20])?);

    let mut parameters = Parameters::new();
    let slope = parameters.add("slope", Tensor::zeros(&[1, 1], DType::F32)?)?;
    let offset = parameters.add("offset", Tensor::zeros(&[1], DType::F32)?)?;
    let settings = AdamWSettings { learning_rate: 0.05, weight_decay: 0.0, ..Default::default() };
    let mut optimizer = AdamW::new(settings, &parameters)?;
    let mut loss = f32::INFINITY;
    for _ in 0..600 {
        let line = ops::linear(&x, &parameters.get(slope), Some(&parameters.get(offset)))?;
        let residual = ops::sub(&ops::reshape(&line, &[20])?, &y)?;
        let value = huber(&residual, 0.5)?;
        let mut gradients = Gradients::new();
        autograd::backward(&value, &mut gradients)?;
        optimizer.step(&mut parameters, &gradients, 1.0)?;
        loss = value.item()?;
    }
    let (slope, offset) = (parameters.get(slope).item()?, parameters.get(offset).item()?);
    println!("y = {slope:.2} x + {offset:.2}, loss {loss:.2}");
    if (slope - 3.0).abs() > 0.1 || (offset - 1.0).abs() > 0.2 {
        return Err(Error::state("the point that is far off has pulled the line away"));
    }
    Ok(())
}
