//! Runs of a device's memory with their element type: what kernel launches take, checked here, so that the launch side
//! only compares lengths.
//!
//! A [`DeviceBuffer`] is memory, its own or borrowed; [`DeviceSlice`] and [`DeviceSliceMut`] are parts of one.

use super::Gpu;
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

/// A run of device memory with an element type.
pub struct DeviceBuffer {
    gpu: Arc<Gpu>,
    address: u64,
    len: usize,
    dtype: DType,
    /// False for memory of somebody else's, which is not given back.
    owned: bool,
}

impl DeviceBuffer {
    /// `len` elements of arbitrary content, to be written whole.
    ///
    /// # Errors
    /// [`Error::is_state`] when the device has no more memory.
    pub fn recycled(gpu: &Arc<Gpu>, dtype: DType, len: usize) -> Result<DeviceBuffer> {
        let bytes = len.checked_mul(dtype.size()).ok_or_else(|| {
            Error::shape(format!("{len} elements of {dtype} are more than an address"))
        })?;
        let address = if bytes == 0 { 0 } else { gpu.engine.allocate(bytes)? };
        Ok(DeviceBuffer { gpu: Arc::clone(gpu), address, len, dtype, owned: true })
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// As [`DeviceBuffer::recycled`].
    pub fn zeros(gpu: &Arc<Gpu>, dtype: DType, len: usize) -> Result<DeviceBuffer> {
        let mut buffer = DeviceBuffer::recycled(gpu, dtype, len)?;
        buffer.fill_bytes(0)?;
        Ok(buffer)
    }

    /// A copy of host memory, `bytes` being whole elements of `dtype`.
    ///
    /// # Errors
    /// [`Error::is_shape`] when they are not, and as [`DeviceBuffer::recycled`].
    pub fn upload(gpu: &Arc<Gpu>, dtype: DType, bytes: &[u8]) -> Result<DeviceBuffer> {
        if !bytes.len().is_multiple_of(dtype.size()) {
            return Err(Error::shape(format!("{} bytes are no run of {dtype}", bytes.len())));
        }
        let buffer = DeviceBuffer::recycled(gpu, dtype, bytes.len() / dtype.size())?;
        if !bytes.is_empty() {
            // SAFETY: the buffer has exactly as many bytes.
            unsafe { gpu.engine.upload(buffer.address, bytes)? };
        }
        Ok(buffer)
    }

    /// Memory of somebody else's on this device: another framework's tensor, used as it is.
    ///
    /// # Safety
    /// `address` is valid device memory of `len` elements for as long as the buffer lives.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for elements at address 0, at one that is not aligned to their type, or beyond the last
    /// address.
    pub unsafe fn borrowed(
        gpu: &Arc<Gpu>,
        dtype: DType,
        address: u64,
        len: usize,
    ) -> Result<DeviceBuffer> {
        let bytes = len.checked_mul(dtype.size()).and_then(|bytes| u64::try_from(bytes).ok());
        let wraps = bytes.is_none_or(|bytes| address.checked_add(bytes).is_none());
        let misplaced = address == 0 || !address.is_multiple_of(dtype.size() as u64);
        if wraps || (len > 0 && misplaced) {
            return Err(Error::invalid(format!(
                "{len} elements of {dtype} at address {address:#x} of {}",
                gpu.describe()
            )));
        }
        Ok(DeviceBuffer { gpu: Arc::clone(gpu), address, len, dtype, owned: false })
    }

    /// The device that holds it.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// What the device reports.
    pub fn fill_bytes(&mut self, byte: u8) -> Result<()> {
        self.whole_mut().fill_bytes(byte)
    }

    /// Copies `range` to host bytes, waiting for all that was launched.
    ///
    /// # Errors
    /// [`Error::is_shape`] when the lengths differ or the range does not lie inside, and what the device reports.
    pub fn download(&self, range: Range<usize>, to: &mut [u8]) -> Result<()> {
        let from = self.slice(range)?;
        if from.len * self.dtype.size() != to.len() {
            return Err(Error::shape(format!("{} elements into {} bytes", from.len, to.len())));
        }
        if to.is_empty() {
            return Ok(());
        }
        self.gpu.count_wait();
        // SAFETY: the slice lies in the buffer and has as many bytes as `to`.
        unsafe { self.gpu.engine.download(to, from.address) }
    }

    /// All of it, for reading.
    pub fn whole(&self) -> DeviceSlice<'_> {
        DeviceSlice { gpu: &self.gpu, address: self.address, len: self.len, dtype: self.dtype }
    }

    /// A part, for reading.
    ///
    /// # Errors
    /// [`Error::is_shape`] when it does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Result<DeviceSlice<'_>> {
        self.whole().slice(range)
    }

    /// All of it, for writing.
    pub fn whole_mut(&mut self) -> DeviceSliceMut<'_> {
        DeviceSliceMut { gpu: &self.gpu, address: self.address, len: self.len, dtype: self.dtype }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.owned && self.len > 0 {
            // SAFETY: allocated in `recycled` with this size; no slice outlives the buffer.
            unsafe { self.gpu.engine.release(self.address, self.len * self.dtype.size()) };
        }
    }
}

