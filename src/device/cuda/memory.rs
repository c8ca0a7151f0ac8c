//! Device memory in stream order: from a pool of the driver that keeps what is given back, or, where the driver has no
//! pools, from a list of our own. Freed memory may be reused at once: everything runs on one stream.

use super::code::Code;
use super::context::Context;
use crate::error::{Error, Result};
use cudarc::driver::sys::{
    CUmemAllocationHandleType, CUmemAllocationType, CUmemLocation, CUmemLocationType,
    CUmemPool_attribute, CUmemPoolProps, CUmemoryPool,
};
use std::collections::HashMap;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

/// The device's allocator.
pub(super) struct Memory {
    context: Arc<Context>,
    kind: Kind,
}

enum Kind {
    /// A pool of this library's own: another library's use of the default pool is not changed.
    Pool(CUmemoryPool),
    /// Free blocks by their size class.
    Lists(Mutex<HashMap<usize, Vec<u64>>>),
}

// SAFETY: a pool is a handle that may be used from any thread.
unsafe impl Send for Memory {}
// SAFETY: the driver locks the pool, a mutex the lists.
unsafe impl Sync for Memory {}

/// The size that a request is rounded up to: eight classes between powers of two, so at most an eighth is wasted and
/// blocks of nearly equal size are reused for each other.
fn class(bytes: usize) -> usize {
    let step = (bytes.max(1).next_power_of_two() / 16).max(512);
    bytes.max(1).div_ceil(step).saturating_mul(step)
}

impl Memory {
    pub(super) fn new(context: &Arc<Context>) -> Result<Memory> {
        let kind = match context.device.pools.then(|| pool(context)).transpose()?.flatten() {
            Some(pool) => Kind::Pool(pool),
            None => Kind::Lists(Mutex::new(HashMap::new())),
        };
        Ok(Memory { context: Arc::clone(context), kind })
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64> {
        let _current = self.context.enter()?;
        let mut address = 0;
        let mut allocated = self.try_allocate(&mut address, bytes);
        if allocated == Err(Code::OUT_OF_MEMORY) {
            // What was freed but may still be in use becomes free by waiting; kept blocks of other sizes go back.
            self.context.wait()?;
            self.trim();
            allocated = self.try_allocate(&mut address, bytes);
        }
        self.context.done(allocated, || {
            let whole = self.context.device.memory as f64 / f64::from(1 << 30);
            let asked = bytes as f64 / f64::from(1 << 20);
            format!("{asked:.1} MiB of {whole:.1} GiB on {}", self.context.describe())
        })?;
        Ok(address)
    }

    fn try_allocate(&self, address: &mut u64, bytes: usize) -> std::result::Result<(), Code> {
        let functions = self.context.functions();
        match &self.kind {
            // SAFETY: the context is current, the pool is this device's, the result goes to a local.
            Kind::Pool(pool) => unsafe {
                functions
                    .cuMemAllocFromPoolAsync(address, bytes, *pool, self.context.stream)
                    .unwrap_or(Err(Code::NOT_FOUND))
            },
            Kind::Lists(lists) => {
                let class = class(bytes);
                let mut lists = lists.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(free) = lists.get_mut(&class).and_then(Vec::pop) {
                    *address = free;
                    return Ok(());
                }
                // SAFETY: the context is current, the result goes to a local.
                unsafe { functions.cuMemAlloc_v2(address, class) }
            }
        }
    }

    /// Gives memory back; what was asked for before may still use it.
    ///
    /// # Safety
    /// `address` came from `allocate(bytes)` and nothing asked for later uses it.
    pub(super) unsafe fn release(&self, address: u64, bytes: usize) {
        match &self.kind {
            Kind::Pool(_) => {
                if let Some(_current) = self.context.enter_to_release() {
                    // SAFETY: allocated from the pool on the same stream; the caller's promise.
                    let _ = unsafe {
                        self.context.functions().cuMemFreeAsync(address, self.context.stream)
                    };
                }
            }
            Kind::Lists(lists) => {
                let mut lists = lists.lock().unwrap_or_else(PoisonError::into_inner);
                lists.entry(class(bytes)).or_default().push(address);
            }
        }
    }

    /// Gives kept blocks back to the driver. The stream must have been waited for.
    fn trim(&self) {
        if let Kind::Lists(lists) = &self.kind {
            let mut lists = lists.lock().unwrap_or_else(PoisonError::into_inner);
            for address in lists.drain().flat_map(|(_, free)| free) {
                // SAFETY: the context is current, the block was allocated and is free.
                let _ = unsafe { self.context.functions().cuMemFree_v2(address) };
            }
        }
    }
}

/// A pool that keeps all memory until the device is dropped; `None` where the driver has no such functions.
fn pool(context: &Context) -> Result<Option<CUmemoryPool>> {
    let _current = context.enter()?;
    let properties = CUmemPoolProps {
        allocType: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        handleTypes: CUmemAllocationHandleType(0),
        location: CUmemLocation {
            type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: i32::try_from(context.device.ordinal)
                .map_err(|_| Error::invalid("the number of a GPU"))?,
        },
        win32SecurityAttributes: null_mut(),
        maxSize: 0,
        usage: 0,
        reserved: [0; 54],
    };
    let functions = context.functions();
    let doing = || format!("a memory pool of {}", context.describe());
    let mut pool = null_mut();
    // SAFETY: the properties are a plain struct that is read; the result goes to a local.
    let Some(made) = (unsafe { functions.cuMemPoolCreate(&mut pool, &properties) }) else {
        return Ok(None);
    };
    context.done(made, doing)?;
    // Without it the pool returns everything to the system whenever the host waits.
    let mut threshold = u64::MAX;
    // SAFETY: the attribute is a u64 that is read.
    let set = unsafe {
        functions.cuMemPoolSetAttribute(
            pool,
            CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        )
    };
    context.done(set.unwrap_or(Err(Code::NOT_FOUND)), doing)?;
    Ok(Some(pool))
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A lost context is not waited for.
        let _ = self.context.wait();
        let Some(_current) = self.context.enter_to_release() else { return };
        self.trim();
        if let Kind::Pool(pool) = self.kind {
            // SAFETY: made in `new`; the driver keeps what is still allocated until it is freed.
            let _ = unsafe { self.context.functions().cuMemPoolDestroy(pool) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::class;

    #[test]
    fn classes_waste_little_and_never_shrink() {
        for bytes in (0..100_000).step_by(37).chain([1 << 30, (1 << 30) + 1, usize::MAX / 4]) {
            let rounded = class(bytes);
            assert!(rounded >= bytes.max(1) && rounded.is_multiple_of(512), "{bytes}");
            assert!(rounded - bytes <= (bytes / 8).max(512), "{bytes}: {rounded}");
            assert_eq!(class(rounded), rounded, "{bytes}");
        }
    }
}
