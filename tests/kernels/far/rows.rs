//! Kernels that take a row at a time, by a warp or by a block; and rows of a table by index.

use super::args::*;
use super::{BLOCKS, Cases, FAR, FLOATS, Run, blocks, zeroed};
use gradstone::dtype::DType;
use gradstone_host::Blocks;

pub fn cases(cases: &mut Cases) {
    for (dtype, suffix) in FLOATS {
        for shape in [WARP_ROWS, BLOCK_ROWS] {
            rms_norm(cases, dtype, suffix, shape);
            layer_norm(cases, dtype, suffix, shape);
            softmax(cases, dtype, suffix, shape);
        }
        weights(cases, dtype, suffix);
        for interleaved in [0, 1] {
            rope(cases, dtype, suffix, interleaved);
        }
    }
    for shape in [WARP_ROWS, BLOCK_ROWS] {
        softmax_gradient(cases, shape);
    }
    gather(cases);
    for wide in [false, true] {
        row_lists(cases, wide);
        scatter(cases, wide);
    }
}

/// Rows of a width that decides who walks them.
#[derive(Clone, Copy)]
struct Shape {
    at: i64,
    rows: i64,
    width: i64,
    /// Of a block of threads.
    each: i64,
}

/// A warp a row: more rows than 2^32.
const WARP_ROWS: Shape = Shape { at: FAR, rows: 11, width: 24, each: 8 };
/// A block a row, as many rows as a grid has blocks.
const BLOCK_ROWS: Shape = Shape { at: BLOCKS, rows: 2, width: 1032, each: 1 };

impl Shape {
    /// Random rows.
    fn input<P>(self, run: &Run, dtype: DType) -> *const P {
        run.floats(dtype, run.at * self.width, self.rows * self.width)
    }

    fn output<P>(self, run: &Run, dtype: DType) -> *mut P {
        run.blank(dtype, run.at * self.width, self.rows * self.width)
    }

    fn launch<A>(self, run: &Run, args: &A) {
        run.launch([blocks(run.at + self.rows, self.each), 1, 1], 256, 0, args);
    }
}

fn rms_norm(cases: &mut Cases, dtype: DType, suffix: &str, shape: Shape) {
    cases.check(format!("rms_norm_{suffix}"), shape.at, |run| {
        let args = RmsNormArgs {
            x: shape.input(run, dtype),
            weight: run.floats(dtype, 0, shape.width),
            y: shape.output(run, dtype),
            inverse: run.blank(DType::F32, run.at, shape.rows),
            rows: run.at + shape.rows,
            width: shape.width,
            epsilon: 1e-6,
            offset: 1.0,
            aligned: 1,
            unused: 0,
        };
        shape.launch(run, &args);
    });
    cases.check(format!("rms_norm_gradient_{suffix}"), shape.at, |run| {
        let args = RmsNormGradientArgs {
            x: shape.input(run, dtype),
            weight: run.floats(dtype, 0, shape.width),
            inverse: run.floats(DType::F32, run.at, shape.rows),
            dy: shape.input(run, DType::F32),
            dx: shape.output(run, DType::F32),
            rows: run.at + shape.rows,
            width: shape.width,
            offset: 1.0,
            aligned: 1,
        };
        shape.launch(run, &args);
    });
}

fn layer_norm(cases: &mut Cases, dtype: DType, suffix: &str, shape: Shape) {
    cases.check(format!("layer_norm_{suffix}"), shape.at, |run| {
        let args = LayerNormArgs {
            x: shape.input(run, dtype),
            weight: run.floats(dtype, 0, shape.width),
            bias: run.floats(dtype, 0, shape.width),
            y: shape.output(run, dtype),
            statistics: run.blank(DType::F32, run.at * 2, shape.rows * 2),
            rows: run.at + shape.rows,
            width: shape.width,
            epsilon: 1e-6,
            aligned: 1,
        };
        shape.launch(run, &args);
    });
    cases.check(format!("layer_norm_gradient_{suffix}"), shape.at, |run| {
        let args = LayerNormGradientArgs {
            x: shape.input(run, dtype),
            weight: run.floats(dtype, 0, shape.width),
            statistics: run.floats(DType::F32, run.at * 2, shape.rows * 2),
            dy: shape.input(run, DType::F32),
            dx: shape.output(run, DType::F32),
            rows: run.at + shape.rows,
            width: shape.width,
            aligned: 1,
            unused: 0,
        };
        shape.launch(run, &args);
    });
}

