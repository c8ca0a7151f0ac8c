//! Tensors on a device that runs the CUDA kernels: moving there and back, and device memory for kernel launches.

use super::{Memory, Storage, Tensor, elements};
use crate::device::Device;
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::sync::Arc;

impl Tensor {
    /// Where the elements are.
    pub fn device(&self) -> Device {
        match &self.memory {
            Memory::Host(_) => Device::Cpu,
            Memory::Device(buffer) => Device::Gpu(Arc::clone(buffer.gpu())),
        }
    }

    /// A tensor over device memory.
    ///
    /// # Errors
    /// [`Error::is_shape`] when the element counts differ.
    pub fn from_device(buffer: DeviceBuffer, shape: &[usize]) -> Result<Tensor> {
        if buffer.len() != elements(shape)? {
            return Err(Error::shape(format!(
                "a tensor of shape {shape:?} from {} elements",
                buffer.len()
            )));
        }
        let memory = Memory::Device(Arc::new(buffer));
        Ok(Tensor { memory, offset: 0, shape: shape.into(), edge: None })
    }

    /// Zeros on `device`.
    ///
    /// # Errors
    /// [`Error::is_shape`] for more elements than an address, [`Error::is_state`] when the device has no memory.
    pub fn zeros_on(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        match device {
            Device::Cpu => Tensor::zeros(shape, dtype),
            Device::Gpu(gpu) => {
                Tensor::from_device(DeviceBuffer::zeros(gpu, dtype, elements(shape)?)?, shape)
            }
        }
    }

    /// Elements of arbitrary content on `gpu`, to be written whole.
    pub(crate) fn recycled_on(shape: &[usize], dtype: DType, gpu: &Arc<Gpu>) -> Result<Tensor> {
        Tensor::from_device(DeviceBuffer::recycled(gpu, dtype, elements(shape)?)?, shape)
    }

    /// The same elements on `device`, outside the graph: itself when it is there already, a copy otherwise. A copy to
    /// the host waits for everything that was started on the device.
    ///
    /// # Errors
    /// [`Error::is_state`] when the device has no memory, and what it reports.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        match (&self.memory, device) {
            (Memory::Host(_), Device::Cpu) => Ok(self.detach()),
            (Memory::Host(_), Device::Gpu(gpu)) => {
                let buffer = DeviceBuffer::upload(gpu, self.dtype(), self.bytes()?)?;
                Tensor::from_device(buffer, self.shape())
            }
            (Memory::Device(buffer), Device::Cpu) => {
                let mut storage = Storage::recycled(self.dtype(), self.len());
                buffer.download(self.range(), storage.bytes_mut())?;
                Tensor::new(storage, self.shape())
            }
            (Memory::Device(buffer), Device::Gpu(gpu)) if Arc::ptr_eq(buffer.gpu(), gpu) => {
                Ok(self.detach())
            }
            (Memory::Device(_), Device::Gpu(_)) => self.to_device(&Device::Cpu)?.to_device(device),
        }
    }

    /// The device that runs the CUDA kernels and holds the elements; `None` for host memory.
    pub(crate) fn gpu(&self) -> Option<&Arc<Gpu>> {
        match &self.memory {
            Memory::Host(_) => None,
            Memory::Device(buffer) => Some(buffer.gpu()),
        }
    }

    /// The device that all of `tensors` are on, `None` for host memory.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] naming the first that is elsewhere: nothing is copied silently.
    pub(crate) fn common_gpu<'a>(op: &str, tensors: &[&'a Tensor]) -> Result<Option<&'a Arc<Gpu>>> {
        let Some((first, rest)) = tensors.split_first() else { return Ok(None) };
        let same = |a: Option<&Arc<Gpu>>, b: Option<&Arc<Gpu>>| match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        match rest.iter().find(|other| !same(first.gpu(), other.gpu())) {
            None => Ok(first.gpu()),
            Some(other) => Err(Error::unsupported(format!(
                "{op}: {first:?} ({}) and {other:?} ({}) are on different devices",
                first.device(),
                other.device()
            ))),
        }
    }

    /// The elements in device memory; [`Error::is_unsupported`] for host memory.
    pub fn device_slice(&self) -> Result<DeviceSlice<'_>> {
        match &self.memory {
            Memory::Device(buffer) => buffer.slice(self.range()),
            Memory::Host(_) => Err(self.not_on_device()),
        }
    }

    /// The elements in device memory for writing, copied first when something else holds them or when this is a part.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] for host memory, [`Error::is_state`] when the device has no memory for a copy.
    pub fn device_slice_mut(&mut self) -> Result<DeviceSliceMut<'_>> {
        if self.gpu().is_none() {
            return Err(self.not_on_device());
        }
        let range = self.range();
        let Memory::Device(buffer) = &mut self.memory else {
            return Err(Error::state("device memory of a host tensor"));
        };
        if buffer.len() != range.len() || Arc::get_mut(buffer).is_none() {
            let mut own = DeviceBuffer::recycled(buffer.gpu(), buffer.dtype(), range.len())?;
            own.whole_mut().copy_from(buffer.slice(range)?)?;
            *buffer = Arc::new(own);
            self.offset = 0;
        }
        match Arc::get_mut(buffer) {
            Some(buffer) => Ok(buffer.whole_mut()),
            None => Err(Error::state("device memory that was just copied is shared")),
        }
    }

    fn not_on_device(&self) -> Error {
        Error::unsupported(format!(
            "{self:?} in host memory where device memory is needed (copy it with to_device)"
        ))
    }
}
