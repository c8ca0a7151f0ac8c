//! Kernels ready to launch: a family's image is loaded when one of its kernels is first asked for, and kept.

use super::code::Code;
use super::context::Context;
use super::driver::{DeviceInfo, version_text};
use super::images::{self, Image, driver_for_ptx};
use crate::device::engine::Kernel;
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUjit_option, CUmodule};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Room for what the driver's PTX compiler says.
const LOG_BYTES: usize = 4096;

/// A kernel of a loaded image.
pub(super) struct Function {
    pub(super) handle: CUfunction,
    /// Bytes of its argument struct as the image has it, where the driver tells.
    parameter_bytes: Option<usize>,
    /// The dynamic shared memory it has been allowed.
    shared: AtomicU32,
}

/// The loaded images of one device.
pub(super) struct Modules {
    context: Arc<Context>,
    loaded: Mutex<HashMap<&'static str, CUmodule>>,
    functions: RwLock<HashMap<&'static str, Arc<Function>>>,
}

// SAFETY: modules and functions are handles that may be used from any thread.
unsafe impl Send for Modules {}
// SAFETY: as above; the maps are behind locks.
unsafe impl Sync for Modules {}
// SAFETY: as above.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Whether this driver can load the image for this device, and what to do where not.
///
/// # Errors
/// [`Error::is_unsupported`] naming image, PTX version, driver version and device.
pub(super) fn check(image: &Image, device: &DeviceInfo, driver_version: u32) -> Result<()> {
    if image.runs_natively(device.capability) {
        return Ok(());
    }
    let (major, minor) = device.capability;
    let named =
        format!("cuda:{} ({}, compute capability {major}.{minor})", device.ordinal, device.name);
    if device.capability < (8, 0) {
        return Err(Error::unsupported(format!(
            "{named}: the kernels need compute capability 8.0 or higher"
        )));
    }
    let Some(ptx) = image.ptx_version() else {
        return Err(Error::unsupported(format!(
            "{named}: this build has no image of the kernels `{}` for it",
            image.family
        )));
    };
    let needed = driver_for_ptx(ptx);
    if driver_version < needed {
        return Err(Error::unsupported(format!(
            "{named}: image `{}` is PTX {}.{}, which needs a driver for CUDA {}; this driver is for CUDA {}\n\
             update the driver (release 580 or newer is for CUDA 13.0), or build where nvcc is found for native code",
            image.family,
            ptx.0,
            ptx.1,
            version_text(needed),
            version_text(driver_version)
        )));
    }
    Ok(())
}

impl Modules {
    pub(super) fn new(context: &Arc<Context>) -> Modules {
        Modules {
            context: Arc::clone(context),
            loaded: Mutex::default(),
            functions: RwLock::default(),
        }
    }

    /// A kernel that may be launched with this much dynamic shared memory on a struct of this size.
    pub(super) fn function(
        &self,
        kernel: Kernel,
        shared: u32,
        argument_bytes: usize,
    ) -> Result<Arc<Function>> {
        let known = {
            let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
            functions.get(kernel.name).cloned()
        };
        let function = match known {
            Some(function) => function,
            None => self.find(kernel)?,
        };
        if let Some(bytes) = function.parameter_bytes.filter(|bytes| *bytes != argument_bytes) {
            return Err(Error::state(format!(
                "the image takes an argument struct of {bytes} bytes, this library passes {argument_bytes}: \
                 bindings/ptx is stale"
            )));
        }
        if shared > function.shared.load(Ordering::Relaxed) {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module; the context is current.
            let set = unsafe {
                self.context.functions().cuFuncSetAttribute(
                    function.handle,
                    attribute,
                    shared as i32,
                )
            };
            self.context.done(set, || format!("{shared} bytes of shared memory"))?;
            function.shared.fetch_max(shared, Ordering::Relaxed);
        }
        Ok(function)
    }

