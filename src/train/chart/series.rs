//! One line of a chart: values over steps, drawn as they are, as their moving mean, or as points.

use super::axis::{Unit, number};
use super::escape::escape;
use super::frame::Frame;
use std::fmt::Write;

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

/// Most points of a drawn line; beyond that a bucket's smallest and largest value stand for it.
pub(super) const DRAWN: usize = 600;

impl Series {
    pub(super) fn draw(&self, out: &mut String, frame: &Frame, unit: Unit) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moving_mean_keeps_a_straight_line() {
        let line: Vec<(f64, f64)> = (0..200).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect();
        for ((_, mean), (_, value)) in moving_mean(&line).iter().zip(&line).skip(5).take(190) {
            assert!((mean - value).abs() < 1e-9);
        }
        let holes = moving_mean(&[(1.0, f64::NAN), (2.0, f64::NAN), (3.0, 5.0)]);
        assert!(holes[0].1.is_nan() && holes[1].1 == 5.0 && holes[2].1 == 5.0);
    }
}
