//! `gradstone generate` with a model that fills masked blocks: the rules, the text as blocks are done, and the blocks
//! filling in on a terminal.

use super::completion::{Done, Growing};
use super::{Failure, terminal};
use crate::error::{Error, Result};
use crate::models::{Decoder, Diffusion};
use crate::rl::block_decoding::{fill, fill_watched};
use crate::rl::filling::{Decoding, Pass};
use crate::rl::unmasking::{Confidence, Selection};
use crate::text::Tokenizer;
use clap::ValueEnum;
use std::io::IsTerminal;

/// What stands for a masked token.
const MASKED: char = '░';
/// Keeps where the cursor is; goes back there and clears what follows (DEC's, which every terminal knows).
const SAVE: &str = "\x1b7";
const BACK: &str = "\x1b8\x1b[J";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ranked {
    /// By the probability of the token
    Probability,
    /// By the distance to the second likeliest
    Margin,
    /// By entropy
    Entropy,
    /// In random order
    Random,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Block diffusion (models with a mask token)")]
pub(super) struct BlockArgs {
    /// Fill every place whose confidence is above P, at least one a pass
    #[arg(long, value_name = "P", group = "rule")]
    threshold: Option<f32>,
    /// Fill as many places as 1 - F/(n+1) allows
    #[arg(long, value_name = "F", group = "rule")]
    factor: Option<f32>,
    /// Fill places whose entropies add up to less than H nats
    #[arg(long, value_name = "H", group = "rule")]
    entropy_bound: Option<f32>,
    /// Passes a block; by default one for each of its tokens
    #[arg(long, value_name = "N", group = "rule")]
    passes: Option<usize>,
    /// Fill from left to right instead of the surest first
    #[arg(long, conflicts_with_all = ["threshold", "factor", "entropy_bound"])]
    sequential: bool,
    /// What places are ranked by
    #[arg(long, value_enum, default_value = "probability", value_name = "HOW")]
    rank: Ranked,
    /// Classifier-free guidance: how far logits are led away from those without the prompt
    #[arg(long, default_value_t = 0.0, value_name = "S")]
    guidance: f32,
    /// Fill a long block N places at a time from the left (models that see everything at once)
    #[arg(long, value_name = "N")]
    sub_block: Option<usize>,
    /// Tokens of a block, where the model's config does not say
    #[arg(long, value_name = "N")]
    block: Option<usize>,
    /// The mask's id, where neither the model's config nor the tokenizer names one (Stable-DiffCoder: 5)
    #[arg(long, value_name = "ID")]
    mask_id: Option<i32>,
    /// Predict the next token all the same
    #[arg(long, conflicts_with_all = ["mask_id", "block", "watch"])]
    next_token: bool,
    /// Show the blocks filling in, on a terminal
    #[arg(long)]
    watch: bool,
}

impl BlockArgs {
    /// True when blocks are to be filled: the model says so, or the options do. Tells the model what it needs.
    pub fn fills_blocks(&self, model: &mut Decoder, tokenizer: &Tokenizer) -> Result<bool> {
        if self.next_token {
            return Ok(false);
        }
        let own = model.config().diffusion;
        let asked = self.mask_id.is_some() || self.block.is_some();
        if own.is_none() && !asked {
            return Ok(false);
        }
        let mask_id = self.mask_id.or(own.map(|own| own.mask_id)).or(tokenizer.mask());
        let Some(mask_id) = mask_id else {
            return Err(Error::invalid(
                "neither the model's config nor its tokenizer names a mask token\nsay which id it is with --mask-id",
            ));
        };
        let usual = own.unwrap_or(Diffusion::new(mask_id));
        let block = self.block.unwrap_or(usual.block);
        model.config_mut().set_diffusion(Diffusion { mask_id, block, ..usual })?;
        Ok(true)
    }

    /// How blocks are filled.
    pub fn decoding(&self, max_new_tokens: usize, stop: Vec<i32>) -> Decoding {
        let steps = self.passes.unwrap_or(usize::MAX);
        let selection = match (self.threshold, self.factor, self.entropy_bound) {
            (Some(threshold), ..) => Selection::Threshold { threshold },
            (_, Some(factor), _) => Selection::Factor { factor },
            (.., Some(bound)) => Selection::Entropy { bound },
            _ if self.sequential => Selection::Sequential { steps },
            _ => Selection::Static { steps },
        };
        Decoding {
            selection,
            confidence: match self.rank {
                Ranked::Probability => Confidence::Probability,
                Ranked::Margin => Confidence::Margin,
                Ranked::Entropy => Confidence::NegativeEntropy,
                Ranked::Random => Confidence::Random,
            },
            guidance: self.guidance,
            sub_block: self.sub_block,
            ..Decoding::greedy(max_new_tokens, stop)
        }
    }

    /// Completes prompts, of which `ids` are the ids: a single one is printed block by block, several line by line when they are
    /// done, and as JSON where it is asked for.
    pub fn complete(
        &self,
        model: &Decoder,
        tokenizer: &Tokenizer,
        prompts: &[String],
        ids: &[Vec<i32>],
        decoding: &Decoding,
        json: bool,
    ) -> Result<(), Failure> {
        let mask_id = model.diffusion()?.mask_id;
        let filled = if let ([_], false) = (ids, json) {
            let mut screen = Screen {
                tokenizer,
                decoding,
                mask_id,
                watched: self.watch && std::io::stdout().is_terminal(),
                growing: Growing::new(tokenizer),
                failed: None,
            };
            if screen.watched {
                terminal::print(SAVE)?;
            }
            let filled = fill_watched(model, ids, 1, decoding, &mut |pass| screen.show(pass))?;
            screen.end()?;
            filled
        } else {
            let filled = fill(model, ids, 1, decoding)?;
            for (i, one) in filled.iter().enumerate() {
                let (prompt, prompt_ids) = (prompts[i].as_str(), ids[i].as_slice());
                let done = Done { prompt, prompt_ids, ids: &one.tokens, truncated: one.truncated };
                done.print(tokenizer, json)?;
            }
            filled
        };
        let passes: usize = filled.iter().map(|one| one.passes).sum();
        let tokens: usize =
            filled.iter().map(|one| one.tokens.len() + one.order.dropped.len()).sum();
        if passes > 0 {
            let each = tokens as f64 / passes as f64;
            terminal::note(&format!("{tokens} tokens set in {passes} passes, {each:.2} a pass"));
        }
        Ok(())
    }
}

/// The text as it grows.
struct Screen<'a> {
    tokenizer: &'a Tokenizer,
    decoding: &'a Decoding,
    mask_id: i32,
    watched: bool,
    /// What is printed for good.
    growing: Growing<'a>,
    failed: Option<Error>,
}

