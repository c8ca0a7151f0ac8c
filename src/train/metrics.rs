//! One line a step: what `metrics.jsonl` and `rollouts.jsonl` hold, written and read.
//!
//! A value that was not measured in a step is absent. A value that was measured and is NaN or infinite is `null`:
//! JSON has no other word for it, and a reader must see that there was something wrong.

use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What a step trains with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Supervised imitation of worked examples.
    Warmup,
    /// Reinforcement learning.
    Rl,
    /// Next-token prediction on running text.
    NextToken,
    /// Filling masked blocks of running text.
    Diffusion,
    /// Supervised fine-tuning on a file of demonstrations.
    Sft,
    /// Preferences and labelled completions of a file.
    Preference,
}

impl Phase {
    /// `warmup`, `rl`, `next_token`, `diffusion`, `sft` or `preference`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Warmup => "warmup",
            Phase::Rl => "rl",
            Phase::NextToken => "next_token",
            Phase::Diffusion => "diffusion",
            Phase::Sft => "sft",
            Phase::Preference => "preference",
        }
    }
}

/// One object of `metrics.jsonl`. A field that is `None` was not measured in this step and is not written.
#[derive(Clone, Debug, Serialize)]
pub struct StepMetrics {
    /// Counts from 1 through all phases; step 0 is before training.
    pub step: u64,
    /// What the step trained with.
    pub phase: Phase,
    /// The loss that was minimised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f32>,
    /// Mean reward of the step's rollouts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<f32>,
    /// Share of held-out problems answered right by greedy decoding, 0 to 1; of held-out preferences, the share whose rewards
    /// agree with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_accuracy: Option<f32>,
    /// Mean entropy per token, nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f32>,
    /// Mean KL divergence per token: to the reference policy where there is one, else from the sampling policy, nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f32>,
    /// Share of tokens whose ratio was clipped, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_fraction: Option<f32>,
    /// Global gradient norm before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f32>,
    /// Largest |sampler's − trainer's log-prob| on tokens just sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<f32>,
    /// Mean completion length, tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_length: Option<f32>,
    /// What an objective measures beyond these, by name.
    #[serde(flatten)]
    pub more: BTreeMap<String, f32>,
    /// Tokens trained on or generated per second of this step, by the wall clock.
    pub tokens_per_second: f32,
    /// Wall-clock seconds of this step.
    pub seconds: f64,
}

impl StepMetrics {
    /// A step of which nothing has been measured yet.
    pub fn new(step: u64, phase: Phase) -> StepMetrics {
        StepMetrics {
            step,
            phase,
            loss: None,
            reward: None,
            eval_accuracy: None,
            entropy: None,
            kl: None,
            clip_fraction: None,
            grad_norm: None,
            mismatch: None,
            response_length: None,
            more: BTreeMap::new(),
            tokens_per_second: 0.0,
            seconds: 0.0,
        }
    }
}

/// One object of `rollouts.jsonl`: a completion that was sampled in training, or a greedy one of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct Rollout {
    /// The step it was sampled in.
    pub step: u64,
    /// What the model was given.
    pub prompt: String,
    /// What it wrote.
    pub completion: String,
    /// The right answer.
    pub answer: String,
    /// What the verifier gave; NaN (`null` in the file) where it gave nothing.
    #[serde(deserialize_with = "number_or_null")]
    pub reward: f32,
    /// Its advantage in its group; absent for an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advantage: Option<f32>,
    /// Completion length in tokens.
    pub tokens: usize,
    /// It was cut off at the length limit.
    pub truncated: bool,
}

fn number_or_null<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<f32, D::Error> {
    Ok(<Option<f32> as serde::Deserialize>::deserialize(from)?.unwrap_or(f32::NAN))
}

/// Appends objects to a JSONL file; each line is in the file when the call returns.
#[derive(Debug)]
pub struct JsonlWriter {
    path: PathBuf,
    file: File,
}

impl JsonlWriter {
    /// Opens a file for appending, making it where it is absent.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn append_to(path: &Path) -> Result<JsonlWriter> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
        Ok(JsonlWriter { path: path.to_path_buf(), file })
    }

    /// Writes one line in one call to the operating system, so that a killed process tears at most the last line.
    ///
    /// # Errors
    /// [`Error::is_io`] when the disk does not take it, [`Error::is_invalid`] when it is not expressible in JSON.
    pub fn write<T: Serialize>(&mut self, object: &T) -> Result<()> {
        let place = |e: &dyn std::fmt::Display| format!("writing {}: {e}", self.path.display());
        let mut line = serde_json::to_vec(object).map_err(|e| Error::invalid(place(&e)))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(|e| Error::io(format!("writing {}", self.path.display()), e))
    }

    /// Makes every line durable. A checkpoint calls it first: a log must never be behind its checkpoint.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(format!("syncing {}", self.path.display()), e))
    }
}

/// A line of `metrics.jsonl` as read: every number by name, NaN for `null`.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The step.
    pub step: u64,
    /// `warmup`, `rl`, or what a later version writes.
    pub phase: String,
    /// Every other number.
    pub values: BTreeMap<String, f64>,
}

