//! `kernels::step_credit` on the CPU and on the emulated device: an f64 oracle, edges, thread orders.

use crate::device_memory::{bits, download, gpu, upload};
use gradstone::device::cpu::pool;
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::DType;
use gradstone::error::Result;
use gradstone::kernels::advantage::Estimator;
use gradstone::kernels::policy_loss::{self, Advantages};
use gradstone::kernels::step_credit::launch::{self, DeviceSpans};
use gradstone::kernels::step_credit::{
    ANSWER, Counts, FORCED, Inputs, Labelling, NEUTRAL, Outputs, Part, SUPPORTED, Segment, Shaping,
    Span, Step, StepCredit, UNSUPPORTED, Window, forward, paint, shape, step_advantages,
};
use gradstone::rng::{Sequence, Stream};
use gradstone_host::Order;
use proptest::prelude::*;
use std::sync::Arc;

struct Batch {
    offsets: Vec<i64>,
    spans: Vec<Span>,
    mask: Vec<u8>,
    of_sequence: Vec<f32>,
    of_token: Vec<f32>,
}

impl Batch {
    fn tokens(&self) -> usize {
        self.mask.len()
    }

    fn labels(&self) -> Vec<f32> {
        let mut labels = vec![f32::NAN; self.tokens()];
        paint(&self.spans, &self.offsets, UNSUPPORTED, &mut labels).unwrap();
        labels
    }
}

fn batch(seed: u64, lengths: &[usize]) -> Batch {
    let mut draws = Sequence::new(seed, Stream::Free, 0);
    let mut offsets = vec![0i64];
    offsets.extend(lengths.iter().scan(0, |sum, n| {
        *sum += *n as i64;
        Some(*sum)
    }));
    let mut spans = Vec::new();
    for (sequence, length) in lengths.iter().enumerate() {
        for _ in 0..(draws.next_unit() * 6.0) as usize {
            let a = (draws.next_unit() * (*length as f32 + 1.0)) as usize;
            let b = (draws.next_unit() * (*length as f32 + 1.0)) as usize;
            let labels = [SUPPORTED, UNSUPPORTED, FORCED, NEUTRAL, ANSWER, 0.25];
            let label = labels[(draws.next_unit() * 6.0) as usize];
            spans.push(Span { sequence, start: a.min(b), end: a.max(b), label });
        }
    }
    let tokens = lengths.iter().sum();
    let advantage = |draws: &mut Sequence| match (draws.next_unit() * 4.0) as usize {
        0 => 0.0,
        _ => draws.next_normal(),
    };
    Batch {
        offsets,
        spans,
        mask: (0..tokens).map(|_| u8::from(draws.next_unit() < 0.8) * 3).collect(),
        of_sequence: lengths.iter().map(|_| advantage(&mut draws)).collect(),
        of_token: (0..tokens).map(|_| advantage(&mut draws)).collect(),
    }
}

fn rules() -> Vec<StepCredit> {
    vec![
        StepCredit::Modulate { alpha: 0.0, alpha_failed: None },
        StepCredit::Modulate { alpha: 0.75, alpha_failed: Some(-0.5) },
        StepCredit::Mask { threshold: 0.5 },
        StepCredit::Scale {},
        StepCredit::Add { weight: -0.3 },
        StepCredit::Replace {},
    ]
}

/// The definition, word by word, in f64.
fn oracle(rule: &StepCredit, advantage: f64, label: f64) -> f64 {
    match *rule {
        StepCredit::Modulate { alpha, alpha_failed } => {
            let label = match label {
                2.0 if advantage > 0.0 => 1.0,
                2.0 => 0.0,
                label => label,
            };
            if advantage > 0.0 && label < 0.5 {
                advantage * f64::from(alpha)
            } else if advantage <= 0.0 && label > 0.5 {
                advantage * f64::from(alpha_failed.unwrap_or(alpha))
            } else {
                advantage
            }
        }
        StepCredit::Mask { threshold } => {
            if label > f64::from(threshold) {
                advantage
            } else {
                0.0
            }
        }
        StepCredit::Scale {} => advantage * label,
        StepCredit::Add { weight } => advantage + f64::from(weight) * label,
        StepCredit::Replace {} => label,
    }
}