fn softmax(cases: &mut Cases, dtype: DType, suffix: &str, shape: Shape) {
    cases.check(format!("softmax_{suffix}"), shape.at, |run| {
        let args = SoftmaxArgs {
            x: shape.input(run, dtype),
            y: shape.output(run, dtype),
            exact: shape.output(run, DType::F32),
            rows: run.at + shape.rows,
            width: shape.width,
            log: 0,
            aligned: 1,
        };
        shape.launch(run, &args);
    });
}

fn softmax_gradient(cases: &mut Cases, shape: Shape) {
    cases.check("softmax_gradient_f32", shape.at, |run| {
        let args = SoftmaxGradientArgs {
            y: shape.input(run, DType::F32),
            dy: shape.input(run, DType::F32),
            dx: shape.output(run, DType::F32),
            rows: run.at + shape.rows,
            width: shape.width,
            log: 1,
            aligned: 1,
        };
        shape.launch(run, &args);
    });
}

/// Where the one row lies that there is, of columns that are summed 64 rows at a time.
pub struct Columns {
    pub rows: i64,
    pub width: i64,
    /// Rows before it.
    pub row: i64,
    /// Elements before it.
    pub element: i64,
    /// And in the partial sums.
    pub partial: i64,
}

/// A kernel of partial sums of columns. Its grid has at most 65535 blocks for rows, so the width is what makes the partial
/// sums' index pass 2^32: rows of half a megabyte. The last two blocks run.
pub fn column_partials<A>(cases: &mut Cases, kernel: &str, args: impl Fn(&Run, &Columns) -> A) {
    let (width, each) = (1 << 17, i64::from(COLUMN_SUM_ROWS));
    let partials = FAR / width;
    cases.check(kernel, partials * each, |run| {
        let of = Columns {
            rows: run.at + 1,
            width,
            row: run.at,
            element: run.at * width,
            partial: run.at / each * width,
        };
        let grid = [blocks(width, 256), blocks(of.rows, each), 1];
        run.launch_blocks(Blocks::Last(2), grid, 256, 0, &args(run, &of));
    });
}

fn weights(cases: &mut Cases, dtype: DType, suffix: &str) {
    column_partials(cases, &format!("rms_norm_weight_{suffix}"), |run, of| RmsNormWeightArgs {
        x: run.floats(dtype, of.element, of.width),
        inverse: run.floats(DType::F32, of.row, 1),
        dy: run.floats(DType::F32, of.element, of.width),
        partial: run.blank(DType::F32, of.partial, of.width),
        rows: of.rows,
        width: of.width,
    });
    column_partials(cases, &format!("layer_norm_weight_{suffix}"), |run, of| LayerNormWeightArgs {
        x: run.floats(dtype, of.element, of.width),
        statistics: run.floats(DType::F32, of.row * 2, 2),
        dy: run.floats(DType::F32, of.element, of.width),
        partial: run.blank(DType::F32, of.partial, of.width),
        rows: of.rows,
        width: of.width,
    });
}

fn rope(cases: &mut Cases, dtype: DType, suffix: &str, interleaved: u32) {
    let (count, heads, head_dim, pairs) = (40, 2, 24, 8);
    let each = 16 / dtype.size() as i64; // dimensions of a thread
    cases.check(format!("rope_{suffix}"), FAR, |run| {
        let tokens = run.at + count;
        let of_head = if interleaved == 1 {
            blocks(head_dim, each)
        } else {
            blocks(pairs, each) + blocks(head_dim - 2 * pairs, each)
        };
        let args = RopeArgs {
            x: run.floats(dtype, run.at * heads * head_dim, count * heads * head_dim),
            out: run.blank(dtype, run.at * heads * head_dim, count * heads * head_dim),
            angles: run.floats(DType::F32, run.at * 2 * pairs, count * 2 * pairs),
            tokens,
            heads,
            head_dim,
            pairs,
            interleaved,
            inverse: 0,
            aligned: 1,
            unused: 0,
        };
        run.launch([blocks(tokens * heads * of_head, 256), 1, 1], 256, 0, &args);
    });
}

/// Indices of rows from `first` on, as the kernels take them.
fn index<P>(run: &Run, before: i64, rows: &[i64], first: i64, wide: bool) -> *const P {
    let rows: Vec<i64> = rows.iter().map(|row| first + row).collect();
    if wide {
        return run.input(before, &rows);
    }
    let narrow: Vec<i32> = rows.iter().map(|row| i32::try_from(*row).unwrap()).collect();
    run.input(before, &narrow)
}

