//! Advantages of groups and of tokens, step credit, and the correction for another sampler.

use super::args::*;
use super::{BLOCKS, Cases, FAR, Run, blocks, zeroed};
use gradstone::dtype::DType;

pub fn cases(cases: &mut Cases) {
    for ordered in [false, true] {
        groups(cases, ordered);
        token_baseline(cases, ordered);
    }
    rewards(cases);
    scan(cases);
    moments(cases);
    paint(cases);
    for per_token in [0, 1] {
        step_credit(cases, per_token);
    }
    shaping(cases);
    correction(cases);
}

const F32: DType = DType::F32;

/// Sequences of tokens: their lengths, what lies before them.
struct Packed {
    /// Tokens before the first.
    at: i64,
    lengths: Vec<i64>,
}

impl Packed {
    fn new(run: &Run) -> Packed {
        Packed { at: run.at, lengths: vec![40, 0, 33, 7, 64, 3, 1, 20, 50, 2, 31] }
    }

    fn sequences(&self) -> i64 {
        self.lengths.len() as i64
    }

    fn tokens(&self) -> i64 {
        self.lengths.iter().sum()
    }

    /// The ends of all, `before` others before them.
    fn offsets(&self, run: &Run, before: i64) -> *const i64 {
        let mut offsets = vec![self.at];
        for length in &self.lengths {
            offsets.push(offsets[offsets.len() - 1] + length);
        }
        run.input(before, &offsets)
    }

    /// A float a token.
    fn floats(&self, run: &Run) -> *const f32 {
        run.floats(F32, self.at, self.tokens())
    }

    /// Two of three tokens are live.
    fn mask(&self, run: &Run) -> *const u8 {
        let mask: Vec<u8> = (0..self.tokens()).map(|i| u8::from(i % 3 != 1)).collect();
        run.input(self.at, &mask)
    }

    /// Zeros, a float a token, that the kernel writes.
    fn zeros<P>(&self, run: &Run) -> *mut P {
        run.output(self.at, &vec![0f32; self.tokens() as usize])
    }

    /// A number a sequence.
    fn each(&self, run: &Run, before: i64) -> *const f32 {
        run.floats(F32, before, self.sequences())
    }
}

fn groups(cases: &mut Cases, ordered: bool) {
    cases.check("advantage", FAR, |run| {
        // Ten groups: two blocks, and one that is a block's by its size.
        let lengths = [3i64, 5, 300, 0, 4, 1, 8, 2, 6, 7];
        let count: i64 = lengths.iter().sum();
        // Where places have an order, it names responses by int32.
        let first = if ordered { run.up_to(BLOCKS) } else { run.at };
        let mut offsets = vec![run.at];
        for length in lengths {
            offsets.push(offsets[offsets.len() - 1] + length);
        }
        let order: Vec<i32> = (0..count).map(|i| (first + count - 1 - i) as i32).collect();
        let scored: Vec<u8> = (0..count).map(|i| u8::from(i % 7 != 3)).collect();
        let tokens: Vec<i64> = (0..count).map(|i| 1 + i % 5).collect();
        let end = run.at + lengths.len() as i64;
        let args = AdvantageArgs {
            rewards: run.floats(F32, first, count),
            offsets: run.input(run.at, &offsets),
            order: if ordered { run.input(run.at, &order) } else { std::ptr::null() },
            basis: run.input(first, &scored),
            greedy: run.floats(F32, first, count),
            lengths: run.input(first, &tokens),
            advantage: run.blank(F32, first, count),
            mean: run.blank(F32, run.at, 10),
            std: run.blank(F32, run.at, 10),
            flags: run.blank(DType::U8, run.at, 10),
            counts: run.output(0, &[0u64; 3]),
            status: run.quiet(0, &[0u32]),
            responses: run.at + count,
            groups: end,
            epsilon: 1e-6,
            length_bonus: 0.1,
            scale: 1.0,
            center: if ordered { ADVANTAGE_GREEDY } else { ADVANTAGE_LENGTH_MEAN },
            factor: ADVANTAGE_OVER_STD,
            ..zeroed()
        };
        run.launch([blocks(end, 8), 1, 1], 256, 0, &args);
    });
}

