//! What a device that runs the CUDA kernels can do: memory, launches, matrix products, in the order they are asked for.
//!
//! Two engines stand behind it: the CUDA driver, and the emulated device that runs the same kernels on the CPU for the
//! tests. Grids, argument structs and workspaces are decided above, once for both. No kernel is known here by name.

use crate::dtype::DType;
use crate::error::{Error, Result};

/// A kernel: the family is the name of its source file (and image), the name its C symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The `.cu` file without its ending.
    pub family: &'static str,
    /// The `extern "C"` symbol.
    pub name: &'static str,
}

impl Kernel {
    /// A kernel that exists once.
    pub const fn new(family: &'static str, name: &'static str) -> Kernel {
        Kernel { family, name }
    }
}

/// `typed_kernel!("family", "name", dtype)`: the instance of a kernel for a float storage type, `name_f32`,
/// `name_bf16` or `name_f16`; a dtype error for another type.
#[macro_export]
macro_rules! typed_kernel {
    ($family:literal, $name:literal, $dtype:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                Ok($crate::device::engine::Kernel::new($family, concat!($name, "_f32")))
            }
            $crate::DType::Bf16 => {
                Ok($crate::device::engine::Kernel::new($family, concat!($name, "_bf16")))
            }
            $crate::DType::F16 => {
                Ok($crate::device::engine::Kernel::new($family, concat!($name, "_f16")))
            }
            other => Err($crate::Error::dtype(format!(concat!($name, " of {}"), other))),
        }
    };
}

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Which kernel.
    pub kernel: Kernel,
    /// Blocks: x up to 2³¹-1, y and z up to 65535.
    pub grid: [u32; 3],
    /// Threads of a block along x (no kernel uses more than one dimension).
    pub block: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
}

/// An operand of a product: `[rows, cols]` row-major, or its transpose where `transposed`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Device address of the first element.
    pub address: u64,
    /// f32, bf16 or f16.
    pub dtype: DType,
    /// Stored as the transpose of what is multiplied.
    pub transposed: bool,
}

/// `out = a · b` (or `out += a · b`) with `a [m, k]`, `b [k, n]`, `out [m, n]`, for each entry of a batch whose matrices
/// lie one behind the other. Both operands have one type; sums are in f32.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Left operand.
    pub a: Matrix,
    /// Right operand.
    pub b: Matrix,
    /// Device address of the result.
    pub out: u64,
    /// f32, or the operands' type.
    pub out_dtype: DType,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// The summed dimension.
    pub k: usize,
    /// Entries of the batch.
    pub batch: usize,
    /// Add to the result (f32 only) instead of replacing it.
    pub accumulate: bool,
}

/// Memory and execution of one device, in one order: what is asked for later sees what was asked for before.
///
/// # Safety
/// `allocate` returns memory that nothing else uses, aligned to 256 bytes, valid until `release`; the other calls touch
/// no memory but what they are given, and do it in the order of the calls.
pub unsafe trait Engine: Send + Sync {
    /// The device in words, for messages: `cuda:0 (NVIDIA H200, driver 580.82)`, `emulated`.
    fn describe(&self) -> String;

    /// Multiprocessors that share a grid; what a grid-stride kernel sizes its grid by.
    fn multiprocessors(&self) -> u32;

    /// The dynamic shared memory that one block may ask for, bytes.
    fn shared_limit(&self) -> u32;

    /// `bytes` > 0 of uninitialised device memory.
    ///
    /// # Errors
    /// [`Error::is_state`] when the device has no more.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back. What was launched before may still use it; what comes later may get it again.
    ///
    /// # Safety
    /// `address` came from `allocate(bytes)` of this engine and is not used after.
    unsafe fn release(&self, address: u64, bytes: usize);

    /// Copies host memory to the device. The host memory is free again on return.
    ///
    /// # Safety
    /// `to` has room for `from`.
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()>;

    /// Copies device memory to the host: waits for all that was asked for before.
    ///
    /// # Safety
    /// `from` holds `to.len()` bytes.
    unsafe fn download(&self, to: &mut [u8], from: u64) -> Result<()>;

    /// Copies inside the device; the ranges do not overlap.
    ///
    /// # Safety
    /// Both ranges are device memory of this engine.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;

    /// Sets every byte.
    ///
    /// # Safety
    /// The range is device memory of this engine.
    unsafe fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()>;

    /// Starts a kernel on one argument struct.
    ///
    /// # Safety
    /// `args` is the struct that the kernel takes, with addresses and lengths that fit its contract.
    unsafe fn launch(&self, launch: &Launch, args: &[u8]) -> Result<()>;

    /// A matrix product.
    ///
    /// # Safety
    /// The addresses hold what the dimensions say.
    unsafe fn product(&self, product: &Product) -> Result<()>;

    /// Waits for all that was asked for; reports what failed since.
    fn wait(&self) -> Result<()>;
}

impl Product {
    /// Checks what every engine relies on.
    ///
    /// # Errors
    /// [`Error::is_dtype`] for types that are not multiplied with each other.
    pub fn check(&self) -> Result<()> {
        let (a, b, out) = (self.a.dtype, self.b.dtype, self.out_dtype);
        if !a.is_float() || a != b || !(out == DType::F32 || out == a) {
            return Err(Error::dtype(format!("a product of {a} and {b} into {out}")));
        }
        if self.accumulate && out != DType::F32 {
            return Err(Error::dtype(format!("a product added to {out}: sums are kept in f32")));
        }
        Ok(())
    }
}
