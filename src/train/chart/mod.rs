//! A line chart over steps as SVG text: axes with round ticks, noisy lines with their moving mean, measured points,
//! a shaded phase. No fonts are measured. A chart says everything without a script; on a page with [`HOVER`] a pointer or a finger
//! on it shows the values of a step too.
//!
//! Colours are CSS classes, so that the page which holds a chart decides them; [`Chart::standalone`] brings its own.

mod axis;
mod escape;
mod frame;
mod hover;
mod series;

pub use axis::{Unit, number};
pub use escape::escape;
pub use hover::SCRIPT as HOVER;
pub use series::{Mark, Series, moving_mean};

use axis::{labels, step_ticks, value_ticks};
use frame::Frame;
use std::fmt::Write;

/// A chart: what is drawn and how large.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Drawn over each other, the first at the bottom.
    pub series: Vec<Series>,
    /// How values are written.
    pub unit: Unit,
    /// What is counted along the lower axis: `step`.
    pub axis: String,
    /// Its first and last place; all charts of a page share it.
    pub steps: (f64, f64),
    /// Steps of the warm-up phase, shaded.
    pub warmup: Option<(f64, f64)>,
    /// Width and height in user units (12 units are a line of text).
    pub size: (f64, f64),
    /// A legend is drawn (for more than one series).
    pub legend: bool,
}

/// Room beside the value axis, at least, and that of a character of its labels.
const LEAST_LEFT: f64 = 44.0;
const CHARACTER: f64 = 6.4;
const RIGHT: f64 = 10.0;
const BOTTOM: f64 = 22.0;
const LINE: f64 = 16.0;

impl Chart {
    /// The `<svg>` element, for a page with the colours of [`STYLE`].
    pub fn svg(&self) -> String {
        let (width, height) = self.size;
        let (body, frame) = self.drawn();
        let data = frame.map_or(String::new(), |frame| {
            hover::data(&self.series, self.unit, &self.axis, &frame)
        });
        format!(
            r#"<svg viewBox="0 0 {width} {height}" role="img" class="chart"{data}>{body}</svg>"#
        )
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
        out.push_str(&self.drawn().0);
        out.push_str("</svg>\n");
        out
    }

