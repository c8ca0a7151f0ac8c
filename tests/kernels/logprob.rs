//! `kernels/logprob.cu`, run on the CPU by the emulated device: against f64 and against the CPU's own kernels; its bits
//! against thread orders, neighbours, splits and masked rows.

use crate::device_memory::{bits, download, floats, gpu, uniform, upload, upload_floats};
use crate::softmax_oracle::assert_near;
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::DType;
use gradstone::error::Result;
use gradstone::kernels::logprob::launch::{
    self, Logits, Outputs, Rows, Softmax, Temperature, Upstream,
};
use gradstone_host::Order;
use std::sync::Arc;

#[derive(Clone)]
struct Case {
    dtype: DType,
    rows: usize,
    vocab: usize,
    logits: Vec<f32>,
    targets: Vec<i32>,
    temperature: Option<Vec<f32>>,
    softcap: Option<f32>,
    banned: Vec<i32>,
    dlogprob: Vec<f32>,
    dentropy: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq)]
struct Stats {
    /// Bits: NaN equals itself.
    logprob: Vec<u32>,
    entropy: Vec<u32>,
    logsumexp: Vec<u32>,
    argmax: Vec<i32>,
}

fn value(bits: u32) -> f32 {
    f32::from_bits(bits)
}

impl Case {
    /// Normal logits; where there are five rows the last is masked.
    fn new(dtype: DType, rows: usize, vocab: usize, seed: u64) -> Case {
        let mut next = uniform(seed);
        let mut normal = |_| (next() + next() + next() + next()) * 5.0;
        let logits: Vec<f32> = (0..rows * vocab).map(&mut normal).collect();
        let target =
            |row: usize| if row % 5 == 4 { -100 } else { ((row * 7919 + 3) % vocab) as i32 };
        Case {
            dtype,
            rows,
            vocab,
            logits,
            targets: (0..rows).map(target).collect(),
            temperature: None,
            softcap: None,
            banned: Vec::new(),
            dlogprob: (0..rows).map(&mut normal).collect(),
            dentropy: (0..rows).map(&mut normal).collect(),
        }
    }

    /// Per-row temperatures, a softcap and some banned ids.
    fn restricted(mut self) -> Case {
        self.temperature = Some((0..self.rows).map(|row| 0.6 + 0.3 * row as f32).collect());
        self.softcap = Some(7.5);
        self.banned = vec![(self.vocab - 1) as i32, 1, (self.vocab / 2) as i32, 1];
        self
    }

    fn row(&self, row: usize) -> Case {
        let at = |all: &[f32]| vec![all[row]];
        Case {
            rows: 1,
            logits: self.logits[row * self.vocab..][..self.vocab].to_vec(),
            targets: vec![self.targets[row]],
            temperature: self.temperature.as_deref().map(at),
            dlogprob: at(&self.dlogprob),
            dentropy: at(&self.dentropy),
            ..self.clone()
        }
    }

    fn stored(&self) -> Vec<f32> {
        floats(&upload_floats(&gpu(), self.dtype, &self.logits))
    }

