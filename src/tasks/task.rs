//! A task: a source of problems, of examples to imitate, and of the verifier that its answers are meant for.

use super::episode::Example;
use super::problem::Problem;
use super::verifier::Verifier;
use crate::error::Result;

/// A source of problems. Every method is a pure function of its arguments: a seed and an index are all the state.
pub trait Task: Send + Sync {
    /// What it is called in messages and reports.
    fn name(&self) -> &str;

    /// Training problem `index` of `seed`. Any index is valid; a finite task starts again in a new order after
    /// [`Task::size`] of them.
    fn problem(&self, seed: u64, index: u64) -> Problem;

    /// How many training problems there are, for a task that visits each once before any comes again. Their ids are then
    /// `0..size`. `None` for a task that draws its problems.
    fn size(&self) -> Option<u64> {
        None
    }

    /// The training problem of an id; `None` where no training problem has it. For every index,
    /// `by_id(seed, problem(seed, index).id) == Some(problem(seed, index))`: what is kept for later (replay) keeps the id.
    fn by_id(&self, seed: u64, id: u64) -> Option<Problem>;

    /// At most `count` distinct problems that [`Task::problem`] never returns, for any seed. Fewer when there are fewer.
    fn held_out(&self, seed: u64, count: usize) -> Vec<Problem>;

    /// Looks at every problem that was read from somewhere, before a run begins: `fault` says what is wrong with one. A task that
    /// makes its problems has nothing to look at. Gives lines for the user about what was left out.
    ///
    /// # Errors
    /// [`Error::is_format`](crate::Error::is_format) naming where problems with a fault stand, where they are not to be left out.
    fn inspect(
        &mut self,
        fault: &(dyn Fn(&Problem) -> Option<String> + Sync),
    ) -> Result<Vec<String>> {
        let _ = fault;
        Ok(Vec::new())
    }

    /// Example `index` of `seed` for supervised learning: a problem that is never held out and a response, which may be
    /// wrong on purpose. `None` for a task that has no examples.
    fn worked_example(&self, seed: u64, index: u64) -> Option<Example>;

    /// The verifier its answers are meant for.
    fn verifier(&self) -> Box<dyn Verifier>;

    /// What its prompts and answers are written in.
    fn language(&self) -> Language<'_>;
}

/// What prompts and answers are written in: it decides which tokenizer a new model needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language<'a> {
    /// Any text: the tokenizer is that of a model folder.
    FreeText,
    /// These characters and no others: a character tokenizer will do.
    Characters(&'a str),
    /// Ids, without text and without a tokenizer.
    Ids(Ids),
}

/// The ids of a task that is made of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Ids are `0..vocab`.
    pub vocab: usize,
    /// Ends a response and is part of it.
    pub end: i32,
    /// Never drawn in a response, where there is such an id.
    pub banned: Option<i32>,
    /// Ids of the longest prompt.
    pub prompt: usize,
    /// Ids of the longest right response, the end among them.
    pub response: usize,
}
