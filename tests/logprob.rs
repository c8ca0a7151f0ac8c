//! `kernels::logprob` against f64, in every storage type; its bits against threads, neighbours and masked rows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod softmax_oracle;

use gradstone::device::cpu::pool;
use gradstone::dtype::{DType, Float, FloatSlice, FloatSliceMut};
use gradstone::error::Result;
use gradstone::kernels::logprob::{
    self, Backward, Forward, ForwardBackward, IGNORE, Outputs, Softmax, Temperature, Upstream,
};
use half::{bf16, f16};
use proptest::prelude::*;
use softmax_oracle::assert_near;

/// Logits in one of the storage types.
#[derive(Clone, Debug)]
enum Logits {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Logits {
    fn new(dtype: DType, values: &[f32]) -> Logits {
        match dtype {
            DType::F32 => Logits::F32(values.to_vec()),
            DType::Bf16 => Logits::Bf16(values.iter().map(|x| Float::from_f32(*x)).collect()),
            _ => Logits::F16(values.iter().map(|x| Float::from_f32(*x)).collect()),
        }
    }
    fn read(&self) -> FloatSlice<'_> {
        match self {
            Logits::F32(x) => FloatSlice::F32(x),
            Logits::Bf16(x) => FloatSlice::Bf16(x),
            Logits::F16(x) => FloatSlice::F16(x),
        }
    }
    fn write(&mut self) -> FloatSliceMut<'_> {
        match self {
            Logits::F32(x) => FloatSliceMut::F32(x),
            Logits::Bf16(x) => FloatSliceMut::Bf16(x),
            Logits::F16(x) => FloatSliceMut::F16(x),
        }
    }
    fn f32(&self) -> Vec<f32> {
        self.read().to_f32().into_owned()
    }
}

#[derive(Clone, Debug)]
struct Case {
    rows: usize,
    vocab: usize,
    logits: Logits,
    targets: Vec<i32>,
    temperature: Option<Vec<f32>>,
    softcap: Option<f32>,
    banned: Vec<i32>,
    dlogprob: Vec<f32>,
    dentropy: Vec<f32>,
}

#[derive(Clone, Debug, Default)]
struct Stats {
    logprob: Vec<f32>,
    entropy: Vec<f32>,
    logsumexp: Vec<f32>,
    argmax: Vec<i32>,
}

