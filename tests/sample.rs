//! `kernels::sample` against exact probabilities and an independent choice, and its promises.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::Error;
use gradstone::device::cpu::pool;
use gradstone::dtype::FloatSlice;
use gradstone::kernels::logprob::{self, Forward, Outputs, Softmax, Temperature};
use gradstone::kernels::sample::{Sample, Truncation, tokens};
use gradstone::rng::{Sequence, Stream, bits};
use half::bf16;
use proptest::prelude::*;

fn normal(len: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut draws = Sequence::new(seed, Stream::Free, 2);
    (0..len).map(|_| draws.next_normal() * scale).collect()
}

#[derive(Clone, Copy)]
struct How<'a> {
    temperature: f32,
    softcap: Option<f32>,
    truncation: Truncation,
    banned: &'a [i32],
}

const PLAIN: How<'static> = How {
    temperature: 1.0,
    softcap: None,
    truncation: Truncation { top_k: None, top_p: None, min_p: None },
    banned: &[],
};

struct Got {
    tokens: Vec<i32>,
    logprob: Vec<f32>,
    entropy: Vec<f32>,
    logsumexp: Vec<f32>,
    kept_mass: Vec<f32>,
}

fn draw(
    logits: FloatSlice<'_>,
    vocab: usize,
    sequences: &[u64],
    positions: &[u32],
    how: How<'_>,
) -> Result<Got, Error> {
    let rows = sequences.len();
    let zeros = || vec![f32::NAN; rows];
    let mut got = Got {
        tokens: vec![-7; rows],
        logprob: zeros(),
        entropy: zeros(),
        logsumexp: zeros(),
        kept_mass: zeros(),
    };
    let How { temperature, softcap, truncation, banned } = how;
    let args = Sample {
        logits,
        rows,
        vocab,
        temperature,
        softcap,
        truncation,
        banned,
        seed: 42,
        stream: Stream::Sample,
        sequences,
        positions,
    };
    let out = Outputs {
        logprob: &mut got.logprob,
        entropy: Some(&mut got.entropy),
        logsumexp: &mut got.logsumexp,
        argmax: None,
    };
    tokens(&args, &mut got.tokens, Some(out), Some(&mut got.kept_mass))?;
    Ok(got)
}

/// The same row many times, a position each.
fn repeated(row: &[f32], times: usize, how: How<'_>) -> Vec<i32> {
    let logits = row.repeat(times);
    let sequences = vec![5u64; times];
    let positions: Vec<u32> = (0..times as u32).collect();
    draw(FloatSlice::F32(&logits), row.len(), &sequences, &positions, how).unwrap().tokens
}

/// Probabilities of what can be drawn, by sorting everything.
fn probabilities(row: &[f32], how: How<'_>) -> Vec<f64> {
    let capped = |z: f32| match how.softcap {
        Some(cap) => f64::from(cap) * (f64::from(z) / f64::from(cap)).tanh(),
        None => f64::from(z),
    };
    let mut order: Vec<usize> = (0..row.len())
        .filter(|i| !how.banned.contains(&(*i as i32)) && row[*i] > f32::NEG_INFINITY)
        .collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    order.truncate(how.truncation.top_k.map_or(usize::MAX, |k| k as usize));
    let most = capped(row[order[0]]);
    let weight = |i: usize| ((capped(row[i]) - most) / f64::from(how.temperature)).exp();
    let whole: f64 = order.iter().map(|i| weight(*i)).sum();
    if let Some(p) = how.truncation.top_p {
        let mut sum = 0.0;
        let mut keep = 0;
        while keep < order.len() && sum < f64::from(p) * whole {
            sum += weight(order[keep]);
            keep += 1;
        }
        order.truncate(keep);
    }
    if let Some(p) = how.truncation.min_p {
        order.retain(|i| weight(*i) >= f64::from(p));
    }
    let whole: f64 = order.iter().map(|i| weight(*i)).sum();
    let mut out = vec![0.0; row.len()];
    for i in order {
        out[i] = weight(i) / whole;
    }
    out
}

