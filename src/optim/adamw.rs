//! AdamW over a model's parameters: who decays, which step is skipped, what is saved.
//!
//! The arithmetic is the kernel's. Weights that are matrices decay; norms and biases do not. A bf16 or f16 model keeps
//! f32 master weights here.

use crate::device::cpu::memory::Buffer;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::files::safetensors::SafetensorsFile;
use crate::kernels::adamw::{self as kernel, Hyper};
use crate::nn::Parameters;
use crate::tensor::{Gradients, Tensor, file};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How parameters are updated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWSettings {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled decay of matrices; norms and biases never decay.
    pub weight_decay: f64,
    /// The largest global gradient norm; larger gradients are scaled down to it. 0: no limit.
    pub max_grad_norm: f64,
}

impl Default for AdamWSettings {
    fn default() -> AdamWSettings {
        AdamWSettings {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
        }
    }
}

impl AdamWSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, value: f64| Err(Error::invalid(format!("{name} is {value}")));
        for (name, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return wrong(name, value);
            }
        }
        let positive = [
            ("learning_rate", self.learning_rate),
            ("epsilon", self.epsilon),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
        ];
        match positive.into_iter().find(|(_, value)| !(*value >= 0.0 && value.is_finite())) {
            Some((name, value)) => wrong(name, value),
            None => Ok(()),
        }
    }
}

/// What one step did.
#[derive(Clone, Debug)]
pub struct Update {
    /// Global gradient norm before clipping.
    pub grad_norm: f32,
    /// The first parameter whose gradient held a NaN or infinity: nothing was updated.
    pub skipped: Option<String>,
}

struct Moments {
    mean: Buffer<f32>,
    variance: Buffer<f32>,
    /// `None` for an f32 model, whose weights are their own masters.
    master: Option<Buffer<f32>>,
}

/// The optimizer and its state.
pub struct AdamW {
    settings: AdamWSettings,
    moments: Vec<Moments>,
    steps: u64,
}

impl AdamW {
    /// A new optimizer for the parameters as they are now.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings out of range.
    pub fn new(settings: AdamWSettings, parameters: &Parameters) -> Result<AdamW> {
        settings.check()?;
        let moments = parameters
            .iter()
            .map(|parameter| {
                let value = parameter.value();
                let master = if value.dtype() == DType::F32 {
                    None
                } else {
                    Some(Buffer::copy_of(&value.to_f32s()?))
                };
                let (mean, variance) = (Buffer::zeroed(value.len()), Buffer::zeroed(value.len()));
                Ok(Moments { mean, variance, master })
            })
            .collect::<Result<_>>()?;
        Ok(AdamW { settings, moments, steps: 0 })
    }

    /// Updates every parameter that has a gradient, the rate multiplied by `factor`.
    ///
    /// A NaN or infinity in any gradient skips the whole step: nothing changes, the step does not count.
    ///
    /// # Errors
    /// [`Error::is_state`] when `parameters` are not those that the optimizer was made for.
    pub fn step(
        &mut self,
        parameters: &mut Parameters,
        gradients: &Gradients,
        factor: f64,
    ) -> Result<Update> {
        if parameters.len() != self.moments.len() {
            return Err(Error::state(format!(
                "adamw: made for {} parameters, called with {}",
                self.moments.len(),
                parameters.len()
            )));
        }
        let mut indices = Vec::new();
        let mut slices = Vec::new();
        for (index, parameter) in parameters.iter().enumerate() {
            if let Some(gradient) = gradients.get(parameter.id()) {
                indices.push(index);
                slices.push(gradient.f32s()?);
            }
        }
        let norm = kernel::global_norm(&slices);
        let grad_norm = norm.value as f32;
        if let Some(bad) = norm.non_finite {
            let name = parameters.iter().nth(indices[bad]).map(|p| p.name().to_owned());
            return Ok(Update { grad_norm, skipped: name.or(Some("?".to_owned())) });
        }
        let limit = self.settings.max_grad_norm;
        let scale = if limit > 0.0 { norm.clip(limit) } else { 1.0 };
        self.steps += 1;
        for (index, gradient) in indices.into_iter().zip(slices) {
            self.update(parameters.value_mut(index)?, index, gradient, scale, factor)?;
        }
        Ok(Update { grad_norm, skipped: None })
    }

