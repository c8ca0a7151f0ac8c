//! The report of a run: one HTML page with everything in it, and the picture for a README.
//!
//! Readable while the run goes on, on a desktop and on a phone, in light and dark, without a network; a script in the page shows
//! the values under a pointer, and nothing else needs it.

mod facts;
mod measured;
mod page;
mod samples;
mod tiles;

pub(super) use facts::duration;
pub(super) use measured::{CHARTS, all_zero, finite, latest, points, undocumented};
pub(super) use page::{begin, end, zero};

use crate::error::Result;
use crate::files::atomic;
use crate::train::chart::{Chart, Mark, Series, Unit, escape, number};
use crate::train::metrics::{self, Record, Rollout};
use crate::train::run_dir::RunDir;
use crate::train::starts::{self, Start};
use measured::warmup_end;
use std::fmt::Write;
use std::path::PathBuf;

/// Makes `report.html` of a run directory; returns its path.
///
/// # Errors
/// [`Error::is_io`](crate::Error::is_io), or [`Error::is_format`](crate::Error::is_format) when a log is damaged.
pub fn write(run: &RunDir) -> Result<PathBuf> {
    let records =
        if run.metrics_path().exists() { metrics::read(&run.metrics_path())? } else { vec![] };
    let rollouts = if run.rollouts_path().exists() {
        metrics::read_rollouts(&run.rollouts_path())?
    } else {
        vec![]
    };
    let starts = starts::read(run)?;
    let page = html(&name_of(run), &run.config()?, &starts, &records, &rollouts);
    atomic::write_file(&run.report_path(), page.as_bytes())?;
    Ok(run.report_path())
}

/// The page: `name` of the run, its `config.toml`, when and on what it ran, its metrics and some rollouts.
pub fn html(
    name: &str,
    config: &str,
    starts: &[Start],
    records: &[Record],
    rollouts: &[Rollout],
) -> String {
    let mut out = begin("gradstone run", name);
    facts::list(&mut out, config, starts, records);
    out.push_str("</header>\n");
    tiles::tiles(&mut out, records);
    out.push_str("<section class=\"charts\">\n");
    let mut zeros = Vec::new();
    for shown in &CHARTS {
        let points = points(records, shown.field, shown.phase);
        if !points.is_empty() {
            let name = shown.title.to_string();
            let series = Series { name, points, mark: shown.mark, colour: shown.colour };
            figure(&mut out, &mut zeros, shown.about, shown.unit, series, records);
        }
    }
    out.push_str("</section>\n");
    out.push_str(&zero(&zeros));
    out.push_str(
        "<p class=\"note\">Faint lines are single steps, strong lines and large figures their moving mean (a twentieth of \
         the run). A red mark on the axis is a value that was not a finite number.</p>\n",
    );
    others(&mut out, records);
    samples::samples(&mut out, rollouts);
    let config = escape(config);
    let _ = writeln!(out, "<details><summary>All settings</summary><pre>{config}</pre></details>");
    out + &end()
}

/// Held-out accuracy and reward over the steps, as an SVG file.
pub fn picture(records: &[Record]) -> String {
    let series = |field: &str, name: &str, mark, colour| Series {
        name: name.into(),
        points: points(records, field, None),
        mark,
        colour,
    };
    let series = vec![
        series("reward", "reward of training rollouts", Mark::Noisy, 1),
        series("eval_accuracy", "accuracy on held-out problems", Mark::Points, 0),
    ];
    let all: Vec<&[(f64, f64)]> = series.iter().map(|series| series.points.as_slice()).collect();
    let (steps, warmup) = span(&all, records);
    let chart = Chart {
        series,
        unit: Unit::Percent,
        axis: "step".into(),
        steps,
        warmup,
        size: (820.0, 330.0),
        legend: true,
    };
    chart.standalone("gradstone train: supervised warm-up, then GRPO")
}

/// The name of a run: that of its folder.
pub(super) fn name_of(run: &RunDir) -> String {
    let root = run.root().canonicalize().unwrap_or_else(|_| run.root().to_path_buf());
    root.file_name().map_or("run".into(), |name| name.to_string_lossy().into_owned())
}

