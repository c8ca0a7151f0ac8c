//! Attention on the emulated device: the CUDA kernels against the CPU's, and their promises about bits.

use crate::device_memory::gpu;
use crate::devices;
use gradstone::device::Device;
use gradstone::device::gpu::DeviceBuffer;
use gradstone::kernels::attention::launch::{self, Segments};
use gradstone::kernels::attention::{Attention, KvCache, Mask};
use gradstone::rng::{self, Stream};
use gradstone::tensor::Tensor;
use gradstone::tensor::autograd::{Gradients, ParamId, backward_from};
use gradstone::{DType, ops};
use gradstone_host::{Order, with_order};

fn normal(len: usize, seed: u64) -> Vec<f32> {
    let draw = |i: usize| {
        let [a, b, ..] = rng::bits(seed, Stream::Free, i as u64, 0);
        rng::normal_pair(a, b).0
    };
    (0..len).map(draw).collect()
}

fn tensor(values: Vec<f32>, shape: &[usize], dtype: DType) -> Tensor {
    Tensor::from_buffer(values.into(), shape, dtype).unwrap()
}

fn offsets(lengths: &[usize]) -> Vec<usize> {
    let mut offsets = vec![0];
    lengths.iter().for_each(|length| offsets.push(offsets[offsets.len() - 1] + length));
    offsets
}

fn widened(x: &Tensor) -> Vec<f32> {
    x.to_device(&Device::Cpu).unwrap().to_f32s().unwrap().to_vec()
}

fn bits(x: &Tensor) -> Vec<u32> {
    widened(x).iter().map(|x| x.to_bits()).collect()
}

struct Case {
    spec: Attention,
    segments: Vec<usize>,
    qkv: [Tensor; 3],
    dout: Tensor,
}

impl Case {
    fn new(spec: Attention, lengths: &[usize], dtype: DType) -> Case {
        let segments = offsets(lengths);
        let tokens = segments[lengths.len()];
        let random = |heads: usize, seed| {
            let shape = [tokens, heads, spec.head_dim];
            tensor(normal(shape.iter().product(), seed), &shape, dtype)
        };
        let (query_heads, kv_heads) = (spec.query_heads, spec.kv_heads);
        let qkv = [random(query_heads, 1), random(kv_heads, 2), random(kv_heads, 3)];
        let shape = [tokens, query_heads, spec.head_dim];
        let dout = tensor(normal(shape.iter().product(), 4), &shape, DType::F32);
        Case { spec, segments, qkv, dout }
    }

    fn forward(&self, device: &Device) -> Tensor {
        let [q, k, v] = self.qkv.each_ref().map(|x| x.to_device(device).unwrap());
        ops::attention(&q, &k, &v, &self.spec, &self.segments).unwrap()
    }

    /// The output and the gradients of q, k and v.
    fn run(&self, device: &Device) -> [Tensor; 4] {
        let ids = [(); 3].map(|()| ParamId::fresh());
        let mut place = ids.iter();
        let [q, k, v] = self.qkv.each_ref().map(|x| {
            let id = *place.next().unwrap();
            x.to_device(device).unwrap().tracked(id)
        });
        let out = ops::attention(&q, &k, &v, &self.spec, &self.segments).unwrap();
        let mut gradients = Gradients::new();
        let dout = self.dout.to_device(device).unwrap();
        backward_from(vec![(out.clone(), dout)], &mut gradients).unwrap();
        let [dq, dk, dv] = ids.map(|id| gradients.get(id).unwrap().clone());
        [out, dq, dk, dv]
    }

    /// The tokens `range` of every tensor, as one sequence.
    fn alone(&self, sequence: usize) -> Case {
        let range = self.segments[sequence]..self.segments[sequence + 1];
        let part = |x: &Tensor| x.rows(range.clone()).unwrap().detach();
        Case {
            spec: self.spec,
            segments: vec![0, range.len()],
            qkv: self.qkv.each_ref().map(part),
            dout: part(&self.dout),
        }
    }

