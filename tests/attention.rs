//! Attention against an f64 oracle, its gradients against the oracle's, and the promise that a query has the same bits
//! cached and packed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::DType;
use gradstone::device::cpu::pool;
use gradstone::dtype::{Float, FloatSlice, FloatSliceMut};
use gradstone::kernels::attention::{
    Attention, Backward, Forward, KvCache, Mask, backward, forward,
};
use gradstone::rng::{self, Stream};
use half::{bf16, f16};
use proptest::prelude::*;

/// A storage type whose slices kernels take.
trait Stored: Float {
    fn view(values: &[Self]) -> FloatSlice<'_>;
    fn view_mut(values: &mut [Self]) -> FloatSliceMut<'_>;
}

macro_rules! stored {
    ($($T:ty, $Variant:ident;)*) => {$(
        impl Stored for $T {
            fn view(values: &[$T]) -> FloatSlice<'_> {
                FloatSlice::$Variant(values)
            }
            fn view_mut(values: &mut [$T]) -> FloatSliceMut<'_> {
                FloatSliceMut::$Variant(values)
            }
        }
    )*};
}
stored! { f32, F32; bf16, Bf16; f16, F16; }

fn normal<T: Float>(len: usize, seed: u64) -> Vec<T> {
    let draw = |i: usize| {
        let [a, b, ..] = rng::bits(seed, Stream::Free, i as u64, 0);
        T::from_f32(rng::normal_pair(a, b).0)
    };
    (0..len).map(draw).collect()
}

fn offsets(lengths: &[usize]) -> Vec<usize> {
    let mut offsets = vec![0];
    lengths.iter().for_each(|length| offsets.push(offsets[offsets.len() - 1] + length));
    offsets
}

#[derive(Clone)]
struct Case<T> {
    spec: Attention,
    segments: Vec<usize>,
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
}

impl<T: Stored> Case<T> {
    /// Sequences of the given lengths; of two copies of such length where the mask is for two.
    fn new(spec: Attention, lengths: &[usize], seed: u64) -> Case<T> {
        let copies = if matches!(spec.mask, Mask::BlockDiffusion { .. }) { 2 } else { 1 };
        let segments = offsets(&lengths.iter().map(|n| n * copies).collect::<Vec<_>>());
        let tokens = segments[lengths.len()];
        Case {
            spec,
            q: normal(tokens * spec.query_heads * spec.head_dim, 3 * seed),
            k: normal(tokens * spec.kv_heads * spec.head_dim, 3 * seed + 1),
            v: normal(tokens * spec.kv_heads * spec.head_dim, 3 * seed + 2),
            segments,
        }
    }

    fn tokens(&self) -> usize {
        self.segments[self.segments.len() - 1]
    }

    /// (out, logsumexp)
    fn run(&self) -> (Vec<T>, Vec<f32>) {
        let mut out = vec![T::from_f32(f32::NAN); self.q.len()];
        let mut logsumexp = vec![f32::NAN; self.tokens() * self.spec.query_heads];
        let args = Forward {
            q: T::view(&self.q),
            k: T::view(&self.k),
            v: T::view(&self.v),
            segments: &self.segments,
            out: T::view_mut(&mut out),
            logsumexp: Some(&mut logsumexp),
        };
        forward(&self.spec, args).unwrap();
        (out, logsumexp)
    }

    /// [dq, dk, dv] for a gradient of the output.
    fn gradients(&self, dout: &[f32]) -> [Vec<f32>; 3] {
        let (out, logsumexp) = self.run();
        let mut gradients =
            [self.q.len(), self.k.len(), self.v.len()].map(|len| vec![f32::NAN; len]);
        let [dq, dk, dv] = &mut gradients;
        let args = Backward {
            q: T::view(&self.q),
            k: T::view(&self.k),
            v: T::view(&self.v),
            out: T::view(&out),
            logsumexp: &logsumexp,
            segments: &self.segments,
            dout,
            dq,
            dk,
            dv,
        };
        backward(&self.spec, args).unwrap();
        gradients
    }

