//! `kernels::linear_policy_loss` against the loss in f64 as a function of hidden states and head, and the device against
//! the CPU.

use crate::device_memory::{download, gpu, uniform, upload};
use gradstone::device::gpu::DeviceBuffer;
use gradstone::dtype::{DType, FloatSlice};
use gradstone::kernels::linear_logprob::{Gradients, Head, launch as head_launch};
use gradstone::kernels::linear_policy_loss::{Loss, Workspace, forward_backward, launch};
use gradstone::kernels::logprob::launch as logprob_launch;
use gradstone::kernels::logprob::{IGNORE, Softmax, Temperature};
use gradstone::kernels::policy_loss::launch as loss_launch;
use gradstone::kernels::policy_loss::{Advantages, Metrics, Objective, Totals};

const ROWS: usize = 11;
const WIDTH: usize = 5;
const VOCAB: usize = 13;
const OFFSETS: [i64; 4] = [0, 6, 6, 11];
const ADVANTAGE: [f32; 3] = [0.8, 0.0, -1.1];

struct Batch {
    hidden: Vec<f32>,
    weight: Vec<f32>,
    targets: Vec<i32>,
    mask: Vec<u8>,
    old: Vec<f32>,
    objective: Objective,
}

impl Batch {
    fn new(name: &str) -> Batch {
        let mut next = uniform(7);
        let mut many =
            |count: usize, scale: f32| -> Vec<f32> { (0..count).map(|_| next() * scale).collect() };
        let (hidden, weight) = (many(ROWS * WIDTH, 2.0), many(VOCAB * WIDTH, 2.0));
        let mut objective = Objective { kl: None, ..Objective::preset(name).unwrap() };
        objective.entropy_coefficient = 0.02;
        Batch {
            hidden,
            weight,
            targets: (0..ROWS).map(|row| (row * 5 % VOCAB) as i32).collect(),
            mask: (0..ROWS).map(|row| u8::from(row % 4 != 1)).collect(),
            old: many(ROWS, 0.4).iter().map(|x| x - 2.5).collect(),
            objective,
        }
    }

    fn head<'a>(&'a self, hidden: &'a [f32], targets: &'a [i32]) -> Head<'a> {
        Head {
            hidden: FloatSlice::F32(hidden),
            weight: FloatSlice::F32(&self.weight),
            bias: None,
            targets,
            rows: ROWS,
            width: WIDTH,
            vocab: VOCAB,
            softmax: Softmax { temperature: Temperature::Same(0.8), softcap: None, banned: &[] },
            workspace: 0,
        }
    }

    fn loss(&self) -> Loss<'_> {
        Loss {
            objective: &self.objective,
            old_logprob: Some(&self.old),
            advantage: Advantages::PerSequence(&ADVANTAGE),
            mask: &self.mask,
            offsets: &OFFSETS,
            reference_logprob: None,
            weight: None,
            sampler_logprob: None,
            off_policy: None,
            selected: None,
            totals: Totals::default(),
        }
    }

    fn on_cpu(&self, hidden: &[f32]) -> (Metrics, Vec<f32>, Vec<f32>) {
        let mut workspace = Workspace::default();
        let (mut dhidden, mut dweight) = (vec![f32::NAN; ROWS * WIDTH], vec![0.0; VOCAB * WIDTH]);
        let into =
            Gradients { dhidden: Some(&mut dhidden), dweight: Some(&mut dweight), dbias: None };
        let head = self.head(hidden, &self.targets);
        let metrics = forward_backward(&head, &self.loss(), &mut workspace, into).unwrap();
        (metrics, dhidden, dweight)
    }
}

const NAMES: [&str; 4] = ["ppo", "gmpo", "sapo", "gspo_token"];