    /// Through a cache: the first `prompt` tokens of each sequence at once, then `chunk` at a time.
    fn cached(&self, device: &Device, prompt: usize, chunk: usize) -> Vec<u32> {
        let sequences = self.segments.len() - 1;
        let (spec, dtype) = (&self.spec, self.qkv[0].dtype());
        let heads = [spec.kv_heads, spec.head_dim];
        let mut cache = KvCache::new_on(device, dtype, 2, sequences, heads, 2000).unwrap();
        let width = spec.query_heads * spec.head_dim;
        let mut out = vec![0u32; self.qkv[0].len()];
        loop {
            let ranges: Vec<_> = (0..sequences)
                .map(|s| {
                    let done = cache.length(1, s).unwrap();
                    let start = self.segments[s] + done;
                    start
                        ..(start + if done == 0 { prompt } else { chunk }).min(self.segments[s + 1])
                })
                .collect();
            let segments = offsets(&ranges.iter().map(|r| r.len()).collect::<Vec<_>>());
            if segments[sequences] == 0 {
                return out;
            }
            let tokens: Vec<usize> = ranges.into_iter().flatten().collect();
            let part = |x: &Tensor| ops::gather(x, &tokens).unwrap().to_device(device).unwrap();
            let [q, k, v] = self.qkv.each_ref().map(part);
            ops::append_to_cache(&mut cache, 1, &k, &v, &segments).unwrap();
            let rows = ops::cached_attention(&q, spec, &cache, 1, &segments).unwrap();
            for (row, token) in bits(&rows).chunks(width).zip(tokens) {
                out[token * width..(token + 1) * width].copy_from_slice(row);
            }
        }
    }
}

/// What storage of this type may differ from the CPU's result by: its rounding, and in 16 bits that of the weights.
fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 4e-6,
        DType::Bf16 => 1.5e-2,
        _ => 2e-3,
    }
}

/// `|got - want| <= tolerance (1 + |want|)` for each element.
fn close(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()), "{what}");
    let (got, want) = (widened(got), widened(want));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let error = (got - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "{what}[{i}]: {got} instead of {want}");
    }
}

/// The same with the size of the whole gradient beside that of the element: it is a sum over many tokens.
fn close_gradients(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()), "{what}");
    let (got, want) = (widened(got), widened(want));
    let square = want.iter().map(|x| x * x).sum::<f32>() / want.len().max(1) as f32;
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let most = tolerance * (1.0 + square.sqrt() + want.abs());
        assert!((got - want).abs() <= most, "{what}[{i}]: {got} instead of {want}");
    }
}

fn against_the_cpu(spec: Attention, lengths: &[usize], dtypes: &[DType]) {
    for &dtype in dtypes {
        let case = Case::new(spec, lengths, dtype);
        let [out, dq, dk, dv] = case.run(&devices::emulated());
        let [want_out, want_dq, want_dk, want_dv] = case.run(&Device::Cpu);
        let what = |name: &str| format!("{name} of {dtype}, {spec:?}, {lengths:?}");
        close(&out, &want_out, tolerance(dtype), &what("out"));
        for (got, want, name) in [(dq, want_dq, "dq"), (dk, want_dk, "dk"), (dv, want_dv, "dv")] {
            close_gradients(&got, &want, 3.0 * tolerance(dtype), &what(name));
        }
    }
}

const ALL: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

#[test]
fn ragged_lengths() {
    for lengths in [&[0, 1, 15, 16][..], &[17, 0, 63], &[65, 2], &[], &[0], &[130]] {
        against_the_cpu(Attention::causal(2, 1, 32), lengths, &ALL);
    }
}

#[test]
fn head_widths() {
    for head_dim in [3, 8, 16, 40, 64, 80, 96, 128] {
        against_the_cpu(Attention::causal(1, 1, head_dim), &[33, 5], &ALL);
    }
    against_the_cpu(Attention::causal(1, 1, 256), &[35], &ALL);
    against_the_cpu(Attention::causal(2, 1, 200), &[18], &ALL);
}

#[test]
fn groups_windows_caps_and_masks() {
    let base = Attention::causal(4, 2, 16);
    for spec in [
        Attention { query_heads: 6, ..base },
        Attention { kv_heads: 4, ..base },
        Attention { window: Some(1), ..base },
        Attention { window: Some(17), ..base },
        Attention { window: Some(70), softcap: Some(1.5), ..base },
        Attention { softcap: Some(30.0), scale: -0.3, ..base },
        Attention { mask: Mask::Full, ..base },
        Attention { query_heads: 10, ..base },
    ] {
        against_the_cpu(spec, &[70, 3, 20], &ALL);
    }
}

