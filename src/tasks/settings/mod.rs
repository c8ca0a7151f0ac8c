//! The settings of a run's problems: where they come from, what the policy works on them in, and what judges it.

mod environment;
mod named;
mod source;
mod verifier;

pub use environment::EnvironmentSettings;
pub use source::Source;
pub use verifier::VerifierSettings;

use super::environment::{Environment, OneShot};
use super::several::Several;
use super::task::{Language, Task};
use super::verifier::Verifier;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use source::OpenSource;
use std::path::PathBuf;

/// The table `task` of a run's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSettings {
    /// Where the problems come from; its `kind` and its keys stand in one table with the other keys.
    #[serde(flatten)]
    pub source: Source,
    /// What the policy works on them in; absent: nothing replies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvironmentSettings>,
    /// What judges: one verifier, or a list of several whose rewards are joined. None: what the task's answers are meant for.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "verifier::one_or_several")]
    pub verifier: Vec<VerifierSettings>,
}

/// A task in memory, with what goes with it.
pub struct OpenTask {
    /// The problems.
    pub task: Box<dyn Task>,
    /// What a policy works on them in.
    pub environment: Box<dyn Environment>,
    /// What judges it.
    pub verifier: Box<dyn Verifier>,
    /// The settings with what was found in place of what they left open: the columns of a file, its fingerprint.
    pub settings: TaskSettings,
    /// What the user should know of it: what was guessed, what was left out.
    pub notices: Vec<String>,
}

impl TaskSettings {
    /// A task that is answered at once, with the verifier that it is meant for.
    pub fn new(source: Source) -> TaskSettings {
        TaskSettings { source, environment: None, verifier: Vec::new() }
    }

