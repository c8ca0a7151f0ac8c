//! `kernels/linear_logprob.cu` and its launches on the emulated device, against the CPU's own family.

use crate::device_memory::{bits, download, floats, gpu, uniform, upload, upload_floats};
use crate::softmax_oracle::assert_near;
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::{DType, FloatSlice};
use gradstone::kernels::linear_logprob::launch::{
    self, Gradients, Head, Outputs, Saved, Softmax, Temperature, Upstream, workspace_bytes,
};
use gradstone::kernels::{linear_logprob as cpu, logprob as cpu_logprob};
use gradstone_host::Order;
use std::sync::Arc;

#[derive(Clone)]
struct Case {
    dtype: DType,
    rows: usize,
    width: usize,
    vocab: usize,
    hidden: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    targets: Vec<i32>,
    temperature: Vec<f32>,
    dlogprob: Vec<f32>,
    dentropy: Vec<f32>,
    live: Option<usize>,
    workspace: usize,
}

/// Statistics (logprob, entropy, logsumexp, argmax) and gradients (hidden, weight, bias).
#[derive(Clone, Debug, PartialEq)]
struct Results {
    stats: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
}

impl Results {
    fn bits(&self) -> Vec<Vec<u32>> {
        self.stats.iter().chain(&self.gradients).map(|values| bits(values)).collect()
    }
}

impl Case {
    fn new(dtype: DType, [rows, width, vocab]: [usize; 3], seed: u64) -> Case {
        let mut next = uniform(seed);
        let mut many = |n: usize, size: f32| -> Vec<f32> {
            let values: Vec<f32> = (0..n).map(|_| next() * size).collect();
            floats(&upload_floats(&gpu(), dtype, &values))
        };
        let target = |row: usize| {
            if row % 4 == 3 { -1 } else { ((row * 7919 + 3) % vocab) as i32 }
        };
        let mut case = Case {
            dtype,
            rows,
            width,
            vocab,
            hidden: many(rows * width, 4.0),
            weight: many(vocab * width, 2.0),
            bias: Some(many(vocab, 1.0)),
            targets: (0..rows).map(target).collect(),
            temperature: (0..rows).map(|row| 0.7 + 0.05 * row as f32).collect(),
            dlogprob: many(rows, 2.0),
            dentropy: many(rows, 1.0),
            live: None,
            // Chunks of sixteen rows.
            workspace: 1,
        };
        // A live row without gradient.
        for gradient in [&mut case.dlogprob, &mut case.dentropy] {
            if let Some(first) = gradient.first_mut() {
                *first = 0.0;
            }
        }
        case
    }

    fn two_passes(&self, gpu: &Arc<Gpu>) -> Results {
        self.run(gpu, |head, upstream, mut out, into| {
            launch::forward(head, out.reborrow()).unwrap();
            let saved = Saved {
                logsumexp: out.logsumexp.as_slice(),
                entropy: out.entropy.as_ref().map(|x| x.as_slice()),
                upstream,
            };
            launch::backward(head, &saved, into).unwrap();
        })
    }

    fn one_pass(&self, gpu: &Arc<Gpu>) -> Results {
        self.run(gpu, |head, upstream, out, into| {
            launch::forward_backward(head, upstream, out, into).unwrap();
        })
    }

