//! Norms of rows, RMSNorm and LayerNorm, and their gradients.

use super::operation::{backward, operation};
use super::reference::{allowed, host, places, row, worst, worst_of};
use super::sizes::Sizes;
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::ops;
use crate::tensor::Tensor;

const EPSILON: f32 = 1e-6;

#[derive(Clone, Copy, PartialEq)]
enum Norm {
    Rms,
    Layer,
}

pub(super) fn rms_norm(device: &Device, sizes: &Sizes, give: &mut Give<'_>) -> Result<()> {
    Norm::Rms.cases(device, sizes, give)
}

pub(super) fn layer_norm(device: &Device, sizes: &Sizes, give: &mut Give<'_>) -> Result<()> {
    Norm::Layer.cases(device, sizes, give)
}

impl Norm {
    fn cases(self, device: &Device, sizes: &Sizes, give: &mut Give<'_>) -> Result<()> {
        let own = size(device, sizes.quick, [[5, 130], [4096, 4096], [32_768, 4096]]);
        let shapes = sizes.shapes(&[own]);
        shapes.into_iter().try_for_each(|shape| self.of_shape(device, shape, sizes, give))
    }

    fn of_shape(
        self,
        device: &Device,
        shape: [usize; 2],
        sizes: &Sizes,
        give: &mut Give<'_>,
    ) -> Result<()> {
        let [rows, width] = shape;
        for dtype in sizes.dtypes(&[DType::F32, DType::Bf16]) {
            // x, weight, and the bias of a LayerNorm.
            let mut read = vec![
                inputs::tensor(device, dtype, &shape, 1)?,
                inputs::tensor(device, dtype, &[width], 2)?,
            ];
            if self == Norm::Layer {
                read.push(inputs::tensor(device, dtype, &[width], 3)?);
            }
            let (of, known) = (read.clone(), read.clone());
            let work = operation(
                move || self.apply(&of),
                move |y: &Tensor| self.error(&known, y, allowed(dtype)),
            );
            let elements = rows * width;
            give(Case::bytes("forward", &shape, dtype, 2 * elements * dtype.size(), work))?;

            let upstream = inputs::tensor(device, DType::F32, &shape, 4)?;
            let (known, dy) = (read.clone(), upstream.clone());
            let error = move |gradients: &[Tensor]| self.gradient_error(&known, &dy, gradients);
            let work = backward(read, upstream, move |of| self.apply(of), error);
            // x and the gradient of y once, the gradient of x.
            give(Case::bytes("backward", &shape, dtype, (dtype.size() + 8) * elements, work))?;
        }
        Ok(())
    }

    fn apply(self, of: &[Tensor]) -> Result<Tensor> {
        match self {
            Norm::Rms => ops::rms_norm(&of[0], &of[1], EPSILON, false),
            Norm::Layer => ops::layer_norm(&of[0], &of[1], &of[2], EPSILON),
        }
    }

    /// A row before weight and bias, and the factor that it was multiplied by.
    fn normalized(self, x: &[f64]) -> (Vec<f64>, f64) {
        let mean_of = |values: &dyn Fn(f64) -> f64| {
            x.iter().map(|x| values(*x)).sum::<f64>() / x.len() as f64
        };
        let mean = if self == Norm::Layer { mean_of(&|x| x) } else { 0.0 };
        let variance = mean_of(&|x| (x - mean) * (x - mean));
        let inverse = (variance + f64::from(EPSILON)).sqrt().recip();
        (x.iter().map(|x| (x - mean) * inverse).collect(), inverse)
    }

    fn error(self, of: &[Tensor], y: &Tensor, allowed: f64) -> Result<f64> {
        let weight = host(&of[1])?;
        let bias = of.get(2).map_or(Ok(vec![0.0; weight.len()]), host)?;
        let mut largest = 0f64;
        for at in places(y.leading()) {
            let (normalized, _) = self.normalized(&row(&of[0], at)?);
            let parameters = weight.iter().zip(&bias);
            let want = normalized.iter().zip(parameters);
            let want = want.map(|(x, (w, b))| x * f64::from(*w) + f64::from(*b));
            largest = largest.max(worst(row(y, at)?.into_iter().zip(want), allowed, allowed));
        }
        Ok(largest)
    }

    /// The gradient of x in some rows; those of weight and bias, sums over all rows, in some columns.
    fn gradient_error(self, of: &[Tensor], dy: &Tensor, gradients: &[Tensor]) -> Result<f64> {
        let weight = row(&of[1].view(&[1, of[1].len()])?, 0)?;
        let (rows, width) = (dy.leading(), weight.len());
        let mut largest = 0f64;
        for at in places(rows) {
            let (normalized, inverse) = self.normalized(&row(&of[0], at)?);
            let scaled: Vec<f64> =
                row(dy, at)?.iter().zip(&weight).map(|(dy, weight)| dy * weight).collect();
            let mean = |of: f64| of / width as f64;
            let along = mean(scaled.iter().zip(&normalized).map(|(g, x)| g * x).sum());
            let level = if self == Norm::Layer { mean(scaled.iter().sum()) } else { 0.0 };
            let want = scaled.iter().zip(&normalized);
            let want: Vec<f64> = want.map(|(g, x)| inverse * (g - level - x * along)).collect();
            largest = largest.max(worst_of(&row(&gradients[0], at)?, &want, 1e-5, 1e-4));
        }
        let (x, dy) = (host(&of[0])?, host(dy)?);
        let columns = places(width);
        let mut of_weight = vec![0f64; columns.len()];
        let mut of_bias = of_weight.clone();
        for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let (normalized, _) = self.normalized(&x);
            for (i, column) in columns.iter().enumerate() {
                of_weight[i] += f64::from(dy[*column]) * normalized[*column];
                of_bias[i] += f64::from(dy[*column]);
            }
        }
        for (gradient, want) in gradients[1..].iter().zip([of_weight, of_bias]) {
            let gradient = host(gradient)?;
            let got: Vec<f64> = columns.iter().map(|column| f64::from(gradient[*column])).collect();
            // Rounding of the sums grows with the rows.
            largest = largest.max(worst_of(&got, &want, 1e-5 + 1e-6 * rows as f64, 1e-5));
        }
        Ok(largest)
    }
}
