//! One GPU's context and the stream that everything runs on, in order; what failed on it and whether it is lost.

use super::code::Code;
use super::driver::{DeviceInfo, Driver, Functions, version_text};
use crate::device::engine::Launch;
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUcontext, CUdevice, CUstream};
use std::ptr::null_mut;
use std::sync::{Mutex, OnceLock, PoisonError};

/// A stream that does not wait for the legacy default stream.
const NON_BLOCKING: u32 = 1;

/// Handles up to this value name the default streams, which belong to whatever context is current.
const LAST_SPECIAL_STREAM: usize = 2;

/// The primary context of a GPU, which other libraries of the process share, and a stream in it.
pub(super) struct Context {
    pub(super) driver: &'static Driver,
    pub(super) device: DeviceInfo,
    pub(super) stream: CUstream,
    owns_stream: bool,
    handle: CUcontext,
    number: CUdevice,
    /// What was launched last: where a failure that shows later is to be looked for.
    last: Mutex<Option<Launch>>,
    /// The failure after which nothing works any more.
    lost: OnceLock<String>,
}

// SAFETY: the driver's handles may be used from any thread; a context is made current on the thread for each call.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks its own state.
unsafe impl Sync for Context {}

/// While it lives the context is current on this thread; what was current before comes back after it.
pub(super) struct Current<'a> {
    context: &'a Context,
    pushed: bool,
}

impl Context {
    /// The GPU's primary context with a stream of its own, or on `stream`.
    ///
    /// # Safety
    /// `stream` is a stream of this GPU's primary context (or 0, the default stream), valid as long as the context is.
    pub(super) unsafe fn open(
        driver: &'static Driver,
        device: &DeviceInfo,
        stream: Option<CUstream>,
    ) -> Result<Context> {
        let mut number = 0;
        let mut context = Context {
            driver,
            device: device.clone(),
            stream: null_mut(),
            owns_stream: false,
            handle: null_mut(),
            number,
            last: Mutex::new(None),
            lost: OnceLock::new(),
        };
        let functions = &driver.functions;
        let doing = |what| move || format!("{what} of cuda:{} ({})", device.ordinal, device.name);
        // SAFETY: results go to locals; the device number comes from the driver.
        unsafe {
            let found = functions.cuDeviceGet(&mut number, device.ordinal as i32);
            context.done(found, doing("finding the device"))?;
            let retained = functions.cuDevicePrimaryCtxRetain(&mut context.handle, number);
            context.done(retained, doing("the context"))?;
        }
        context.number = number;
        let mut made = null_mut();
        let current = context.enter()?;
        // SAFETY: the context is current; results go to locals; the caller's promise for the stream.
        unsafe {
            match stream {
                None => {
                    let created = functions.cuStreamCreate(&mut made, NON_BLOCKING);
                    context.done(created, doing("a stream"))?;
                }
                Some(stream) if stream as usize > LAST_SPECIAL_STREAM => {
                    let mut of = null_mut();
                    let found = functions.cuStreamGetCtx(stream, &mut of);
                    context.done(found, doing("the given stream"))?;
                    if of != context.handle {
                        return Err(Error::invalid(format!(
                            "the given stream is not of the primary context of {}",
                            context.describe()
                        )));
                    }
                }
                Some(_) => {}
            }
        }
        drop(current);
        context.owns_stream = stream.is_none();
        context.stream = stream.unwrap_or(made);
        Ok(context)
    }

    /// The device in words, for messages.
    pub(super) fn describe(&self) -> String {
        let DeviceInfo { ordinal, name, .. } = &self.device;
        let release = Driver::release()
            .unwrap_or_else(|| format!("for CUDA {}", version_text(self.driver.version())));
        format!("cuda:{ordinal} ({name}, driver {release})")
    }

    pub(super) fn functions(&self) -> &'static Functions {
        &self.driver.functions
    }

    /// Makes the context current on this thread.
    pub(super) fn enter(&self) -> Result<Current<'_>> {
        if let Some(first) = self.lost.get() {
            return Err(Error::state(format!(
                "{}: the context was lost, so nothing works on it until the process is started again\n{first}",
                self.describe()
            )));
        }
        self.current()
    }

    /// The same where failures do not matter: giving things back.
    pub(super) fn enter_to_release(&self) -> Option<Current<'_>> {
        self.current().ok()
    }

    fn current(&self) -> Result<Current<'_>> {
        let functions = self.functions();
        let mut before = null_mut();
        // SAFETY: the result goes to a local; the context is retained as long as `self` lives.
        let pushed = unsafe {
            self.done(functions.cuCtxGetCurrent(&mut before), || "the current context".to_owned())?;
            let other = before != self.handle;
            if other {
                let pushed = functions.cuCtxPushCurrent_v2(self.handle);
                self.done(pushed, || "entering the context".to_owned())?;
            }
            other
        };
        Ok(Current { context: self, pushed })
    }

    /// Remembers a launch that was started.
    pub(super) fn launched(&self, launch: &Launch) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(*launch);
    }

    /// An error of what a call reported, which may come from an earlier launch; remembers when the context is lost.
    pub(super) fn done(
        &self,
        result: std::result::Result<(), Code>,
        doing: impl FnOnce() -> String,
    ) -> Result<()> {
        let Err(code) = result else { return Ok(()) };
        let mut message = format!("{}: {code}", doing());
        if code.loses_the_context() {
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(Launch { kernel, grid, block, .. }) = last {
                message.push_str(&format!(
                    "\nlaunched last: {} {grid:?} x {block} threads on {}; CUDA_LAUNCH_BLOCKING=1 tells which launch failed",
                    kernel.name,
                    self.describe()
                ));
            }
            // The first failure is the one to tell later.
            let _ = self.lost.set(message.clone());
        }
        Err(Error::state(message))
    }

    /// Waits for all that was asked for.
    pub(super) fn wait(&self) -> Result<()> {
        let _current = self.enter()?;
        // SAFETY: the stream is valid as long as `self` lives.
        let waited = unsafe { self.functions().cuStreamSynchronize(self.stream) };
        self.done(waited, || format!("waiting for {}", self.describe()))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.handle.is_null() {
            return;
        }
        if self.owns_stream
            && let Some(_current) = self.enter_to_release()
        {
            // SAFETY: made in `open` and used by nothing else.
            let _ = unsafe { self.functions().cuStreamDestroy_v2(self.stream) };
        }
        // SAFETY: retained in `open`.
        let _ = unsafe { self.functions().cuDevicePrimaryCtxRelease_v2(self.number) };
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = null_mut();
            // SAFETY: pushed on this thread; `Current` is not sent to another.
            let _ = unsafe { self.context.functions().cuCtxPopCurrent_v2(&mut popped) };
        }
    }
}