impl Stats {
    fn new(rows: usize) -> Stats {
        let old = vec![7.0; rows];
        Stats { logprob: old.clone(), entropy: old.clone(), logsumexp: old, argmax: vec![7; rows] }
    }
    fn outputs(&mut self) -> Outputs<'_> {
        Outputs {
            logprob: &mut self.logprob,
            entropy: Some(&mut self.entropy),
            logsumexp: &mut self.logsumexp,
            argmax: Some(&mut self.argmax),
        }
    }
    fn bits(&self) -> Vec<[u32; 4]> {
        let of = |i: usize| {
            [self.logprob[i], self.entropy[i], self.logsumexp[i], self.argmax[i] as f32]
                .map(f32::to_bits)
        };
        (0..self.logprob.len()).map(of).collect()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

impl Case {
    /// Normal logits, every fifth row ignored.
    fn new(dtype: DType, rows: usize, vocab: usize, seed: u64, spread: f32) -> Case {
        let mut state = seed | 1;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let mut normal = |_| (next() + next() + next() + next()) * 1.7;
        let logits: Vec<f32> = (0..rows * vocab).map(&mut normal).map(|x| x * spread).collect();
        let target =
            |row: usize| if row % 5 == 4 { IGNORE } else { ((row * 7919 + 3) % vocab) as i32 };
        Case {
            rows,
            vocab,
            logits: Logits::new(dtype, &logits),
            targets: (0..rows).map(target).collect(),
            temperature: None,
            softcap: None,
            banned: Vec::new(),
            dlogprob: (0..rows).map(&mut normal).collect(),
            dentropy: (0..rows).map(&mut normal).collect(),
        }
    }

    fn softmax(&self) -> Softmax<'_> {
        let temperature = self.temperature.as_deref().map_or(Temperature::One, Temperature::PerRow);
        Softmax { temperature, softcap: self.softcap, banned: &self.banned }
    }

    fn try_forward(&self, stats: &mut Stats) -> Result<()> {
        let args = Forward {
            logits: self.logits.read(),
            targets: &self.targets,
            rows: self.rows,
            vocab: self.vocab,
            softmax: self.softmax(),
        };
        logprob::forward(&args, stats.outputs())
    }

    fn forward(&self) -> Stats {
        let mut stats = Stats::new(self.rows);
        self.try_forward(&mut stats).unwrap();
        stats
    }

    fn backward(&self, stats: &Stats) -> Logits {
        let mut logits = self.logits.clone();
        let args = Backward {
            logits: logits.write(),
            targets: &self.targets,
            rows: self.rows,
            vocab: self.vocab,
            softmax: self.softmax(),
            logsumexp: &stats.logsumexp,
            entropy: Some(&stats.entropy),
            dlogprob: Some(&self.dlogprob),
            dentropy: Some(&self.dentropy),
        };
        logprob::backward(args).unwrap();
        logits
    }

    fn both(&self, upstream: Upstream<'_>) -> (Stats, Logits) {
        let (mut stats, mut logits) = (Stats::new(self.rows), self.logits.clone());
        let args = ForwardBackward {
            logits: logits.write(),
            targets: &self.targets,
            rows: self.rows,
            vocab: self.vocab,
            softmax: self.softmax(),
            upstream,
        };
        logprob::forward_backward(args, stats.outputs()).unwrap();
        (stats, logits)
    }

    fn known(&self) -> Upstream<'_> {
        Upstream::Known { dlogprob: Some(&self.dlogprob), dentropy: Some(&self.dentropy) }
    }

    fn oracle(&self, row: usize) -> softmax_oracle::Softmax {
        softmax_oracle::Softmax {
            temperature: self.temperature.as_ref().map_or(1.0, |t| f64::from(t[row])),
            softcap: self.softcap.map(f64::from),
            banned: self.banned.clone(),
        }
    }

    fn row(&self, row: usize) -> Vec<f64> {
        self.logits.f32()[row * self.vocab..][..self.vocab].iter().map(|x| f64::from(*x)).collect()
    }

    /// Checks forward, backward and both together against f64.
    fn check(&self, by_differences: bool) {
        let stats = self.forward();
        let gradient = self.backward(&stats);
        let (both_stats, both_gradient) = self.both(self.known());
        assert_eq!(stats.bits(), both_stats.bits(), "one pass and two");
        assert_eq!(bits(&gradient.f32()), bits(&both_gradient.f32()), "one pass and two");
        let gradient = gradient.f32();
        let rounding = match self.logits {
            Logits::F32(_) => 0.0,
            Logits::Bf16(_) => 4e-3,
            Logits::F16(_) => 5e-4,
        };
        for row in 0..self.rows {
            let dz = &gradient[row * self.vocab..][..self.vocab];
            let Ok(target) = usize::try_from(self.targets[row]) else {
                assert!(dz.iter().all(|x| x.to_bits() == 0), "row {row} is ignored");
                assert_eq!((stats.logprob[row], stats.argmax[row]), (0.0, -1));
                continue;
            };
            let (oracle, logits) = (self.oracle(row), self.row(row));
            let want = oracle.row(&logits, target);
            let size = if want.logsumexp.is_finite() { want.logsumexp.abs() } else { 0.0 };
            assert_near("logprob", stats.logprob[row], want.logprob, 2e-6, 1e-6);
            assert_near("entropy", stats.entropy[row], want.entropy, 2e-6, 2e-6);
            assert_near("logsumexp", stats.logsumexp[row], want.logsumexp, 1e-6, 2e-7);
            let upstream = [self.dlogprob[row], self.dentropy[row]].map(f64::from);
            let want_dz = if by_differences {
                oracle.differences(&logits, target, upstream)
            } else {
                oracle.gradient(&logits, target, upstream)
            };
            let scale = (upstream[0].abs() + upstream[1].abs()) / oracle.temperature;
            let absolute = if by_differences { 1e-6 } else { 1e-9 } * scale
                + if rounding > 0.0 { 6e-8 } else { 0.0 };
            // The saved logsumexp and the entropy gradient's two terms are rounded.
            let hot = [target];
            for (id, (dz, want)) in dz.iter().zip(&want_dz).enumerate() {
                let p = (oracle.row(&logits, id).logprob).exp();
                let inner = scale * p * (3.0 + want_log(p)) * (1e-6 + 3e-7 * size);
                let near_one = if hot.contains(&id) { 3e-7 * scale } else { 0.0 };
                let absolute = absolute + inner + near_one;
                assert_near(
                    &format!("dlogits[{row}, {id}]"),
                    *dz,
                    *want,
                    absolute,
                    2e-6 + rounding,
                );
            }
        }
    }
}