    fn update(
        &mut self,
        value: &mut Tensor,
        index: usize,
        gradient: &[f32],
        scale: f32,
        factor: f64,
    ) -> Result<()> {
        let matrix = value.shape().len() >= 2;
        let hyper = Hyper {
            learning_rate: self.settings.learning_rate * factor,
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            epsilon: self.settings.epsilon,
            weight_decay: if matrix { self.settings.weight_decay } else { 0.0 },
        };
        let Moments { mean, variance, master } = &mut self.moments[index];
        let storage = value.storage_mut()?;
        let Some(floats) = storage.floats_mut() else {
            return Err(Error::dtype("adamw: a parameter of integers"));
        };
        let (weight, copy) = match (master, floats) {
            (None, crate::dtype::FloatSliceMut::F32(weight)) => (weight, None),
            (Some(master), copy) => (&mut master[..], Some(copy)),
            (None, _) => {
                return Err(Error::state("adamw: no master weights for a 16-bit parameter"));
            }
        };
        let parameter = kernel::Parameter { weight, mean, variance, gradient, copy };
        kernel::step(&hyper, self.steps, scale, parameter)
    }

    /// Writes the state to a safetensors file: `mean.NAME`, `variance.NAME`, `master.NAME`, and the step count.
    ///
    /// # Errors
    /// [`Error::is_io`] when it cannot be written.
    pub fn save(&self, parameters: &Parameters, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for (parameter, moments) in parameters.iter().zip(&self.moments) {
            let parts = [
                ("mean", Some(&moments.mean)),
                ("variance", Some(&moments.variance)),
                ("master", moments.master.as_ref()),
            ];
            for (kind, buffer) in parts {
                if let Some(buffer) = buffer {
                    let shape = parameter.value().shape();
                    let tensor = Tensor::from_buffer(buffer.clone(), shape, DType::F32)?;
                    tensors.push((format!("{kind}.{}", parameter.name()), tensor));
                }
            }
        }
        let steps = self.steps.to_string();
        let list = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        file::write(path, list, &[("steps", &steps)])
    }

    /// Reads what [`AdamW::save`] wrote.
    ///
    /// # Errors
    /// [`Error::is_format`] when something is missing or of another shape, [`Error::is_io`].
    pub fn load(settings: AdamWSettings, parameters: &Parameters, path: &Path) -> Result<AdamW> {
        let mut optimizer = AdamW::new(settings, parameters)?;
        let stored = SafetensorsFile::open(path)?;
        let bad = |what: String| Error::format(format!("{}: {what}", path.display()));
        let steps = stored.metadata().get("steps").and_then(|s| s.parse().ok());
        optimizer.steps = steps.ok_or_else(|| bad("no step count".to_owned()))?;
        let read = |kind: &str, name: &str, into: &mut Buffer<f32>| {
            let name = format!("{kind}.{name}");
            let tensor = file::read(&stored, &name)?;
            let values = tensor.f32s()?;
            if values.len() != into.len() {
                return Err(bad(format!(
                    "`{name}` has {} elements, not {}",
                    values.len(),
                    into.len()
                )));
            }
            into.copy_from_slice(values);
            Ok(())
        };
        for (parameter, moments) in parameters.iter().zip(&mut optimizer.moments) {
            read("mean", parameter.name(), &mut moments.mean)?;
            read("variance", parameter.name(), &mut moments.variance)?;
            if let Some(master) = &mut moments.master {
                read("master", parameter.name(), master)?;
            }
        }
        Ok(optimizer)
    }
}
