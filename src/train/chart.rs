//! A line chart over steps as SVG text: axes with round ticks, noisy lines with their moving mean, measured points,
//! a shaded phase. No fonts are measured and no script is needed.
//!
//! Colours are CSS classes, so that the page which holds a chart decides them; [`Chart::standalone`] brings its own.

use serde::Deserialize;
use std::fmt::Write;

/// How numbers on the value axis are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// As they are, with k and M for thousands and millions.
    Plain,
    /// 0.5 as 50 %; the axis stays inside 0 to 100 %.
    Percent,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Faint line of every value and a strong line of their moving mean: a value each step.
    Noisy,
    /// Points with a line between them: a value now and then.
    Points,
    /// The moving mean alone: several runs over each other.
    Mean,
}

/// Values over steps. A NaN is a gap, marked on the axis.
#[derive(Clone, Debug)]
pub struct Series {
    /// For the legend and tooltips.
    pub name: String,
    /// `(step, value)` in order of steps.
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub mark: Mark,
    /// Its colour: class `c0` to `c5`.
    pub colour: usize,
}

/// A chart: what is drawn and how large.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Drawn over each other, the first at the bottom.
    pub series: Vec<Series>,
    /// How values are written.
    pub unit: Unit,
    /// Steps of the axis; all charts of a page share it.
    pub steps: (f64, f64),
    /// Steps of the warm-up phase, shaded.
    pub warmup: Option<(f64, f64)>,
    /// Width and height in user units (12 units are a line of text).
    pub size: (f64, f64),
    /// A legend is drawn (for more than one series).
    pub legend: bool,
}

const LEFT: f64 = 44.0;
const RIGHT: f64 = 10.0;
const BOTTOM: f64 = 22.0;

/// Most points of a drawn line; beyond that a bucket's smallest and largest value stand for it.
const DRAWN: usize = 600;

/// The part of the picture that values are drawn in, and the scales.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn x(&self, step: f64) -> f64 {
        self.left + (step - self.x.0) / (self.x.1 - self.x.0) * (self.right - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - (value - self.y.0) / (self.y.1 - self.y.0) * (self.bottom - self.top)
    }
}

impl Chart {
    /// The `<svg>` element, for a page with the colours of [`STYLE`].
    pub fn svg(&self) -> String {
        let (width, height) = self.size;
        let mut out = format!(r#"<svg viewBox="0 0 {width} {height}" role="img" class="chart">"#);
        self.draw(&mut out);
        out.push_str("</svg>");
        out
    }

    /// An SVG file with a title and its own colours, light or dark as the reader's system is.
    pub fn standalone(&self, title: &str) -> String {
        let (width, height) = self.size;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 -40 {width} {total}\" width=\"{width}\" height=\"{total}\" \
             class=\"chart\" role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"paper\" x=\"0\" y=\"-40\" width=\"{width}\" height=\"{total}\" rx=\"10\"/>\n\
             <text class=\"heading\" x=\"16\" y=\"-13\">{title}</text>\n",
            total = height + 48.0,
            title = escape(title),
        );
        self.draw(&mut out);
        out.push_str("</svg>\n");
        out
    }

    fn draw(&self, out: &mut String) {
        let (width, height) = self.size;
        let top = if self.legend { 26.0 } else { 8.0 };
        let values =
            || self.series.iter().flat_map(|s| &s.points).map(|p| p.1).filter(|v| v.is_finite());
        let (low, high) =
            values().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        let steps = if self.steps.1 > self.steps.0 {
            self.steps
        } else {
            (self.steps.0 - 0.5, self.steps.0 + 0.5)
        };
        if low > high {
            let _ = write!(
                out,
                r#"<text class="note" x="{}" y="{}">not measured</text>"#,
                width / 2.0,
                height / 2.0
            );
            return;
        }
        let ticks =
            value_ticks(low, high, self.unit, ((height - top - BOTTOM) / 42.0).max(2.0) as usize);
        let y = (
            ticks.first().copied().unwrap_or(0.0).min(low),
            ticks.last().copied().unwrap_or(1.0).max(high),
        );
        let frame =
            Frame { left: LEFT, right: width - RIGHT, top, bottom: height - BOTTOM, x: steps, y };
        self.shade(out, &frame);
        self.axes(out, &frame, &ticks);
        for series in &self.series {
            series.draw(out, &frame, self.unit);
        }
        if self.legend {
            self.draw_legend(out, frame.left);
        }
    }

