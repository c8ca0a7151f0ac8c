//! Noise of block diffusion for 64 × 4096 tokens, blocks of 4: the published clipped form, the exact counts, and the
//! plain schedule.
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use gradstone::device::cpu::pool;
use gradstone::kernels::block_noise::{Draw, Forward, Noise, Rate, forward};
use timing::{Memory, Options, Work};

const SEQUENCES: usize = 64;
const LENGTH: usize = 4096;
const BLOCK: usize = 4;
/// An id read; id, mask and weight written; a rate a block.
const BYTES: usize = SEQUENCES * LENGTH * (4 + 4 + 1 + 4 + 4 / BLOCK);

fn main() {
    let options = Options::from_args();
    let tokens = SEQUENCES * LENGTH;
    let ids: Vec<i32> = (0..tokens as i32).map(|i| i % 31_999).collect();
    let sequences: Vec<u64> = (0..SEQUENCES as u64).collect();
    let eligible: Vec<u8> = (0..tokens).map(|i| u8::from(i % LENGTH > 511)).collect();
    let mut noised = vec![0i32; tokens];
    let mut mask = vec![0u8; tokens];
    let mut weight = vec![0f32; tokens];
    let mut rate = vec![0f32; tokens / BLOCK];
    let clipped = Noise::clipped(BLOCK, 31_999, 32_000, 1);
    let plain = Noise {
        rate: Rate::Range { low: 1e-3, high: 1.0 },
        draw: Draw::Independent { forced: false },
        ..clipped
    };
    let counted = Noise { draw: Draw::Counted { least: 1, most: 3 }, ..clipped };
    for threads in &options.threads {
        pool::set_threads(*threads).unwrap();
        let memory = Memory::measure();
        for (op, noise, prompt) in [
            ("block_noise_plain", plain, false),
            ("block_noise_clipped", clipped, false),
            ("block_noise_clipped_prompt", clipped, true),
            ("block_noise_counted", counted, false),
        ] {
            if !options.wants(op) {
                continue;
            }
            let time = options.time(|| {
                let args = Forward {
                    ids: &ids,
                    eligible: prompt.then_some(&eligible),
                    sequences: &sequences,
                    length: LENGTH,
                    given: None,
                    noised: &mut noised,
                    mask: &mut mask,
                    weight: &mut weight,
                    rate: &mut rate,
                };
                forward(&noise, args).unwrap();
            });
            let bound = 1e3 * memory.update * BYTES as f64;
            let shape = [SEQUENCES, LENGTH, BLOCK];
            timing::print(op, &shape, "i32", time, bound, &Work::Bytes(BYTES));
        }
    }
}
