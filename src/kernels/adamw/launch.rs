//! AdamW on a device: checks and launches of `kernels/adamw.cu`.

use super::{Factors, Hyper, Norm, check_hyper};
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::args::{
    ADAMW_BF16, ADAMW_CHUNK, ADAMW_F16, ADAMW_F32, ADAMW_NO_COPY, AdamWArgs, AdamWParameter,
    GradientNorm, GradientNormArgs, GradientSquaresArgs,
};
use crate::kernels::row_walk::BLOCK;
use std::ptr::null_mut;
use std::sync::Arc;

/// One parameter and its state on the device, all of one length and f32 but the copy.
pub struct Parameter<'a> {
    /// Master weights.
    pub weight: DeviceSliceMut<'a>,
    /// Mean of gradients; zeros before the first step.
    pub mean: DeviceSliceMut<'a>,
    /// Mean of squared gradients; zeros before the first step.
    pub variance: DeviceSliceMut<'a>,
    /// The gradient.
    pub gradient: DeviceSlice<'a>,
    /// Gets the new weights in its own float type, rounded to nearest even.
    pub copy: Option<DeviceSliceMut<'a>>,
    /// Whether the weight decay acts on it.
    pub decays: bool,
}

/// What steps need beside the parameters: their table, the partial sums, the norm. It is kept from step to step.
pub struct Workspace {
    gpu: Arc<Gpu>,
    /// The table on the device, and as it was uploaded: addresses seldom change from step to step.
    table: DeviceBuffer,
    uploaded: Vec<u8>,
    partial: DeviceBuffer,
    result: DeviceBuffer,
}

