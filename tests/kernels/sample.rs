//! `kernels/sample.cu` on the emulated device: the CPU's tokens, and the log-probs of `kernels/logprob.cu` to the bit.

use crate::device_memory::{download, floats, gpu, uniform, upload, upload_floats};
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::{DType, FloatSlice};
use gradstone::error::Result;
use gradstone::kernels::logprob::launch as logprob;
use gradstone::kernels::sample::launch::{Outputs, Sample, tokens};
use gradstone::kernels::sample::{self as cpu, Truncation};
use gradstone::rng::Stream;
use gradstone_host::Order;
use std::sync::Arc;

#[derive(Clone)]
struct Case {
    dtype: DType,
    vocab: usize,
    logits: Vec<f32>,
    temperature: f32,
    softcap: Option<f32>,
    truncation: Truncation,
    banned: Vec<i32>,
    sequences: Vec<u64>,
    positions: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq)]
struct Got {
    tokens: Vec<i32>,
    logprob: Vec<u32>,
    entropy: Vec<u32>,
    logsumexp: Vec<u32>,
    kept_mass: Vec<u32>,
}

const WHOLE: Truncation = Truncation { top_k: None, top_p: None, min_p: None };

fn truncations(vocab: usize) -> Vec<Truncation> {
    let of = |top_k, top_p| Truncation { top_k, top_p, min_p: None };
    vec![
        WHOLE,
        of(Some(1), None),
        of(Some(5), None),
        of(Some(vocab as u32), None),
        of(Some(vocab as u32 + 9), None),
        of(None, Some(0.3)),
        of(None, Some(0.95)),
        of(None, Some(1.0)),
        of(Some(40), Some(0.8)),
        of(Some(3), Some(0.999)),
        Truncation { min_p: Some(0.05), ..WHOLE },
        Truncation { min_p: Some(1e-5), ..WHOLE },
        Truncation { top_k: Some(40), top_p: Some(0.9), min_p: Some(0.2) },
    ]
}

impl Case {
    fn new(dtype: DType, rows: usize, vocab: usize, seed: u64) -> Case {
        let mut next = uniform(seed);
        let logits: Vec<f32> =
            (0..rows * vocab).map(|_| (next() + next() + next()) * 7.0).collect();
        Case {
            dtype,
            vocab,
            logits: floats(&upload_floats(&gpu(), dtype, &logits)),
            temperature: 0.9,
            softcap: None,
            truncation: WHOLE,
            banned: Vec::new(),
            sequences: (0..rows as u64).map(|row| row * 3 + (1 << 40)).collect(),
            positions: (0..rows as u32).map(|row| row * 17).collect(),
        }
    }

    fn rows(&self) -> usize {
        self.sequences.len()
    }

    fn draw(&self, gpu: &Arc<Gpu>) -> Result<Got> {
        let logits = upload_floats(gpu, self.dtype, &self.logits);
        let banned = logprob::banned_ids(gpu, &self.banned, self.vocab)?;
        let sequences = upload(gpu, DType::I64, &self.sequences);
        let positions = upload(gpu, DType::I32, &self.positions);
        let new = |dtype| DeviceBuffer::recycled(gpu, dtype, self.rows()).unwrap();
        let mut ids = new(DType::I32);
        let [mut logprob, mut entropy, mut logsumexp, mut kept_mass] =
            [(); 4].map(|()| new(DType::F32));
        let args = Sample {
            logits: logits.whole(),
            rows: self.rows(),
            vocab: self.vocab,
            temperature: self.temperature,
            softcap: self.softcap,
            truncation: self.truncation,
            banned: banned.as_ref().map(DeviceBuffer::whole),
            seed: 42,
            stream: Stream::Sample,
            sequences: sequences.whole(),
            positions: positions.whole(),
        };
        let out = Outputs {
            logprob: Some(logprob.whole_mut()),
            entropy: Some(entropy.whole_mut()),
            logsumexp: Some(logsumexp.whole_mut()),
            argmax: None,
            kept_mass: Some(kept_mass.whole_mut()),
        };
        tokens(&args, ids.whole_mut(), out)?;
        Ok(Got {
            tokens: download(&ids),
            logprob: download(&logprob),
            entropy: download(&entropy),
            logsumexp: download(&logsumexp),
            kept_mass: download(&kept_mass),
        })
    }

