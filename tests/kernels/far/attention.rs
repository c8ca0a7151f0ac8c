//! Attention, its gradients, and the cache. Tokens and sequences are int32 by contract: what passes 2^31 is their product with
//! heads and widths, and what lies between pages and groups.

use super::args::*;
use super::{BLOCKS, Cases, FAR, FLOATS, Run, blocks, zeroed};
use gradstone::dtype::DType;
use gradstone_host::Blocks;

pub fn cases(cases: &mut Cases) {
    for (dtype, suffix) in FLOATS {
        for width in [32, 64, 128, 256] {
            forward(cases, dtype, suffix, width);
            if dtype != DType::F16 {
                backward(cases, dtype, suffix, width);
            }
        }
        forward_of_pages(cases, dtype, suffix);
        forward_of_groups(cases, dtype, suffix);
        merge(cases, dtype, suffix);
        delta(cases, dtype, suffix);
        append(cases, dtype, suffix);
    }
    copy(cases);
}

const F32: DType = DType::F32;
const WARP: u32 = 32;
/// Query rows, or keys, of a block of one warp.
const ROWS: i64 = ATTENTION_TILE_ROWS as i64;
const PAGE: i64 = ATTENTION_PAGE as i64;

/// Bytes of shared memory of a block of one warp, as `src/kernels/attention/launch/plan.rs` has it. No total: one group.
fn forward_bytes(dtype: DType, width: i64) -> u32 {
    let size = dtype.size() as i64;
    let (row, keys) = (width * size + 16, if width * size <= 256 { 64 } else { 32 });
    (2 * keys * row + exchange(dtype, keys) + ROWS * row) as u32
}

fn backward_bytes(dtype: DType, width: i64) -> u32 {
    let size = dtype.size() as i64;
    let (row, inner) = (width * size + 16, if size == 2 { 32 } else { 16 });
    ((2 * ROWS + 4 * inner) * row + 4 * inner * 4 + exchange(dtype, inner)) as u32
}

fn exchange(dtype: DType, rows: i64) -> i64 {
    if dtype == F32 { ROWS * (rows + 4) * 4 } else { 0 }
}

/// Two sequences, of which the first has none of the tokens that exist. Two query heads share the keys.
struct Layer {
    width: i64,
    /// Tokens of the first sequence: with two query heads, half of what an int32 counts.
    before: i64,
    count: i64,
}

/// Tokens that the first sequence can have.
const TOKENS: i64 = BLOCKS / 2;
const HEADS: i64 = 2;

impl Layer {
    fn new(run: &Run, width: i64) -> Layer {
        Layer { width, before: run.at, count: 21 }
    }

    fn tokens(&self) -> i64 {
        self.before + self.count
    }

    fn shape(&self, run: &Run) -> AttentionShape {
        let segments = [0, self.before, self.tokens()].map(|end| i32::try_from(end).unwrap());
        AttentionShape {
            segments: run.input(0, &segments),
            tokens: self.tokens(),
            sequences: 2,
            query_heads: HEADS as i32,
            kv_heads: 1,
            head_dim: self.width as i32,
            mask: MASK_CAUSAL,
            block: 1,
            scale: 0.5,
            status: run.quiet(0, &[0u32]),
            ..zeroed()
        }
    }

    /// Numbers of each token and each of its `heads`.
    fn input<P>(&self, run: &Run, dtype: DType, heads: i64, width: i64) -> *const P {
        run.floats(dtype, self.before * heads * width, self.count * heads * width)
    }

    fn output<P>(&self, run: &Run, dtype: DType, heads: i64, width: i64) -> *mut P {
        run.blank(dtype, self.before * heads * width, self.count * heads * width)
    }
}

fn forward(cases: &mut Cases, dtype: DType, suffix: &str, width: i64) {
    cases.check(format!("attention_forward_{width}_{suffix}"), TOKENS, |run| {
        let of = Layer::new(run, width);
        let args = AttentionForwardArgs {
            shape: of.shape(run),
            q: of.input(run, dtype, HEADS, width),
            k: of.input(run, dtype, 1, width),
            v: of.input(run, dtype, 1, width),
            out: of.output(run, dtype, HEADS, width),
            logsumexp: of.output(run, F32, HEADS, 1),
            groups: 1,
            vector: 1,
            ..zeroed()
        };
        let slots = of.tokens() * HEADS / ROWS + 2;
        run.launch_first([slots, 1, 1], WARP, forward_bytes(dtype, width), &args);
    });
}

/// Sequences of a cache: as many as there can be, those before without queries, and pages in a layer far from their start.
/// Its pages are two.
struct Cache {
    sequences: i64,
    segments: [i32; 3],
    lengths: [i32; 2],
    offset: i64,
}