struct Got {
    advantage: Vec<f32>,
    kept: Vec<u8>,
    counts: Counts,
}

fn on_cpu(rule: &StepCredit, batch: &Batch, labels: &[f32], per_token: bool) -> Got {
    let advantage = match per_token {
        true => Advantages::PerToken(&batch.of_token),
        false => Advantages::PerSequence(&batch.of_sequence),
    };
    let inputs = Inputs { advantage, labels, mask: &batch.mask, offsets: &batch.offsets };
    let mut advantage = vec![f32::NAN; batch.tokens()];
    let mut kept = vec![7; batch.tokens()];
    let out = Outputs { advantage: &mut advantage, kept: Some(&mut kept) };
    let counts = forward(rule, &inputs, out).unwrap();
    Got { advantage, kept, counts }
}

fn painted(gpu: &Arc<Gpu>, batch: &Batch) -> Result<DeviceBuffer> {
    let offsets = upload(gpu, DType::I64, &batch.offsets);
    let spans = DeviceSpans::upload(gpu, &batch.spans)?;
    let mut labels = DeviceBuffer::recycled(gpu, DType::F32, batch.tokens())?;
    launch::paint(&spans, offsets.whole(), UNSUPPORTED, labels.whole_mut())?;
    Ok(labels)
}

fn on_device(gpu: &Arc<Gpu>, rule: &StepCredit, batch: &Batch, per_token: bool) -> Result<Got> {
    let labels = painted(gpu, batch)?;
    let offsets = upload(gpu, DType::I64, &batch.offsets);
    let mask = upload(gpu, DType::U8, &batch.mask);
    let values = if per_token { &batch.of_token } else { &batch.of_sequence };
    let values = upload(gpu, DType::F32, values);
    let advantage = match per_token {
        true => policy_loss::launch::Advantages::PerToken(values.whole()),
        false => policy_loss::launch::Advantages::PerSequence(values.whole()),
    };
    let inputs = launch::Inputs {
        advantage,
        labels: labels.whole(),
        mask: mask.whole(),
        offsets: offsets.whole(),
    };
    let mut credited = DeviceBuffer::recycled(gpu, DType::F32, batch.tokens())?;
    let mut kept = DeviceBuffer::recycled(gpu, DType::U8, batch.tokens())?;
    let out = launch::Outputs { advantage: credited.whole_mut(), kept: Some(kept.whole_mut()) };
    let counts = launch::forward(rule, &inputs, out)?.read()?;
    Ok(Got { advantage: download(&credited), kept: download(&kept), counts })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_rule_is_its_definition(
        seed in 0u64..10_000,
        lengths in prop::collection::vec(prop::sample::select(vec![0usize, 1, 2, 7, 33, 257]), 1..6),
    ) {
        let batch = batch(seed, &lengths);
        let labels = batch.labels();
        let device = gpu();
        prop_assert_eq!(bits(&download::<f32>(&painted(&device, &batch).unwrap())), bits(&labels));
        for (i, rule) in rules().iter().enumerate() {
            let per_token = i % 2 == 0;
            let got = on_cpu(rule, &batch, &labels, per_token);
            let mut counts = Counts::default();
            for (sequence, bounds) in batch.offsets.windows(2).enumerate() {
                for token in bounds[0] as usize..bounds[1] as usize {
                    let live = batch.mask[token] != 0;
                    let a = if per_token { batch.of_token[token] } else { batch.of_sequence[sequence] };
                    let want = if live { oracle(rule, f64::from(a), f64::from(labels[token])) } else { 0.0 };
                    let error = (f64::from(got.advantage[token]) - want).abs();
                    prop_assert!(error <= 3e-7 * want.abs().max(f64::from(a).abs()), "{:?}", rule);
                    let dropped = matches!(rule, StepCredit::Mask { .. }) && labels[token] <= 0.5;
                    prop_assert_eq!(got.kept[token], u8::from(live && !dropped));
                    counts.live += u64::from(live);
                    counts.zero += u64::from(live && want == 0.0);
                    counts.zeroed += u64::from(live && want == 0.0 && a != 0.0);
                }
            }
            prop_assert_eq!(
                (counts.live, counts.zero, counts.zeroed),
                (got.counts.live, got.counts.zero, got.counts.zeroed)
            );
            let there = on_device(&device, rule, &batch, per_token).unwrap();
            prop_assert_eq!(bits(&there.advantage), bits(&got.advantage));
            prop_assert_eq!(&there.kept, &got.kept);
            prop_assert_eq!(there.counts, got.counts);
        }
        device.check_status().unwrap();
    }
}

