//! Attention: `cargo bench --bench attention`. One line per shape: milliseconds and GFLOP/s over the pairs a query sees.
#![allow(clippy::unwrap_used, missing_docs)]

use gradstone::DType;
use gradstone::device::cpu::pool;
use gradstone::dtype::{FloatSlice, FloatSliceMut};
use gradstone::kernels::attention::{Attention, Forward, KvCache, forward};
use std::time::Instant;

fn median(mut run: impl FnMut()) -> f64 {
    run();
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761 % 1000) as f32 - 500.0) / 300.0).collect()
}

fn main() {
    for threads in [1, 2] {
        pool::set_threads(threads).unwrap();
        for (name, spec, batch, length) in [
            ("tiny GPT step", Attention::causal(4, 4, 32), 64, 64),
            ("1 x 1024, 8/2 x 64", Attention::causal(8, 2, 64), 1, 1024),
            ("4 x 512, 4/4 x 128", Attention::causal(4, 4, 128), 4, 512),
        ] {
            let tokens = batch * length;
            let segments: Vec<usize> = (0..=batch).map(|s| s * length).collect();
            let q = values(tokens * spec.query_heads * spec.head_dim);
            let k = values(tokens * spec.kv_heads * spec.head_dim);
            let mut out = vec![0f32; q.len()];
            let mut logsumexp = vec![0f32; tokens * spec.query_heads];
            let pairs = (batch * length * (length + 1) / 2 * spec.query_heads) as f64;
            let flops = 4.0 * pairs * spec.head_dim as f64;
            let ms = median(|| {
                forward(
                    &spec,
                    Forward {
                        q: FloatSlice::F32(&q),
                        k: FloatSlice::F32(&k),
                        v: FloatSlice::F32(&k),
                        segments: &segments,
                        out: FloatSliceMut::F32(&mut out),
                        logsumexp: Some(&mut logsumexp),
                    },
                )
                .unwrap();
            });
            println!(
                "{threads} threads  {name:20} forward   {ms:8.3} ms {:7.1} GFLOP/s",
                flops / ms / 1e6
            );
        }
        let spec = Attention::causal(4, 4, 32);
        let one_each: Vec<usize> = (0..=256).collect();
        let token = values(256 * 128);
        let mut out = vec![0f32; token.len()];
        let mut cache = KvCache::new(DType::F32, 1, 256, 4, 32, 100_000).unwrap();
        let tokens = FloatSlice::F32(&token);
        for _ in 0..60 {
            cache.append(0, tokens, tokens, &one_each).unwrap();
        }
        let ms = median(|| {
            cache.attend(&spec, 0, tokens, &one_each, FloatSliceMut::F32(&mut out)).unwrap();
        });
        println!("{threads} threads  256 decoding at 60   attend    {ms:8.3} ms");
        let ms = median(|| cache.append(0, tokens, tokens, &one_each).unwrap());
        println!("{threads} threads  256 decoding         append    {ms:8.3} ms");
    }
}