impl Cache {
    fn new(run: &Run) -> Cache {
        let sequences = run.up_to(BLOCKS);
        Cache { sequences, segments: [0, 3, 5], lengths: [66, 5], offset: run.up_to(FAR) }
    }

    /// The ends of all. Bisection reads those before, too.
    fn segments(&self, run: &Run) -> *const i32 {
        run.sparse(&[(self.sequences, &self.segments)])
    }

    /// Addresses of pages whose layer is `before` elements behind it.
    fn table(&self, run: &Run, pages: [*const u8; 3]) -> *const u64 {
        let [first, second, third] = pages.map(|page| page.addr() as u64);
        run.input(self.sequences * 2, &[first, second, third, 0])
    }
}

/// Elements of a page in one layer of one head.
fn page_elements(width: i64) -> i64 {
    2 * PAGE * width
}

fn forward_of_pages(cases: &mut Cases, dtype: DType, suffix: &str) {
    let width = 32;
    cases.check(format!("attention_forward_{width}_{suffix}"), FAR, |run| {
        let of = Cache::new(run);
        let page = || run.floats(dtype, of.offset, page_elements(width));
        let args = AttentionForwardArgs {
            shape: AttentionShape {
                segments: of.segments(run),
                lengths: run.input(of.sequences, &of.lengths),
                tokens: 5,
                sequences: (of.sequences + 2) as i32,
                query_heads: 1,
                kv_heads: 1,
                head_dim: width as i32,
                mask: MASK_CAUSAL,
                block: 1,
                scale: 0.5,
                status: run.quiet(0, &[0u32]),
                ..zeroed()
            },
            q: run.floats(dtype, 0, 5 * width),
            pages: of.table(run, [page(), page(), page()]),
            out: run.blank(dtype, 0, 5 * width),
            page_offset: of.offset,
            pages_per_sequence: 2,
            groups: 1,
            vector: 1,
            ..zeroed()
        };
        run.launch_first([of.sequences + 2, 1, 1], WARP, forward_bytes(dtype, width), &args);
    });
}

/// The second key group's state lies behind those of all tokens. The first sequence is the one that exists: the last block
/// takes it.
fn forward_of_groups(cases: &mut Cases, dtype: DType, suffix: &str) {
    let (width, count, keys) = (32, 3, i64::from(ATTENTION_GROUP) + 20);
    cases.check(format!("attention_forward_{width}_{suffix}"), TOKENS, |run| {
        let tokens = run.at + count;
        let pages: Vec<u64> = (0..blocks(keys, PAGE))
            .map(|_| run.floats::<u8>(dtype, 0, page_elements(width)).addr() as u64)
            .collect();
        let group = tokens * HEADS; // rows of the first group
        let args = AttentionForwardArgs {
            shape: AttentionShape {
                segments: run.input(0, &[0, count as i32, tokens as i32]),
                lengths: run.input(0, &[keys as i32, run.at as i32]),
                tokens,
                sequences: 2,
                query_heads: HEADS as i32,
                kv_heads: 1,
                head_dim: width as i32,
                mask: MASK_CAUSAL,
                block: 1,
                scale: 0.5,
                status: run.quiet(0, &[0u32]),
                ..zeroed()
            },
            q: run.floats(dtype, 0, count * HEADS * width),
            pages: run.input(0, &pages),
            partial: run.blank(F32, group * width, count * HEADS * width),
            statistics: run.blank(F32, group * 2, count * HEADS * 2),
            pages_per_sequence: pages.len() as i32,
            groups: 2,
            vector: 1,
            ..zeroed()
        };
        let slots = tokens * HEADS / ROWS + 2;
        let shared = forward_bytes(dtype, width);
        run.launch_blocks(Blocks::Last(1), [slots, 1, 2], WARP, shared, &args);
    });
}

