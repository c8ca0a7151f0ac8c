//! Models and worlds from settings: what a run begins with, or what it goes on from.

use super::checkpoint::Checkpoint;
use super::codec::Codec;
use super::reinforce::Reinforcement;
use super::settings::{ModelSettings, Settings};
use super::text_codec::TextCodec;
use super::world::World;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::models::{Causal, Decoder, DecoderConfig, Gpt, GptConfig, read_json};
use crate::rl::filling_policy::{Filling, FillingPolicy};
use crate::rl::policy::Policy;
use crate::tasks::environment::OneShot;
use crate::tasks::{Environment, Language, Prompting, Task, Template};
use crate::text::Tokenizer;
use std::path::Path;

/// A model folder: the decoder and a tokenizer that fits it.
///
/// # Errors
/// As [`Decoder::load`] and [`Tokenizer::load`]; [`Error::is_invalid`] when the tokenizer has ids beyond the model's
/// vocabulary.
pub fn folder(path: &Path, dtype: Option<DType>, device: &Device) -> Result<(Decoder, Tokenizer)> {
    let decoder = Decoder::load_on(path, dtype, device)?;
    let tokenizer = Tokenizer::load(path)?.fitted(decoder.config().vocab_size);
    Ok((decoder, tokenizer.map_err(|e| e.at(path.display()))?))
}

/// A line about the fields of a folder's `config.json` that its class does not read, where there are some.
///
/// # Errors
/// As [`read_json`] and [`DecoderConfig::from_json`].
pub fn passed_over(path: &Path) -> Result<Vec<String>> {
    let config = DecoderConfig::from_json(read_json(&path.join("config.json"))?)?;
    let names = config.ignored.join(", ");
    let family = config.architecture.model_type;
    Ok(match config.ignored.is_empty() {
        true => Vec::new(),
        false => vec![format!(
            "config.json: {names}: not read by the class of {family} models, so they change nothing"
        )],
    })
}

/// The ids that end a completion: the tokenizer's, whose first a trainer appends, and the model's.
pub fn stop_ids(model: &Decoder, tokenizer: &Tokenizer) -> Vec<i32> {
    let mut ids: Vec<i32> = tokenizer.eos().to_vec();
    for id in &model.config().eos {
        if !ids.contains(id) {
            ids.push(*id);
        }
    }
    ids
}

/// The element type that a setting names.
pub(super) fn element_type(name: &str) -> Result<DType> {
    name.parse().map_err(|e: Error| e.at("model.dtype"))
}

/// What to load a model's weights as, where the settings say so.
pub(super) fn dtype(settings: &ModelSettings) -> Result<Option<DType>> {
    match settings {
        ModelSettings::Small { dtype, .. } => element_type(dtype).map(Some),
        ModelSettings::Folder { dtype, .. } => dtype.as_deref().map(element_type).transpose(),
        ModelSettings::Ids { .. } => Ok(None),
    }
}

/// A model of the settings that is to read and write what a task is made of.
struct Opened {
    policy: Box<dyn Policy>,
    codec: Codec,
    stop: Vec<i32>,
}

fn of_decoder(
    mut model: Decoder,
    tokenizer: Tokenizer,
    prompting: &Prompting,
    settings: &Settings,
    device: &Device,
) -> Result<Opened> {
    model.set_checkpointed(settings.update.recompute);
    model.move_to(device)?;
    let stop = stop_ids(&model, &tokenizer);
    let policy: Box<dyn Policy> = match (model.config().diffusion, settings.rollout.filling) {
        (Some(_), filling) => {
            let filling = filling.unwrap_or_default();
            Box::new(FillingPolicy::new(model, filling, settings.seed)?)
        }
        (None, None) => Box::new(model),
        (None, Some(Filling { .. })) => {
            return Err(Error::invalid(
                "rollout.filling is for models that fill masked blocks, and this model's config names no mask token",
            ));
        }
    };
    let date = match &settings.model {
        ModelSettings::Folder { date, .. } => date.as_deref(),
        _ => None,
    };
    let codec =
        TextCodec::new(tokenizer, prompting, date).map_err(|e| e.at("task.format.template"))?;
    Ok(Opened { policy, codec: Codec::Text(Box::new(codec)), stop })
}

