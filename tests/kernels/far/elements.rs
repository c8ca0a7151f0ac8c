//! Kernels whose thread takes an element, or a few beside each other; and sums of rows and columns.

use super::args::*;
use super::{BLOCKS, Cases, FAR, FLOATS, Run, blocks};
use gradstone::dtype::DType;

pub fn cases(cases: &mut Cases) {
    for (dtype, suffix) in FLOATS {
        arithmetic(cases, dtype, suffix);
        activations(cases, dtype, suffix);
        for (other, other_suffix) in FLOATS {
            if other != dtype {
                cast(cases, (dtype, suffix), (other, other_suffix));
            }
        }
        row_sums(cases, dtype, suffix);
    }
    spread(cases);
    column_sums(cases);
}

/// Threads of a block that take a group of elements each.
const THREADS: u32 = 256;

/// Elements of a block whose threads take 16 bytes each.
fn each_of(dtype: DType) -> i64 {
    i64::from(THREADS) * 16 / dtype.size() as i64
}

fn arithmetic(cases: &mut Cases, dtype: DType, suffix: &str) {
    // A block and some more, whose last thread has less than 16 bytes of 16-bit elements.
    let each = each_of(dtype);
    let count = each + 36;
    for repeated in [false, true] {
        // An operand as long as the other, and one of four elements that is repeated.
        let period = |len| if repeated { 4 } else { len };
        let operand = |run: &Run| {
            if repeated { run.floats(dtype, 0, 4) } else { run.floats(dtype, run.at, count) }
        };
        cases.check(format!("binary_{suffix}"), FAR, |run| {
            let len = run.at + count;
            let args = BinaryArgs {
                x: run.floats(dtype, run.at, count),
                y: operand(run),
                out: run.blank(dtype, run.at, count),
                len,
                period: period(len),
                op: BINARY_MUL,
                aligned: 1,
            };
            run.launch([blocks(len, each), 1, 1], THREADS, 0, &args);
        });
        cases.check(format!("binary_gradient_{suffix}"), FAR, |run| {
            let len = run.at + count;
            let args = BinaryGradientArgs {
                x: run.floats(dtype, run.at, count),
                y: operand(run),
                gradient: run.floats(DType::F32, run.at, count),
                dx: run.blank(DType::F32, run.at, count),
                dy: run.blank(DType::F32, run.at, count),
                len,
                period: period(len),
                op: BINARY_DIV,
                aligned: 1,
            };
            run.launch([blocks(len, each), 1, 1], THREADS, 0, &args);
        });
    }
    cases.check(format!("unary_{suffix}"), FAR, |run| {
        let len = run.at + count;
        let args = UnaryArgs {
            x: run.floats(dtype, run.at, count),
            out: run.blank(dtype, run.at, count),
            len,
            op: UNARY_TANH,
            constant: 1.0,
            aligned: 1,
            unused: 0,
        };
        run.launch([blocks(len, each), 1, 1], THREADS, 0, &args);
    });
    cases.check(format!("unary_gradient_{suffix}"), FAR, |run| {
        let len = run.at + count;
        let args = UnaryGradientArgs {
            saved: run.floats(dtype, run.at, count),
            gradient: run.floats(DType::F32, run.at, count),
            dx: run.blank(DType::F32, run.at, count),
            len,
            op: UNARY_TANH,
            constant: 1.0,
            aligned: 1,
            unused: 0,
        };
        run.launch([blocks(len, each), 1, 1], THREADS, 0, &args);
    });
}

fn activations(cases: &mut Cases, dtype: DType, suffix: &str) {
    let each = each_of(dtype);
    let count = each + 37;
    cases.check(format!("activation_{suffix}"), FAR, |run| {
        let len = run.at + count;
        let args = ActivationArgs {
            x: run.floats(dtype, run.at, count),
            up: run.floats(dtype, run.at, count),
            y: run.blank(dtype, run.at, count),
            len,
            function: ACTIVATION_SILU,
            aligned: 1,
        };
        run.launch([blocks(len, each), 1, 1], THREADS, 0, &args);
    });
    cases.check(format!("activation_gradient_{suffix}"), FAR, |run| {
        let len = run.at + count;
        let args = ActivationGradientArgs {
            x: run.floats(dtype, run.at, count),
            up: run.floats(dtype, run.at, count),
            dy: run.floats(DType::F32, run.at, count),
            dx: run.blank(DType::F32, run.at, count),
            dup: run.blank(DType::F32, run.at, count),
            len,
            function: ACTIVATION_SILU,
            aligned: 1,
        };
        run.launch([blocks(len, each), 1, 1], THREADS, 0, &args);
    });
}

fn cast(cases: &mut Cases, from: (DType, &str), to: (DType, &str)) {
    let each = i64::from(THREADS * CAST_GROUP);
    let count = each + 37;
    cases.check(format!("cast_{}_{}", from.1, to.1), FAR, |run| {
        let len = run.at + count;
        let x = run.floats(from.0, run.at, count);
        let out = run.blank(to.0, run.at, count);
        let args = CastArgs { x, out, len, aligned: 1, unused: 0 };
        run.launch([blocks(len, each), 1, 1], THREADS, 0, &args);
    });
}

fn row_sums(cases: &mut Cases, dtype: DType, suffix: &str) {
    let (count, width, missing) = (2, 300, 5);
    for wide in [false, true] {
        let out = if wide { DType::F32 } else { dtype };
        cases.check(format!("row_sums_{suffix}"), BLOCKS, |run| {
            let rows = run.at + count;
            let args = RowSumArgs {
                x: run.floats(dtype, run.at * width, count * width - missing),
                out: run.blank(out, run.at, count),
                len: rows * width - missing,
                width,
                factor: 0.5,
                wide: u32::from(wide),
            };
            run.launch([rows, 1, 1], 256, 0, &args);
        });
    }
}

fn spread(cases: &mut Cases) {
    let (count, width) = (100, 3);
    cases.check("spread", FAR, |run| {
        let rows = run.at + count;
        let args = SpreadArgs {
            x: run.floats(DType::F32, run.at, count),
            out: run.blank(DType::F32, run.at * width, count * width),
            rows,
            width,
            factor: 0.5,
            unused: 0,
        };
        run.launch([blocks(rows * width, 256), 1, 1], 256, 0, &args);
    });
}

fn column_sums(cases: &mut Cases) {
    super::rows::column_partials(cases, "column_partials", |run, layout| ColumnPartialArgs {
        x: run.floats(DType::F32, layout.element, layout.width),
        partial: run.blank(DType::F32, layout.partial, layout.width),
        rows: layout.rows,
        width: layout.width,
    });
    // Two partial sums, each of them of that many columns.
    let count = 300;
    cases.check("column_totals", FAR, |run| {
        let width = run.at + count;
        let (first, second) = (run.numbers(count), run.numbers(count));
        let args = ColumnTotalArgs {
            partial: run.sparse(&[(run.at, &first), (width + run.at, &second)]),
            out: run.output(run.at, &run.numbers(count)),
            blocks: 2,
            width,
            accumulate: 1,
            unused: 0,
        };
        run.launch([blocks(width, 256), 1, 1], 256, 0, &args);
    });
}