    fn shade(&self, out: &mut String, frame: &Frame) {
        let Some((from, to)) = self.warmup else { return };
        let (x0, x1) = (frame.x(from.max(frame.x.0)), frame.x(to.min(frame.x.1)));
        if x1 <= x0 {
            return;
        }
        let (wide, high) = (x1 - x0, frame.bottom - frame.top);
        let _ = write!(
            out,
            r#"<rect class="warmup" x="{x0:.1}" y="{:.1}" width="{wide:.1}" height="{high:.1}"/>"#,
            frame.top
        );
        if wide > 52.0 {
            let _ = write!(
                out,
                r#"<text class="phase" x="{:.1}" y="{:.1}">warm-up</text>"#,
                x1 - 5.0,
                frame.bottom - 6.0
            );
        }
    }

    fn axes(&self, out: &mut String, frame: &Frame, ticks: &[f64]) {
        let step = ticks.windows(2).map(|pair| pair[1] - pair[0]).next().unwrap_or(1.0);
        for tick in ticks {
            let y = frame.y(*tick);
            let _ = write!(
                out,
                r#"<line class="grid" x1="{}" x2="{}" y1="{y:.1}" y2="{y:.1}"/><text class="tick left" x="{}" y="{:.1}">{}</text>"#,
                frame.left,
                frame.right,
                frame.left - 6.0,
                y + 4.0,
                label(*tick, step, self.unit)
            );
        }
        let room = ((frame.right - frame.left) / 52.0).max(2.0) as usize;
        let step_ticks: Vec<f64> = round_ticks(frame.x.0, frame.x.1, room, 1.0)
            .into_iter()
            .filter(|t| *t >= frame.x.0)
            .collect();
        for tick in &step_ticks {
            let x = frame.x(*tick);
            let anchor = if x > frame.right - 14.0 { "end" } else { "mid" };
            let _ = write!(
                out,
                r#"<text class="tick {anchor}" x="{x:.1}" y="{:.1}">{}</text>"#,
                frame.bottom + 16.0,
                label(*tick, 1.0, Unit::Plain)
            );
        }
        let _ = write!(
            out,
            r#"<line class="axis" x1="{}" x2="{}" y1="{y:.1}" y2="{y:.1}"/>"#,
            frame.left,
            frame.right,
            y = frame.bottom
        );
    }

    fn draw_legend(&self, out: &mut String, left: f64) {
        let mut x = left;
        for series in &self.series {
            let colour = series.colour % 6;
            let _ = write!(
                out,
                r#"<circle class="dot c{colour}" cx="{:.1}" cy="10" r="4"/><text class="legend" x="{:.1}" y="14.2">{}</text>"#,
                x + 4.0,
                x + 14.0,
                escape(&series.name)
            );
            x += 34.0 + 6.7 * series.name.chars().count() as f64;
        }
    }
}

impl Series {
    fn draw(&self, out: &mut String, frame: &Frame, unit: Unit) {
        let colour = self.colour % 6;
        for (step, _) in self.points.iter().filter(|point| !point.1.is_finite()).take(DRAWN) {
            let x = frame.x(*step);
            let _ = write!(
                out,
                r#"<line class="bad" x1="{x:.1}" x2="{x:.1}" y1="{:.1}" y2="{:.1}"><title>step {step}: not a finite number</title></line>"#,
                frame.bottom - 8.0,
                frame.bottom
            );
        }
        match self.mark {
            Mark::Noisy => {
                let mean = moving_mean(&self.points);
                let faint = path(&thinned(&self.points), frame);
                let strong = path(&thinned(&mean), frame);
                let _ = write!(
                    out,
                    r#"<path class="raw c{colour}" d="{faint}"/><path class="line c{colour}" d="{strong}"/>"#
                );
            }
            Mark::Mean => {
                let strong = path(&thinned(&moving_mean(&self.points)), frame);
                let _ = write!(
                    out,
                    r#"<path class="line c{colour}" d="{strong}"><title>{}</title></path>"#,
                    escape(&self.name)
                );
            }
            Mark::Points => {
                let _ = write!(
                    out,
                    r#"<path class="line c{colour}" d="{}"/>"#,
                    path(&self.points, frame)
                );
                let finite: Vec<_> =
                    self.points.iter().filter(|point| point.1.is_finite()).collect();
                let radius = if finite.len() > 60 { 1.6 } else { 2.8 };
                for (step, value) in finite.into_iter().take(DRAWN) {
                    let _ = write!(
                        out,
                        r#"<circle class="dot c{colour}" cx="{:.1}" cy="{:.1}" r="{radius}"><title>{}, step {step}: {}</title></circle>"#,
                        frame.x(*step),
                        frame.y(*value),
                        escape(&self.name),
                        number(*value, unit)
                    );
                }
            }
        }
    }
}