    /// Runs `body(logits, rows, outputs, upstream)` on device memory; the statistics, and the logits after.
    fn run(
        &self,
        gpu: &Arc<Gpu>,
        body: impl FnOnce(&mut DeviceBuffer, &Rows<'_>, Outputs<'_>, Upstream<'_>) -> Result<()>,
    ) -> Result<(Stats, Vec<f32>)> {
        let mut logits = upload_floats(gpu, self.dtype, &self.logits);
        let targets = upload(gpu, DType::I32, &self.targets);
        let temperature = self.temperature.as_ref().map(|t| upload(gpu, DType::F32, t));
        let banned = launch::banned_ids(gpu, &self.banned, self.vocab)?;
        let [dlogprob, dentropy] =
            [&self.dlogprob, &self.dentropy].map(|g| upload(gpu, DType::F32, g));
        let new = |dtype| DeviceBuffer::recycled(gpu, dtype, self.targets.len()).unwrap();
        let [mut logprob, mut entropy, mut logsumexp] = [(); 3].map(|()| new(DType::F32));
        let mut argmax = new(DType::I32);
        let rows = Rows {
            targets: targets.whole(),
            row_of: None,
            rows: self.rows,
            vocab: self.vocab,
            softmax: Softmax {
                temperature: match &temperature {
                    None => Temperature::One,
                    Some(all) => Temperature::PerRow(all.whole()),
                },
                softcap: self.softcap,
                banned: banned.as_ref().map(DeviceBuffer::whole),
            },
        };
        let out = Outputs {
            logprob: logprob.whole_mut(),
            entropy: Some(entropy.whole_mut()),
            logsumexp: logsumexp.whole_mut(),
            argmax: Some(argmax.whole_mut()),
        };
        let upstream =
            Upstream { dlogprob: Some(dlogprob.whole()), dentropy: Some(dentropy.whole()) };
        body(&mut logits, &rows, out, upstream)?;
        let stats = Stats {
            logprob: download(&logprob),
            entropy: download(&entropy),
            logsumexp: download(&logsumexp),
            argmax: download(&argmax),
        };
        Ok((stats, floats(&logits)))
    }

    fn forward(&self) -> Stats {
        self.run(&gpu(), |logits, rows, out, _| launch::forward(logits.whole(), rows, out))
            .unwrap()
            .0
    }

    /// Forward and backward in two launches.
    fn two_passes(&self) -> (Stats, Vec<f32>) {
        let both =
            |logits: &mut DeviceBuffer, rows: &Rows<'_>, mut out: Outputs<'_>, up: Upstream<'_>| {
                let again = Outputs {
                    logprob: out.logprob.reborrow(),
                    entropy: out.entropy.as_mut().map(|x| x.reborrow()),
                    logsumexp: out.logsumexp.reborrow(),
                    argmax: out.argmax.as_mut().map(|x| x.reborrow()),
                };
                launch::forward(logits.whole(), rows, again)?;
                let entropy = out.entropy.as_ref().map(|x| x.as_slice());
                let in_place = Logits::InPlace(logits.whole_mut());
                launch::backward(in_place, rows, out.logsumexp.as_slice(), entropy, up)
            };
        self.run(&gpu(), both).unwrap()
    }

    fn one_pass(&self) -> (Stats, Vec<f32>) {
        let body = |logits: &mut DeviceBuffer,
                    rows: &Rows<'_>,
                    out: Outputs<'_>,
                    upstream: Upstream<'_>| {
            launch::forward_backward(Logits::InPlace(logits.whole_mut()), rows, out, upstream)
        };
        self.run(&gpu(), body).unwrap()
    }

    /// Statistics and gradients against f64; one pass against two.
    fn check(&self) {
        let (stats, gradient) = self.two_passes();
        let (both_stats, both_gradient) = self.one_pass();
        assert_eq!(stats, both_stats, "one pass and two");
        assert_eq!(bits(&gradient), bits(&both_gradient), "one pass and two");
        let logits = self.stored();
        let rounding = match self.dtype {
            DType::Bf16 => 1.0 / 256.0,
            DType::F16 => 1.0 / 2048.0,
            _ => 2e-6,
        };
        for row in 0..self.rows {
            let oracle = crate::softmax_oracle::Softmax {
                temperature: self.temperature.as_ref().map_or(1.0, |t| f64::from(t[row])),
                softcap: self.softcap.map(f64::from),
                banned: self.banned.clone(),
            };
            let of_row: Vec<f64> =
                logits[row * self.vocab..][..self.vocab].iter().map(|x| f64::from(*x)).collect();
            let got = &gradient[row * self.vocab..][..self.vocab];
            let Ok(target) = usize::try_from(self.targets[row]) else {
                assert_eq!((stats.logprob[row], stats.entropy[row], stats.argmax[row]), (0, 0, -1));
                assert!(got.iter().all(|g| *g == 0.0), "a masked row has gradient 0");
                continue;
            };
            let want = oracle.row(&of_row, target);
            let what = format!("{:?} {} x {}", self.dtype, row, self.vocab);
            assert_near(&what, value(stats.logprob[row]), want.logprob, 2e-6, 1e-6);
            assert_near(&what, value(stats.entropy[row]), want.entropy, 3e-6, 1e-6);
            assert_near(&what, value(stats.logsumexp[row]), want.logsumexp, 2e-6, 1e-6);
            let upstream = [self.dlogprob[row], self.dentropy[row]].map(f64::from);
            let wants = oracle.gradient(&of_row, target, upstream);
            for (got, want) in got.iter().zip(wants) {
                assert_near(&format!("{what} gradient"), *got, want, 1e-5, rounding);
            }
        }
    }
}

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

#[test]
fn agrees_with_f64_at_every_width() {
    for dtype in DTYPES {
        for (rows, vocab) in [(6, 1), (6, 2), (6, 31), (5, 129), (6, 1003), (5, 4096), (2, 9001)] {
            Case::new(dtype, rows, vocab, vocab as u64).check();
            if vocab > 3 {
                Case::new(dtype, rows, vocab, vocab as u64).restricted().check();
            }
        }
    }
}

