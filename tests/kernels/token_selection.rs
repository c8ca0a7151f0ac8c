//! `kernels::token_selection` against sorting, and the device against the CPU.

use crate::device_memory::{download, gpu, upload};
use gradstone::device::cpu::pool;
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::DType;
use gradstone::kernels::token_selection::{Inputs, Selected, Selection, launch, select};
use gradstone::rng::{Sequence, Stream};
use gradstone_host::Order;
use proptest::prelude::*;
use std::sync::Arc;

struct Tokens {
    logprob: Vec<f32>,
    old_logprob: Vec<f32>,
    advantage: Vec<f32>,
    entropy: Vec<f32>,
    mask: Vec<u8>,
}

impl Tokens {
    /// With few different values there are many ties.
    fn new(seed: u64, count: usize, live: f32, ties: bool) -> Tokens {
        let mut draws = Sequence::new(seed, Stream::Free, 0);
        let mut many = |scale: f32| -> Vec<f32> {
            let mut one = || {
                let x = draws.next_normal() * scale;
                if ties { (x * 2.0).round() / 2.0 } else { x }
            };
            (0..count).map(|_| one()).collect()
        };
        let logprob: Vec<f32> = many(1.0).iter().map(|x| -x.abs()).collect();
        let old_logprob = logprob.iter().zip(many(0.3)).map(|(l, n)| l + n).collect();
        let (advantage, entropy) = (many(1.0), many(1.0).iter().map(|x| x.abs()).collect());
        let mask = (0..count).map(|_| u8::from(draws.next_unit() < live)).collect();
        Tokens { logprob, old_logprob, advantage, entropy, mask }
    }

    fn inputs(&self, draw: (u64, u64)) -> Inputs<'_> {
        Inputs {
            logprob: &self.logprob,
            old_logprob: &self.old_logprob,
            advantage: &self.advantage,
            entropy: &self.entropy,
            mask: &self.mask,
            clip: (0.8, 1.2),
            draw,
        }
    }

    fn on_cpu(&self, selection: &Selection, draw: (u64, u64)) -> (Vec<u8>, Selected) {
        let mut selected = vec![7; self.mask.len()];
        let found = select(selection, &self.inputs(draw), &mut selected).unwrap();
        (selected, found)
    }

    fn on_device(
        &self,
        gpu: &Arc<Gpu>,
        selection: &Selection,
        draw: (u64, u64),
    ) -> (Vec<u8>, Selected) {
        let floats = |values: &[f32]| upload(gpu, DType::F32, values);
        let (logprob, old) = (floats(&self.logprob), floats(&self.old_logprob));
        let (advantage, entropy) = (floats(&self.advantage), floats(&self.entropy));
        let mask = upload(gpu, DType::U8, &self.mask);
        let mut selected = DeviceBuffer::recycled(gpu, DType::U8, self.mask.len()).unwrap();
        let inputs = launch::Inputs {
            logprob: Some(logprob.whole()),
            old_logprob: Some(old.whole()),
            advantage: Some(advantage.whole()),
            entropy: Some(entropy.whole()),
            mask: mask.whole(),
            clip: (0.8, 1.2),
            draw,
        };
        let found = launch::select(selection, &inputs, selected.whole_mut()).unwrap();
        let found = found.read().unwrap();
        (download(&selected), found)
    }

    fn live(&self) -> Vec<usize> {
        (0..self.mask.len()).filter(|t| self.mask[*t] != 0).collect()
    }

    fn covariances(&self) -> Vec<(usize, f64)> {
        let live = self.live();
        let mean =
            |of: &[f32]| live.iter().map(|t| f64::from(of[*t])).sum::<f64>() / live.len() as f64;
        let (a, l) = (mean(&self.advantage), mean(&self.logprob));
        let cov =
            |t: &usize| (f64::from(self.advantage[*t]) - a) * (f64::from(self.logprob[*t]) - l);
        live.iter().map(|t| (*t, cov(t))).collect()
    }
}