    /// The same through a cache, each sequence in chunks of at most `chunk` tokens.
    fn run_cached(&self, chunk: usize) -> Vec<T> {
        let spec = self.spec;
        let [q_row, k_row] = [spec.query_heads, spec.kv_heads].map(|heads| heads * spec.head_dim);
        let sequences = self.segments.len() - 1;
        let mut cache =
            KvCache::new(T::DTYPE, 2, sequences, spec.kv_heads, spec.head_dim, 1000).unwrap();
        let mut out = vec![T::from_f32(f32::NAN); self.q.len()];
        loop {
            let done: Vec<usize> = (0..sequences).map(|s| cache.length(1, s).unwrap()).collect();
            let ranges: Vec<_> = (0..sequences)
                .map(|s| {
                    let start = self.segments[s] + done[s];
                    start..(start + chunk).min(self.segments[s + 1])
                })
                .collect();
            let segments = offsets(&ranges.iter().map(|r| r.len()).collect::<Vec<_>>());
            if segments[sequences] == 0 {
                return out;
            }
            let gather = |values: &[T], width: usize| -> Vec<T> {
                let rows = ranges.iter().cloned().flatten();
                rows.flat_map(|t| values[t * width..(t + 1) * width].to_vec()).collect()
            };
            let (k, v) = (gather(&self.k, k_row), gather(&self.v, k_row));
            cache.append(1, T::view(&k), T::view(&v), &segments).unwrap();
            let q = gather(&self.q, q_row);
            let mut part = vec![T::from_f32(f32::NAN); q.len()];
            cache.attend(&spec, 1, T::view(&q), &segments, T::view_mut(&mut part)).unwrap();
            for (row, token) in part.chunks(q_row).zip(ranges.into_iter().flatten()) {
                out[token * q_row..(token + 1) * q_row].copy_from_slice(row);
            }
        }
    }

    fn widened(&self) -> Case<f64> {
        let wide = |values: &[T]| values.iter().map(|x| f64::from(x.to_f32())).collect();
        Case {
            spec: self.spec,
            segments: self.segments.clone(),
            q: wide(&self.q),
            k: wide(&self.k),
            v: wide(&self.v),
        }
    }
}

impl Case<f64> {
    fn sees(&self, query: usize, key: usize, length: usize) -> bool {
        match self.spec.mask {
            Mask::Full => true,
            Mask::BlockCausal { block } => key / block <= query / block,
            Mask::BlockDiffusion { block } => {
                let half = length / 2;
                let of = |position: usize| ((position % half) / block, position < half);
                match (of(query), of(key)) {
                    ((q, true), (k, true)) => q == k,
                    ((q, true), (k, false)) => k < q,
                    ((q, false), (k, false)) => k <= q,
                    ((_, false), (_, true)) => false,
                }
            }
            _ => key <= query && self.spec.window.is_none_or(|window| key + window > query),
        }
    }

    /// The definition: (out, logsumexp).
    fn oracle(&self) -> (Vec<f64>, Vec<f64>) {
        let Attention { query_heads, kv_heads, head_dim, .. } = self.spec;
        let mut out = vec![0.0; self.q.len()];
        let mut logsumexp = vec![0.0; self.segments[self.segments.len() - 1] * query_heads];
        for bounds in self.segments.windows(2) {
            for query in bounds[0]..bounds[1] {
                for head in 0..query_heads {
                    let row = query * query_heads + head;
                    let q = &self.q[row * head_dim..(row + 1) * head_dim];
                    let key_row = |key: usize| {
                        let row = key * kv_heads + head / (query_heads / kv_heads);
                        row * head_dim..(row + 1) * head_dim
                    };
                    let keys: Vec<usize> = (bounds[0]..bounds[1])
                        .filter(|key| {
                            self.sees(query - bounds[0], key - bounds[0], bounds[1] - bounds[0])
                        })
                        .collect();
                    let scores: Vec<f64> = keys
                        .iter()
                        .map(|key| {
                            let k = &self.k[key_row(*key)];
                            let dot: f64 = q.iter().zip(k).map(|(a, b)| a * b).sum();
                            let score = dot * f64::from(self.spec.scale);
                            self.spec.softcap.map_or(score, |cap| {
                                f64::from(cap) * (score / f64::from(cap)).tanh()
                            })
                        })
                        .collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                    logsumexp[row] = max + sum.ln();
                    for (key, score) in keys.iter().zip(&scores) {
                        let p = (score - logsumexp[row]).exp();
                        let v = &self.v[key_row(*key)];
                        for (out, v) in out[row * head_dim..].iter_mut().zip(v) {
                            *out += p * v;
                        }
                    }
                }
            }
        }
        (out, logsumexp)
    }
}

