//! The numbers beside an axis: where they stand, and how they are written.

use serde::Deserialize;

/// How numbers on the value axis are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// As they are, with k and M for thousands and millions.
    Plain,
    /// 0.5 as 50 %; the axis stays inside 0 to 100 %.
    Percent,
}

impl Unit {
    /// What a value is multiplied by before it is written.
    pub(super) fn factor(self) -> f64 {
        if self == Unit::Percent { 100.0 } else { 1.0 }
    }
}

/// Round numbers from at or below `low` to at or above `high`, about `count` of them.
pub(super) fn value_ticks(low: f64, high: f64, unit: Unit, count: usize) -> Vec<f64> {
    let (mut low, mut high) = (low, high);
    // A value axis begins at zero unless that would flatten everything.
    // A little below zero is drawn below the lowest tick instead of adding one.
    if (low > 0.0 && low < 0.5 * high) || (low < 0.0 && -low < 0.08 * high) {
        low = 0.0;
    }
    if unit == Unit::Percent {
        (low, high) = (low.min(0.0), high.max(0.01));
    }
    if high - low <= 1e-12 * high.abs().max(low.abs()) {
        let around = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        (low, high) = if low == 0.0 { (0.0, around) } else { (low - around, high + around) };
    }
    let mut ticks = round_ticks(low, high, count, 0.0);
    if unit == Unit::Percent {
        ticks.retain(|tick| *tick < 1.0 + 1e-9);
    }
    ticks
}

/// Whole numbers from `first` to `last`, at most about `count` of them.
pub(super) fn step_ticks(first: f64, last: f64, count: usize) -> Vec<f64> {
    let ticks = round_ticks(first, last, count, 1.0);
    ticks.into_iter().filter(|tick| *tick >= first).collect()
}

/// Multiples of 1, 2 or 5 times a power of ten (at least `smallest` apart) that enclose a range.
fn round_ticks(low: f64, high: f64, count: usize, smallest: f64) -> Vec<f64> {
    let rough = (high - low) / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(rough);
    let step = step.max(smallest);
    if !(step.is_finite() && step > 0.0) {
        return vec![low, high];
    }
    let inside = smallest > 0.0;
    let first = if inside { (low / step).ceil() } else { (low / step + 1e-9).floor() };
    let last = if inside { (high / step).floor() } else { (high / step - 1e-9).ceil() };
    // At most a handful by construction; the bound is for numbers at the edge of f64.
    (0..64).map(|i| first + f64::from(i)).take_while(|i| *i <= last).map(|i| i * step).collect()
}

/// The texts of an axis' ticks, in order: all with the decimals that the distance between them needs, so that no two are alike, and
/// all in thousands, in millions or as powers of ten where that is shorter.
pub(super) fn labels(ticks: &[f64], unit: Unit) -> Vec<String> {
    let ticks: Vec<f64> = ticks.iter().map(|tick| tick * unit.factor()).collect();
    let apart = ticks.windows(2).map(|pair| (pair[1] - pair[0]).abs());
    let apart = apart.filter(|apart| *apart > 0.0).fold(f64::INFINITY, f64::min);
    let largest = ticks.iter().fold(0f64, |largest, tick| largest.max(tick.abs()));
    let apart = if apart.is_finite() { apart } else { largest.max(f64::MIN_POSITIVE) };
    let mut forms = vec![scaled(&ticks, apart, 1.0, "")];
    if largest >= 1e4 {
        forms.push(scaled(&ticks, apart, 1e3, "k"));
    }
    if largest >= 1e6 {
        forms.push(scaled(&ticks, apart, 1e6, "M"));
    }
    if apart < 1e-3 || largest >= 1e9 {
        forms.push(ticks.iter().map(|tick| power_of_ten(*tick, apart)).collect());
    }
    let width = |form: &Vec<String>| form.iter().map(String::len).max().unwrap_or(0);
    // Of forms that are equally wide, the later: 1.0M rather than 1000k.
    let shortest = forms.into_iter().rev().min_by_key(width).unwrap_or_default();
    let sign = if unit == Unit::Percent { "%" } else { "" };
    shortest.into_iter().map(|text| text + sign).collect()
}

/// Decimals of a number that is a multiple of `apart`.
fn decimals(apart: f64) -> usize {
    (-apart.log10() - 1e-9).ceil().clamp(0.0, 17.0) as usize
}

fn scaled(ticks: &[f64], apart: f64, scale: f64, suffix: &str) -> Vec<String> {
    let text = |tick: &f64| match *tick {
        0.0 if scale > 1.0 => "0".to_owned(),
        // Without the sign of a negative zero.
        tick => format!("{:.*}{suffix}", decimals(apart / scale), tick / scale + 0.0),
    };
    ticks.iter().map(text).collect()
}

