//! `kernels::linear_logprob` against f64, and against `logprob` on the product of `gemm::matmul`, to the bit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod softmax_oracle;

use gradstone::device::cpu::{gemm, pool};
use gradstone::dtype::{DType, Float, FloatSlice};
use gradstone::error::Result;
use gradstone::kernels::linear_logprob::{self, Gradients, Head, Saved};
use gradstone::kernels::logprob::{self, Forward, IGNORE, Outputs, Softmax, Temperature, Upstream};
use half::{bf16, f16};
use proptest::prelude::*;
use softmax_oracle::assert_near;

/// Floats in one of the storage types.
#[derive(Clone, Debug)]
enum Floats {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Floats {
    fn new(dtype: DType, values: &[f32]) -> Floats {
        match dtype {
            DType::F32 => Floats::F32(values.to_vec()),
            DType::Bf16 => Floats::Bf16(values.iter().map(|x| Float::from_f32(*x)).collect()),
            _ => Floats::F16(values.iter().map(|x| Float::from_f32(*x)).collect()),
        }
    }
    fn read(&self) -> FloatSlice<'_> {
        match self {
            Floats::F32(x) => FloatSlice::F32(x),
            Floats::Bf16(x) => FloatSlice::Bf16(x),
            Floats::F16(x) => FloatSlice::F16(x),
        }
    }
    fn f32(&self) -> Vec<f32> {
        self.read().to_f32().into_owned()
    }
}

#[derive(Clone, Debug)]
struct Case {
    rows: usize,
    width: usize,
    vocab: usize,
    hidden: Floats,
    weight: Floats,
    bias: Option<Floats>,
    targets: Vec<i32>,
    temperature: Option<Vec<f32>>,
    softcap: Option<f32>,
    banned: Vec<i32>,
    dlogprob: Vec<f32>,
    dentropy: Vec<f32>,
    workspace: usize,
}

#[derive(Clone, Debug, Default)]
struct Results {
    logprob: Vec<f32>,
    entropy: Vec<f32>,
    logsumexp: Vec<f32>,
    argmax: Vec<i32>,
    dhidden: Vec<f32>,
    dweight: Vec<f32>,
    dbias: Vec<f32>,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

impl Results {
    fn new(case: &Case) -> Results {
        let old = vec![7.0; case.rows];
        Results {
            logprob: old.clone(),
            entropy: old.clone(),
            logsumexp: old,
            argmax: vec![7; case.rows],
            dhidden: vec![7.0; case.rows * case.width],
            dweight: vec![0.0; case.vocab * case.width],
            dbias: vec![0.0; case.vocab],
        }
    }
    fn split(&mut self) -> (Outputs<'_>, Gradients<'_>) {
        let outputs = Outputs {
            logprob: &mut self.logprob,
            entropy: Some(&mut self.entropy),
            logsumexp: &mut self.logsumexp,
            argmax: Some(&mut self.argmax),
        };
        let gradients = Gradients {
            dhidden: Some(&mut self.dhidden),
            dweight: Some(&mut self.dweight),
            dbias: Some(&mut self.dbias),
        };
        (outputs, gradients)
    }
    fn forward_bits(&self) -> Vec<u32> {
        let argmax = self.argmax.iter().map(|id| *id as u32);
        let floats = [&self.logprob, &self.entropy, &self.logsumexp].into_iter().flatten();
        floats.map(|x| x.to_bits()).chain(argmax).collect()
    }
    fn all_bits(&self) -> Vec<u32> {
        let gradients = [&self.dhidden, &self.dweight, &self.dbias].into_iter().flatten();
        self.forward_bits().into_iter().chain(gradients.map(|x| x.to_bits())).collect()
    }
}

impl Case {
    fn new(dtypes: [DType; 2], [rows, width, vocab]: [usize; 3], seed: u64) -> Case {
        let mut state = seed | 1;
        let mut normal = move |_| {
            let mut sum = 0.0;
            for _ in 0..4 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                sum += (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            }
            sum * 1.7
        };
        let hidden: Vec<f32> = (0..rows * width).map(&mut normal).collect();
        let scale = 2.0 / (width.max(1) as f32).sqrt();
        let weight: Vec<f32> = (0..vocab * width).map(&mut normal).map(|x| x * scale).collect();
        let target =
            |row: usize| if row % 4 == 2 { IGNORE } else { ((row * 31 + 3) % vocab) as i32 };
        Case {
            rows,
            width,
            vocab,
            hidden: Floats::new(dtypes[0], &hidden),
            weight: Floats::new(dtypes[1], &weight),
            bias: None,
            targets: (0..rows).map(target).collect(),
            temperature: None,
            softcap: None,
            banned: Vec::new(),
            dlogprob: (0..rows).map(&mut normal).collect(),
            dentropy: (0..rows).map(&mut normal).collect(),
            workspace: 0,
        }
    }