    /// Every path that is given. A verifier that is a program gets a folder of its own here, the present one.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let files = match &mut self.source {
            Source::File(file) => Some(file.paths_mut()),
            _ => None,
        };
        let folders = self.verifier.iter_mut().filter_map(VerifierSettings::directory_mut);
        files.into_iter().flatten().chain(folders)
    }

    /// Opens the task of a run with a seed, and starts a verifier that is a program.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings that make no sense, alone or together, and what reading a file or starting a program
    /// reports.
    pub fn open(&self, seed: u64) -> Result<OpenTask> {
        let OpenSource { task, source, notices } = self.source.open(seed)?;
        let environment = match &self.environment {
            None => Box::new(OneShot),
            Some(_) if matches!(task.language(), Language::Ids(_)) => {
                let name = task.name();
                return Err(Error::invalid(format!(
                    "task.environment: {name} is made of ids, not of text"
                )));
            }
            Some(settings) => settings.open().map_err(|e| e.at("task.environment"))?,
        };
        let compares =
            self.verifier.is_empty() || self.verifier.iter().any(VerifierSettings::compares);
        if let Source::File(file) = &source
            && let Some(key) = file.without_answers().filter(|_| compares)
        {
            return Err(Error::invalid(format!(
                "{key} names no column, so there is no answer to compare with: name it, or give task.verifier.command",
            )));
        }
        let opened = self.verifier.iter().map(VerifierSettings::open).collect::<Result<Vec<_>>>();
        let mut verifiers = opened.map_err(|e| e.at("task.verifier"))?;
        let verifier: Box<dyn Verifier> = match (verifiers.pop(), verifiers.is_empty()) {
            (None, _) => task.verifier(),
            (Some(one), true) => one,
            (Some(last), false) => {
                verifiers.push(last);
                Box::new(Several::new(verifiers).map_err(|e| e.at("task.verifier"))?)
            }
        };
        let settings = TaskSettings { source, ..self.clone() };
        Ok(OpenTask { task, environment, verifier, settings, notices })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::arithmetic::ArithmeticConfig;
    use crate::tasks::calculator::CalculatorConfig;
    use crate::tasks::command::CommandSettings;
    use crate::tasks::equality::Percent;
    use crate::tasks::file::{FileFormat, FileSettings, HeldOutFile};
    use crate::tasks::permutation_chain::ChainConfig;
    use crate::tasks::problem::Problem;
    use crate::tasks::two_hop::{NoiseConfig, TwoHopConfig};
    use crate::tasks::verifier::Attempt;

    fn read(toml: &str) -> std::result::Result<TaskSettings, toml::de::Error> {
        toml::from_str(toml)
    }

    fn arithmetic() -> Source {
        Source::Arithmetic(ArithmeticConfig::default())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let command = CommandSettings { command: vec!["judge".to_owned()], ..Default::default() };
        let noise = Some(NoiseConfig::default());
        for source in [
            arithmetic(),
            Source::File(FileSettings::new("x.jsonl")),
            Source::File(FileSettings {
                fingerprint: Some("1".to_owned()),
                evaluation: Some(HeldOutFile::new("y.csv")),
                ..FileSettings::new("x.jsonl")
            }),
            Source::PermutationChain(ChainConfig::default()),
            Source::TwoHop(TwoHopConfig { noise, ..TwoHopConfig::default() }),
        ] {
            for verifier in [
                vec![],
                vec![VerifierSettings::Exact],
                vec![VerifierSettings::Answer {
                    refusals: vec!["no".to_owned()],
                    percent: Percent::Hundredths,
                }],
                vec![VerifierSettings::Command(command.clone()), VerifierSettings::Exact],
            ] {
                let environment =
                    Some(EnvironmentSettings::Calculator(CalculatorConfig::default()));
                let settings = TaskSettings { source: source.clone(), environment, verifier };
                let text = toml::to_string(&settings).unwrap();
                assert_eq!(read(&text).unwrap(), settings, "{text}");
            }
        }
    }

    #[test]
    fn names_tables_and_lists() {
        let of = |rest: &str| read(&format!("kind = \"arithmetic\"\n{rest}"));
        assert_eq!(of("").unwrap(), TaskSettings::new(arithmetic()));
        assert_eq!(of("verifier = \"exact\"").unwrap().verifier, [VerifierSettings::Exact]);
        for (rest, percent) in [("", Percent::Number), (", percent = \"either\"", Percent::Either)]
        {
            let answer =
                of(&format!("verifier = {{ refusals = [\"no\"]{rest} }}")).unwrap().verifier;
            let refusals = vec!["no".to_owned()];
            assert_eq!(answer, [VerifierSettings::Answer { refusals, percent }]);
        }
        let command =
            of("verifier.command = [\"a\", \"b\"]\nverifier.time_limit = 5").unwrap().verifier;
        let expected = CommandSettings {
            command: vec!["a".to_owned(), "b".to_owned()],
            time_limit: 5.0,
            ..CommandSettings::default()
        };
        assert_eq!(command, [VerifierSettings::Command(expected)]);
        let two = of("verifier = [\"exact\", { preset = \"answer\" }]").unwrap().verifier;
        assert_eq!((two.len(), &two[0]), (2, &VerifierSettings::Exact));
        let calculator = of("environment = \"calculator\"").unwrap().environment.unwrap();
        assert_eq!(calculator, EnvironmentSettings::Calculator(CalculatorConfig::default()));
        let EnvironmentSettings::Calculator(config) =
            of("environment = { most_calls = 2 }").unwrap().environment.unwrap();
        assert_eq!(config.most_calls, 2);
    }

    #[test]
    fn the_settings_of_the_page_are_read() {
        let page = include_str!("../../../docs/data.md");
        let blocks: Vec<&str> =
            page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        for block in &blocks {
            let mut whole: toml::Table = block.parse().unwrap();
            let task = whole.remove("task").unwrap();
            let settings: TaskSettings = task.try_into().unwrap();
            assert!(whole.is_empty() && !settings.verifier.is_empty(), "{block}");
        }
        assert_eq!(blocks.len(), 3);
    }

    #[test]
    fn mistakes_are_named() {
        for (rest, says) in [
            (
                "verifier = \"exakt\"",
                "no verifier is called `exakt`; there are answer, exact, command",
            ),
            ("verifier = { preset = \"exact\", refusals = [] }", "`exact` has no `refusals`"),
            ("verifier = { preset = \"exact\", percent = \"number\" }", "`exact` has no `percent`"),
            ("verifier = { percent = \"half\" }", "unknown variant `half`"),
            ("verifier = { time_limit = 5 }", "`answer` has no `time_limit`"),
            ("verifier = { preset = \"answer\", command = [\"a\"] }", "`answer` has no `command`"),
            ("verifier = { command = [\"a\"], refusals = [] }", "`command` has no `refusals`"),
            ("verifier = { comand = [] }", "unknown field `comand`"),
            ("verifier = 3", "the name of a verifier or a table"),
            ("environment = \"abacus\"", "no environment is called `abacus`; there is calculator"),
            ("environment = { opens = 1 }", "unknown field `opens`"),
            ("largst = 3", "unknown field `largst`"),
        ] {
            let error = read(&format!("kind = \"arithmetic\"\n{rest}")).unwrap_err().to_string();
            assert!(error.contains(says), "{rest}: {error}");
        }
    }

    #[test]
    fn a_task_opens_with_what_it_is_meant_for() {
        let open = TaskSettings::new(arithmetic()).open(1).unwrap();
        assert_eq!(
            (open.task.name(), open.environment.name(), open.verifier.name()),
            ("arithmetic", "one_shot", "exact")
        );
        let several = TaskSettings {
            environment: Some(EnvironmentSettings::Calculator(CalculatorConfig::default())),
            verifier: vec![
                VerifierSettings::Exact,
                VerifierSettings::Answer { refusals: vec![], percent: Percent::Number },
            ],
            ..TaskSettings::new(arithmetic())
        };
        let open = several.open(1).unwrap();
        assert_eq!((open.environment.name(), open.verifier.rewards().len()), ("calculator", 2));
        let problem = Problem::text(0, "q", "4");
        let judged = open.verifier.judge(&problem, &Attempt::one_shot("4.0", &[], false));
        assert_eq!(judged.rewards, [0.0, 1.0]);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let refused = |settings: TaskSettings, says: &str| {
            let error = settings.open(1).err().unwrap();
            assert!(error.is_invalid() && error.to_string().contains(says), "{error}");
        };
        let ids = TaskSettings::new(Source::TwoHop(TwoHopConfig::default()));
        let environment = Some(EnvironmentSettings::Calculator(CalculatorConfig::default()));
        refused(TaskSettings { environment, ..ids.clone() }, "two_hop is made of ids");
        let twice = vec![VerifierSettings::Exact, VerifierSettings::Exact];
        refused(
            TaskSettings { verifier: twice, ..ids.clone() },
            "task.verifier: two verifiers have a reward `exact`",
        );
        let nothing = VerifierSettings::Command(CommandSettings::default());
        refused(
            TaskSettings { verifier: vec![nothing], ..ids },
            "task.verifier: `command` names no program",
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jsonl");
        std::fs::write(&path, "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n").unwrap();
        let guessed = TaskSettings::new(Source::File(FileSettings::new(&path)));
        refused(guessed, "task.format.answer names no column");
        let format = FileFormat { answer: String::new(), ..FileFormat::default() };
        let bare =
            TaskSettings::new(Source::File(FileSettings { format, ..FileSettings::new(&path) }));
        refused(bare.clone(), "task.format.answer names no column");
        refused(
            TaskSettings { verifier: vec![VerifierSettings::Exact], ..bare },
            "task.format.answer",
        );
    }
}