/// A new policy, as the settings describe it.
fn new_policy(
    settings: &Settings,
    task: &dyn Task,
    alphabet: &str,
    device: &Device,
) -> Result<Opened> {
    let prompting = settings.task.source.prompting();
    match (&settings.model, task.language()) {
        (
            ModelSettings::Small { architecture, hidden_size, layers, heads, context, dtype },
            Language::Characters(own),
        ) => {
            let all: String =
                own.chars().chain(alphabet.chars().filter(|c| !own.contains(*c))).collect();
            let tokenizer = Tokenizer::characters(&all)?;
            let mut config = DecoderConfig::small(
                architecture,
                tokenizer.vocab_size(),
                *hidden_size,
                *layers,
                *heads,
                *context,
            )?;
            config.set_eos(tokenizer.eos());
            let model = Decoder::random(config, element_type(dtype)?, settings.seed)?;
            of_decoder(model, tokenizer, &prompting, settings, device)
        }
        (ModelSettings::Ids { width, layers, heads, ngram }, Language::Ids(ids)) => {
            let config = GptConfig {
                vocab: ids.vocab,
                width: *width,
                layers: *layers,
                heads: *heads,
                context: ids.prompt + ids.response,
                ngram: *ngram,
            };
            if *device != Device::Cpu {
                return Err(Error::unsupported(
                    "model.kind = \"ids\" runs on the CPU: give --device cpu",
                ));
            }
            let codec = Codec::Ids(ids);
            let (policy, stop) = (Box::new(Gpt::random(config, settings.seed)?), codec.stop());
            Ok(Opened { policy, codec, stop })
        }
        (ModelSettings::Folder { path, .. }, Language::FreeText | Language::Characters(_)) => {
            let (model, tokenizer) = folder(path, dtype(&settings.model)?, &Device::Cpu)?;
            of_decoder(model, tokenizer, &prompting, settings, device)
        }
        (ModelSettings::Small { .. }, Language::FreeText) => Err(Error::invalid(format!(
            "task {} is free text: it needs a model folder with a tokenizer (--model DIR)",
            task.name()
        ))),
        (ModelSettings::Ids { .. }, _) => Err(Error::invalid(format!(
            "model.kind = \"ids\" is for tasks that are made of ids, and task {} is text",
            task.name()
        ))),
        (_, Language::Ids(_)) => Err(Error::invalid(format!(
            "task {} is made of ids: it needs model.kind = \"ids\"",
            task.name()
        ))),
    }
}

/// The policy that a checkpoint holds: nothing is built that is thrown away.
fn loaded_policy(
    settings: &Settings,
    task: &dyn Task,
    folder: &Path,
    device: &Device,
) -> Result<Opened> {
    if let Language::Ids(ids) = task.language() {
        let (policy, codec) = (Box::new(Gpt::load_on(folder, None, device)?), Codec::Ids(ids));
        let stop = codec.stop();
        return Ok(Opened { policy, codec, stop });
    }
    let model = Decoder::load_on(folder, dtype(&settings.model)?, device)?;
    let tokenizer = Tokenizer::load(folder)?.fitted(model.config().vocab_size)?;
    of_decoder(model, tokenizer, &resumed_prompting(settings), settings, device)
}

/// How prompts are put to the model of a checkpoint, which has the template with which it was trained among its files.
pub fn resumed_prompting(settings: &Settings) -> Prompting {
    let mut prompting = settings.task.source.prompting();
    if let Template::File(_) = prompting.template {
        prompting.template = Template::Chat;
    }
    prompting
}

impl Reinforcement {
    /// The run of some settings at its beginning, or as it was when a checkpoint was written.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings that make no sense, and what loading the model and the data reports.
    pub fn open(
        settings: Settings,
        checkpoint: Option<&Checkpoint>,
        device: &Device,
    ) -> Result<Reinforcement> {
        settings.check()?;
        let Surroundings { settings, world, policy, notices } =
            Surroundings::open(settings, checkpoint.map(|one| &*one.path), device)?;
        let run = match checkpoint {
            None => Reinforcement::new(settings, world, policy),
            Some(checkpoint) => Reinforcement::resumed(settings, world, policy, checkpoint),
        };
        Ok(run?.with_opening_notices(notices))
    }
}

/// A policy in its world, with the settings that both were opened with.
pub struct Surroundings {
    /// The settings with what was found in place of what they left open.
    pub settings: Settings,
    /// What the policy works on; problems that it cannot work on are left out or refused.
    pub world: World,
    /// The policy.
    pub policy: Box<dyn Policy>,
    /// What the user should know: what was guessed, what was left out.
    pub notices: Vec<String>,
}

impl Surroundings {
    /// Opens the task of some settings and the model that they name, or the one in the folder of a checkpoint.
    ///
    /// # Errors
    /// What loading the model and the data reports; [`Error::is_format`] naming where the problems stand that cannot be
    /// worked on: a prompt that does not fit the context, an answer that nothing equals.
    pub fn open(
        mut settings: Settings,
        checkpoint: Option<&Path>,
        device: &Device,
    ) -> Result<Surroundings> {
        let mut parts = settings.task.open(settings.seed)?;
        let opened = match checkpoint {
            None => new_policy(&settings, &*parts.task, parts.environment.alphabet(), device)?,
            Some(folder) => loaded_policy(&settings, &*parts.task, folder, device)?,
        };
        let Opened { policy, codec, stop } = opened;
        let mut notices = parts.notices;
        notices.extend(parts.task.inspect(&|problem| {
            parts.verifier.unanswerable(problem).or_else(|| {
                let prompt = codec.prompt(&parts.environment.begin(problem));
                prompt.map_or_else(|e| Some(e.to_string()), |ids| unreadable(&ids, &*policy))
            })
        })?);
        settings.task = parts.settings;
        let world = World {
            replies: parts.environment.name() != OneShot.name(),
            task: parts.task,
            environment: parts.environment,
            verifier: parts.verifier,
            codec,
            stop,
        };
        Ok(Surroundings { settings, world, policy, notices })
    }
}

/// Why a policy cannot go on from a prompt.
fn unreadable(ids: &[i32], policy: &dyn Policy) -> Option<String> {
    let (context, vocab) = (policy.context(), policy.vocab());
    if ids.len() >= context {
        let count = ids.len();
        return Some(format!(
            "the prompt has {count} tokens, which leaves no room in the model's context of {context}"
        ));
    }
    if ids.is_empty() {
        return Some("the prompt has no tokens".to_owned());
    }
    let outside = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab));
    outside
        .map(|id| format!("token {id} of the prompt is outside the model's vocabulary of {vocab}"))
}
