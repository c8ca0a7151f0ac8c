//! Uploads: host memory goes through a few pinned slots, so that it is free again when the call returns and the device
//! is not waited for, on every system (a plain asynchronous copy from pageable memory promises neither).
//!
//! Small uploads share a slot, one behind the other: a step uploads some dozens of short arrays, and the host must be able to
//! queue several steps. Only a slot that comes round again is waited for, so once in `SLOTS * SLOT_BYTES` of uploads.

use super::context::Context;
use crate::error::Result;
use cudarc::driver::sys::CUevent;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

const SLOT_BYTES: usize = 1 << 20;
const SLOTS: usize = 4;

/// Uploads begin at multiples of it in a slot.
const STEP: usize = 256;

/// An event that keeps no time.
const DISABLE_TIMING: u32 = 2;

struct Slot {
    memory: *mut c_void,
    /// Passed when the slot's last copy has been made; recorded when the slot is full.
    copied: CUevent,
    recorded: bool,
    /// Bytes of uploads since it was last waited for.
    used: usize,
}

/// Pinned slots that uploads fill in turn.
pub(super) struct Staging {
    context: Arc<Context>,
    slots: Vec<Slot>,
    /// The slot that is being filled.
    place: usize,
}

// SAFETY: pinned memory and events may be used from any thread.
unsafe impl Send for Staging {}

impl Staging {
    pub(super) fn new(context: &Arc<Context>) -> Result<Staging> {
        let mut staging = Staging { context: Arc::clone(context), slots: Vec::new(), place: 0 };
        let _current = context.enter()?;
        let functions = context.functions();
        let doing = || format!("pinned memory for uploads to {}", context.describe());
        for _ in 0..SLOTS {
            let mut slot =
                Slot { memory: null_mut(), copied: null_mut(), recorded: false, used: 0 };
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
            let stream = context.stream;
            let fits = |slot: &Slot| part.len() <= SLOT_BYTES - slot.used;
            if !self.slots.get(self.place).is_some_and(fits) {
                if let Some(full) = self.slots.get_mut(self.place) {
                    // SAFETY: the event is this slot's own.
                    let recorded = unsafe { functions.cuEventRecord(full.copied, stream) };
                    context.done(recorded, doing)?;
                    full.recorded = true;
                }
                self.place = (self.place + 1) % SLOTS;
            }
            let Some(slot) = self.slots.get_mut(self.place) else { return Ok(()) };
            if slot.recorded {
                // SAFETY: recorded above, when the slot was full.
                context.done(unsafe { functions.cuEventSynchronize(slot.copied) }, doing)?;
                (slot.recorded, slot.used) = (false, 0);
            }
            // SAFETY: the part fits behind what the slot holds, and nothing else reads or writes there until the slot comes
            // round again.
            unsafe {
                let memory = slot.memory.byte_add(slot.used);
                std::ptr::copy_nonoverlapping(part.as_ptr(), memory.cast(), part.len());
                let copied = functions.cuMemcpyHtoDAsync_v2(at, memory, part.len(), stream);
                context.done(copied, doing)?;
            }
            slot.used = (slot.used + part.len()).next_multiple_of(STEP);
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
