//! The CUDA driver: found, initialised and asked what there is, once a process. Its absence is a value.

use super::code::Code;
use super::functions::{Missing, function_table};
use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute, CUjit_option, CUmemPool_attribute, CUmemPoolProps, CUmemoryPool,
    CUmodule, CUstream,
};
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void};
use std::fmt;
use std::path::PathBuf;
use std::sync::LazyLock;

function_table! {
    /// The functions of libcuda that this library calls.
    Functions from sys, returning CUresult;
    required {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice);
    cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    cuCtxGetCurrent(context: *mut CUcontext);
    cuCtxPushCurrent_v2(context: CUcontext);
    cuCtxPopCurrent_v2(context: *mut CUcontext);
    cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamSynchronize(stream: CUstream);
    cuStreamGetCtx(stream: CUstream, context: *mut CUcontext);
    cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(address: CUdeviceptr);
    cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemFreeHost(memory: *mut c_void);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemsetD8Async(address: CUdeviceptr, byte: c_uchar, bytes: usize, stream: CUstream);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventDestroy_v2(event: CUevent);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventSynchronize(event: CUevent);
    cuModuleLoadDataEx(
        module: *mut CUmodule, image: *const c_void, options: c_uint,
        names: *mut CUjit_option, values: *mut *mut c_void);
    cuModuleUnload(module: CUmodule);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    cuLaunchKernel(
        function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint, shared: c_uint, stream: CUstream,
        parameters: *mut *mut c_void, extra: *mut *mut c_void);
    }
    optional {
    cuMemPoolCreate(pool: *mut CUmemoryPool, properties: *const CUmemPoolProps);
    cuMemPoolDestroy(pool: CUmemoryPool);
    cuMemPoolSetAttribute(pool: CUmemoryPool, attribute: CUmemPool_attribute, value: *mut c_void);
    cuMemAllocFromPoolAsync(
        address: *mut CUdeviceptr, bytes: usize, pool: CUmemoryPool, stream: CUstream);
    cuMemFreeAsync(address: CUdeviceptr, stream: CUstream);
    cuFuncGetParamInfo(function: CUfunction, index: usize, offset: *mut usize, size: *mut usize);
    }
}

/// Why no GPU can be used on this machine, as the driver tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// There is no libcuda.
    NoDriver,
    /// The driver lacks a function that is needed: it is older than CUDA 11.
    OldDriver {
        /// The function.
        function: &'static str,
        /// The library that lacks it.
        library: PathBuf,
    },
    /// The driver is there and sees no GPU.
    NoDevice,
    /// The driver failed.
    Refused {
        /// The call.
        call: &'static str,
        /// What it returned.
        code: Code,
    },
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Absent::NoDriver => f.write_str(
                "no NVIDIA driver on this machine (no libcuda.so.1)\ninstall the driver, release 580 or newer; no toolkit is needed",
            ),
            Absent::OldDriver { function, library } => write!(
                f,
                "{} has no {function}: the NVIDIA driver is too old\ninstall release 580 or newer",
                library.display()
            ),
            Absent::NoDevice => f.write_str(
                "there is an NVIDIA driver, but it sees no GPU\nin a container: start it with the GPU; else see CUDA_VISIBLE_DEVICES",
            ),
            Absent::Refused { call, code: Code(34) } => write!(
                f,
                "{call}: {}\nleave the toolkit's lib/stubs out of LD_LIBRARY_PATH",
                Code(34)
            ),
            Absent::Refused { call, code } => write!(f, "{call}: {code}"),
        }
    }
}

/// A GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number for `cuda:N`.
    pub ordinal: usize,
    /// Its product name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// The dynamic shared memory that one block may ask for, bytes.
    pub shared_limit: u32,
    /// Whether the driver keeps a pool of memory for it.
    pub pools: bool,
}

/// A driver that works, and its GPUs (at least one).
pub struct Driver {
    pub(super) functions: Functions,
    version: u32,
    devices: Vec<DeviceInfo>,
}

impl Driver {
    /// The CUDA version that the driver is for: 13000 is 13.0.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The GPUs in the driver's order.
    pub fn devices(&self) -> &[DeviceInfo] {
        &self.devices
    }

    /// The library that was loaded.
    pub fn library(&self) -> &std::path::Path {
        &self.functions.path
    }

    /// The release of the kernel module (580.82.07), where the system tells.
    pub fn release() -> Option<String> {
        let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
        let digits =
            |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
        text.lines().next()?.split_whitespace().find(digits).map(str::to_owned)
    }
}

/// `13.0` of 13000.
pub fn version_text(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn library_names() -> Vec<PathBuf> {
    let names: &[&str] =
        if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    names.iter().map(PathBuf::from).collect()
}

fn ask() -> Result<Driver, Absent> {
    let functions = Functions::load(&library_names()).map_err(|missing| match missing {
        Missing::Library { .. } => Absent::NoDriver,
        Missing::Function { name, library } => Absent::OldDriver { function: name, library },
    })?;
    let refused = |call| {
        move |code| match code {
            Code::NO_DEVICE => Absent::NoDevice,
            code => Absent::Refused { call, code },
        }
    };
    let (mut version, mut count) = (0, 0);
    // SAFETY: results go to locals that outlive the calls.
    unsafe {
        functions.cuInit(0).map_err(refused("cuInit"))?;
        functions.cuDriverGetVersion(&mut version).map_err(refused("cuDriverGetVersion"))?;
        functions.cuDeviceGetCount(&mut count).map_err(refused("cuDeviceGetCount"))?;
    }
    if count <= 0 {
        return Err(Absent::NoDevice);
    }
    let devices = (0..count)
        .map(|ordinal| describe(&functions, ordinal).map_err(refused("reading a GPU's properties")))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Driver { functions, version: version.max(0) as u32, devices })
}

fn describe(functions: &Functions, ordinal: c_int) -> Result<DeviceInfo, Code> {
    use CUdevice_attribute::*;
    let (mut device, mut bytes, mut name) = (0, 0usize, [0 as c_char; 256]);
    // SAFETY: results go to locals that outlive the calls; the name is given its length.
    unsafe {
        functions.cuDeviceGet(&mut device, ordinal)?;
        functions.cuDeviceTotalMem_v2(&mut bytes, device)?;
        functions.cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int - 1, device)?;
    }
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: the result goes to a local.
        unsafe { functions.cuDeviceGetAttribute(&mut value, which, device) }?;
        Ok(value.max(0) as u32)
    };
    // SAFETY: the driver ends the name with a zero, and the last byte is one.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(DeviceInfo {
        ordinal: ordinal as usize,
        name: name.to_string_lossy().into_owned(),
        capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        memory: bytes as u64,
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1),
        shared_limit: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        pools: attribute(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED).unwrap_or(0) != 0,
    })
}

/// The driver of this machine, or why there is none to use. Asked once a process.
///
/// # Errors
/// [`Absent`]: no driver, no device, a driver that is too old or does not work. Never a panic.
pub fn probe() -> Result<&'static Driver, &'static Absent> {
    static PROBED: LazyLock<Result<Driver, Absent>> = LazyLock::new(ask);
    PROBED.as_ref()
}
