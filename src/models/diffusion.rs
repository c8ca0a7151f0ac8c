//! How a decoder fills masked blocks, as its `config.json` says it.

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::kernels::attention::Mask;

/// The block of a config that names a mask token and no block: Stable-DiffCoder's and SDAR's.
const USUAL_BLOCK: usize = 4;

/// How a decoder fills masked blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diffusion {
    /// The id that stands for a token to be predicted; it is never predicted itself.
    pub mask_id: i32,
    /// Tokens of a block; the whole context for models that see everything at once (LLaDA).
    pub block: usize,
    /// Position i − 1 predicts token i.
    pub shift: bool,
}

impl Diffusion {
    /// Blocks of the usual 4 tokens, no shift.
    pub fn new(mask_id: i32) -> Diffusion {
        Diffusion { mask_id, block: USUAL_BLOCK, shift: false }
    }

    /// What a `config.json` says: `mask_token_id`, `block_size` (`usual_block` or 4) and `logit_shift` (false).
    pub(super) fn from_config(
        fields: &Fields<'_>,
        usual_block: Option<usize>,
    ) -> Result<Option<Diffusion>> {
        let usual_block = usual_block.unwrap_or(USUAL_BLOCK);
        let block = fields.optional_size("block_size")?.unwrap_or(usual_block);
        let shift = fields.flag("logit_shift")?.unwrap_or(false);
        let Some(id) = fields.number("mask_token_id")? else { return Ok(None) };
        let diffusion = Diffusion { mask_id: id as i32, block, shift };
        if f64::from(diffusion.mask_id) != id {
            return Err(Error::format(format!("config.json: mask_token_id is {id}")));
        }
        diffusion.check(fields.size("vocab_size")?)?;
        Ok(Some(diffusion))
    }

    /// # Errors
    /// [`Error::is_index`] for a mask id outside the vocabulary, [`Error::is_invalid`] for blocks of 0 tokens.
    pub(super) fn check(&self, vocab: usize) -> Result<()> {
        if self.block == 0 {
            return Err(Error::invalid("block diffusion: blocks of 0 tokens"));
        }
        match usize::try_from(self.mask_id) {
            Ok(id) if id < vocab => Ok(()),
            _ => Err(Error::index(format!(
                "block diffusion: mask id {} is outside the vocabulary of {vocab}",
                self.mask_id
            ))),
        }
    }

    /// The mask under which a document or its beginning is read block by block.
    pub fn mask(&self) -> Mask {
        Mask::BlockCausal { block: self.block }
    }
}
