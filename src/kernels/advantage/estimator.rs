//! The estimators as data: which there are, their options, what each needs to know.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

/// Over what the standard deviation that scales an advantage is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// The response's own group.
    #[default]
    Group,
    /// All responses (group mean, batch deviation: LitePPO, TRL `scale_rewards="batch"`).
    Batch,
}

/// What a group with one scored response gets, whose deviation is undefined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Singleton {
    /// Advantage 0: with nothing to compare to there is nothing to learn.
    #[default]
    Zero,
    /// Mean 0 and deviation 1, so that the advantage is the reward (verl).
    Reward,
}

/// What CPGD's factor counts against the groups that have different rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counted {
    /// All groups: how much of the batch the filter left.
    #[default]
    Groups,
    /// All responses: what siiRL's code divides, so that with groups of three or more the factor is always the cap.
    Responses,
}

/// What a masked token (tool output, padding) gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Masked {
    /// 0.
    #[default]
    Zero,
    /// What it passes on from the tokens after it, whitened with the others: verl's GAE, whose loss masks it.
    Carried,
}

/// Where the tokens of a group's responses are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// At the same position of the response.
    #[default]
    Position,
    /// At the same number of live tokens: verl's form for turns with tool output between them.
    LiveToken,
}

/// Generalised advantage estimation, `A[t] = delta[t] + gamma lambda A[t + 1]` with `delta[t] = r[t] + gamma V[t + 1] -
/// V[t]`; a masked token passes on what comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gae {
    /// The discount.
    pub gamma: f64,
    /// The decay of what later values say.
    pub lambda: f64,
    /// VAPO's `alpha`: `lambda = 1 - 1 / (alpha length)`, at least 0, in place of `lambda`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_alpha: Option<f64>,
    /// The decay for the returns that values are trained on; `None`: that of the advantages. VAPO has 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critic_lambda: Option<f64>,
    /// Whiten the advantages over the live tokens of the batch, with 1e-8 added to the variance.
    pub whiten: bool,
    /// What masked tokens get.
    pub masked: Masked,
}

impl Default for Gae {
    fn default() -> Gae {
        Gae {
            gamma: 1.0,
            lambda: 1.0,
            length_alpha: None,
            critic_lambda: None,
            whiten: true,
            masked: Masked::Zero,
        }
    }
}

impl Gae {
    pub(super) fn check(&self) -> Result<()> {
        let Gae { gamma, lambda, length_alpha, critic_lambda, .. } = *self;
        for (name, value) in
            [("gamma", gamma), ("lambda", lambda), ("critic_lambda", critic_lambda.unwrap_or(0.0))]
        {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::invalid(format!(
                    "advantage: {name} is {value}; it must lie in 0..=1"
                )));
            }
        }
        match length_alpha {
            Some(alpha) if !(alpha > 0.0 && alpha.is_finite()) => Err(Error::invalid(format!(
                "advantage: length_alpha is {alpha}; it must be positive"
            ))),
            _ => Ok(()),
        }
    }
}