/// Compares `<gradient, direction>` with the oracle's central difference, for directions that move all of q, k or v
/// or one token of it.
fn gradients_are_slopes<T: Stored>(spec: Attention, lengths: &[usize], seed: u64, tolerance: f64) {
    let case = Case::<T>::new(spec, lengths, seed);
    let dout: Vec<f32> = normal(case.q.len(), 3 * seed + 100);
    let gradients = case.gradients(&dout);
    let loss = |case: &Case<f64>| -> f64 {
        case.oracle().0.iter().zip(&dout).map(|(out, dout)| out * f64::from(*dout)).sum()
    };
    let step = 1e-4;
    for which in 0..3 {
        let width = case.spec.head_dim * if which == 0 { spec.query_heads } else { spec.kv_heads };
        let token = seed as usize * 7919 % case.tokens().max(1);
        for range in [0..gradients[which].len(), token * width..(token + 1) * width] {
            if gradients[which].is_empty() {
                continue;
            }
            let direction: Vec<f32> = normal(range.len(), seed + 200);
            let moved = |by: f64| {
                let mut moved = case.widened();
                let values = [&mut moved.q, &mut moved.k, &mut moved.v];
                for (x, d) in values[which][range.clone()].iter_mut().zip(&direction) {
                    *x += by * f64::from(*d);
                }
                loss(&moved)
            };
            let want = (moved(step) - moved(-step)) / (2.0 * step);
            let part = &gradients[which][range];
            let got: f64 =
                part.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let size: f64 = part.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!(
                (got - want).abs() <= tolerance * (size + (part.len() as f64).sqrt()),
                "gradient {which}: {got} instead of {want} (norm {size}), {spec:?} {lengths:?}"
            );
        }
    }
}

fn close(got: impl IntoIterator<Item = f32>, want: &[f64], tolerance: f64, what: &str) {
    let mut count = 0;
    for (i, (got, want)) in got.into_iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "{what}[{i}]: {got} instead of {want}");
        count += 1;
    }
    assert_eq!(count, want.len());
}

fn bits<T: Float>(values: &[T]) -> Vec<u32> {
    values.iter().map(|x| x.to_f32().to_bits()).collect()
}

fn mask() -> impl Strategy<Value = Mask> {
    let block = prop::sample::select(vec![1usize, 3, 4, 16, 60, 64, 100]);
    prop_oneof![
        2 => Just(Mask::Causal),
        1 => Just(Mask::Full),
        1 => block.clone().prop_map(|block| Mask::BlockCausal { block }),
        2 => block.prop_map(|block| Mask::BlockDiffusion { block }),
    ]
}

/// Heads, width, window, softcap and mask that cover every branch.
fn spec() -> impl Strategy<Value = Attention> {
    (
        prop::sample::select(vec![(1, 1), (2, 1), (4, 1), (4, 2), (3, 3), (6, 2)]),
        prop::sample::select(vec![8, 16, 32, 40, 64, 128, 3]),
        prop::option::of(prop::sample::select(vec![1, 2, 17, 64, 100])),
        prop::option::of(prop::sample::select(vec![1.5f32, 30.0])),
        mask(),
    )
        .prop_map(|((query_heads, kv_heads), dim, window, softcap, mask)| Attention {
            mask,
            window: window.filter(|_| mask == Mask::Causal),
            softcap,
            ..Attention::causal(query_heads, kv_heads, dim)
        })
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop::sample::select(vec![0, 1, 2, 5, 31, 63, 64, 65, 130]), 0..4)
}