    fn with_everything(mut self) -> Case {
        let bias: Vec<f32> = (0..self.vocab).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect();
        self.bias = Some(Floats::new(DType::Bf16, &bias));
        self.temperature = Some((0..self.rows).map(|i| 0.4 + 0.3 * (i % 5) as f32).collect());
        self.softcap = Some(4.0);
        let banned = (0..self.vocab as i32).step_by(17).take(self.vocab - 1);
        self.banned = banned.filter(|id| !self.targets.contains(id)).collect();
        self
    }

    fn softmax(&self) -> Softmax<'_> {
        let temperature = self.temperature.as_deref().map_or(Temperature::One, Temperature::PerRow);
        Softmax { temperature, softcap: self.softcap, banned: &self.banned }
    }

    fn head(&self) -> Head<'_> {
        Head {
            hidden: self.hidden.read(),
            weight: self.weight.read(),
            bias: self.bias.as_ref().map(Floats::read),
            targets: &self.targets,
            rows: self.rows,
            width: self.width,
            vocab: self.vocab,
            softmax: self.softmax(),
            workspace: self.workspace,
        }
    }

    fn known(&self) -> Upstream<'_> {
        Upstream::Known { dlogprob: Some(&self.dlogprob), dentropy: Some(&self.dentropy) }
    }

    fn one_pass(&self, upstream: Upstream<'_>) -> Results {
        let mut results = Results::new(self);
        let (out, into) = results.split();
        linear_logprob::forward_backward(&self.head(), upstream, out, into).unwrap();
        results
    }

    fn two_passes(&self) -> Results {
        let mut results = Results::new(self);
        linear_logprob::forward(&self.head(), results.split().0).unwrap();
        let (logsumexp, entropy) = (results.logsumexp.clone(), results.entropy.clone());
        let saved = Saved {
            logsumexp: &logsumexp,
            entropy: Some(&entropy),
            dlogprob: Some(&self.dlogprob),
            dentropy: Some(&self.dentropy),
        };
        linear_logprob::backward(&self.head(), &saved, results.split().1).unwrap();
        results
    }

    /// `hidden · weightᵀ + bias` by one product.
    fn product(&self) -> Vec<f32> {
        let (x, w) = (self.hidden.f32(), self.weight.f32());
        let mut logits = vec![0.0; self.rows * self.vocab];
        let shape = [self.rows, self.vocab, self.width];
        gemm::matmul(&mut logits, gemm::plain(&x), gemm::transposed(&w), shape, false).unwrap();
        if let Some(bias) = &self.bias {
            let bias = bias.f32();
            for row in logits.chunks_mut(self.vocab) {
                row.iter_mut().zip(&bias).for_each(|(z, b)| *z += b);
            }
        }
        logits
    }

    /// Checks both ways of computing against f64.
    fn check(&self, by_differences: bool) {
        let results = self.one_pass(self.known());
        assert_eq!(results.all_bits(), self.two_passes().all_bits(), "one pass and two");
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<f64>>();
        let (x, w) = (wide(self.hidden.f32()), wide(self.weight.f32()));
        let bias = self.bias.as_ref().map_or(vec![0.0; self.vocab], |b| wide(b.f32()));
        let mut dweight = vec![0.0; w.len()];
        let mut dbias = vec![0.0; self.vocab];
        let mut sizes = vec![0.0; self.vocab];
        for row in 0..self.rows {
            let x = &x[row * self.width..][..self.width];
            let dhidden = &results.dhidden[row * self.width..][..self.width];
            let Ok(target) = usize::try_from(self.targets[row]) else {
                assert!(dhidden.iter().all(|d| *d == 0.0));
                assert_eq!((results.logprob[row], results.argmax[row]), (0.0, -1));
                continue;
            };
            let logits: Vec<f64> = (0..self.vocab)
                .map(|id| {
                    let w = &w[id * self.width..][..self.width];
                    bias[id] + x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()
                })
                .collect();
            let oracle = softmax_oracle::Softmax {
                temperature: self.temperature.as_ref().map_or(1.0, |t| f64::from(t[row])),
                softcap: self.softcap.map(f64::from),
                banned: self.banned.clone(),
            };
            let want = oracle.row(&logits, target);
            assert_near("logprob", results.logprob[row], want.logprob, 2e-5, 1e-6);
            assert_near("entropy", results.entropy[row], want.entropy, 2e-5, 2e-6);
            let upstream = [self.dlogprob[row], self.dentropy[row]].map(f64::from);
            let dz = if by_differences {
                oracle.differences(&logits, target, upstream)
            } else {
                oracle.gradient(&logits, target, upstream)
            };
            for (i, dhidden) in dhidden.iter().enumerate() {
                let want: f64 = (0..self.vocab).map(|id| dz[id] * w[id * self.width + i]).sum();
                assert_near("dhidden", *dhidden, want, 3e-5, 1e-5);
            }
            for id in 0..self.vocab {
                dbias[id] += dz[id];
                sizes[id] += dz[id].abs();
                for i in 0..self.width {
                    dweight[id * self.width + i] += dz[id] * x[i];
                }
            }
        }
        for id in 0..self.vocab {
            let absolute = 2e-6 + 2e-5 * sizes[id];
            assert_near("dbias", results.dbias[id], dbias[id], absolute, 1e-5);
            for i in id * self.width..(id + 1) * self.width {
                assert_near("dweight", results.dweight[i], dweight[i], 3.0 * absolute, 1e-5);
            }
        }
    }
}