/// An estimator of the advantage `A` of a response with reward `R` in a group of `n` with mean `m` and deviation `s`
/// (unbiased: divided by `n - 1`), or of its tokens.
///
/// In settings it is a name ([`PRESETS`](super::PRESETS)) or a table whose `kind` is a variant in kebab-case.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Estimator {
    /// `A = (R - m) / (max(s, sqrt(variance_floor)) + epsilon)`; `s` of the group or of the batch.
    Grpo {
        /// Added to the deviation: 1e-6 in verl, 1e-4 in TRL.
        #[serde(default = "small")]
        epsilon: f64,
        /// Over what the deviation is taken.
        #[serde(default)]
        scale: Scale,
        /// What a group of one gets.
        #[serde(default)]
        singleton: Singleton,
        /// Smallest variance; verl's vectorised form uses 1e-6, everything else 0.
        #[serde(default)]
        variance_floor: f64,
        /// A group with a smaller variance has advantage 0 (FaithRL's filter); 0: none is left out.
        #[serde(default)]
        variance_threshold: f64,
    },
    /// `A = R - m`.
    DrGrpo {
        /// What a group of one gets.
        #[serde(default)]
        singleton: Singleton,
    },
    /// `A = n / (n - 1) (R - m)`: the reward minus the mean of the others.
    Rloo {
        /// What a group of one gets.
        #[serde(default)]
        singleton: Singleton,
    },
    /// The best response of a group has its distance to the second, over `s + epsilon` where `divide`; the others 0.
    PassK {
        /// Added to the deviation.
        #[serde(default = "small")]
        epsilon: f64,
        /// Divide by the group's deviation.
        #[serde(default = "yes")]
        divide: bool,
    },
    /// `A = R - Σ length R / Σ length`: the baseline of least variance when a response's gradient grows with its length.
    Opo {
        /// What a group of one gets.
        #[serde(default)]
        singleton: Singleton,
    },
    /// The return of every token, whitened over all tokens of the batch. With `gamma` 1 and rewards of outcomes it is one
    /// number a response, the reward whitened with every response counting as often as it has tokens.
    ReinforcePlusPlus {
        /// The discount; other than 1 needs token rewards.
        #[serde(default = "one")]
        gamma: f64,
        /// Added to the variance.
        #[serde(default = "tiny")]
        epsilon: f64,
    },
    /// `R - m`, whitened over all tokens of the batch: a long response weighs more.
    ReinforcePlusPlusBaseline {
        /// What a group of one gets before whitening.
        #[serde(default)]
        singleton: Singleton,
        /// Added to the variance.
        #[serde(default = "tiny")]
        epsilon: f64,
    },
    /// `A = R - R of the greedy response`.
    Remax {},
    /// `A = alpha (R - m) / f_norm` with `alpha = responses / max(1, responses whose reward is not 0)`.
    Gpg {
        /// A constant divisor.
        #[serde(default = "one")]
        f_norm: f64,
        /// What a group of one gets.
        #[serde(default)]
        singleton: Singleton,
    },
    /// CPGD's weights: `A = min(cap, counted / groups with different rewards) (R - m)`, so that a batch of which the filter
    /// left little still takes a step of full size.
    Cpgd {
        /// The largest factor.
        #[serde(default = "three")]
        cap: f64,
        /// What is counted.
        #[serde(default)]
        counted: Counted,
        /// What a group of one gets.
        #[serde(default)]
        singleton: Singleton,
    },
    /// GRPO and, among the correct responses of a group, `eta` times the z-score of being short. Our reading of
    /// SafeWork-R1's CALE, whose formula is not published.
    Cale {
        /// The weight of shortness.
        #[serde(default = "tenth")]
        eta: f64,
        /// A response with a larger reward is correct.
        #[serde(default = "half")]
        correct_above: f64,
        /// Added to the deviation of rewards.
        #[serde(default = "small")]
        epsilon: f64,
    },
    /// [`gae`](super::gae): needs the values of a critic.
    Gae(Gae),
    /// [`prime`](super::prime): the outcome against the others', and implicit process rewards.
    Prime {
        /// The discount of process rewards.
        #[serde(default = "one")]
        gamma: f64,
    },
    /// [`token_baseline`](super::token_baseline): a baseline for each position of a group, weighed by accumulated variance.
    OptimalTokenBaseline {
        /// Added to the sum of weights.
        #[serde(default = "tiny")]
        epsilon: f64,
        /// No baseline for what the longest response alone reaches.
        #[serde(default)]
        zero_tail: bool,
        /// Where tokens are compared.
        #[serde(default)]
        positions: Positions,
    },
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

fn three() -> f64 {
    3.0
}

fn half() -> f64 {
    0.5
}

fn tenth() -> f64 {
    0.1
}

fn small() -> f64 {
    1e-6
}

fn tiny() -> f64 {
    1e-8
}

/// What an estimator asks for beside rewards and groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The number of live tokens of every response.
    Lengths,
    /// The reward of a greedy response to every prompt.
    GreedyRewards,
    /// A reward for every token.
    TokenRewards,
    /// A critic's value of every token.
    Values,
    /// Log-probs of the tokens and the sums of squared probabilities at their places.
    Probabilities,
    /// An implicit process reward for every token.
    ProcessRewards,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Need::Lengths => "lengths",
            Need::GreedyRewards => "rewards of greedy responses",
            Need::TokenRewards => "token rewards",
            Need::Values => "values",
            Need::Probabilities => "log-probs and sums of squared probabilities",
            Need::ProcessRewards => "process rewards",
        })
    }
}

impl Default for Estimator {
    fn default() -> Estimator {
        Estimator::Grpo {
            epsilon: small(),
            scale: Scale::default(),
            singleton: Singleton::default(),
            variance_floor: 0.0,
            variance_threshold: 0.0,
        }
    }
}