fn gather(cases: &mut Cases) {
    let (count, rows, units) = (100, 7, 3);
    for bytes in [16, 4, 2, 1] {
        for wide in [false, true] {
            cases.check(format!("gather_rows_{bytes}"), FAR, |run| {
                let first = if wide { run.at } else { run.up_to(BLOCKS) };
                let table: Vec<u8> = (0..rows * units * bytes).map(|i| i as u8).collect();
                let of_table: Vec<i64> = (0..count).map(|i| i * 5 % rows).collect();
                let args = GatherRowsArgs {
                    table: run.input(first * units * bytes, &table),
                    index: index(run, run.at, &of_table, first, wide),
                    out: run.output(
                        run.at * units * bytes,
                        &vec![0xa5u8; (count * units * bytes) as usize],
                    ),
                    status: run.quiet(0, &[0u32]),
                    rows: first + rows,
                    len: run.at + count,
                    units,
                    wide_index: u32::from(wide),
                    unused: 0,
                };
                run.launch([blocks(args.len * units, 256), 1, 1], 256, 0, &args);
            });
        }
    }
}

/// Places of three rows, as the four launches leave them; what they count from.
struct Lists {
    rows: Vec<i64>,
    count: [i32; 3],
    start: [i32; 3],
    ticket: [i32; 6],
    unordered: [i32; 6],
    /// The first row, beyond 2^32 where indices are wide.
    first: i64,
    /// Places before, below 2^31 by contract.
    places: i64,
}

impl Lists {
    fn new(run: &Run, wide: bool) -> Lists {
        let places = run.up_to(BLOCKS);
        let from = |place: i32| places as i32 + place;
        Lists {
            rows: vec![2, 0, 2, 2, 1, 0],
            count: [2, 1, 3],
            start: [0, 2, 3].map(from),
            ticket: [1, 0, 0, 2, 0, 1],
            // Row 0 has places 1 and 5, row 1 place 4, row 2 the others.
            unordered: [1, 5, 4, 2, 0, 3].map(from),
            first: if wide { run.at } else { places },
            places,
        }
    }

    fn args(&self, run: &Run, wide: bool) -> RowListArgs {
        RowListArgs {
            index: index(run, self.places, &self.rows, self.first, wide),
            status: run.quiet(0, &[0u32]),
            rows: self.first + 3,
            len: self.places + 6,
            wide_index: u32::from(wide),
            ..zeroed()
        }
    }

    fn launch(&self, run: &Run, args: &RowListArgs) {
        run.launch([blocks(args.len, 256), 1, 1], 256, 0, args);
    }
}

fn row_lists(cases: &mut Cases, wide: bool) {
    cases.check("row_list_count", FAR, |run| {
        let of = Lists::new(run, wide);
        let mut args = of.args(run, wide);
        args.count = run.output(of.first, &[0i32; 3]);
        args.ticket = run.output(of.places, &[-7i32; 6]);
        of.launch(run, &args);
    });
    cases.check("row_list_start", FAR, |run| {
        let of = Lists::new(run, wide);
        let mut args = of.args(run, wide);
        args.count = run.given(of.first, &of.count);
        args.ticket = run.given(of.places, &of.ticket);
        args.cursor = run.counter(of.places as i32);
        args.start = run.indices(of.first, 3, of.places);
        of.launch(run, &args);
    });
    cases.check("row_list_place", FAR, |run| {
        let of = Lists::new(run, wide);
        let mut args = of.args(run, wide);
        args.start = run.given(of.first, &of.start);
        args.ticket = run.given(of.places, &of.ticket);
        args.unordered = run.indices(of.places, 6, of.places);
        of.launch(run, &args);
    });
    cases.check("row_list_order", FAR, |run| {
        let of = Lists::new(run, wide);
        let mut args = of.args(run, wide);
        args.count = run.given(of.first, &of.count);
        args.start = run.given(of.first, &of.start);
        args.ticket = run.given(of.places, &of.ticket);
        args.unordered = run.given(of.places, &of.unordered);
        args.ordered = run.indices(of.places, 6, of.places);
        of.launch(run, &args);
    });
}

fn scatter(cases: &mut Cases, wide: bool) {
    let width = 36;
    cases.check("scatter_add_rows", FAR, |run| {
        let of = Lists::new(run, wide);
        let mut ordered = of.unordered;
        ordered[3..].sort_unstable();
        let args = ScatterAddRowsArgs {
            index: index(run, of.places, &of.rows, of.first, wide),
            count: run.input(of.first, &of.count),
            start: run.input(of.first, &of.start),
            ordered: run.input(of.places, &ordered),
            x: run.floats(DType::F32, of.places * width, 6 * width),
            out: run.blank(DType::F32, of.first * width, 3 * width),
            rows: of.first + 3,
            len: of.places + 6,
            width,
            wide_index: u32::from(wide),
            aligned: 1,
        };
        run.launch([args.len, 1, 1], 256, 0, &args);
    });
}
