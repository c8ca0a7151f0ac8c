//! A figure of a report: one curve an arm, the mean over the seeds.

use super::paper::Figure;
use super::report::Report;
use crate::train::chart::{Chart, Mark, Series};

/// The SVG file of a figure.
pub fn svg(report: &Report, figure: &Figure) -> String {
    let mut series = Vec::new();
    for (colour, name) in figure.arms.iter().enumerate() {
        let Some(arm) = report.arms.iter().position(|arm| arm.name == *name) else { continue };
        let curves: Vec<&[(f64, f64)]> = report.runs[arm]
            .iter()
            .flatten()
            .flat_map(|outcome| &outcome.curves)
            .filter(|curve| curve.name == figure.curve)
            .map(|curve| &curve.points[..])
            .collect();
        let points = mean(&curves);
        let mark = if points.len() > 40 { Mark::Noisy } else { Mark::Points };
        series.push(Series { name: name.clone(), points, mark, colour });
    }
    let places = || series.iter().flat_map(|series| &series.points).map(|point| point.0);
    let (first, last) = places().fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)));
    let steps = if first <= last { (first, last) } else { (0.0, 1.0) };
    let legend = series.len() > 1;
    let chart = Chart {
        series,
        unit: figure.unit,
        axis: figure.axis.clone(),
        steps,
        warmup: None,
        size: (860.0, 320.0),
        legend,
    };
    chart.standalone(&format!("{} against {}", figure.title, figure.axis))
}

/// The mean of curves, place by place. Their places are about the same; the i-th point is compared with the i-th, as
/// far as every curve goes.
fn mean(curves: &[&[(f64, f64)]]) -> Vec<(f64, f64)> {
    let shortest = curves.iter().map(|curve| curve.len()).min().unwrap_or(0);
    let count = curves.len() as f64;
    (0..shortest)
        .map(|i| {
            let sum =
                |part: &dyn Fn((f64, f64)) -> f64| curves.iter().map(|c| part(c[i])).sum::<f64>();
            (sum(&|p| p.0) / count, sum(&|p| p.1) / count)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_goes_as_far_as_all_curves() {
        let (a, b) = ([(0.0, 1.0), (10.0, 3.0), (20.0, 4.0)], [(0.0, 2.0), (12.0, 4.0)]);
        assert_eq!(mean(&[&a, &b]), [(0.0, 1.5), (11.0, 3.5)]);
        assert!(mean(&[]).is_empty());
    }
}
