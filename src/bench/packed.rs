//! Sequences of tokens one after the other with a mask, as losses and what comes before them take them.

use crate::DType;
use crate::device::Device;
use crate::device::gpu::{DeviceBuffer, DeviceSlice};
use crate::error::Result;
use std::ops::Range;

/// Sequences of equal length, three quarters to all of each live.
pub(super) struct Packed {
    /// Tokens of a sequence.
    pub(super) length: usize,
    /// `[tokens]`, 1 where live.
    pub(super) mask: Vec<u8>,
    /// `[sequences + 1]`.
    pub(super) offsets: Vec<i64>,
    on_gpu: Option<[DeviceBuffer; 2]>,
}

impl Packed {
    pub(super) fn new(device: &Device, [sequences, length]: [usize; 2]) -> Result<Packed> {
        let end = |row: usize| length - (row * 37) % (length / 4).max(1);
        let live = |token: usize| u8::from(token % length < end(token / length));
        let mask: Vec<u8> = (0..sequences * length).map(live).collect();
        let offsets: Vec<i64> = (0..=sequences).map(|row| (row * length) as i64).collect();
        let upload = |gpu| -> Result<[DeviceBuffer; 2]> {
            let offsets = bytemuck::cast_slice(&offsets);
            Ok([
                DeviceBuffer::upload(gpu, DType::U8, &mask)?,
                DeviceBuffer::upload(gpu, DType::I64, offsets)?,
            ])
        };
        let on_gpu = device.gpu().map(upload).transpose()?;
        Ok(Packed { length, mask, offsets, on_gpu })
    }

    pub(super) fn tokens(&self) -> usize {
        self.mask.len()
    }

    pub(super) fn sequences(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The tokens of a sequence.
    pub(super) fn sequence(&self, row: usize) -> Range<usize> {
        row * self.length..(row + 1) * self.length
    }

    pub(super) fn is_live(&self, token: usize) -> bool {
        self.mask[token] != 0
    }

    /// Live tokens.
    pub(super) fn live(&self) -> usize {
        self.mask.iter().filter(|mask| **mask != 0).count()
    }

    /// Mask and offsets in device memory; `None` on the CPU.
    pub(super) fn on_gpu(&self) -> Option<[DeviceSlice<'_>; 2]> {
        self.on_gpu.as_ref().map(|[mask, offsets]| [mask.whole(), offsets.whole()])
    }
}