/// The steps that a chart shows, and those to shade: the whole run with its warm-up, or only the phase that was
/// measured in.
fn span(series: &[&[(f64, f64)]], records: &[Record]) -> ((f64, f64), Option<(f64, f64)>) {
    let steps = || series.iter().copied().flatten().map(|point| point.0);
    let own = (steps().fold(f64::MAX, f64::min), steps().fold(f64::MIN, f64::max));
    let (Some(first), Some(last)) = (records.first(), records.last()) else {
        return ((0.0, 1.0), None);
    };
    let whole = (first.step as f64, last.step as f64);
    match warmup_end(records) {
        Some(end) if own.0 < end && own.1 > end => (whole, Some((whole.0, end))),
        Some(_) if own.0 <= own.1 => (own, None),
        _ => (whole, None),
    }
}

/// One chart; the name of what was zero in every step goes to `zeros` in place of it.
fn figure(
    out: &mut String,
    zeros: &mut Vec<String>,
    about: &str,
    unit: Unit,
    series: Series,
    records: &[Record],
) {
    if all_zero(&series.points) {
        return zeros.push(series.name);
    }
    let title = escape(&series.name);
    let latest = number(latest(&series.points, series.mark), unit);
    let (steps, warmup) = span(&[&series.points], records);
    let chart = Chart {
        series: vec![series],
        unit,
        axis: "step".into(),
        steps,
        warmup,
        size: (400.0, 196.0),
        legend: false,
    };
    let _ = writeln!(
        out,
        "<figure><figcaption><h2>{title}</h2><p>{}</p><strong>{latest}</strong></figcaption>{}</figure>",
        escape(about),
        chart.svg()
    );
}

/// What an objective measured beyond the documented fields.
fn others(out: &mut String, records: &[Record]) {
    let names = undocumented(records);
    if names.is_empty() {
        return;
    }
    out.push_str("<details><summary>Other measurements</summary><section class=\"charts\">\n");
    let mut zeros = Vec::new();
    for name in names {
        let points = points(records, name, None);
        let series = Series { name: name.replace('_', " "), points, mark: Mark::Noisy, colour: 5 };
        figure(out, &mut zeros, "", Unit::Plain, series, records);
    }
    let _ = writeln!(out, "</section>{}</details>", zero(&zeros));
}

#[cfg(test)]
mod tests {
    use super::measured::Shown;
    use super::samples::{SAMPLED_EACH, SAMPLED_STEPS};
    use super::*;
    use crate::device::Device;
    use crate::train::metrics::{Phase, StepMetrics};