/// SVG path commands; a NaN begins a new stroke.
fn path(points: &[(f64, f64)], frame: &Frame) -> String {
    let (mut out, mut pen_down) = (String::new(), false);
    for (step, value) in points {
        if value.is_finite() {
            let command = if pen_down { 'L' } else { 'M' };
            let _ = write!(out, "{command}{:.1} {:.1}", frame.x(*step), frame.y(*value));
        }
        pen_down = value.is_finite();
    }
    out
}

/// The mean over a window of a twentieth of the points around each, cut off at both ends, without NaN.
pub fn moving_mean(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = (points.len() / 40).clamp(1, 500);
    let mut sums = Vec::with_capacity(points.len() + 1);
    sums.push((0.0, 0usize));
    for (_, value) in points {
        let (sum, count) = sums.last().copied().unwrap_or_default();
        sums.push(if value.is_finite() { (sum + value, count + 1) } else { (sum, count) });
    }
    let mean = |at: usize| {
        let (high, low) =
            (sums[(at + reach + 1).min(points.len())], sums[at.saturating_sub(reach)]);
        (high.0 - low.0) / (high.1 - low.1) as f64
    };
    points.iter().enumerate().map(|(at, (step, _))| (*step, mean(at))).collect()
}

fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= DRAWN {
        return points.to_vec();
    }
    let extremes = |bucket: &[(f64, f64)]| {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let finite = || bucket.iter().filter(|point| point.1.is_finite());
        let mut both: Vec<(f64, f64)> = finite()
            .min_by(by_value)
            .into_iter()
            .chain(finite().max_by(by_value))
            .copied()
            .collect();
        both.sort_by(|a, b| a.0.total_cmp(&b.0));
        both
    };
    points.chunks(points.len().div_ceil(DRAWN / 2)).flat_map(extremes).collect()
}