#[test]
fn bits_do_not_depend_on_the_order_of_threads() {
    let batch = batch(5, &[3, 0, 300, 64, 1, 129]);
    let labels = batch.labels();
    let device = gpu();
    for rule in rules() {
        let want = on_cpu(&rule, &batch, &labels, false);
        for order in Order::ALL {
            let got =
                gradstone_host::with_order(order, || on_device(&device, &rule, &batch, false));
            let got = got.unwrap();
            assert_eq!(bits(&got.advantage), bits(&want.advantage), "{order:?}");
            assert_eq!((&got.kept, got.counts), (&want.kept, want.counts), "{order:?}");
        }
    }
}

#[test]
fn a_sequence_alone_is_the_sequence_in_a_batch() {
    let all = batch(9, &[5, 70, 12]);
    let labels = all.labels();
    let rule = StepCredit::Modulate { alpha: 0.25, alpha_failed: None };
    let together = on_cpu(&rule, &all, &labels, false);
    let members = 5..75;
    let spans = all.spans.iter().filter(|s| s.sequence == 1).map(|s| Span { sequence: 0, ..*s });
    let alone = Batch {
        offsets: vec![0, 70],
        spans: spans.collect(),
        mask: all.mask[members.clone()].to_vec(),
        of_sequence: vec![all.of_sequence[1]],
        of_token: all.of_token[members.clone()].to_vec(),
    };
    let got = on_cpu(&rule, &alone, &alone.labels(), false);
    assert_eq!(bits(&got.advantage), bits(&together.advantage[members]));
}

#[test]
fn nan_in_masked_tokens_does_not_matter() {
    let mut batch = batch(3, &[40, 9]);
    let mut labels = batch.labels();
    for rule in rules() {
        let clean = on_cpu(&rule, &batch, &labels, true);
        for token in 0..batch.tokens() {
            if batch.mask[token] == 0 {
                labels[token] = f32::NAN;
                batch.of_token[token] = f32::NAN;
            }
        }
        let dirty = on_cpu(&rule, &batch, &labels, true);
        assert_eq!(bits(&clean.advantage), bits(&dirty.advantage));
        assert_eq!(clean.counts, dirty.counts);
    }
}

#[test]
fn a_response_without_steps_is_unsupported_whole() {
    let credit = |advantage: f32, alpha: f32| {
        let inputs = Inputs {
            advantage: Advantages::PerSequence(&[advantage]),
            labels: &[UNSUPPORTED; 2],
            mask: &[1; 2],
            offsets: &[0, 2],
        };
        let mut out = [9.0; 2];
        let rule = StepCredit::Modulate { alpha, alpha_failed: None };
        forward(&rule, &inputs, Outputs { advantage: &mut out, kept: None }).unwrap();
        out
    };
    assert_eq!(credit(-1.0, 0.25), [-1.0; 2], "blamed whole");
    assert_eq!(credit(1.0, 0.25), [0.25; 2], "credited by alpha");
    assert_eq!(credit(0.0, 0.25), [0.0; 2], "a zero-variance group stays zero");
}

