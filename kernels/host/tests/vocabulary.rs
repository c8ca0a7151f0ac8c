//! The CUDA that kernels are given: collectives, tensor-core products and scalar functions against their definitions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use gradstone_host::{Order, launch, with_order};

fn run<T>(kernel: &str, blocks: u32, threads: u32, args: &T) {
    // SAFETY: each test passes the kernel's own struct with pointers to vectors that outlive the call.
    let result = unsafe {
        let args: *const T = args;
        launch(kernel, [blocks, 1, 1], [threads, 1, 1], 0, args.cast(), size_of::<T>())
    };
    result.unwrap();
}

/// `CollectivesArgs` of `probes/collectives.cu`.
#[repr(C)]
struct Collectives {
    values: *const i32,
    floats: *const f32,
    table: *mut i32,
    float_table: *mut f32,
    operand: i32,
    width: i32,
}

const COLUMNS: usize = 22;

/// The table of `probes/collectives.cu` by CUDA's definitions, for a block of whole warps.
fn defined(values: &[i32], operand: i32, width: i32) -> Vec<Vec<i32>> {
    let mut table = vec![Vec::new(); COLUMNS];
    let count = values.iter().filter(|&&v| v > 0).count() as i32;
    for warp in values.chunks(32) {
        let mask = |holds: &dyn Fn(i32) -> bool| {
            (0..32).filter(|&lane| holds(warp[lane])).fold(0u32, |mask, lane| mask | 1 << lane)
        };
        let unsigned = || warp.iter().map(|&v| v as u32);
        for lane in 0..32i32 {
            let first = lane - lane % width;
            let pick =
                |source: i32, inside: bool| warp[if inside { source } else { lane } as usize];
            let value = warp[lane as usize];
            let equal = warp.iter().all(|v| v / 1000 == warp[0] / 1000);
            let half = warp.iter().take(16).fold(0i32, |sum, v| sum.wrapping_add(*v));
            let row = [
                warp[(first + operand.rem_euclid(width)) as usize],
                pick(lane - operand, lane - operand >= first),
                pick(lane + operand, lane + operand < first + width),
                pick(lane ^ operand, (lane ^ operand) < first + width),
                mask(&|v| v > 0) as i32,
                i32::from(warp.contains(&7)),
                i32::from(warp.iter().all(|&v| v < 100)),
                mask(&|v| v == value) as i32,
                if equal { -1 } else { 0 },
                i32::from(equal),
                warp.iter().fold(0i32, |sum, v| sum.wrapping_add(*v)),
                *warp.iter().min().unwrap(),
                *warp.iter().max().unwrap(),
                unsigned().min().unwrap() as i32,
                unsigned().max().unwrap() as i32,
                unsigned().fold(u32::MAX, |x, v| x & v) as i32,
                unsigned().fold(0, |x, v| x | v) as i32,
                unsigned().fold(0, |x, v| x ^ v) as i32,
                count,
                i32::from(values.iter().all(|&v| v < 100)),
                i32::from(values.contains(&7)),
                if lane < 16 { half } else { warp[31] },
            ];
            for (column, result) in table.iter_mut().zip(row) {
                column.push(result);
            }
        }
    }
    table
}

#[test]
fn collectives_are_cudas_in_every_order() {
    let threads = 96;
    let mut state = 1u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    for (operand, width) in [(1, 32), (5, 16), (3, 4), (0, 1), (17, 32), (9, 8), (31, 32)] {
        let values: Vec<i32> = (0..threads).map(|_| (draw() % 120) as i32 - 20).collect();
        let floats: Vec<f32> = values.iter().map(|&v| v as f32 + 0.25).collect();
        let expected = defined(&values, operand, width);
        for order in Order::ALL {
            let mut table = vec![0i32; COLUMNS * threads];
            let mut float_table = vec![0.0f32; 2 * threads];
            let args = Collectives {
                values: values.as_ptr(),
                floats: floats.as_ptr(),
                table: table.as_mut_ptr(),
                float_table: float_table.as_mut_ptr(),
                operand,
                width,
            };
            with_order(order, || run("probe_collectives", 1, threads as u32, &args));
            for (column, expected) in expected.iter().enumerate() {
                let got = &table[column * threads..][..threads];
                assert_eq!(got, expected, "column {column}, {order:?}, {operand} in {width}");
            }
            for i in 0..threads {
                assert_eq!(float_table[i], floats[i ^ 1]);
                let next = if i % 32 == 31 { i } else { i + 1 };
                assert_eq!(float_table[threads + i], floats[next]);
            }
        }
    }
}

/// `MmaArgs` of `probes/mma.cu`.
#[repr(C)]
struct Mma {
    a16: *const u16,
    b16: *const u16,
    a32: *const f32,
    b32: *const f32,
    d: *mut f32,
}

