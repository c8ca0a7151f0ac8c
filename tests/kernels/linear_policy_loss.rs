//! `kernels::linear_policy_loss` against the loss in f64 as a function of hidden states and head, one pass against two, and
//! the device against the CPU.

use crate::device_memory::{download, gpu, uniform, upload};
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::{DType, FloatSlice};
use gradstone::kernels::linear_logprob::{self, Gradients, Head, Saved, launch as head_launch};
use gradstone::kernels::linear_policy_loss::{Loss, Workspace, forward_backward, launch};
use gradstone::kernels::logprob::launch as logprob_launch;
use gradstone::kernels::logprob::{IGNORE, Outputs, Softmax, Temperature};
use gradstone::kernels::policy_loss::{self, launch as loss_launch};
use gradstone::kernels::policy_loss::{Advantages, Metrics, Objective, PRESETS, Totals};
use std::sync::Arc;

const ROWS: usize = 53;
const WIDTH: usize = 5;
const VOCAB: usize = 13;
const OFFSETS: [i64; 5] = [0, 20, 20, 37, 53];
const ADVANTAGE: [f32; 4] = [0.8, 0.0, -1.1, 0.4];

/// Workspace budgets: all rows in one chunk, and several chunks.
const BUDGETS: [usize; 2] = [0, 1];

struct Batch {
    hidden: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    targets: Vec<i32>,
    mask: Vec<u8>,
    marks: Vec<u8>,
    old: Vec<f32>,
    reference: Vec<f32>,
    importance: Vec<f32>,
    objective: Objective,
    budget: usize,
}

/// What a call gave.
#[derive(Clone, Debug, PartialEq)]
struct Given {
    metrics: Metrics,
    logprob: Vec<f32>,
    entropy: Vec<f32>,
    dhidden: Vec<f32>,
    dweight: Vec<f32>,
    dbias: Vec<f32>,
}

impl Batch {
    fn new(name: &str) -> Batch {
        let mut next = uniform(7);
        let mut many =
            |count: usize, scale: f32| -> Vec<f32> { (0..count).map(|_| next() * scale).collect() };
        let (hidden, weight) = (many(ROWS * WIDTH, 2.0), many(VOCAB * WIDTH, 2.0));
        let near = |values: Vec<f32>| values.iter().map(|x| x - 2.5).collect();
        let mask: Vec<u8> = (0..ROWS).map(|row| u8::from(row % 4 != 1)).collect();
        let target = |row: usize| if mask[row] != 0 { (row * 5 % VOCAB) as i32 } else { IGNORE };
        let objective = Objective { entropy_coefficient: 0.02, ..Objective::preset(name).unwrap() };
        Batch {
            hidden,
            weight,
            bias: many(VOCAB, 0.5),
            targets: (0..ROWS).map(target).collect(),
            marks: (0..ROWS).map(|row| u8::from(row % 3 == 0)).collect(),
            mask,
            old: near(many(ROWS, 0.4)),
            reference: near(many(ROWS, 0.6)),
            importance: many(ROWS, 0.3).iter().map(|x| x + 1.0).collect(),
            objective,
            budget: 0,
        }
    }

    fn head<'a>(&'a self, hidden: &'a [f32]) -> Head<'a> {
        Head {
            hidden: FloatSlice::F32(hidden),
            weight: FloatSlice::F32(&self.weight),
            bias: Some(FloatSlice::F32(&self.bias)),
            targets: &self.targets,
            rows: ROWS,
            width: WIDTH,
            vocab: VOCAB,
            softmax: Softmax { temperature: Temperature::Same(0.8), softcap: None, banned: &[] },
            workspace: self.budget,
        }
    }

