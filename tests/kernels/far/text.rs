//! Ids to bytes, and image ids to vectors and back.

use super::args::*;
use super::{BLOCKS, Cases, FAR, Run, WALKED, blocks, zeroed};
use gradstone::dtype::DType;

pub fn cases(cases: &mut Cases) {
    lengths(cases);
    places(cases);
    for long in [20, 200] {
        copy(cases, long);
    }
    for channel_last in [0, 1] {
        vectors_of_images(cases, channel_last);
    }
    vectors_of_one_image(cases);
}

const TILE: i64 = DECODE_TILE as i64;
/// Where long tokens begin that there are: an entry says so in 32 bits.
const LONG: i64 = 3 << 30;
const ENDS: [i64; 5] = [0, 100, 100, 220, TILE + 300];
const TOKENS: i64 = ENDS[4];

/// A vocabulary whose ids lie as far as an int32 goes, and texts in it.
struct Texts {
    first_id: i64,
    ids: Vec<i32>,
    /// Of each token, the special ones left out.
    lengths: Vec<u32>,
    long: u32,
}

impl Texts {
    fn new(run: &Run, long: u32) -> Texts {
        let first_id = run.up_to(BLOCKS);
        // A space first, a letter of two single bytes, one that is left out, a long one.
        let pattern = [1usize, 2, 3, 0, 4, 5, 0];
        let of = |token: i64| pattern[token as usize % 7];
        let ids = (0..TOKENS).map(|token| first_id as i32 + of(token) as i32).collect();
        let lengths = (0..TOKENS).map(|token| [2, 2, 1, 1, 0, long][of(token)]).collect();
        Texts { first_id, ids, lengths, long }
    }

    fn entries<P>(&self, run: &Run, letter: u8) -> *const P {
        let entry = |bytes: &[u8], flags: u32| {
            let mut entry = [0u8; 16];
            entry[..bytes.len()].copy_from_slice(bytes);
            entry[15] = bytes.len() as u8 | flags as u8;
            entry
        };
        let mut long = entry(&[], DECODE_LONG);
        long[..4].copy_from_slice(&(run.up_to(LONG) as u32).to_le_bytes());
        long[4..8].copy_from_slice(&self.long.to_le_bytes());
        let entries = [
            entry(&[b'a', letter], 0),
            entry(b" c", 0),
            entry(&[0xc3], DECODE_FALLBACK),
            entry(&[0xa9], DECODE_FALLBACK),
            entry(b"<s>", DECODE_SPECIAL),
            long,
        ];
        run.input(self.first_id, &entries)
    }

    /// The texts' ends. Bisection reads those before, too: no token is in them.
    fn segments(&self, run: &Run) -> *const i64 {
        run.sparse(&[(run.at, &ENDS.map(|end| run.at + end))])
    }

    /// Where each token's bytes begin, and where the last end, from `base` on.
    fn starts(&self, base: i64) -> Vec<i64> {
        let mut starts = vec![base];
        for length in &self.lengths {
            starts.push(starts[starts.len() - 1] + i64::from(*length));
        }
        starts
    }

    fn args(&self, run: &Run) -> TokenDecodeArgs {
        let letters: Vec<u8> = (0..self.long as u8).map(|i| b'A' + i % 26).collect();
        TokenDecodeArgs {
            ids: run.input(run.at, &self.ids),
            entries: self.entries(run, b'b'),
            first: self.entries(run, b'B'),
            long_tokens: run.input(run.up_to(LONG), &letters),
            status: run.quiet(0, &[0u32]),
            tokens: run.at + TOKENS,
            texts: run.at + 4,
            vocab: self.first_id as i32 + 6,
            skip_special: 1,
            strip: u32::from(b' '),
            strip_count: 1,
            ..zeroed()
        }
    }
}

fn lengths(cases: &mut Cases) {
    cases.check("decode_lengths", FAR, |run| {
        let texts = Texts::new(run, 20);
        let mut args = texts.args(run);
        args.segments = texts.segments(run);
        args.lengths = run.blank(DType::I32, run.at, TOKENS);
        run.launch([blocks(args.tokens, 256), 1, 1], 256, 0, &args);
    });
    cases.check("decode_strip", FAR, |run| {
        let texts = Texts::new(run, 20);
        let mut args = texts.args(run);
        args.segments = run.input(run.at, &ENDS.map(|end| run.at + end));
        args.lengths = run.output(run.at, &texts.lengths);
        run.launch([blocks(args.texts, 256), 1, 1], 256, 0, &args);
    });
}