    /// A run as it might go: 40 warm-up steps, then reinforcement learning; drawn, not trained.
    fn example() -> (Vec<Record>, Vec<Rollout>) {
        let mut noise = crate::rng::Sequence::new(1, crate::rng::Stream::Free, 0);
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), "").unwrap();
        let mut logs = run.logs().unwrap();
        for step in 1..=240u64 {
            let rl = step > 40;
            let t = if rl { (step - 40) as f32 / 200.0 } else { 0.0 };
            let mut m = StepMetrics::new(step, if rl { Phase::Rl } else { Phase::Warmup });
            let mut wobble = |size: f32| size * (noise.next_unit() - 0.5);
            m.seconds = 0.42;
            m.tokens_per_second = 14_000.0 + wobble(3_000.0);
            m.grad_norm = Some(0.8 - 0.4 * t + wobble(0.4));
            m.loss = Some(if rl {
                wobble(0.02)
            } else {
                2.6 * (-(step as f32) / 14.0).exp() + 0.7 + wobble(0.1)
            });
            if rl {
                m.reward = Some((0.2 + 0.55 * t.sqrt() + wobble(0.16)).clamp(0.0, 1.0));
                m.entropy = Some(0.9 * (-2.2 * t).exp() + 0.05 + wobble(0.06));
                m.kl = Some(if step == 120 { f32::NAN } else { 4e-4 * t + wobble(1e-4).abs() });
                m.clip_fraction = Some((0.02 + wobble(0.03)).max(0.0));
                m.mismatch = Some(0.0);
                m.response_length = Some(3.0 + wobble(0.5));
                m.more.insert("ratio_max".into(), 1.2 + wobble(0.2));
            }
            if step.is_multiple_of(20) {
                m.eval_accuracy =
                    Some(if rl { 0.24 + 0.5 * t.sqrt() } else { 0.006 * step as f32 });
            }
            logs.metrics.write(&m).unwrap();
            if step.is_multiple_of(15) && rl {
                for i in 0..6 {
                    let rollout = Rollout {
                        step,
                        prompt: format!("{}+{}=", 11 + i, step % 37),
                        completion: if i == 2 {
                            "<script>alert(1)</script>".into()
                        } else {
                            (11 + i + step % 37).to_string()
                        },
                        answer: (11 + i + step % 37).to_string(),
                        reward: f32::from(i != 2),
                        advantage: Some(0.3),
                        tokens: 3,
                        truncated: i == 2,
                    };
                    logs.rollouts.write(&rollout).unwrap();
                }
            }
        }
        (
            metrics::read(&run.metrics_path()).unwrap(),
            metrics::read_rollouts(&run.rollouts_path()).unwrap(),
        )
    }

    const CONFIG: &str =
        "recipe = \"arithmetic\"\nseed = 0\nsteps = 240\n[optimizer]\nlearning_rate = 0.001\n";

    #[test]
    fn the_page_holds_everything_and_nothing_from_elsewhere() {
        let (records, rollouts) = example();
        let page =
            html("example <run>", CONFIG, &[Start::now(&Device::Cpu, 0)], &records, &rollouts);
        // Writes the example where GRADSTONE_EXAMPLE_REPORT says, to be looked at.
        if let Some(folder) = std::env::var_os("GRADSTONE_EXAMPLE_REPORT").map(PathBuf::from) {
            std::fs::write(folder.join("report.html"), &page).unwrap();
            std::fs::write(folder.join("picture.svg"), picture(&records)).unwrap();
        }
        // All but those of block diffusion.
        let measured = |shown: &&Shown| !points(&records, shown.field, shown.phase).is_empty();
        let mut shown: Vec<&str> =
            CHARTS.iter().filter(measured).map(|shown| shown.title).collect();
        assert_eq!(shown.len(), 11, "{shown:?}");
        assert_eq!(shown.pop(), Some("Mismatch"));
        assert!(page.contains("Zero in every step: Mismatch."));
        for title in &shown {
            assert!(page.contains(&format!("<h2>{title}</h2>")), "{title}");
        }
        assert_eq!(page.matches("<svg").count(), shown.len() + 1);
        assert!(page.contains("example &lt;run&gt;") && page.contains("Other measurements"));
        assert!(page.contains("&lt;script&gt;alert(1)") && page.matches("<script").count() == 1);
        let body = page.split("<script").next().unwrap();
        for fact in [
            "recipe</span> arithmetic",
            "learning rate</span> 0.001",
            "started</span> 20",
            "time</span> 1 min",
        ] {
            assert!(body.contains(fact), "{fact}");
        }
        assert!(page.contains("24.0 % after the warm-up"), "{}", &page[..6000]);
        assert!(!page.contains("NaN"));
        // Nothing is fetched: the one address in it is the name of SVG's elements.
        assert_eq!(page.replace("http://www.w3.org/2000/svg", "").matches("http").count(), 0);
        assert_eq!(page.matches("<tr>").count(), 1 + SAMPLED_STEPS * SAMPLED_EACH);
    }

    #[test]
    fn an_empty_run_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), CONFIG).unwrap();
        let page = std::fs::read_to_string(write(&run).unwrap()).unwrap();
        assert!(page.contains("nothing has been measured yet"));
        std::fs::write(run.metrics_path(), "{\"step\":1,\"phase\":\"rl\",\"loss\":null}\n")
            .unwrap();
        assert!(std::fs::read_to_string(write(&run).unwrap()).unwrap().contains("not finite"));
    }

    #[test]
    fn the_picture_is_a_file_of_its_own() {
        let svg = picture(&example().0);
        assert!(
            svg.starts_with("<svg xmlns=")
                && svg.contains("held-out problems")
                && svg.contains("warm-up")
        );
    }
}