/// Any f16 by arithmetic, not by bits.
fn half_value(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[test]
fn tensor_core_products_are_matrix_products() {
    let pattern = |i: usize, mask: u32| ((i as u32).wrapping_mul(2_654_435_761) >> 16) & mask;
    // f16 and bf16 read the same bits: exponents near 1 in f16 are small numbers in bf16, and both are finite.
    let halves = |n: usize, salt: usize| -> Vec<u16> {
        (0..n)
            .map(|i| (0x3800 + pattern(i + salt, 0x7ff) as u16) | u16::from(i % 3 == 0) << 15)
            .collect()
    };
    let singles = |n: usize, salt: usize| -> Vec<f32> {
        (0..n).map(|i| (pattern(i + salt, 0xfff) as f32 - 2000.0) / 777.0).collect()
    };
    let (a16, b16, a32, b32) = (halves(256, 0), halves(128, 999), singles(128, 5), singles(64, 50));
    let start: Vec<f32> = singles(384, 7);
    let mut d = start.clone();
    let args = Mma {
        a16: a16.as_ptr(),
        b16: b16.as_ptr(),
        a32: a32.as_ptr(),
        b32: b32.as_ptr(),
        d: d.as_mut_ptr(),
    };
    run("probe_mma", 1, 32, &args);

    let bf16 = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
    let tf32 = |value: f32| f64::from(f32::from_bits(value.to_bits() & 0xffff_e000));
    for row in 0..16 {
        for column in 0..8 {
            let sum =
                |k: usize, a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64| -> (f64, f64) {
                    let terms = (0..k).map(|k| a(k) * b(k));
                    (terms.clone().sum(), terms.map(f64::abs).sum())
                };
            let sixteen = |value: &dyn Fn(u16) -> f64| {
                sum(16, &|k| value(a16[row * 16 + k]), &|k| value(b16[k * 8 + column]))
            };
            let eight = sum(8, &|k| tf32(a32[row * 8 + k]), &|k| tf32(b32[k * 8 + column]));
            for (part, (exact, size)) in
                [sixteen(&bf16), sixteen(&half_value), eight].iter().enumerate()
            {
                let at = part * 128 + row * 8 + column;
                let exact = exact + f64::from(start[at]);
                let bound =
                    (size + f64::from(start[at]).abs()) * 17.0 * f64::from(f32::EPSILON) / 2.0;
                let error = (f64::from(d[at]) - exact).abs();
                assert!(error <= bound, "part {part} ({row}, {column}): {} is not {exact}", d[at]);
            }
        }
    }
}

/// `ScalarsArgs` of `probes/scalars.cu`.
#[repr(C)]
struct Half {
    first: u32,
    widened: *mut f32,
    narrowed: *mut u16,
    step: u32,
    n: u32,
}

/// The f16 nearest to `value`, ties to even, by search among all.
fn nearest_half(value: f64, ordered: &[f64]) -> u16 {
    // `ordered[i]` is the value of the bits `i`, rising; infinity stands for 65536 in a rounding.
    let above = ordered.partition_point(|&half| half < value);
    if above == 0 || ordered[above] == value {
        return above as u16;
    }
    let upper = if ordered[above].is_infinite() { 65536.0 } else { ordered[above] };
    let (down, up) = (value - ordered[above - 1], upper - value);
    let even = if above % 2 == 0 { above } else { above - 1 };
    (if down < up {
        above - 1
    } else if up < down {
        above
    } else {
        even
    }) as u16
}

#[test]
fn f16_converts_as_ieee_says() {
    let n = 40_000usize;
    let ordered: Vec<f64> = (0..=0x7c00u16).map(half_value).collect();
    // All exponents sparsely, and densely where f16 has subnormals, its smallest normals and its overflow.
    for (first, step) in [(0, 107_374), (0x3300_0000 - 40, 1), (0x387f_f000, 13), (0x477f_e000, 1)]
    {
        let (mut widened, mut narrowed) = (vec![0.0f32; 65536], vec![0u16; n]);
        let args = Half {
            first,
            widened: widened.as_mut_ptr(),
            narrowed: narrowed.as_mut_ptr(),
            step,
            n: n as u32,
        };
        run("probe_half", 1, 128, &args);
        for (bits, value) in widened.iter().enumerate() {
            let exact = half_value(bits as u16);
            let same = f64::from(*value) == exact && value.is_sign_negative() == (bits >> 15 == 1);
            assert!(same || value.is_nan() && exact.is_nan(), "{bits:#x}: {value} is not {exact}");
        }
        for (i, &half) in narrowed.iter().enumerate() {
            let value = f32::from_bits(first.wrapping_add(step.wrapping_mul(i as u32)));
            if value.is_nan() {
                assert!(half_value(half).is_nan());
                continue;
            }
            let magnitude = f64::from(value.abs());
            let nearest =
                if magnitude > 65536.0 { 0x7c00 } else { nearest_half(magnitude, &ordered) };
            let expected = nearest | ((value.is_sign_negative() as u16) << 15);
            assert_eq!(half, expected, "{value:e}");
        }
    }
}

/// `BitsArgs` of `probes/scalars.cu`.
#[repr(C)]
struct Bits {
    results: *mut u64,
    counters: *mut u32,
}

#[test]
fn bit_functions_and_atomics_have_cudas_values() {
    let (mut results, mut counters) = (vec![0u64; 16], vec![0u32, u32::MAX, 5, 0]);
    let args = Bits { results: results.as_mut_ptr(), counters: counters.as_mut_ptr() };
    run("probe_bits", 1, 64, &args);
    let expected: [u64; 16] = [
        9,
        9,
        31,
        32,
        63,
        4,
        0,
        0xc000_0000,
        1 << 63,
        0xffff_fffe,
        u64::MAX - 1,
        0x7755_3311,
        3,
        2,
        0x8000_0000,
        3,
    ];
    assert_eq!(results, expected);
    // 64 threads; atomicInc wraps to 0 after 9: from 5, 64 steps end at (5 + 64) % 10.
    assert_eq!(counters, [192, 7, 9, 63]);
}