#[test]
fn thread_orders_do_not_change_a_bit() {
    for dtype in DTYPES {
        // Several rows: a block each. One: its units, and their merge.
        for rows in [5, 1] {
            let case = Case::new(dtype, rows, 9001, 3).restricted();
            let (one, two) = (case.one_pass(), case.two_passes());
            for order in Order::ALL {
                for (want, pass) in [
                    (&one, Case::one_pass as fn(&Case) -> (Stats, Vec<f32>)),
                    (&two, Case::two_passes),
                ] {
                    let (stats, gradient) = gradstone_host::with_order(order, || pass(&case));
                    assert_eq!(stats, want.0, "{dtype} {order:?}");
                    assert_eq!(bits(&gradient), bits(&want.1), "{dtype} {order:?}");
                }
            }
        }
    }
}

/// A row alone is split over blocks and aligned to 256 bytes; among others it has one block, and lies anywhere.
#[test]
fn a_row_alone_is_the_row_in_a_batch() {
    for dtype in DTYPES {
        for vocab in [129, 4099, 40_003] {
            let case = Case::new(dtype, 5, vocab, 11);
            let (stats, gradient) = case.one_pass();
            for row in 0..4 {
                let (alone, alone_gradient) = case.row(row).one_pass();
                assert_eq!(alone.logprob[0], stats.logprob[row], "{dtype:?} {vocab} row {row}");
                assert_eq!(alone.entropy[0], stats.entropy[row]);
                assert_eq!(alone.logsumexp[0], stats.logsumexp[row]);
                assert_eq!(alone.argmax[0], stats.argmax[row]);
                assert_eq!(bits(&alone_gradient), bits(&gradient[row * vocab..][..vocab]));
            }
        }
    }
}

#[test]
fn masked_rows_may_hold_anything() {
    let case = Case::new(DType::F32, 5, 300, 5);
    let want = case.one_pass();
    let mut poisoned = case.clone();
    poisoned.logits[4 * 300..].fill(f32::NAN);
    poisoned.dlogprob[4] = f32::NAN;
    poisoned.dentropy[4] = f32::NAN;
    let got = poisoned.one_pass();
    assert_eq!((&got.0, bits(&got.1)), (&want.0, bits(&want.1)));
}

#[test]
fn minus_infinity_nan_and_extremes() {
    let vocab = 5000;
    let mut case = Case::new(DType::F32, 5, vocab, 6);
    case.targets = vec![4999, 3, 7, 2, 0];
    case.logits[..4500].fill(f32::NEG_INFINITY); // begins with -inf, a whole unit of it
    case.logits[vocab..2 * vocab].fill(f32::NEG_INFINITY);
    case.logits[2 * vocab + 17] = f32::NAN;
    for (i, z) in case.logits[3 * vocab..4 * vocab].iter_mut().enumerate() {
        *z = if i % 2 == 0 { -3e38 } else { -2.9e38 };
    }
    case.logits[4 * vocab + 3] = 1e4; // the target is impossible to f32
    let (stats, gradient) = case.one_pass();
    assert_eq!(stats, case.two_passes().0);
    let want = crate::softmax_oracle::Softmax { temperature: 1.0, ..Default::default() };
    let of_row: Vec<f64> = case.logits[..vocab].iter().map(|x| f64::from(*x)).collect();
    assert_near("half -inf", value(stats.logprob[0]), want.row(&of_row, 4999).logprob, 2e-6, 1e-6);
    assert!(gradient[..4500].iter().all(|g| *g == 0.0));
    assert_eq!(value(stats.logprob[1]), f32::NEG_INFINITY);
    assert_eq!(value(stats.logsumexp[1]), f32::NEG_INFINITY);
    assert_eq!((value(stats.entropy[1]), stats.argmax[1]), (0.0, -1));
    assert!(gradient[vocab..2 * vocab].iter().all(|g| *g == 0.0));
    assert!(value(stats.logprob[2]).is_nan() && value(stats.entropy[2]).is_nan());
    assert!(gradient[2 * vocab..3 * vocab].iter().all(|g| g.is_nan()));
    assert_near("-1e37", value(stats.logprob[3]), -1e37, 0.0, 1e-6);
    assert_eq!(stats.argmax[3], 1);
    assert!((value(stats.logprob[4]) + 1e4).abs() < 20.0);
    assert_eq!(value(stats.entropy[4]), 0.0);
}

