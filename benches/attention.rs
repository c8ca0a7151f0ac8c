//! Attention of packed sequences, forward and backward, and of one new token a sequence against the KV cache.
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use gradstone::DType;
use gradstone::device::cpu::pool;
use gradstone::dtype::{FloatSlice, FloatSliceMut};
use gradstone::kernels::attention::{
    Attention, Backward, Forward, KvCache, Mask, backward, forward,
};
use timing::{Memory, Options, Work};

/// Causal sequences of one length: `[sequences, length, query heads, key-value heads, head width]`.
fn packed(options: &Options, flop: f64, shape: [usize; 5]) {
    let [_, length, query_heads, kv_heads, head_dim] = shape;
    let spec = Attention::causal(query_heads, kv_heads, head_dim);
    run(options, flop, "attention", spec, shape, length * (length + 1) / 2);
}

/// Two copies of sequences of one length in blocks of four, noised and clean: the same shapes.
fn two_copies(
    options: &Options,
    flop: f64,
    [sequences, n, query_heads, kv_heads, head_dim]: [usize; 5],
) {
    let block = 4;
    let spec = Attention {
        mask: Mask::BlockDiffusion { block },
        ..Attention::causal(query_heads, kv_heads, head_dim)
    };
    let shape = [sequences, 2 * n, query_heads, kv_heads, head_dim];
    run(options, flop, "block_diffusion", spec, shape, n * n + n * block);
}

/// Forward and backward, `seen` pairs a head and sequence being let through.
fn run(options: &Options, flop: f64, name: &str, spec: Attention, shape: [usize; 5], seen: usize) {
    let [sequences, length, query_heads, kv_heads, head_dim] = shape;
    let tokens = sequences * length;
    let segments: Vec<usize> = (0..=sequences).map(|s| s * length).collect();
    let [q, k, v] = [(query_heads, 1), (kv_heads, 2), (kv_heads, 3)]
        .map(|(heads, seed)| timing::normal(tokens * heads * head_dim, seed, 1.0));
    let dout = timing::normal(q.len(), 4, 1.0);
    let mut out = vec![0f32; q.len()];
    let mut logsumexp = vec![0f32; tokens * query_heads];
    // Only the pairs that the mask lets through count as work.
    let flops = 2.0 * (sequences * seen * query_heads * head_dim * 2) as f64;
    let timing = options.time(|| {
        let args = Forward {
            q: FloatSlice::F32(&q),
            k: FloatSlice::F32(&k),
            v: FloatSlice::F32(&v),
            segments: &segments,
            out: FloatSliceMut::F32(&mut out),
            logsumexp: Some(&mut logsumexp),
        };
        forward(&spec, args).unwrap();
    });
    let bound = flops * flop * 1e3;
    timing::print(&format!("{name}_fwd"), &shape, "f32", timing, bound, &Work::Flops(flops));
    let mut gradients = [q.len(), k.len(), v.len()].map(|len| vec![0f32; len]);
    let timing = options.time(|| {
        let [dq, dk, dv] = &mut gradients;
        let args = Backward {
            q: FloatSlice::F32(&q),
            k: FloatSlice::F32(&k),
            v: FloatSlice::F32(&v),
            out: FloatSlice::F32(&out),
            logsumexp: &logsumexp,
            segments: &segments,
            dout: &dout,
            dq,
            dk,
            dv,
        };
        backward(&spec, args).unwrap();
    });
    let (bound, flops) = (2.5 * bound, 2.5 * flops);
    timing::print(&format!("{name}_bwd"), &shape, "f32", timing, bound, &Work::Flops(flops));
}

/// One new token for each sequence: `[sequences, cached length, heads, head width]`.
fn decoding(options: &Options, memory: &Memory, shape: [usize; 4]) {
    let [sequences, length, heads, head_dim] = shape;
    let spec = Attention::causal(heads, heads, head_dim);
    let one_each: Vec<usize> = (0..=sequences).collect();
    let token = timing::normal(sequences * heads * head_dim, 1, 1.0);
    let token = FloatSlice::F32(&token);
    let mut out = vec![0f32; token.len()];
    let mut cache = KvCache::new(DType::F32, 1, sequences, heads, head_dim, 1 << 20).unwrap();
    for _ in 0..length {
        cache.append(0, token, token, &one_each).unwrap();
    }
    let bytes = sequences * length * heads * head_dim * 2 * 4;
    let timing = options.time(|| {
        cache.attend(&spec, 0, token, &one_each, FloatSliceMut::F32(&mut out)).unwrap();
    });
    let bound = memory.read * bytes as f64 * 1e3;
    timing::print("attention_decode", &shape, "f32", timing, bound, &Work::Bytes(bytes));
}

fn main() {
    let options = Options::from_args();
    for threads in options.threads.clone() {
        pool::set_threads(threads).unwrap();
        let flop = timing::gemm_flop();
        if options.wants("attention") {
            packed(&options, flop, [64, 64, 4, 4, 32]);
            packed(&options, flop, [1, 1024, 8, 2, 64]);
            packed(&options, flop, [4, 512, 4, 4, 128]);
        }
        if options.wants("block_diffusion") {
            two_copies(&options, flop, [1, 512, 8, 8, 64]);
            two_copies(&options, flop, [4, 512, 4, 4, 32]);
        }
        if options.wants("decode") {
            decoding(&options, &Memory::measure(), [256, 60, 4, 32]);
        }
    }
}
