//! The values of a step under a pointer or a finger: what a chart carries for it, and the script of the page that shows them.

use super::axis::Unit;
use super::escape::escape;
use super::frame::Frame;
use super::series::{DRAWN, Mark, Series, moving_mean};
use serde::Serialize;

/// What shows the values, for the end of a page with charts. A page without it is the same but for that.
pub const SCRIPT: &str = include_str!("hover.js");

/// What a chart carries: where its values are drawn, and the values.
#[derive(Serialize)]
struct Carried<'a> {
    /// Left, right, top and lower edge in user units.
    frame: [f64; 4],
    /// Steps at the left and right edge.
    steps: [f64; 2],
    /// Values at the lower and upper edge.
    values: [f64; 2],
    axis: &'a str,
    factor: f64,
    sign: &'static str,
    series: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    colour: usize,
    steps: Vec<f64>,
    /// `null` where a value was not a finite number.
    values: Vec<Option<f64>>,
    /// The strong line, where it is not the values.
    #[serde(skip_serializing_if = "Option::is_none")]
    means: Option<Vec<Option<f64>>>,
}

/// The attribute of the `<svg>` element that holds the data, with a space before it.
pub(super) fn data(series: &[Series], unit: Unit, axis: &str, frame: &Frame) -> String {
    let carried = Carried {
        frame: [frame.left, frame.right, frame.top, frame.bottom],
        steps: [frame.steps.0, frame.steps.1],
        values: [frame.values.0, frame.values.1],
        axis,
        factor: unit.factor(),
        sign: if unit == Unit::Percent { " %" } else { "" },
        series: series.iter().map(line).collect(),
    };
    // Numbers and texts alone: there is nothing in it that JSON cannot hold.
    let json = serde_json::to_string(&carried).unwrap_or_default();
    format!(" data-chart=\"{}\"", escape(&json))
}

/// Every value of a short run; of a long one some of its steps, evenly.
fn line(series: &Series) -> Line<'_> {
    let every = series.points.len().div_ceil(DRAWN).max(1);
    let picked = |points: &[(f64, f64)]| {
        points.iter().step_by(every).map(|point| shortened(point.1)).collect::<Vec<_>>()
    };
    let means = (series.mark != Mark::Points).then(|| picked(&moving_mean(&series.points)));
    Line {
        name: &series.name,
        colour: series.colour % 6,
        steps: series.points.iter().step_by(every).map(|point| point.0).collect(),
        values: picked(&series.points),
        means,
    }
}

/// Five significant digits: more than a reader takes in, and a page stays small.
fn shortened(value: f64) -> Option<f64> {
    format!("{value:.4e}").parse().ok().filter(|value: &f64| value.is_finite())
}
