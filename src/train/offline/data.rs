//! The records of a run: what is trained on and what is held out, as token ids.

use super::encoding::{Encoded, Encoder};
use super::settings::{OfflineData, OfflineObjective, TooLong};
use super::written::{Wanted, Written, written};
use crate::error::{Error, Result};
use crate::rl::preference::kto::KtoLoss;
use crate::tasks::file::{Records, bytes, left_out, records};
use std::collections::HashSet;
use std::path::Path;

/// A record that is learned from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// A demonstration; a chosen and a rejected completion; or a labelled completion and, after the same prompt, one that belongs to
    /// another prompt, for the estimate of a KL divergence.
    pub sequences: Vec<Encoded>,
    /// Of each sequence, the log-probs of its learned tokens under the reference policy, nats; empty: there is none.
    pub reference: Vec<Vec<f32>>,
    /// A labelled completion is desirable.
    pub label: bool,
}

/// What a file was read into.
#[derive(Debug)]
pub struct OfflineRecords {
    /// Trained on.
    pub training: Vec<Record>,
    /// Measured on.
    pub held_out: Vec<Record>,
    /// The settings with the fingerprint of the file.
    pub settings: OfflineData,
    /// What the user should know: how many records there are, what was left out.
    pub notices: Vec<String>,
}

/// The model that reads the records.
pub(super) struct Reader<'a> {
    pub encoder: Encoder<'a>,
    pub vocab: usize,
    pub context: usize,
}

/// A record as ids, with what tells whether two records ask the same.
struct Read {
    asked: Vec<i32>,
    record: Record,
}

