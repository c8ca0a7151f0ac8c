//! The ids of entities, relations and marks, and the law by which entities are tails.

use crate::rng::Sequence;
use crate::tasks::task::Ids;

/// Entities are the ids `0..ENTITIES`; the first [`POPULAR`] of them are tails more often.
pub const ENTITIES: i32 = 16;
/// Entities that half of all tails are.
pub const POPULAR: i32 = 2;
/// Relations are the ids `ENTITIES..ENTITIES + RELATIONS`.
pub const RELATIONS: i32 = 4;
/// In place of a relation: worn off, and the fact is less likely than not the one that is asked for.
pub const FAINT: i32 = 20;
/// In place of a relation: worn off, but the fact is probably the one that is asked for.
pub const SMUDGED: i32 = 21;
/// The number of the first step; the others follow.
pub const FIRST_STEP: i32 = 22;
/// Most steps of a response.
pub const STEPS: usize = 3;
/// Begins the answer.
pub const ANSWER: i32 = 25;
/// The answer "I do not know".
pub const REFUSAL: i32 = 26;
/// Begins the question.
pub const QUESTION: i32 = 27;
/// Begins the prompt.
pub const BEGIN: i32 = 28;
/// Ends the response.
pub const END: i32 = 29;
/// How many ids there are.
pub const VOCAB: usize = 30;
/// Facts of a prompt.
pub const FACTS: usize = 6;
/// Ids of a prompt.
pub const PROMPT: usize = 1 + 3 * FACTS + 4;
/// Ids of the longest response.
pub const RESPONSE: usize = 4 * STEPS + 3;

/// The ids as a trainer wants to know them.
pub const IDS: Ids =
    Ids { vocab: VOCAB, end: END, banned: None, prompt: PROMPT, response: RESPONSE };

/// True for an entity.
pub(super) fn is_entity(id: i32) -> bool {
    (0..ENTITIES).contains(&id)
}

/// True for a relation that is not worn off.
pub(super) fn is_relation(id: i32) -> bool {
    (ENTITIES..ENTITIES + RELATIONS).contains(&id)
}

/// A tail by the law that facts follow: one of the popular half of the time.
pub(super) fn tail(draws: &mut Sequence) -> i32 {
    if draws.next_unit() < 0.5 {
        draws.below(POPULAR as u32) as i32
    } else {
        POPULAR + draws.below((ENTITIES - POPULAR) as u32) as i32
    }
}
