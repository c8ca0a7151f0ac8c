//! What Rust adds to a `paper.toml`: how a start is made, how an arm runs, and by which settings.

use crate::error::Result;
use serde::de::DeserializeOwned;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::{Table, Value};

/// The arms of a paper, as programs.
pub trait Experiment: 'static {
    /// The text of `paper.toml`.
    const PAPER: &'static str;
    /// Where that file is, for messages.
    const FILE: &'static str;
    /// The metrics that a run gives, named and ordered as in the paper.
    const METRICS: &'static [&'static str];
    /// The curves that a run may give.
    const CURVES: &'static [&'static str];

    /// The settings of the recipe.
    type Settings: Clone + Serialize + DeserializeOwned + Send + Sync;
    /// What only the reproduction reads, in a table `reproduction` beside the settings of the recipe.
    type Own: Clone + Default + Serialize + DeserializeOwned + Send + Sync;
    /// What arms go on from: made once per seed and shared by the arms of that seed.
    type Start: Send + Sync;

    /// The settings that the paper's tables change.
    fn defaults() -> Self::Settings;

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::Error::is_invalid) naming the key.
    fn check(settings: &ArmSettings<Self::Settings, Self::Own>) -> Result<()>;

    /// Makes the starts of a seed, one for each of the given settings and in their order.
    ///
    /// # Errors
    /// Whatever training reports.
    fn prepare(
        starts: &[ArmSettings<Self::Settings, Self::Own>],
        seed: u64,
    ) -> Result<Vec<Self::Start>>;

    /// Runs one arm with one seed. A function of its arguments alone.
    ///
    /// # Errors
    /// Whatever training reports.
    fn run(
        settings: &ArmSettings<Self::Settings, Self::Own>,
        seed: u64,
        start: &Self::Start,
    ) -> Result<Outcome>;
}

/// What one run of one arm gave.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// A value for each of the metrics, in their order. NaN: does not apply; infinite: never reached.
    pub metrics: Vec<f64>,
    /// Curves for the figures.
    pub curves: Vec<Curve>,
    /// Samples without a reward, because the verifier panicked or returned NaN.
    pub unscored: u64,
}

/// Values of something over the course of a run: `(position, value)`, positions rising.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Its name.
    pub name: &'static str,
    /// The values.
    pub points: Vec<(f64, f64)>,
}

/// For a reproduction without settings of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// The settings of an arm or a start. In TOML they are the keys of the recipe, and a table [`OWN`] beside them where
/// the reproduction has settings of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ArmSettings<S, M> {
    /// Those of the recipe.
    pub recipe: S,
    /// Those that only the reproduction reads.
    pub own: M,
}

/// The key of the settings that only a reproduction reads.
pub const OWN: &str = "reproduction";

impl<S: Serialize, M: Serialize> Serialize for ArmSettings<S, M> {
    fn serialize<W: Serializer>(&self, serializer: W) -> Result<W::Ok, W::Error> {
        let table = |result: Result<Table, toml::ser::Error>| result.map_err(W::Error::custom);
        let mut all = table(Table::try_from(&self.recipe))?;
        let own = table(Table::try_from(&self.own))?;
        if !own.is_empty() {
            all.insert(OWN.to_owned(), Value::Table(own));
        }
        all.serialize(serializer)
    }
}

impl<'de, S: DeserializeOwned, M: Default + DeserializeOwned> Deserialize<'de>
    for ArmSettings<S, M>
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let custom = <D::Error as serde::de::Error>::custom::<toml::de::Error>;
        let mut all = Table::deserialize(deserializer)?;
        let own = match all.remove(OWN) {
            Some(own) => Table::from_iter([(OWN.to_owned(), own)]),
            None => Table::new(),
        };
        /// Named like the key, so that an error names it too.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, bound = "M: Default + DeserializeOwned")]
        struct Own<M> {
            #[serde(default)]
            reproduction: M,
        }
        let recipe = Value::Table(all).try_into().map_err(custom)?;
        let Own { reproduction: own } = Value::Table(own).try_into().map_err(custom)?;
        Ok(ArmSettings { recipe, own })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::config;

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Recipe {
        steps: u64,
        noise: Noise,
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Noise {
        level: f64,
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Own {
        rows: usize,
    }

    #[test]
    fn own_settings_stand_beside_those_of_the_recipe() {
        let defaults = ArmSettings::<Recipe, Own>::default();
        let with = |text: &str| config::layered(&defaults, &[], &[text.to_owned()]);
        assert_eq!(with("reproduction.rows=3").unwrap().own.rows, 3);
        let changed = with("noise.level=0.5").unwrap();
        assert_eq!((changed.recipe.noise.level, changed.own.rows), (0.5, 0));
        for (wrong, says) in [
            ("steps_=1", "unknown key `steps_`; did you mean `steps`?"),
            ("noise.levle=1", "unknown key `noise.levle`; did you mean `noise.level`?"),
            (
                "reproduction.row=1",
                "unknown key `reproduction.row`; did you mean `reproduction.rows`?",
            ),
            (
                "reproduction.rows=true",
                "--set reproduction.rows=true: invalid type: boolean `true`",
            ),
        ] {
            let error = with(wrong).unwrap_err().to_string();
            assert!(error.contains(says), "{error}\n{says}");
        }
        let plain = ArmSettings::<Recipe, Nothing>::default();
        assert!(!config::table(&plain).unwrap().contains_key(OWN));
        assert!(config::layered(&plain, &[], &["reproduction.rows=1".into()]).is_err());
    }
}
