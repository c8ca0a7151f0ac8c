//! Batches of documents: rows of running text, documents one by one, prompts with their answers.

use crate::error::{Error, Result};
use crate::rl::episode::Scored;
use crate::rng::{Sequence, Stream};

/// Whether the texts of a row see each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Everything in a row is one document, as in Stable-DiffCoder.
    #[default]
    Visible,
    /// Each text is a document of its own, as in SDAR.
    Separate,
}

/// Documents to be noised: whole blocks, each with a number that its noise follows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids `[T]`.
    pub ids: Vec<i32>,
    /// `[T]`, 0 where a token is never masked and has no loss; `None`: all may be masked.
    pub eligible: Option<Vec<u8>>,
    /// Offsets `[documents + 1]` from 0 to T.
    pub documents: Vec<usize>,
    /// A number a document. The same one gets the same noise: count on from step to step, and from epoch to epoch.
    pub numbers: Vec<u64>,
}

/// The end tokens after an answer.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The id that ends a text.
    pub id: i32,
    /// An answer is followed by 1 to so many of them, drawn by its number, so that the model learns to end at any place
    /// of a block (Stable-DiffCoder: 4). Then the block is filled with more of them.
    pub most: u32,
    /// The seed of the draw.
    pub seed: u64,
}

impl Batch {
    /// Rows of one length, each a document: running text, whatever it was cut from.
    ///
    /// # Errors
    /// [`Error::is_shape`] unless the tokens are whole rows and a row is whole blocks.
    pub fn rows(ids: Vec<i32>, length: usize, block: usize, first_number: u64) -> Result<Batch> {
        if length == 0 || !ids.len().is_multiple_of(length) || !length.is_multiple_of(block.max(1))
        {
            return Err(Error::shape(format!(
                "diffusion batch: {} tokens in rows of {length} in blocks of {block}",
                ids.len()
            )));
        }
        let rows = ids.len() / length;
        Ok(Batch {
            ids,
            eligible: None,
            documents: (0..=rows).map(|row| row * length).collect(),
            numbers: (0..rows as u64).map(|row| first_number + row).collect(),
        })
    }

    /// Prompts, never masked, with their answers and random end tokens, which are. A text that does not fill its last block
    /// is followed by more end tokens, masked like the others: that is what decoding meets there.
    ///
    /// Under [`Packing::Visible`] all of them are one document, in order; under [`Packing::Separate`] each is its own.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for blocks of 0 tokens, `most` 0, or a text longer than `context` in tokens.
    pub fn answers(
        examples: &[Scored<'_>],
        block: usize,
        ends: Ends,
        packing: Packing,
        context: usize,
        first_number: u64,
    ) -> Result<Batch> {
        if block == 0 || ends.most == 0 {
            return Err(Error::invalid(format!(
                "diffusion batch: blocks of {block} tokens, up to {} end tokens",
                ends.most
            )));
        }
        let mut batch = Batch { documents: vec![0], ..Batch::default() };
        let mut eligible = Vec::new();
        for (i, example) in examples.iter().enumerate() {
            let number = first_number + i as u64;
            let from = batch.ids.len();
            batch.ids.extend_from_slice(example.prompt);
            eligible.resize(batch.ids.len(), 0);
            batch.ids.extend_from_slice(example.completion);
            let mut draws = Sequence::new(ends.seed, Stream::Shuffle, number);
            let drawn = 1 + draws.below(ends.most) as usize;
            batch.ids.resize(batch.ids.len() + drawn, ends.id);
            let last = i + 1 == examples.len();
            if packing == Packing::Separate || last {
                let start = if packing == Packing::Separate { from } else { 0 };
                let length = (batch.ids.len() - start).div_ceil(block) * block;
                if length > context {
                    return Err(Error::invalid(format!(
                        "diffusion batch: text {i} makes a document of {length} tokens; the context is {context}"
                    )));
                }
                batch.ids.resize(start + length, ends.id);
                batch.documents.push(batch.ids.len());
                batch.numbers.push(if packing == Packing::Separate {
                    number
                } else {
                    first_number
                });
            }
            eligible.resize(batch.ids.len(), 1);
        }
        batch.eligible = Some(eligible);
        Ok(batch)
    }

    /// Tokens that may be masked.
    pub fn eligible_tokens(&self) -> usize {
        match &self.eligible {
            Some(eligible) => eligible.iter().filter(|e| **e != 0).count(),
            None => self.ids.len(),
        }
    }

    /// # Errors
    /// [`Error::is_shape`] when the lengths do not fit.
    pub(super) fn check(&self) -> Result<()> {
        let (tokens, count) = (self.ids.len(), self.numbers.len());
        let bounds = (self.documents.first(), self.documents.last());
        if bounds != (Some(&0), Some(&tokens))
            || !self.documents.is_sorted()
            || self.documents.len() != count + 1
            || self.eligible.as_ref().is_some_and(|eligible| eligible.len() != tokens)
        {
            return Err(Error::shape(format!(
                "diffusion batch: {tokens} tokens, {count} numbers, documents {:?}, eligible {:?}",
                self.documents,
                self.eligible.as_ref().map(Vec::len)
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_in_end_tokens_and_prompts_are_left_alone() {
        let (prompt, answer) = ([7, 8, 9], [5, 6, 5, 6, 5]);
        let examples = [Scored::new(&prompt, &answer); 40];
        let ends = Ends { id: 2, most: 4, seed: 1 };
        let batch = Batch::answers(&examples, 4, ends, Packing::Separate, 32, 10).unwrap();
        assert_eq!((batch.documents.len(), batch.numbers[39]), (41, 49));
        let eligible = batch.eligible.as_ref().unwrap();
        let mut lengths = [0; 17];
        for bounds in batch.documents.windows(2) {
            let text = &batch.ids[bounds[0]..bounds[1]];
            assert!(text.len().is_multiple_of(4) && text[..8] == [7, 8, 9, 5, 6, 5, 6, 5]);
            assert!(text[8..].iter().all(|id| *id == 2));
            assert_eq!(eligible[bounds[0]..bounds[0] + 4], [0, 0, 0, 1]);
            lengths[text.len()] += 1;
        }
        // One to four after eight tokens: always one more block.
        assert_eq!(lengths[12], 40);
        let visible = Batch::answers(&examples[..2], 4, ends, Packing::Visible, 64, 10).unwrap();
        assert_eq!(visible.documents.len(), 2);
        assert!(visible.ids.len() >= 18 && visible.ids.len().is_multiple_of(4));
        let long = Batch::answers(&examples, 4, ends, Packing::Separate, 8, 10).unwrap_err();
        assert!(long.is_invalid() && long.to_string().contains("context is 8"), "{long}");
        assert!(Batch::rows(vec![0; 10], 5, 4, 0).unwrap_err().is_shape());
        assert!(Batch::rows(vec![0; 10], 4, 4, 0).unwrap_err().is_shape());
        assert!(Batch::answers(&[], 4, ends, Packing::Separate, 8, 0).unwrap().ids.is_empty());
    }
}