#[test]
fn the_first_of_equal_logits_is_the_argmax() {
    for rows in [1, 5] {
        let vocab = 9000;
        let mut case = Case::new(DType::Bf16, rows, vocab, 8);
        case.logits.iter_mut().for_each(|z| *z = z.clamp(-3.0, 3.0));
        for (row, id) in [8999, 4097, 4095, 0, 77].into_iter().enumerate().take(rows) {
            case.logits[row * vocab + id] = 9.0;
            case.logits[row * vocab + (id + 4500).min(8999)] = 9.0;
        }
        case.targets.fill(1);
        let want: Vec<i32> = [8999, 4097, 4095, 0, 77].into_iter().take(rows).collect();
        assert_eq!(case.forward().argmax, want);
    }
}

#[test]
fn gradients_of_another_type() {
    for (dtype, into) in [
        (DType::Bf16, DType::F32),
        (DType::F16, DType::F32),
        (DType::F32, DType::Bf16),
        (DType::F32, DType::F16),
    ] {
        for vocab in [31, 4104, 9001] {
            let case = Case::new(dtype, 5, vocab, 9).restricted();
            let device = gpu();
            let mut apart = DeviceBuffer::recycled(&device, into, 5 * vocab).unwrap();
            let body = |apart: &mut DeviceBuffer,
                        logits: &mut DeviceBuffer,
                        rows: &Rows<'_>,
                        mut out: Outputs<'_>,
                        up: Upstream<'_>| {
                let again = Outputs {
                    logprob: out.logprob.reborrow(),
                    entropy: out.entropy.as_mut().map(|x| x.reborrow()),
                    logsumexp: out.logsumexp.reborrow(),
                    argmax: None,
                };
                launch::forward(logits.whole(), rows, again)?;
                let to = Logits::Apart { logits: logits.whole(), dlogits: apart.whole_mut() };
                let entropy = out.entropy.as_ref().map(|x| x.as_slice());
                launch::backward(to, rows, out.logsumexp.as_slice(), entropy, up)
            };
            let (_, kept) = case.run(&device, |a, b, c, d| body(&mut apart, a, b, c, d)).unwrap();
            assert_eq!(bits(&kept), bits(&case.stored()), "the logits are kept");
            let first = floats(&apart);
            for order in Order::ALL {
                let run = || case.run(&device, |a, b, c, d| body(&mut apart, a, b, c, d)).unwrap();
                gradstone_host::with_order(order, run);
                assert_eq!(bits(&floats(&apart)), bits(&first), "{order:?}");
            }
            let wide = Case { dtype: DType::F32, logits: case.stored(), ..case.clone() };
            let (_, want) = wide.two_passes();
            let want = floats(&upload_floats(&device, into, &want));
            let got = floats(&apart);
            let (mut differ, limit) = (0, if dtype == DType::F32 { 0 } else { 5 * vocab });
            for (got, want) in got.iter().zip(&want) {
                assert_near("apart", *got, f64::from(*want), 1e-6, 1e-4);
                differ += usize::from(got != want);
            }
            // The statistics of 16-bit logits are summed in another order than those of f32 ones.
            assert!(differ <= limit, "{differ} gradients differ");
        }
    }
}

/// Rows beyond 2³¹ elements, in memory that is not there: only the last row is live.
#[test]
fn rows_lie_beyond_two_to_the_31() {
    let (rows, vocab) = (3000, 1_000_003);
    let device = gpu();
    let alone = Case::new(DType::Bf16, 1, vocab, 12);
    let live = upload_floats(&device, DType::Bf16, &alone.logits);
    let before = (rows - 1) * vocab * 2;
    let address = live.whole().address();
    // SAFETY: masked rows are never read, and the last row is `live`.
    let logits = unsafe {
        let start = address.wrapping_sub(before as u64);
        DeviceBuffer::borrowed(&device, DType::Bf16, start, rows * vocab).unwrap()
    };
    // Five rows of the logits are asked for; `row_of` names no output for all but one.
    let mut targets = vec![-1; rows];
    targets[rows - 1] = alone.targets[0];
    let targets = upload(&device, DType::I32, &targets);
    let new = || DeviceBuffer::recycled(&device, DType::F32, rows).unwrap();
    let (mut logprob, mut logsumexp) = (new(), new());
    let asked =
        Rows { targets: targets.whole(), row_of: None, rows, vocab, softmax: Softmax::default() };
    let out = Outputs {
        logprob: logprob.whole_mut(),
        entropy: None,
        logsumexp: logsumexp.whole_mut(),
        argmax: None,
    };
    launch::forward(logits.whole(), &asked, out).unwrap();
    let got: Vec<u32> = download(&logprob);
    assert_eq!(got[rows - 1], alone.forward().logprob[0]);
    assert!(got[..rows - 1].iter().all(|bits| *bits == 0));
}

