//! A device that runs the CUDA kernels: it owns an [`Engine`], launches, multiplies, waits and counts the waits.
//!
//! Its memory, with element types, is in a file of its own and named here: [`DeviceBuffer`], [`DeviceSlice`].

mod buffer;

pub(crate) use buffer::DeviceElement;
pub use buffer::{DeviceBuffer, DeviceSlice, DeviceSliceMut};

use super::engine::{Engine, Launch, Product};
use crate::error::{Error, Result};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device behind an engine.
pub struct Gpu {
    engine: Box<dyn Engine>,
    /// One word of STATUS_* bits that kernels raise.
    status: u64,
    waits: AtomicU64,
}

impl Gpu {
    /// A device over `engine`.
    ///
    /// # Errors
    /// [`Error::is_state`] when the device has no memory for its status word.
    pub fn new(engine: Box<dyn Engine>) -> Result<Arc<Gpu>> {
        let status = engine.allocate(size_of::<u32>())?;
        // SAFETY: the word was just allocated.
        unsafe { engine.fill(status, 0, size_of::<u32>())? };
        Ok(Arc::new(Gpu { engine, status, waits: AtomicU64::new(0) }))
    }

    /// The device in words.
    pub fn describe(&self) -> String {
        self.engine.describe()
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.engine.multiprocessors()
    }

    /// The dynamic shared memory that one block may ask for, bytes.
    pub fn shared_limit(&self) -> u32 {
        self.engine.shared_limit()
    }

    /// How often the host has waited for this device: copies to the host, looks at the status word, and
    /// [`Gpu::wait`]. What is launched between two equal counts can be queued, or captured in a graph, as one piece.
    pub fn host_waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    fn count_wait(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    /// The address of the status word, for argument structs.
    pub(crate) fn status(&self) -> *mut u32 {
        self.status as *mut u32
    }

    /// Reads and clears the status word: waits for all that was launched.
    ///
    /// # Errors
    /// [`Error::is_index`] naming what kernels met since the last call, or what the device reports.
    pub fn check_status(&self) -> Result<()> {
        let mut word = [0u8; 4];
        self.count_wait();
        // SAFETY: the status word is one u32 of this engine.
        unsafe {
            self.engine.download(&mut word, self.status)?;
            self.engine.fill(self.status, 0, size_of::<u32>())?;
        }
        match u32::from_le_bytes(word) {
            0 => Ok(()),
            bits => {
                let names = [
                    (1, "an id or row index out of range"),
                    (2, "a target outside the vocabulary"),
                    (4, "group offsets out of order"),
                    (8, "a NaN or infinity"),
                ];
                let met: Vec<&str> =
                    names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, n)| *n).collect();
                Err(Error::index(format!("{}: kernels met {}", self.describe(), met.join(", "))))
            }
        }
    }

    /// Starts a kernel.
    ///
    /// # Safety
    /// `args` is the struct that the kernel takes, with addresses and lengths that fit its contract, and the memory
    /// belongs to this device.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for a grid that no device takes, and what the engine reports, with kernel and grid.
    pub(crate) unsafe fn launch<A: Copy>(&self, launch: &Launch, args: &A) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        if launch.grid[0] > i32::MAX as u32 || launch.grid[1..].iter().any(|n| *n > 65_535) {
            return Err(Error::invalid(format!("{launch:?}: the grid is too large")));
        }
        // SAFETY: a plain struct is read as its bytes.
        let bytes =
            unsafe { std::slice::from_raw_parts((&raw const *args).cast::<u8>(), size_of::<A>()) };
        // SAFETY: the caller's promise.
        unsafe { self.engine.launch(launch, bytes) }.map_err(|e| {
            let Launch { kernel, grid, block, shared } = launch;
            e.at(format!(
                "{} {grid:?} x {block} threads, {shared} shared bytes, on {}",
                kernel.name,
                self.describe()
            ))
        })
    }

    /// Blocks for a kernel that walks `len` elements with the grid as its stride: enough to fill the device a few times
    /// over, never more than one thread an element. Results may not depend on it.
    pub(crate) fn stride_grid(&self, len: usize, block: u32) -> [u32; 3] {
        let needed = len.div_ceil(block as usize);
        [needed.min(self.multiprocessors() as usize * 16) as u32, 1, 1]
    }

    /// Blocks for a kernel that takes one block an item and loops when there are more items than a grid holds.
    pub(crate) fn item_grid(&self, items: usize) -> [u32; 3] {
        [items.min(i32::MAX as usize) as u32, 1, 1]
    }

    /// A matrix product.
    ///
    /// # Safety
    /// The addresses hold what the dimensions say.
    ///
    /// # Errors
    /// [`Error::is_dtype`], and what the engine reports.
    pub(crate) unsafe fn product(&self, product: &Product) -> Result<()> {
        product.check()?;
        if product.m * product.n * product.batch == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.engine.product(product) }.map_err(|e| {
            let Product { m, n, k, batch, .. } = product;
            e.at(format!("product [{m}, {k}] x [{k}, {n}] x {batch} on {}", self.describe()))
        })
    }

    /// Waits for all that was launched.
    ///
    /// # Errors
    /// What failed since the last wait.
    pub fn wait(&self) -> Result<()> {
        self.count_wait();
        self.engine.wait()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, used by launches only, which hold the device.
        unsafe { self.engine.release(self.status, size_of::<u32>()) };
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}