impl Estimator {
    /// The `kind` that names it in settings.
    pub fn kind(&self) -> &'static str {
        match self {
            Estimator::Grpo { .. } => "grpo",
            Estimator::DrGrpo { .. } => "dr-grpo",
            Estimator::Rloo { .. } => "rloo",
            Estimator::PassK { .. } => "pass-k",
            Estimator::Opo { .. } => "opo",
            Estimator::ReinforcePlusPlus { .. } => "reinforce-plus-plus",
            Estimator::ReinforcePlusPlusBaseline { .. } => "reinforce-plus-plus-baseline",
            Estimator::Remax {} => "remax",
            Estimator::Gpg { .. } => "gpg",
            Estimator::Cpgd { .. } => "cpgd",
            Estimator::Cale { .. } => "cale",
            Estimator::Gae(_) => "gae",
            Estimator::Prime { .. } => "prime",
            Estimator::OptimalTokenBaseline { .. } => "optimal-token-baseline",
        }
    }

    /// What it asks for beside rewards and groups.
    pub fn needs(&self) -> &'static [Need] {
        match self {
            Estimator::Opo { .. }
            | Estimator::ReinforcePlusPlusBaseline { .. }
            | Estimator::Cale { .. } => &[Need::Lengths],
            Estimator::ReinforcePlusPlus { gamma, .. } if *gamma == 1.0 => &[Need::Lengths],
            Estimator::ReinforcePlusPlus { .. } => &[Need::TokenRewards],
            Estimator::Remax {} => &[Need::GreedyRewards],
            Estimator::Gae(_) => &[Need::Values, Need::TokenRewards],
            Estimator::Prime { .. } => &[Need::ProcessRewards],
            Estimator::OptimalTokenBaseline { .. } => &[Need::Probabilities, Need::TokenRewards],
            _ => &[],
        }
    }

    /// True where a response is compared with the others of its group, so that it has advantage 0 where there are none.
    pub fn compares_within_groups(&self) -> bool {
        match self {
            Estimator::Grpo { singleton, .. }
            | Estimator::DrGrpo { singleton }
            | Estimator::Rloo { singleton }
            | Estimator::Opo { singleton }
            | Estimator::ReinforcePlusPlusBaseline { singleton, .. }
            | Estimator::Gpg { singleton, .. }
            | Estimator::Cpgd { singleton, .. } => *singleton == Singleton::Zero,
            Estimator::PassK { .. } | Estimator::Cale { .. } => true,
            Estimator::ReinforcePlusPlus { .. }
            | Estimator::Remax {}
            | Estimator::Gae(_)
            | Estimator::Prime { .. }
            | Estimator::OptimalTokenBaseline { .. } => false,
        }
    }

    /// Checks the options, and that `who` has what the estimator needs.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for an option out of range, or naming the estimator, what it needs and who lacks it.
    pub fn check_available(&self, have: &[Need], who: &str) -> Result<()> {
        self.check()?;
        match self.needs().iter().find(|need| !have.contains(need)) {
            Some(need) => Err(Error::invalid(format!(
                "advantage: `{}` needs {need}, which {who} does not have",
                self.kind()
            ))),
            None => Ok(()),
        }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the one that is out of range.
    pub fn check(&self) -> Result<()> {
        let at_least = |least: f64, options: &[(&str, f64)]| match options
            .iter()
            .find(|(_, value)| !(value.is_finite() && *value >= least))
        {
            Some((name, value)) => Err(Error::invalid(format!(
                "advantage: {name} is {value}; it must be finite and at least {least}"
            ))),
            None => Ok(()),
        };
        match *self {
            Estimator::Grpo { epsilon, variance_floor, variance_threshold, .. } => at_least(
                0.0,
                &[
                    ("epsilon", epsilon),
                    ("variance_floor", variance_floor),
                    ("variance_threshold", variance_threshold),
                ],
            ),
            Estimator::PassK { epsilon, .. }
            | Estimator::ReinforcePlusPlusBaseline { epsilon, .. }
            | Estimator::OptimalTokenBaseline { epsilon, .. } => {
                at_least(0.0, &[("epsilon", epsilon)])
            }
            Estimator::ReinforcePlusPlus { gamma, epsilon } => {
                Gae { gamma, ..Gae::default() }.check()?;
                at_least(0.0, &[("epsilon", epsilon)])
            }
            Estimator::Gpg { f_norm, .. } => at_least(f64::MIN_POSITIVE, &[("f_norm", f_norm)]),
            Estimator::Cpgd { cap, .. } => at_least(0.0, &[("cap", cap)]),
            Estimator::Cale { eta, correct_above, epsilon } => {
                at_least(0.0, &[("eta", eta), ("epsilon", epsilon)])?;
                at_least(f64::MIN, &[("correct_above", correct_above)])
            }
            Estimator::Gae(gae) => gae.check(),
            Estimator::Prime { gamma } => Gae { gamma, ..Gae::default() }.check(),
            Estimator::DrGrpo { .. }
            | Estimator::Rloo { .. }
            | Estimator::Opo { .. }
            | Estimator::Remax {} => Ok(()),
        }
    }

    /// What a group of one gets.
    pub(super) fn singleton(&self) -> Singleton {
        match self {
            Estimator::Grpo { singleton, .. }
            | Estimator::DrGrpo { singleton }
            | Estimator::Rloo { singleton }
            | Estimator::Opo { singleton }
            | Estimator::ReinforcePlusPlusBaseline { singleton, .. }
            | Estimator::Gpg { singleton, .. }
            | Estimator::Cpgd { singleton, .. } => *singleton,
            _ => Singleton::Zero,
        }
    }
}

impl Serialize for Estimator {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Estimator::serialize(self, serializer)
    }
}