    fn draw_on_cpu(&self) -> (Vec<i32>, Vec<f32>) {
        let mut ids = vec![-7; self.rows()];
        let mut kept_mass = vec![f32::NAN; self.rows()];
        let args = cpu::Sample {
            logits: FloatSlice::F32(&self.logits),
            rows: self.rows(),
            vocab: self.vocab,
            temperature: self.temperature,
            softcap: self.softcap,
            truncation: self.truncation,
            banned: &self.banned,
            seed: 42,
            stream: Stream::Sample,
            sequences: &self.sequences,
            positions: &self.positions,
        };
        cpu::tokens(&args, &mut ids, None, Some(&mut kept_mass)).unwrap();
        (ids, kept_mass)
    }

    /// What the trainer's kernel says about these tokens.
    fn trainer(&self, gpu: &Arc<Gpu>, drawn: &Got) -> Got {
        let ids = &drawn.tokens[..];
        let logits = upload_floats(gpu, self.dtype, &self.logits);
        let targets = upload(gpu, DType::I32, ids);
        let new = || DeviceBuffer::recycled(gpu, DType::F32, ids.len()).unwrap();
        let [mut logprob, mut entropy, mut logsumexp] = [(); 3].map(|()| new());
        let temperature = if self.temperature == 0.0 { 1.0 } else { self.temperature };
        let rows = logprob::Rows {
            targets: targets.whole(),
            row_of: None,
            rows: self.rows(),
            vocab: self.vocab,
            softmax: logprob::Softmax {
                temperature: logprob::Temperature::Same(temperature),
                softcap: self.softcap,
                banned: None,
            },
        };
        let out = logprob::Outputs {
            logprob: logprob.whole_mut(),
            entropy: Some(entropy.whole_mut()),
            logsumexp: logsumexp.whole_mut(),
            argmax: None,
        };
        logprob::forward(logits.whole(), &rows, out).unwrap();
        Got {
            tokens: ids.to_vec(),
            logprob: download(&logprob),
            entropy: download(&entropy),
            logsumexp: download(&logsumexp),
            // That is the sampler's alone.
            kept_mass: drawn.kept_mass.clone(),
        }
    }

    /// The CPU's tokens and the trainer's bits. The two devices round weights differently (2⁻⁴⁰ of the largest here): a
    /// token differs when the random number is that near a boundary, which none of these rows is.
    fn check(&self, gpu: &Arc<Gpu>) -> Got {
        let got = self.draw(gpu).unwrap();
        let (ids, masses) = self.draw_on_cpu();
        assert_eq!(got.tokens, ids, "{:?} {}", self.truncation, self.vocab);
        for (bits, mass) in got.kept_mass.iter().zip(masses) {
            let kept = f32::from_bits(*bits);
            assert!((kept - mass).abs() < 1e-6, "{:?}: {kept}, not {mass}", self.truncation);
        }
        assert_eq!(got, self.trainer(gpu, &got));
        got
    }
}

#[test]
fn draws_the_cpus_tokens_with_the_trainers_bits() {
    let device = gpu();
    for (dtype, shapes) in [
        (DType::F32, vec![(3, 1), (3, 2), (4, 31), (3, 1003)]),
        (DType::Bf16, vec![(3, 129)]),
        (DType::F16, vec![(2, 5000)]),
    ] {
        for (rows, vocab) in shapes {
            for truncation in truncations(vocab) {
                let case = Case { truncation, ..Case::new(dtype, rows, vocab, vocab as u64) };
                case.check(&device);
                if vocab > 3 {
                    let banned = vec![0, vocab as i32 / 2, 0];
                    Case { softcap: Some(5.0), temperature: 0.7, banned, ..case }.check(&device);
                }
            }
        }
    }
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let device = gpu();
    let mut case = Case { temperature: 0.0, ..Case::new(DType::Bf16, 3, 700, 5) };
    for (row, id) in [(0, 9), (0, 600), (1, 0), (2, 699)] {
        case.logits[row * 700 + id] = 50.0;
    }
    assert_eq!(case.check(&device).tokens, [9, 0, 699]);
    case.banned = vec![9];
    assert_eq!(case.check(&device).tokens, [600, 0, 699]);
    // What is excluded may have all the probability: the rest is drawn from all the same.
    case.banned = vec![9, 600, 0, 699];
    case.temperature = 0.5;
    for truncation in [WHOLE, Truncation { top_k: Some(3), top_p: None, min_p: None }] {
        Case { truncation, ..case.clone() }.check(&device);
    }
}

/// More equal logits than fit in shared memory, so that ids decide and the row itself is searched.
#[test]
fn ties_go_to_the_lower_id() {
    let device = gpu();
    let mut case = Case::new(DType::F32, 3, 3000, 6);
    case.logits.fill(1.25);
    for truncation in [
        Truncation { top_k: Some(3), top_p: None, min_p: None },
        Truncation { top_k: None, top_p: Some(0.001), min_p: None },
        Truncation { top_k: Some(2500), top_p: Some(0.0012), min_p: None },
    ] {
        let tied = Case { truncation, ..case.clone() };
        let got = tied.draw(&device).unwrap().tokens;
        assert_eq!(got, tied.draw_on_cpu().0);
        // 0.0012 of 3000 equal ones is the mass of four.
        assert!(got.iter().all(|id| (0..4).contains(id)), "{got:?}");
    }
}

