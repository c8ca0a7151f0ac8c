//! A running program: requests in, lines out, its standard error, and its certain end.

use super::lines::{Line, each_line};
use super::notices::Notices;
use super::settings::CommandSettings;
use std::io::{self, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// The longest line of an answer, bytes.
const LONGEST: usize = 1 << 20;
/// The most bytes of a line of standard error that are kept.
const LONGEST_OF_ERRORS: usize = 500;
/// Lines that wait to be looked at. A program that writes more is made to wait.
const WAITING: usize = 64;
/// How long a program may take to end by itself once its standard input is closed.
const GRACE: Duration = Duration::from_secs(2);
/// How long the last lines of standard error are waited for when a program has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a program did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It wrote a line.
    Line(Vec<u8>),
    /// It writes a line without end.
    EndlessLine,
    /// It closed its standard output, which it does at the latest when it ends.
    Ended,
    /// It did nothing for as long as was waited.
    Silent,
}

/// A program that runs.
///
/// Each stream has a thread of its own, so that no amount of output or lack of reading can block the trainer. These threads
/// end with their streams and are not waited for: a descendant of the program may hold a stream open for good.
pub(super) struct Process {
    child: Child,
    group: Group,
    streams: Streams,
}

/// The ends of the threads of a program's streams.
struct Streams {
    /// Dropping it closes the program's standard input.
    requests: Option<Sender<Vec<u8>>>,
    events: Receiver<Event>,
    /// Disconnected once standard error has ended.
    errors_ended: Receiver<()>,
}

impl Process {
    /// Starts the program of some settings, the first of `command`, with the others as its arguments.
    pub(super) fn start(settings: &CommandSettings, notices: &Arc<Notices>) -> io::Result<Process> {
        let Some((program, arguments)) = settings.command.split_first() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(directory) = &settings.directory {
            command.current_dir(directory);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if std::env::var_os("PYTHONUNBUFFERED").is_none() {
            // Python keeps what is printed to a pipe in a buffer, and an answer that stays there looks like none.
            command.env("PYTHONUNBUFFERED", "1");
        }
        Group::own(&mut command);
        let mut child = command.spawn()?;
        let mut group = match Group::of(&child) {
            Ok(group) => group,
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(e);
            }
        };
        match Streams::of(&mut child, notices) {
            Ok(streams) => Ok(Process { child, group, streams }),
            Err(e) => {
                group.kill(&mut child);
                let _ = child.wait();
                Err(e)
            }
        }
    }

    /// Sends a line, its end included. What a program does not read is kept; what it cannot read any more is dropped.
    pub(super) fn send(&self, line: Vec<u8>) {
        if let Some(requests) = &self.streams.requests {
            let _ = requests.send(line);
        }
    }

    /// What it does next, waited for until `deadline`.
    pub(super) fn next(&self, deadline: Instant) -> Event {
        let wait = deadline.saturating_duration_since(Instant::now());
        match self.streams.events.recv_timeout(wait) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => Event::Silent,
            Err(RecvTimeoutError::Disconnected) => Event::Ended,
        }
    }

    /// Ends it now, with everything that it started.
    pub(super) fn kill(mut self) -> io::Result<ExitStatus> {
        self.streams.requests = None;
        // The group first: as long as the program has not been waited for, its number is nobody else's.
        self.group.kill(&mut self.child);
        let status = self.child.wait();
        let _ = self.streams.errors_ended.recv_timeout(LAST_WORDS);
        status
    }

    /// Closes its standard input, gives it a moment to end by itself, and then ends it.
    pub(super) fn close(mut self) {
        self.streams.requests = None;
        let deadline = Instant::now() + GRACE;
        while !matches!(self.next(deadline), Event::Ended | Event::Silent | Event::EndlessLine) {
            if Instant::now() >= deadline {
                break;
            }
        }
        let _ = self.kill();
    }
}

impl Streams {
    /// Starts the threads: what is sent to the program, what it does, and what it says on its standard error.
    fn of(child: &mut Child, notices: &Arc<Notices>) -> io::Result<Streams> {
        let (requests, to_write) = channel::<Vec<u8>>();
        if let Some(mut stdin) = child.stdin.take() {
            Builder::new().name("judge requests".to_owned()).spawn(move || {
                // Fails when the program closes its input, which shows in what it answers.
                to_write.into_iter().all(|line| stdin.write_all(&line).is_ok());
            })?;
        }
        let (happened, events) = sync_channel(WAITING);
        if let Some(stdout) = child.stdout.take() {
            Builder::new().name("judge answers".to_owned()).spawn(move || {
                each_line(stdout, LONGEST, |line| match line {
                    Line::Whole(line) => happened.send(Event::Line(line)).is_ok(),
                    Line::Cut(_) => {
                        let _ = happened.send(Event::EndlessLine);
                        false
                    }
                });
                let _ = happened.send(Event::Ended);
            })?;
        }
        let (ended, errors_ended) = channel();
        if let Some(stderr) = child.stderr.take() {
            let notices = Arc::clone(notices);
            Builder::new().name("judge errors".to_owned()).spawn(move || {
                each_line(stderr, LONGEST_OF_ERRORS, |line| {
                    let (Line::Whole(line) | Line::Cut(line)) = line;
                    notices.heard(&String::from_utf8_lossy(&line));
                    true
                });
                drop(ended);
            })?;
        }
        Ok(Streams { requests: Some(requests), events, errors_ended })
    }
}

/// The process group of a program: the program and what it started.
///
/// A second process, a shell that waits for the end of its input, kills the group when this one lets go of it: on purpose, or
/// because it was killed itself. So the program cannot outlive the trainer, however that ends.
#[cfg(unix)]
struct Group {
    guard: Child,
}

#[cfg(unix)]
impl Group {
    /// Gives a program that is about to start a group of its own.
    fn own(command: &mut Command) {
        std::os::unix::process::CommandExt::process_group(command, 0);
    }

    /// The group of a program that was started with one.
    fn of(child: &Child) -> io::Result<Group> {
        let mut guard = Command::new("/bin/sh");
        guard
            .args(["-c", "read -r _; kill -s KILL -- \"-$1\"", "guard"])
            .arg(child.id().to_string());
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Not in the trainer's group either: what ends the trainer must not end the guard before it has done its work.
        Group::own(&mut guard);
        Ok(Group { guard: guard.spawn()? })
    }

    fn kill(&mut self, child: &mut Child) {
        drop(self.guard.stdin.take());
        let killed = self.guard.wait().is_ok_and(|status| status.success());
        if !killed {
            let _ = child.kill();
        }
    }
}

/// The program alone, where the system knows no process groups.
#[cfg(not(unix))]
struct Group;

#[cfg(not(unix))]
impl Group {
    fn own(_command: &mut Command) {}

    fn of(_child: &Child) -> io::Result<Group> {
        Ok(Group)
    }

    fn kill(&mut self, child: &mut Child) {
        let _ = child.kill();
    }
}