fn against_the_oracle<T: Stored>(spec: Attention, lengths: &[usize], seed: u64, tolerance: f64) {
    let case = Case::<T>::new(spec, lengths, seed);
    let (out, logsumexp) = case.run();
    let (want_out, want_logsumexp) = case.widened().oracle();
    close(out.iter().map(|x| x.to_f32()), &want_out, tolerance, "out");
    close(logsumexp, &want_logsumexp, 3e-6, "logsumexp");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn forward_is_the_definition(spec in spec(), lengths in lengths(), seed in 0u64..1000) {
        against_the_oracle::<f32>(spec, &lengths, seed, 3e-6);
        against_the_oracle::<bf16>(spec, &lengths, seed, 5e-3);
        against_the_oracle::<f16>(spec, &lengths, seed, 7e-4);
    }

    #[test]
    fn backward_is_the_slope(spec in spec(), lengths in lengths(), seed in 0u64..1000) {
        gradients_are_slopes::<f32>(spec, &lengths, seed, 2e-4);
        gradients_are_slopes::<bf16>(spec, &lengths, seed, 3e-2);
    }

    #[test]
    fn cached_is_packed_to_the_bit(
        spec in spec(), lengths in lengths(), seed in 0u64..1000, chunk in 1usize..90,
    ) {
        // A query that sees tokens after it needs them in the cache.
        let chunks = match spec.mask {
            Mask::Full => vec![1000],
            Mask::BlockCausal { block } => vec![block, block * (1 + chunk / block), 1000],
            Mask::BlockDiffusion { .. } => return Ok(()),
            _ => vec![1, chunk, 1000],
        };
        let case = Case::<f32>::new(spec, &lengths, seed);
        let packed = bits(&case.run().0);
        for chunk in &chunks {
            prop_assert_eq!(&bits(&case.run_cached(*chunk)), &packed);
        }
        let case = Case::<bf16>::new(spec, &lengths, seed);
        let packed = bits(&case.run().0);
        for chunk in &chunks {
            prop_assert_eq!(&bits(&case.run_cached(*chunk)), &packed);
        }
    }
}

#[test]
fn a_long_sequence_cached_and_packed() {
    for softcap in [None, Some(20.0)] {
        let spec = Attention { softcap, window: Some(90), ..Attention::causal(4, 2, 16) };
        let case = Case::<f32>::new(spec, &[200, 0, 65, 1], 5);
        assert_eq!(bits(&case.run_cached(1)), bits(&case.run().0));
    }
}

#[test]
fn neighbours_threads_and_repeats_do_not_matter() {
    let case = Case::<f32>::new(Attention::causal(4, 2, 32), &[70, 1, 64, 3], 11);
    let (out, logsumexp) = case.run();
    let dout: Vec<f32> = normal(case.q.len(), 12);
    let gradients = case.gradients(&dout);
    for threads in [1, 2, 4, 0] {
        pool::set_threads(threads).unwrap();
        let again = case.run();
        assert_eq!((bits(&again.0), bits(&again.1)), (bits(&out), bits(&logsumexp)));
        assert_eq!(bits(&case.run_cached(1)), bits(&out));
        assert_eq!(case.gradients(&dout).map(|g| bits(&g)), gradients.clone().map(|g| bits(&g)));
    }
    for s in 0..4 {
        let range = case.segments[s]..case.segments[s + 1];
        let rows =
            |values: &[f32], width: usize| values[range.start * width..range.end * width].to_vec();
        let alone = Case {
            spec: case.spec,
            segments: vec![0, range.len()],
            q: rows(&case.q, 128),
            k: rows(&case.k, 64),
            v: rows(&case.v, 64),
        };
        assert_eq!(bits(&alone.run().0), bits(&rows(&out, 128)));
        let part = alone.gradients(&rows(&dout, 128));
        for (part, (whole, width)) in part.iter().zip(gradients.iter().zip([128, 64, 64])) {
            assert_eq!(bits(part), bits(&rows(whole, width)));
        }
    }
}

#[test]
fn keys_that_a_query_does_not_see_may_be_nan() {
    for spec in
        [Attention::causal(2, 1, 16), Attention { window: Some(10), ..Attention::causal(2, 2, 16) }]
    {
        let case = Case::<f32>::new(spec, &[100], 3);
        let clean = case.run().0;
        let width = spec.kv_heads * 16;
        let mut poisoned = case.clone();
        for (token, rows) in poisoned.k.chunks_mut(width).enumerate() {
            // A window of 10 lets query 50 see keys 41 to 50.
            if token > 50 || (spec.window.is_some() && token < 41) {
                rows.fill(f32::NAN);
                poisoned.v[token * width..(token + 1) * width].fill(f32::NAN);
            }
        }
        let dirty = poisoned.run().0;
        let row = 50 * 32..51 * 32;
        assert_eq!(bits(&dirty[row.clone()]), bits(&clean[row]));
        assert!(dirty[51 * 32].is_nan());
    }
}

