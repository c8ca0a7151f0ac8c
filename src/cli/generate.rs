//! `gradstone generate`.

use super::block_generation::BlockArgs;
use super::completion::{Done, Growing};
use super::source::ModelArgs;
use super::{ComputeArgs, Failure, terminal};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::sample::Truncation;
use crate::rl::filling::Decoding;
use crate::rl::generate::{rollouts, stream};
use crate::rl::sampling::Sampling;
use crate::rng::Stream;
use crate::tasks::{Part, Prompting, Template};
use crate::train::kind::RunSettings;
use crate::train::open;
use crate::train::text_codec::TextCodec;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to complete; without it, each line of standard input
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Give the model the text as it is, not as a turn of its chat template
    #[arg(long)]
    raw: bool,
    /// What the system says before the prompt, where the model has a chat template
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "raw")]
    system: Option<String>,
    /// Print each completion as one JSON object on a line, when it is done
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Divides the logits; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_negative_numbers = true)]
    temperature: f32,
    /// Draw only from the K likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Draw only from the fewest likely tokens whose probabilities reach P
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw only tokens that are at least P times as likely as the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
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
    /// The folder with the weights and the tokenizer, and how a prompt is put to the model: as in the run that trained it.
    fn source(&self) -> Result<(PathBuf, Prompting)> {
        let mut prompting = match &self.model.run {
            None => Prompting::default(),
            Some(run) => match RunSettings::of_run(run)? {
                RunSettings::Reinforcement(settings) => open::resumed_prompting(&settings),
                RunSettings::Offline(settings) => settings.data.resumed_prompting(),
                // It learned from running text.
                RunSettings::Diffusion(_) => {
                    Prompting { template: Template::Plain, ..Prompting::default() }
                }
            },
        };
        if self.raw {
            prompting = Prompting { template: Template::Plain, ..Prompting::default() };
        }
        if let Some(system) = &self.system {
            prompting.system.clone_from(system);
        }
        Ok((self.model.folder()?, prompting))
    }

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
    let (folder, prompting) = args.source()?;
    if args.compute.verbose {
        open::passed_over(&folder)?.iter().for_each(|line| terminal::note(line));
    }
    let (mut model, tokenizer) = open::folder(&folder, None, &Device::Cpu)?;
    let codec = TextCodec::new(tokenizer, &prompting, None).map_err(|e| e.at(folder.display()))?;
    let tokenizer = codec.tokenizer();
    model.move_to(device)?;
    let ids = prompts
        .iter()
        .map(|prompt| codec.prompt(&[Part::Text(prompt.clone())]))
        .collect::<Result<Vec<_>>>()?;
    if args.blocks.fills_blocks(&mut model, tokenizer)? {
        let stop = open::stop_ids(&model, tokenizer);
        let decoding = Decoding {
            temperature: args.temperature,
            seed: args.seed,
            ..args.blocks.decoding(args.max_tokens, stop)
        };
        return args.blocks.complete(&model, tokenizer, prompts, &ids, &decoding, args.json);
    }
    let sampling = Sampling {
        temperature: args.temperature,
        truncation: Truncation { top_k: args.top_k, top_p: args.top_p, min_p: args.min_p },
        max_new_tokens: args.max_tokens,
        stop: open::stop_ids(&model, tokenizer),
        banned: Vec::new(),
        seed: args.seed,
        stream: Stream::Generate,
        first_sequence: 0,
        activity: Default::default(),
    };
    if let ([prompt], false) = (ids.as_slice(), args.json) {
        let mut growing = Growing::new(tokenizer);
        let mut printed = Ok(());
        stream(&model, std::slice::from_ref(prompt), 1, &sampling, &mut |_, id| {
            let text = growing.push(id);
            if printed.is_ok() && !text.is_empty() {
                printed = terminal::print(&text);
            }
        })?;
        printed?;
        return Ok(terminal::print(&growing.end()?)?);
    }
    for (i, one) in rollouts(&model, &ids, 1, &sampling)?.iter().enumerate() {
        let (prompt, prompt_ids) = (prompts[i].as_str(), ids[i].as_slice());
        let done = Done { prompt, prompt_ids, ids: &one.tokens, truncated: one.truncated };
        done.print(tokenizer, args.json)?;
    }
    Ok(())
}
