//! A product of weights in bf16 or f16 needs at most a tenth more memory than its operands and its result: they are widened
//! panel by panel. Counted by the allocator of this program, so all is in one test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::device::cpu::{memory, pool};
use gradstone::tensor::autograd::{backward_from, no_grad};
use gradstone::tensor::{Gradients, ParamId, Tensor};
use gradstone::{DType, ops};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it hands every call on to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What `work` returns, and the most memory that it held beyond what was held before.
fn peak<R>(work: impl FnOnce() -> R) -> (R, usize) {
    memory::trim();
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed) - before)
}

fn tensor(shape: &[usize], dtype: DType) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7919) % 1999) as f32 / 999.5 - 1.0).collect();
    Tensor::from_buffer(values.into(), shape, dtype).unwrap()
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.len() * tensor.dtype().size()
}

/// A tenth of the operands and the result on top of the result.
fn allowed(operands: &[&Tensor], results: &[&Tensor]) -> usize {
    let results: usize = results.iter().map(|tensor| bytes(tensor)).sum();
    let operands: usize = operands.iter().map(|tensor| bytes(tensor)).sum();
    results + (operands + results) / 10
}

#[test]
fn weights_are_widened_panel_by_panel() {
    pool::set_threads(2).unwrap();
    // The threads, and the memory that the engine keeps for itself.
    ops::linear(&tensor(&[64, 512], DType::F32), &tensor(&[512, 512], DType::F32), None).unwrap();
    for dtype in [DType::Bf16, DType::F16] {
        for (rows, width, out) in [(3, 2048, 8192), (64, 2048, 8192), (512, 512, 16_384)] {
            let what = format!("[{rows}, {width}] x [{out}, {width}] {dtype}");
            let (x, weight) = (tensor(&[rows, width], dtype), tensor(&[out, width], dtype));
            let bias = tensor(&[out], dtype);
            let of = |x: &Tensor, weight: &Tensor| ops::linear(x, weight, Some(&bias)).unwrap();
            let (y, held) = peak(|| no_grad(|| of(&x, &weight)));
            let most = allowed(&[&x, &weight, &bias], &[&y]);
            assert!(held <= most, "{what}: {held} bytes, {most} allowed");

            let (logits, held) = peak(|| ops::logits(&x, &weight).unwrap());
            let most = allowed(&[&x, &weight], &[&logits]);
            assert!(held <= most, "logits {what}: {held} bytes, {most} allowed");
            drop(logits);

            let ids = [ParamId::fresh(), ParamId::fresh()];
            let y = of(&x.tracked(ids[0]), &weight.tracked(ids[1]));
            let grad = tensor(&[rows, out], DType::F32);
            let mut gradients = Gradients::new();
            let ((), held) =
                peak(|| backward_from(vec![(y, grad.clone())], &mut gradients).unwrap());
            let results = ids.map(|id| gradients.get(id).unwrap());
            let most = allowed(&[&x, &weight, &grad], &results);
            assert!(held <= most, "gradients {what}: {held} bytes, {most} allowed");
        }
    }
}
