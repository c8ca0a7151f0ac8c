//! Stages: what happens to a batch between its rewards and its loss, as a list that is checked before a run and executed
//! in every step.
//!
//! Each [`Stage`] says which [`Column`]s it reads and which it gives. [`check`] folds the list, so an advantage without its
//! critic or an objective without its replay cannot start; [`run`] executes the very same list. A stage of your own goes in
//! anywhere.

pub mod advantage;
pub mod correction;
pub mod credit;
pub mod logprobs;
pub mod resample;
pub mod reward;
pub mod token_reward;

use super::batch::{Batch, Column};
use super::policy::Policy;
use super::value_head::ValueHead;
use crate::error::{Error, Result};
use crate::tensor::Gradients;
use std::collections::BTreeMap;
use std::path::Path;

/// What a stage may look at beside the batch.
pub struct Step<'a> {
    /// The policy, before the step's first update.
    pub policy: &'a dyn Policy,
    /// The seed of the run.
    pub seed: u64,
    /// The number of the step, from 1.
    pub number: u64,
    /// Tokens that are run through a model at once.
    pub micro_batch_tokens: usize,
    /// What is measured, by the name it has in `metrics.jsonl`.
    pub metrics: &'a mut BTreeMap<String, f64>,
}

impl Step<'_> {
    /// Notes a measurement.
    pub fn note(&mut self, name: &str, value: f64) {
        self.metrics.insert(name.to_owned(), value);
    }
}

/// A part of the way from rewards to the loss.
pub trait Stage: Send {
    /// Its name in messages: the key of its settings.
    fn name(&self) -> String;

    /// The columns that it reads.
    fn needs(&self) -> Vec<Column>;

    /// The columns that are there after it.
    fn gives(&self) -> Vec<Column>;

    /// Does its work.
    ///
    /// # Errors
    /// Whatever it reports; the message gets the name of the stage.
    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()>;

    /// Learns from the batch when the policy has been updated: a critic, a reward model, a coefficient that follows.
    ///
    /// # Errors
    /// Whatever it reports.
    fn learn(&mut self, _batch: &Batch, _step: &mut Step<'_>) -> Result<()> {
        Ok(())
    }

    /// A value head that is trained in the policy's own backward pass.
    fn joined_head(&self) -> Option<&ValueHead> {
        None
    }

    /// Updates what [`Stage::joined_head`] gave, from the gradients of the policy's backward pass.
    ///
    /// # Errors
    /// Whatever the optimizer reports.
    fn joined_step(&mut self, _gradients: &Gradients) -> Result<()> {
        Ok(())
    }

    /// True where the policy is to stay as it is in step `reinforced` of the phase, counted from 1: a critic warms up.
    fn withholds_policy(&self, _reinforced: u64) -> bool {
        false
    }

    /// Called once, when the phase of reinforcement begins, with the policy as it is then.
    ///
    /// # Errors
    /// Whatever it reports.
    fn begin(&mut self, _policy: &dyn Policy) -> Result<()> {
        Ok(())
    }

    /// Writes what a resumed run needs into the folder of a checkpoint.
    ///
    /// # Errors
    /// [`Error::is_io`].
    fn save(&self, _folder: &Path) -> Result<()> {
        Ok(())
    }

    /// Reads what [`Stage::save`] wrote, instead of [`Stage::begin`].
    ///
    /// # Errors
    /// What is wrong with the files.
    fn load(&mut self, _folder: &Path, _policy: &dyn Policy) -> Result<()> {
        Ok(())
    }
}

/// Who gives a column, for a message about one that is missing.
fn giver(column: Column) -> &'static str {
    match column {
        Column::NamedRewards | Column::Reward => "a verifier gives it",
        Column::Label => {
            "a verifier that labels outcomes gives it (task.verifier, a command with `label = true` among them)"
        }
        Column::Verdicts => {
            "a verifier that judges steps gives it (task.verifier, a command with `steps`, or the two-hop task)"
        }
        Column::GreedyReward => "rollout.greedy = true gives it",
        Column::SamplerLogprob | Column::OldLogprob => "sampling gives it",
        Column::ReferenceLogprob => "a reference policy gives it (reference)",
        Column::SumSquares => "a policy that writes from left to right gives it",
        Column::TokenReward => "the rewards of tokens give it (reward)",
        Column::ProcessReward => "process_reward gives it",
        Column::Value | Column::Return => "a critic gives it (critic, with advantage = \"gae\")",
        Column::Advantage => "advantage gives it",
        Column::OffPolicy => "replay gives it (replay)",
        Column::Weight => "correction gives it",
    }
}

/// Checks that every stage finds its columns: `given` at first, then what the stages before it give, and after all of them
/// what the objective reads.
///
/// # Errors
/// [`Error::is_invalid`] naming the stage, the column and who could give it.
pub fn check(stages: &[Box<dyn Stage>], given: &[Column], objective: &[Column]) -> Result<()> {
    let mut have: Vec<Column> = given.to_vec();
    let lacks = |have: &[Column], name: &str, needs: &[Column]| match needs
        .iter()
        .find(|column| !have.contains(column))
    {
        None => Ok(()),
        Some(column) => Err(Error::invalid(format!(
            "{name} needs the column `{column}`, which nothing before it gives; {}",
            giver(*column)
        ))),
    };
    for stage in stages {
        lacks(&have, &stage.name(), &stage.needs())?;
        have.extend(stage.gives());
    }
    lacks(&have, "objective", objective)
}

/// Runs the stages in order.
///
/// # Errors
/// What a stage reports, with its name.
pub fn run(stages: &mut [Box<dyn Stage>], batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
    for stage in stages {
        let name = stage.name();
        stage.run(batch, step).map_err(|error| error.at(name))?;
    }
    Ok(())
}

/// Writes a small state of a stage as JSON.
fn write_state(path: &Path, state: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_vec(state)
        .map_err(|e| Error::invalid(format!("the state of a stage is not JSON: {e}")))?;
    crate::files::atomic::write_file(path, &text)
}

/// Reads what [`write_state`] wrote.
fn read_state<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path)
        .map_err(|e| Error::io(format_args!("reading {}", path.display()), e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::format(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str, Vec<Column>, Vec<Column>);

    impl Stage for Named {
        fn name(&self) -> String {
            self.0.to_owned()
        }
        fn needs(&self) -> Vec<Column> {
            self.1.clone()
        }
        fn gives(&self) -> Vec<Column> {
            self.2.clone()
        }
        fn run(&mut self, _: &mut Batch, _: &mut Step<'_>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_missing_column_is_named_with_its_reader_and_its_giver() {
        let gae = || Named("advantage", vec![Column::Value], vec![Column::Advantage]);
        let error = check(&[Box::new(gae())], &[], &[]).unwrap_err().to_string();
        for part in ["advantage", "value", "critic"] {
            assert!(error.contains(part), "{error}");
        }
        let critic = Named("critic", vec![], vec![Column::Value]);
        check(&[Box::new(critic), Box::new(gae())], &[], &[Column::Advantage]).unwrap();
        let critic = Named("critic", vec![], vec![Column::Value]);
        assert!(check(&[Box::new(gae()), Box::new(critic)], &[], &[]).is_err(), "too late");
        let error = check(&[], &[], &[Column::OffPolicy]).unwrap_err().to_string();
        assert!(error.contains("objective") && error.contains("replay"), "{error}");
    }
}