    fn run(
        &self,
        gpu: &Arc<Gpu>,
        body: impl FnOnce(&Head<'_>, Upstream<'_>, Outputs<'_>, Gradients<'_>),
    ) -> Results {
        let typed = |values: &[f32]| upload_floats(gpu, self.dtype, values);
        let (hidden, weight) = (typed(&self.hidden), typed(&self.weight));
        let bias = self.bias.as_deref().map(typed);
        let targets = upload(gpu, DType::I32, &self.targets);
        let temperature = upload(gpu, DType::F32, &self.temperature);
        let upstream = [&self.dlogprob, &self.dentropy].map(|g| upload(gpu, DType::F32, g));
        let new = |len: usize| DeviceBuffer::recycled(gpu, DType::F32, len).unwrap();
        let [mut logprob, mut entropy, mut logsumexp] = [(); 3].map(|()| new(self.rows));
        let mut argmax = DeviceBuffer::recycled(gpu, DType::I32, self.rows).unwrap();
        let mut dhidden = new(self.rows * self.width);
        // Gradients are added to what is there.
        let mut dweight = upload(gpu, DType::F32, &vec![1f32; self.vocab * self.width]);
        let mut dbias = upload(gpu, DType::F32, &vec![1f32; self.vocab]);
        let head = Head {
            hidden: hidden.whole(),
            weight: weight.whole(),
            bias: bias.as_ref().map(DeviceBuffer::whole),
            targets: targets.whole(),
            rows: self.rows,
            width: self.width,
            vocab: self.vocab,
            softmax: Softmax {
                temperature: Temperature::PerRow(temperature.whole()),
                ..Softmax::default()
            },
            live: self.live,
            workspace: self.workspace,
        };
        let out = Outputs {
            logprob: logprob.whole_mut(),
            entropy: Some(entropy.whole_mut()),
            logsumexp: logsumexp.whole_mut(),
            argmax: Some(argmax.whole_mut()),
        };
        let into = Gradients {
            dhidden: Some(dhidden.whole_mut()),
            dweight: Some(dweight.whole_mut()),
            dbias: Some(dbias.whole_mut()),
        };
        let [dlogprob, dentropy] = upstream.each_ref().map(|g| Some(g.whole()));
        body(&head, Upstream { dlogprob, dentropy }, out, into);
        let argmax = download::<i32>(&argmax).into_iter().map(|id| id as f32).collect();
        let stats = [&logprob, &entropy, &logsumexp].map(download::<f32>);
        Results {
            stats: stats.into_iter().chain([argmax]).collect(),
            gradients: [&dhidden, &dweight, &dbias].map(download::<f32>).to_vec(),
        }
    }

    /// The CPU's family on the same numbers, in f32.
    fn twin(&self) -> Results {
        let mut stats = vec![vec![0f32; self.rows]; 3];
        let mut argmax = vec![0; self.rows];
        let mut dhidden = vec![0f32; self.rows * self.width];
        let (mut dweight, mut dbias) =
            (vec![1f32; self.vocab * self.width], vec![1f32; self.vocab]);
        let head = cpu::Head {
            hidden: FloatSlice::F32(&self.hidden),
            weight: FloatSlice::F32(&self.weight),
            bias: self.bias.as_deref().map(FloatSlice::F32),
            targets: &self.targets,
            rows: self.rows,
            width: self.width,
            vocab: self.vocab,
            softmax: cpu_logprob::Softmax {
                temperature: cpu_logprob::Temperature::PerRow(&self.temperature),
                ..cpu_logprob::Softmax::default()
            },
            workspace: 0,
        };
        let [logprob, entropy, logsumexp] = &mut stats[..] else { panic!("three") };
        let out = cpu_logprob::Outputs {
            logprob,
            entropy: Some(entropy),
            logsumexp,
            argmax: Some(&mut argmax),
        };
        let into = cpu::Gradients {
            dhidden: Some(&mut dhidden),
            dweight: Some(&mut dweight),
            dbias: Some(&mut dbias),
        };
        let known = cpu_logprob::Upstream::Known {
            dlogprob: Some(&self.dlogprob),
            dentropy: Some(&self.dentropy),
        };
        cpu::forward_backward(&head, known, out, into).unwrap();
        stats.push(argmax.into_iter().map(|id| id as f32).collect());
        Results { stats, gradients: vec![dhidden, dweight, dbias] }
    }

    fn check(&self) {
        let device = gpu();
        let (want, two, one) = (self.twin(), self.two_passes(&device), self.one_pass(&device));
        device.check_status().unwrap();
        assert_eq!(two.stats, one.stats, "one pass and two");
        let rounding = match self.dtype {
            DType::Bf16 => 8e-3,
            DType::F16 => 1e-3,
            _ => 1e-5,
        };
        for got in [&two, &one] {
            for (got, want) in got.stats.iter().zip(&want.stats) {
                for (got, want) in got.iter().zip(want) {
                    assert_near("statistics", *got, f64::from(*want), 5e-6, 5e-6);
                }
            }
            for (i, (got, want)) in got.gradients.iter().zip(&want.gradients).enumerate() {
                for (got, want) in got.iter().zip(want) {
                    let what = format!("{:?} gradient {i}", self.dtype);
                    assert_near(&what, *got, f64::from(*want), 4.0 * rounding, rounding);
                }
            }
        }
    }
}