/// Pearson's statistic over cells of an expectation of at least 5, in standard deviations above its mean.
fn chi_square(drawn: &[i32], probabilities: &[f64]) -> f64 {
    let n = drawn.len() as f64;
    let mut counts = vec![0f64; probabilities.len()];
    for id in drawn {
        counts[*id as usize] += 1.0;
    }
    let (mut statistic, mut cells) = (0.0, 0.0);
    let (mut rest, mut rest_expected) = (0.0, 0.0);
    for (count, p) in counts.iter().zip(probabilities) {
        assert!(*p > 0.0 || *count == 0.0, "drew what cannot be drawn");
        if n * p >= 5.0 {
            statistic += (count - n * p).powi(2) / (n * p);
            cells += 1.0;
        } else {
            rest += count;
            rest_expected += n * p;
        }
    }
    if rest_expected >= 5.0 {
        statistic += (rest - rest_expected).powi(2) / rest_expected;
        cells += 1.0;
    }
    let freedom: f64 = cells - 1.0;
    if freedom < 1.0 { 0.0 } else { (statistic - freedom) / (2.0 * freedom).sqrt() }
}

#[test]
fn frequencies_are_the_probabilities() {
    let top = |k: Option<u32>, p: Option<f32>| Truncation { top_k: k, top_p: p, min_p: None };
    let hows = [
        PLAIN,
        How { temperature: 0.6, ..PLAIN },
        How { temperature: 2.5, softcap: Some(3.0), ..PLAIN },
        How { banned: &[3, 0, 3, 11], ..PLAIN },
        How { truncation: top(Some(5), None), ..PLAIN },
        How { truncation: top(None, Some(0.7)), ..PLAIN },
        How { truncation: top(Some(8), Some(0.8)), temperature: 1.3, ..PLAIN },
        How { truncation: top(Some(1), None), ..PLAIN },
        How { truncation: top(None, Some(1e-6)), ..PLAIN },
        How { truncation: top(Some(500), Some(1.0)), banned: &[1], ..PLAIN },
    ];
    for vocab in [2, 17, 40] {
        for (i, how) in hows.into_iter().enumerate() {
            if how.banned.iter().any(|id| *id as usize >= vocab) {
                continue;
            }
            let row = normal(vocab, i as u64, 1.5);
            let excess = chi_square(&repeated(&row, 6000, how), &probabilities(&row, how));
            assert!(excess < 4.0, "vocabulary {vocab}, way {i}: {excess}");
        }
    }
    // Several pieces, with a heavy one in the middle of the second.
    let mut row = normal(5000, 77, 1.0);
    row[3000] = 8.0;
    for how in [PLAIN, How { banned: &[3000, 4999], ..PLAIN }] {
        let excess = chi_square(&repeated(&row, 3000, how), &probabilities(&row, how));
        assert!(excess < 4.0, "{excess}");
    }
}

