//! Optimizer chunks and the noise of block diffusion.

use super::args::*;
use super::{BLOCKS, Cases, FAR, blocks, zeroed};
use gradstone::dtype::DType;

pub fn cases(cases: &mut Cases) {
    adamw(cases);
    gradient_norm(cases);
    block_noise(cases);
}

const CHUNK: i64 = ADAMW_CHUNK as i64;
/// Elements of the last parameter that exist: a chunk and part of one.
const ELEMENTS: i64 = CHUNK + 1030;

/// Chunks before the last parameter. Its own elements before the ones that exist are `FAR` of them, chunks too.
fn chunks_before(at: i64) -> i64 {
    if at == 0 { 0 } else { BLOCKS - FAR / CHUNK }
}

/// Two parameters, the first of which has no element that exists.
fn parameters(at: i64, last: AdamWParameter) -> [AdamWParameter; 2] {
    let first = AdamWParameter { len: chunks_before(at) * CHUNK, first_chunk: 0, ..zeroed() };
    [first, AdamWParameter { len: at + ELEMENTS, first_chunk: chunks_before(at), ..last }]
}

fn adamw(cases: &mut Cases) {
    cases.check("gradient_squares", FAR, |run| {
        let gradient = run.floats(DType::F32, run.at, ELEMENTS);
        let table = parameters(run.at, AdamWParameter { gradient, ..zeroed() });
        let chunk = table[1].first_chunk + run.at / CHUNK;
        let args = GradientSquaresArgs {
            table: run.input(0, &table),
            partial: run.blank(DType::I64, chunk, 2), // words of eight bytes
            parameters: 2,
            chunks: chunk + 2,
        };
        run.launch([args.chunks, 1, 1], 256, 0, &args);
    });
    let copies = [(ADAMW_F32, DType::F32), (ADAMW_BF16, DType::Bf16), (ADAMW_F16, DType::F16)];
    for (copy_type, dtype) in copies {
        cases.check("adamw", FAR, |run| {
            let state = |most: f32| -> Vec<f32> {
                run.numbers(ELEMENTS).iter().map(|x| (x + 0.5) * most).collect()
            };
            let last = AdamWParameter {
                weight: run.output(run.at, &state(1.0)),
                mean: run.output(run.at, &state(0.1)),
                variance: run.output(run.at, &state(0.01)),
                gradient: run.floats(DType::F32, run.at, ELEMENTS),
                copy: run.blank(dtype, run.at, ELEMENTS),
                copy_type,
                decays: 1,
                ..zeroed()
            };
            let table = parameters(run.at, last);
            let chunks = table[1].first_chunk + run.at / CHUNK + 2;
            let args = AdamWArgs {
                table: run.input(0, &table),
                result: run.input(0, &[GradientNorm { norm: 1.0, scale: 0.5, bad: -1 }]),
                parameters: 2,
                chunks,
                keep: 0.99,
                beta1: 0.9,
                beta2: 0.999,
                fresh1: 0.1,
                fresh2: 0.001,
                rate: 1e-3,
                correction2: 1.1,
                epsilon: 1e-8,
            };
            run.launch([chunks, 1, 1], 256, 0, &args);
        });
    }
}

/// One block for all chunks: as many as that many elements have.
fn gradient_norm(cases: &mut Cases) {
    for last in [0.25f64, f64::INFINITY] {
        cases.check("gradient_norm", FAR / CHUNK, |run| {
            let table: [AdamWParameter; 2] = [
                AdamWParameter { len: run.at * CHUNK, ..zeroed() },
                AdamWParameter { len: 2 * CHUNK, first_chunk: run.at, ..zeroed() },
            ];
            let none = GradientNorm { norm: -1.0, scale: -1.0, bad: -7 };
            let args = GradientNormArgs {
                table: run.input(0, &table),
                partial: run.sparse(&[(run.at, &[0.5, last])]),
                result: run.output(0, &[none]),
                parameters: 2,
                chunks: run.at + 2,
                most: 0.1,
            };
            run.launch([1, 1, 1], 256, 0, &args);
        });
    }
}

fn block_noise(cases: &mut Cases) {
    let (count, length, tile) = (3, 64, 2);
    // A block of four is one thread's from its keys to its tokens, where it is not counted.
    for (block, draw) in [(16, NOISE_FORCED), (16, NOISE_COUNTED), (4, NOISE_FORCED)] {
        let blocks_of_row = length / block;
        let tiles = blocks(blocks_of_row, tile);
        cases.check("block_noise", BLOCKS / tiles, |run| {
            let rows = run.at + count;
            let (tokens, of_blocks) = (run.at * length, run.at * blocks_of_row);
            let eligible: Vec<u8> = (0..count * length).map(|i| u8::from(i % 5 != 0)).collect();
            let ids: Vec<i32> = (0..(count * length) as i32).collect();
            let args = BlockNoiseArgs {
                ids: run.input(tokens, &ids),
                eligible: run.input(tokens, &eligible),
                sequences: run.input(run.at, &[5i64, 7, 1 << 40]),
                noised: run.blank(DType::I32, tokens, count * length),
                mask: run.blank(DType::U8, tokens, count * length),
                weight: run.blank(DType::F32, tokens, count * length),
                rate: run.blank(DType::F32, of_blocks, count * blocks_of_row),
                rows,
                length,
                seed: 3,
                block: block as i32,
                tile: tile as i32,
                mask_id: -5,
                draw,
                weighting: NOISE_WEIGHT_UNBIASED,
                least_count: 1,
                most_count: 12,
                before: 1.0,
                low: 0.1,
                slope: 0.8,
                high: 1.0,
                after: 1.0,
                ..zeroed()
            };
            let shared = (tile * block + 2 * tile) as u32 * 4;
            run.launch([rows * tiles, 1, 1], 256, shared, &args);
        });
    }
    // Rates and weights that are given.
    let block = 16;
    let blocks_of_row = length / block;
    let tiles = blocks(blocks_of_row, tile);
    cases.check("block_noise", BLOCKS / tiles, |run| {
        let rows = run.at + count;
        let (tokens, of_blocks) = (run.at * length, run.at * blocks_of_row);
        let given: Vec<f32> = run.numbers(count * blocks_of_row).iter().map(|x| x + 0.5).collect();
        let args = BlockNoiseArgs {
            ids: run.input(tokens, &vec![9i32; (count * length) as usize]),
            sequences: run.input(run.at, &[5i64, 7, 8]),
            given_rate: run.input(of_blocks, &given),
            given_weight: run.floats(DType::F32, of_blocks, count * blocks_of_row),
            noised: run.blank(DType::I32, tokens, count * length),
            mask: run.blank(DType::U8, tokens, count * length),
            weight: run.blank(DType::F32, tokens, count * length),
            rate: run.blank(DType::F32, of_blocks, count * blocks_of_row),
            rows,
            length,
            block: block as i32,
            tile: tile as i32,
            mask_id: -5,
            draw: NOISE_INDEPENDENT,
            ..zeroed()
        };
        let shared = (tile * block + 2 * tile) as u32 * 4;
        run.launch([rows * tiles, 1, 1], 256, shared, &args);
    });
}
