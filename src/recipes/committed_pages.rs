//! The pages under `docs/reproductions` are what the program writes today for the runs that were made then: words,
//! arms, claims and tables come from `paper.toml`, the numbers from the committed JSON.

use super::exgrpo::ExGrpo;
use super::faithrl::FaithRl;
use super::reproduction::plan::plan;
use super::reproduction::run::judged;
use super::reproduction::{Curve, Experiment, Outcome, Report, Request, figure, page};
use super::stable_diffcoder::StableDiffCoder;
use serde_json::Value;
use std::path::Path;

/// Metrics that are infinite where they were never reached; JSON has null for these as for what does not apply.
const REACHED: [&str; 4] = ["to .5", "to .7", "upd. .5", "upd. .7"];

fn committed(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reproductions").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The report of a committed JSON file.
fn report<E: Experiment>(paper: &str, study: Option<&str>, json: &Value) -> Report {
    let request = Request { study: study.map(str::to_owned), ..Request::default() };
    let plan = plan::<E>(&request).unwrap();
    let failed = |arm: &str, seed: &Value| {
        let mut failures = json["failures"].as_array().unwrap().iter();
        let mine = failures.find(|one| one["arm"] == arm && one["seed"] == *seed);
        mine.map(|one| one["message"].as_str().unwrap().to_owned())
    };
    let seeds = json["seeds"].as_array().unwrap();
    let runs = plan.arms.iter().zip(json["arms"].as_array().unwrap()).map(|(planned, arm)| {
        assert_eq!(arm["name"], *planned.named.name);
        assert_eq!(arm["about"], *planned.named.about);
        let runs =
            seeds.iter().enumerate().map(|(i, seed)| match failed(&planned.named.name, seed) {
                Some(message) => Err(message),
                None => Ok(Outcome {
                    metrics: E::METRICS
                        .iter()
                        .map(|metric| match arm["metrics"][metric]["seeds"][i].as_f64() {
                            Some(value) => value,
                            None if REACHED.contains(metric) => f64::INFINITY,
                            None => f64::NAN,
                        })
                        .collect(),
                    curves: E::CURVES
                        .iter()
                        .filter_map(|name| curve(name, &arm["curves"][i]))
                        .collect(),
                    unscored: 0,
                }),
            });
        runs.collect()
    });
    let runs = runs.collect();
    let command = request.command(paper, plan.seeds);
    let workers = json["threads"].as_u64().unwrap() as usize;
    judged(plan, command, runs, json["seconds"].as_f64().unwrap(), workers)
}

fn curve(name: &&'static str, run: &Value) -> Option<Curve> {
    let number = |value: &Value| value.as_f64().map_or(f64::NAN, f64::from);
    let points = run[*name].as_array()?.iter().map(|point| (number(&point[0]), number(&point[1])));
    Some(Curve { name, points: points.collect() })
}

/// The committed page, figures and JSON of a study are what is written for its runs.
fn regenerates<E: Experiment>(paper: &str, study: Option<&str>) {
    let request = Request { study: study.map(str::to_owned), ..Request::default() };
    let name = plan::<E>(&request).unwrap().description.page;
    let json: Value = serde_json::from_str(&committed(&format!("{name}.json"))).unwrap();
    let report = report::<E>(paper, study, &json);
    assert_eq!(page::markdown(&report), committed(&format!("{name}.md")), "{name}");
    assert_eq!(page::json(&report), json, "{name}");
    for drawn in &report.figures {
        let file = format!("{name}-{}.svg", drawn.name);
        assert_eq!(figure::svg(&report, drawn), committed(&file), "{file}");
    }
}

#[test]
fn exgrpo() {
    for study in [None, Some("rates"), Some("stress"), Some("stress-rates")] {
        regenerates::<ExGrpo>("exgrpo", study);
    }
}

#[test]
fn faithrl() {
    regenerates::<FaithRl>("faithrl", None);
}

#[test]
fn stable_diffcoder() {
    regenerates::<StableDiffCoder>("stable-diffcoder", None);
}