/// The id where the running sum of probabilities in the order of the ids passes the random number.
fn inverse_of_the_sum(probabilities: &[f64], sequence: u64, position: u32) -> (i32, f64) {
    let [high, low, ..] = bits(42, Stream::Sample, sequence, position);
    let unit = ((u64::from(high) << 32 | u64::from(low)) >> 11) as f64 / (1u64 << 53) as f64;
    let mut sum = 0.0;
    let mut margin = f64::INFINITY;
    let mut found = -1;
    for (id, p) in probabilities.iter().enumerate() {
        sum += p;
        margin = margin.min((sum - unit).abs());
        if found < 0 && sum > unit {
            found = id as i32;
        }
    }
    (found, margin)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_draw_is_the_inverse_of_the_distribution(
        vocab in prop::sample::select(vec![1usize, 2, 15, 16, 1003, 2048, 2049, 10_007]),
        rows in 0usize..5,
        temperature in prop::sample::select(vec![0.3f32, 1.0, 3.0]),
        seed in 0u64..1000,
        some_banned in any::<bool>(),
    ) {
        let logits = normal(rows * vocab, seed, 3.0);
        let sequences: Vec<u64> = (0..rows as u64).map(|r| r * 1_000_000_007).collect();
        let positions: Vec<u32> = (0..rows as u32).map(|r| 9 * r + 1).collect();
        let banned: &[i32] = if some_banned && vocab > 1 { &[1] } else { &[] };
        let how = How { temperature, banned, ..PLAIN };
        let got = draw(FloatSlice::F32(&logits), vocab, &sequences, &positions, how).unwrap();
        for row in 0..rows {
            let p = probabilities(&logits[row * vocab..][..vocab], how);
            let (want, margin) = inverse_of_the_sum(&p, sequences[row], positions[row]);
            // Where the random number falls on a bound, rounding decides.
            prop_assert!(got.tokens[row] == want || margin < 1e-6, "{} {want}", got.tokens[row]);
        }
        // What is reported is what the training pass computes, to the bit, banned ids in the distribution.
        let (mut logprob, mut entropy) = (vec![0f32; rows], vec![0f32; rows]);
        let mut logsumexp = vec![0f32; rows];
        let softmax = Softmax { temperature: Temperature::Same(temperature), softcap: None, banned: &[] };
        let args = Forward { logits: FloatSlice::F32(&logits), targets: &got.tokens, rows, vocab, softmax };
        let out = Outputs {
            logprob: &mut logprob,
            entropy: Some(&mut entropy),
            logsumexp: &mut logsumexp,
            argmax: None,
        };
        logprob::forward(&args, out).unwrap();
        prop_assert_eq!(logprob, got.logprob);
        prop_assert_eq!(entropy, got.entropy);
        prop_assert_eq!(logsumexp, got.logsumexp);
    }

    #[test]
    fn truncations_keep_what_sorting_keeps(
        vocab in prop::sample::select(vec![5usize, 100, 2049, 9001]),
        top_k in prop::sample::select(vec![None, Some(1u32), Some(3), Some(40), Some(20_000)]),
        top_p in prop::sample::select(vec![None, Some(0.05f32), Some(0.5), Some(0.95), Some(0.999_99), Some(1.0)]),
        min_p in prop::sample::select(vec![None, Some(0.0f32), Some(1e-4), Some(0.1), Some(1.0)]),
        flat in any::<bool>(),
        seed in 0u64..1000,
    ) {
        let mut row = normal(vocab, seed, if flat { 0.01 } else { 4.0 });
        // Ties, which go to the lower id, and ids without a probability.
        row[vocab - 1] = row[0];
        row[vocab / 2] = f32::NEG_INFINITY;
        let how = How { truncation: Truncation { top_k, top_p, min_p }, banned: &[2], ..PLAIN };
        let p = probabilities(&row, how);
        for id in repeated(&row, 12, how) {
            prop_assert!(p[id as usize] > 0.0, "{id} lies outside the truncation");
        }
    }
}

/// The id that a draw from the likeliest ids takes, found by sorting them all, and how near the random number, or what
/// top-p keeps, comes to a bound: there rounding decides.
fn by_sorting(row: &[f32], how: How<'_>, sequence: u64, position: u32) -> (i32, f64) {
    let all = How { truncation: Truncation { top_p: None, min_p: None, ..how.truncation }, ..how };
    let p = probabilities(row, all);
    let mut order: Vec<usize> = (0..row.len()).filter(|id| p[*id] > 0.0).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    let sorted: Vec<f64> = order.iter().map(|id| p[*id]).collect();
    let goal = how.truncation.top_p.map_or(f64::INFINITY, f64::from);
    let (mut sum, mut kept, mut margin) = (0.0, 0, f64::INFINITY);
    while kept < sorted.len() && sum < goal {
        sum += sorted[kept];
        kept += 1;
        margin = margin.min((sum - goal).abs());
    }
    if let Some(p) = how.truncation.min_p.map(f64::from) {
        let likely = sorted.partition_point(|one| *one >= p * sorted[0]);
        let distance = |one: &f64| (one / sorted[0] - p).abs();
        margin = sorted.iter().map(distance).fold(margin, f64::min);
        kept = kept.min(likely);
        sum = sorted[..kept].iter().sum();
    }
    let kept: Vec<f64> = sorted[..kept].iter().map(|p| p / sum).collect();
    let (place, of_token) = inverse_of_the_sum(&kept, sequence, position);
    (order[place as usize] as i32, margin.min(of_token))
}

