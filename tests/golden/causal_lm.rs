//! Whole decoders from published config and weights: hidden states, logits, loss, gradients, greedy ids.
//!
//! Padding is not run through the model: a row becomes the packed sequence of its unmasked tokens, and positions come
//! from the case (or count the unmasked tokens). The model is saved, loaded again and must still be the same.

use crate::case::{Array, Case, Outcome};
use gradstone::models::Packed;
use gradstone::models::{Decoder, Tokens};
use gradstone::ops::{self, SoftmaxOptions};
use gradstone::rl::generate::rollouts;
use gradstone::rl::sampling::Sampling;
use gradstone::rng::Stream;
use gradstone::tensor::{Gradients, autograd};
use std::path::Path;

fn text(e: gradstone::Error) -> String {
    e.to_string()
}

/// The unmasked places of each row of a `[B, T]` mask.
fn places(mask: &Array) -> Result<Vec<Vec<usize>>, String> {
    let [_, width] = mask.matrix()?;
    let row = |row: &[f64]| (0..width).filter(|t| row[*t] != 0.0).collect();
    Ok(mask.values.chunks(width.max(1)).map(row).collect())
}

pub fn run(folder: &Path, case: &mut Case) -> Result<Outcome, String> {
    let class = case.config.text("architecture")?;
    case.config.one_of("attention", &["eager", "sdpa"])?;
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    case.config.one_of("config_style", &["4.x", "5.x (rope_parameters)"])?;
    case.config.one_of("padding", &["left", "right", "none"])?;
    let tied = case.config.flag("tied")?;
    let _margin: Option<f64> = case.config.number("greedy_min_margin")?;

    let model = Decoder::load(folder, None).map_err(text)?;
    if class.is_some_and(|class| class != model.config().architecture.class) {
        return Err(format!("the model is a {}", model.config().architecture.class));
    }
    if tied.is_some_and(|tied| tied != model.config().tied) {
        return Err(format!("config says tied = {tied:?}"));
    }
    check(case, &model)?;
    let again = tempfile::tempdir().map_err(|e| e.to_string())?;
    model.save(again.path()).map_err(text)?;
    let reloaded = Decoder::load(again.path(), None).map_err(text)?;
    for (a, b) in model.parameters().iter().zip(reloaded.parameters().iter()) {
        if a.name() != b.name() || a.value().bytes().unwrap() != b.value().bytes().unwrap() {
            return Err(format!("`{}` changed when it was saved and loaded", a.name()));
        }
    }
    check(case, &reloaded)?;
    Ok(Outcome::Passed)
}