fn places(cases: &mut Cases) {
    cases.check("decode_tile_sums", FAR, |run| {
        let texts = Texts::new(run, 20);
        let mut args = texts.args(run);
        args.lengths = run.given(run.at, &texts.lengths);
        args.sums = run.output(run.at / TILE, &[-1i64; 2]);
        run.launch([blocks(args.tokens, TILE), 1, 1], 256, 0, &args);
    });
    // One block for all tiles, of which those before are empty.
    cases.check("decode_scan_tiles", WALKED, |run| {
        let args = TokenDecodeArgs {
            sums: run.sparse_output(&[(run.at / TILE, &[1i64 << 40, 7, -1])]),
            starts: run.output(run.at + TOKENS, &[-1i64]),
            tokens: run.at + TOKENS,
            ..zeroed()
        };
        run.launch([1, 1, 1], 256, 0, &args);
    });
    cases.check("decode_starts", FAR, |run| {
        let texts = Texts::new(run, 20);
        let starts = texts.starts(run.at);
        let mut args = texts.args(run);
        args.lengths = run.given(run.at, &texts.lengths);
        args.sums = run.given(run.at / TILE, &[starts[0], starts[TILE as usize]]);
        args.starts = run.indices(run.at, TOKENS, run.at);
        run.launch([blocks(args.tokens, TILE), 1, 1], 256, 0, &args);
    });
    cases.check("decode_offsets", FAR, |run| {
        let texts = Texts::new(run, 20);
        let mut args = texts.args(run);
        args.segments = run.input(run.at, &ENDS.map(|end| run.at + end));
        args.starts = run.given(run.at, &texts.starts(run.at));
        args.offsets = run.indices(run.at, 5, run.at);
        run.launch([blocks(args.texts + 1, 256), 1, 1], 256, 0, &args);
    });
}

/// Tiles that fit the stage and tiles that do not; the last three bytes have no room.
fn copy(cases: &mut Cases, long: u32) {
    cases.check("decode_copy", FAR, |run| {
        let texts = Texts::new(run, long);
        let starts = texts.starts(run.at);
        let mut args = texts.args(run);
        args.capacity = starts[starts.len() - 1] - 3;
        args.segments = texts.segments(run);
        args.lengths = run.given(run.at, &texts.lengths);
        args.bytes = run.blank(DType::U8, run.at, args.capacity - run.at);
        args.starts = run.given(run.at, &starts);
        run.launch([blocks(args.tokens, TILE), 1, 1], 256, 0, &args);
    });
}

fn vectors_of_images(cases: &mut Cases, channel_last: u32) {
    let (count, positions, channels) = (12, 2, 5);
    cases.check("vq_lookup", FAR, |run| {
        let first = run.up_to(BLOCKS);
        let ids: Vec<i32> = (0..count * positions).map(|i| (first + i * 3 % 7) as i32).collect();
        let args = VqLookupArgs {
            ids: run.input(run.at * positions, &ids),
            codebook: run.floats(DType::F32, first * channels, 7 * channels),
            out: run.blank(DType::F32, run.at * positions * channels, count * positions * channels),
            status: run.quiet(0, &[0u32]),
            images: run.at + count,
            positions,
            channels,
            codes: first as i32 + 7,
            normalize: 1,
            channel_last,
            unused: 0,
        };
        run.launch([blocks(args.images * positions, 256), 1, 1], 256, 0, &args);
    });
    cases.check("vq_quantize", FAR, |run| {
        let args = VqQuantizeArgs {
            z: run.floats(DType::F32, run.at * positions * channels, count * positions * channels),
            codebook: run.floats(DType::F32, 0, 40 * channels),
            ids: run.blank(DType::I32, run.at * positions, count * positions),
            images: run.at + count,
            positions,
            channels,
            codes: 40,
            normalize: 1,
            channel_last,
            unused: 0,
        };
        run.launch([blocks(args.images * positions, 8), 1, 1], 256, 0, &args);
    });
}

/// Two channels, each of them as long as there are positions.
fn vectors_of_one_image(cases: &mut Cases) {
    let count = 20;
    cases.check("vq_lookup", FAR, |run| {
        let positions = run.at + count;
        let ids: Vec<i32> = (0..count as i32).map(|i| i * 3 % 7).collect();
        let none = vec![9f32; count as usize];
        let args = VqLookupArgs {
            ids: run.input(run.at, &ids),
            codebook: run.floats(DType::F32, 0, 7 * 2),
            out: run.sparse_output(&[(run.at, &none), (positions + run.at, &none)]),
            status: run.quiet(0, &[0u32]),
            images: 1,
            positions,
            channels: 2,
            codes: 7,
            ..zeroed()
        };
        run.launch([blocks(positions, 256), 1, 1], 256, 0, &args);
    });
    cases.check("vq_quantize", FAR, |run| {
        let positions = run.at + count;
        let (first, second) = (run.numbers(count), run.numbers(count));
        let args = VqQuantizeArgs {
            z: run.sparse(&[(run.at, &first), (positions + run.at, &second)]),
            codebook: run.floats(DType::F32, 0, 40 * 2),
            ids: run.blank(DType::I32, run.at, count),
            images: 1,
            positions,
            channels: 2,
            codes: 40,
            normalize: 1,
            ..zeroed()
        };
        run.launch([blocks(positions, 8), 1, 1], 256, 0, &args);
    });
}