#[test]
fn masks_of_block_diffusion() {
    let base = Attention::causal(2, 1, 16);
    for block in [1, 4, 7, 40, 1000] {
        let spec = Attention { mask: Mask::BlockCausal { block }, ..base };
        against_the_cpu(spec, &[70, 3, 17], &[DType::F32, DType::Bf16]);
        let spec = Attention { mask: Mask::BlockDiffusion { block }, ..base };
        against_the_cpu(spec, &[134, 2, 0, 18], &[DType::F32, DType::Bf16]);
    }
    let device = devices::emulated();
    let case =
        Case::new(Attention { mask: Mask::BlockCausal { block: 4 }, ..base }, &[24], DType::Bf16);
    let packed = bits(&case.forward(&device));
    assert_eq!(case.cached(&device, 8, 4), packed);
    assert_eq!(case.cached(&device, 12, 8), packed);
}

#[test]
fn keys_that_a_query_does_not_see_may_be_nan() {
    let device = devices::emulated();
    for dtype in ALL {
        for window in [None, Some(10)] {
            let spec = Attention { window, ..Attention::causal(2, 1, 16) };
            let mut case = Case::new(spec, &[80], dtype);
            let clean = bits(&case.forward(&device));
            for x in &mut case.qkv[1..] {
                let mut values = widened(x);
                for (token, row) in values.chunks_mut(16).enumerate() {
                    // A window of 10 lets query 50 see keys 41 to 50.
                    if token > 50 || (window.is_some() && token < 41) {
                        row.fill(if token % 2 == 0 { f32::NAN } else { f32::INFINITY });
                    }
                }
                *x = tensor(values, x.shape(), dtype);
            }
            let dirty = case.forward(&device);
            assert_eq!(
                bits(&dirty)[50 * 32..51 * 32],
                clean[50 * 32..51 * 32],
                "{dtype} {window:?}"
            );
            assert!(widened(&dirty)[51 * 32..].iter().all(|x| !x.is_finite()));
        }
    }
}

#[test]
fn cached_is_packed_to_the_bit() {
    let device = devices::emulated();
    let base = Attention::causal(4, 2, 16);
    for (spec, lengths) in [
        (base, &[70, 0, 9][..]),
        (Attention { window: Some(20), softcap: Some(5.0), ..base }, &[66]),
        (Attention { head_dim: 40, ..base }, &[20]),
        (Attention { head_dim: 3, ..base }, &[20]),
    ] {
        for dtype in ALL {
            let case = Case::new(spec, lengths, dtype);
            let packed = bits(&case.forward(&device));
            for (prompt, chunk) in [(60, 1), (5, 13), (1000, 1)] {
                assert_eq!(
                    case.cached(&device, prompt, chunk),
                    packed,
                    "{dtype} {spec:?} {prompt}"
                );
            }
        }
    }
}

#[test]
fn key_groups_join_in_one_block_and_in_many() {
    // Over 512 keys: two groups, walked by one block in the packed pass, a block each and merged in the cached steps.
    let device = devices::emulated();
    for (window, dtype, head_dim) in [
        (None, DType::Bf16, 32),
        (Some(300), DType::F32, 8),
        (Some(20), DType::F16, 8),
        (None, DType::Bf16, 136),
    ] {
        let spec = Attention { window, ..Attention::causal(1, 1, head_dim) };
        let case = Case::new(spec, &[518, 3], dtype);
        let out = case.forward(&device);
        close(&out, &case.forward(&Device::Cpu), tolerance(dtype), "two groups");
        assert_eq!(case.cached(&device, 514, 1), bits(&out), "{dtype} {window:?} {head_dim}");
        assert_eq!(case.cached(&device, 500, 15), bits(&out), "{dtype} {window:?} {head_dim}");
    }
}

/// A kernel is compiled for heads up to 32, 64, 128 and 256 wide, and for each type.
#[test]
fn thread_orders_do_not_matter_at_any_width() {
    let device = devices::emulated();
    for head_dim in [40, 72, 136] {
        for dtype in ALL {
            let case = Case::new(Attention::causal(2, 1, head_dim), &[19, 2], dtype);
            let results = case.run(&device);
            for order in Order::ALL {
                let again = with_order(order, || case.run(&device));
                for (again, result) in again.iter().zip(&results) {
                    assert_eq!(bits(again), bits(result), "{order:?} {head_dim} {dtype}");
                }
            }
        }
    }
    // A cache, and key groups that are merged.
    for dtype in ALL {
        let case = Case::new(Attention::causal(1, 1, 8), &[514], dtype);
        let packed = bits(&case.forward(&device));
        for order in Order::ALL {
            let cached = with_order(order, || case.cached(&device, 512, 1));
            assert_eq!(cached, packed, "{order:?} {dtype}");
        }
    }
}

