//! The report of a run: one HTML page with everything in it, and the picture for a README.
//!
//! Readable while the run goes on, on a desktop and on a phone, in light and dark, without scripts or network.

use crate::error::Result;
use crate::files::atomic;
use crate::train::chart::{Chart, Mark, STYLE, Series, Unit, escape, moving_mean, number};
use crate::train::metrics::{self, Record, Rollout};
use crate::train::run_dir::RunDir;
use std::fmt::Write;
use std::path::PathBuf;

/// Rollouts shown: so many steps, spread over the run, and so many of each.
const SAMPLED_STEPS: usize = 6;
const SAMPLED_EACH: usize = 4;

/// Characters of a prompt or a completion shown.
const SHOWN: usize = 600;

/// One kind of chart: a field of `metrics.jsonl` and how it is shown.
pub(super) struct Shown {
    pub field: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    pub unit: Unit,
    pub mark: Mark,
    colour: usize,
    /// Only the steps of this phase; all where absent.
    pub phase: Option<&'static str>,
}

const fn shown(
    field: &'static str,
    title: &'static str,
    about: &'static str,
    colour: usize,
) -> Shown {
    Shown { field, title, about, unit: Unit::Plain, mark: Mark::Noisy, colour, phase: None }
}

pub(super) const CHARTS: [Shown; 20] = [
    Shown {
        unit: Unit::Percent,
        mark: Mark::Points,
        ..shown(
            "eval_accuracy",
            "Held-out accuracy",
            "greedy answers to problems never trained on",
            0,
        )
    },
    shown("reward", "Reward", "mean over the rollouts of a step", 1),
    shown("entropy", "Entropy", "nats per token", 3),
    shown("kl", "KL divergence", "nats per token", 4),
    Shown {
        unit: Unit::Percent,
        ..shown("clip_fraction", "Clip fraction", "tokens whose ratio was clipped", 2)
    },
    shown("grad_norm", "Gradient norm", "before clipping", 2),
    shown("response_length", "Response length", "tokens", 3),
    shown("tokens_per_second", "Tokens per second", "wall clock", 5),
    Shown { phase: Some("rl"), ..shown("loss", "Policy loss", "reinforcement learning", 4) },
    Shown {
        phase: Some("warmup"),
        ..shown("loss", "Warm-up loss", "nats per token of worked examples", 5)
    },
    Shown { phase: Some("next_token"), ..shown("loss", "Next-token loss", "nats per token", 5) },
    Shown {
        phase: Some("diffusion"),
        ..shown("loss", "Diffusion loss", "weighted, nats per token", 4)
    },
    Shown {
        mark: Mark::Points,
        ..shown("held_out_bound", "Held-out bound", "nats per token, unclipped noise", 0)
    },
    Shown { unit: Unit::Percent, ..shown("masked", "Masked", "tokens of a batch", 3) },
    Shown {
        unit: Unit::Percent,
        ..shown("wasted_blocks", "Wasted blocks", "without a masked token", 2)
    },
    Shown {
        phase: Some("sft"),
        ..shown("loss", "Supervised loss", "nats per token of demonstrations", 5)
    },
    Shown { phase: Some("preference"), ..shown("loss", "Preference loss", "per record", 4) },
    Shown {
        mark: Mark::Points,
        ..shown("eval_loss", "Held-out loss", "records never trained on", 0)
    },
    shown("margin", "Margin", "reward of chosen over rejected completions", 1),
    shown("mismatch", "Mismatch", "largest |sampler's − trainer's log-prob|", 1),
];

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
    let page = html(&name_of(run), &run.config()?, &records, &rollouts);
    atomic::write_file(&run.report_path(), page.as_bytes())?;
    Ok(run.report_path())
}

/// The page: `name` of the run, its `config.toml`, its metrics and some rollouts.
pub fn html(name: &str, config: &str, records: &[Record], rollouts: &[Rollout]) -> String {
    let mut out = page("gradstone run", name);
    settings(&mut out, config);
    out.push_str("</header>\n");
    tiles(&mut out, records);
    out.push_str("<section class=\"charts\">\n");
    for shown in &CHARTS {
        card(&mut out, shown, records);
    }
    out.push_str(
        "</section>\n<p class=\"note\">Faint lines are single steps, strong lines and large figures their moving mean (a twentieth of \
         the run). A red mark on the axis is a value that was not a finite number.</p>\n",
    );
    others(&mut out, records);
    samples(&mut out, rollouts);
    let _ = write!(
        out,
        "<details><summary>All settings</summary><pre>{}</pre></details>\n</main>\n</body>\n</html>\n",
        escape(config)
    );
    out
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
    let chart =
        Chart { series, unit: Unit::Percent, steps, warmup, size: (820.0, 330.0), legend: true };
    chart.standalone("gradstone train: supervised warm-up, then GRPO")
}

