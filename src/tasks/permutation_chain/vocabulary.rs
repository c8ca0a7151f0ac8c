//! The ids of states, transpositions and marks, and prompts made of them.

use super::question::{LEVELS, OPERATIONS, Question, STATES};
use crate::tasks::task::Ids;

/// Ids of a prompt: a state, the transpositions padded to five, the level.
pub const PROMPT: usize = 1 + LEVELS + 1;
/// Ids of the longest response.
pub const RESPONSE: usize = LEVELS + 1;

/// The ids of a task, which depend on how many spellings a state has: the states in every spelling, the transpositions, the
/// levels, the end mark, the padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Ids that mean the same state, at least one.
    pub spellings: usize,
}

impl Vocabulary {
    fn states(self) -> usize {
        STATES * self.spellings
    }

    /// How many ids there are.
    pub fn size(self) -> usize {
        self.states() + OPERATIONS + LEVELS + 2
    }

    /// Ends a response.
    pub fn end(self) -> i32 {
        self.size() as i32 - 2
    }

    /// Stands for no transposition in a prompt, and nowhere else.
    pub fn padding(self) -> i32 {
        self.size() as i32 - 1
    }

    /// The ids as a trainer wants to know them.
    pub fn ids(self) -> Ids {
        Ids {
            vocab: self.size(),
            end: self.end(),
            banned: Some(self.padding()),
            prompt: PROMPT,
            response: RESPONSE,
        }
    }

    /// A state in one of its spellings.
    pub fn spelled(self, state: usize, spelling: usize) -> i32 {
        (state + STATES * spelling) as i32
    }

    /// The state that an id means; `None` for an id that is no state.
    pub fn state(self, id: i32) -> Option<usize> {
        usize::try_from(id).ok().filter(|id| *id < self.states()).map(|id| id % STATES)
    }

    /// The prompt of a question.
    pub fn prompt(self, question: &Question) -> Vec<i32> {
        let first_operation = self.states() as i32;
        let mut ids = vec![question.start as i32];
        ids.extend(question.operations.iter().map(|op| first_operation + *op as i32));
        ids.resize(1 + LEVELS, self.padding());
        ids.push(first_operation + (OPERATIONS + question.operations.len()) as i32 - 1);
        ids
    }

    /// The question of a prompt; `None` for ids that [`Vocabulary::prompt`] never makes.
    pub fn question(self, prompt: &[i32]) -> Option<Question> {
        let [start, middle @ .., _level] = prompt else { return None };
        let start = usize::try_from(*start).ok().filter(|start| *start < STATES)?;
        let operation = |id: &i32| {
            let operation = usize::try_from(*id).ok()?.checked_sub(self.states())?;
            (operation < OPERATIONS).then_some(operation)
        };
        let operations = middle.iter().map_while(operation).collect();
        let question = Question { start, operations };
        (self.prompt(&question) == prompt).then_some(question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_says_its_question() {
        let vocabulary = Vocabulary { spellings: 2 };
        let question = Question { start: 0, operations: vec![0, 5] };
        let prompt = vocabulary.prompt(&question);
        let padding = vocabulary.padding();
        assert_eq!((vocabulary.size(), prompt.len()), (61, PROMPT));
        assert_eq!(prompt, [0, 48, 53, padding, padding, padding, 55]);
        assert_eq!(vocabulary.question(&prompt), Some(question));
        let longest = Question { start: 23, operations: vec![1; LEVELS] };
        assert_eq!(vocabulary.question(&vocabulary.prompt(&longest)), Some(longest));
        for wrong in [
            &[][..],
            &[0],
            &[0, 48, 53, padding, padding, padding, 56],
            &[0, 48, 53, padding, 48, padding, 55],
            &[24, 48, 53, padding, padding, padding, 55],
            &[-1, 48, 53, padding, padding, padding, 55],
            &[0, padding, padding, padding, padding, padding, 54],
        ] {
            assert_eq!(vocabulary.question(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_state_has_its_spellings() {
        let vocabulary = Vocabulary { spellings: 2 };
        assert_eq!([0, 24, 47].map(|id| vocabulary.state(id)), [Some(0), Some(0), Some(23)]);
        assert_eq!([-1, 48, vocabulary.end()].map(|id| vocabulary.state(id)), [None; 3]);
        assert_eq!((vocabulary.spelled(23, 0), vocabulary.spelled(23, 1)), (23, 47));
    }
}