    fn loss(&self) -> Loss<'_> {
        Loss {
            objective: &self.objective,
            old_logprob: Some(&self.old),
            advantage: Advantages::PerSequence(&ADVANTAGE),
            mask: &self.mask,
            offsets: &OFFSETS,
            reference_logprob: Some(&self.reference),
            weight: Some(&self.importance),
            sampler_logprob: Some(&self.reference),
            off_policy: self.objective.replay.map(|_| &self.marks[..]),
            selected: self.objective.selection.as_ref().map(|_| &self.marks[..]),
            totals: Totals::default(),
        }
    }

    fn on_cpu(&self, hidden: &[f32]) -> Given {
        let mut workspace = Workspace::default();
        let [mut dhidden, mut dweight, mut dbias] = fresh();
        let into = Gradients {
            dhidden: Some(&mut dhidden),
            dweight: Some(&mut dweight),
            dbias: Some(&mut dbias),
        };
        let head = self.head(hidden);
        let metrics = forward_backward(&head, &self.loss(), &mut workspace, into).unwrap();
        let Workspace { logprob, entropy, .. } = workspace;
        Given { metrics, logprob, entropy, dhidden, dweight, dbias }
    }

    /// All log-probs, then the loss, then the logits again and their gradient.
    fn in_two_passes(&self) -> Given {
        let zeros = vec![0.0; ROWS];
        let (mut logprob, mut entropy, mut logsumexp) = (zeros.clone(), zeros.clone(), zeros);
        let (mut dlogprob, mut dentropy) = (vec![f32::NAN; ROWS], vec![f32::NAN; ROWS]);
        let head = self.head(&self.hidden);
        let outputs = Outputs {
            logprob: &mut logprob,
            entropy: Some(&mut entropy),
            logsumexp: &mut logsumexp,
            argmax: None,
        };
        linear_logprob::forward(&head, outputs).unwrap();
        let into = policy_loss::Gradients { logprob: &mut dlogprob, entropy: Some(&mut dentropy) };
        let inputs = self.loss().inputs(&logprob, &entropy);
        let metrics = policy_loss::forward_backward(&self.objective, &inputs, into).unwrap();
        let saved = Saved {
            logsumexp: &logsumexp,
            entropy: Some(&entropy),
            dlogprob: Some(&dlogprob),
            dentropy: Some(&dentropy),
        };
        let [mut dhidden, mut dweight, mut dbias] = fresh();
        let into = Gradients {
            dhidden: Some(&mut dhidden),
            dweight: Some(&mut dweight),
            dbias: Some(&mut dbias),
        };
        linear_logprob::backward(&head, &saved, into).unwrap();
        Given { metrics, logprob, entropy, dhidden, dweight, dbias }
    }

    fn on_device(&self, device: &Arc<Gpu>) -> OnDevice {
        let floats = |values: &[f32]| upload(device, DType::F32, values);
        OnDevice {
            hidden: floats(&self.hidden),
            weight: floats(&self.weight),
            bias: floats(&self.bias),
            targets: upload(device, DType::I32, &self.targets),
            mask: upload(device, DType::U8, &self.mask),
            marks: upload(device, DType::U8, &self.marks),
            old: floats(&self.old),
            reference: floats(&self.reference),
            importance: floats(&self.importance),
            advantage: floats(&ADVANTAGE),
            offsets: upload(device, DType::I64, &OFFSETS),
        }
    }
}

/// Where gradients go: what is overwritten holds NaN before, what is added to zeros.
fn fresh() -> [Vec<f32>; 3] {
    [vec![f32::NAN; ROWS * WIDTH], vec![0.0; VOCAB * WIDTH], vec![0.0; VOCAB]]
}

/// A [`Batch`] in device memory.
struct OnDevice {
    hidden: DeviceBuffer,
    weight: DeviceBuffer,
    bias: DeviceBuffer,
    targets: DeviceBuffer,
    mask: DeviceBuffer,
    marks: DeviceBuffer,
    old: DeviceBuffer,
    reference: DeviceBuffer,
    importance: DeviceBuffer,
    advantage: DeviceBuffer,
    offsets: DeviceBuffer,
}