impl Workspace {
    /// An empty one; it grows with the first step.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Workspace> {
        // A norm of 0, a scale of 1, no bad parameter.
        let none = [&[0; 8][..], &1f32.to_ne_bytes(), &(-1i32).to_ne_bytes()].concat();
        Ok(Workspace {
            gpu: Arc::clone(gpu),
            table: DeviceBuffer::recycled(gpu, DType::U8, 0)?,
            uploaded: Vec::new(),
            partial: DeviceBuffer::recycled(gpu, DType::I64, 0)?,
            result: DeviceBuffer::upload(gpu, DType::U8, &none)?,
        })
    }

    /// Step `step` (the first is 1) of AdamW on all `parameters`, their gradients scaled down to a global norm of `most`
    /// where there is a limit. Nothing waits: a step whose gradients hold a NaN or an infinity changes nothing, and
    /// [`Workspace::norm`] tells.
    ///
    /// # Errors
    /// As the CPU's [`step`](super::step), [`Error::is_dtype`] for a weight, moment or gradient that is not f32,
    /// [`Error::is_invalid`] for a limit that is not a positive number, and what the device reports.
    pub fn step(
        &mut self,
        hyper: &Hyper,
        step: u64,
        most: Option<f64>,
        parameters: &mut [Parameter<'_>],
    ) -> Result<()> {
        check_hyper(hyper, step, 1.0)?;
        let most = match most {
            None => f64::INFINITY,
            Some(most) if most > 0.0 => most,
            Some(most) => return Err(Error::invalid(format!("adamw: a largest norm of {most}"))),
        };
        let (table, chunks) = self.table_of(parameters)?;
        self.upload(&table, chunks)?;
        let (gpu, count) = (&self.gpu, parameters.len() as i64);
        let table = self.table.whole().ptr().cast::<AdamWParameter>();
        let partial = self.partial.whole_mut().ptr().cast::<f64>();
        let result = self.result.whole_mut().ptr().cast::<GradientNorm>();
        let over = |name, blocks: usize| Launch {
            kernel: Kernel::new("adamw", name),
            grid: gpu.item_grid(blocks),
            block: BLOCK,
            shared: 0,
        };
        let squares =
            GradientSquaresArgs { table, partial, parameters: count, chunks: chunks as i64 };
        // SAFETY: the table holds the parameters that were checked; there is a partial sum for each of its chunks.
        unsafe { gpu.launch(&over("gradient_squares", chunks), &squares)? };
        let norm = GradientNormArgs {
            table,
            partial,
            result,
            parameters: count,
            chunks: chunks as i64,
            most,
        };
        // SAFETY: as above; the result is one struct.
        unsafe { gpu.launch(&over("gradient_norm", 1), &norm)? };
        let factors = Factors::new(hyper, step, 1.0);
        let args = AdamWArgs {
            table,
            result,
            parameters: count,
            chunks: chunks as i64,
            keep: factors.keep,
            beta1: factors.beta1,
            beta2: factors.beta2,
            fresh1: factors.fresh1,
            fresh2: factors.fresh2,
            rate: factors.rate,
            correction2: factors.correction2,
            epsilon: factors.epsilon,
        };
        // SAFETY: as above; the result was written by the launch before.
        unsafe { gpu.launch(&over("adamw", chunks), &args) }
    }

    /// The rows of the table, and how many chunks they have together.
    fn table_of(&self, parameters: &mut [Parameter<'_>]) -> Result<(Vec<AdamWParameter>, usize)> {
        let mut chunks = 0;
        let mut table = Vec::with_capacity(parameters.len());
        for parameter in parameters {
            let Parameter { weight, mean, variance, gradient, copy, decays } = parameter;
            let len = weight.len();
            let lengths = [
                ("mean", mean.len()),
                ("variance", variance.len()),
                ("gradient", gradient.len()),
                ("copy", copy.as_ref().map_or(len, DeviceSliceMut::len)),
            ];
            if let Some((name, other)) = lengths.iter().find(|(_, other)| *other != len) {
                return Err(Error::shape(format!(
                    "adamw: {name} has {other} elements, the weight {len}"
                )));
            }
            let copy_type = match copy.as_ref().map(DeviceSliceMut::dtype) {
                None => ADAMW_NO_COPY,
                Some(DType::F32) => ADAMW_F32,
                Some(DType::Bf16) => ADAMW_BF16,
                Some(DType::F16) => ADAMW_F16,
                Some(other) => return Err(Error::dtype(format!("adamw: a copy in {other}"))),
            };
            table.push(AdamWParameter {
                weight: weight.typed::<f32>()?,
                mean: mean.typed::<f32>()?,
                variance: variance.typed::<f32>()?,
                gradient: gradient.typed::<f32>()?,
                copy: copy.as_mut().map_or(null_mut(), DeviceSliceMut::ptr),
                len: len as i64,
                first_chunk: chunks as i64,
                copy_type,
                decays: u32::from(*decays),
            });
            chunks += len.div_ceil(ADAMW_CHUNK as usize);
        }
        Ok((table, chunks))
    }

    /// Brings the table to the device, where it differs from what is there, and makes room for the partial sums.
    fn upload(&mut self, table: &[AdamWParameter], chunks: usize) -> Result<()> {
        // SAFETY: plain structs without padding are read as their bytes.
        let bytes =
            unsafe { std::slice::from_raw_parts(table.as_ptr().cast::<u8>(), size_of_val(table)) };
        if self.uploaded != bytes {
            // Forgotten first: a failed upload may leave anything there.
            self.uploaded.clear();
            self.table = DeviceBuffer::upload(&self.gpu, DType::U8, bytes)?;
            self.uploaded.extend_from_slice(bytes);
        }
        if self.partial.len() < chunks {
            self.partial = DeviceBuffer::recycled(&self.gpu, DType::I64, chunks)?;
        }
        Ok(())
    }

    /// The norm that the last step saw, and the place of the first of its parameters that kept it from being done. Waits
    /// for all that was launched.
    ///
    /// # Errors
    /// What the device reports.
    pub fn norm(&self) -> Result<Norm> {
        let mut bytes = [0u8; size_of::<GradientNorm>()];
        self.result.download(0..bytes.len(), &mut bytes)?;
        // SAFETY: any bits are a GradientNorm.
        let result: GradientNorm = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
        Ok(Norm { value: result.norm, non_finite: usize::try_from(result.bad).ok() })
    }
}
