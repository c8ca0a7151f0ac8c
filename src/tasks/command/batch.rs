//! Attempts on their way through a program: which are sent, which wait, which is to blame for a failure.

use super::protocol::{self, Expected};
use super::settings::CommandSettings;
use crate::tasks::judgement::{Fault, Judged};
use crate::tasks::problem::Problem;
use crate::tasks::steps::{Segmented, segment};
use crate::tasks::verifier::Attempt;
use std::collections::{BTreeMap, VecDeque};

/// What a line came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// An answer to an attempt, and in words why it is no verdict, where it is none.
    Answer(Option<String>),
    /// A line that answers no attempt, in words; an empty line needs none.
    Stray(Option<String>),
}

/// The attempts of one call.
///
/// An attempt is left out for a failure of the program only if the program failed when this attempt was all that it had ever
/// been asked. After any other failure the attempts that waited are suspects: they are sent again one at a time. So an attempt
/// that crashes the program costs itself alone, and which attempts are left out does not depend on what they were sent with.
pub(super) struct Batch<'a> {
    settings: &'a CommandSettings,
    attempts: &'a [(&'a Problem, Attempt<'a>)],
    parts: Vec<Option<Segmented>>,
    fresh: VecDeque<usize>,
    suspects: VecDeque<usize>,
    /// The attempt that waits is a suspect.
    alone: bool,
    /// The attempts that wait for an answer, by the id that they were sent with.
    waiting: BTreeMap<u64, usize>,
    judged: Judged,
    left: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        settings: &'a CommandSettings,
        attempts: &'a [(&'a Problem, Attempt<'a>)],
    ) -> Batch<'a> {
        let judged = Judged { judgements: vec![None; attempts.len()], ..Judged::default() };
        let cut = |(_, attempt): &(&Problem, Attempt<'_>)| {
            settings.steps.map(|how| segment(attempt.text, how))
        };
        Batch {
            settings,
            attempts,
            parts: attempts.iter().map(cut).collect(),
            fresh: (0..attempts.len()).collect(),
            suspects: VecDeque::new(),
            alone: false,
            waiting: BTreeMap::new(),
            judged,
            left: attempts.len(),
        }
    }

    /// True when every attempt has a verdict or is left out.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// True when no attempt waits for an answer.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next line to send, its attempt waiting under `id` from then on; `None` when no more is to be sent now.
    pub(super) fn next(&mut self, id: u64) -> Option<Vec<u8>> {
        let idle = self.waiting.is_empty();
        let at = if !self.suspects.is_empty() && idle {
            self.alone = true;
            self.suspects.pop_front()?
        } else if self.suspects.is_empty()
            && (idle || !self.alone)
            && self.waiting.len() < self.settings.in_flight
        {
            self.alone = false;
            self.fresh.pop_front()?
        } else {
            return None;
        };
        self.waiting.insert(id, at);
        let (problem, attempt) = self.attempts.get(at)?;
        Some(protocol::request(id, problem, attempt, self.parts[at].as_ref()))
    }

    /// Takes a line of the program. Ids below `issued` were sent at some time.
    pub(super) fn take(&mut self, line: &[u8], issued: u64) -> Came {
        if line.trim_ascii().is_empty() {
            return Came::Stray(None);
        }
        let mut stray = |fault, what: &str| {
            self.judged.faults.add(fault);
            let line = protocol::shortened(&String::from_utf8_lossy(line));
            Came::Stray(Some(format!("{what}: {line}")))
        };
        let (id, answer) = match protocol::reply(line) {
            Ok(reply) => reply,
            Err(Fault::NotJson) => return stray(Fault::NotJson, "a line that is no JSON object"),
            Err(fault) => return stray(fault, "an answer without an id"),
        };
        let Some(at) = self.waiting.remove(&id) else {
            return match id < issued {
                true => stray(Fault::AnsweredTwice, "a second answer to one id"),
                false => stray(Fault::UnknownId, "an answer to an id that was never sent"),
            };
        };
        self.left -= 1;
        let expected = Expected {
            rewards: &self.settings.rewards,
            label: self.settings.label,
            steps: self.parts[at].as_ref(),
        };
        match protocol::judgement(&answer, &expected) {
            Ok(judgement) => {
                self.judged.judgements[at] = Some(judgement);
                Came::Answer(None)
            }
            Err((fault, what)) => {
                self.judged.faults.add(fault);
                Came::Answer(Some(format!("answer to id {id}: {what}")))
            }
        }
    }

    /// The program failed and is gone, after so many requests since it was started. True when this cost an attempt.
    pub(super) fn failed(&mut self, fault: Fault, asked: u64) -> bool {
        self.judged.faults.add(fault);
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.len() == 1 && asked == 1 {
            self.left -= 1;
            return true;
        }
        // In the order in which they were sent, before those that became suspects earlier and were not sent yet.
        for at in waiting.into_values().rev() {
            self.suspects.push_front(at);
        }
        false
    }

    /// What became of the attempts.
    pub(super) fn into_judged(self) -> Judged {
        self.judged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> CommandSettings {
        CommandSettings { in_flight: 3, ..CommandSettings::default() }
    }

    fn answer(id: u64) -> Vec<u8> {
        format!("{{\"id\": {id}, \"reward\": {id}}}").into_bytes()
    }

    fn ids(batch: &mut Batch<'_>, from: u64) -> Vec<u64> {
        (from..).take_while(|id| batch.next(*id).is_some()).collect()
    }

    #[test]
    fn a_failure_with_several_waiting_makes_suspects() {
        let settings = settings();
        let problem = Problem::text(0, "q", "a");
        let attempts = vec![(&problem, Attempt::one_shot("t", &[], false)); 5];
        let mut batch = Batch::new(&settings, &attempts);
        assert_eq!(ids(&mut batch, 0), [0, 1, 2]);
        assert_eq!(batch.take(&answer(1), 3), Came::Answer(None));
        assert_eq!(ids(&mut batch, 3), [3]);
        assert!(!batch.failed(Fault::Crashed, 4) && batch.is_idle());
        // Attempts 0, 2 and 3 are sent again one at a time, then the last.
        assert_eq!(ids(&mut batch, 10), [10]);
        assert_eq!(batch.take(&answer(10), 11), Came::Answer(None));
        assert_eq!(ids(&mut batch, 11), [11]);
        // Attempt 2 was alone, but the program had answered another before it.
        assert!(!batch.failed(Fault::TimedOut, 2));
        assert_eq!(ids(&mut batch, 20), [20]);
        assert!(batch.failed(Fault::TimedOut, 1));
        assert_eq!(ids(&mut batch, 12), [12]);
        assert_eq!(batch.take(&answer(12), 13), Came::Answer(None));
        assert_eq!(ids(&mut batch, 13), [13]);
        assert_eq!(batch.take(&answer(13), 14), Came::Answer(None));
        assert!(batch.is_done() && batch.next(14).is_none());
        let judged = batch.into_judged();
        let rewards: Vec<f32> = judged.totals();
        assert_eq!((rewards[0], rewards[1], rewards[3], rewards[4]), (10.0, 1.0, 12.0, 13.0));
        assert!(rewards[2].is_nan());
        assert_eq!(judged.faults.count(Fault::Crashed), 1);
        assert_eq!(judged.faults.count(Fault::TimedOut), 2);
    }

    #[test]
    fn lines_that_answer_nothing_change_nothing() {
        let settings = settings();
        let problem = Problem::text(0, "q", "a");
        let attempts = vec![(&problem, Attempt::one_shot("t", &[], false)); 2];
        let mut batch = Batch::new(&settings, &attempts);
        assert_eq!(ids(&mut batch, 5), [5, 6]);
        for line in [&b"hello"[..], &answer(4), &answer(7), b"{\"reward\": 1}"] {
            assert!(matches!(batch.take(line, 7), Came::Stray(Some(_))));
        }
        assert_eq!(batch.take(b" \r", 7), Came::Stray(None));
        assert_eq!(batch.take(&answer(6), 7), Came::Answer(None));
        assert!(matches!(batch.take(&answer(6), 7), Came::Stray(_)));
        assert!(matches!(batch.take(b"{\"id\": 5}", 7), Came::Answer(Some(_))));
        assert!(batch.is_done());
        let judged = batch.into_judged();
        assert!(judged.judgements[0].is_none() && judged.judgements[1].is_some());
        let count = |fault| judged.faults.count(fault);
        assert_eq!(
            [Fault::NotJson, Fault::UnknownId, Fault::AnsweredTwice, Fault::Malformed].map(count),
            [1, 2, 2, 1]
        );
    }
}