impl OnDevice {
    fn head(&self, budget: usize) -> head_launch::Head<'_> {
        head_launch::Head {
            hidden: self.hidden.whole(),
            weight: self.weight.whole(),
            bias: Some(self.bias.whole()),
            targets: self.targets.whole(),
            rows: ROWS,
            width: WIDTH,
            vocab: VOCAB,
            softmax: logprob_launch::Softmax {
                temperature: logprob_launch::Temperature::Same(0.8),
                softcap: None,
                banned: None,
            },
            live: None,
            workspace: budget,
        }
    }

    fn loss<'a>(&'a self, objective: &'a Objective) -> launch::Loss<'a> {
        launch::Loss {
            objective,
            old_logprob: Some(self.old.whole()),
            advantage: loss_launch::Advantages::PerSequence(self.advantage.whole()),
            mask: self.mask.whole(),
            offsets: self.offsets.whole(),
            reference_logprob: Some(self.reference.whole()),
            weight: Some(self.importance.whole()),
            sampler_logprob: Some(self.reference.whole()),
            off_policy: objective.replay.map(|_| self.marks.whole()),
            selected: objective.selection.as_ref().map(|_| self.marks.whole()),
            totals: Totals::default(),
        }
    }

    fn compute(&self, batch: &Batch) -> Given {
        let mut into = fresh().map(|values| upload(self.hidden.gpu(), DType::F32, &values));
        let [dhidden, dweight, dbias] = &mut into;
        let computed = launch::forward_backward(
            &self.head(batch.budget),
            &self.loss(&batch.objective),
            head_launch::Gradients {
                dhidden: Some(dhidden.whole_mut()),
                dweight: Some(dweight.whole_mut()),
                dbias: Some(dbias.whole_mut()),
            },
        )
        .unwrap();
        let (logprob, entropy) = (&computed.logprob, &computed.entropy);
        given(computed.metrics.read().unwrap(), [logprob, entropy], &into)
    }

    fn in_two_passes(&self, batch: &Batch) -> Given {
        let new = || upload(self.hidden.gpu(), DType::F32, &[f32::NAN; ROWS]);
        let (mut logprob, mut entropy, mut logsumexp) = (new(), new(), new());
        let (mut dlogprob, mut dentropy) = (new(), new());
        let head = self.head(batch.budget);
        let outputs = logprob_launch::Outputs {
            logprob: logprob.whole_mut(),
            entropy: Some(entropy.whole_mut()),
            logsumexp: logsumexp.whole_mut(),
            argmax: None,
        };
        head_launch::forward(&head, outputs).unwrap();
        let gradients = loss_launch::Gradients {
            logprob: dlogprob.whole_mut(),
            entropy: Some(dentropy.whole_mut()),
        };
        let inputs = self.loss(&batch.objective).inputs(logprob.whole(), entropy.whole());
        let metrics = loss_launch::forward_backward(&batch.objective, &inputs, gradients).unwrap();
        let saved = head_launch::Saved {
            logsumexp: logsumexp.whole(),
            entropy: Some(entropy.whole()),
            upstream: logprob_launch::Upstream {
                dlogprob: Some(dlogprob.whole()),
                dentropy: Some(dentropy.whole()),
            },
        };
        let mut into = fresh().map(|values| upload(self.hidden.gpu(), DType::F32, &values));
        let [dhidden, dweight, dbias] = &mut into;
        let gradients = head_launch::Gradients {
            dhidden: Some(dhidden.whole_mut()),
            dweight: Some(dweight.whole_mut()),
            dbias: Some(dbias.whole_mut()),
        };
        head_launch::backward(&head, &saved, gradients).unwrap();
        given(metrics.read().unwrap(), [&logprob, &entropy], &into)
    }
}

fn given(metrics: Metrics, of: [&DeviceBuffer; 2], into: &[DeviceBuffer; 3]) -> Given {
    let [logprob, entropy] = of.map(download);
    let [dhidden, dweight, dbias] = [&into[0], &into[1], &into[2]].map(download);
    Given { metrics, logprob, entropy, dhidden, dweight, dbias }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn near(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs() + 1e-6, "{what} {i}: {got} {want}");
    }
}

/// `exact`: the gradients of head and bias are sums in one order.
fn same(got: &Given, want: &Given, exact: bool, what: &str) {
    assert_eq!(got.metrics, want.metrics, "{what}: metrics");
    assert_eq!(bits(&got.logprob), bits(&want.logprob), "{what}: log-probs");
    assert_eq!(bits(&got.entropy), bits(&want.entropy), "{what}: entropies");
    assert_eq!(bits(&got.dhidden), bits(&want.dhidden), "{what}: dhidden");
    assert!(want.dweight.iter().any(|d| *d != 0.0), "{what}: a gradient");
    near(&got.dweight, &want.dweight, 2e-5, what);
    near(&got.dbias, &want.dbias, 2e-5, what);
    if exact {
        assert_eq!(bits(&got.dweight), bits(&want.dweight), "{what}: dweight");
        assert_eq!(bits(&got.dbias), bits(&want.dbias), "{what}: dbias");
    }
}