/// The beginning of a page, up to its heading inside `<header>`.
pub(super) fn page(brand: &str, title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title} · gradstone</title>\n\
         <style>{STYLE}{PAGE}</style>\n</head>\n<body>\n<main>\n<header>\n<p class=\"brand\">{brand}</p>\n<h1>{title}</h1>\n",
        title = escape(title)
    )
}

/// The name of a run: that of its folder.
pub(super) fn name_of(run: &RunDir) -> String {
    let root = run.root().canonicalize().unwrap_or_else(|_| run.root().to_path_buf());
    root.file_name().map_or("run".into(), |name| name.to_string_lossy().into_owned())
}

pub(super) fn points(records: &[Record], field: &str, phase: Option<&str>) -> Vec<(f64, f64)> {
    let of_phase = records.iter().filter(|record| phase.is_none_or(|phase| record.phase == phase));
    of_phase.filter_map(|record| Some((record.step as f64, *record.values.get(field)?))).collect()
}

/// The last step of the warm-up.
fn warmup_end(records: &[Record]) -> Option<f64> {
    records.iter().rfind(|record| record.phase == "warmup").map(|record| record.step as f64)
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

/// The settings that say at a glance which run this is.
fn settings(out: &mut String, config: &str) {
    let Ok(table) = config.parse::<toml::Table>() else { return };
    let model_and_task =
        ["model", "task"].into_iter().filter_map(|name| Some((name, table.get(name)?.as_table()?)));
    let inner = model_and_task.flat_map(|(name, inner)| {
        inner
            .iter()
            .map(move |(key, value)| (if key == "kind" { name } else { key.as_str() }, value))
    });
    let outer = table.iter().map(|(key, value)| (key.as_str(), value));
    out.push_str("<ul class=\"settings\">");
    for (key, value) in outer.chain(inner).filter(|(_, value)| !value.is_table()).take(20) {
        let value = match value {
            toml::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let value: String = value.chars().take(60).collect();
        let _ = write!(
            out,
            "<li><span>{}</span> {}</li>",
            escape(&key.replace('_', " ")),
            escape(&value)
        );
    }
    out.push_str("</ul>\n");
}

fn tiles(out: &mut String, records: &[Record]) {
    let mut body: Vec<(&str, String, String)> = Vec::new();
    let finite = |field: &str| -> Vec<(f64, f64)> {
        points(records, field, None).into_iter().filter(|point| point.1.is_finite()).collect()
    };
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

/// The figure in a heading: the end of the strong line.
pub(super) fn latest(points: &[(f64, f64)], mark: Mark) -> f64 {
    let line = if mark == Mark::Points { points.to_vec() } else { moving_mean(points) };
    line.last().map_or(f64::NAN, |point| point.1)
}

pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..=99 => format!("{seconds:.1} s"),
        100..=5999 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

fn card(out: &mut String, shown: &Shown, records: &[Record]) {
    let points = points(records, shown.field, shown.phase);
    if !points.is_empty() {
        let name = shown.title.to_string();
        let series = Series { name, points, mark: shown.mark, colour: shown.colour };
        figure(out, shown.about, shown.unit, series, records);
    }
}

fn figure(out: &mut String, about: &str, unit: Unit, series: Series, records: &[Record]) {
    let title = escape(&series.name);
    let latest = number(latest(&series.points, series.mark), unit);
    let (steps, warmup) = span(&[&series.points], records);
    let chart =
        Chart { series: vec![series], unit, steps, warmup, size: (400.0, 196.0), legend: false };
    let _ = writeln!(
        out,
        "<figure><figcaption><h2>{title}</h2><p>{}</p><strong>{latest}</strong></figcaption>{}</figure>",
        escape(about),
        chart.svg()
    );
}

/// The names of what an objective measured beyond the documented fields.
pub(super) fn undocumented<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<&'a String> {
    let known = |name: &str| name == "seconds" || CHARTS.iter().any(|shown| shown.field == name);
    let keys = records.into_iter().flat_map(|record| record.values.keys());
    let mut names: Vec<&String> = keys.filter(|name| !known(name)).collect();
    names.sort();
    names.dedup();
    names
}

/// What an objective measured beyond the documented fields.
fn others(out: &mut String, records: &[Record]) {
    let names = undocumented(records);
    if names.is_empty() {
        return;
    }
    out.push_str("<details><summary>Other measurements</summary><section class=\"charts\">\n");
    for name in names {
        let points = points(records, name, None);
        let series = Series { name: name.replace('_', " "), points, mark: Mark::Noisy, colour: 5 };
        figure(out, "", Unit::Plain, series, records);
    }
    out.push_str("</section></details>\n");
}

fn samples(out: &mut String, rollouts: &[Rollout]) {
    let mut steps: Vec<u64> = rollouts.iter().map(|rollout| rollout.step).collect();
    steps.sort_unstable();
    steps.dedup();
    if steps.is_empty() {
        return;
    }
    let count = steps.len().min(SAMPLED_STEPS);
    let spread = |i: usize| if count == 1 { 0 } else { i * (steps.len() - 1) / (count - 1) };
    out.push_str(
        "<section><h2 class=\"section\">Sampled rollouts</h2>\n<table><thead><tr><th>Step</th><th>Prompt</th><th>Completion</th>\
         <th>Answer</th><th>Reward</th><th>Tokens</th></tr></thead>\n<tbody>\n",
    );
    for step in (0..count).rev().filter_map(|i| steps.get(spread(i))) {
        for rollout in rollouts.iter().filter(|rollout| rollout.step == *step).take(SAMPLED_EACH) {
            let good = if rollout.reward > 0.0 { "good" } else { "poor" };
            let cut = if rollout.truncated { " <small>cut off</small>" } else { "" };
            let _ = writeln!(
                out,
                "<tr><td data-name=\"Step\">{}</td><td data-name=\"Prompt\" class=\"text\">{}</td>\
                 <td data-name=\"Completion\" class=\"text\">{}{cut}</td><td data-name=\"Answer\" class=\"text\">{}</td>\
                 <td data-name=\"Reward\"><span class=\"{good}\">{}</span></td><td data-name=\"Tokens\">{}</td></tr>",
                rollout.step,
                excerpt(&rollout.prompt),
                excerpt(&rollout.completion),
                excerpt(&rollout.answer),
                if rollout.reward.is_nan() {
                    "not scored".into()
                } else {
                    number(f64::from(rollout.reward), Unit::Plain)
                },
                rollout.tokens
            );
        }
    }
    out.push_str("</tbody></table></section>\n");
}

fn excerpt(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    if shown.is_empty() { "<i>empty</i>".into() } else { escape(&shown) }
}

/// The page around the charts.
const PAGE: &str = include_str!("report.css");

#[cfg(test)]
mod tests {
    use super::*;
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
        let page = html("example <run>", CONFIG, &records, &rollouts);
        // Writes the example where GRADSTONE_EXAMPLE_REPORT says, to be looked at.
        if let Some(folder) = std::env::var_os("GRADSTONE_EXAMPLE_REPORT").map(PathBuf::from) {
            std::fs::write(folder.join("report.html"), &page).unwrap();
            std::fs::write(folder.join("picture.svg"), picture(&records)).unwrap();
        }
        // All but those of block diffusion.
        let measured = |shown: &&Shown| !points(&records, shown.field, shown.phase).is_empty();
        let shown: Vec<&str> = CHARTS.iter().filter(measured).map(|shown| shown.title).collect();
        assert_eq!(shown.len(), 11, "{shown:?}");
        for title in &shown {
            assert!(page.contains(&format!("<h2>{title}</h2>")), "{title}");
        }
        assert_eq!(page.matches("<svg").count(), shown.len() + 1);
        assert!(page.contains("example &lt;run&gt;") && page.contains("Other measurements"));
        assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script"));
        assert!(page.contains("24.0 % after the warm-up"), "{}", &page[..6000]);
        assert!(!page.contains("NaN") && !page.contains("http"));
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

    #[test]
    fn durations() {
        for (seconds, text) in
            [(0.0, "0.0 s"), (99.4, "99.4 s"), (125.0, "2 min 05 s"), (7260.0, "2 h 01 min")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