fn selections() -> [Selection; 5] {
    [
        Selection::ClipCov { ratio: 0.2, least: 0.1, most: 2.0 },
        Selection::ClipCov { ratio: 1.0, least: 0.1, most: 2.0 },
        Selection::KlCov { ratio: 0.2, coefficient: 1.0 },
        Selection::TopEntropy { fraction: 0.3 },
        Selection::TopEntropy { fraction: 1.0 },
    ]
}

/// Many parts of the tokens, ties across them, and ratios at the clip's very bounds.
#[test]
fn the_same_tokens_for_any_number_of_threads() {
    for ties in [false, true] {
        let mut tokens = Tokens::new(3, 150_001, 0.7, ties);
        for (i, bound) in (0..150_001).step_by(7).zip([0.8f32, 1.2].into_iter().cycle()) {
            tokens.old_logprob[i] = tokens.logprob[i] - bound.ln();
        }
        for selection in selections() {
            pool::set_threads(1).unwrap();
            let (picked, found) = tokens.on_cpu(&selection, (5, 6));
            for threads in [2, 4] {
                pool::set_threads(threads).unwrap();
                let again = tokens.on_cpu(&selection, (5, 6));
                assert!(again.0 == picked && again.1 == found, "{threads}: {selection:?}");
            }
            if let Selection::ClipCov { ratio: 1.0, least, most } = selection {
                let cov = tokens.covariances();
                let clipped = |t: usize| {
                    let (a, ratio) =
                        (tokens.advantage[t], (tokens.logprob[t] - tokens.old_logprob[t]).exp());
                    (a > 0.0 && ratio > 1.2) || (a < 0.0 && ratio < 0.8)
                };
                for (t, cov) in cov {
                    let near = [least, most].iter().any(|b| (cov - f64::from(*b)).abs() < 1e-5);
                    let inside = cov > f64::from(least) && cov < f64::from(most);
                    assert!(near || (picked[t] == 1) == (inside && !clipped(t)), "{t}: {cov}");
                }
            }
        }
    }
    pool::set_threads(0).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn picks_what_sorting_picks(
        seed in 0u64..1000,
        count in prop::sample::select(vec![0usize, 1, 2, 7, 97, 1000]),
        live in prop::sample::select(vec![0.0f32, 0.5, 1.0]),
    ) {
        let tokens = Tokens::new(seed, count, live, false);
        let live = tokens.live();
        let (picked, found) = tokens.on_cpu(&Selection::KlCov { ratio: 0.2, coefficient: 1.0 }, (1, 2));
        let mut by_cov = tokens.covariances();
        by_cov.sort_by(|x, y| y.1.total_cmp(&x.1));
        let wanted = ((0.2 * live.len() as f64) as usize).max(1).min(live.len());
        prop_assert_eq!(found.picked as usize, wanted);
        // Of covariances that differ by less than f32 rounds, either may go first: those of two tokens are equal.
        let last = by_cov[..wanted].last().map_or(0.0, |(_, cov)| *cov);
        for (t, cov) in by_cov.iter().filter(|(_, cov)| (cov - last).abs() > 1e-5 * (1.0 + last.abs())) {
            prop_assert_eq!(picked[*t] == 1, *cov > last);
        }
        prop_assert_eq!(picked.iter().map(|p| usize::from(*p)).sum::<usize>(), wanted);

        let (picked, found) = tokens.on_cpu(&Selection::TopEntropy { fraction: 0.3 }, (1, 2));
        let mut sorted: Vec<f64> = live.iter().map(|t| f64::from(tokens.entropy[*t])).collect();
        sorted.sort_by(f64::total_cmp);
        if !sorted.is_empty() {
            let place = 0.7 * (sorted.len() - 1) as f64;
            let (low, next) = (sorted[place as usize], sorted[(place as usize + 1).min(sorted.len() - 1)]);
            let threshold = low + (next - low) * place.fract();
            prop_assert!((f64::from(found.threshold) - threshold).abs() <= 1e-6 * threshold.abs());
        }
        for (t, picked) in picked.iter().enumerate() {
            let wanted = tokens.mask[t] != 0 && tokens.entropy[t] >= found.threshold;
            prop_assert_eq!(*picked != 0, wanted);
        }

        let (picked, found) = tokens.on_cpu(&Selection::ClipCov { ratio: 0.2, least: 0.1, most: 2.0 }, (1, 2));
        let candidates: Vec<usize> = tokens.covariances().into_iter().filter(|(t, cov)| {
            let ratio = (tokens.logprob[*t] - tokens.old_logprob[*t]).exp();
            let a = tokens.advantage[*t];
            let clipped = (a > 0.0 && ratio > 1.2) || (a < 0.0 && ratio < 0.8);
            *cov > f64::from(0.1f32) && *cov < 2.0 && !clipped
        }).map(|(t, _)| t).collect();
        prop_assert_eq!(found.candidates as usize, candidates.len());
        prop_assert_eq!(found.picked as usize, wanted.min(candidates.len()));
        prop_assert!((0..count).all(|t| picked[t] == 0 || candidates.contains(&t)));
    }
}

