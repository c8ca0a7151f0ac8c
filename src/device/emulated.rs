//! The emulated device: CUDA kernels run on the CPU by a launcher that the tests bring, everything else plain memory.
//!
//! It exists so that a machine without a GPU tests the kernels, their grids, their argument structs and their
//! workspaces. Every buffer is an allocation of exactly its size, filled with 0xFF (NaN in every float type), so that a
//! sanitizer sees an overrun and a test sees a missed write. Matrix products go to the CPU's GEMM.

use super::cpu::gemm::{self, plain, transposed};
use super::engine::{Engine, Launch, Matrix, Product};
use crate::dtype::{DType, Float};
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::alloc::Layout;

/// Runs one kernel to its end: name, grid, block, dynamic shared bytes, argument struct. An error is what the
/// launcher found wrong with the kernel: a divergent barrier, an access out of bounds.
pub type HostLaunch =
    unsafe fn(&str, [u32; 3], [u32; 3], u32, *const u8, usize) -> std::result::Result<(), String>;

/// Alignment of device memory, as CUDA gives it.
const ALIGNMENT: usize = 256;

/// Multiprocessors that it claims: few, so that grid-stride loops take more than one step in tests.
const MULTIPROCESSORS: u32 = 1;

pub(super) struct Emulated {
    pub(super) launch: HostLaunch,
}

fn layout(bytes: usize) -> Result<Layout> {
    Layout::from_size_align(bytes, ALIGNMENT)
        .map_err(|_| Error::invalid(format!("an allocation of {bytes} bytes")))
}

/// Runs `$body` with `$T` bound to the float type of `$dtype`.
macro_rules! with_type {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::Bf16 => {
                type $T = bf16;
                $body
            }
            DType::F16 => {
                type $T = f16;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}

/// # Safety
/// `address` holds `len` elements of `dtype`.
unsafe fn widened(address: u64, dtype: DType, len: usize) -> Vec<f32> {
    with_type!(dtype, T => {
        // SAFETY: the caller's promise.
        let values = unsafe { std::slice::from_raw_parts(address as *const T, len) };
        values.iter().map(|value| Float::to_f32(*value)).collect()
    })
}

// SAFETY: memory comes from the allocator, every call has ended when it returns, and addresses are used as given.
unsafe impl Engine for Emulated {
    fn describe(&self) -> String {
        "emulated".to_owned()
    }

    fn multiprocessors(&self) -> u32 {
        MULTIPROCESSORS
    }

    fn shared_limit(&self) -> u32 {
        // What an sm_80 block may ask for; kernels that work here work there.
        163 * 1024
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let layout = layout(bytes.max(1))?;
        // SAFETY: the size is not 0.
        let memory = unsafe { std::alloc::alloc(layout) };
        if memory.is_null() {
            return Err(Error::state(format!("emulated: no memory for {bytes} bytes")));
        }
        // SAFETY: just allocated with this size.
        unsafe { memory.write_bytes(0xff, layout.size()) };
        Ok(memory as u64)
    }

    unsafe fn release(&self, address: u64, bytes: usize) {
        if let Ok(layout) = layout(bytes.max(1)) {
            // SAFETY: allocated above with the same layout.
            unsafe { std::alloc::dealloc(address as *mut u8, layout) };
        }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { (address as *mut u8).write_bytes(byte, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch, args: &[u8]) -> Result<()> {
        let block = [launch.block, 1, 1];
        // SAFETY: the caller's promise.
        unsafe {
            (self.launch)(
                launch.kernel.name,
                launch.grid,
                block,
                launch.shared,
                args.as_ptr(),
                args.len(),
            )
        }
        .map_err(Error::state)
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        let Product { m, n, k, batch, .. } = *product;
        let size =
            |dtype: DType, elements: usize, entry: usize| (elements * entry * dtype.size()) as u64;
        for entry in 0..batch {
            let operand = |matrix: &Matrix, elements: usize| {
                let address = matrix.address + size(matrix.dtype, elements, entry);
                // SAFETY: entry `entry` of a batch of matrices that lie one behind the other.
                unsafe { widened(address, matrix.dtype, elements) }
            };
            let (a, b) = (operand(&product.a, m * k), operand(&product.b, k * n));
            let out = product.out + size(product.out_dtype, m * n, entry);
            let mut sum = if product.accumulate {
                // SAFETY: the result holds m n elements an entry.
                unsafe { widened(out, DType::F32, m * n) }
            } else {
                vec![0f32; m * n]
            };
            let a_operand = if product.a.transposed { transposed(&a) } else { plain(&a) };
            let b_operand = if product.b.transposed { transposed(&b) } else { plain(&b) };
            gemm::matmul(&mut sum, a_operand, b_operand, [m, n, k], product.accumulate)?;
            with_type!(product.out_dtype, T => {
                // SAFETY: the result holds m n elements an entry and nothing else refers to it.
                let to = unsafe { std::slice::from_raw_parts_mut(out as *mut T, m * n) };
                to.iter_mut().zip(&sum).for_each(|(to, sum)| *to = <T as Float>::from_f32(*sum));
            });
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}
