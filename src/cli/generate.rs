//! `gradstone generate`.

use super::block_generation::BlockArgs;
use super::source::ModelArgs;
use super::{ComputeArgs, Failure, terminal};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::sample::Truncation;
use crate::rl::filling::Decoding;
use crate::rl::generate::{rollouts, stream};
use crate::rl::sampling::Sampling;
use crate::rng::Stream;
use crate::text::Tokenizer;
use crate::train::open;
use std::io::{IsTerminal, Read};

#[derive(Debug, clap::Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to complete; without it, each line of standard input
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Divides the logits; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_negative_numbers = true)]
    temperature: f32,
    /// The longest completion, tokens
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_tokens: usize,
    /// The seed of every random draw
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    blocks: BlockArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl GenerateArgs {
    fn prompts(&self) -> Result<Vec<String>, Failure> {
        if let Some(prompt) = &self.prompt {
            return Ok(vec![prompt.clone()]);
        }
        let mut stdin = std::io::stdin().lock();
        if stdin.is_terminal() {
            return Err(Failure::usage(Error::invalid(
                "generate: no prompt\ngive one with --prompt, or lines on standard input",
            )));
        }
        let mut text = String::new();
        stdin
            .read_to_string(&mut text)
            .map_err(|e| Error::io("reading prompts from standard input", e))?;
        Ok(text.lines().map(String::from).collect())
    }
}

pub(super) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        let temperature = args.temperature;
        return Err(Failure::usage(Error::invalid(format!(
            "--temperature {temperature}: a number from 0 up"
        ))));
    }
    let device = args.compute.apply()?;
    let prompts = args.prompts()?;
    complete(args, &device, &prompts)
}

/// Completes prompts side by side; a single one is printed as it is drawn, several line by line when they are done.
fn complete(args: &GenerateArgs, device: &Device, prompts: &[String]) -> Result<(), Failure> {
    let (mut model, tokenizer) = open::folder(&args.model.folder()?, None, &Device::Cpu)?;
    model.move_to(device)?;
    let ids =
        prompts.iter().map(|prompt| tokenizer.encode_prompt(prompt)).collect::<Result<Vec<_>>>()?;
    if args.blocks.fills_blocks(&mut model, &tokenizer)? {
        let stop = open::stop_ids(&model, &tokenizer);
        let decoding = Decoding {
            temperature: args.temperature,
            seed: args.seed,
            ..args.blocks.decoding(args.max_tokens, stop)
        };
        return args.blocks.complete(&model, &tokenizer, &ids, &decoding);
    }
    let sampling = Sampling {
        temperature: args.temperature,
        truncation: Truncation::default(),
        max_new_tokens: args.max_tokens,
        stop: open::stop_ids(&model, &tokenizer),
        banned: Vec::new(),
        seed: args.seed,
        stream: Stream::Generate,
        first_sequence: 0,
    };
    if let [prompt] = ids.as_slice() {
        let mut printer =
            Printer { tokenizer: &tokenizer, ids: Vec::new(), printed: 0, failed: None };
        stream(&model, std::slice::from_ref(prompt), 1, &sampling, &mut |_, id| printer.push(id))?;
        return Ok(printer.end()?);
    }
    for completion in rollouts(&model, &ids, 1, &sampling)? {
        terminal::print(&format!("{}\n", tokenizer.decode(&completion.tokens)?))?;
    }
    Ok(())
}

/// Prints a completion while it is drawn.
struct Printer<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<i32>,
    /// Bytes of the decoded text that are printed.
    printed: usize,
    failed: Option<Error>,
}

impl Printer<'_> {
    fn push(&mut self, id: i32) {
        self.ids.push(id);
        // A character of several tokens decodes to U+FFFD until its last one is there.
        let text = self.tokenizer.decode(&self.ids).unwrap_or_default();
        if !text.ends_with('\u{fffd}') {
            self.print(&text);
        }
    }

    fn print(&mut self, text: &str) {
        if let (None, Some(new)) = (&self.failed, text.get(self.printed..)) {
            self.failed = terminal::print(new).err();
            self.printed = text.len();
        }
    }

    fn end(mut self) -> Result<()> {
        let text = self.tokenizer.decode(&self.ids)?;
        self.print(&(text + "\n"));
        self.failed.map_or(Ok(()), Err)
    }
}