#[test]
fn neighbours_and_thread_orders_do_not_matter() {
    let device = devices::emulated();
    for dtype in ALL {
        let spec = Attention { window: Some(40), ..Attention::causal(2, 1, 16) };
        let case = Case::new(spec, &[70, 1, 33], dtype);
        let results = case.run(&device);
        for order in Order::ALL {
            let again = with_order(order, || case.run(&device));
            for (again, result) in again.iter().zip(&results) {
                assert_eq!(bits(again), bits(result), "{order:?}");
            }
        }
        for sequence in 0..3 {
            let range = case.segments[sequence]..case.segments[sequence + 1];
            let alone = case.alone(sequence).run(&device);
            for (alone, whole) in alone.iter().zip(&results) {
                let whole = whole.to_device(&Device::Cpu).unwrap().rows(range.clone()).unwrap();
                assert_eq!(bits(alone), bits(&whole), "{dtype} {sequence}");
            }
        }
    }
}

#[test]
fn another_sequence_may_be_nan() {
    let device = devices::emulated();
    for dtype in ALL {
        let mut case = Case::new(Attention::causal(2, 1, 16), &[20, 9, 30], dtype);
        let clean = case.run(&device);
        for x in &mut case.qkv {
            let mut values = widened(x);
            let width = values.len() / 59;
            values[20 * width..29 * width].fill(f32::NAN);
            *x = tensor(values, x.shape(), dtype);
        }
        for (dirty, clean) in case.run(&device).iter().zip(&clean) {
            let [dirty, clean] = [dirty, clean].map(|x| x.to_device(&Device::Cpu).unwrap());
            for range in [0..20, 29..59] {
                let [dirty, clean] =
                    [&dirty, &clean].map(|x| bits(&x.rows(range.clone()).unwrap()));
                assert_eq!(dirty, clean, "{dtype}");
            }
            assert!(dirty.rows(20..29).unwrap().to_f32s().unwrap()[0].is_nan());
        }
    }
}

#[test]
fn kept_and_forked_sequences_go_on_with_the_same_bits() {
    let device = devices::emulated();
    let spec = Attention::causal(2, 1, 8);
    let case = Case::new(spec, &[70, 10, 66], DType::Bf16);
    let want = bits(&case.forward(&device));
    let on =
        |x: &Tensor, tokens: &[usize]| ops::gather(x, tokens).unwrap().to_device(&device).unwrap();
    let mut cache = KvCache::new_on(&device, DType::Bf16, 2, 3, [1, 8], 80).unwrap();
    let all_but_last: Vec<usize> = (0..69).chain(70..79).chain(80..145).collect();
    let [_, k, v] = case.qkv.each_ref().map(|x| on(x, &all_but_last));
    for layer in [1, 0] {
        ops::append_to_cache(&mut cache, layer, &k, &v, &offsets(&[69, 9, 65])).unwrap();
    }
    let page = 2 * 2 * 64 * 8 * 2;
    assert_eq!(cache.bytes(), 5 * page);
    cache.keep(&[2, 2, 0]).unwrap();
    assert_eq!(cache.bytes(), 4 * page, "the dropped sequence still holds memory");
    let last = [145, 145, 69];
    let [q, k, v] = case.qkv.each_ref().map(|x| on(x, &last));
    let fork = cache.clone();
    for layer in [0, 1] {
        ops::append_to_cache(&mut cache, layer, &k, &v, &[0, 1, 2, 3]).unwrap();
        let out = ops::cached_attention(&q, &spec, &cache, layer, &[0, 1, 2, 3]).unwrap();
        let expected: Vec<u32> =
            last.iter().flat_map(|token| &want[token * 16..(token + 1) * 16]).copied().collect();
        assert_eq!(bits(&out), expected);
    }
    // Each fork has a last page of its own; the first is still shared.
    assert_eq!(cache.bytes(), 5 * page);
    assert_eq!((cache.length(0, 0), fork.length(0, 0)), (Some(66), Some(65)));
    // The clone was not written into.
    let mut fork = fork;
    ops::append_to_cache(&mut fork, 0, &v, &k, &[0, 1, 2, 3]).unwrap();
    let out = ops::cached_attention(&q, &spec, &cache, 0, &[0, 1, 2, 3]).unwrap();
    assert_eq!(bits(&out)[..16], want[145 * 16..146 * 16]);
    let other = ops::cached_attention(&q, &spec, &fork, 0, &[0, 1, 2, 3]).unwrap();
    assert_ne!(bits(&other), bits(&out));
}