#[test]
fn frequencies_are_the_probabilities() {
    let device = gpu();
    let rows = 400;
    let row = [0.0f32, 1.0, 2.0, -1.0, f32::NEG_INFINITY];
    let case = Case {
        dtype: DType::F32,
        vocab: 5,
        logits: row.iter().copied().cycle().take(rows * 5).collect(),
        temperature: 1.0,
        sequences: (0..rows as u64).collect(),
        positions: vec![7; rows],
        ..Case::new(DType::F32, 1, 5, 1)
    };
    for (truncation, kept) in
        [(WHOLE, 4), (Truncation { top_k: Some(2), top_p: None, min_p: None }, 2)]
    {
        let drawn = Case { truncation, ..case.clone() }.draw(&device).unwrap().tokens;
        let weights = [1.0, 1f64.exp(), 2f64.exp(), (-1f64).exp()];
        let likely = [2usize, 1, 0, 3];
        let whole: f64 = likely[..kept].iter().map(|id| weights[*id]).sum();
        for (rank, id) in likely.into_iter().enumerate() {
            let p = if rank < kept { weights[id] / whole } else { 0.0 };
            let seen = drawn.iter().filter(|token| **token == id as i32).count() as f64;
            let spread = (rows as f64 * p * (1.0 - p)).sqrt();
            assert!((seen - rows as f64 * p).abs() <= 4.5 * spread, "{id}: {seen} of {rows}, {p}");
        }
    }
}

#[test]
fn orders_and_neighbours_do_not_change_a_draw() {
    let device = gpu();
    let cut = Truncation { top_k: Some(20), top_p: Some(0.9), min_p: None };
    let kinds = [(DType::F32, cut), (DType::Bf16, WHOLE), (DType::Bf16, cut), (DType::F16, cut)];
    for (dtype, truncation) in kinds {
        let case = Case { truncation, ..Case::new(dtype, 4, 1003, 8) };
        let want = case.draw(&device).unwrap();
        for order in Order::ALL {
            let got = gradstone_host::with_order(order, || case.draw(&device).unwrap());
            assert_eq!(got, want, "{order:?}");
        }
        for row in 0..4 {
            let alone = Case {
                logits: case.logits[row * 1003..][..1003].to_vec(),
                sequences: vec![case.sequences[row]],
                positions: vec![case.positions[row]],
                ..case.clone()
            };
            let got = alone.draw(&device).unwrap();
            assert_eq!((got.tokens[0], got.logprob[0]), (want.tokens[row], want.logprob[row]));
        }
    }
}

#[test]
fn bad_input_is_named_or_draws_nothing() {
    let device = gpu();
    let good = Case::new(DType::F32, 3, 40, 9);
    let mut bad = good.clone();
    bad.logits[7] = f32::NAN;
    bad.logits[40..80].fill(f32::NEG_INFINITY);
    let got = bad.draw(&device).unwrap();
    assert_eq!((got.tokens[0], got.tokens[1], got.logprob[0]), (-1, -1, 0));
    assert!(got.tokens[2] >= 0);
    assert!(device.check_status().is_err());
    bad.logits[7] = f32::INFINITY;
    assert_eq!(bad.draw(&device).unwrap().tokens[0], -1);
    let all = Case { banned: (0..40).collect(), ..good.clone() };
    for truncation in truncations(40) {
        let nothing = Case { truncation, ..all.clone() };
        assert_eq!(nothing.draw(&device).unwrap().tokens, [-1; 3]);
    }
    let fails = |case: Case| case.draw(&device).unwrap_err();
    assert!(fails(Case { temperature: -1.0, ..good.clone() }).is_invalid());
    assert!(fails(Case { softcap: Some(0.0), ..good.clone() }).is_invalid());
    let truncation = Truncation { top_k: Some(0), top_p: None, min_p: None };
    assert!(fails(Case { truncation, ..good.clone() }).is_invalid());
    let truncation = Truncation { top_k: None, top_p: Some(1.5), min_p: None };
    assert!(fails(Case { truncation, ..good.clone() }).is_invalid());
    assert!(fails(Case { banned: vec![40], ..good.clone() }).is_index());
    assert!(fails(Case { positions: vec![0], ..good.clone() }).is_shape());
    assert!(fails(Case { logits: vec![0.0; 7], ..good }).is_shape());
}
