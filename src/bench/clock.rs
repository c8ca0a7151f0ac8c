//! Time on a device, and what bounds it there: the bandwidth of a copy and the rate of a product.

use super::Work;
use super::inputs;
use crate::DType;
use crate::device::Device;
use crate::device::cpu::pool;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::error::Result;
use crate::ops;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// What the device does at best, measured in this run.
#[derive(Clone, Debug, Serialize)]
pub struct Bounds {
    /// Bytes read and written by a plain copy, 10⁹ a second.
    pub copy_gb_s: f64,
    /// Rate of a square product in f32; `None` where the device has no matrix products.
    pub product_f32_tflops: Option<f64>,
    /// The same in bf16.
    pub product_bf16_tflops: Option<f64>,
    /// Those that did not settle in the time they had: their last rounds were more than `SETTLED` apart, so other work shares the
    /// machine, and percentages of them vary from run to run.
    pub unsettled: Vec<&'static str>,
}

/// A bound has settled when each of the last [`LAST`] rounds comes within this of the best of all.
const SETTLED: f64 = 0.03;
const LAST: usize = 3;
/// Seconds after which a bound is taken as it is.
const MOST_SECONDS: f64 = 12.0;

/// Times of several rounds.
#[derive(Clone, Debug)]
pub(super) struct Time {
    pub(super) cold: Spread,
    pub(super) warm: Spread,
}

/// Median, quartiles and number of some times, ms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) quartiles: [f64; 2],
    pub(super) rounds: usize,
}

/// More than any cache holds.
const FLUSHED: usize = 256 << 20;

impl Spread {
    /// Of times that are at least `floor`.
    fn of(mut times: Vec<f64>, floor: f64) -> Spread {
        times.sort_by(f64::total_cmp);
        let last = times.len().saturating_sub(1);
        let at = |place: usize| times.get(place).copied().unwrap_or(f64::NAN).max(floor);
        // The nearest ranks, outwards: of three times the least and the largest.
        let quartiles = [at(last / 4), at((3 * last).div_ceil(4))];
        Spread { median: at(last.div_ceil(2)), quartiles, rounds: times.len() }
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Runs work until its time is known.
pub(super) fn time(
    device: &Device,
    work: &mut dyn Work,
    seconds: f64,
    quick: bool,
) -> Result<Time> {
    let flushed = if quick { 1 << 12 } else { FLUSHED };
    match device.gpu() {
        None => on_cpu(work, seconds, flushed),
        Some(gpu) => on_gpu(gpu, work, seconds, flushed),
    }
}

/// Each run by itself: the call returns when the work is done.
fn on_cpu(work: &mut dyn Work, seconds: f64, flushed: usize) -> Result<Time> {
    let mut scratch = vec![0u8; flushed];
    let mut once = |flush: bool, byte: u8| {
        work.refresh()?;
        if flush {
            pool::blocks(&mut scratch, 1 << 16, |_, part| part.fill(byte));
            std::hint::black_box(&scratch);
        }
        let start = Instant::now();
        work.run()?;
        Ok(milliseconds(start))
    };
    once(false, 0)?;
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    let started = Instant::now();
    while cold.len() < 3 || (cold.len() < 50 && started.elapsed().as_secs_f64() < seconds) {
        warm.push(once(false, 0)?);
        cold.push(once(true, cold.len() as u8)?);
    }
    Ok(Time { cold: Spread::of(cold, 0.0), warm: Spread::of(warm, 0.0) })
}

/// Many runs between two waits, so that the host's part is hidden; what empties the cache before each cold run is timed
/// by itself and taken off.
fn on_gpu(gpu: &Arc<Gpu>, work: &mut dyn Work, seconds: f64, flushed: usize) -> Result<Time> {
    let mut scratch = DeviceBuffer::recycled(gpu, DType::U8, flushed)?;
    let mut batch = |runs: usize, flush: bool, run: bool| -> Result<f64> {
        gpu.wait()?;
        let start = Instant::now();
        for i in 0..runs {
            work.refresh()?;
            if flush {
                scratch.fill_bytes(i as u8)?;
            }
            if run {
                work.run()?;
            }
        }
        gpu.wait()?;
        Ok(milliseconds(start) / runs as f64)
    };
    batch(1, true, true)?;
    let once = batch(1, false, true)?;
    // Batches of some 20 ms, several of them.
    let (runs, rounds) = if seconds > 0.0 {
        (((20.0 / once) as usize).clamp(1, 1000), ((seconds * 1e3 / 60.0) as usize).clamp(5, 25))
    } else {
        (1, 1)
    };
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (times, flush) in [(&mut warm, false), (&mut cold, true)] {
            // With the work last: its output is looked at.
            let without = batch(runs, flush, false)?;
            times.push(batch(runs, flush, true)? - without);
        }
    }
    // A difference of two times may come out at nothing for the smallest work.
    let floor = 1e-6;
    Ok(Time { cold: Spread::of(cold, floor), warm: Spread::of(warm, floor) })
}

impl Bounds {
    pub(super) fn measure(device: &Device, quick: bool) -> Result<Bounds> {
        let mut unsettled = Vec::new();
        let mut taken = |name, (rate, settled): (f64, bool)| {
            if !settled {
                unsettled.push(name);
            }
            rate
        };
        let product = |dtype| match product_tflops(device, dtype, quick) {
            Err(error) if error.is_unsupported() => Ok(None),
            other => other.map(Some),
        };
        let copy_gb_s = taken("copy", copy_gb_s(device, quick)?);
        let product_f32_tflops = product(DType::F32)?.map(|rate| taken("f32 product", rate));
        let product_bf16_tflops = product(DType::Bf16)?.map(|rate| taken("bf16 product", rate));
        Ok(Bounds { copy_gb_s, product_f32_tflops, product_bf16_tflops, unsettled })
    }