#[test]
fn a_wrong_chain_of_valid_steps_keeps_only_its_answer() {
    let inputs = Inputs {
        advantage: Advantages::PerSequence(&[-2.0]),
        labels: &[SUPPORTED, SUPPORTED, SUPPORTED, ANSWER],
        mask: &[1; 4],
        offsets: &[0, 4],
    };
    let mut out = [0.0; 4];
    let rule = StepCredit::Modulate { alpha: 0.0, alpha_failed: None };
    let counts = forward(&rule, &inputs, Outputs { advantage: &mut out, kept: None }).unwrap();
    assert_eq!(out, [0.0, 0.0, 0.0, -2.0]);
    assert_eq!((counts.zeroed, counts.zero_share()), (3, 0.75));
    assert!(out[..3].iter().all(|a| a.is_sign_positive()), "not -0");
}

#[test]
fn a_label_of_one_half_takes_no_side() {
    for advantage in [1.0, -1.0] {
        let inputs = Inputs {
            advantage: Advantages::PerSequence(&[advantage]),
            labels: &[NEUTRAL],
            mask: &[1],
            offsets: &[0, 1],
        };
        let mut out = [0.0];
        let rule = StepCredit::Modulate { alpha: 0.0, alpha_failed: None };
        let counts = forward(&rule, &inputs, Outputs { advantage: &mut out, kept: None }).unwrap();
        assert_eq!((out, counts.live), ([advantage], 1));
        assert_eq!(counts.positive_valid + counts.negative_invalid, 0);
    }
}

#[test]
fn the_number_of_a_step_has_its_verdict_unless_literal() {
    let number = Part::StepNumber { supported: false };
    assert_eq!(Labelling::default().label(number), UNSUPPORTED);
    assert_eq!(Labelling::Literal.label(number), SUPPORTED);
    for labelling in [Labelling::Verdict, Labelling::Literal] {
        let labels = [
            Part::Step { supported: false },
            Part::Step { supported: true },
            Part::Forced { supported: false },
            Part::Forced { supported: true },
            Part::Tag,
            Part::Answer,
            Part::Value(0.3),
        ]
        .map(|part| labelling.label(part));
        assert_eq!(labels, [UNSUPPORTED, SUPPORTED, FORCED, SUPPORTED, SUPPORTED, ANSWER, 0.3]);
    }
    let segment = Segment { sequence: 4, start: 2, end: 3, part: number };
    let span = Span { sequence: 4, start: 2, end: 3, label: UNSUPPORTED };
    assert_eq!(Labelling::Verdict.spans(&[segment]), [span]);
}

#[test]
fn a_later_span_wins() {
    let span = |start, end, label| Span { sequence: 0, start, end, label };
    let mut labels = [0.0; 6];
    let spans = [span(0, 5, 1.0), span(1, 4, 0.5), span(3, 3, 9.0), span(2, 3, ANSWER)];
    paint(&spans, &[0, 6], -1.0, &mut labels).unwrap();
    assert_eq!(labels, [1.0, 0.5, ANSWER, 0.5, 1.0, -1.0]);
}

#[test]
fn process_scores_add_up_toward_the_start() {
    let step = |sequence, end, reward| Step { group: 7, sequence, end, reward };
    let steps = [step(0, 2, 1.0), step(1, 3, 0.0), step(0, 5, 0.0), step(1, 4, f32::NAN)];
    let spans = step_advantages(&Estimator::preset("dr_grpo").unwrap(), &steps).unwrap();
    let third = 1.0f32 / 3.0;
    let close = |got: &Span, start, end, want: f32| {
        assert_eq!((got.start, got.end), (start, end));
        assert!((got.label - want).abs() < 1e-6, "{got:?} {want}");
    };
    close(&spans[0], 0, 2, 2.0 * third - third);
    close(&spans[2], 2, 5, -third);
    close(&spans[1], 0, 3, -third);
    close(&spans[3], 3, 4, 0.0);
    let back = [step(0, 4, 1.0), step(0, 2, 0.0)];
    assert!(step_advantages(&Estimator::default(), &back).unwrap_err().is_index());
}