fn backward(cases: &mut Cases, dtype: DType, suffix: &str, width: i64) {
    let args = |run: &Run, of: &Layer| AttentionBackwardArgs {
        shape: of.shape(run),
        q: of.input(run, dtype, HEADS, width),
        k: of.input(run, dtype, 1, width),
        v: of.input(run, dtype, 1, width),
        dout: of.input(run, dtype, HEADS, width),
        logsumexp: of.input(run, F32, HEADS, 1),
        delta: of.input(run, F32, HEADS, 1),
        dq: std::ptr::null_mut(),
        dk: std::ptr::null_mut(),
        dv: std::ptr::null_mut(),
        vector: 1,
        unused: 0,
    };
    let shared = backward_bytes(dtype, width);
    cases.check(format!("attention_backward_queries_{width}_{suffix}"), TOKENS, |run| {
        let of = Layer::new(run, width);
        let mut args = args(run, &of);
        args.dq = of.output(run, F32, HEADS, width);
        run.launch_first([of.tokens() * HEADS / ROWS + 2, 1, 1], WARP, shared, &args);
    });
    cases.check(format!("attention_backward_keys_{width}_{suffix}"), TOKENS, |run| {
        let of = Layer::new(run, width);
        let mut args = args(run, &of);
        args.dk = of.output(run, F32, 1, width);
        let slots = of.tokens() / ROWS + 2;
        if width <= 128 {
            args.dv = of.output(run, F32, 1, width);
            run.launch([slots, 1, 1], WARP, shared, &args);
        } else {
            // The blocks of dv are the grid's first half, and are not among its last: dk is at the same index.
            run.launch_blocks(Blocks::Last(2), [slots, 1, 2], WARP, shared, &args);
        }
    });
}

/// Two groups, each of them of all rows.
fn merge(cases: &mut Cases, dtype: DType, suffix: &str) {
    let (count, width) = (100, 2);
    cases.check(format!("attention_merge_{suffix}"), FAR, |run| {
        let rows = run.at + count;
        let states = || -> Vec<f32> { run.numbers(count * 2).iter().map(|x| x + 1.0).collect() };
        let (values, others) = (states(), states());
        let (first, second) = (states(), states());
        let args = AttentionMergeArgs {
            partial: run.sparse(&[(run.at * width, &values), ((rows + run.at) * width, &others)]),
            statistics: run.sparse(&[(run.at * 2, &first), ((rows + run.at) * 2, &second)]),
            out: run.blank(dtype, run.at * width, count * width),
            rows,
            head_dim: width as i32,
            groups: 2,
        };
        run.launch([blocks(rows * width, 128), 1, 1], 128, 0, &args);
    });
}

fn delta(cases: &mut Cases, dtype: DType, suffix: &str) {
    let (count, width) = (7, 20);
    cases.check(format!("attention_delta_{suffix}"), FAR, |run| {
        let args = AttentionDeltaArgs {
            out: run.floats(dtype, run.at * width, count * width),
            dout: run.floats(F32, run.at * width, count * width),
            delta: run.blank(F32, run.at, count),
            rounded: run.blank(dtype, run.at * width, count * width),
            rows: run.at + count,
            head_dim: width as i32,
            unused: 0,
        };
        run.launch([blocks(args.rows, 4), 1, 1], 128, 0, &args);
    });
}

/// Tokens are a sequence's own, all sequences before have none: token and sequence both are as far as they can be.
fn append(cases: &mut Cases, dtype: DType, suffix: &str) {
    let width = 20;
    cases.check(format!("cache_append_{suffix}"), FAR, |run| {
        let of = Cache::new(run);
        let page = || run.blank::<u8>(dtype, of.offset, page_elements(width)).cast_const();
        // All tokens but five are those of a sequence before, which ends where these begin.
        let before = run.up_to(BLOCKS);
        let segments = of.segments.map(|end| before as i32 + end);
        let args = CacheAppendArgs {
            k: run.floats(dtype, before * width, 5 * width),
            v: run.floats(dtype, before * width, 5 * width),
            segments: run.sparse(&[(of.sequences, &segments)]),
            lengths: run.input(of.sequences, &of.lengths),
            pages: of.table(run, [page(), page(), page()]),
            status: run.quiet(0, &[0u32]),
            tokens: before + 5,
            page_offset: of.offset,
            sequences: (of.sequences + 2) as i32,
            pages_per_sequence: 2,
            kv_heads: 1,
            head_dim: width as i32,
        };
        run.launch([args.tokens, 1, 1], 128, 0, &args);
    });
}

/// A page of that many times sixteen bytes. (More pairs than a grid has blocks come one after another, from the first.)
fn copy(cases: &mut Cases) {
    let count = 300;
    cases.check("cache_copy", FAR, |run| {
        let bytes: Vec<u8> = (0..count * 16).map(|i| i as u8).collect();
        let from: *const u8 = run.input(run.at * 16, &bytes);
        let to: *mut u8 = run.output(run.at * 16, &vec![0xa5u8; bytes.len()]);
        let args = CacheCopyArgs {
            pairs: run.input(0, &[from.addr() as u64, to.addr() as u64]),
            count: 1,
            page_bytes: (run.at + count) * 16,
        };
        run.launch([blocks(run.at + count, 128), 1, 1], 128, 0, &args);
    });
}