impl Screen<'_> {
    fn show(&mut self, pass: Pass<'_>) {
        if self.failed.is_some() {
            return;
        }
        let shown = if pass.full { self.finished(pass) } else { self.filling(pass) };
        self.failed = shown.err();
    }

    /// A block is done: its text stays.
    fn finished(&mut self, pass: Pass<'_>) -> Result<()> {
        let most = pass.tokens.len().min(self.decoding.max_new_tokens);
        let stop = pass.tokens.iter().position(|id| self.decoding.stop.contains(id));
        let kept = &pass.tokens[..stop.map_or(most, |at| (at + 1).min(most))];
        let mut fresh = String::new();
        for id in &kept[self.growing.len().min(kept.len())..] {
            fresh += &self.growing.push(*id);
        }
        let (back, save) = if self.watched { (BACK, SAVE) } else { ("", "") };
        terminal::print(&format!("{back}{fresh}{save}"))
    }

    /// The block as it is, where its text will stay.
    fn filling(&self, pass: Pass<'_>) -> Result<()> {
        if !self.watched {
            return Ok(());
        }
        let mut text = String::new();
        for id in &pass.tokens[pass.block..] {
            match *id == self.mask_id {
                true => text.push(MASKED),
                false => text += &self.tokenizer.decode(&[*id])?.replace('\n', "⏎"),
            }
        }
        terminal::print(&format!("{BACK}{text}"))
    }

    fn end(self) -> Result<()> {
        self.failed.map_or(Ok(()), Err)?;
        terminal::print(&self.growing.end()?)
    }
}
