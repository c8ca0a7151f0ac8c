//! What a step of a big model will cost, in a line before the run: memory from the sizes, time from a first forward pass.

use super::settings::Settings;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::nn::Parameter;
use crate::rl::episode::Scored;
use crate::rl::policy::Policy;
use crate::rl::sampling::Distribution;
use crate::tensor::autograd::no_grad;
use std::time::Instant;

/// Parameters from which on a line is worth it.
const BIG: usize = 50_000_000;

/// Tokens of the pass that is timed, at most.
const TIMED: usize = 256;

/// The line; `None` for a small model. `prompt` is the first one of the run.
///
/// # Errors
/// As [`Policy::score`].
pub(super) fn line(
    policy: &dyn Policy,
    prompt: &[i32],
    settings: &Settings,
) -> Result<Option<String>> {
    let parameters = policy.parameters();
    let elements = parameters.elements();
    let Some((first, rest)) = prompt.split_first().filter(|_| elements >= BIG) else {
        return Ok(None);
    };
    let weights: usize =
        parameters.iter().map(|one| one.value().len() * one.value().dtype().size()).sum();
    // A gradient and two moments in f32 each, and weights in f32 beside those of another type.
    let of_one = |one: &Parameter| {
        let own = if one.value().dtype() == DType::F32 { 12 } else { 16 };
        one.value().len() * own
    };
    let optimizer: usize = parameters.iter().filter(|one| !one.is_frozen()).map(of_one).sum();
    let most = settings.rollout.prompts * settings.rollout.group;
    let tokens = most * settings.rollout.max_new_tokens;

    let timed: Vec<i32> = rest.iter().copied().chain([*first]).cycle().take(TIMED).collect();
    let room = policy.context().saturating_sub(1).clamp(1, TIMED);
    let completion = &timed[..room];
    let started = Instant::now();
    let scored = [Scored::new(std::slice::from_ref(first), completion)];
    let scores = no_grad(|| policy.score(&scored, &Distribution::default()))?;
    // A device has finished when something of it is read.
    scores.logprob.to_device(&Device::Cpu)?;
    let per_token = started.elapsed().as_secs_f64() / (room + 1) as f64;
    // Forward, and backward of twice the work.
    let update = 3.0 * per_token * (tokens + most * prompt.len()) as f64;
    Ok(Some(format!(
        "{} M parameters: {} of weights, {} of gradients and optimizer. A step draws {most} completions of up to {} tokens; its \
         update takes up to {} (from a pass of {room} tokens, {:.0} tokens/s)",
        elements / 1_000_000,
        size(weights),
        size(optimizer),
        settings.rollout.max_new_tokens,
        time(update * settings.update.epochs as f64),
        1.0 / per_token
    )))
}

fn size(bytes: usize) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

fn time(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}