fn dtype() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::Bf16), Just(DType::F16)]
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = [0usize..40, 1usize..34, 1usize..160];
    (dtype(), dtype(), shape, any::<u64>(), any::<bool>(), 0usize..40_000).prop_map(
        |(hidden, weight, shape, seed, everything, workspace)| {
            let case = Case::new([hidden, weight], shape, seed);
            let case = if everything { case.with_everything() } else { case };
            Case { workspace, ..case }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    #[test]
    fn matches_f64(case in cases()) {
        case.check(false);
    }

    #[test]
    fn gradient_matches_central_differences(case in cases()) {
        case.check(true);
    }
}

/// What sampling sees: one product, then the logprob kernel.
#[test]
fn bits_are_those_of_logprob_on_the_product() {
    for (shape, dtype) in [
        ([37, 64, 1003], DType::F32),
        ([100, 128, 700], DType::Bf16),
        ([3, 1024, 5003], DType::Bf16),
        ([1, 48, 131], DType::F16),
        ([23, 1024, 4099], DType::F32),
    ] {
        for workspace in [1, 200_000, 0] {
            let case = Case::new([dtype; 2], shape, 5).with_everything();
            let case = Case { workspace, ..case };
            let logits = case.product();
            let mut want = Results::new(&case);
            let args = Forward {
                logits: FloatSlice::F32(&logits),
                targets: &case.targets,
                rows: case.rows,
                vocab: case.vocab,
                softmax: case.softmax(),
            };
            logprob::forward(&args, want.split().0).unwrap();
            let mut got = Results::new(&case);
            linear_logprob::forward(&case.head(), got.split().0).unwrap();
            assert_eq!(got.forward_bits(), want.forward_bits(), "{shape:?} {dtype} {workspace}");
            let one = case.one_pass(case.known());
            assert_eq!(one.forward_bits(), want.forward_bits());
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    for (shape, dtype) in [([70, 96, 900], DType::F32), ([33, 640, 5000], DType::Bf16)] {
        let case = Case { workspace: 150_000, ..Case::new([dtype; 2], shape, 8).with_everything() };
        pool::set_threads(1).unwrap();
        let want = case.one_pass(case.known()).all_bits();
        for threads in [1, 2, 4] {
            pool::set_threads(threads).unwrap();
            assert_eq!(case.one_pass(case.known()).all_bits(), want, "{threads} threads");
        }
    }
    pool::set_threads(0).unwrap();
}

#[test]
fn a_row_and_its_dhidden_do_not_depend_on_the_batch_or_the_budget() {
    for (shape, dtype) in [([90, 1024, 600], DType::F32), ([90, 100, 1203], DType::F16)] {
        let case = Case::new([dtype; 2], shape, 3);
        let want = case.one_pass(case.known());
        let small = Case { workspace: 50_000, ..case.clone() }.one_pass(case.known());
        assert_eq!(small.forward_bits(), want.forward_bits());
        assert_eq!(bits(&small.dhidden), bits(&want.dhidden));
        for row in [0, 1, 41, 89] {
            let width = case.width;
            let alone = Case {
                rows: 1,
                hidden: Floats::new(dtype, &case.hidden.f32()[row * width..][..width]),
                targets: vec![case.targets[row]],
                dlogprob: vec![case.dlogprob[row]],
                dentropy: vec![case.dentropy[row]],
                ..case.clone()
            };
            let one = alone.one_pass(alone.known());
            assert_eq!(one.logprob[0].to_bits(), want.logprob[row].to_bits());
            assert_eq!(one.entropy[0].to_bits(), want.entropy[row].to_bits());
            assert_eq!(bits(&one.dhidden), bits(&want.dhidden[row * width..][..width]));
        }
    }
}

#[test]
fn rows_that_do_not_count_are_not_read() {
    let mut case = Case::new([DType::F32; 2], [40, 16, 50], 4);
    (case.dlogprob[5], case.dentropy[5]) = (0.0, 0.0);
    (case.dlogprob[12], case.dentropy[12]) = (0.0, 0.0);
    let clean = case.two_passes();
    let one = case.one_pass(case.known());
    assert_eq!(one.forward_bits(), clean.forward_bits());
    assert_eq!(bits(&one.dhidden), bits(&clean.dhidden));
    let mut dirty = case.clone();
    let Floats::F32(hidden) = &mut dirty.hidden else { unreachable!() };
    for row in (0..40).filter(|row| case.targets[*row] < 0) {
        hidden[row * 16..][..16].fill(f32::NAN);
    }
    assert_eq!(dirty.one_pass(dirty.known()).all_bits(), one.all_bits());
    // A row without gradient is not read by the backward pass either.
    let Floats::F32(hidden) = &mut dirty.hidden else { unreachable!() };
    hidden[5 * 16..6 * 16].fill(f32::NAN);
    let saved = Saved {
        logsumexp: &clean.logsumexp,
        entropy: Some(&clean.entropy),
        dlogprob: Some(&case.dlogprob),
        dentropy: Some(&case.dentropy),
    };
    let mut results = Results::new(&dirty);
    linear_logprob::backward(&dirty.head(), &saved, results.split().1).unwrap();
    assert_eq!(bits(&results.dweight), bits(&clean.dweight));
    assert_eq!(bits(&results.dhidden), bits(&clean.dhidden));
}

#[test]
fn gradients_add_up_and_may_be_left_out() {
    let case = Case::new([DType::Bf16; 2], [19, 12, 40], 4).with_everything();
    let want = case.one_pass(case.known());
    let mut twice = want.clone();
    let (out, into) = twice.split();
    linear_logprob::forward_backward(&case.head(), case.known(), out, into).unwrap();
    for (twice, once) in twice.dweight.iter().zip(&want.dweight) {
        assert_near("added", *twice, 2.0 * f64::from(*once), 1e-5, 1e-5);
    }
    assert_eq!(bits(&twice.dhidden), bits(&want.dhidden));
    let mut only = Results::new(&case);
    let (out, into) = only.split();
    let into = Gradients { dhidden: None, dbias: None, ..into };
    linear_logprob::forward_backward(&case.head(), case.known(), out, into).unwrap();
    assert_eq!(bits(&only.dweight), bits(&want.dweight));
    assert!(only.dbias.iter().all(|x| *x == 0.0) && only.dhidden.iter().all(|x| *x == 7.0));
}

#[test]
fn a_loss_by_row_sees_its_own_row() {
    let case = Case::new([DType::F32; 2], [50, 8, 30], 6);
    let case = Case { workspace: 2_000, ..case };
    let want = case.one_pass(case.known());
    let of = |row: usize, logprob: f32, entropy: f32| {
        assert_eq!((logprob, entropy), (want.logprob[row], want.entropy[row]));
        (case.dlogprob[row], case.dentropy[row])
    };
    assert_eq!(case.one_pass(Upstream::PerRow(&of)).all_bits(), want.all_bits());
}

#[test]
fn the_workspace_keeps_to_its_budget() {
    for dtype in [DType::F32, DType::Bf16] {
        for budget in [16 << 20, 48 << 20, 1 << 30] {
            let bytes = linear_logprob::workspace_bytes(1024, 1024, 32_000, dtype, budget);
            assert!(bytes <= budget && bytes > budget / 8, "{dtype} {budget}: {bytes}");
        }
        // Eight rows are the least.
        let bytes = linear_logprob::workspace_bytes(1024, 64, 1000, dtype, 1);
        assert!(bytes >= 8 * 4 * 1000);
    }
}

#[test]
fn bad_arguments_are_errors() {
    let good = Case::new([DType::F32; 2], [5, 4, 10], 1);
    let run = |case: &Case| -> Result<()> {
        let mut results = Results::new(&good);
        let (out, into) = results.split();
        linear_logprob::forward_backward(&case.head(), case.known(), out, into)
    };
    let error = |change: &dyn Fn(&mut Case)| {
        let mut case = good.clone();
        change(&mut case);
        run(&case).unwrap_err()
    };
    let target = error(&|c| c.targets[1] = 10);
    assert!(target.is_index() && target.to_string().contains("target 10 of row 1"), "{target}");
    assert!(error(&|c| c.width = 5).is_shape());
    assert!(error(&|c| c.vocab = 9).is_shape());
    assert!(error(&|c| c.rows = usize::MAX).is_shape());
    assert!(error(&|c| c.hidden = Floats::F32(vec![0.0; 3])).is_shape());
    assert!(error(&|c| c.bias = Some(Floats::F32(vec![0.0; 3]))).is_shape());
    assert!(error(&|c| c.dlogprob.truncate(2)).is_shape());
    assert!(error(&|c| c.softcap = Some(-1.0)).is_invalid());
    assert!(run(&good).is_ok());
    let mut results = Results::new(&good);
    let saved =
        Saved { logsumexp: &[0.0; 5], entropy: None, dlogprob: None, dentropy: Some(&[1.0; 5]) };
    let missing = linear_logprob::backward(&good.head(), &saved, results.split().1);
    assert!(missing.unwrap_err().is_invalid());
}