    fn find(&self, kernel: Kernel) -> Result<Arc<Function>> {
        let module = self.module(kernel.family)?;
        let name = CString::new(kernel.name)
            .map_err(|_| Error::invalid("a kernel's name with a zero byte"))?;
        let functions = self.context.functions();
        let (mut handle, mut offset, mut bytes) = (null_mut(), 0, 0);
        // SAFETY: the module is loaded; results go to locals.
        let (found, told) = unsafe {
            let found = functions.cuModuleGetFunction(&mut handle, module, name.as_ptr());
            self.context.done(found, || format!("image `{}`", kernel.family))?;
            (handle, functions.cuFuncGetParamInfo(handle, 0, &mut offset, &mut bytes))
        };
        let function = Arc::new(Function {
            handle: found,
            parameter_bytes: matches!(told, Some(Ok(()))).then_some(bytes),
            shared: AtomicU32::new(0),
        });
        let mut known = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(kernel.name, Arc::clone(&function));
        Ok(function)
    }

    fn module(&self, family: &'static str) -> Result<CUmodule> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = loaded.get(family) {
            return Ok(*module);
        }
        let image = images::of(family).ok_or_else(|| {
            Error::unsupported(format!("this build has no image of the kernels `{family}`"))
        })?;
        let (device, version) = (&self.context.device, self.context.driver.version());
        check(image, device, version)?;
        let native = image.runs_natively(device.capability).then_some(image.native);
        let module = match native.map(|code| self.load(code)) {
            Some(Ok(module)) => module,
            // Native code that the driver does not take after all: its PTX may do.
            Some(Err((code, _))) if code != Code::NO_BINARY_FOR_GPU => {
                return Err(self.refused(image, code, ""));
            }
            _ => {
                let ptx = image.ptx().unwrap_or("\0").as_bytes();
                self.load(ptx).map_err(|(code, log)| self.refused(image, code, &log))?
            }
        };
        loaded.insert(family, module);
        Ok(module)
    }

    /// Loads native code, or PTX that ends with a zero.
    fn load(&self, image: &[u8]) -> std::result::Result<CUmodule, (Code, String)> {
        let mut log = vec![0u8; LOG_BYTES];
        let mut names = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The size is passed as a number in the pointer's place.
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), LOG_BYTES as *mut c_void];
        let mut module = null_mut();
        // SAFETY: the image ends where its format says; the log has the length that is passed; all outlive the call.
        let loaded = unsafe {
            self.context.functions().cuModuleLoadDataEx(
                &mut module,
                image.as_ptr().cast(),
                names.len() as u32,
                names.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let said = log.split(|byte| *byte == 0).next().unwrap_or_default();
        loaded
            .map(|()| module)
            .map_err(|code| (code, String::from_utf8_lossy(said).trim().to_owned()))
    }

    fn refused(&self, image: &Image, code: Code, log: &str) -> Error {
        let (major, minor) = self.context.device.capability;
        let ptx = image.ptx_version().unwrap_or_default();
        let native = match images::native_archs() {
            [] => "no native code".to_owned(),
            archs => format!("native code for {}", archs.join(", ")),
        };
        let mut message = format!(
            "image `{}` (PTX {}.{} for compute capability 8.0, {native}) on a GPU of {major}.{minor} and a driver for CUDA {}: {code}",
            image.family,
            ptx.0,
            ptx.1,
            version_text(self.context.driver.version())
        );
        if code == Code::UNSUPPORTED_PTX_VERSION {
            message.push_str("\nupdate the driver to release 580 or newer");
        } else if !log.is_empty() {
            message.push_str(&format!("\n{log}"));
        }
        Error::unsupported(message)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        let _ = self.context.wait();
        let Some(_current) = self.context.enter_to_release() else { return };
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        for module in loaded.drain().map(|(_, module)| module) {
            // SAFETY: loaded here; nothing runs any more.
            let _ = unsafe { self.context.functions().cuModuleUnload(module) };
        }
    }
}
