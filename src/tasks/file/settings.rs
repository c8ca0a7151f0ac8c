//! The settings of a file of problems.

use super::columns::GUESS;
use crate::tasks::template::Template;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A file of problems and how to read it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSettings {
    /// The file: lines of JSON, a JSON array, CSV or Parquet.
    pub path: PathBuf,
    /// Length and SHA-256 of the file when the run began; a file that has others is refused. Absent: it is not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// How to read it.
    #[serde(default)]
    pub format: FileFormat,
    /// A file of its own for evaluation. All of its problems are held out, and none of the other file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<HeldOutFile>,
}

/// How a file of problems is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileFormat {
    /// Column of the prompt: a string, a list of messages, or a list of token ids. `a.b` is the value `b` in the object `a`;
    /// `guess`: one of the usual names.
    pub prompt: String,
    /// Column of the answer: a string, a number or a reply. That of the prompt: its last message, where it is the assistant's.
    /// Empty: there is none, for a verifier that needs none; `guess`: one of the usual names.
    pub answer: String,
    /// How a prompt is put to the model: `auto` (the chat template of the model folder, where it has one), `chat`, `none`, the
    /// path of a chat template (`*.jinja`), or a text that is written around it, in which `{prompt}` stands for it.
    pub template: Template,
    /// What the system says before a prompt, for a chat template; empty: nothing.
    pub system: String,
    /// How many of the last problems are held out; 0: a tenth of them, at least one.
    pub held_out: usize,
    /// Leaves records out that cannot be used, and says how many; without it they end the run before it begins.
    pub skip_bad: bool,
}

impl Default for FileFormat {
    fn default() -> Self {
        FileFormat {
            prompt: GUESS.into(),
            answer: GUESS.into(),
            template: Template::Auto,
            system: String::new(),
            held_out: 0,
            skip_bad: false,
        }
    }
}

/// A file whose problems are all held out. Template and treatment of bad records are those of the file that is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutFile {
    /// The file.
    pub path: PathBuf,
    /// Length and SHA-256 of the file when the run began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Column of the prompt, as `format.prompt`.
    #[serde(default = "guess")]
    pub prompt: String,
    /// Column of the answer, as `format.answer`.
    #[serde(default = "guess")]
    pub answer: String,
}

impl HeldOutFile {
    /// A file whose columns are guessed.
    pub fn new(path: impl Into<PathBuf>) -> HeldOutFile {
        HeldOutFile { path: path.into(), fingerprint: None, prompt: guess(), answer: guess() }
    }
}

fn guess() -> String {
    GUESS.to_owned()
}

impl FileSettings {
    /// A file that is read as the defaults say.
    pub fn new(path: impl Into<PathBuf>) -> FileSettings {
        FileSettings { path: path.into(), ..FileSettings::default() }
    }

    /// The paths of the files, those not named yet left out.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let evaluation = self.evaluation.as_mut().map(|file| &mut file.path);
        std::iter::once(&mut self.path)
            .chain(evaluation)
            .filter(|path| !path.as_os_str().is_empty())
    }

    /// The key that says that a file has no answers, where one says so.
    pub fn without_answers(&self) -> Option<&'static str> {
        if !self.path.as_os_str().is_empty() && self.format.answer.is_empty() {
            return Some("task.format.answer");
        }
        let held_out = self.evaluation.as_ref().filter(|file| file.answer.is_empty());
        held_out.map(|_| "task.evaluation.answer")
    }

    /// Makes the file one that is held out whole, of which nothing is trained on.
    pub fn hold_out_all(&mut self) {
        self.evaluation = Some(HeldOutFile {
            path: std::mem::take(&mut self.path),
            fingerprint: self.fingerprint.take(),
            prompt: self.format.prompt.clone(),
            answer: self.format.answer.clone(),
        });
        self.format.held_out = 0;
    }

    /// Takes the files as they are now: what they were when the run began is forgotten.
    pub fn accept_changes(&mut self) {
        self.fingerprint = None;
        if let Some(evaluation) = &mut self.evaluation {
            evaluation.fingerprint = None;
        }
    }
}
