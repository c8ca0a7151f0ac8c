//! AdamW over a model's parameters: who decays, which step is skipped, what is saved.
//!
//! The arithmetic is the kernel's. Weights that are matrices decay; norms and biases do not. A bf16 or f16 model keeps
//! f32 master weights here.

use crate::device::Device;
use crate::device::gpu::Gpu;
use crate::dtype::{DType, FloatSliceMut};
use crate::error::{Error, Result};
use crate::files::safetensors::SafetensorsFile;
use crate::kernels::adamw::launch::{Parameter, Workspace};
use crate::kernels::adamw::{self as kernel, Hyper, Norm};
use crate::nn::Parameters;
use crate::ops;
use crate::tensor::{Gradients, Tensor, file};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

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

/// f32 tensors of the parameter's shape, where the parameter is.
struct Moments {
    mean: Tensor,
    variance: Tensor,
    /// `None` for an f32 model, whose weights are their own masters.
    master: Option<Tensor>,
}

/// The optimizer and its state, on the device of the parameters.
pub struct AdamW {
    settings: AdamWSettings,
    moments: Vec<Moments>,
    steps: u64,
    /// What the kernels need beside the parameters, for those of a device.
    workspace: Option<Workspace>,
}

impl AdamW {
    /// A new optimizer for the parameters as they are now.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings out of range, [`Error::is_state`] when a device has no memory.
    pub fn new(settings: AdamWSettings, parameters: &Parameters) -> Result<AdamW> {
        settings.check()?;
        let moments = parameters
            .iter()
            .map(|parameter| {
                let value = parameter.value();
                let zeros = || Tensor::zeros_on(value.shape(), DType::F32, &value.device());
                let master = if value.dtype() == DType::F32 {
                    None
                } else {
                    Some(ops::cast(value, DType::F32)?)
                };
                Ok(Moments { mean: zeros()?, variance: zeros()?, master })
            })
            .collect::<Result<_>>()?;
        Ok(AdamW { settings, moments, steps: 0, workspace: None })
    }

    /// Updates every parameter that has a gradient, the rate multiplied by `factor`.
    ///
    /// A NaN or infinity in any gradient skips the whole step: nothing changes, the step does not count. On a device
    /// norm, decision and update are three launches that wait for nothing; at their end the norm is copied to the host
    /// for the [`Update`], which waits for the step.
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
        let mut found = Vec::new();
        for (index, parameter) in parameters.iter().enumerate() {
            if let Some(gradient) = gradients.get(parameter.id()) {
                indices.push(index);
                found.push(gradient);
            }
        }
        let norm = match Tensor::common_gpu("adamw", &found)? {
            Some(gpu) => self.step_on_device(gpu, parameters, &indices, &found, factor)?,
            None => self.step_on_host(parameters, &indices, &found, factor)?,
        };
        let grad_norm = norm.value as f32;
        if let Some(bad) = norm.non_finite {
            let index = indices.get(bad).copied().unwrap_or(usize::MAX);
            let name = parameters.iter().nth(index).map(|p| p.name().to_owned());
            return Ok(Update { grad_norm, skipped: name.or(Some("?".to_owned())) });
        }
        self.steps += 1;
        Ok(Update { grad_norm, skipped: None })
    }

    fn hyper(&self, factor: f64) -> Hyper {
        Hyper {
            learning_rate: self.settings.learning_rate * factor,
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            epsilon: self.settings.epsilon,
            weight_decay: self.settings.weight_decay,
        }
    }

    fn step_on_host(
        &mut self,
        parameters: &mut Parameters,
        indices: &[usize],
        gradients: &[&Tensor],
        factor: f64,
    ) -> Result<Norm> {
        let slices = gradients.iter().map(|g| g.f32s()).collect::<Result<Vec<&[f32]>>>()?;
        let norm = kernel::global_norm(&slices);
        if norm.non_finite.is_some() {
            return Ok(norm);
        }
        let limit = self.settings.max_grad_norm;
        let scale = if limit > 0.0 { norm.clip(limit) } else { 1.0 };
        let hyper = self.hyper(factor);
        for (index, gradient) in indices.iter().zip(slices) {
            let value = parameters.value_mut(*index)?;
            let plain = Hyper { weight_decay: 0.0, ..hyper };
            let hyper = if decays(value) { &hyper } else { &plain };
            let Moments { mean, variance, master } = &mut self.moments[*index];
            let (mean, variance) = (f32s_mut(mean)?, f32s_mut(variance)?);
            let (weight, copy) = match (master, value.storage_mut()?.floats_mut()) {
                (None, Some(FloatSliceMut::F32(weight))) => (weight, None),
                (Some(master), Some(copy)) => (f32s_mut(master)?, Some(copy)),
                (_, None) => return Err(Error::dtype("adamw: a parameter of integers")),
                (None, _) => {
                    return Err(Error::state("adamw: no master weights for a 16-bit parameter"));
                }
            };
            let parameter = kernel::Parameter { weight, mean, variance, gradient, copy };
            kernel::step(hyper, self.steps + 1, scale, parameter)?;
        }
        Ok(norm)
    }

    /// All parameters at once; the norm is the only thing that comes back, at the end.
    fn step_on_device(
        &mut self,
        gpu: &Arc<Gpu>,
        parameters: &mut Parameters,
        indices: &[usize],
        gradients: &[&Tensor],
        factor: f64,
    ) -> Result<Norm> {
        let hyper = self.hyper(factor);
        let mut with_gradient = indices.iter().zip(gradients).peekable();
        let mut table = Vec::with_capacity(indices.len());
        let states = parameters.values_mut().zip(&mut self.moments).enumerate();
        for (index, (value, moments)) in states {
            let Some((_, gradient)) = with_gradient.next_if(|(wanted, _)| **wanted == index) else {
                continue;
            };
            let decays = decays(value);
            let value = value.device_slice_mut()?;
            let (weight, copy) = match &mut moments.master {
                None => (value, None),
                Some(master) => (master.device_slice_mut()?, Some(value)),
            };
            table.push(Parameter {
                weight,
                mean: moments.mean.device_slice_mut()?,
                variance: moments.variance.device_slice_mut()?,
                gradient: gradient.device_slice()?,
                copy,
                decays,
            });
        }
        let workspace = match &mut self.workspace {
            Some(workspace) => workspace,
            none => none.insert(Workspace::new(gpu)?),
        };
        let limit = Some(self.settings.max_grad_norm).filter(|limit| *limit > 0.0);
        workspace.step(&hyper, self.steps + 1, limit, &mut table)?;
        workspace.norm()
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
            for (kind, tensor) in parts {
                if let Some(tensor) = tensor {
                    let tensor = tensor.to_device(&Device::Cpu)?;
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
        let read = |kind: &str, name: &str, into: &mut Tensor| {
            let name = format!("{kind}.{name}");
            let tensor = file::read(&stored, &name)?;
            tensor.f32s()?;
            if tensor.shape() != into.shape() {
                return Err(bad(format!(
                    "`{name}` is {:?}, not {:?}",
                    tensor.shape(),
                    into.shape()
                )));
            }
            *into = tensor.to_device(&into.device())?;
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

/// Matrices decay; norms and biases do not.
fn decays(value: &Tensor) -> bool {
    value.shape().len() >= 2
}

/// The elements of an f32 tensor in host memory, for writing.
fn f32s_mut(tensor: &mut Tensor) -> Result<&mut [f32]> {
    match tensor.storage_mut()?.floats_mut() {
        Some(FloatSliceMut::F32(values)) => Ok(values),
        _ => Err(Error::dtype("adamw: a moment that is not f32")),
    }
}
