//! Losses of preferences against what TRL's own functions compute (`tests/preference-data/make.py`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::rl::preference::kto::Labelled;
use gradstone::rl::preference::{Completion, Cpo, Dpo, Gradient, Kto, Orpo, Pair, Totals};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Case {
    kind: String,
    settings: Value,
    policy: Vec<Vec<f64>>,
    #[serde(default)]
    reference: Vec<Vec<f64>>,
    #[serde(default)]
    log_sum_squares: Vec<Vec<f64>>,
    #[serde(default)]
    label: Vec<bool>,
    #[serde(default)]
    mismatched: Vec<f64>,
    loss: f64,
    gradient: Vec<Vec<f64>>,
    reward_chosen: Option<f64>,
    reward_rejected: Option<f64>,
}

impl Case {
    fn settings<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_value(self.settings.clone()).unwrap()
    }

    /// The pair of a number and the length of its shorter completion.
    fn shared(&self, completion: usize) -> usize {
        let pairs = self.policy.len() / 2;
        let of = |side: usize| self.policy[side * pairs + completion % pairs].len();
        of(0).min(of(1))
    }

    fn completion(&self, i: usize, ld_alpha: f64) -> Completion {
        let shared = if self.kind == "kto" { usize::MAX } else { self.shared(i) };
        let reference = self.reference.get(i).map_or(&[][..], Vec::as_slice);
        let mut completion = Completion::new(&self.policy[i], reference, shared, ld_alpha);
        if self.settings["use_weighting"] == true {
            let tokens = self.policy[i].iter().zip(&self.log_sum_squares[i]);
            let sum: f64 = tokens.map(|(logprob, squares)| logprob - squares).sum();
            completion.weight = (sum / self.policy[i].len() as f64).exp();
        }
        completion
    }

    fn pairs(&self, ld_alpha: f64) -> Vec<Pair> {
        let count = self.policy.len() / 2;
        let of = |i| self.completion(i, ld_alpha);
        (0..count).map(|i| Pair { chosen: of(i), rejected: of(count + i) }).collect()
    }
}

#[test]
fn losses_and_gradients_are_trls() {
    let text = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/preference-data/losses.json"
    ));
    let cases: Vec<Case> = serde_json::from_str(&text.unwrap()).unwrap();
    assert!(cases.len() > 70);
    for case in &cases {
        let mut ld_alpha = 1.0;
        let (loss, gradients, rewards): (f64, Vec<Gradient>, _) = if case.kind == "kto" {
            let kto: Kto = case.settings();
            kto.check().unwrap();
            let all: Vec<Labelled> = (0..case.policy.len())
                .map(|i| Labelled { completion: case.completion(i, 1.0), label: case.label[i] })
                .collect();
            let done = kto.measure(&all, Kto::kl(&case.mismatched), all.len());
            (done.loss, done.gradients, None)
        } else {
            ld_alpha = case.settings["ld_alpha"].as_f64().unwrap_or(1.0);
            let pairs = case.pairs(ld_alpha);
            let totals = Totals::of(&pairs);
            let done = match case.kind.as_str() {
                "dpo" => {
                    let dpo: Dpo = case.settings();
                    dpo.check().unwrap();
                    dpo.measure(&pairs, totals)
                }
                "cpo" => case.settings::<Cpo>().measure(&pairs, totals),
                _ => case.settings::<Orpo>().measure(&pairs, totals),
            };
            let side = |side: usize| done.gradients.iter().map(move |pair| pair[side]);
            let mean = |side: usize| {
                done.rewards.iter().map(|pair| pair[side]).sum::<f64>() / pairs.len() as f64
            };
            (done.loss, side(0).chain(side(1)).collect(), Some([mean(0), mean(1)]))
        };
        // TRL has α-divergence, ORPO and the smoothing of EXO in f32.
        let single = case.kind == "orpo"
            || case.settings["f_divergence_type"] == "alpha_divergence"
            || case.settings["loss_type"][0] == "exo_pair";
        let tolerance = if single { 2e-6 } else { 1e-12 };
        let near = |ours: f64, theirs: f64, what: &str| {
            let close = (ours - theirs).abs() <= tolerance * theirs.abs().max(1.0);
            assert!(close, "{} {}: {what} {ours}, TRL {theirs}", case.kind, case.settings);
        };
        near(loss, case.loss, "loss");
        for (i, gradient) in gradients.into_iter().enumerate() {
            let shared = if case.kind == "kto" { usize::MAX } else { case.shared(i) };
            let tokens = gradient.by_token(case.policy[i].len(), shared, ld_alpha);
            for (ours, theirs) in tokens.zip(&case.gradient[i]) {
                near(ours, *theirs, "gradient");
            }
        }
        if let Some(rewards) = rewards {
            near(rewards[0], case.reward_chosen.unwrap(), "chosen reward");
            near(rewards[1], case.reward_rejected.unwrap(), "rejected reward");
        }
    }
}