#[test]
fn kept_and_forked_sequences_go_on_with_the_same_bits() {
    let spec = Attention::causal(2, 1, 8);
    let case = Case::<f32>::new(spec, &[70, 10, 66], 2);
    let want = case.run().0;
    // All but the last token of each; then keep sequences 2 (twice) and 0.
    let mut cache = KvCache::new(DType::F32, 1, 3, 1, 8, 80).unwrap();
    let first = |s: usize| case.segments[s] * 8..(case.segments[s + 1] - 1) * 8;
    let head = |values: &[f32]| [0, 1, 2].map(|s| values[first(s)].to_vec()).concat();
    let segments = offsets(&[69, 9, 65]);
    cache
        .append(0, FloatSlice::F32(&head(&case.k)), FloatSlice::F32(&head(&case.v)), &segments)
        .unwrap();
    let before = cache.bytes();
    cache.keep(&[2, 2, 0]).unwrap();
    assert!(cache.bytes() < before, "the dropped sequence still holds memory");
    let last = |values: &[f32], width: usize| {
        [2, 2, 0]
            .map(|s| {
                let token = case.segments[s + 1] - 1;
                values[token * width..(token + 1) * width].to_vec()
            })
            .concat()
    };
    let one_each = [0, 1, 2, 3];
    let (k, v, q) = (last(&case.k, 8), last(&case.v, 8), last(&case.q, 16));
    cache.append(0, FloatSlice::F32(&k), FloatSlice::F32(&v), &one_each).unwrap();
    let mut out = vec![0f32; q.len()];
    cache.attend(&spec, 0, FloatSlice::F32(&q), &one_each, FloatSliceMut::F32(&mut out)).unwrap();
    assert_eq!(bits(&out), bits(&last(&want, 16)));
    // The forks part ways without touching one another.
    let mut other = k.clone();
    other[..8].fill(3.0);
    cache.append(0, FloatSlice::F32(&other), FloatSlice::F32(&v), &one_each).unwrap();
    cache.attend(&spec, 0, FloatSlice::F32(&q), &one_each, FloatSliceMut::F32(&mut out)).unwrap();
    assert_ne!(bits(&out[..16]), bits(&out[16..32]));
}

/// Tokens that were tried and forgotten leave no trace, in a fork neither.
#[test]
fn a_truncated_cache_goes_on_with_the_same_bits() {
    let spec = Attention { mask: Mask::BlockCausal { block: 4 }, ..Attention::causal(2, 1, 16) };
    let all = Case::<f32>::new(spec, &[72], 41);
    let tried = Case::<f32>::new(spec, &[72], 42);
    let width = 16;
    let attend =
        |cache: &mut KvCache, from: &Case<f32>, tokens: std::ops::Range<usize>| -> Vec<f32> {
            let part = tokens.start * width..tokens.end * width;
            let count = tokens.len();
            let (k, v) = (f32::view(&from.k[part.clone()]), f32::view(&from.v[part]));
            cache.append(0, k, v, &[0, count]).unwrap();
            let q = f32::view(&from.q[tokens.start * 2 * width..tokens.end * 2 * width]);
            let mut out = vec![0f32; count * 2 * width];
            cache.attend(&spec, 0, q, &[0, count], f32::view_mut(&mut out)).unwrap();
            out
        };
    let new = || KvCache::new(DType::F32, 1, 1, 1, width, 100).unwrap();
    let (mut plain, mut tidied) = (new(), new());
    for first in (0..72).step_by(4) {
        let want = attend(&mut plain, &all, first..first + 4);
        let fork = tidied.clone();
        attend(&mut tidied, &tried, first..first + 4);
        tidied.truncate(&[first]).unwrap();
        assert_eq!(fork.length(0, 0), tidied.length(0, 0));
        assert_eq!(bits(&attend(&mut tidied, &all, first..first + 4)), bits(&want), "{first}");
    }
    assert!(tidied.truncate(&[73]).unwrap_err().is_invalid());
    assert!(tidied.truncate(&[1, 2]).unwrap_err().is_shape());
    assert_eq!(tidied.length(0, 0), Some(72));
}