fn want_log(p: f64) -> f64 {
    if p > 0.0 { -p.ln() } else { 0.0 }
}

fn dtypes() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::Bf16), Just(DType::F16)]
}

fn cases(vocab: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    let restrict = (any::<bool>(), any::<bool>(), 0usize..4);
    (dtypes(), 0usize..12, vocab, any::<u64>(), 0.1f32..8.0, restrict).prop_map(
        |(dtype, rows, vocab, seed, spread, (tempered, capped, banned))| {
            let mut case = Case::new(dtype, rows, vocab, seed, spread);
            if tempered {
                case.temperature = Some(
                    (0..rows).map(|i| 0.3 + 0.21 * ((i + seed as usize % 7) % 7) as f32).collect(),
                );
            }
            case.softcap = capped.then_some(7.5);
            // A banned target's log-prob is -inf and has no central difference; another test has it.
            let banned = (0..banned.min(vocab - 1)).map(|i| ((i * 37 + 5) % vocab) as i32);
            case.banned = banned.filter(|id| !case.targets.contains(id)).collect();
            case
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn matches_f64(case in cases(prop_oneof![1usize..70, Just(127), Just(256), Just(1003)])) {
        case.check(false);
    }

    #[test]
    fn gradient_matches_central_differences(case in cases(1usize..24)) {
        let case = Case { logits: Logits::new(DType::F32, &case.logits.f32()), ..case };
        case.check(true);
    }
}

#[test]
fn matches_f64_over_several_pieces() {
    for (vocab, dtype) in
        [(2047, DType::F32), (2048, DType::Bf16), (2049, DType::F16), (9001, DType::F32)]
    {
        let mut case = Case::new(dtype, 3, vocab, vocab as u64, 3.0);
        case.check_sparse();
        case.banned = vec![vocab as i32 - 1, 0, 2040, 0];
        case.softcap = Some(5.0);
        case.temperature = Some(vec![0.7, 1.0, 2.0]);
        case.check_sparse();
    }
}

impl Case {
    /// As [`Case::check`], without its quadratic tolerance.
    fn check_sparse(&self) {
        let stats = self.forward();
        let (both_stats, gradient) = self.both(self.known());
        assert_eq!(stats.bits(), both_stats.bits());
        assert_eq!(bits(&self.backward(&stats).f32()), bits(&gradient.f32()));
        let gradient = gradient.f32();
        for row in 0..self.rows {
            let target = self.targets[row] as usize;
            let (oracle, logits) = (self.oracle(row), self.row(row));
            let want = oracle.row(&logits, target);
            assert_near("logprob", stats.logprob[row], want.logprob, 2e-6, 1e-6);
            assert_near("entropy", stats.entropy[row], want.entropy, 2e-6, 2e-6);
            let upstream = [self.dlogprob[row], self.dentropy[row]].map(f64::from);
            let want = oracle.gradient(&logits, target, upstream);
            for id in 0..self.vocab {
                assert_near("dlogits", gradient[row * self.vocab + id], want[id], 1e-6, 8e-3);
            }
        }
    }
}

#[test]
fn argmax_is_the_first_of_the_largest() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut case = Case::new(dtype, 4, 5000, 3, 1.0);
        let mut logits = case.logits.f32();
        for id in [4100, 4300, 700 + 5000, 4999 + 2 * 5000] {
            logits[id] = 50.0;
        }
        case.logits = Logits::new(dtype, &logits);
        assert_eq!(case.forward().argmax[..3], [4100, 700, 4999]);
        case.banned = vec![700, 4100];
        assert_eq!(case.forward().argmax[0], 4300);
        assert_ne!(case.forward().argmax[1], 700);
        case.softcap = Some(30.0);
        assert_eq!(case.forward().argmax[..3], [4300, case.forward().argmax[1], 4999]);
    }
}