fn power_of_ten(tick: f64, apart: f64) -> String {
    if tick == 0.0 {
        return "0".to_owned();
    }
    let exponent = |value: f64| (value.abs().log10() + 1e-9).floor();
    let digits = (exponent(tick) - exponent(apart)).clamp(0.0, 17.0) as usize;
    format!("{tick:.digits$e}")
}

/// A value in a heading: three significant digits.
pub fn number(value: f64, unit: Unit) -> String {
    if !value.is_finite() {
        return "not finite".into();
    }
    let value = value * unit.factor();
    let text = match value.abs() {
        0.0 => "0".into(),
        large if large >= 1e6 => format!("{:.2}M", value / 1e6),
        large if large >= 1e4 => format!("{:.1}k", value / 1e3),
        large if large >= 100.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        large if large >= 1.0 => format!("{value:.2}"),
        large if large >= 1e-3 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    };
    if unit == Unit::Percent { text + " %" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ticks_are_round_and_enclose() {
        for (low, high, unit, want) in [
            (0.03, 0.97, Unit::Plain, vec!["0.0", "0.5", "1.0"]),
            (0.1, 0.62, Unit::Percent, vec!["0%", "20%", "40%", "60%", "80%"]),
            (0.3, 1.0, Unit::Percent, vec!["0%", "50%", "100%"]),
            (2.9, 3.1, Unit::Plain, vec!["2.90", "2.95", "3.00", "3.05", "3.10"]),
            (-0.4, 0.3, Unit::Plain, vec!["-0.4", "-0.2", "0.0", "0.2", "0.4"]),
            (800.0, 23_000.0, Unit::Plain, vec!["0", "10k", "20k", "30k"]),
            (0.0, 0.0, Unit::Plain, vec!["0.0", "0.5", "1.0"]),
            (-0.004, 0.07, Unit::Plain, vec!["0.00", "0.02", "0.04", "0.06", "0.08"]),
            (0.0, 9_000.0, Unit::Plain, vec!["0", "5k", "10k"]),
            (0.0, 4_000.0, Unit::Plain, vec!["0", "1000", "2000", "3000", "4000"]),
            (1e-5, 4e-5, Unit::Plain, vec!["0", "1e-5", "2e-5", "3e-5", "4e-5"]),
            (
                10_000.1,
                10_000.9,
                Unit::Plain,
                vec!["10000.0", "10000.2", "10000.4", "10000.6", "10000.8", "10001.0"],
            ),
            (12.0, 12.0012, Unit::Plain, vec!["12.0000", "12.0005", "12.0010", "12.0015"]),
            (0.0, 1e6, Unit::Plain, vec!["0", "0.5M", "1.0M"]),
            (0.0, 4e10, Unit::Plain, vec!["0", "1e10", "2e10", "3e10", "4e10"]),
        ] {
            assert_eq!(labels(&value_ticks(low, high, unit, 4), unit), want, "{low} {high}");
        }
        assert_eq!(step_ticks(0.0, 330.0, 5), [0.0, 100.0, 200.0, 300.0]);
        assert_eq!(step_ticks(1.0, 4.0, 5), [1.0, 2.0, 3.0, 4.0]);
        let steps = |first, last| labels(&step_ticks(first, last, 5), Unit::Plain);
        assert_eq!(steps(9_998.0, 10_003.0), ["9998", "9999", "10000", "10001", "10002", "10003"]);
        assert_eq!(steps(1.0, 60_000.0), ["20k", "40k", "60k"]);
        assert_eq!(steps(1.0, 5_000.0), ["1000", "2000", "3000", "4000", "5000"]);
    }

    proptest! {
        #[test]
        fn labels_are_read_back_as_their_ticks(low in -1e9f64..1e9, spread in -9.0f64..9.0, percent: bool) {
            let unit = if percent { Unit::Percent } else { Unit::Plain };
            let ticks = value_ticks(low, low + 10f64.powf(spread), unit, 4);
            let texts = labels(&ticks, unit);
            for (i, (text, tick)) in texts.iter().zip(&ticks).enumerate() {
                prop_assert!(i == 0 || *text != texts[i - 1], "{texts:?}");
                let digits = text.trim_end_matches(['k', 'M', '%']);
                let scale = if text.contains('k') { 1e3 } else if text.contains('M') { 1e6 } else { 1.0 };
                let read = digits.parse::<f64>().unwrap() * scale;
                let apart = ticks.get(1).map_or(1.0, |next| (next - ticks[0]) * unit.factor());
                prop_assert!((read - tick * unit.factor()).abs() < 0.01 * apart, "{texts:?} {ticks:?}");
            }
        }
    }
}