/// Rows as they come: flat ones, of an untrained model and of a trained one at a high temperature, with many equal logits;
/// a language model's, whose weight lies in few ids; ones with ids that are masked by a large negative number.
fn rows_of_all_kinds(vocab: usize, seed: u64) -> Vec<(&'static str, Vec<f32>)> {
    let wide = normal(vocab, seed, 3.0);
    let peak = |id: usize, height: f32| {
        let mut row = wide.clone();
        (0..vocab.min(40)).for_each(|rank| row[(id + 7 * rank) % vocab] = height - rank as f32);
        row
    };
    let mask = |row: Vec<f32>| row.into_iter().map(|z| if z < 1.0 { -1e4 } else { z }).collect();
    vec![
        ("equal", vec![0.25; vocab]),
        ("untrained", normal(vocab, seed, 0.01)),
        ("few values", wide.iter().map(|z| z.round()).collect()),
        ("peaked", peak(vocab / 2, 14.0)),
        ("certain", peak(vocab - 1, 90.0)),
        ("masked", mask(wide.clone())),
        ("steep", normal(vocab, seed, 60.0)),
        ("flat", wide),
    ]
}

#[test]
fn likely_draws_are_those_of_sorting_everything() {
    for (seed, vocab) in [1usize, 2, 130, 2049, 30_011].into_iter().enumerate() {
        for (kind, row) in rows_of_all_kinds(vocab, seed as u64) {
            for (top_k, top_p, min_p) in [
                (None, Some(0.3), None),
                (None, Some(0.9), None),
                (None, Some(0.9999), None),
                (Some(1), None, None),
                (Some(50), Some(0.9), None),
                (Some(3000), None, None),
                (Some(40_000), Some(0.99), None),
                (None, None, Some(0.05)),
                (None, None, Some(1e-6)),
                (None, Some(0.9), Some(0.2)),
                (Some(30), None, Some(0.01)),
                (Some(3000), Some(0.95), Some(0.001)),
            ] {
                let banned: &[i32] = if vocab > 2 { &[1, vocab as i32 / 2] } else { &[] };
                for banned in [&[], banned] {
                    let truncation = Truncation { top_k, top_p, min_p };
                    let how = How { truncation, temperature: 0.8, banned, ..PLAIN };
                    for (position, got) in repeated(&row, 3, how).into_iter().enumerate() {
                        let (want, margin) = by_sorting(&row, how, 5, position as u32);
                        let what = format!("{kind} {vocab} {truncation:?} {banned:?}");
                        assert!(got == want || margin < 1e-6, "{what}: {got}, not {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_kept_mass_is_what_can_be_drawn() {
    let row = normal(3001, 5, 3.0);
    let whole = probabilities(&row, PLAIN);
    for (top_k, top_p, min_p) in [
        (None, None, None),
        (Some(7), None, None),
        (Some(9000), None, None),
        (None, Some(0.6), None),
        (None, None, Some(0.02)),
        (Some(300), Some(0.99), Some(0.1)),
    ] {
        let how = How { truncation: Truncation { top_k, top_p, min_p }, ..PLAIN };
        let can = probabilities(&row, how);
        let mass: f64 = whole.iter().zip(&can).filter(|(_, can)| **can > 0.0).map(|(p, _)| p).sum();
        let got = draw(FloatSlice::F32(&row), row.len(), &[5], &[0], how).unwrap();
        let kept = f64::from(got.kept_mass[0]);
        assert!((kept - mass).abs() < 1e-5, "{:?}: {kept}, not {mass}", how.truncation);
    }
}

/// Relative to the banned id none of the others has a weight.
#[test]
fn a_banned_id_leaves_the_others_however_unlikely() {
    let mut row = normal(5000, 8, 1.0);
    row[4000] = 400.0;
    let of = |top_k, top_p| Truncation { top_k, top_p, min_p: None };
    for truncation in [of(None, None), of(None, Some(0.8)), of(Some(30), None)] {
        let how = How { truncation, banned: &[4000], ..PLAIN };
        let excess = chi_square(&repeated(&row, 2000, how), &probabilities(&row, how));
        assert!(excess < 4.0, "{truncation:?}: {excess}");
    }
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    for vocab in [1usize, 7, 2048, 6001] {
        let mut row = normal(vocab, 9, 1.0);
        let at = vocab / 3;
        row[at] = 9.0;
        row[vocab - 1] = 9.0;
        let how = How { temperature: 0.0, ..PLAIN };
        assert_eq!(repeated(&row, 3, how), [at.min(vocab - 1) as i32; 3]);
        if vocab > 1 {
            let banned = [at as i32];
            assert_eq!(repeated(&row, 1, How { banned: &banned, ..how }), [vocab as i32 - 1]);
        }
    }
    let got = draw(FloatSlice::F32(&[0.0, 0.0]), 2, &[0], &[0], How { temperature: 0.0, ..PLAIN });
    assert!((got.unwrap().logprob[0] + 2f32.ln()).abs() < 1e-6);
}

#[test]
fn a_token_depends_on_its_row_and_its_place_alone() {
    let (rows, vocab) = (9, 40_000);
    let logits = normal(rows * vocab, 4, 2.0);
    let sequences: Vec<u64> = (100..100 + rows as u64).collect();
    let positions: Vec<u32> = (7..7 + rows as u32).collect();
    for (top_k, top_p) in
        [(None, None), (Some(50), Some(0.9)), (None, Some(0.9)), (Some(5000), None)]
    {
        let how = How { truncation: Truncation { top_k, top_p, min_p: None }, ..PLAIN };
        let all = draw(FloatSlice::F32(&logits), vocab, &sequences, &positions, how).unwrap();
        for threads in [1, 2, 4] {
            pool::set_threads(threads).unwrap();
            let again = draw(FloatSlice::F32(&logits), vocab, &sequences, &positions, how).unwrap();
            assert_eq!((&again.tokens, &again.logprob), (&all.tokens, &all.logprob));
            for row in 0..rows {
                let one = FloatSlice::F32(&logits[row * vocab..][..vocab]);
                let alone =
                    draw(one, vocab, &sequences[row..=row], &positions[row..=row], how).unwrap();
                assert_eq!(alone.tokens[0], all.tokens[row]);
                assert_eq!(alone.logprob[0].to_bits(), all.logprob[row].to_bits());
            }
        }
    }
}

#[test]
fn bf16_logits_are_drawn_from_as_what_they_are() {
    let rounded: Vec<bf16> = normal(4 * 3001, 6, 2.0).into_iter().map(bf16::from_f32).collect();
    let wide: Vec<f32> = rounded.iter().map(|x| x.to_f32()).collect();
    let places = ([1u64, 2, 3, 4], [0u32; 4]);
    let a = draw(FloatSlice::Bf16(&rounded), 3001, &places.0, &places.1, PLAIN).unwrap();
    let b = draw(FloatSlice::F32(&wide), 3001, &places.0, &places.1, PLAIN).unwrap();
    assert_eq!((a.tokens, a.logprob), (b.tokens, b.logprob));
}

#[test]
fn bad_input_is_an_error_that_says_what() {
    let one = |row: &[f32], how: How<'_>| {
        draw(FloatSlice::F32(row), row.len(), &[0], &[0], how).map(|got| got.tokens).err().unwrap()
    };
    let row = [0.0, 1.0, 2.0];
    assert!(one(&row, How { temperature: -1.0, ..PLAIN }).is_invalid());
    assert!(one(&row, How { temperature: f32::NAN, ..PLAIN }).is_invalid());
    let top = |top_k, top_p| How { truncation: Truncation { top_k, top_p, min_p: None }, ..PLAIN };
    assert!(one(&row, top(Some(0), None)).is_invalid());
    assert!(one(&row, top(None, Some(0.0))).is_invalid());
    assert!(one(&row, top(None, Some(1.5))).is_invalid());
    assert!(one(&row, How { softcap: Some(0.0), ..PLAIN }).is_invalid());
    assert!(one(&row, How { banned: &[3], ..PLAIN }).is_index());
    assert!(one(&row, How { banned: &[-1], ..PLAIN }).is_index());
    let all = one(&row, How { banned: &[0, 1, 2], ..PLAIN });
    assert!(all.is_numeric() && all.to_string().contains("row 0 has no token"), "{all}");
    for temperature in [0.0, 1.0] {
        let how = How { temperature, ..PLAIN };
        assert!(one(&[f32::NEG_INFINITY; 3], how).is_numeric());
        for bad in [f32::NAN, f32::INFINITY] {
            let error = one(&[0.0, bad, 1.0], how);
            assert!(error.is_numeric() && error.to_string().contains("row 0"), "{error}");
        }
    }
    let two_rows = draw(FloatSlice::F32(&row), 3, &[0, 1], &[0, 0], PLAIN);
    assert!(two_rows.err().unwrap().is_shape());
    let lonely = draw(FloatSlice::F32(&row), 3, &[0], &[0, 0], PLAIN);
    assert!(lonely.err().unwrap().is_shape());
}
