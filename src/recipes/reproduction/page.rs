//! A report in words: a table for the terminal, the page under `docs/reproductions`, JSON for programs.

use super::claim::{Claim, Judged, Measure, Verdict};
use super::paper::{Figure, Metric};
use super::report::{Report, spread};
use serde_json::{Value, json};
use std::fmt::Write;

/// Metrics side by side in a terminal's table.
const COLUMNS: usize = 7;

/// What a reader must know before the numbers; `None` for real runs.
fn warning(report: &Report) -> Option<&'static str> {
    report.description.quick.then_some(
        "Quick: a few steps of every arm to check that the machinery runs. No evidence of anything.",
    )
}

/// The tables, the claims and what went wrong, as plain text.
pub fn text(report: &Report) -> String {
    let mut out = format!("{}, seeds {}\n", report.description.title, report.seeds);
    if let Some(warning) = warning(report) {
        let _ = writeln!(out, "{warning}");
    }
    let name_width = report.arms.iter().map(|arm| arm.name.chars().count()).max().unwrap_or(0);
    for (first, metrics) in report.metrics.chunks(COLUMNS).enumerate() {
        let columns: Vec<Vec<String>> = metrics
            .iter()
            .enumerate()
            .map(|(i, metric)| {
                let cell = |arm| cell(metric, &report.values(arm, first * COLUMNS + i));
                let mut column = vec![metric.name.clone()];
                column.extend((0..report.arms.len()).map(cell));
                column
            })
            .collect();
        let _ = writeln!(out);
        let names = std::iter::once("").chain(report.arms.iter().map(|arm| arm.name.as_str()));
        for (row, name) in names.enumerate() {
            let mut line = format!("{name:<name_width$}");
            for column in &columns {
                let width = column.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
                let _ = write!(line, "  {:>width$}", column[row]);
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
    let _ = writeln!(out, "\nmean ± deviation over {} seeds\n", report.seeds.count());
    for judged in &report.claims {
        let _ = writeln!(out, "{:<15} {}", verdict(judged), judged.claim.text);
        let _ = writeln!(out, "{:<15} {}", "", arithmetic(judged, &report.metrics));
    }
    for (arm, seed, message) in report.failures() {
        let _ = writeln!(out, "failed          {arm}, seed {seed}: {message}");
    }
    if report.unscored() > 0 {
        let _ = writeln!(out, "unscored        {} samples left out", report.unscored());
    }
    let _ = writeln!(out, "\n{}", summary(report));
    out
}

/// Whether everything that is asserted holds, in a sentence.
fn summary(report: &Report) -> String {
    let asserted = |verdict: fn(&Verdict) -> bool| {
        let claims = report.claims.iter().filter(|judged| judged.claim.asserted);
        claims.filter(|judged| verdict(&judged.verdict)).count()
    };
    let (held, fell) = (asserted(|v| *v == Verdict::Holds), asserted(|v| *v == Verdict::Fails));
    let open = asserted(|v| matches!(v, Verdict::NotJudged { .. }));
    let failed = report.failures().count();
    let mut line = format!("{held} of {} asserted claims hold", held + fell);
    if open > 0 {
        let _ = write!(line, "; {open} not judged");
    }
    if failed > 0 {
        let _ = write!(line, "; {failed} runs failed");
    }
    let _ = write!(line, "; {:.0} s on {} threads", report.seconds, report.workers);
    line
}

fn verdict(judged: &Judged) -> &'static str {
    match (judged.claim.asserted, &judged.verdict) {
        (_, Verdict::NotJudged { .. }) => "not judged",
        (true, Verdict::Holds) => "holds",
        (true, Verdict::Fails) => "DOES NOT HOLD",
        (false, Verdict::Holds) => "reported: yes",
        (false, Verdict::Fails) => "reported: no",
    }
}

/// `H(a) − H(b): median −0.167 ≤ −0.1 [−0.16 −0.17 …], 5 of 5 seeds`
fn arithmetic(judged: &Judged, metrics: &[Metric]) -> String {
    let Claim { metric, arm, measure, bound, .. } = &judged.claim;
    let compared = match measure {
        Measure::Value => format!("{metric}({arm})"),
        Measure::Difference { minus } => format!("{metric}({arm}) − {metric}({minus})"),
        Measure::Ratio { divided_by } => format!("{metric}({arm}) / {metric}({divided_by})"),
    };
    let (sign, number) = bound.parts();
    if let Verdict::NotJudged { missing } = &judged.verdict {
        return format!("{compared} {sign} {number}? not run: {}", missing.join(", "));
    }
    let digits = match measure {
        Measure::Ratio { .. } => 3,
        _ => metrics.iter().find(|m| m.name == *metric).map_or(3, |m| m.digits),
    };
    let each: Vec<String> = judged.values.iter().map(|value| figure(*value, digits)).collect();
    format!(
        "{compared}: median {} {sign} {number}? per seed {} ({} of {})",
        figure(judged.median, digits),
        each.join(" "),
        judged.seeds_that_hold,
        judged.values.len()
    )
}

fn figure(value: f64, digits: usize) -> String {
    match value {
        value if value.is_nan() => "–".to_owned(),
        value if value.is_infinite() => "never".to_owned(),
        value => format!("{:.digits$}", if value == 0.0 { 0.0 } else { value }),
    }
}

/// Mean and deviation of a metric over the seeds.
fn cell(metric: &Metric, values: &[f64]) -> String {
    let (mean, deviation, count) = spread(values);
    let digits = metric.digits;
    if count == 0 {
        let never = values.iter().any(|value| value.is_infinite());
        return if never { "never" } else { "–" }.to_owned();
    }
    let part =
        if count < values.len() { format!(" ({count}/{})", values.len()) } else { String::new() };
    if values.len() == 1 {
        return figure(mean, digits);
    }
    format!("{} ±{deviation:.digits$}{part}", figure(mean, digits))
}

/// The page: what was run, the tables, the claims with every seed's value, the figures.
pub fn markdown(report: &Report) -> String {
    let description = &report.description;
    let mut out = format!("# {}\n\n", description.title);
    if let Some(warning) = warning(report) {
        let _ = writeln!(out, "**{warning}**\n");
    }
    let _ = writeln!(out, "Source: {}. Written by the program:\n", description.source);
    let _ = writeln!(out, "```sh\n{}\n```\n", report.command);
    let _ = writeln!(
        out,
        "Seeds {}, {:.0} s of wall time on {} threads. {}.\n",
        report.seeds,
        report.seconds,
        report.workers,
        summary(report)
    );
    let _ = writeln!(out, "{}\n\n## Claims\n", description.about.trim());
    let _ = writeln!(
        out,
        "A claim is judged by the median over the seeds. *Reported* means that the exit status does not depend on it.\n"
    );
    let _ = writeln!(
        out,
        "| claim | verdict | median, bound and the value of each seed |\n|---|---|---|"
    );
    for judged in &report.claims {
        let verdict = match verdict(judged) {
            "holds" => "**holds**",
            "DOES NOT HOLD" => "**does not hold**",
            other => other,
        };
        let numbers = arithmetic(judged, &report.metrics);
        let _ = writeln!(
            out,
            "| {} | {verdict} | {} |",
            judged.claim.text,
            numbers.replace('|', "\\|")
        );
    }
    let _ = writeln!(out, "\n## Results\n\nMean ± deviation over the seeds.");
    for (first, metrics) in report.metrics.chunks(COLUMNS).enumerate() {
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        let _ =
            writeln!(out, "\n| arm | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
        for (arm, named) in report.arms.iter().enumerate() {
            let cells: Vec<String> = metrics
                .iter()
                .enumerate()
                .map(|(i, metric)| cell(metric, &report.values(arm, first * COLUMNS + i)))
                .collect();
            let _ = writeln!(out, "| {} | {} |", named.name, cells.join(" | "));
        }
    }
    for figure in &report.figures {
        let file = format!("{}-{}.svg", description.page, figure.name);
        let _ = writeln!(out, "\n![{}]({file})", figure.title);
    }
    let _ = writeln!(out, "\n## Arms\n");
    for arm in &report.arms {
        let _ = writeln!(out, "- **{}**: {}", arm.name, arm.about);
    }
    let _ = writeln!(out, "\n## Metrics\n");
    for metric in &report.metrics {
        let _ = writeln!(out, "- **{}**: {}", metric.name, metric.about);
    }
    let unscored = report.unscored();
    if unscored > 0 {
        let _ = writeln!(
            out,
            "\n{unscored} samples had no reward (the verifier failed) and were left out."
        );
    }
    for (arm, seed, message) in report.failures() {
        let _ = writeln!(out, "\nFailed: {arm}, seed {seed}: {message}");
    }
    out
}

/// Everything as JSON. A value that is not a number or was never reached is null, and so is what `holds` of a claim that
/// was not judged.
pub fn json(report: &Report) -> Value {
    let number = |value: f64| if value.is_finite() { json!(value) } else { Value::Null };
    // Of curves those that a figure draws, in f32, which is more than a figure shows.
    let drawn = |arm: &str, curve: &str| {
        let shows = |figure: &&Figure| figure.arms.iter().any(|named| named == arm);
        report.figures.iter().filter(shows).any(|figure| figure.curve == curve)
    };
    let short = |value: f64| if value.is_finite() { json!(value as f32) } else { Value::Null };
    let numbers = |values: &[f64]| values.iter().map(|v| number(*v)).collect::<Vec<_>>();
    let seeds: Vec<u64> = report.seeds.iter().collect();
    let arms: Vec<Value> = report
        .arms
        .iter()
        .enumerate()
        .map(|(arm, named)| {
            let metrics: serde_json::Map<String, Value> = report
                .metrics
                .iter()
                .enumerate()
                .map(|(metric, described)| {
                    let values = report.values(arm, metric);
                    let (mean, deviation, _) = spread(&values);
                    let entry = json!({
                        "mean": number(mean), "deviation": number(deviation), "seeds": numbers(&values),
                    });
                    (described.name.clone(), entry)
                })
                .collect();
            let curves: Vec<Value> = report.runs[arm]
                .iter()
                .map(|run| match run {
                    Ok(outcome) => outcome
                        .curves
                        .iter()
                        .filter(|curve| drawn(&named.name, curve.name))
                        .map(|curve| {
                            let points: Vec<Vec<Value>> =
                                curve.points.iter().map(|(x, y)| vec![short(*x), short(*y)]).collect();
                            (curve.name.to_owned(), json!(points))
                        })
                        .collect::<serde_json::Map<String, Value>>()
                        .into(),
                    Err(_) => Value::Null,
                })
                .collect();
            json!({ "name": named.name, "about": named.about, "metrics": metrics, "curves": curves })
        })
        .collect();
    let claims: Vec<Value> = report
        .claims
        .iter()
        .map(|judged| {
            let (claim, measure) = (&judged.claim, &judged.claim.measure);
            let (sign, bound) = claim.bound.parts();
            let holds = match judged.verdict {
                Verdict::NotJudged { .. } => Value::Null,
                Verdict::Holds | Verdict::Fails => json!(judged.verdict == Verdict::Holds),
            };
            json!({
                "text": claim.text, "asserted": claim.asserted, "holds": holds,
                "metric": claim.metric, "arm": claim.arm,
                "against": measure.against(), "measure": measure.name(),
                "sign": sign, "bound": bound,
                "median": number(judged.median), "seeds": numbers(&judged.values),
            })
        })
        .collect();
    let failures: Vec<Value> = report
        .failures()
        .map(|(arm, seed, message)| json!({ "arm": arm, "seed": seed, "message": message }))
        .collect();
    json!({
        "paper": report.description.page,
        "command": report.command,
        "evidence": !report.description.quick,
        "holds": report.holds(),
        "seeds": seeds,
        "seconds": report.seconds,
        "threads": report.workers,
        "unscored": report.unscored(),
        "failures": failures,
        "claims": claims,
        "arms": arms,
    })
}
