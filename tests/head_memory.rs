//! A policy loss over a large vocabulary keeps to its workspace budget: what the process holds at most while it is computed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::device::cpu::{memory, pool};
use gradstone::kernels::linear_logprob::{DEFAULT_WORKSPACE, workspace_bytes};
use gradstone::kernels::policy_loss::{Objective, Totals};
use gradstone::ops::{self, Advantages, PolicyColumns, SoftmaxOptions};
use gradstone::tensor::ParamId;
use gradstone::{DType, Tensor};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, and how much of it is held.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST_HELD: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

fn allocated(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST_HELD.fetch_max(held, Ordering::Relaxed);
    LARGEST.fetch_max(bytes, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const VOCAB: usize = 151_936;
const WIDTH: usize = 16;
const TOKENS: usize = 256;

/// Packing buffers of the matrix products, which are kept for the next product, and everything small.
const PACKING: usize = 32 << 20;

/// One call, with its gradients by hidden states and head.
fn compute(objective: &Objective, dtype: DType) {
    let waves =
        |count: usize, step: f32| (0..count).map(|i| (i as f32 * step).sin() * 0.3).collect();
    let tensor = |rows: usize, step: f32| {
        let values = Tensor::from_f32(waves(rows * WIDTH, step), &[rows, WIDTH]).unwrap();
        ops::cast(&values, dtype).unwrap().tracked(ParamId::fresh())
    };
    let (hidden, head) = (tensor(TOKENS, 0.37), tensor(VOCAB, 0.11));
    let targets: Vec<i32> = (0..TOKENS).map(|i| (i * 577 % VOCAB) as i32).collect();
    let old = Tensor::from_f32(vec![-11.9; TOKENS], &[TOKENS]).unwrap();
    let mask = Tensor::new(gradstone::tensor::Storage::U8(vec![1; TOKENS].into()), &[TOKENS]);
    let columns = PolicyColumns {
        old_logprob: Some(&old),
        advantage: Advantages::PerSequence(&[0.7, -0.4]),
        mask: &mask.unwrap(),
        offsets: &[0, 100, TOKENS as i64],
        reference_logprob: None,
        weight: None,
        sampler_logprob: None,
        off_policy: None,
        selected: None,
        totals: Totals::default(),
    };
    memory::trim();
    let before = HELD.load(Ordering::Relaxed);
    MOST_HELD.store(before, Ordering::Relaxed);
    LARGEST.store(0, Ordering::Relaxed);
    let softmax = SoftmaxOptions::default();
    let done =
        ops::linear_policy_loss(objective, &columns, &hidden, &head, None, &targets, &softmax);
    let most = MOST_HELD.load(Ordering::Relaxed) - before;
    let largest = LARGEST.load(Ordering::Relaxed);
    let roots = done.unwrap().roots;
    assert_eq!(roots.len(), 2);
    let results: usize = roots.iter().map(|(_, gradient)| 4 * gradient.len()).sum();
    // A buffer may be an eighth longer than what was asked for.
    let slack = |bytes: usize| bytes + bytes / 8;
    let what = format!("{dtype}, token by token {}", objective.is_token_by_token());
    assert!(workspace_bytes(TOKENS, WIDTH, VOCAB, dtype, 0) <= DEFAULT_WORKSPACE);
    assert!(largest <= slack(DEFAULT_WORKSPACE), "{what}: one of {largest} bytes");
    let allowed = slack(DEFAULT_WORKSPACE + results) + PACKING;
    assert!(most <= allowed, "{what}: {most} bytes of {allowed}");
    // The test would notice logits in memory.
    assert!(allowed < 4 * TOKENS * VOCAB && most > DEFAULT_WORKSPACE / 2, "{what}: {most}");
}

#[test]
fn a_large_vocabulary_stays_within_the_budget() {
    let sequences = Objective::preset("gspo").unwrap();
    for threads in [1, 2] {
        pool::set_threads(threads).unwrap();
        for dtype in [DType::F32, DType::Bf16] {
            compute(&Objective::default(), dtype);
            compute(&sequences, dtype);
        }
    }
}
