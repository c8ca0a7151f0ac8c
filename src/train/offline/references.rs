//! Log-probs under the reference policy: computed once, kept with the records and in checkpoints.

use super::data::Record;
use super::learner::token_logprobs;
use crate::error::{Error, Result};
use crate::files::safetensors::SafetensorsFile;
use crate::rl::policy::Policy;
use crate::tensor::{Tensor, file};
use std::path::Path;

/// The file of a checkpoint that holds them.
pub(super) const FILE: &str = "reference.safetensors";
/// The name of the one tensor in it: f32 `[learned tokens]`, record by record, sequence by sequence.
const LOGPROB: &str = "logprob";

/// Scores every sequence of the records under the reference policy.
///
/// # Errors
/// As [`Policy::score`].
pub(super) fn score<'a>(
    policy: &dyn Policy,
    records: impl Iterator<Item = &'a mut Record>,
    micro_batch_tokens: usize,
) -> Result<()> {
    let mut records: Vec<&mut Record> = records.collect();
    let sequences: Vec<_> = records.iter().flat_map(|record| &record.sequences).collect();
    let mut scored = token_logprobs(policy, &sequences, micro_batch_tokens, 1.0)?.into_iter();
    for record in &mut records {
        record.reference = scored.by_ref().take(record.sequences.len()).collect();
    }
    Ok(())
}

/// Writes them into the folder of a checkpoint.
///
/// # Errors
/// [`Error::is_io`].
pub(super) fn save<'a>(records: impl Iterator<Item = &'a Record>, folder: &Path) -> Result<()> {
    let all: Vec<f32> =
        records.flat_map(|record| record.reference.iter().flatten().copied()).collect();
    if all.is_empty() {
        return Ok(());
    }
    let shape = [all.len()];
    let all = Tensor::from_f32(all, &shape)?;
    file::write(&folder.join(FILE), [(LOGPROB, &all)], &[])
}

/// Reads what [`save`] wrote.
///
/// # Errors
/// [`Error::is_format`] when it is not of these records, [`Error::is_io`].
pub(super) fn load<'a>(records: impl Iterator<Item = &'a mut Record>, folder: &Path) -> Result<()> {
    let path = folder.join(FILE);
    let stored = file::read(&SafetensorsFile::open(&path)?, LOGPROB)?;
    let mut rest = stored.f32s()?;
    let other =
        || Error::format(format!("{}: the log-probs are not of these records", path.display()));
    for record in records {
        record.reference.clear();
        for sequence in &record.sequences {
            let (own, after) = rest.split_at_checked(sequence.learned()).ok_or_else(other)?;
            record.reference.push(own.to_vec());
            rest = after;
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(other()) }
}
