//! A linear head that reads the value of a token from the hidden state that predicts it, and its loss.

use super::batch::{Batch, Column, host, missing};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::files::safetensors::SafetensorsFile;
use crate::kernels::policy_loss::{Totals, ValueInputs, ValueLoss, value_loss};
use crate::nn::Parameters;
use crate::ops;
use crate::tensor::{Tensor, file};
use std::path::Path;

/// A linear layer from hidden states to values.
pub struct ValueHead {
    parameters: Parameters,
    loss: ValueLoss,
    coefficient: f32,
}

impl ValueHead {
    /// A head that gives 0 for everything.
    ///
    /// # Errors
    /// When the device has no memory.
    pub fn new(
        width: usize,
        loss: ValueLoss,
        coefficient: f32,
        device: &Device,
    ) -> Result<ValueHead> {
        let mut parameters = Parameters::new();
        parameters.add("value_head.weight", Tensor::zeros_on(&[1, width], DType::F32, device)?)?;
        parameters.add("value_head.bias", Tensor::zeros_on(&[1], DType::F32, device)?)?;
        Ok(ValueHead { parameters, loss, coefficient })
    }

    /// Its weight and its bias.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Writes weight and bias.
    ///
    /// # Errors
    /// [`Error::is_io`](crate::Error::is_io).
    pub fn save(&self, path: &Path) -> Result<()> {
        file::write(path, self.parameters.iter().map(|one| (one.name(), one.value())), &[])
    }

    /// Reads what [`ValueHead::save`] wrote.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let stored = SafetensorsFile::open(path)?;
        for index in 0..self.parameters.len() {
            let parameter = self.parameters.get(index);
            let name = self.parameters.iter().nth(index).map(|one| one.name().to_owned());
            let value = file::read(&stored, &name.unwrap_or_default())?;
            let value = value.to_device(&parameter.device())?;
            self.parameters.set(index, value).map_err(|e| e.at(path.display()))?;
        }
        Ok(())
    }

    /// Its weight and its bias, for an optimizer.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// The values of hidden states.
    ///
    /// # Shapes
    /// `hidden [rows, width]`; f32 `[rows]`.
    ///
    /// # Errors
    /// [`Error::is_shape`](crate::Error::is_shape) when the width differs.
    pub fn values(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = ops::cast(hidden, DType::F32)?;
        let (weight, bias) = (self.parameters.get(0), self.parameters.get(1));
        let values = ops::linear(&hidden, &weight, Some(&bias))?;
        ops::reshape(&values, &[hidden.leading()])
    }

    /// The loss of the values of some episodes, and the gradient that goes on into the hidden states: `(loss, (values,
    /// gradient by each value))`.
    ///
    /// # Errors
    /// [`Error::is_state`](crate::Error::is_state) where the batch has no values and returns, and what the device reports.
    pub fn loss(
        &self,
        hidden: &Tensor,
        batch: &Batch,
        members: &[usize],
        totals: Totals,
    ) -> Result<(f64, (Tensor, Tensor))> {
        let values = self.values(hidden)?;
        let of = |column: &Option<Tensor>, name| -> Result<Vec<f32>> {
            host(&batch.part(column.as_ref().ok_or_else(|| missing(name))?, members)?)
        };
        let old = of(&batch.value, Column::Value)?;
        let target = of(&batch.returns, Column::Return)?;
        let mask = batch.part(batch.mask(), members)?.to_device(&Device::Cpu)?;
        let mut offsets = vec![0i64];
        for i in members {
            offsets.push(offsets[offsets.len() - 1] + batch.episodes[*i].tokens.len() as i64);
        }
        let now = host(&values)?;
        let mut gradient = vec![0f32; now.len()];
        let inputs = ValueInputs {
            value: &now,
            old_value: &old,
            target: &target,
            mask: mask.bytes()?,
            offsets: &offsets,
            totals,
        };
        let metrics = value_loss(&self.loss, &inputs, &mut gradient)?;
        gradient.iter_mut().for_each(|g| *g *= self.coefficient);
        let gradient = Tensor::from_f32(gradient, values.shape())?.to_device(&values.device())?;
        Ok((metrics.loss, (values, gradient)))
    }
}