#[test]
fn bad_arguments_are_errors() {
    let spec = Attention::causal(4, 2, 8);
    let case = Case::<f32>::new(spec, &[3, 2], 1);
    let run = |spec: &Attention, q: FloatSlice<'_>, segments: &[usize]| {
        let mut out = vec![0f32; case.q.len()];
        let args = Forward {
            q,
            k: FloatSlice::F32(&case.k),
            v: FloatSlice::F32(&case.v),
            segments,
            out: FloatSliceMut::F32(&mut out),
            logsumexp: None,
        };
        forward(spec, args)
    };
    let q = FloatSlice::F32(&case.q);
    run(&spec, q, &[0, 3, 5]).unwrap();
    assert!(run(&spec, q, &[0, 4, 3, 5]).unwrap_err().is_shape());
    assert!(run(&spec, q, &[1, 5]).unwrap_err().is_shape());
    assert!(run(&spec, q, &[]).unwrap_err().is_shape());
    assert!(run(&spec, q, &[0, 6]).unwrap_err().is_shape());
    assert!(run(&spec, FloatSlice::F32(&case.q[1..]), &[0, 5]).unwrap_err().is_shape());
    let half: Vec<bf16> = normal(case.q.len(), 1);
    assert!(run(&spec, FloatSlice::Bf16(&half), &[0, 5]).unwrap_err().is_dtype());
    for bad in [
        Attention { query_heads: 3, ..spec },
        Attention { kv_heads: 0, ..spec },
        Attention { window: Some(0), ..spec },
        Attention { softcap: Some(-1.0), ..spec },
        Attention { scale: f32::NAN, ..spec },
        Attention { mask: Mask::Full, window: Some(4), ..spec },
        Attention { mask: Mask::BlockCausal { block: 0 }, ..spec },
        Attention { mask: Mask::BlockDiffusion { block: 0 }, ..spec },
        Attention { mask: Mask::BlockDiffusion { block: 4 }, window: Some(4), ..spec },
    ] {
        assert!(run(&bad, q, &[0, 5]).unwrap_err().is_invalid(), "{bad:?}");
    }

    let copies = Attention { mask: Mask::BlockDiffusion { block: 2 }, ..spec };
    let odd = run(&copies, q, &[0, 2, 5]).unwrap_err();
    assert!(odd.is_shape() && odd.to_string().contains("sequence 1 has 3"), "{odd}");

    let mut cache = KvCache::new(DType::F32, 1, 2, 2, 8, 4).unwrap();
    let (k, v) = (FloatSlice::F32(&case.k), FloatSlice::F32(&case.v));
    assert!(cache.append(1, k, v, &[0, 3, 5]).unwrap_err().is_index());
    assert!(cache.append(0, k, v, &[0, 5]).unwrap_err().is_shape());
    assert!(cache.append(0, k, v, &[0, 5, 5]).unwrap_err().is_invalid());
    let mut out = vec![0f32; case.q.len()];
    let mut attend =
        |cache: &KvCache| cache.attend(&spec, 0, q, &[0, 3, 5], FloatSliceMut::F32(&mut out));
    assert!(attend(&cache).unwrap_err().is_shape(), "nothing is cached yet");
    cache.append(0, k, v, &[0, 3, 5]).unwrap();
    attend(&cache).unwrap();
    let error = cache.attend(&copies, 0, q, &[0, 3, 5], FloatSliceMut::F32(&mut out)).unwrap_err();
    assert!(error.is_unsupported(), "{error}");
    assert!(cache.keep(&[2]).unwrap_err().is_index());
    let other = |dtype, width| KvCache::new(dtype, 1, 2, 2, width, 4).unwrap();
    let mut take_up =
        |other: KvCache, rows: &[usize]| cache.take_up(&other, rows).map(|()| cache.sequences());
    assert!(take_up(other(DType::F32, 8), &[2]).unwrap_err().is_index());
    assert!(take_up(other(DType::F32, 16), &[0]).unwrap_err().is_shape());
    assert!(take_up(other(DType::Bf16, 8), &[0]).unwrap_err().is_dtype());
    assert_eq!(take_up(other(DType::F32, 8), &[1, 1, 0]).unwrap(), 5);
    assert!(KvCache::new(DType::I32, 1, 1, 1, 8, 4).unwrap_err().is_dtype());
}

