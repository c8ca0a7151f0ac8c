//! Rotary position embedding: pairs of a head's dimensions turned by an angle that grows with the position.
//!
//! Angles are f32 products of position and frequency, as published models were trained; sine and cosine are exact to
//! the last bit of f32. Source: Su et al. 2021.

pub mod launch;

use crate::device::cpu::memory::Buffer;
use crate::device::cpu::pool;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::sync::{Arc, Mutex, PoisonError};

/// Which dimensions form a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// `i` and `i + D/2`: Llama, Qwen, Gemma in their published weights.
    #[default]
    RotateHalf,
    /// `2i` and `2i + 1`: GPT-J and the original paper.
    Interleaved,
}

/// Cosines and sines of every token: `[T, 2, pairs]`. A device gets its copy the first time that it needs one: one for
/// all heads, layers and the backward pass.
pub struct Angles {
    table: Buffer<f32>,
    pairs: usize,
    on_devices: Mutex<Vec<Arc<DeviceBuffer>>>,
}

impl Angles {
    /// The angles of `positions` under `frequencies` (radians a position, one a pair), cosine and sine times `factor`.
    pub fn new(positions: &[i32], frequencies: &[f32], factor: f32) -> Angles {
        let pairs = frequencies.len();
        let mut table = Buffer::<f32>::recycled(positions.len() * 2 * pairs);
        let rows = pool::rows_per_task(pairs * 64);
        pool::blocks(&mut table, (rows * 2 * pairs).max(1), |block, table| {
            for (i, row) in table.chunks_mut(2 * pairs).enumerate() {
                let position = positions[block * rows + i] as f32;
                let (cos, sin) = row.split_at_mut(pairs);
                for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                    let (s, c) = f64::from(position * frequency).sin_cos();
                    *cos = c as f32 * factor;
                    *sin = s as f32 * factor;
                }
            }
        });
        Angles { table, pairs, on_devices: Mutex::default() }
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        if self.pairs == 0 { 0 } else { self.table.len() / (2 * self.pairs) }
    }

    /// The table on a device.
    fn on(&self, gpu: &Arc<Gpu>) -> Result<Arc<DeviceBuffer>> {
        let mut copies = self.on_devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = copies.iter().find(|copy| Arc::ptr_eq(copy.gpu(), gpu)) {
            return Ok(Arc::clone(copy));
        }
        let bytes = bytemuck::cast_slice(&self.table);
        let copy = Arc::new(DeviceBuffer::upload(gpu, DType::F32, bytes)?);
        copies.push(Arc::clone(&copy));
        Ok(copy)
    }

    fn check(&self, [heads, head_dim]: [usize; 2], lengths: &[usize]) -> Result<()> {
        let fits = |length: &usize| *length == self.tokens() * heads * head_dim;
        if 2 * self.pairs <= head_dim && lengths.iter().all(fits) {
            return Ok(());
        }
        Err(Error::shape(format!(
            "rope: {lengths:?} elements as [{}, {heads}, {head_dim}] with {} pairs",
            self.tokens(),
            self.pairs
        )))
    }
}

/// Turns the first `2 · pairs` dimensions of every head; by the opposite angle where `inverse` (which is the
/// gradient). Other dimensions are copied.
///
/// # Shapes
/// `x`, `out` `[T, heads, head_dim]`.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit or a head has fewer dimensions than are turned.
pub fn rotate(
    x: &[f32],
    [heads, head_dim]: [usize; 2],
    angles: &Angles,
    layout: Layout,
    inverse: bool,
    out: &mut [f32],
) -> Result<()> {
    angles.check([heads, head_dim], &[x.len(), out.len()])?;
    let pairs = angles.pairs;
    let width = heads * head_dim;
    if x.is_empty() {
        return Ok(());
    }
    let rows = pool::rows_per_task(8 * width);
    let sign = if inverse { -1.0 } else { 1.0 };
    pool::blocks(out, rows * width, |block, out| {
        let first = block * rows;
        let x = &x[first * width..first * width + out.len()];
        for (i, (x, out)) in x.chunks(width).zip(out.chunks_mut(width)).enumerate() {
            let start = (first + i) * 2 * pairs;
            let (cos, sin) = angles.table[start..start + 2 * pairs].split_at(pairs);
            for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
                let (x, kept) = x.split_at(2 * pairs);
                let (out, rest) = out.split_at_mut(2 * pairs);
                rest.copy_from_slice(kept);
                match layout {
                    Layout::RotateHalf => turn_halves(x, cos, sin, sign, out),
                    Layout::Interleaved => turn_neighbours(x, cos, sin, sign, out),
                }
            }
        }
    });
    Ok(())
}

#[inline(always)]
fn turn_halves(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, out: &mut [f32]) {
    let pairs = cos.len();
    let (a, b) = x.split_at(pairs);
    let (out_a, out_b) = out.split_at_mut(pairs);
    let turned = out_a.iter_mut().zip(out_b);
    for ((((a, b), cos), sin), (out_a, out_b)) in a.iter().zip(b).zip(cos).zip(sin).zip(turned) {
        (*out_a, *out_b) = turn(*a, *b, *cos, sign * sin);
    }
}

#[inline(always)]
fn turn_neighbours(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, out: &mut [f32]) {
    let (x, out) = (x.as_chunks::<2>().0, out.as_chunks_mut::<2>().0);
    for ((([a, b], cos), sin), out) in x.iter().zip(cos).zip(sin).zip(out) {
        *out = turn(*a, *b, *cos, sign * sin).into();
    }
}

#[inline(always)]
fn turn(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (a * cos - b * sin, b * cos + a * sin)
}