/// Round numbers from at or below `low` to at or above `high`, about `count` of them.
fn value_ticks(low: f64, high: f64, unit: Unit, count: usize) -> Vec<f64> {
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

/// A tick's text, with as many decimals as its step needs.
fn label(value: f64, step: f64, unit: Unit) -> String {
    let value = if value == 0.0 { 0.0 } else { value };
    let (value, step) =
        if unit == Unit::Percent { (value * 100.0, step * 100.0) } else { (value, step) };
    let decimals = |step: f64| (-step.log10() - 1e-9).ceil().clamp(0.0, 6.0) as usize;
    let text = match value.abs() {
        0.0 if !(9e-4..1.0).contains(&step) => "0".to_string(),
        large if large >= 1e10 => format!("{value:.0e}"),
        large if large >= 1e6 => format!("{:.*}M", decimals(step / 1e6), value / 1e6),
        large if large >= 1e4 => format!("{:.*}k", decimals(step / 1e3), value / 1e3),
        _ if value != 0.0 && step < 9e-4 => {
            format!("{value:.*e}", usize::from(value.abs() >= 10.0 * step))
        }
        _ => format!("{value:.*}", decimals(step)),
    };
    if unit == Unit::Percent { text + "%" } else { text }
}

/// A value in a heading: three significant digits.
pub fn number(value: f64, unit: Unit) -> String {
    if !value.is_finite() {
        return "not finite".into();
    }
    let value = if unit == Unit::Percent { value * 100.0 } else { value };
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

/// Text for HTML and SVG, in elements and in attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in XML; shown as what it is.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The colours and strokes of charts, light and dark.
pub const STYLE: &str = "
:root,svg{--paper:#ffffff;--ink:#1c2128;--soft:#66707d;--rule:#e7eaee;--axis:#b6bec8;--shade:#f0a94322;--bad:#d1383d;
--c0:#2563eb;--c1:#0d9473;--c2:#d9772b;--c3:#7c4ddb;--c4:#c2417c;--c5:#5b6b7d}
@media(prefers-color-scheme:dark){:root,svg{--paper:#171c23;--ink:#e8edf3;--soft:#93a0b0;--rule:#29313b;--axis:#4c5866;
--shade:#f0a94324;--bad:#ff6b6b;--c0:#6ea2ff;--c1:#3ecfa6;--c2:#f5a15d;--c3:#b294ff;--c4:#f387b5;--c5:#a9b6c6}}
.chart{display:block;width:100%;height:auto;font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
.chart .paper{fill:var(--paper)}.chart .heading{fill:var(--ink);font-size:16px;font-weight:600}
.chart .grid{stroke:var(--rule)}.chart .axis{stroke:var(--axis)}.chart .warmup{fill:var(--shade)}
.chart .tick{fill:var(--soft);font-size:11px}.chart .left,.chart .end,.chart .phase{text-anchor:end}
.chart .mid,.chart .note{text-anchor:middle}.chart .note,.chart .phase{fill:var(--soft)}.chart .phase{font-size:10.5px}
.chart .legend{fill:var(--ink)}.chart path{fill:none;stroke-linejoin:round;stroke-linecap:round}
.chart .line{stroke-width:2}.chart .raw{stroke-width:1;opacity:.28}.chart .bad{stroke:var(--bad);stroke-width:2}
.chart path.c0{stroke:var(--c0)}.chart path.c1{stroke:var(--c1)}.chart path.c2{stroke:var(--c2)}
.chart path.c3{stroke:var(--c3)}.chart path.c4{stroke:var(--c4)}.chart path.c5{stroke:var(--c5)}
.chart .dot.c0{fill:var(--c0)}.chart .dot.c1{fill:var(--c1)}.chart .dot.c2{fill:var(--c2)}
.chart .dot.c3{fill:var(--c3)}.chart .dot.c4{fill:var(--c4)}.chart .dot.c5{fill:var(--c5)}
";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chart(points: Vec<(f64, f64)>, unit: Unit, mark: Mark) -> Chart {
        let series = Series { name: "a<b".into(), points, mark, colour: 0 };
        Chart {
            series: vec![series],
            unit,
            steps: (0.0, 100.0),
            warmup: Some((0.0, 30.0)),
            size: (400.0, 200.0),
            legend: true,
        }
    }

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
            (0.0, 9_000.0, Unit::Plain, vec!["0", "5000", "10k"]),
            (1e-5, 4e-5, Unit::Plain, vec!["0", "1e-5", "2e-5", "3e-5", "4e-5"]),
        ] {
            let ticks = value_ticks(low, high, unit, 4);
            let step = ticks[1] - ticks[0];
            let labels: Vec<String> = ticks.iter().map(|t| label(*t, step, unit)).collect();
            assert_eq!(labels, want, "{low} {high}");
        }
        assert_eq!(round_ticks(0.0, 330.0, 5, 1.0), [0.0, 100.0, 200.0, 300.0]);
        assert_eq!(round_ticks(1.0, 4.0, 5, 1.0), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn the_moving_mean_keeps_a_straight_line() {
        let line: Vec<(f64, f64)> = (0..200).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect();
        for ((_, mean), (_, value)) in moving_mean(&line).iter().zip(&line).skip(5).take(190) {
            assert!((mean - value).abs() < 1e-9);
        }
        let holes = moving_mean(&[(1.0, f64::NAN), (2.0, f64::NAN), (3.0, 5.0)]);
        assert!(holes[0].1.is_nan() && holes[1].1 == 5.0 && holes[2].1 == 5.0);
    }

    #[test]
    fn gaps_are_marked_and_names_escaped() {
        let svg =
            chart(vec![(1.0, 1.0), (2.0, f64::NAN), (3.0, 2.0)], Unit::Plain, Mark::Points).svg();
        assert!(
            svg.contains("class=\"bad\"") && svg.contains("a&lt;b") && !svg.contains("NaN"),
            "{svg}"
        );
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(chart(vec![], Unit::Plain, Mark::Noisy).svg().contains("not measured"));
        assert_eq!(escape("<a href='x'>&\"\u{1}"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}");
    }

    #[test]
    fn long_runs_stay_small() {
        let points = (0..100_000).map(|i| (f64::from(i), f64::from(i % 97))).collect();
        let svg = Chart { steps: (0.0, 1e5), ..chart(points, Unit::Plain, Mark::Noisy) }.svg();
        assert!(svg.len() < 40_000, "{}", svg.len());
    }

    proptest! {
        #[test]
        fn any_values_make_finite_coordinates(values in proptest::collection::vec(proptest::num::f32::ANY, 0..20), percent: bool) {
            let points = values.iter().enumerate().map(|(i, v)| (i as f64, f64::from(*v))).collect();
            let unit = if percent { Unit::Percent } else { Unit::Plain };
            for mark in [Mark::Noisy, Mark::Points] {
                let svg = chart(Vec::clone(&points), unit, mark).svg();
                prop_assert!(!svg.contains("NaN") && !svg.contains("inf"), "{}", svg);
            }
        }
    }
}