/// Two functions, whose columns are as long as there are responses.
fn rewards(cases: &mut Cases) {
    let (count, functions) = (300, 2);
    cases.check("advantage_rewards", FAR, |run| {
        let responses = run.at + count;
        let (first, second) = (run.numbers(count), run.numbers(count));
        let none = vec![9f32; count as usize];
        let args = AdvantageRewardsArgs {
            rewards: run.floats(F32, run.at * functions, count * functions),
            weights: run.input(0, &[0.5f64, 2.0]),
            scores: run.sparse(&[(run.at, &first), (responses + run.at, &second)]),
            columns: run.sparse_output(&[(run.at, &none), (responses + run.at, &none)]),
            sums: run.blank(F32, run.at, count),
            responses,
            functions,
        };
        run.launch([blocks(responses, 256), 1, 1], 256, 0, &args);
    });
}

fn scan(cases: &mut Cases) {
    cases.check("advantage_scan", FAR, |run| {
        let of = Packed::new(run);
        let args = AdvantageScanArgs {
            rewards: of.floats(run),
            values: of.floats(run),
            mask: of.mask(run),
            offsets: of.offsets(run, run.at),
            advantage: of.zeros(run),
            returns: of.zeros(run),
            means: of.each(run, run.at),
            relative: of.each(run, run.at),
            bonus: of.each(run, run.at),
            status: run.quiet(0, &[0u32]),
            tokens: of.at + of.tokens(),
            sequences: run.at + of.sequences(),
            gamma: 0.99,
            lambda: 0.95,
            critic_lambda: -1.0,
            length_alpha: 0.0,
            reset: 0,
            carried: 1,
        };
        run.launch([blocks(args.sequences, 8), 1, 1], 256, 0, &args);
    });
    cases.check("advantage_means", FAR, |run| {
        let of = Packed::new(run);
        let args = AdvantageMeansArgs {
            values: of.floats(run),
            mask: of.mask(run),
            offsets: of.offsets(run, run.at),
            means: run.blank(F32, run.at, of.sequences()),
            status: run.quiet(0, &[0u32]),
            tokens: of.at + of.tokens(),
            sequences: run.at + of.sequences(),
        };
        run.launch([blocks(args.sequences, 8), 1, 1], 256, 0, &args);
    });
}

fn moments(cases: &mut Cases) {
    let (count, each) = (3000, i64::from(ADVANTAGE_BLOCK));
    let mask: Vec<u8> = (0..count).map(|i| u8::from(i % 3 != 1)).collect();
    cases.check("advantage_moments", FAR, |run| {
        let tokens = run.at + count;
        let none = AdvantageMoments { count: -1.0, mean: 0.0, squares: 0.0, least: 0.0, most: 0.0 };
        let args = AdvantageWhitenArgs {
            mask: run.input(run.at, &mask),
            values: run.floats::<f32>(F32, run.at, count).cast_mut(),
            moments: run.output(run.at / each, &[none; 2]),
            tokens,
            ..zeroed()
        };
        run.launch([blocks(tokens, each), 1, 1], 256, 0, &args);
    });
    // Every block reads all records: those before are of no token.
    cases.check("advantage_whiten", FAR, |run| {
        let of =
            |count, mean| AdvantageMoments { count, mean, squares: 9.0, least: -1.0, most: 1.0 };
        let args = AdvantageWhitenArgs {
            mask: run.input(run.at, &mask[..200]),
            values: run.output(run.at, &run.numbers(200)),
            moments: run
                .sparse::<AdvantageMoments, AdvantageMoments>(&[(run.at / each, &[of(90.0, 0.25)])])
                .cast_mut(),
            tokens: run.at + 200,
            epsilon: 1e-8,
            carried: 0,
            unused: 0,
        };
        run.launch([blocks(args.tokens, 256), 1, 1], 256, 0, &args);
    });
}