#[test]
fn rows_are_where_row_of_says() {
    let case = Case::new(DType::F32, 3, 200, 13);
    let device = gpu();
    let want = case.forward();
    let logits = upload_floats(&device, DType::F32, &case.logits);
    let row_of = upload(&device, DType::I32, &[4i32, -1, 0]);
    let targets = upload(&device, DType::I32, &[case.targets[2], 9, 9, 9, case.targets[0]]);
    let mut logprob = upload(&device, DType::F32, &[7f32; 5]);
    let mut logsumexp = upload(&device, DType::F32, &[7f32; 5]);
    let rows = Rows {
        targets: targets.whole(),
        row_of: Some(row_of.whole()),
        rows: 3,
        vocab: 200,
        softmax: Softmax::default(),
    };
    let out = Outputs {
        logprob: logprob.whole_mut(),
        entropy: None,
        logsumexp: logsumexp.whole_mut(),
        argmax: None,
    };
    launch::forward(logits.whole(), &rows, out).unwrap();
    let seven = 7f32.to_bits();
    let want = [want.logprob[2], seven, seven, seven, want.logprob[0]];
    assert_eq!(download::<u32>(&logprob), want);
}

#[test]
fn bad_input_is_named_or_masks_its_row() {
    let mut case = Case::new(DType::F32, 3, 10, 14);
    let device = gpu();
    let forward = |case: &Case| {
        case.run(&device, |logits, rows, out, _| launch::forward(logits.whole(), rows, out))
    };
    case.targets = vec![10, 2, i32::MAX];
    let (stats, _) = forward(&case).unwrap();
    assert_eq!((stats.logprob[0], stats.argmax[0], stats.argmax[2]), (0, -1, -1));
    assert_ne!(stats.logprob[1], 0);
    let met = device.check_status().unwrap_err();
    assert!(met.is_index() && met.to_string().contains("target"), "{met}");
    device.check_status().unwrap();

    case.targets = vec![1, 2, 3];
    case.temperature = Some(vec![1.0, 0.0, f32::NAN]);
    let (stats, _) = forward(&case).unwrap();
    assert_eq!((stats.argmax[1], stats.argmax[2]), (-1, -1));
    assert!(device.check_status().is_err());

    case.temperature = Some(vec![1.0; 2]);
    assert!(forward(&case).unwrap_err().is_shape());
    case.temperature = None;
    case.softcap = Some(-1.0);
    assert!(forward(&case).unwrap_err().is_invalid());
    case.softcap = None;
    case.banned = vec![10];
    assert!(forward(&case).unwrap_err().is_index());
    case.banned.clear();
    let short =
        case.run(&device, |logits, rows, out, _| launch::forward(logits.slice(0..29)?, rows, out));
    assert!(short.unwrap_err().is_shape());
    let mixed = case.run(&device, |logits, rows, out, upstream| {
        let mut into = DeviceBuffer::recycled(&device, DType::I32, 30)?;
        let to = Logits::Apart { logits: logits.whole(), dlogits: into.whole_mut() };
        launch::forward_backward(to, rows, out, upstream)
    });
    assert!(mixed.unwrap_err().is_dtype());
    let blind = case.run(&device, |logits, rows, out, upstream| {
        let to = Logits::InPlace(logits.whole_mut());
        launch::backward(to, rows, out.logsumexp.as_slice(), None, upstream)
    });
    assert!(blind.unwrap_err().is_invalid());
    let nothing = Case { rows: 0, logits: vec![], targets: vec![], ..case.clone() };
    assert_eq!(forward(&nothing).unwrap().0.logprob.len(), 0);
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let device = gpu();
    // SAFETY: nothing is launched on it.
    let borrowed = |address, len| unsafe {
        DeviceBuffer::borrowed(&device, DType::F32, address, len).map(|buffer| buffer.len())
    };
    for (address, len) in [(0, 1), (0x1002, 1), (u64::MAX - 3, 4), (0x1000, usize::MAX)] {
        let error = borrowed(address, len).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("0x"), "{error}");
    }
    assert_eq!(borrowed(0, 0).unwrap(), 0);
    assert_eq!(borrowed(0x1000, 5).unwrap(), 5);
}