/// A run of device memory for reading.
#[derive(Clone, Copy)]
pub struct DeviceSlice<'a> {
    gpu: &'a Arc<Gpu>,
    address: u64,
    len: usize,
    dtype: DType,
}

/// A run of device memory for writing.
pub struct DeviceSliceMut<'a> {
    gpu: &'a Arc<Gpu>,
    address: u64,
    len: usize,
    dtype: DType,
}

impl<'a> DeviceSlice<'a> {
    /// The device that holds it.
    pub fn gpu(self) -> &'a Arc<Gpu> {
        self.gpu
    }

    /// Elements.
    pub fn len(self) -> usize {
        self.len
    }

    /// True when there is no element.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The element type.
    pub fn dtype(self) -> DType {
        self.dtype
    }

    /// The device address.
    pub fn address(self) -> u64 {
        self.address
    }

    /// The address as argument structs hold it.
    pub(crate) fn ptr(self) -> *const c_void {
        self.address as *const c_void
    }

    /// The address of elements that must be of type `T`.
    pub(crate) fn typed<T: DeviceElement>(self) -> Result<*const T> {
        expect::<T>(self.dtype)?;
        Ok(self.address as *const T)
    }

    /// A part.
    ///
    /// # Errors
    /// [`Error::is_shape`] when it does not lie inside.
    pub fn slice(self, range: Range<usize>) -> Result<DeviceSlice<'a>> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::shape(format!("range {range:?} of {} elements", self.len)));
        }
        let address = self.address + (range.start * self.dtype.size()) as u64;
        Ok(DeviceSlice { address, len: range.len(), ..self })
    }
}

impl DeviceSliceMut<'_> {
    /// The device that holds it.
    pub fn gpu(&self) -> &Arc<Gpu> {
        self.gpu
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The address as argument structs hold it.
    pub(crate) fn ptr(&mut self) -> *mut c_void {
        self.address as *mut c_void
    }

    /// The address of elements that must be of type `T`.
    pub(crate) fn typed<T: DeviceElement>(&mut self) -> Result<*mut T> {
        expect::<T>(self.dtype)?;
        Ok(self.address as *mut T)
    }

    /// The same run for reading.
    pub fn as_slice(&self) -> DeviceSlice<'_> {
        DeviceSlice { gpu: self.gpu, address: self.address, len: self.len, dtype: self.dtype }
    }

    /// The same run for a shorter time.
    pub fn reborrow(&mut self) -> DeviceSliceMut<'_> {
        DeviceSliceMut { gpu: self.gpu, address: self.address, len: self.len, dtype: self.dtype }
    }

    /// A part.
    ///
    /// # Errors
    /// [`Error::is_shape`] when it does not lie inside.
    pub fn slice_mut(&mut self, range: Range<usize>) -> Result<DeviceSliceMut<'_>> {
        let part = self.as_slice().slice(range)?;
        let (address, len) = (part.address, part.len);
        Ok(DeviceSliceMut { gpu: self.gpu, address, len, dtype: self.dtype })
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// What the device reports.
    pub fn fill_bytes(&mut self, byte: u8) -> Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: the range is this run.
        unsafe { self.gpu.engine.fill(self.address, byte, self.len * self.dtype.size()) }
    }

    /// Copies a run of the same type and length from the same device.
    ///
    /// # Errors
    /// [`Error::is_shape`], [`Error::is_dtype`] when they differ, and what the device reports.
    pub fn copy_from(&mut self, from: DeviceSlice<'_>) -> Result<()> {
        if from.dtype != self.dtype {
            return Err(Error::dtype(format!("a copy of {} to {}", from.dtype, self.dtype)));
        }
        if from.len != self.len {
            return Err(Error::shape(format!("a copy of {} to {} elements", from.len, self.len)));
        }
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: both are runs of this many bytes; a writable run overlaps no other.
        unsafe { self.gpu.engine.copy(self.address, from.address, self.len * self.dtype.size()) }
    }

    /// Copies host memory of the same length to it.
    ///
    /// # Errors
    /// [`Error::is_shape`] when the lengths differ, and what the device reports.
    pub fn upload_from(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() != self.len * self.dtype.size() {
            return Err(Error::shape(format!("{} bytes to {} elements", bytes.len(), self.len)));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: as many bytes as the run has.
        unsafe { self.gpu.engine.upload(self.address, bytes) }
    }
}

/// A Rust type that device memory of one [`DType`] is addressed as.
pub(crate) trait DeviceElement {
    /// The element type in memory.
    const DTYPE: DType;
}

macro_rules! device_elements {
    ($($T:ty => $dtype:ident),*) => { $(impl DeviceElement for $T { const DTYPE: DType = DType::$dtype; })* };
}
device_elements!(f32 => F32, i32 => I32, i64 => I64, u8 => U8);

fn expect<T: DeviceElement>(dtype: DType) -> Result<()> {
    if T::DTYPE == dtype {
        return Ok(());
    }
    Err(Error::dtype(format!("device memory of {dtype} where {} is needed", T::DTYPE)))
}
