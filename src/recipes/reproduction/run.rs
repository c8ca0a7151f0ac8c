//! All arms and seeds of a paper, one run a core.

use super::{Outcome, Paper, Report, Seeds};
use crate::device::cpu::pool;
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

enum Job<S> {
    Prepare { start: usize, seed: usize },
    Run { arm: usize, seed: usize, from: Arc<S> },
}

struct Queue<S> {
    jobs: VecDeque<Job<S>>,
    /// Starts that are being made: more jobs may come.
    preparing: usize,
    finished: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs every arm with every seed on `workers` threads and judges the claims. Each run computes on one thread; its
/// bits depend on the arm and the seed alone, not on `workers`.
///
/// `told(done, of, what)` hears of every finished start and run. A run that fails or panics is in the report as that.
///
/// # Errors
/// [`Error::is_invalid`] when the operating system refuses the threads.
pub fn run<P: Paper>(
    paper: &P,
    seeds: Seeds,
    workers: usize,
    command: String,
    told: &(dyn Fn(usize, usize, &str) + Sync),
) -> Result<Report> {
    let began = Instant::now();
    let (arms, numbers) = (paper.arms(), seeds.iter().collect::<Vec<u64>>());
    let starts = arms.iter().map(|arm| arm.start + 1).max().unwrap_or(0);
    let missing = || Err("not run".to_owned());
    let runs: Vec<Vec<Result<Outcome, String>>> =
        arms.iter().map(|_| numbers.iter().map(|_| missing()).collect()).collect();
    let runs = Mutex::new(runs);
    let total = (starts + arms.len()) * numbers.len();
    let jobs = (0..numbers.len())
        .flat_map(|seed| (0..starts).map(move |start| Job::Prepare { start, seed }))
        .collect();
    let queue = Mutex::new(Queue::<P::Start> { jobs, preparing: 0, finished: 0 });
    let changed = Condvar::new();

    let next = || {
        let mut queue = lock(&queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                queue.preparing += usize::from(matches!(job, Job::Prepare { .. }));
                return Some(job);
            }
            if queue.preparing == 0 {
                return None;
            }
            queue = changed.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    };
    let finish = |more: Vec<Job<P::Start>>, prepared: bool, steps: usize, what: &str| {
        let mut queue = lock(&queue);
        queue.preparing -= usize::from(prepared);
        // Before the starts of other seeds: memory stays small and the first results come early.
        for job in more.into_iter().rev() {
            queue.jobs.push_front(job);
        }
        queue.finished += steps;
        told(queue.finished, total, what);
        changed.notify_all();
    };
    let work = || {
        while let Some(job) = next() {
            match job {
                Job::Prepare { start, seed } => {
                    let made = guarded(|| paper.prepare(start, numbers[seed]));
                    let mine = (0..arms.len()).filter(|arm| arms[*arm].start == start);
                    let what = format!("start of seed {}", numbers[seed]);
                    match made {
                        Ok(made) => {
                            let from = Arc::new(made);
                            let run = |arm| Job::Run { arm, seed, from: Arc::clone(&from) };
                            finish(mine.map(run).collect(), true, 1, &what);
                        }
                        Err(message) => {
                            let steps = mine.clone().count() + 1;
                            let mut runs = lock(&runs);
                            mine.for_each(|arm| runs[arm][seed] = Err(message.clone()));
                            drop(runs);
                            finish(Vec::new(), true, steps, &format!("{what} failed: {message}"));
                        }
                    }
                }
                Job::Run { arm, seed, from } => {
                    let outcome = guarded(|| paper.run(arm, numbers[seed], &from));
                    drop(from);
                    let mut what = format!("{} of seed {}", arms[arm].name, numbers[seed]);
                    if let Err(message) = &outcome {
                        what += &format!(" failed: {message}");
                    }
                    lock(&runs)[arm][seed] = outcome;
                    finish(Vec::new(), false, 1, &what);
                }
            }
        }
    };
    let workers = workers.clamp(1, total.max(1));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(|| pool::alone(work))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::state("a worker thread panicked")))
        })
    })?;

    let mut report = Report {
        description: paper.description(),
        command,
        seeds,
        arms,
        metrics: paper.metrics(),
        figures: paper.figures(),
        runs: runs.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()),
        claims: Vec::new(),
        seconds: began.elapsed().as_secs_f64(),
        workers,
    };
    let judge = |claim: super::Claim| {
        claim.judge(&report.arms, &report.metrics, &|arm, metric| report.values(arm, metric))
    };
    report.claims = paper.claims().into_iter().map(judge).collect();
    Ok(report)
}

/// The result of `work`, a panic as a message.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(format!("panic: {}", text.unwrap_or_else(|| "no message".to_owned())))
        }
    }
}