fn token_baseline(cases: &mut Cases, ordered: bool) {
    cases.check("token_baseline_slots", FAR, |run| {
        let of = Packed::new(run);
        let args = AdvantageTokenBaselineArgs {
            rewards: of.floats(run),
            logprob: of.floats(run),
            sum_squares: of.floats(run),
            weight: of.floats(run),
            mask: of.mask(run),
            offsets: of.offsets(run, run.at),
            to_go: run.blank(DType::I64, of.at, of.tokens()), // words of eight bytes
            energy: run.blank(DType::I64, of.at, of.tokens()),
            place: run.blank(DType::I32, of.at, of.tokens()),
            slots: run.blank(DType::I32, run.at, of.sequences()),
            live: run.blank(DType::I32, run.at, of.sequences()),
            returns: of.zeros(run),
            status: run.quiet(0, &[0u32]),
            tokens: of.at + of.tokens(),
            sequences: run.at + of.sequences(),
            compact: u32::from(ordered),
            carried: 1,
            ..zeroed()
        };
        run.launch([blocks(args.sequences, 8), 1, 1], 256, 0, &args);
    });
    // A block a group: as many as a grid has. Sequences are named by int32 where places have an order.
    cases.check("token_baseline", FAR, |run| {
        let of = Packed::new(run);
        let (first_group, count) = (run.up_to(BLOCKS), of.sequences());
        let first = if ordered { run.up_to(BLOCKS) } else { run.at };
        let order: Vec<i32> = (0..count).map(|i| (first + count - 1 - i) as i32).collect();
        let slots: Vec<i32> = of.lengths.iter().map(|length| *length as i32).collect();
        let place: Vec<i32> = of.lengths.iter().flat_map(|length| 0..*length as i32).collect();
        let numbers = || run.numbers(of.tokens()).iter().map(|x| f64::from(x + 1.0)).collect();
        let (to_go, energy): (Vec<f64>, Vec<f64>) = (numbers(), numbers());
        let args = AdvantageTokenBaselineArgs {
            mask: of.mask(run),
            offsets: of.offsets(run, first),
            groups: run.input(first_group, &[run.at, run.at + 4, run.at + 4, run.at + count]),
            order: if ordered { run.input(run.at, &order) } else { std::ptr::null() },
            to_go: run.given(of.at, &to_go),
            energy: run.given(of.at, &energy),
            place: run.given(of.at, &place),
            slots: run.given(first, &slots),
            live: run.given(first, &slots),
            advantage: of.zeros(run),
            status: run.quiet(0, &[0u32]),
            tokens: of.at + of.tokens(),
            sequences: run.at + count,
            group_count: first_group + 3,
            epsilon: 1e-8,
            zero_tail: 1,
            ..zeroed()
        };
        run.launch([args.group_count, 1, 1], 256, 0, &args);
    });
}

fn paint(cases: &mut Cases) {
    // Spans and the sequences that they name are int32.
    cases.check("step_paint_owners", FAR, |run| {
        let (spans, count) = (run.up_to(BLOCKS), 100);
        // The sequence's first token is halfway: its own tokens are counted far, too.
        let halfway = run.at / 2;
        let start = [0, 30, 60, 20, 35, 36, 37, 38, 39].map(|from| halfway + from);
        let args = StepPaintArgs {
            sequence: run.input(spans, &[spans as i32; 9]),
            start: run.input(spans, &start),
            end: run.input(spans, &start.map(|from| from + 25)),
            offsets: run.input(spans, &[halfway, run.at + count]),
            owner: run.indices(run.at, count, spans),
            status: run.quiet(0, &[0u32]),
            spans: spans + 9,
            sequences: spans + 1,
            tokens: run.at + count,
            ..zeroed()
        };
        run.launch([blocks(args.spans, 8), 1, 1], 256, 0, &args);
    });
    cases.check("step_paint_labels", FAR, |run| {
        let (spans, count) = (run.up_to(BLOCKS), 300);
        let of = |token: i64| if token % 4 == 0 { -1 } else { (spans + token % 9) as i32 };
        let owner: Vec<i32> = (0..count).map(of).collect();
        let args = StepPaintArgs {
            label: run.floats(F32, spans, 9),
            owner: run.given(run.at, &owner),
            labels: run.blank(F32, run.at, count),
            tokens: run.at + count,
            background: 0.5,
            ..zeroed()
        };
        run.launch([blocks(args.tokens, 256), 1, 1], 256, 0, &args);
    });
}

