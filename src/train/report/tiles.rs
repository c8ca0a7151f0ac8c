//! The large figures at the top of a report.

use super::facts::duration;
use super::measured::{finite, latest, warmup_end};
use crate::train::chart::{Mark, Unit, escape, moving_mean, number};
use crate::train::metrics::Record;
use std::fmt::Write;

pub(super) fn tiles(out: &mut String, records: &[Record]) {
    let mut body: Vec<(&str, String, String)> = Vec::new();
    let finite = |field: &str| finite(records, field);
    let accuracy = finite("eval_accuracy");
    if let Some((_, last)) = accuracy.last() {
        let end = warmup_end(records).unwrap_or(0.0);
        let before = accuracy.iter().rfind(|(step, _)| *step <= end).or(accuracy.first());
        let note = before.map_or(String::new(), |(step, value)| {
            let when =
                if end > 0.0 { "after the warm-up".into() } else { format!("at step {step}") };
            format!("{} {when}", number(*value, Unit::Percent))
        });
        body.push(("Held-out accuracy", number(*last, Unit::Percent), note));
    }
    let reward = finite("reward");
    if let Some((_, first)) = moving_mean(&reward).first() {
        let note = format!("{} at first", number(*first, Unit::Plain));
        body.push(("Reward", number(latest(&reward, Mark::Noisy), Unit::Plain), note));
    }
    if let Some(last) = records.last() {
        let warm =
            records.iter().filter(|record| record.phase == "warmup" && record.step > 0).count();
        let note = if warm > 0 { format!("{warm} of them warm-up") } else { last.phase.clone() };
        body.push(("Steps", last.step.to_string(), note));
        let seconds: f64 = finite("seconds").iter().map(|point| point.1).sum();
        let mut speeds: Vec<f64> =
            finite("tokens_per_second").iter().map(|point| point.1).collect();
        speeds.sort_by(f64::total_cmp);
        let median = speeds.get(speeds.len() / 2).copied().unwrap_or(0.0);
        body.push((
            "Time",
            duration(seconds),
            format!("{} tokens/s, median", number(median, Unit::Plain)),
        ));
    }
    if let Some(largest) = finite("mismatch").iter().map(|point| point.1).reduce(f64::max) {
        let steps = finite("mismatch").len();
        body.push(("Mismatch", number(largest, Unit::Plain), format!("largest of {steps} steps")));
    }
    if body.is_empty() {
        body.push(("Steps", "0".into(), "nothing has been measured yet".into()));
    }
    out.push_str("<section class=\"tiles\">\n");
    for (title, value, note) in body {
        let (value, note) = (escape(&value), escape(&note));
        let _ = writeln!(
            out,
            "<div class=\"tile\"><p>{title}</p><strong>{value}</strong><small>{note}</small></div>"
        );
    }
    out.push_str("</section>\n");
}
