//! The arms: which reward, which credit of steps, which labels.

use crate::kernels::step_credit::{Labelling, StepCredit};
use crate::recipes::reproduction::Arm;

/// The reward of an outcome, its baseline still to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reward {
    /// 1 for a correct answer.
    Binary,
    /// 1, 0, -1.
    Ternary,
    /// By the measured baseline.
    Geometric,
}

/// One arm.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub name: &'static str,
    pub about: &'static str,
    /// 0: the main task; 1: the task with a precise baseline.
    pub setting: usize,
    pub reward: Reward,
    /// Advantages are divided by their group's standard deviation (GRPO); otherwise only the mean is taken off.
    pub scaled: bool,
    /// What the verdicts on steps do to advantages.
    pub credit: Option<StepCredit>,
    pub labelling: Labelling,
    /// The trainer is told which prompts miss a fact: there a refusal is the correct answer and nothing else is.
    pub flagged: bool,
}

const PLAIN: Rule = Rule {
    name: "",
    about: "",
    setting: 0,
    reward: Reward::Binary,
    scaled: true,
    credit: None,
    labelling: Labelling::Verdict,
    flagged: false,
};

const fn modulated(alpha: f32, alpha_failed: Option<f32>) -> Option<StepCredit> {
    Some(StepCredit::Modulate { alpha, alpha_failed })
}

pub(super) const GRPO: &str = "GRPO";
pub(super) const TERNARY: &str = "TruthRL";
pub(super) const GEOMETRIC: &str = "geometric";
pub(super) const FAITHFUL: &str = "FaithRL a=0";
pub(super) const FAITHFUL_075: &str = "FaithRL a=.75";
pub(super) const LITERAL: &str = "literal a=0";
pub(super) const PARTIAL: &str = "partial credit";
pub(super) const FLAGGED_GRPO: &str = "flagged GRPO";
pub(super) const FLAGGED: &str = "flagged FaithRL";
pub(super) const PRECISE_TERNARY: &str = "precise TruthRL";
pub(super) const PRECISE_GEOMETRIC: &str = "precise geom.";
pub(super) const SCALED_TERNARY: &str = "same, z: TruthRL";
pub(super) const SCALED_GEOMETRIC: &str = "same, z: geom.";

/// In the order of the tables.
pub(super) const RULES: [Rule; 13] = [
    Rule { name: GRPO, about: "reward 1 for a correct answer and 0 for everything else", ..PLAIN },
    Rule {
        name: TERNARY,
        about: "reward 1 correct, 0 refused, -1 hallucinated (TruthRL)",
        reward: Reward::Ternary,
        ..PLAIN
    },
    Rule {
        name: GEOMETRIC,
        about: "reward y0 correct, 0 refused, -x0 hallucinated, with the baseline's rates x0 and y0; no modulation",
        reward: Reward::Geometric,
        ..PLAIN
    },
    Rule {
        name: FAITHFUL,
        about: "FaithRL: the geometric reward, and advantages modulated by the verdict of each step with alpha 0; the \
                number that opens a step carries the step's verdict",
        reward: Reward::Geometric,
        credit: modulated(0.0, None),
        ..PLAIN
    },
    Rule {
        name: FAITHFUL_075,
        about: "the same with alpha 0.75, the released script's value",
        reward: Reward::Geometric,
        credit: modulated(0.75, None),
        ..PLAIN
    },
    Rule {
        name: LITERAL,
        about: "alpha 0 with the released code's labels: the number that opens a step always counts as supported",
        reward: Reward::Geometric,
        credit: modulated(0.0, None),
        labelling: Labelling::Literal,
        ..PLAIN
    },
    Rule {
        name: PARTIAL,
        about: "FaithRL with alpha 0, and in responses with a negative advantage supported steps get 0.25 of it with the \
                sign turned over: credit for valid partial derivations",
        reward: Reward::Geometric,
        credit: modulated(0.0, Some(-0.25)),
        ..PLAIN
    },
    Rule {
        name: FLAGGED_GRPO,
        about: "negative control: GRPO told which prompts miss a fact; there a refusal is rewarded and nothing else",
        flagged: true,
        ..PLAIN
    },
    Rule {
        name: FLAGGED,
        about: "negative control: FaithRL with alpha 0, told the same",
        reward: Reward::Geometric,
        credit: modulated(0.0, None),
        flagged: true,
        ..PLAIN
    },
    Rule {
        name: PRECISE_TERNARY,
        about: "the ternary reward on the task with a precise baseline; advantages are rewards minus their group's mean",
        setting: 1,
        reward: Reward::Ternary,
        scaled: false,
        ..PLAIN
    },
    Rule {
        name: PRECISE_GEOMETRIC,
        about: "the geometric reward, likewise",
        setting: 1,
        reward: Reward::Geometric,
        scaled: false,
        ..PLAIN
    },
    Rule {
        name: SCALED_TERNARY,
        about: "the ternary reward on the same task with GRPO's advantages, divided by the group's deviation",
        setting: 1,
        reward: Reward::Ternary,
        ..PLAIN
    },
    Rule {
        name: SCALED_GEOMETRIC,
        about: "the geometric reward, likewise",
        setting: 1,
        reward: Reward::Geometric,
        ..PLAIN
    },
];

pub(super) fn arms() -> Vec<Arm> {
    let arm =
        |rule: &Rule| Arm { name: rule.name.to_owned(), about: rule.about.to_owned(), start: 0 };
    RULES.iter().map(arm).collect()
}