    /// The rate of products of a type; f16 is as fast as bf16 wherever both are.
    pub(super) fn product(&self, dtype: DType) -> Option<f64> {
        if dtype == DType::F32 { self.product_f32_tflops } else { self.product_bf16_tflops }
    }
}

/// The least time of `once`, since a bound is what can be reached, and whether it has settled. Rounds of five go on until it has,
/// but no longer than `most` seconds; in no time at all there is one round.
fn best(most: f64, mut once: impl FnMut() -> Result<f64>) -> Result<(f64, bool)> {
    let (started, mut rounds, mut least) = (Instant::now(), Vec::new(), f64::INFINITY);
    loop {
        let round = (0..5).try_fold(f64::INFINITY, |least, _| Ok(least.min(once()?)))?;
        rounds.push(round);
        least = least.min(round);
        if settled(&rounds, least) {
            return Ok((least, true));
        }
        if started.elapsed().as_secs_f64() >= most {
            return Ok((least, false));
        }
    }
}

fn settled(rounds: &[f64], least: f64) -> bool {
    let last = &rounds[rounds.len().saturating_sub(LAST)..];
    last.len() == LAST && last.iter().all(|round| *round <= least * (1.0 + SETTLED))
}

fn copy_gb_s(device: &Device, quick: bool) -> Result<(f64, bool)> {
    let most = if quick { 0.0 } else { MOST_SECONDS };
    let bytes = if quick { 1 << 16 } else { FLUSHED };
    let (ms, settled) = match device.gpu() {
        None => {
            let (from, mut to) = (vec![1u8; bytes], vec![2u8; bytes]);
            best(most, || {
                let start = Instant::now();
                let parts = to.chunks_mut(1 << 18).zip(from.chunks(1 << 18));
                pool::each(parts, 1, |_, (to, from)| to.copy_from_slice(from));
                std::hint::black_box(&to);
                Ok(milliseconds(start))
            })?
        }
        Some(gpu) => {
            let from = DeviceBuffer::zeros(gpu, DType::U8, bytes)?;
            let mut to = DeviceBuffer::zeros(gpu, DType::U8, bytes)?;
            best(most, || {
                gpu.wait()?;
                let start = Instant::now();
                for _ in 0..10 {
                    to.whole_mut().copy_from(from.whole())?;
                }
                gpu.wait()?;
                Ok(milliseconds(start) / 10.0)
            })?
        }
    };
    Ok((2.0 * bytes as f64 / ms * 1e-6, settled))
}

fn product_tflops(device: &Device, dtype: DType, quick: bool) -> Result<(f64, bool)> {
    let most = if quick { 0.0 } else { MOST_SECONDS };
    let n = match (quick, device.gpu()) {
        (true, _) => 16,
        (false, None) => 1024,
        (false, Some(_)) => 8192,
    };
    let a = inputs::tensor(device, dtype, &[n, n], 1)?;
    let b = inputs::tensor(device, dtype, &[n, n], 2)?;
    let wait = || device.gpu().map_or(Ok(()), |gpu| gpu.wait());
    let (ms, settled) = best(most, || {
        wait()?;
        let start = Instant::now();
        ops::matmul(&a, &b, false, true)?;
        wait()?;
        Ok(milliseconds(start))
    })?;
    Ok((2.0 * (n as f64).powi(3) / ms * 1e-9, settled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_few_and_of_many() {
        let of = |times: &[f64]| Spread::of(times.to_vec(), 0.5);
        let spread = of(&[5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!((spread.median, spread.quartiles, spread.rounds), (3.0, [2.0, 4.0], 5));
        assert_eq!(of(&[3.0, 1.0, 2.0]).quartiles, [1.0, 3.0]);
        let one = of(&[0.1]);
        assert_eq!((one.median, one.quartiles), (0.5, [0.5, 0.5]));
    }

    #[test]
    fn a_bound_is_measured_until_its_rounds_agree() {
        // Slow at first, then at its best: five times a round.
        let mut times = (0..).map(|i| if i < 20 { 10.0 - f64::from(i) * 0.4 } else { 2.0 });
        let (least, settled) = best(60.0, || Ok(times.next().unwrap())).unwrap();
        assert_eq!((least, settled), (2.0, true));
        // Never twice the same.
        let mut longer = (0..).map(|i| 1.0 + f64::from(i) * 0.1);
        let (least, settled) = best(0.01, || Ok(longer.next().unwrap())).unwrap();
        assert_eq!((least, settled), (1.0, false));
        assert!(best(1.0, || Err(crate::Error::state("broken"))).is_err());
    }
}