#[test]
fn bad_arguments_are_errors_before_any_launch() {
    let device = devices::emulated();
    let case = Case::new(Attention::causal(4, 2, 8), &[3, 2], DType::F32);
    let [q, k, v] = case.qkv.each_ref().map(|x| x.to_device(&device).unwrap());
    let run = |q: &Tensor, k: &Tensor, segments: &[usize]| {
        ops::attention(q, k, &v, &case.spec, segments).unwrap_err()
    };
    assert!(run(&q, &k, &[0, 4, 3, 5]).is_shape());
    assert!(run(&q, &k, &[0, 6]).is_shape());
    assert!(run(&q, &k, &[]).is_shape());
    assert!(run(&case.qkv[0], &k, &[0, 5]).is_unsupported());
    let half = tensor(widened(&k), k.shape(), DType::Bf16).to_device(&device).unwrap();
    assert!(run(&q, &half, &[0, 5]).is_dtype());
    let wide = Case::new(Attention::causal(1, 1, 264), &[2], DType::F32);
    let [wide_q, wide_k, wide_v] = wide.qkv.each_ref().map(|x| x.to_device(&device).unwrap());
    let error = ops::attention(&wide_q, &wide_k, &wide_v, &wide.spec, &[0, 2]).unwrap_err();
    assert!(error.is_unsupported(), "{error}");

    let mut cache = KvCache::new_on(&device, DType::F32, 1, 2, [2, 8], 4).unwrap();
    let mut append = |k: &Tensor, layer, segments: &[usize]| {
        ops::append_to_cache(&mut cache, layer, k, &v, segments)
    };
    assert!(append(&k, 1, &[0, 3, 5]).unwrap_err().is_index());
    assert!(append(&k, 0, &[0, 5]).unwrap_err().is_shape());
    assert!(append(&k, 0, &[0, 5, 5]).unwrap_err().is_invalid());
    assert!(append(&half, 0, &[0, 3, 5]).unwrap_err().is_dtype());
    assert!(append(&case.qkv[1], 0, &[0, 3, 5]).unwrap_err().is_unsupported());
    append(&k, 0, &[0, 3, 5]).unwrap();
    assert!(cache.keep(&[2]).unwrap_err().is_index());
    let host = ops::cached_attention(&case.qkv[0], &case.spec, &cache, 0, &[0, 3, 5]);
    assert!(host.unwrap_err().is_unsupported());
    let longer = ops::cached_attention(&q, &case.spec, &cache, 0, &[0, 5, 5]);
    assert!(longer.unwrap_err().is_shape());
    ops::cached_attention(&q, &case.spec, &cache, 0, &[0, 3, 5]).unwrap();
    device.gpu().unwrap().check_status().unwrap();
    let i32s = KvCache::new_on(&device, DType::I32, 1, 1, [1, 8], 4);
    assert!(i32s.unwrap_err().is_dtype());
}

#[test]
fn more_rows_or_tokens_than_an_int32_counts_are_refused_before_any_launch() {
    let device = gpu();
    let many = i32::MAX as usize - 126;
    let upload = |tokens| Segments::upload(&device, Mask::Full, &[0, tokens]);
    let error = upload(many).err().unwrap();
    assert!(error.is_shape() && error.to_string().contains("2147483521 tokens"), "{error}");
    // Half as many tokens whose heads come in twos.
    let tokens = many.div_ceil(2);
    let segments = upload(tokens).unwrap();
    let spec = Attention { mask: Mask::Full, ..Attention::causal(2, 1, 8) };
    // SAFETY: refused by its length, so nobody reads it.
    let of = |len| unsafe { DeviceBuffer::borrowed(&device, DType::Bf16, 0x1000, len).unwrap() };
    let (q, k, mut out) = (of(tokens * 16), of(tokens * 8), of(tokens * 16));
    let keys = [k.whole(), k.whole()];
    let error =
        launch::forward(&spec, q.whole(), keys, &segments, out.whole_mut(), None).unwrap_err();
    assert!(error.is_unsupported() && error.to_string().contains("at most 2147483520"), "{error}");
}