impl Record {
    /// What a step measured, as its line would be read.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when it is not expressible in JSON.
    pub fn of(metrics: &StepMetrics) -> Result<Record> {
        let value = serde_json::to_value(metrics).ok().and_then(Record::from_json);
        value.ok_or_else(|| Error::invalid("a step's measurements are not JSON"))
    }

    fn from_json(value: Value) -> Option<Record> {
        let fields = value.as_object()?;
        let number = |v: &Value| if v.is_null() { Some(f64::NAN) } else { v.as_f64() };
        Some(Record {
            step: fields.get("step")?.as_u64()?,
            phase: fields.get("phase")?.as_str()?.to_string(),
            values: fields
                .iter()
                .filter(|(name, _)| *name != "step" && *name != "phase")
                .filter_map(|(name, value)| Some((name.clone(), number(value)?)))
                .collect(),
        })
    }
}

/// Reads `metrics.jsonl`. A last line without a line end (of a killed process) is left out.
///
/// # Errors
/// [`Error::is_io`], or [`Error::is_format`] with file and line number.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for (number, line) in complete_lines(path)?.lines().enumerate() {
        let parsed = serde_json::from_str(line).ok().and_then(Record::from_json);
        records.push(parsed.ok_or_else(|| not_a_line(path, number, "metrics"))?);
    }
    Ok(records)
}

/// Reads `rollouts.jsonl`, the same way.
///
/// # Errors
/// As [`read`].
pub fn read_rollouts(path: &Path) -> Result<Vec<Rollout>> {
    let text = complete_lines(path)?;
    let parse = |(number, line)| {
        serde_json::from_str(line).map_err(|_| not_a_line(path, number, "rollout"))
    };
    text.lines().enumerate().map(parse).collect()
}

fn not_a_line(path: &Path, number: usize, of: &str) -> Error {
    Error::format(format!("{}:{}: not a line of {of}", path.display(), number + 1))
}

/// The text up to its last line end.
pub(crate) fn complete_lines(path: &Path) -> Result<String> {
    let bytes =
        std::fs::read(path).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let bytes = bytes.get(..end).unwrap_or_default().to_vec();
    String::from_utf8(bytes).map_err(|_| Error::format(format!("{}: not UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_names_and_order_are_the_documented_ones() {
        let mut metrics = StepMetrics::new(3, Phase::Rl);
        metrics.loss = Some(0.1);
        metrics.reward = Some(0.25);
        metrics.eval_accuracy = Some(0.5);
        metrics.entropy = Some(1e-7);
        metrics.kl = Some(f32::NAN);
        metrics.clip_fraction = Some(0.0);
        metrics.grad_norm = Some(f32::INFINITY);
        metrics.mismatch = Some(0.0);
        metrics.response_length = Some(3.5);
        metrics.more.insert("ratio_max".into(), 1.0);
        metrics.seconds = 0.5;
        assert_eq!(
            serde_json::to_string(&metrics).unwrap(),
            "{\"step\":3,\"phase\":\"rl\",\"loss\":0.1,\"reward\":0.25,\"eval_accuracy\":0.5,\"entropy\":1e-7,\"kl\":null,\
             \"clip_fraction\":0.0,\"grad_norm\":null,\"mismatch\":0.0,\"response_length\":3.5,\"ratio_max\":1.0,\
             \"tokens_per_second\":0.0,\"seconds\":0.5}"
        );
        let bare = serde_json::to_string(&StepMetrics::new(0, Phase::Warmup)).unwrap();
        assert_eq!(bare, r#"{"step":0,"phase":"warmup","tokens_per_second":0.0,"seconds":0.0}"#);
    }

    #[test]
    fn what_is_written_is_read_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut writer = JsonlWriter::append_to(&path).unwrap();
        for step in 1..50u64 {
            let mut metrics = StepMetrics::new(step, Phase::Warmup);
            metrics.loss = Some(1.0 / step as f32);
            metrics.kl = (step % 2 == 0).then_some(f32::NAN);
            writer.write(&metrics).unwrap();
        }
        writer.sync().unwrap();
        // A line torn by a kill.
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"step\":50,\"ph")
            .unwrap();
        let records = read(&path).unwrap();
        assert_eq!(records.len(), 49);
        for record in &records {
            assert_eq!(record.values["loss"] as f32, 1.0 / record.step as f32);
            assert_eq!(record.values.contains_key("kl"), record.step % 2 == 0);
            assert!(record.values.get("kl").is_none_or(|kl| kl.is_nan()));
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1,\"phase\":\"rl\"}\n{\"step\":2\n").unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.is_format() && error.to_string().contains("metrics.jsonl:2"), "{error}");
        assert!(read(&folder.path().join("none")).unwrap_err().is_io());
    }

    #[test]
    fn rollouts_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rollouts.jsonl");
        let rollout = Rollout {
            step: 4,
            prompt: "1+1=\n\"".into(),
            completion: "2</script>".into(),
            answer: "2".into(),
            reward: 1.0,
            advantage: Some(-0.5),
            tokens: 2,
            truncated: false,
        };
        JsonlWriter::append_to(&path).unwrap().write(&rollout).unwrap();
        assert_eq!(read_rollouts(&path).unwrap(), [rollout]);
    }
}