/// Keys that no query of the mask sees may be anything: they are never read into arithmetic.
#[test]
fn nothing_unseen_is_read() {
    let spec = Attention { mask: Mask::BlockDiffusion { block: 4 }, ..Attention::causal(2, 1, 16) };
    let mut case = Case::<f32>::new(spec, &[70], 21);
    let dout: Vec<f32> = normal(case.q.len(), 22);
    let (out, _) = case.run();
    let gradients = case.gradients(&dout);
    // Noised keys of block 5 and clean keys of the last block are seen by those blocks alone.
    for position in (20..24).chain(138..140) {
        case.k[position * 16..(position + 1) * 16].fill(f32::NAN);
        case.v[position * 16..(position + 1) * 16].fill(f32::NAN);
    }
    let (broken, _) = case.run();
    let [broken_dq, ..] = case.gradients(&dout);
    for token in 0..140 {
        let seen = (20..24).contains(&token) || (138..140).contains(&token);
        let row = token * 32..(token + 1) * 32;
        assert_eq!(broken[row.clone()].iter().any(|x| x.is_nan()), seen, "token {token}");
        if !seen {
            assert_eq!(bits(&broken[row.clone()]), bits(&out[row.clone()]));
            assert_eq!(bits(&broken_dq[row.clone()]), bits(&gradients[0][row]));
        }
    }
}

/// A noised token's output is that of the sequence `[clean tokens before its block; its noised block]` alone: training
/// all blocks at once is the sum of training each.
#[test]
fn two_copies_are_all_single_blocks() {
    let (n, block) = (37, 5);
    let spec = Attention { mask: Mask::BlockDiffusion { block }, ..Attention::causal(4, 2, 16) };
    let case = Case::<f32>::new(spec, &[n], 31);
    let (out, _) = case.run();
    let single = Attention { mask: Mask::Full, ..spec };
    for first in (0..n).step_by(block) {
        let tokens: Vec<usize> = (n..n + first).chain(first..(first + block).min(n)).collect();
        let gather = |values: &[f32], width: usize| -> Vec<f32> {
            tokens.iter().flat_map(|t| values[t * width..(t + 1) * width].to_vec()).collect()
        };
        let alone = Case {
            spec: single,
            segments: vec![0, tokens.len()],
            q: gather(&case.q, 64),
            k: gather(&case.k, 32),
            v: gather(&case.v, 32),
        };
        let (want, _) = alone.run();
        let want: Vec<f64> = want[first * 64..].iter().map(|x| f64::from(*x)).collect();
        let got = out[first * 64..(first + want.len() / 64) * 64].iter().copied();
        close(got, &want, 2e-6, "block");
    }
}

#[test]
fn work_is_near_what_the_mask_holds() {
    for (n, block) in [(1024, 4), (1000, 4), (2048, 32), (4096, 4), (640, 640)] {
        let spec = Attention { mask: Mask::BlockDiffusion { block }, ..Attention::causal(1, 1, 8) };
        let visited = spec.visited_tiles(&[0, 2 * n]) * 64 * 64;
        let seen = n * n + n * block;
        let dense = 4 * n * n;
        assert!(visited >= seen && visited <= dense, "{visited} of {dense}");
        // Each row of tiles has at most some tiles of which a part is seen.
        let edges = 5 * (2 * n).div_ceil(64) * 64 * 64;
        assert!(visited <= seen + edges, "n {n}, blocks of {block}: {visited} scores for {seen}");
    }
    let four = Attention { mask: Mask::BlockDiffusion { block: 4 }, ..Attention::causal(1, 1, 8) };
    assert_eq!(four.visited_tiles(&[0, 2048]), 16 + 136 + 136);
    let causal = Attention::causal(1, 1, 8);
    assert_eq!(causal.visited_tiles(&[0, 128, 128, 129]), 1 + 2 + 1);
}