#[test]
fn infinities_and_bans() {
    let vocab = 5000;
    let mut case = Case::new(DType::F32, 5, vocab, 11, 2.0);
    case.targets = vec![4500, 3, 8, 2, 1];
    let Logits::F32(logits) = &mut case.logits else { unreachable!() };
    logits[..4096].fill(f32::NEG_INFINITY);
    logits[vocab..2 * vocab].fill(f32::NEG_INFINITY);
    logits[2 * vocab + 8] = f32::NEG_INFINITY;
    logits[3 * vocab..4 * vocab].fill(-3e38);
    logits[3 * vocab + 2] = 3e38;
    logits[4 * vocab..].fill(f32::MIN);
    let stats = case.forward();
    for row in 0..5 {
        let want = case.oracle(row).row(&case.row(row), case.targets[row] as usize);
        assert_near("logprob", stats.logprob[row], want.logprob, 2e-6, 1e-6);
        assert_near("entropy", stats.entropy[row], want.entropy, 2e-6, 1e-6);
        assert_near("logsumexp", stats.logsumexp[row], want.logsumexp, 2e-6, 1e-6);
    }
    assert_eq!((stats.logprob[1], stats.entropy[1], stats.argmax[1]), (f32::NEG_INFINITY, 0.0, -1));
    assert_eq!(
        (stats.logprob[2], stats.logprob[3], stats.entropy[3]),
        (f32::NEG_INFINITY, 0.0, 0.0)
    );
    let gradient = case.backward(&stats).f32();
    assert!(gradient.iter().all(|x| x.is_finite()));
    assert!(gradient[..4096].iter().chain(&gradient[vocab..2 * vocab]).all(|x| *x == 0.0));
    assert_eq!(gradient[2 * vocab + 8], case.dlogprob[2]);
    // Everything banned is the same as everything -inf.
    case.banned = (0..vocab as i32).rev().collect();
    let stats = case.forward();
    assert!(stats.logprob.iter().all(|x| *x == f32::NEG_INFINITY));
    assert!(stats.entropy.iter().all(|x| *x == 0.0));
    assert!(case.backward(&stats).f32().iter().all(|x| *x == 0.0));
}

#[test]
fn nan_reaches_its_own_row_only() {
    for at in [0, 17, 2047, 2048, 4999] {
        let mut case = Case::new(DType::F32, 6, 5000, 5, 1.0);
        let Logits::F32(logits) = &mut case.logits else { unreachable!() };
        let clean = case.targets.clone();
        logits[5000 + at] = f32::NAN;
        logits[4 * 5000..5 * 5000].fill(f32::NAN);
        assert_eq!(clean[4], IGNORE);
        let stats = case.forward();
        let gradient = case.backward(&stats).f32();
        assert!(
            stats.logprob[1].is_nan() && stats.entropy[1].is_nan() && stats.logsumexp[1].is_nan()
        );
        assert!(gradient[5000..10000].iter().all(|x| x.is_nan()));
        for row in [0, 2, 3, 4, 5] {
            assert!(!stats.logprob[row].is_nan() && !stats.entropy[row].is_nan());
            assert!(gradient[row * 5000..][..5000].iter().all(|x| !x.is_nan()), "row {row}");
        }
        // A whole piece of -inf and NaN, and a banned NaN.
        let Logits::F32(logits) = &mut case.logits else { unreachable!() };
        logits[..4096].fill(f32::NEG_INFINITY);
        logits[100] = f32::NAN;
        assert!(case.forward().logprob[0].is_nan());
        case.banned = vec![100];
        let stats = case.forward();
        assert!(stats.logprob[0].is_finite() || stats.logprob[0] == f32::NEG_INFINITY);
        assert!(case.backward(&stats).f32()[..5000].iter().all(|x| !x.is_nan()));
    }
}

#[test]
fn rows_without_gradient_are_not_read() {
    let mut case = Case::new(DType::F32, 3, 100, 2, 1.0);
    let stats = case.forward();
    (case.dlogprob[1], case.dentropy[1]) = (0.0, 0.0);
    let Logits::F32(logits) = &mut case.logits else { unreachable!() };
    logits[100..200].fill(f32::NAN);
    assert!(case.backward(&stats).f32()[100..200].iter().all(|x| x.to_bits() == 0));
}

