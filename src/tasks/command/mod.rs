//! A verifier that is a program of the user's own: a script, a sandbox, a model that judges.
//!
//! The program reads one JSON object per line on its standard input and writes one per line on its standard output, in any
//! order; `docs/data.md` has the format. It runs as long as the verifier lives, with several attempts waiting at one time.
//! Whatever it does, a call ends: silence has a time limit, output has a bound, and a program that fails is started again,
//! but not endlessly. Which attempt a failure costs is `batch`'s to say, what ends with the trainer `process`'s.

mod batch;
mod lines;
mod notices;
mod process;
mod protocol;
mod settings;

pub use settings::{CommandSettings, OnFailure};

use super::judgement::{Fault, Judged, Judgement};
use super::problem::Problem;
use super::verifier::{Attempt, Gives, Verifier};
use crate::error::{Error, Result};
use batch::{Batch, Came};
use notices::Notices;
use process::{Event, Process};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Lines that answer nothing, between two answers, before a program counts as flooding.
const MOST_STRAY: usize = 1000;

/// Judges by asking a program.
pub struct CommandVerifier {
    settings: CommandSettings,
    notices: Arc<Notices>,
    running: Mutex<Running>,
}

/// The program and what is known of it.
#[derive(Default)]
struct Running {
    process: Option<Process>,
    /// Requests that it was sent since it was started.
    asked: u64,
    /// It has answered since it was started.
    has_answered: bool,
    /// The id of the next request.
    next_id: u64,
    /// How often in a row it failed without an answer in between.
    failures: u32,
}

impl CommandVerifier {
    /// Starts the program.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings that make no sense, [`Error::is_io`] for a program that cannot be started.
    pub fn start(settings: CommandSettings) -> Result<CommandVerifier> {
        settings.check()?;
        let notices = Arc::new(Notices::default());
        let mut running = Running::default();
        running.start(&settings, &notices)?;
        Ok(CommandVerifier { settings, notices, running: Mutex::new(running) })
    }

    /// Asks until every attempt of a batch has a verdict or is left out.
    fn ask(&self, running: &mut Running, batch: &mut Batch<'_>) -> Result<()> {
        let mut strays = 0;
        // The moment from which the program's silence counts.
        let mut since = Instant::now();
        while !batch.is_done() {
            if running.process.is_none() {
                running.start(&self.settings, &self.notices)?;
                since = Instant::now();
                strays = 0;
            }
            let Some(process) = &running.process else { continue };
            if batch.is_idle() {
                since = Instant::now();
            }
            while let Some(line) = batch.next(running.next_id) {
                running.next_id += 1;
                running.asked += 1;
                process.send(line);
            }
            let limit = self.settings.limit(!running.has_answered);
            let fault = match process.next(since + limit) {
                Event::Line(line) => match batch.take(&line, running.next_id) {
                    Came::Stray(what) => {
                        what.iter().for_each(|what| self.say(what));
                        strays += 1;
                        if strays <= MOST_STRAY {
                            continue;
                        }
                        Fault::Flooded
                    }
                    Came::Answer(refused) => {
                        (running.failures, running.has_answered) = (0, true);
                        (strays, since) = (0, Instant::now());
                        if let Some(what) = refused {
                            self.say(&what);
                            self.may_fail(&what)?;
                        }
                        continue;
                    }
                },
                Event::EndlessLine => Fault::Flooded,
                Event::Ended => Fault::Crashed,
                Event::Silent => Fault::TimedOut,
            };
            self.failed(running, batch, fault)?;
        }
        Ok(())
    }