fn check(case: &mut Case, model: &Decoder) -> Result<(), String> {
    let ids = case.tensor("in.input_ids")?;
    let mask = case.tensor("in.attention_mask")?;
    let given = case.optional("in.position_ids");
    let [batch, width] = ids.matrix()?;
    let rows = places(&mask)?;
    let mut packed = Packed::new(std::iter::empty());
    let mut flat = Vec::new();
    for (b, row) in rows.iter().enumerate() {
        for (n, t) in row.iter().enumerate() {
            let at = b * width + t;
            packed.ids.push(ids.values[at] as i32);
            packed.positions.push(given.as_ref().map_or(n as i32, |p| p.values[at] as i32));
            flat.push(at);
        }
        packed.segments.push(packed.ids.len());
    }
    let tokens: Tokens<'_> = packed.tokens();

    // [layers + 1, B, T, H], zero at padded positions.
    let hidden = model.config().hidden_size;
    let spread = |values: &[f32], size: usize| {
        let mut all = vec![0f32; batch * width * size];
        for (from, at) in values.chunks(size).zip(&flat) {
            all[at * size..(at + 1) * size].copy_from_slice(from);
        }
        all
    };
    let states = model.hidden_states(tokens).map_err(text)?;
    let mut every = Vec::new();
    for state in &states {
        every.extend(spread(&state.to_f32s().map_err(text)?, hidden));
    }
    case.compare("out.hidden_states", &every)?;
    let last = &states[states.len() - 1];
    case.compare("out.last_hidden", &spread(&last.to_f32s().map_err(text)?, hidden))?;
    let logits = model.logits(&model.hidden(tokens).map_err(text)?).map_err(text)?;
    let vocab = model.config().vocab_size;
    case.compare("out.logits", &spread(&logits.to_f32s().map_err(text)?, vocab))?;

    // The mean over pairs of neighbours that are both unmasked.
    let mut predicting = Vec::new();
    let mut targets = Vec::new();
    for (row, start) in rows.iter().zip(&packed.segments) {
        for (n, pair) in row.windows(2).enumerate() {
            if pair[1] == pair[0] + 1 {
                predicting.push(start + n);
                targets.push(packed.ids[start + n + 1]);
            }
        }
    }
    for recompute in [false, true] {
        let mut copy = model.copy().map_err(text)?;
        copy.set_checkpointed(recompute);
        let states = copy.hidden(tokens).map_err(text)?;
        let options =
            SoftmaxOptions { softcap: copy.config().final_softcap, ..SoftmaxOptions::default() };
        let chosen = ops::gather(&states, &predicting).map_err(text)?;
        let (logprob, _) =
            ops::linear_logprob(&chosen, &copy.head(), None, &targets, &options).map_err(text)?;
        let loss = ops::neg(&ops::mean(&logprob).map_err(text)?).map_err(text)?;
        case.compare("out.loss", &[loss.item().map_err(text)?])?;
        let mut gradients = Gradients::new();
        autograd::backward(&loss, &mut gradients).map_err(text)?;
        for parameter in copy.parameters().iter() {
            let gradient = gradients
                .get(parameter.id())
                .ok_or_else(|| format!("`{}` got no gradient", parameter.name()))?;
            let name = format!("out.grad.{}", parameter.name());
            case.compare(&name, gradient.f32s().map_err(text)?)?;
        }
    }
    greedy(case, model)
}

fn greedy(case: &mut Case, model: &Decoder) -> Result<(), String> {
    let Some(want) = case.optional("out.greedy_ids") else { return Ok(()) };
    let ids = case.tensor("in.prompt_ids")?;
    let mask = case.tensor("in.prompt_mask")?;
    let [_, width] = ids.matrix()?;
    let [_, length] = want.matrix()?;
    let rows = places(&mask)?;
    let prompts: Vec<Vec<i32>> = rows
        .iter()
        .enumerate()
        .map(|(b, row)| row.iter().map(|t| ids.values[b * width + t] as i32).collect())
        .collect();
    let sampling = Sampling {
        temperature: 0.0,
        truncation: Default::default(),
        max_new_tokens: length,
        stop: Vec::new(),
        banned: Vec::new(),
        seed: 0,
        stream: Stream::Free,
        first_sequence: 0,
        activity: Default::default(),
    };
    let drawn = rollouts(model, &prompts, 1, &sampling).map_err(text)?;
    let got: Vec<i32> = drawn.iter().flat_map(|r| r.tokens.clone()).collect();
    if got != want.i32() {
        return Err(format!("out.greedy_ids: {got:?}, wanted {:?}", want.i32()));
    }
    // The logits of each step are those of the whole sequence at its last place.
    if case.optional("out.greedy_scores").is_some() {
        let mut scores = Vec::new();
        for (prompt, rollout) in prompts.iter().zip(&drawn) {
            let mut all = prompt.clone();
            all.extend(&rollout.tokens[..length - 1]);
            let packed = Packed::new(std::iter::once((0, &*all)));
            let hidden = model.hidden(packed.tokens()).map_err(text)?;
            let rows: Vec<usize> = (prompt.len() - 1..all.len()).collect();
            let logits = model.logits(&ops::gather(&hidden, &rows).map_err(text)?).map_err(text)?;
            scores.extend_from_slice(&logits.to_f32s().map_err(text)?);
        }
        case.compare("out.greedy_scores", &scores)?;
    }
    Ok(())
}