#[test]
fn bits_do_not_depend_on_threads_or_neighbours() {
    for (rows, vocab) in [(1, 40_000), (3, 20_011), (40, 3000), (300, 33)] {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let mut case = Case::new(dtype, rows, vocab, 9, 3.0);
            case.banned = vec![1, 2];
            pool::set_threads(1).unwrap();
            let (stats, gradient) = case.both(case.known());
            for threads in [1, 2, 4] {
                pool::set_threads(threads).unwrap();
                let again = case.both(case.known());
                assert_eq!(again.0.bits(), stats.bits());
                assert_eq!(bits(&again.1.f32()), bits(&gradient.f32()));
                assert_eq!(case.forward().bits(), stats.bits());
                assert_eq!(bits(&case.backward(&stats).f32()), bits(&gradient.f32()));
            }
            for row in [0, rows / 2, rows - 1] {
                let values = &case.logits.f32()[row * vocab..][..vocab];
                let alone = Case {
                    rows: 1,
                    logits: Logits::new(dtype, values),
                    targets: vec![case.targets[row]],
                    dlogprob: vec![case.dlogprob[row]],
                    dentropy: vec![case.dentropy[row]],
                    ..case.clone()
                };
                let (one, dz) = alone.both(alone.known());
                assert_eq!(one.bits()[0], stats.bits()[row]);
                assert_eq!(bits(&dz.f32()), bits(&gradient.f32()[row * vocab..][..vocab]));
            }
        }
    }
    pool::set_threads(0).unwrap();
}

#[test]
fn a_loss_by_row_equals_a_known_gradient() {
    let case = Case::new(DType::Bf16, 23, 517, 4, 2.0);
    let stats = case.forward();
    let of = |row: usize, logprob: f32, entropy: f32| {
        assert_eq!((logprob, entropy), (stats.logprob[row], stats.entropy[row]));
        assert_ne!(row % 5, 4, "ignored rows have no loss");
        (case.dlogprob[row], case.dentropy[row])
    };
    let (known, by_row) = (case.both(case.known()), case.both(Upstream::PerRow(&of)));
    assert_eq!(bits(&known.1.f32()), bits(&by_row.1.f32()));
}

#[test]
fn one_temperature_for_all_equals_one_per_row() {
    let mut case = Case::new(DType::F32, 7, 77, 4, 2.0);
    case.temperature = Some(vec![0.6; 7]);
    let want = case.forward();
    let mut stats = Stats::new(7);
    let softmax = Softmax { temperature: Temperature::Same(0.6), ..Softmax::default() };
    let args =
        Forward { logits: case.logits.read(), targets: &case.targets, rows: 7, vocab: 77, softmax };
    logprob::forward(&args, stats.outputs()).unwrap();
    assert_eq!(stats.bits(), want.bits());
}

#[test]
fn bad_arguments_are_errors() {
    let good = Case::new(DType::F32, 3, 10, 1, 1.0);
    let error = |change: &dyn Fn(&mut Case)| {
        let mut case = good.clone();
        change(&mut case);
        case.try_forward(&mut Stats::new(3)).unwrap_err()
    };
    let target = error(&|c| c.targets[1] = 10);
    assert!(target.is_index() && target.to_string().contains("target 10 of row 1"), "{target}");
    assert!(error(&|c| c.targets.truncate(2)).is_shape());
    assert!(error(&|c| c.vocab = 11).is_shape());
    assert!(error(&|c| c.rows = usize::MAX / 4).is_shape());
    assert!(error(&|c| c.banned = vec![10]).is_index());
    assert!(error(&|c| c.banned = vec![-1]).is_index());
    assert!(error(&|c| c.softcap = Some(0.0)).is_invalid());
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(error(&|c| c.temperature = Some(vec![1.0, bad, 1.0])).is_invalid());
    }
    assert!(error(&|c| c.temperature = Some(vec![1.0])).is_shape());
    assert!(good.try_forward(&mut Stats::new(2)).unwrap_err().is_shape());
    let mut logits = good.logits.clone();
    let args = Backward {
        logits: logits.write(),
        targets: &good.targets,
        rows: 3,
        vocab: 10,
        softmax: Softmax::default(),
        logsumexp: &[0.0; 3],
        entropy: None,
        dlogprob: None,
        dentropy: Some(&[1.0; 3]),
    };
    assert!(logprob::backward(args).unwrap_err().is_invalid());
}

#[test]
fn nothing_to_do_is_fine() {
    Case::new(DType::F32, 0, 10, 1, 1.0).check(false);
    let mut case = Case::new(DType::F32, 2, 1, 1, 1.0);
    (case.targets, case.vocab, case.logits) = (vec![IGNORE; 2], 0, Logits::F32(Vec::new()));
    case.check(false);
}