#[test]
fn agrees_with_the_cpu() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for shape in [[1, 3, 1], [5, 8, 31], [37, 24, 129], [18, 5, 1003]] {
            let case = Case::new(dtype, shape, 1 + shape[0] as u64);
            case.check();
            let live = case.targets.iter().filter(|t| **t >= 0).count();
            Case { live: Some(live), bias: None, workspace: 0, ..case }.check();
        }
    }
}

#[test]
fn chunks_orders_and_neighbours_do_not_change_a_row() {
    let device = gpu();
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let case = Case::new(dtype, [19, 8, 50], 4);
        let (one, two) = (case.one_pass(&device), case.two_passes(&device));
        for order in Order::ALL {
            let got = gradstone_host::with_order(order, || case.one_pass(&device));
            assert_eq!(got.bits(), one.bits(), "{dtype} {order:?}");
            let got = gradstone_host::with_order(order, || case.two_passes(&device));
            assert_eq!(got.bits(), two.bits(), "{dtype} {order:?}");
        }
    }
    let case = Case::new(DType::Bf16, [37, 8, 200], 4);
    let want = case.one_pass(&device);
    let one_chunk = Case { workspace: 0, ..case.clone() }.one_pass(&device);
    assert_eq!(one_chunk.stats, want.stats);
    // What a product's bits depend on is the product's: dhidden may differ in the last place.
    for (got, want) in one_chunk.gradients[0].iter().zip(&want.gradients[0]) {
        assert_near("dhidden", *got, f64::from(*want), 1e-6, 1e-5);
    }
    let mut padded = case.clone();
    for row in (0..padded.rows).filter(|row| row % 4 == 3) {
        padded.hidden[row * 8..][..8].fill(f32::NAN);
        padded.dlogprob[row] = f32::NAN;
    }
    assert_eq!(padded.one_pass(&device).bits(), want.bits(), "NaN in masked rows");
}

#[test]
fn more_live_rows_than_promised_are_left_out_and_reported() {
    let case = Case { live: Some(16), ..Case::new(DType::F32, [37, 8, 50], 5) };
    let device = gpu();
    let got = case.one_pass(&device);
    assert!(device.check_status().unwrap_err().is_index());
    assert_eq!(got.stats[0][36], 0.0, "a live row beyond the sixteenth");
    assert_ne!(got.stats[0][0], 0.0);
    let empty = Case { live: Some(0), ..case };
    let got = empty.one_pass(&device);
    assert!(got.gradients[0].iter().all(|x| *x == 0.0));
}

#[test]
fn workspace_stays_within_its_budget() {
    for (width, vocab, dtype) in [(4096, 151_936, DType::Bf16), (896, 32_000, DType::F32)] {
        for budget in [64 << 20, 1 << 30, 0] {
            for gradients in [false, true] {
                let bytes = workspace_bytes(100_000, width, vocab, dtype, gradients, budget);
                let limit = if budget == 0 { launch::DEFAULT_WORKSPACE } else { budget };
                // The list of rows comes on top.
                assert!(bytes <= limit + 4 * 101_000, "{bytes} of {budget}");
            }
        }
    }
    assert!(workspace_bytes(8, 4096, 151_936, DType::Bf16, true, 0) < 16 << 20);
}

#[test]
fn bad_input_is_named() {
    let case = Case::new(DType::F32, [4, 8, 20], 6);
    let device = gpu();
    case.run(&device, |head, upstream, mut out, into| {
        let wrong = launch::forward(&Head { width: 7, ..*head }, out.reborrow()).unwrap_err();
        assert!(wrong.is_shape() && wrong.to_string().contains("hidden"), "{wrong}");
        let wrong = launch::forward(&Head { rows: 3, ..*head }, out.reborrow()).unwrap_err();
        assert!(wrong.is_shape(), "{wrong}");
        let narrow = upload_floats(&device, DType::Bf16, &case.weight);
        let mixed = Head { weight: narrow.whole(), ..*head };
        let wrong = launch::forward(&mixed, out.reborrow()).unwrap_err();
        assert!(wrong.is_dtype() && wrong.to_string().contains("bf16"), "{wrong}");
        let saved = Saved { logsumexp: out.logsumexp.as_slice(), entropy: None, upstream };
        assert!(launch::backward(head, &saved, into).unwrap_err().is_invalid());
        let short = Gradients { dbias: Some(out.logprob.reborrow()), ..Gradients::default() };
        let wrong = launch::backward(head, &saved, short).unwrap_err();
        assert!(wrong.is_shape() && wrong.to_string().contains("dbias"), "{wrong}");
    });
}
