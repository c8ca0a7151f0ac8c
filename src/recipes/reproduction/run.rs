//! All arms and seeds of a study, one run per core.

use super::claim::Claim;
use super::experiment::{ArmSettings, Experiment, Outcome};
use super::plan::{Plan, Planned, Request, plan};
use super::report::Report;
use crate::device::cpu::pool;
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// Hears `(done, of, what)` of every finished preparation and run.
pub type Told<'a> = dyn Fn(usize, usize, &str) + Sync + 'a;

enum Job<S> {
    /// All starts of a seed.
    Prepare {
        seed: usize,
    },
    Run {
        arm: usize,
        seed: usize,
        from: Arc<S>,
    },
}

struct Queue<S> {
    jobs: VecDeque<Job<S>>,
    /// Seeds whose starts are being made: more jobs may come.
    preparing: usize,
    finished: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs every requested arm with every seed on `workers` threads and judges the claims. Each run computes on one
/// thread; its bits depend on its settings and the seed alone, not on `workers` nor on the other arms. `paper` is the
/// name of the paper in the command that the report repeats.
///
/// `told(done, of, what)` hears of every finished preparation and run. A run that fails or panics is in the report as
/// that.
///
/// # Errors
/// [`Error::is_invalid`] for a request that makes no sense, and when the operating system refuses the threads.
pub fn run<E: Experiment>(
    request: &Request,
    paper: &str,
    workers: usize,
    told: &Told<'_>,
) -> Result<Report> {
    let began = Instant::now();
    let plan = plan::<E>(request)?;
    let (arms, numbers) = (&plan.arms, plan.seeds.iter().collect::<Vec<u64>>());
    let missing = || Err("not run".to_owned());
    let runs: Vec<Vec<Result<Outcome, String>>> =
        arms.iter().map(|_| numbers.iter().map(|_| missing()).collect()).collect();
    let runs = Mutex::new(runs);
    let total = (1 + arms.len()) * numbers.len();
    let jobs = (0..numbers.len()).map(|seed| Job::Prepare { seed }).collect();
    let queue = Mutex::new(Queue::<E::Start> { jobs, preparing: 0, finished: 0 });
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
    let finish = |more: Vec<Job<E::Start>>, prepared: bool, steps: usize, what: &str| {
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
                Job::Prepare { seed } => {
                    let made = guarded(|| prepared::<E>(&plan.starts, numbers[seed]));
                    let what = format!("start of seed {}", numbers[seed]);
                    match made {
                        Ok(made) => {
                            let made: Vec<Arc<E::Start>> = made.into_iter().map(Arc::new).collect();
                            let run = |(arm, planned): (usize, &Planned<_>)| {
                                let from = Arc::clone(made.get(planned.start)?);
                                Some(Job::Run { arm, seed, from })
                            };
                            let more = arms.iter().enumerate().filter_map(run).collect();
                            finish(more, true, 1, &what);
                        }
                        Err(message) => {
                            let mut runs = lock(&runs);
                            runs.iter_mut().for_each(|arm| arm[seed] = Err(message.clone()));
                            drop(runs);
                            let steps = arms.len() + 1;
                            finish(Vec::new(), true, steps, &format!("{what} failed: {message}"));
                        }
                    }
                }
                Job::Run { arm, seed, from } => {
                    let outcome = guarded(|| {
                        complete::<E>(E::run(&arms[arm].settings, numbers[seed], &from)?)
                    });
                    drop(from);
                    let mut what = format!("{} of seed {}", arms[arm].named.name, numbers[seed]);
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

    let runs = runs.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let command = request.command(paper, plan.seeds);
    Ok(judged(plan, command, runs, began.elapsed().as_secs_f64(), workers))
}

/// The report of `runs[arm][seed]`, its claims judged.
pub(crate) fn judged<S>(
    plan: Plan<S>,
    command: String,
    runs: Vec<Vec<Result<Outcome, String>>>,
    seconds: f64,
    workers: usize,
) -> Report {
    let mut report = Report {
        command,
        seeds: plan.seeds,
        arms: plan.arms.into_iter().map(|arm| arm.named).collect(),
        description: plan.description,
        metrics: plan.metrics,
        figures: plan.figures,
        runs,
        claims: Vec::new(),
        seconds,
        workers,
    };
    let judge = |claim: Claim| {
        let metric = claim.metric.clone();
        claim.judge(&|arm| report.named_values(arm, &metric))
    };
    report.claims = plan.claims.into_iter().map(judge).collect();
    report
}

/// The starts of a seed, as many as there are settings.
fn prepared<E: Experiment>(
    settings: &[ArmSettings<E::Settings, E::Own>],
    seed: u64,
) -> Result<Vec<E::Start>> {
    let made = E::prepare(settings, seed)?;
    match made.len() == settings.len() {
        true => Ok(made),
        false => Err(Error::state(format!("{} starts made, not {}", made.len(), settings.len()))),
    }
}

/// An outcome with a value for every metric and no curve but those that are declared.
fn complete<E: Experiment>(outcome: Outcome) -> Result<Outcome> {
    if outcome.metrics.len() != E::METRICS.len() {
        let (given, wanted) = (outcome.metrics.len(), E::METRICS.len());
        return Err(Error::state(format!("a run gave {given} metrics, not {wanted}")));
    }
    match outcome.curves.iter().find(|curve| !E::CURVES.contains(&curve.name)) {
        Some(curve) => {
            Err(Error::state(format!("a run gave an undeclared curve `{}`", curve.name)))
        }
        None => Ok(outcome),
    }
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
