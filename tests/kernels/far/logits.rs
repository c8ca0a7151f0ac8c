//! Kernels of rows of logits, and of the rows that a linear log-prob takes through.

use super::args::*;
use super::{BLOCKS, Cases, FAR, FLOATS, Run, blocks, zeroed};
use gradstone::dtype::DType;

pub fn cases(cases: &mut Cases) {
    for (dtype, suffix) in FLOATS {
        for renamed in [false, true] {
            cases.check(format!("logprob_forward_{suffix}"), BLOCKS, |run| {
                let rows = Rows::new(run, 2, 100);
                let args = rows.forward(run, dtype, renamed);
                run.launch([rows.end(), 1, 1], THREADS, 0, &args);
            });
        }
        units(cases, dtype, suffix);
        for likely in [false, true] {
            sample(cases, dtype, suffix, likely);
        }
        linear(cases, dtype, suffix);
    }
    let mixed = [
        (DType::F32, DType::F32, "f32"),
        (DType::Bf16, DType::Bf16, "bf16"),
        (DType::F16, DType::F16, "f16"),
        (DType::F32, DType::Bf16, "f32_bf16"),
        (DType::F32, DType::F16, "f32_f16"),
        (DType::Bf16, DType::F32, "bf16_f32"),
        (DType::F16, DType::F32, "f16_f32"),
    ];
    for (from, to, suffix) in mixed {
        backward(cases, from, to, suffix);
    }
    for (from, to, suffix) in &mixed[..5] {
        both(cases, *from, *to, suffix);
    }
    scatter(cases);
}

const THREADS: u32 = 256;

/// The rows of logits that there are, and the vocabulary.
struct Rows {
    at: i64,
    count: i64,
    vocab: i64,
}

impl Rows {
    fn new(run: &Run, count: i64, vocab: i64) -> Rows {
        Rows { at: run.at, count, vocab }
    }

    /// Rows altogether.
    fn end(&self) -> i64 {
        self.at + self.count
    }

    fn logits<P>(&self, run: &Run, dtype: DType) -> *const P {
        run.floats(dtype, self.at * self.vocab, self.count * self.vocab)
    }

    fn gradient<P>(&self, run: &Run, dtype: DType) -> *mut P {
        run.blank(dtype, self.at * self.vocab, self.count * self.vocab)
    }

    /// A float a row.
    fn each(&self, run: &Run) -> *const f32 {
        run.floats(DType::F32, self.at, self.count)
    }

    fn targets(&self, run: &Run) -> *const i32 {
        let targets: Vec<i32> = (0..self.count).map(|row| (row * 7 % self.vocab) as i32).collect();
        run.input(self.at, &targets)
    }

    /// The rows in reverse, where rows have others' outputs; int32 by contract.
    fn row_of(&self, run: &Run, renamed: bool) -> *const i32 {
        if !renamed {
            return std::ptr::null();
        }
        let last = self.end() - 1;
        let reversed: Vec<i32> =
            (0..self.count).map(|row| (last - row).try_into().unwrap()).collect();
        run.input(self.at, &reversed)
    }

    fn softmax(&self, run: &Run) -> SoftmaxRule {
        let temperatures: Vec<f32> = run.numbers(self.count).iter().map(|x| x + 1.0).collect();
        SoftmaxRule {
            temperatures: run.input(self.at, &temperatures),
            banned: run.input(0, &[3i32, 5]),
            banned_count: 2,
            temperature: 1.0,
            softcap: 0.0,
        }
    }

    fn forward(&self, run: &Run, dtype: DType, renamed: bool) -> LogprobForwardArgs {
        LogprobForwardArgs {
            logits: self.logits(run, dtype),
            targets: self.targets(run),
            row_of: self.row_of(run, renamed),
            logprob: run.blank(DType::F32, self.at, self.count),
            entropy: run.blank(DType::F32, self.at, self.count),
            logsumexp: run.blank(DType::F32, self.at, self.count),
            argmax: run.blank(DType::I32, self.at, self.count),
            units: std::ptr::null_mut(),
            status: run.quiet(0, &[0u32]),
            rows: self.end(),
            vocab: self.vocab,
            softmax: self.softmax(run),
        }
    }
}

/// A row of one unit, more of them than 2^32, and rows of two, whose product with the vocabulary passes 2^43.
fn units(cases: &mut Cases, dtype: DType, suffix: &str) {
    let shapes = [(FAR, 11, 40), (BLOCKS, 3, i64::from(LOGPROB_UNIT) + 4)];
    for (at, count, vocab) in shapes {
        let units = blocks(vocab, LOGPROB_UNIT.into());
        cases.check(format!("logprob_units_{suffix}"), at, |run| {
            let rows = Rows::new(run, count, vocab);
            let args = LogprobForwardArgs {
                units: run.blank(DType::F32, 4 * run.at * units, 4 * count * units),
                logits: rows.logits(run, dtype),
                targets: rows.targets(run),
                rows: rows.end(),
                vocab,
                softmax: rows.softmax(run),
                ..zeroed()
            };
            run.launch([blocks(rows.end() * units, 8), 1, 1], THREADS, 0, &args);
        });
        cases.check(format!("logprob_merge_{suffix}"), at, |run| {
            let rows = Rows::new(run, count, vocab);
            let sums: Vec<OnlineSoftmax> = run
                .numbers(count * units)
                .iter()
                .map(|x| OnlineSoftmax { max: *x, sum: 2.0 + x, weighted: *x, argmax: 1 })
                .collect();
            let mut args = rows.forward(run, dtype, false);
            args.units = run.given(run.at * units, &sums);
            run.launch([blocks(rows.end(), 8), 1, 1], THREADS, 0, &args);
        });
    }
}