#[test]
fn the_random_subset_is_of_its_draw_alone_and_even() {
    let tokens = Tokens::new(3, 400, 1.0, false);
    let selection = Selection::ClipCov { ratio: 0.05, least: 0.0, most: 9.0 };
    let first = tokens.on_cpu(&selection, (1, 2));
    assert_eq!(tokens.on_cpu(&selection, (1, 2)), first);
    let candidates = first.1.candidates as f64;
    let mut counts = vec![0f64; 400];
    for number in 0..600 {
        let (picked, found) = tokens.on_cpu(&selection, (1, number));
        assert_eq!(found.picked, 20);
        for (count, picked) in counts.iter_mut().zip(&picked) {
            *count += f64::from(*picked);
        }
    }
    let expected = 600.0 * 20.0 / candidates;
    let spread = expected.sqrt() * 5.0;
    let taken = counts.iter().filter(|count| **count > 0.0);
    assert_eq!(taken.clone().count() as f64, candidates);
    assert!(taken.clone().all(|count| (count - expected).abs() < spread), "{expected} {counts:?}");
}

/// A share is the number that a settings file has, not the f32 next to it: 0.35 of 40 tokens are 14.
#[test]
fn shares_are_not_rounded_before_they_are_counted() {
    let device = gpu();
    for (ratio, count, picked) in [(0.35, 40, 14), (0.7, 10, 7), (0.3, 10, 3), (2e-4, 10_000, 2)] {
        let tokens = Tokens::new(7, count, 2.0, false);
        let selection = Selection::KlCov { ratio, coefficient: 1.0 };
        let found =
            [tokens.on_cpu(&selection, (1, 1)), tokens.on_device(&device, &selection, (1, 1))];
        assert!(found.iter().all(|(_, found)| found.picked == picked), "{ratio} of {count}");
    }
    // The token on the quantile counts: of 11 tokens the fourth smallest is the quantile 0.3, of 31 the tenth.
    for (count, picked) in [(11, 8), (31, 22)] {
        let tokens = Tokens::new(8, count, 2.0, false);
        let selection = Selection::TopEntropy { fraction: 0.7 };
        let found =
            [tokens.on_cpu(&selection, (1, 1)), tokens.on_device(&device, &selection, (1, 1))];
        assert!(found.iter().all(|(_, found)| found.picked == picked), "{count}: {found:?}");
    }
}