#[test]
fn gradients_are_differences_of_the_loss() {
    for name in NAMES {
        let batch = Batch::new(name);
        let (_, dhidden, _) = batch.on_cpu(&batch.hidden);
        // A stop-gradient has no differences: not for gspo_token with its clip inside.
        for i in (0..ROWS * WIDTH).filter(|_| name != "gspo_token") {
            let at = |sign: f32| {
                let mut moved = batch.hidden.clone();
                moved[i] += sign * 4e-3;
                batch.on_cpu(&moved).0.loss
            };
            let slope = (at(1.0) - at(-1.0)) / 8e-3;
            let got = f64::from(dhidden[i]);
            assert!((got - slope).abs() < 2e-3 * slope.abs() + 3e-4, "{name} {i}: {got} {slope}");
        }
    }
}

#[test]
fn masked_rows_are_not_read() {
    let batch = Batch::new("ppo");
    let clean = batch.on_cpu(&batch.hidden);
    let mut poisoned = batch.hidden.clone();
    for row in (0..ROWS).filter(|row| batch.mask[*row] == 0) {
        poisoned[row * WIDTH..(row + 1) * WIDTH].fill(f32::NAN);
    }
    assert_eq!(batch.on_cpu(&poisoned), clean);
    let mut short = batch.loss();
    short.mask = &[1; 3];
    let head = batch.head(&batch.hidden, &batch.targets);
    let none = Gradients { dhidden: None, dweight: None, dbias: None };
    let error = forward_backward(&head, &short, &mut Workspace::default(), none).unwrap_err();
    assert!(error.is_shape() && error.to_string().contains("3 mask bytes"), "{error}");
}

#[test]
fn the_device_agrees() {
    let device = gpu();
    for name in NAMES {
        let batch = Batch::new(name);
        let (want, dhidden, dweight) = batch.on_cpu(&batch.hidden);
        let floats = |values: &[f32]| upload(&device, DType::F32, values);
        let live = batch.targets.iter().zip(&batch.mask);
        let targets: Vec<i32> =
            live.map(|(target, mask)| if *mask != 0 { *target } else { IGNORE }).collect();
        let (hidden, weight) = (floats(&batch.hidden), floats(&batch.weight));
        let (old, advantage) = (floats(&batch.old), floats(&ADVANTAGE));
        let targets = upload(&device, DType::I32, &targets);
        let mask = upload(&device, DType::U8, &batch.mask);
        let offsets = upload(&device, DType::I64, &OFFSETS);
        let mut into_hidden = floats(&vec![f32::NAN; ROWS * WIDTH]);
        let mut into_weight = floats(&vec![0.0; VOCAB * WIDTH]);
        let head = head_launch::Head {
            hidden: hidden.whole(),
            weight: weight.whole(),
            bias: None,
            targets: targets.whole(),
            rows: ROWS,
            width: WIDTH,
            vocab: VOCAB,
            softmax: logprob_launch::Softmax {
                temperature: logprob_launch::Temperature::Same(0.8),
                softcap: None,
                banned: None,
            },
            live: None,
            workspace: 0,
        };
        let loss = launch::Loss {
            objective: &batch.objective,
            old_logprob: Some(old.whole()),
            advantage: loss_launch::Advantages::PerSequence(advantage.whole()),
            mask: mask.whole(),
            offsets: offsets.whole(),
            reference_logprob: None,
            weight: None,
            sampler_logprob: None,
            off_policy: None,
            selected: None,
            totals: Totals::default(),
        };
        let into = head_launch::Gradients {
            dhidden: Some(into_hidden.whole_mut()),
            dweight: Some(into_weight.whole_mut()),
            dbias: None,
        };
        let computed = launch::forward_backward(&head, &loss, into).unwrap();
        let got = computed.metrics.read().unwrap();
        assert!((got.loss - want.loss).abs() < 1e-5 * want.loss.abs() + 1e-6, "{name}");
        let near = |got: &DeviceBuffer, want: &[f32]| {
            for (got, want) in download::<f32>(got).iter().zip(want) {
                assert!((got - want).abs() <= 1e-4 * want.abs() + 1e-6, "{name}: {got} {want}");
            }
        };
        near(&into_hidden, &dhidden);
        near(&into_weight, &dweight);
        assert_eq!(computed.entropy.len(), ROWS);
    }
}