    /// The program failed: it is ended, and counted.
    fn failed(&self, running: &mut Running, batch: &mut Batch<'_>, fault: Fault) -> Result<()> {
        let limit = self.settings.limit(!running.has_answered).as_secs_f64();
        let status = running.end();
        let what = match fault {
            Fault::TimedOut => format!("did not answer for {limit} s"),
            Fault::Flooded => "wrote without end".to_owned(),
            _ => match status {
                Some(status) => format!("ended ({status})"),
                None => "ended".to_owned(),
            },
        };
        self.say(&format!("it {what}"));
        running.failures += 1;
        let cost = batch.failed(fault, running.asked);
        if running.failures > self.settings.restarts {
            let number = running.failures;
            return Err(self.error(format!("{what}; failure {number} in a row without an answer")));
        }
        if cost { self.may_fail(&what) } else { Ok(()) }
    }

    /// An attempt is without a verdict: an error where that ends the run.
    fn may_fail(&self, what: &str) -> Result<()> {
        match self.settings.on_failure {
            OnFailure::Exclude => Ok(()),
            OnFailure::End => {
                Err(self.error(format!("{what} (task.verifier.on_failure = \"end\")")))
            }
        }
    }

    fn say(&self, what: &str) {
        self.notices.say(format!("judge: {what}"));
    }

    fn error(&self, what: impl std::fmt::Display) -> Error {
        let command = self.settings.shown();
        Error::state(match self.notices.last_words() {
            Some(words) => {
                format!("the judge `{command}` {what}\nits standard error ends: {words}")
            }
            None => format!("the judge `{command}` {what}"),
        })
    }
}

impl Running {
    fn start(&mut self, settings: &CommandSettings, notices: &Arc<Notices>) -> Result<()> {
        let failed = |e| Error::io(format!("starting the judge `{}`", settings.shown()), e);
        self.process = Some(Process::start(settings, notices).map_err(failed)?);
        (self.asked, self.has_answered) = (0, false);
        Ok(())
    }

    /// Ends the program at once; how it ended, where that is known.
    fn end(&mut self) -> Option<std::process::ExitStatus> {
        self.process.take().and_then(|process| process.kill().ok())
    }
}

impl Verifier for CommandVerifier {
    fn name(&self) -> &str {
        "command"
    }

    fn rewards(&self) -> Vec<String> {
        self.settings.rewards.clone()
    }

    fn gives(&self) -> Gives {
        Gives { label: self.settings.label, steps: self.settings.steps.is_some() }
    }

    fn judge(&self, problem: &Problem, attempt: &Attempt<'_>) -> Judgement {
        let judged = self.judge_all(&[(problem, *attempt)]).ok();
        let one = judged.and_then(|judged| judged.judgements.into_iter().next().flatten());
        one.unwrap_or_else(|| Judgement {
            rewards: vec![f32::NAN; self.settings.rewards.len()],
            ..Judgement::default()
        })
    }

    /// # Errors
    /// [`Error::is_state`] when the program failed too often in a row, or once where a failure ends the run;
    /// [`Error::is_io`] when it cannot be started again.
    fn judge_all(&self, attempts: &[(&Problem, Attempt<'_>)]) -> Result<Judged> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = Batch::new(&self.settings, attempts);
        let asked = self.ask(&mut running, &mut batch);
        if asked.is_err() {
            // Answers to this call must not be taken for those to another.
            running.end();
        }
        asked.map(|()| batch.into_judged())
    }

    /// Asks about the known answer as if it had been given.
    ///
    /// # Errors
    /// Those of [`Verifier::judge_all`], and [`Error::is_state`] for an answer that is no verdict.
    fn try_out(&self, problem: &Problem) -> Result<()> {
        let attempt = Attempt::one_shot(&problem.answer, &[], false);
        let judged = self.judge_all(&[(problem, attempt)])?;
        if judged.judgements.iter().all(Option::is_some) {
            return Ok(());
        }
        let said = self.notices.take();
        let why = said.last().map(|line| line.trim_start_matches("judge: ")).unwrap_or_default();
        Err(self.error(format!("no verdict on a first problem: {why}")))
    }

    fn notices(&self) -> Vec<String> {
        self.notices.take()
    }
}

impl Drop for CommandVerifier {
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = running.process.take() {
            process.close();
        }
    }
}