#[test]
fn nan_and_masked_tokens_are_never_picked() {
    let mut tokens = Tokens::new(5, 60, 0.7, false);
    let clean: Vec<_> = selections().iter().map(|s| tokens.on_cpu(s, (1, 1))).collect();
    for t in (0..60).filter(|t| tokens.mask[*t] == 0).collect::<Vec<_>>() {
        tokens.logprob[t] = f32::NAN;
        tokens.advantage[t] = f32::INFINITY;
        tokens.entropy[t] = f32::NAN;
    }
    for (selection, want) in selections().iter().zip(clean) {
        assert_eq!(tokens.on_cpu(selection, (1, 1)), want);
    }
    let first = tokens.live()[0];
    tokens.entropy[first] = f32::NAN;
    let (picked, found) = tokens.on_cpu(&Selection::TopEntropy { fraction: 1.0 }, (1, 1));
    assert_eq!(picked[first], 0);
    assert_eq!(found.candidates + 1, found.live);
}

#[test]
fn the_device_picks_the_same_tokens() {
    let device = gpu();
    for (seed, count, ties) in
        [(1, 0, false), (2, 1, false), (3, 700, false), (4, 700, true), (5, 2600, true)]
    {
        let tokens = Tokens::new(seed, count, 0.8, ties);
        for selection in selections() {
            let want = tokens.on_cpu(&selection, (seed, 3));
            let got = tokens.on_device(&device, &selection, (seed, 3));
            assert_eq!(got, want, "{count} {ties} {selection:?}");
        }
    }
    let tokens = Tokens::new(6, 300, 0.8, true);
    for order in Order::ALL {
        for selection in selections() {
            let got =
                gradstone_host::with_order(order, || tokens.on_device(&device, &selection, (1, 1)));
            assert_eq!(got, tokens.on_cpu(&selection, (1, 1)), "{order:?}");
        }
    }
}

#[test]
fn bad_input_is_named() {
    let tokens = Tokens::new(1, 8, 1.0, false);
    let kl_cov = Selection::KlCov { ratio: 0.2, coefficient: 1.0 };
    let mut selected = [0; 7];
    assert!(select(&kl_cov, &tokens.inputs((0, 0)), &mut selected).unwrap_err().is_shape());
    let mut selected = [0; 8];
    let short = Inputs { advantage: &[0.0; 3], ..tokens.inputs((0, 0)) };
    let error = select(&kl_cov, &short, &mut selected).unwrap_err();
    assert!(error.is_shape() && error.to_string().contains("advantage has 3"), "{error}");
    for bad in [
        Selection::KlCov { ratio: 0.0, coefficient: 1.0 },
        Selection::ClipCov { ratio: 0.1, least: 2.0, most: 1.0 },
        Selection::TopEntropy { fraction: 1.5 },
    ] {
        let error = select(&bad, &tokens.inputs((0, 0)), &mut selected).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains(bad.name()), "{error}");
    }
    let device = gpu();
    let mask = upload(&device, DType::U8, &tokens.mask);
    let mut selected = DeviceBuffer::recycled(&device, DType::U8, 8).unwrap();
    let inputs = launch::Inputs {
        logprob: None,
        old_logprob: None,
        advantage: None,
        entropy: None,
        mask: mask.whole(),
        clip: (0.8, 1.2),
        draw: (0, 0),
    };
    let error = launch::select(&kl_cov, &inputs, selected.whole_mut()).err().unwrap();
    assert!(error.to_string().contains("needs logprob"), "{error}");
}

#[test]
fn more_tokens_than_the_kernel_can_count_are_refused_before_any_launch() {
    let device = gpu();
    let len = 1usize << 32;
    // SAFETY: refused by its length, so nobody reads it.
    let of = |dtype| unsafe { DeviceBuffer::borrowed(&device, dtype, 0x1000, len).unwrap() };
    let (entropy, mask, mut selected) = (of(DType::F32), of(DType::U8), of(DType::U8));
    let inputs = launch::Inputs {
        logprob: None,
        old_logprob: None,
        advantage: None,
        entropy: Some(entropy.whole()),
        mask: mask.whole(),
        clip: (0.8, 1.2),
        draw: (1, 1),
    };
    let selection = Selection::TopEntropy { fraction: 0.5 };
    let error = launch::select(&selection, &inputs, selected.whole_mut()).err().unwrap();
    assert!(error.is_shape() && error.to_string().contains("4294967296 tokens"), "{error}");
}