fn step_credit(cases: &mut Cases, advantage_per_token: u32) {
    cases.check("step_credit", FAR, |run| {
        let of = Packed::new(run);
        let before = run.up_to(BLOCKS);
        let args = StepCreditArgs {
            labels: of.floats(run),
            advantage: if advantage_per_token == 1 { of.floats(run) } else { of.each(run, before) },
            mask: of.mask(run),
            offsets: of.offsets(run, before),
            credited: of.zeros(run),
            kept: run.output(of.at, &vec![0u8; of.tokens() as usize]),
            counts: run.output(0, &[0u64; STEP_CREDIT_COUNTS as usize]),
            status: run.quiet(0, &[0u32]),
            tokens: of.at + of.tokens(),
            sequences: before + of.sequences(),
            threshold: 0.1,
            rule: STEP_CREDIT_MASK,
            advantage_per_token,
            ..zeroed()
        };
        run.launch([args.sequences, 1, 1], 256, 0, &args);
    });
}

fn shaping(cases: &mut Cases) {
    for reads_masked in [0, 1] {
        cases.check("step_shaping", FAR, |run| {
            let of = Packed::new(run);
            let before = run.up_to(BLOCKS);
            let args = StepShapingArgs {
                labels: of.floats(run),
                mask: of.mask(run),
                offsets: of.offsets(run, before),
                shaping: of.zeros(run),
                status: run.quiet(0, &[0u32]),
                tokens: of.at + of.tokens(),
                sequences: before + of.sequences(),
                reach: 2,
                gamma: 0.9,
                alpha: 0.5,
                clip: 1.0,
                reads_masked,
            };
            run.launch([args.sequences, 1, 1], 256, 0, &args);
        });
    }
}

fn correction(cases: &mut Cases) {
    cases.check("rollout_correction_sequences", FAR, |run| {
        let of = Packed::new(run);
        let before = run.up_to(BLOCKS);
        let none = RolloutCorrectionSums { tokens: 99, ..zeroed() };
        let args = RolloutCorrectionArgs {
            policy: of.floats(run),
            sampler: of.floats(run),
            mask: of.mask(run),
            offsets: of.offsets(run, before),
            weight: of.zeros(run),
            kept: run.output(of.at, &vec![0u8; of.tokens() as usize]),
            sums: run.output(before, &vec![none; of.sequences() as usize]),
            status: run.quiet(0, &[0u32]),
            tokens: of.at + of.tokens(),
            sequences: before + of.sequences(),
            least: 0.5,
            most: 1.5,
            level: ROLLOUT_LEVEL_TOKEN,
            ..zeroed()
        };
        run.launch([args.sequences, 1, 1], 256, 0, &args);
    });
    cases.check("rollout_correction_normalize", FAR, |run| {
        let of = Packed::new(run);
        let total = RolloutCorrectionSums { weight: 30.0, tokens: 40, ..zeroed() };
        let args = RolloutCorrectionArgs {
            weight: run.output(of.at, &run.numbers(of.tokens())),
            kept: of.mask(run).cast_mut(),
            total: run.given(0, &[total]),
            tokens: of.at + of.tokens(),
            level: ROLLOUT_LEVEL_TOKEN,
            ..zeroed()
        };
        run.launch([blocks(args.tokens, 256), 1, 1], 256, 0, &args);
    });
}
