//! Uploads: host memory goes through a few pinned slots, so that it is free again when the call returns and the device
//! is not waited for, on every system (a plain asynchronous copy from pageable memory promises neither).

use super::context::Context;
use crate::error::Result;
use cudarc::driver::sys::CUevent;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

const SLOT_BYTES: usize = 1 << 20;
const SLOTS: usize = 4;

/// An event that keeps no time.
const DISABLE_TIMING: u32 = 2;

struct Slot {
    memory: *mut c_void,
    /// Passed when the slot's last copy has been made.
    copied: CUevent,
    used: bool,
}

/// Pinned slots that uploads take in turn.
pub(super) struct Staging {
    context: Arc<Context>,
    slots: Vec<Slot>,
    next: usize,
}

// SAFETY: pinned memory and events may be used from any thread.
unsafe impl Send for Staging {}

impl Staging {
    pub(super) fn new(context: &Arc<Context>) -> Result<Staging> {
        let mut staging = Staging { context: Arc::clone(context), slots: Vec::new(), next: 0 };
        let _current = context.enter()?;
        let functions = context.functions();
        let doing = || format!("pinned memory for uploads to {}", context.describe());
        for _ in 0..SLOTS {
            let mut slot = Slot { memory: null_mut(), copied: null_mut(), used: false };
            // SAFETY: results go to a local; what was made is given back by `drop`.
            unsafe {
                context.done(functions.cuMemHostAlloc(&mut slot.memory, SLOT_BYTES, 0), doing)?;
                let made = functions.cuEventCreate(&mut slot.copied, DISABLE_TIMING);
                staging.slots.push(slot);
                context.done(made, doing)?;
            }
        }
        Ok(staging)
    }

    /// Copies to the device in stream order.
    ///
    /// # Safety
    /// `to` has room for `from` on the device.
    pub(super) unsafe fn upload(&mut self, to: u64, from: &[u8]) -> Result<()> {
        let context = &self.context;
        let _current = context.enter()?;
        let functions = context.functions();
        let doing = || format!("uploading {} bytes to {}", from.len(), context.describe());
        let mut at = to;
        for part in from.chunks(SLOT_BYTES) {
            let place = self.next % SLOTS;
            self.next = place + 1;
            let Some(slot) = self.slots.get_mut(place) else { return Ok(()) };
            // SAFETY: the slot is as large as a part, and its last copy has passed before it is written.
            unsafe {
                if slot.used {
                    context.done(functions.cuEventSynchronize(slot.copied), doing)?;
                }
                std::ptr::copy_nonoverlapping(part.as_ptr(), slot.memory.cast(), part.len());
                let (memory, stream) = (slot.memory, context.stream);
                let copied = functions.cuMemcpyHtoDAsync_v2(at, memory, part.len(), stream);
                context.done(copied, doing)?;
                slot.used = true;
                context.done(functions.cuEventRecord(slot.copied, stream), doing)?;
            }
            at += part.len() as u64;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = self.context.wait();
        let Some(_current) = self.context.enter_to_release() else { return };
        let functions = self.context.functions();
        for slot in &self.slots {
            // SAFETY: made in `new`, and the stream has nothing left that uses them.
            let _ = unsafe {
                (functions.cuEventDestroy_v2(slot.copied), functions.cuMemFreeHost(slot.memory))
            };
        }
    }
}