#[test]
fn shaping_adds_up_to_nothing_and_agrees_with_the_device() {
    let batch = batch(11, &[33, 1, 0, 64]);
    let labels = batch.labels();
    let device = gpu();
    for reads in [Window::Live, Window::Literal] {
        let shaping = Shaping { window: 5, clip: 0.8, alpha: 0.3, gamma: 1.0, reads };
        let mut out = vec![f32::NAN; batch.tokens()];
        shape(&shaping, &labels, &batch.mask, &batch.offsets, &mut out).unwrap();
        assert!(out.iter().zip(&batch.mask).all(|(f, m)| *m != 0 || *f == 0.0));

        let [labels, mask, offsets] = [
            upload(&device, DType::F32, &labels),
            upload(&device, DType::U8, &batch.mask),
            upload(&device, DType::I64, &batch.offsets),
        ];
        let (labels, mask, offsets) = (labels.whole(), mask.whole(), offsets.whole());
        let on_device = || {
            let mut there = DeviceBuffer::recycled(&device, DType::F32, batch.tokens()).unwrap();
            launch::shape(&shaping, labels, mask, offsets, there.whole_mut()).unwrap();
            download::<f32>(&there)
        };
        let there = on_device();
        for (here, there) in out.iter().zip(&there) {
            assert!((here - there).abs() <= 1e-6, "{here} {there}");
        }
        for order in Order::ALL {
            let again = gradstone_host::with_order(order, on_device);
            assert_eq!(bits(&again), bits(&there), "{order:?}");
        }
    }
    // Without holes the sum of F over a sequence is minus the potential of its first token.
    let mut out = [0.0; 4];
    let shaping = Shaping { window: 1, ..Shaping::default() };
    shape(&shaping, &[1.0, 0.0, 1.0, 1.0], &[1; 4], &[0, 4], &mut out).unwrap();
    assert!((out.iter().sum::<f32>() + 0.03).abs() < 1e-7, "{out:?}");
    let even = Shaping { window: 2, ..Shaping::default() };
    assert!(shape(&even, &[], &[], &[0], &mut []).unwrap_err().is_invalid());
}

/// Written from the definition, label by label; what is masked may be NaN.
fn shaped(by: &Shaping, labels: &[f32], mask: &[u8]) -> Vec<f32> {
    let (last, reach) = (labels.len() as isize - 1, by.window as isize / 2);
    let potential = |token: isize| {
        if token > last || mask[token as usize] == 0 {
            return 0.0;
        }
        let (mut sum, mut terms) = (0f32, 0f32);
        for at in token - reach..=token + reach {
            let inside = at.clamp(0, last) as usize;
            if by.reads == Window::Literal || (at == inside as isize && mask[inside] != 0) {
                sum += labels[inside];
                terms += 1.0;
            }
        }
        by.alpha * (sum / terms).clamp(-by.clip, by.clip)
    };
    let reward = |token: isize| match mask[token as usize] {
        0 => 0.0,
        _ => by.gamma * potential(token + 1) - potential(token),
    };
    (0..=last).map(reward).collect()
}

#[test]
fn shaping_has_the_bits_of_its_definition_for_any_number_of_threads() {
    let lengths = [1, 2, 3, 0, 40, 9000, 64, 9000, 7];
    let batch = batch(12, &lengths);
    let mut labels = batch.labels();
    let mut draws = Sequence::new(13, Stream::Free, 0);
    labels.iter_mut().for_each(|label| *label += draws.next_normal());
    for reads in [Window::Live, Window::Literal] {
        if reads == Window::Live {
            let masked = labels.iter_mut().zip(&batch.mask).filter(|(_, mask)| **mask == 0);
            masked.for_each(|(label, _)| *label = f32::NAN);
        } else {
            labels.iter_mut().for_each(|label| *label = if label.is_nan() { 0.5 } else { *label });
        }
        for window in [1, 3, 9, 101] {
            let shaping = Shaping { window, clip: 0.8, alpha: 0.3, gamma: 0.9, reads };
            let want: Vec<f32> = (batch.offsets.windows(2))
                .flat_map(|bounds| {
                    let here = bounds[0] as usize..bounds[1] as usize;
                    shaped(&shaping, &labels[here.clone()], &batch.mask[here])
                })
                .collect();
            for threads in [1, 2, 4] {
                pool::set_threads(threads).unwrap();
                let mut out = vec![f32::NAN; batch.tokens()];
                shape(&shaping, &labels, &batch.mask, &batch.offsets, &mut out).unwrap();
                assert!(bits(&out) == bits(&want), "{reads:?} {window}");
            }
        }
    }
    pool::set_threads(0).unwrap();
}