#[test]
fn one_pass_is_two_to_the_bit_whatever_the_objective() {
    let device = gpu();
    let mut of_tokens = 0;
    for preset in PRESETS {
        for (budget, entropy_coefficient) in [(0, 0.02), (0, 0.0), (1, 0.02), (1, 0.0)] {
            let mut batch = Batch::new(preset.name);
            batch.budget = budget;
            batch.objective.entropy_coefficient = entropy_coefficient;
            let what = format!("{} {budget} {entropy_coefficient}", preset.name);
            of_tokens += usize::from(batch.objective.is_token_by_token());
            // With a bonus every live row has a gradient. Without one, two passes cut other chunks than one pass does.
            let exact = budget == 0 || entropy_coefficient != 0.0;
            same(&batch.on_cpu(&batch.hidden), &batch.in_two_passes(), exact, &what);
            // On a device rows without gradient stay among the others in one pass, so their zeros are added in between.
            let exact = entropy_coefficient != 0.0;
            let there = batch.on_device(&device);
            same(&there.compute(&batch), &there.in_two_passes(&batch), exact, &what);
        }
    }
    assert!(of_tokens >= 4 * 12, "{of_tokens}");
}

#[test]
fn a_token_needs_the_others_exactly_where_an_objective_says_so() {
    let threshold = Objective { off_policy_threshold: Some(0.3), ..Objective::default() };
    let presets = PRESETS.iter().map(|preset| (preset.name, preset.objective()));
    for (name, objective) in presets.chain([("threshold", threshold)]) {
        let mut batch = Batch::new("ppo");
        batch.objective = objective;
        batch.reference = batch.old.clone();
        let logprob: Vec<f32> = batch.old.iter().map(|old| old + 0.01).collect();
        let gradients = |logprob: &[f32]| {
            let (mut dlogprob, mut dentropy) = (vec![0.0; ROWS], vec![0.0; ROWS]);
            let into =
                policy_loss::Gradients { logprob: &mut dlogprob, entropy: Some(&mut dentropy) };
            let inputs = batch.loss().inputs(logprob, &batch.reference);
            policy_loss::forward_backward(&batch.objective, &inputs, into).unwrap();
            bits(&[dlogprob, dentropy].concat())
        };
        let (moved_token, mut moved) = (22, logprob.clone());
        moved[moved_token] -= 6.0;
        let (before, after) = (gradients(&logprob), gradients(&moved));
        let others = (0..2 * ROWS).filter(|i| i % ROWS != moved_token);
        let is_alone = others.into_iter().all(|i| before[i] == after[i]);
        assert_eq!(is_alone, batch.objective.is_token_by_token(), "{name}");
    }
}

const NAMES: [&str; 5] = ["ppo", "grpo", "gmpo", "sapo", "gspo_token"];

#[test]
fn gradients_are_differences_of_the_loss() {
    for name in NAMES {
        let batch = Batch::new(name);
        let of = batch.on_cpu(&batch.hidden);
        // A stop-gradient has no differences: not for gspo_token with its clip inside.
        for i in (0..ROWS * WIDTH).filter(|_| name != "gspo_token") {
            let at = |sign: f32| {
                let mut moved = batch.hidden.clone();
                moved[i] += sign * 4e-3;
                batch.on_cpu(&moved).metrics.loss
            };
            let slope = (at(1.0) - at(-1.0)) / 8e-3;
            let got = f64::from(of.dhidden[i]);
            assert!((got - slope).abs() < 2e-3 * slope.abs() + 1e-4, "{name} {i}: {got} {slope}");
        }
        for i in (0..VOCAB).filter(|_| name != "gspo_token") {
            let at = |sign: f32| {
                let mut moved = Batch::new(name);
                moved.bias[i] += sign * 4e-3;
                moved.on_cpu(&batch.hidden).metrics.loss
            };
            let slope = (at(1.0) - at(-1.0)) / 8e-3;
            let got = f64::from(of.dbias[i]);
            assert!((got - slope).abs() < 2e-3 * slope.abs() + 3e-4, "{name} {i}: {got} {slope}");
        }
    }
}