    /// What is inside of the element, and where values are in it; no frame where nothing was measured.
    fn drawn(&self) -> (String, Option<Frame>) {
        let mut out = String::new();
        let (width, height) = self.size;
        let top = if self.legend { 26.0 } else { 8.0 };
        // A faint line shows every value; where there are means alone, theirs is the range.
        let drawn = |series: &Series| match series.mark {
            Mark::Mean => moving_mean(&series.points),
            Mark::Noisy | Mark::Points => series.points.clone(),
        };
        let values = self.series.iter().flat_map(drawn).map(|point| point.1);
        let (low, high) = values
            .filter(|v| v.is_finite())
            .fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        let steps = if self.steps.1 > self.steps.0 {
            self.steps
        } else {
            (self.steps.0 - 0.5, self.steps.0 + 0.5)
        };
        if low > high {
            let (x, y) = (width / 2.0, height / 2.0);
            let _ = write!(out, r#"<text class="note" x="{x}" y="{y}">not measured</text>"#);
            return (out, None);
        }
        let room = if self.axis_is_short() { BOTTOM } else { BOTTOM + LINE };
        let count = ((height - top - room) / 42.0).max(2.0) as usize;
        let ticks = value_ticks(low, high, self.unit, count);
        let values = (
            ticks.first().copied().unwrap_or(0.0).min(low),
            ticks.last().copied().unwrap_or(1.0).max(high),
        );
        let texts = labels(&ticks, self.unit);
        let widest = texts.iter().map(|text| text.chars().count()).max().unwrap_or(0);
        let left = (CHARACTER * widest as f64 + 10.0).max(LEAST_LEFT);
        let (right, bottom) = (width - RIGHT, height - room);
        let frame = Frame { left, right, top, bottom, steps, values };
        self.shade(&mut out, &frame);
        value_axis(&mut out, &frame, ticks.iter().zip(&texts));
        self.step_axis(&mut out, &frame);
        for series in &self.series {
            series.draw(&mut out, &frame, self.unit);
        }
        if self.legend {
            self.draw_legend(&mut out, frame.left);
        }
        (out, Some(frame))
    }

    fn shade(&self, out: &mut String, frame: &Frame) {
        let Some((from, to)) = self.warmup else { return };
        let (x0, x1) = (frame.x(from.max(frame.steps.0)), frame.x(to.min(frame.steps.1)));
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

    /// The name of the lower axis fits beside its numbers, left of the frame; else it has a line of its own below them.
    fn axis_is_short(&self) -> bool {
        self.axis.chars().count() <= 5
    }

    fn step_axis(&self, out: &mut String, frame: &Frame) {
        let Frame { left, right, bottom, .. } = *frame;
        let ticks =
            step_ticks(frame.steps.0, frame.steps.1, ((right - left) / 52.0).max(2.0) as usize);
        let y = bottom + 16.0;
        let (anchor, x, line) = match self.axis_is_short() {
            true => ("left", left - 6.0, y),
            false => ("mid", (left + right) / 2.0, y + LINE),
        };
        let beside = if self.axis_is_short() { 4.0 } else { left };
        let name = escape(&self.axis);
        let _ =
            write!(out, r#"<text class="tick {anchor}" x="{x:.1}" y="{line:.1}">{name}</text>"#);
        for (tick, text) in ticks.iter().zip(labels(&ticks, Unit::Plain)) {
            let x = frame.x(*tick);
            // A text that would stick out at an end, or run into the axis' name, is written inwards.
            let half = CHARACTER * text.len() as f64 / 2.0;
            let anchor = match x {
                x if x + half > right + RIGHT => "end",
                x if x - half < left - beside => "start",
                _ => "mid",
            };
            let _ =
                write!(out, r#"<text class="tick {anchor}" x="{x:.1}" y="{y:.1}">{text}</text>"#);
        }
        let _ = write!(
            out,
            r#"<line class="axis" x1="{left}" x2="{right}" y1="{bottom:.1}" y2="{bottom:.1}"/>"#
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

/// Lines across at the ticks, with their texts.
fn value_axis<'a>(
    out: &mut String,
    frame: &Frame,
    ticks: impl Iterator<Item = (&'a f64, &'a String)>,
) {
    let Frame { left, right, .. } = *frame;
    for (tick, text) in ticks {
        let y = frame.y(*tick);
        let _ = write!(
            out,
            r#"<line class="grid" x1="{left}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/><text class="tick left" x="{}" y="{:.1}">{text}</text>"#,
            left - 6.0,
            y + 4.0,
        );
    }
}

/// The colours and strokes of charts, light and dark.
pub const STYLE: &str = include_str!("chart.css");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chart(points: Vec<(f64, f64)>, unit: Unit, mark: Mark) -> Chart {
        let series = Series { name: "a<b".into(), points, mark, colour: 0 };
        Chart {
            series: vec![series],
            unit,
            axis: "step".into(),
            steps: (0.0, 100.0),
            warmup: Some((0.0, 30.0)),
            size: (400.0, 200.0),
            legend: true,
        }
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
    }

    #[test]
    fn long_runs_stay_small() {
        let points = (0..100_000).map(|i| (f64::from(i), f64::from(i % 97))).collect();
        let svg = Chart { steps: (0.0, 1e5), ..chart(points, Unit::Plain, Mark::Noisy) }.svg();
        assert!(svg.len() < 40_000, "{}", svg.len());
    }

    #[test]
    fn a_chart_carries_what_it_draws() {
        let points = vec![(1.0, 0.123_456_7), (2.0, f64::NAN), (4.0, 0.5)];
        let series = Series { name: "a\"<b".into(), points, mark: Mark::Points, colour: 7 };
        let chart = Chart {
            series: vec![series],
            unit: Unit::Percent,
            axis: "step".into(),
            steps: (1.0, 4.0),
            warmup: None,
            size: (400.0, 200.0),
            legend: false,
        };
        let svg = chart.svg();
        let data = svg.split("data-chart=\"").nth(1).unwrap().split('"').next().unwrap();
        let json = data.replace("&quot;", "\"").replace("&lt;", "<").replace("&amp;", "&");
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["series"][0]["values"], serde_json::json!([0.12346, null, 0.5]));
        assert_eq!(read["series"][0]["steps"], serde_json::json!([1.0, 2.0, 4.0]));
        assert_eq!(read["series"][0]["name"], "a\"<b");
        assert_eq!((&read["series"][0]["colour"], &read["factor"]), (&1.into(), &100.0.into()));
        assert!(!chart.standalone("title").contains("data-chart"));
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