fn backward(cases: &mut Cases, from: DType, to: DType, suffix: &str) {
    // A block a row, and two. A softcap has a walk of its own.
    let shapes = [(BLOCKS, 2, 100, true), (BLOCKS / 2, 1, i64::from(LOGPROB_TILE) + 8, false)];
    for (at, count, vocab, renamed) in shapes {
        cases.check(format!("logprob_backward_{suffix}"), at, |run| {
            let rows = Rows::new(run, count, vocab);
            let args = LogprobBackwardArgs {
                logits: rows.logits(run, from),
                dlogits: rows.gradient(run, to),
                targets: rows.targets(run),
                row_of: rows.row_of(run, renamed),
                logsumexp: rows.each(run),
                entropy: rows.each(run),
                dlogprob: rows.each(run),
                dentropy: rows.each(run),
                rows: rows.end(),
                vocab,
                softmax: SoftmaxRule {
                    softcap: if renamed { 4.0 } else { 0.0 },
                    ..rows.softmax(run)
                },
            };
            let tiles = blocks(vocab, LOGPROB_TILE.into());
            run.launch([rows.end() * tiles, 1, 1], THREADS, 0, &args);
        });
    }
}

fn both(cases: &mut Cases, from: DType, to: DType, suffix: &str) {
    cases.check(format!("logprob_both_{suffix}"), BLOCKS, |run| {
        let rows = Rows::new(run, 2, 100);
        let args = LogprobBothArgs {
            forward: rows.forward(run, from, false),
            dlogits: rows.gradient(run, to),
            dlogprob: rows.each(run),
            dentropy: rows.each(run),
        };
        run.launch([rows.end(), 1, 1], THREADS, 0, &args);
    });
}

fn sample(cases: &mut Cases, dtype: DType, suffix: &str, likely: bool) {
    cases.check(format!("sample_{suffix}"), BLOCKS, |run| {
        let rows = Rows::new(run, 2, 100);
        let args = SampleArgs {
            logits: rows.logits(run, dtype),
            sequences: run.input(run.at, &[11u64, 12]),
            positions: run.input(run.at, &[3u32, 4]),
            excluded: run.input(0, &[7i32]),
            tokens: run.blank(DType::I32, run.at, rows.count),
            logprob: run.blank(DType::F32, run.at, rows.count),
            entropy: run.blank(DType::F32, run.at, rows.count),
            logsumexp: run.blank(DType::F32, run.at, rows.count),
            argmax: run.blank(DType::I32, run.at, rows.count),
            kept_mass: run.blank(DType::F32, run.at, rows.count),
            status: run.quiet(0, &[0u32]),
            rows: rows.end(),
            vocab: rows.vocab,
            excluded_count: 1,
            seed: 5,
            softmax: SoftmaxRule { temperature: 0.5, ..zeroed() },
            top_p: if likely { 0.9 } else { 1.0 },
            top_k: if likely { 20 } else { 0 },
            min_p_depth: if likely { -2.0 } else { f32::NEG_INFINITY },
            stream: 1,
            greedy: 0,
            unused: 0,
        };
        run.launch([rows.end(), 1, 1], THREADS, 0, &args);
    });
}

/// Live rows: two of every three places have one.
fn live_rows(run: &Run, count: i64) -> (i64, *const i32) {
    let first = run.up_to(BLOCKS);
    let of = |place: i64| if place % 3 == 2 { -1 } else { (first + place).try_into().unwrap() };
    let rows: Vec<i32> = (0..count).map(of).collect();
    (first, run.input(run.at, &rows))
}

fn linear(cases: &mut Cases, dtype: DType, suffix: &str) {
    let (count, width) = (60, 5);
    cases.check(format!("linear_logprob_gather_{suffix}"), FAR, |run| {
        let (first, row_of) = live_rows(run, count);
        let args = GatherLiveArgs {
            x: run.floats(dtype, first * width, count * width),
            row_of,
            out: run.blank(dtype, run.at * width, count * width),
            rows: first + count,
            count: run.at + count,
            width,
        };
        run.launch([blocks(args.count * width, 256), 1, 1], THREADS, 0, &args);
    });
    // Two rows, each of them of that many columns.
    let columns = 300;
    cases.check(format!("linear_logprob_bias_{suffix}"), FAR, |run| {
        let width = run.at + columns;
        // In 16-bit types any bits do: a number is what they are.
        let words = columns as usize * dtype.size();
        let bits =
            |from: usize| (0..words).map(|i| ((from + i) * 7 % 61) as u8).collect::<Vec<u8>>();
        let place = |row: i64| (row * width + run.at) * dtype.size() as i64;
        let args = AddColumnsArgs {
            x: run.sparse(&[(place(0), &bits(1)), (place(1), &bits(2))]),
            sum: run.output(run.at, &run.numbers(columns)),
            rows: 2,
            width,
        };
        run.launch([blocks(width, 256), 1, 1], THREADS, 0, &args);
    });
}

fn scatter(cases: &mut Cases) {
    let (count, width) = (60, 5);
    cases.check("linear_logprob_scatter", FAR, |run| {
        let (first, row_of) = live_rows(run, count);
        let args = ScatterLiveArgs {
            x: run.floats(DType::F32, run.at * width, count * width),
            row_of,
            out: run.blank(DType::F32, first * width, count * width),
            rows: first + count,
            count: run.at + count,
            width,
        };
        run.launch([blocks(args.count * width, 256), 1, 1], THREADS, 0, &args);
    });
}
