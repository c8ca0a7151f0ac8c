//! The arms: on-policy, replay in several forms, and the learning rate of each.

use super::settings::Replaying;
use super::training::Method;
use crate::recipes::reproduction::Arm;
use crate::rl::replay::BucketLaw;

/// One arm without its learning rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub name: &'static str,
    pub about: &'static str,
    /// 0: one right answer a question; 1: several.
    pub start: usize,
    pub retire: bool,
    pub replaying: Option<Replaying>,
    /// The best of [`RATES`] on seeds 11 to 13: `docs/reproductions/exgrpo-rates.md`.
    pub rate: f64,
}

/// The learning rates that are tried for every arm.
pub(super) const RATES: [f64; 4] = [1e-3, 2e-3, 4e-3, 8e-3];

/// The gain with which a replayed token at ratio 1 has the gradient of a fresh one: `(1 + β)² / β`, β 0.1.
const BALANCED: f32 = 12.1;

const RELEASED: Replaying = Replaying {
    law: BucketLaw::Normal { center: None, deviation: 1.0 },
    lowest_entropy: true,
    gain: Some(1.0),
    starts_at: 0.06,
    clipped: false,
};

const RESCALED: Replaying =
    Replaying { law: BucketLaw::Uniform {}, gain: Some(BALANCED), ..RELEASED };

pub(super) const ON_POLICY: &str = "on-policy";
pub(super) const RETIREMENT: &str = "on-policy+retire";
pub(super) const RANDOM: &str = "random replay";
pub(super) const CODE: &str = "ExGRPO released";
pub(super) const SCALED: &str = "ExGRPO re-scaled";
pub(super) const NO_SHAPE: &str = "- shaping";
pub(super) const NO_ENTROPY: &str = "- entropy";
pub(super) const NO_DELAY: &str = "- delay";
pub(super) const NO_RETIREMENT: &str = "- retirement";
pub(super) const BUCKETS: &str = "+ buckets";
pub(super) const SPELLED_ON_POLICY: &str = "2 spell.: on-policy";
pub(super) const SPELLED: &str = "2 spell.: re-scaled";
pub(super) const SPELLED_NO_ENTROPY: &str = "2 spell.: - entropy";

const PLAIN: Rule =
    Rule { name: "", about: "", start: 0, retire: true, replaying: Some(RESCALED), rate: 4e-3 };

/// In the order of the tables.
pub(super) const RULES: [Rule; 13] = [
    Rule {
        name: ON_POLICY,
        about: "Dr.GRPO on fresh rollouts",
        retire: false,
        replaying: None,
        ..PLAIN
    },
    Rule {
        name: RETIREMENT,
        about: "the same, but questions solved by a whole group are not asked again",
        replaying: None,
        ..PLAIN
    },
    Rule {
        name: RANDOM,
        about: "control: any question of the pool, any of its trajectories, the plain ratio, from the beginning",
        replaying: Some(Replaying {
            lowest_entropy: false,
            gain: None,
            starts_at: -1.0,
            ..RESCALED
        }),
        rate: 2e-3,
        ..PLAIN
    },
    Rule {
        name: CODE,
        about: "the released code's constants: buckets by a normal density of deviation 1 around half a group, shaping \
                w/(w + 0.1) with gain 1, trajectory of lowest entropy under the current policy, delayed start",
        replaying: Some(RELEASED),
        ..PLAIN
    },
    Rule {
        name: SCALED,
        about: "the same with flat buckets and gain 12.1 = (1 + 0.1)²/0.1, with which a replayed token at ratio 1 has the \
                gradient of a fresh one. Not the released ExGRPO",
        ..PLAIN
    },
    Rule {
        name: NO_SHAPE,
        about: "re-scaled, with the plain ratio in place of its shaping",
        replaying: Some(Replaying { gain: None, ..RESCALED }),
        ..PLAIN
    },
    Rule {
        name: NO_ENTROPY,
        about: "re-scaled, with any of a question's trajectories (here a question has one, so this shows the noise of a \
                difference)",
        replaying: Some(Replaying { lowest_entropy: false, ..RESCALED }),
        ..PLAIN
    },
    Rule {
        name: NO_DELAY,
        about: "re-scaled, with replay from the beginning",
        replaying: Some(Replaying { starts_at: -1.0, ..RESCALED }),
        ..PLAIN
    },
    Rule {
        name: NO_RETIREMENT,
        about: "re-scaled, with solved questions asked and replayed on",
        retire: false,
        ..PLAIN
    },
    Rule {
        name: BUCKETS,
        about: "re-scaled, with the released code's buckets",
        replaying: Some(Replaying { law: RELEASED.law, ..RESCALED }),
        ..PLAIN
    },
    Rule {
        name: SPELLED_ON_POLICY,
        about: "on-policy, where every state has two tokens and a question has several right answers",
        start: 1,
        retire: false,
        replaying: None,
        ..PLAIN
    },
    Rule { name: SPELLED, about: "re-scaled, on the same questions", start: 1, ..PLAIN },
    Rule {
        name: SPELLED_NO_ENTROPY,
        about: "re-scaled, on the same questions, with any of a question's trajectories",
        start: 1,
        replaying: Some(Replaying { lowest_entropy: false, ..RESCALED }),
        ..PLAIN
    },
];

/// The arms of the stress setting.
pub(super) const STRESSED: [&str; 5] = [ON_POLICY, RANDOM, CODE, SCALED, NO_SHAPE];
/// Its learning rate: the lowest of [`STRESS_RATES`] at which an on-policy run collapsed on seeds 11 to 13.
pub(super) const STRESS_RATE: f64 = 4e-3;
/// The rates among which it was looked for.
pub(super) const STRESS_RATES: [f64; 4] = [1.4e-3, 2e-3, 2.8e-3, 4e-3];

/// An arm that runs.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub arm: Arm,
    pub method: Method,
}

impl Rule {
    /// An arm for each rate.
    pub(super) fn at_each(&self, rates: &[f64]) -> Vec<Running> {
        rates.iter().map(|rate| self.at(*rate, format!("{} {rate:e}", self.name))).collect()
    }

    pub(super) fn at(&self, rate: f64, name: String) -> Running {
        Running {
            arm: Arm {
                name,
                about: format!("{}; learning rate {rate}", self.about),
                start: self.start,
            },
            method: Method { learning_rate: rate, retire: self.retire, replaying: self.replaying },
        }
    }
}