impl OfflineRecords {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error::is_io`] when it cannot be read; [`Error::is_state`] when it is not what its fingerprint says;
    /// [`Error::is_format`] with file and line for records that cannot be used, where they are not to be left out, and when
    /// nothing is left.
    pub(super) fn open(
        settings: &OfflineData,
        objective: &OfflineObjective,
        reader: &Reader<'_>,
    ) -> Result<OfflineRecords> {
        let mut settings = settings.clone();
        let mut notices = Vec::new();
        let content = bytes(&settings.path, &mut settings.fingerprint)?;
        let (name, all) =
            reader.file(content, &settings.path, &settings, objective, &mut notices)?;
        let held_out = match settings.evaluation.as_mut() {
            None => None,
            Some(file) => Some((bytes(&file.path, &mut file.fingerprint)?, file.path.clone())),
        };
        let (training, held_out) = match held_out {
            None => split(all, settings.held_out, &name)?,
            Some((content, path)) => {
                (all, reader.file(content, &path, &settings, objective, &mut notices)?.1)
            }
        };
        let training = apart(training, &held_out, &name, &mut notices)?;
        notices.push(format!(
            "{} records to train on, {} held out",
            training.len(),
            held_out.len()
        ));
        let mut held_out: Vec<Record> = held_out.into_iter().map(|read| read.record).collect();
        let mut training: Vec<Record> = training.into_iter().map(|read| read.record).collect();
        if matches!(objective, OfflineObjective::Kto(kto) if kto.loss_type == KtoLoss::Kto) {
            mismatch(&mut training, reader);
            mismatch(&mut held_out, reader);
        }
        Ok(OfflineRecords { training, held_out, settings, notices })
    }
}

/// The last records apart, to be held out: `wanted`, or a tenth.
fn split(mut all: Vec<Read>, wanted: usize, name: &str) -> Result<(Vec<Read>, Vec<Read>)> {
    let total = all.len();
    let wanted = if wanted == 0 { total.div_ceil(10) } else { wanted };
    if wanted >= total {
        return Err(Error::format(format!(
            "{name}: {wanted} of {total} records are held out, none is left to train on"
        )));
    }
    let held_out = all.split_off(total - wanted);
    Ok((all, held_out))
}

/// The records that ask nothing that is held out.
fn apart(
    mut training: Vec<Read>,
    held_out: &[Read],
    name: &str,
    notices: &mut Vec<String>,
) -> Result<Vec<Read>> {
    let asked: HashSet<&Vec<i32>> = held_out.iter().map(|read| &read.asked).collect();
    let before = training.len();
    training.retain(|read| !asked.contains(&read.asked));
    if training.is_empty() {
        return Err(Error::format(format!("{name}: every training prompt is also held out")));
    }
    if training.len() < before {
        notices.push(format!(
            "{name}: the prompts of {} of {before} records are also held out, and not trained on",
            before - training.len()
        ));
    }
    Ok(training)
}

impl Reader<'_> {
    /// The records of a file, with the name by which messages call it.
    ///
    /// # Errors
    /// [`Error::is_format`] with file and line for records that cannot be used, and when none is left.
    fn file(
        &self,
        content: Vec<u8>,
        path: &Path,
        settings: &OfflineData,
        objective: &OfflineObjective,
        notices: &mut Vec<String>,
    ) -> Result<(String, Vec<Read>)> {
        let Records { source, good, bad } = records(content, path)?;
        let total = good.len() + bad.len();
        let mut faults: Vec<(usize, String)> =
            bad.into_iter().map(|one| (one.number, one.fault)).collect();
        let (mut all, mut long) = (Vec::new(), 0);
        for record in good {
            let said = written(&record.fields, &settings.columns, Wanted::of(objective));
            let read = said.and_then(|said| {
                said.iter().map(|one| self.read(one, settings)).collect::<Result<Vec<_>, _>>()
            });
            match read {
                Ok(read) => {
                    long += usize::from(read.iter().any(Option::is_none));
                    all.extend(read.into_iter().flatten());
                }
                Err(fault) => faults.push((record.number, fault)),
            }
        }
        faults.sort_by_key(|(number, _)| *number);
        let faults: Vec<(String, String)> =
            faults.into_iter().map(|(number, fault)| (source.place(number), fault)).collect();
        notices.extend(left_out(&faults, total, settings.skip_bad, "data")?);
        if long > 0 {
            notices.push(format!(
                "{}: {long} of {total} records are longer than fits, and left out",
                source.name
            ));
        }
        if all.is_empty() {
            return Err(Error::format(format!("{}: no usable record in the file", source.name)));
        }
        Ok((source.name, all))
    }

    /// A record as ids; `None`: it is too long and to be left out.
    ///
    /// # Errors
    /// Why it cannot be used.
    fn read(&self, said: &Written, settings: &OfflineData) -> Result<Option<Read>, String> {
        let most = match settings.max_length {
            0 => self.context,
            most => most.min(self.context),
        };
        let mut sequences = Vec::with_capacity(2);
        for reply in &said.replies {
            let mut encoded =
                self.encoder.encode(said.prompt.as_ref(), reply).map_err(|e| e.to_string())?;
            let length = encoded.tokens();
            if length > most {
                match settings.too_long {
                    TooLong::LeaveOut => return Ok(None),
                    TooLong::Cut => encoded.cut(most),
                    TooLong::Refuse => {
                        return Err(format!(
                            "it has {length} tokens, and {most} fit (data.too_long = \"cut\" or \"leave_out\")"
                        ));
                    }
                }
            }
            if encoded.prompt.is_empty() {
                return Err("the prompt has no tokens".to_owned());
            }
            if encoded.learned() == 0 {
                return Err("the completion has no tokens that are learned".to_owned());
            }
            let ids = encoded.prompt.iter().chain(&encoded.completion);
            let vocab = self.vocab;
            if let Some(id) = ids.copied().find(|id| *id < 0 || *id as usize >= vocab) {
                return Err(format!("token {id} is outside the model's vocabulary of {vocab}"));
            }
            sequences.push(encoded);
        }
        let Some(first) = sequences.first() else { return Ok(None) };
        // Running text asks nothing; it is told by all of its ids.
        let mut asked = first.prompt.clone();
        if said.prompt.is_none() {
            asked.extend(&first.completion);
        }
        let record = Record { sequences, reference: Vec::new(), label: said.label };
        Ok(Some(Read { asked, record }))
    }
}

/// Gives each labelled completion's prompt a completion that belongs to another prompt: that of the nearest record before it, in
/// a circle, that has one.
fn mismatch(all: &mut [Record], reader: &Reader<'_>) {
    let count = all.len();
    let mismatched: Vec<Encoded> = (0..count)
        .map(|i| {
            let before = |back: usize| &all[(i + count - back) % count].sequences[0];
            let own = &all[i].sequences[0];
            let others = (1..count).map(before);
            let other = others.clone().find(|other| other.prompt != own.prompt);
            let other = other.or(others.clone().next()).unwrap_or(own);
            let mut mixed = Encoded { prompt: own.prompt.clone(), ..other.clone() };
            mixed.cut(reader.context);
            mixed
        })
        .collect();
    for (record, mixed) in all.iter_mut().zip(mismatched) {
        // A prompt that fills the context leaves nothing of another completion.
        if mixed.learned() > 0 {
            record.sequences.push(mixed);
        }
    }
}