#[test]
fn rows_without_a_target_are_not_read_and_masked_ones_have_no_gradient() {
    for name in ["ppo", "gspo"] {
        let batch = Batch::new(name);
        let clean = batch.on_cpu(&batch.hidden);
        let mut poisoned = batch.hidden.clone();
        for row in (0..ROWS).filter(|row| batch.mask[*row] == 0) {
            poisoned[row * WIDTH..(row + 1) * WIDTH].fill(f32::NAN);
        }
        assert_eq!(batch.on_cpu(&poisoned), clean, "{name}");
        // A masked token with a target is scored, and changes nothing else.
        let mut scored = Batch::new(name);
        scored.targets = (0..ROWS).map(|row| (row * 5 % VOCAB) as i32).collect();
        let got = scored.on_cpu(&scored.hidden);
        for row in (0..ROWS).filter(|row| batch.mask[*row] == 0) {
            assert!(got.logprob[row] < 0.0 && clean.logprob[row] == 0.0);
            assert!(got.dhidden[row * WIDTH..(row + 1) * WIDTH].iter().all(|d| *d == 0.0));
        }
        assert_eq!((got.metrics, &got.dhidden), (clean.metrics, &clean.dhidden), "{name}");
        assert_eq!(got.dweight, clean.dweight, "{name}");
    }
    let batch = Batch::new("ppo");
    let mut short = batch.loss();
    short.mask = &[1; 3];
    let head = batch.head(&batch.hidden);
    let none = Gradients { dhidden: None, dweight: None, dbias: None };
    let error = forward_backward(&head, &short, &mut Workspace::default(), none).unwrap_err();
    assert!(error.is_shape() && error.to_string().contains("mask has 3"), "{error}");
}

#[test]
fn without_gradients_the_loss_is_the_same() {
    let device = gpu();
    for name in ["ppo", "gspo"] {
        let batch = Batch::new(name);
        let head = batch.head(&batch.hidden);
        let mut workspace = Workspace::default();
        let none = Gradients::default();
        let metrics = forward_backward(&head, &batch.loss(), &mut workspace, none).unwrap();
        let want = batch.on_cpu(&batch.hidden);
        assert_eq!((metrics, &workspace.logprob), (want.metrics, &want.logprob), "{name}");
        let (there, none) = (batch.on_device(&device), head_launch::Gradients::default());
        let loss = there.loss(&batch.objective);
        let computed = launch::forward_backward(&there.head(0), &loss, none).unwrap();
        let want = there.compute(&batch);
        assert_eq!(computed.metrics.read().unwrap(), want.metrics, "{name}");
        assert_eq!(download::<f32>(&computed.entropy), want.entropy, "{name}");
    }
}

#[test]
fn nothing_live_is_a_loss_of_zero() {
    let device = gpu();
    for name in ["ppo", "gspo"] {
        let mut batch = Batch::new(name);
        (batch.targets, batch.mask) = (vec![IGNORE; ROWS], vec![0; ROWS]);
        for got in [batch.on_cpu(&batch.hidden), batch.on_device(&device).compute(&batch)] {
            assert_eq!((got.metrics.loss, got.metrics.live_tokens), (0.0, 0), "{name}");
            let all = [&got.dhidden, &got.dweight, &got.dbias, &got.logprob, &got.entropy];
            assert!(all.iter().all(|values| values.iter().all(|x| *x == 0.0)), "{name}");
        }
    }
    // Every row is left out, though a token counts: the host knows that there is nothing to multiply.
    let mut batch = Batch::new("ppo");
    batch.targets = vec![IGNORE; ROWS];
    let there = batch.on_device(&device);
    let head = head_launch::Head { live: Some(0), ..there.head(0) };
    let mut dhidden = upload(&device, DType::F32, &[f32::NAN; ROWS * WIDTH]);
    let into = head_launch::Gradients {
        dhidden: Some(dhidden.whole_mut()),
        ..head_launch::Gradients::default()
    };
    let loss = there.loss(&batch.objective);
    let computed = launch::forward_backward(&head, &loss, into).unwrap();
    let got = computed.metrics.read().unwrap();
    let want = batch.on_cpu(&batch.hidden).metrics;
    assert_eq!(got.live_tokens, want.live_tokens);
    assert!((got.loss - want.loss).abs() < 1e-6 * want.loss.abs(), "{} {}", got.loss, want.loss);
    assert!(download::<f32>(&dhidden).iter().all(|d| *d == 0.0));
}

#[test]
fn the_device_agrees() {
    let device = gpu();
    for name in NAMES {
        for budget in BUDGETS {
            let mut batch = Batch::new(name);
            batch.budget = budget;
            let want = batch.on_cpu(&batch.hidden);
            let got = batch.on_device(&device).compute(&batch);
            let (loss, wanted) = (got.metrics.loss, want.metrics.loss);
            assert!((loss - wanted).abs() < 1e-5 * wanted.abs() + 1e-6, "{name}");
            near(&got.entropy, &want.entropy, 1e-4, name);
            near(&got.dhidden, &want.dhidden, 1e-4, name);
            near(&got.dweight, &want.dweight, 1e-4, name);
            near(&got.dbias, &want.dbias, 1e-4, name);
        }
    }
}