#[test]
fn bad_input_is_an_error_that_says_what() {
    let mut labels = [0.0; 4];
    let span = |sequence, start, end| [Span { sequence, start, end, label: 1.0 }];
    let mut fails = |spans: &[Span]| paint(spans, &[0, 1, 4], 0.0, &mut labels).unwrap_err();
    let error = fails(&span(2, 0, 0));
    assert!(error.is_index() && error.to_string().contains("sequence 2"), "{error}");
    let error = fails(&span(1, 2, 4));
    assert!(error.is_index() && error.to_string().contains("2..4"), "{error}");
    assert!(fails(&span(1, 2, 1)).is_index());
    assert!(paint(&[], &[0, 3], 0.0, &mut labels).unwrap_err().is_shape());
    assert!(paint(&[], &[], 0.0, &mut []).is_ok());

    let credit = |rule: StepCredit, labels: &[f32], advantages: &[f32]| {
        let inputs = Inputs {
            advantage: Advantages::PerSequence(advantages),
            labels,
            mask: &[1; 2],
            offsets: &[0, 2],
        };
        let mut out = [0.0; 2];
        forward(&rule, &inputs, Outputs { advantage: &mut out, kept: None }).map(|_| ())
    };
    let none = StepCredit::Replace {};
    assert!(credit(none, &[0.0, f32::NAN], &[1.0]).unwrap_err().is_invalid());
    assert!(credit(none, &[0.0; 2], &[1.0; 2]).unwrap_err().is_shape());
    let nan = StepCredit::Modulate { alpha: f32::NAN, alpha_failed: None };
    assert!(credit(nan, &[0.0; 2], &[1.0]).unwrap_err().to_string().contains("alpha is NaN"));
}

#[test]
fn a_bad_span_on_a_device_paints_nothing() {
    let device = gpu();
    let mut one = batch(1, &[4, 4]);
    let span = |sequence, start, end| Span { sequence, start, end, label: 1.0 };
    for bad in [span(2, 0, 1), span(0, 3, 5), span(1, 3, 2)] {
        one.spans = vec![bad, span(1, 1, 2)];
        let labels: Vec<f32> = download(&painted(&device, &one).unwrap());
        assert_eq!(labels, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        assert!(device.check_status().is_err());
    }
    one.offsets = vec![0, 9, 8];
    one.spans = vec![span(0, 0, 1)];
    assert_eq!(download::<f32>(&painted(&device, &one).unwrap()), [0.0; 8]);
    assert!(device.check_status().unwrap_err().to_string().contains("offsets"));
    // Empty batches launch nothing.
    let none = batch(1, &[0]);
    assert!(on_device(&device, &StepCredit::Scale {}, &none, false).unwrap().advantage.is_empty());
}

#[test]
fn a_rule_is_read_from_toml() {
    let read = |text: &str| toml::from_str::<StepCredit>(text);
    let modulate = StepCredit::Modulate { alpha: 0.0, alpha_failed: None };
    assert_eq!(read("kind = 'modulate'\nalpha = 0").unwrap(), modulate);
    assert_eq!(read("kind = 'mask'").unwrap(), StepCredit::Mask { threshold: 0.5 });
    assert!(read("kind = 'mask'\nalpha = 1").is_err());
}
