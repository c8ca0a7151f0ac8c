//! The engine over the driver: one stream, in order.

use super::CudaOptions;
use super::blas::Blas;
use super::context::Context;
use super::driver::{DeviceInfo, Driver};
use super::images;
use super::memory::Memory;
use super::modules::{self, Modules};
use super::staging::Staging;
use crate::device::engine::{Engine, Launch, Product};
use crate::error::{Error, Result};
use cudarc::driver::sys::CUstream;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

/// One GPU through the driver. Fields are dropped in this order: users of memory before the memory.
pub(super) struct Cuda {
    blas: std::result::Result<Blas, String>,
    modules: Modules,
    staging: Mutex<Staging>,
    memory: Arc<Memory>,
    context: Arc<Context>,
}

impl Cuda {
    /// # Safety
    /// As [`Context::open`] for the stream.
    pub(super) unsafe fn open(
        driver: &'static Driver,
        device: &DeviceInfo,
        stream: Option<CUstream>,
        options: &CudaOptions,
    ) -> Result<Cuda> {
        for image in images::all() {
            modules::check(image, device, driver.version())?;
        }
        // SAFETY: the caller's promise.
        let context = Arc::new(unsafe { Context::open(driver, device, stream)? });
        let memory = Arc::new(Memory::new(&context)?);
        let staging = Mutex::new(Staging::new(&context)?);
        let blas = Blas::new(&context, &memory, options.cublaslt.as_deref(), options.tf32);
        Ok(Cuda { blas, modules: Modules::new(&context), staging, memory, context })
    }
}

// SAFETY: memory comes from the driver (aligned to at least 256 bytes) and everything runs on one stream, so in the order
// of the calls; memory that is released is reused in that order too.
unsafe impl Engine for Cuda {
    fn describe(&self) -> String {
        self.context.describe()
    }

    fn multiprocessors(&self) -> u32 {
        self.context.device.multiprocessors
    }

    fn shared_limit(&self) -> u32 {
        self.context.device.shared_limit
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.memory.allocate(bytes)
    }

    unsafe fn release(&self, address: u64, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.memory.release(address, bytes) };
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's promise.
        unsafe { staging.upload(to, from) }
    }

    unsafe fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        let current = self.context.enter()?;
        // SAFETY: the caller's promise; `to` is not touched until the stream has been waited for.
        let copied = unsafe {
            self.context.functions().cuMemcpyDtoHAsync_v2(
                to.as_mut_ptr().cast(),
                from,
                to.len(),
                self.context.stream,
            )
        };
        self.context.done(copied, || {
            format!("downloading {} bytes from {}", to.len(), self.context.describe())
        })?;
        drop(current);
        self.context.wait()
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the caller's promise.
        let copied = unsafe {
            self.context.functions().cuMemcpyDtoDAsync_v2(to, from, bytes, self.context.stream)
        };
        self.context
            .done(copied, || format!("copying {bytes} bytes on {}", self.context.describe()))
    }

    unsafe fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the caller's promise.
        let filled = unsafe {
            self.context.functions().cuMemsetD8Async(address, byte, bytes, self.context.stream)
        };
        self.context
            .done(filled, || format!("filling {bytes} bytes on {}", self.context.describe()))
    }

    unsafe fn launch(&self, launch: &Launch, args: &[u8]) -> Result<()> {
        let _current = self.context.enter()?;
        let function = self.modules.function(launch.kernel, launch.shared, args.len())?;
        let [x, y, z] = launch.grid;
        // The driver reads the struct through this pointer before the call returns.
        let mut parameters = [args.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the caller's promise for the struct, whose size was compared with the image's.
        let started = unsafe {
            self.context.functions().cuLaunchKernel(
                function.handle,
                x,
                y,
                z,
                launch.block,
                1,
                1,
                launch.shared,
                self.context.stream,
                parameters.as_mut_ptr(),
                null_mut(),
            )
        };
        self.context.done(started, || "cuLaunchKernel".to_owned())?;
        self.context.launched(launch);
        Ok(())
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        if product.k == 0 {
            // An empty sum, which the library does not take.
            let bytes = product.m * product.n * product.batch * product.out_dtype.size();
            return match product.accumulate {
                true => Ok(()),
                // SAFETY: the result holds this many bytes.
                false => unsafe { self.fill(product.out, 0, bytes) },
            };
        }
        let blas = self.blas.as_ref().map_err(Error::unsupported)?;
        // SAFETY: the caller's promise; Gpu::product asks for nothing where a dimension is 0.
        unsafe { blas.product(product) }
    }

    fn wait(&self) -> Result<()> {
        self.context.wait()
    }
}
