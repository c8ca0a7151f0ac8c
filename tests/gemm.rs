//! A row of a product has the same bits whatever the number of rows: what makes a sampler and a trainer agree. Operands in
//! two bytes give the bits of the widened ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::device::cpu::gemm::{Operand, matmul, matmul_into, plain, transposed};
use gradstone::dtype::{Float, FloatSlice, FloatSliceMut};
use half::{bf16, f16};

fn number(i: usize, prime: usize) -> f32 {
    ((i * prime) % 1999) as f32 / 999.5 - 1.0
}

#[test]
fn a_row_does_not_depend_on_the_number_of_rows() {
    const MOST: usize = 70;
    // The last sums are longer than what the engine adds up at a time.
    for k in [1, 3, 8, 16, 17, 24, 31, 32, 64, 100, 256, 1100, 3000] {
        for n in [1, 2, 8, 11, 15, 16, 17, 31, 32, 33, 64, 96] {
            let a: Vec<f32> = (0..MOST * k).map(|i| number(i, 7919)).collect();
            let b: Vec<f32> = (0..n * k).map(|i| number(i, 10_007)).collect();
            let product = |rows: usize, turned: bool| {
                let mut c = vec![0f32; rows * n];
                let b = if turned { transposed(&b) } else { plain(&b) };
                matmul(&mut c, plain(&a[..rows * k]), b, [rows, n, k], false).unwrap();
                c.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            };
            for turned in [false, true] {
                let whole = product(MOST, turned);
                for rows in [1, 2, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 64] {
                    let some = product(rows, turned);
                    assert_eq!(some, whole[..rows * n], "{rows} rows, k {k}, n {n}, {turned}");
                }
            }
        }
    }
}

/// What is stored in 2 bytes, as the engine reads it.
trait Narrow: Float {
    fn slice(values: &[Self]) -> FloatSlice<'_>;
    fn slice_mut(values: &mut [Self]) -> FloatSliceMut<'_>;
}

impl Narrow for bf16 {
    fn slice(values: &[bf16]) -> FloatSlice<'_> {
        FloatSlice::Bf16(values)
    }
    fn slice_mut(values: &mut [bf16]) -> FloatSliceMut<'_> {
        FloatSliceMut::Bf16(values)
    }
}

impl Narrow for f16 {
    fn slice(values: &[f16]) -> FloatSlice<'_> {
        FloatSlice::F16(values)
    }
    fn slice_mut(values: &mut [f16]) -> FloatSliceMut<'_> {
        FloatSliceMut::F16(values)
    }
}

/// Products of narrow operands, in every combination, are those of the widened ones to the bit; a narrow result is the
/// f32 one, rounded once, after the bias.
fn narrow_operands<T: Narrow>() {
    let shapes = [
        (1, 40, 700),
        (5, 500, 1100),
        (8, 33, 64),
        (70, 700, 600),
        (100, 90, 3000),
        (300, 600, 530),
        (1200, 48, 257),
        (90, 1, 2500),
    ];
    for (m, n, k) in shapes {
        let a: Vec<T> = (0..m * k).map(|i| T::from_f32(number(i, 7919))).collect();
        let b: Vec<T> = (0..n * k).map(|i| T::from_f32(number(i, 10_007))).collect();
        let bias: Vec<f32> = (0..n).map(|i| number(i, 31)).collect();
        let wide = |x: &[T]| -> Vec<f32> { x.iter().map(|x| x.to_f32()).collect() };
        let (wide_a, wide_b) = (wide(&a), wide(&b));
        for (turn_a, turn_b) in [(false, false), (false, true), (true, false), (true, true)] {
            let what = format!("[{m}, {k}] x [{k}, {n}], {turn_a} {turn_b}, {}", T::DTYPE);
            let f32s = [
                Operand::new(FloatSlice::F32(&wide_a), turn_a),
                Operand::new(FloatSlice::F32(&wide_b), turn_b),
            ];
            let narrow = [Operand::new(T::slice(&a), turn_a), Operand::new(T::slice(&b), turn_b)];
            let seed: Vec<f32> = (0..m * n).map(|i| number(i, 101)).collect();
            for accumulate in [false, true] {
                let product = |a, b| {
                    let mut c = seed.clone();
                    matmul(&mut c, a, b, [m, n, k], accumulate).unwrap();
                    c.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                };
                let want = product(f32s[0], f32s[1]);
                assert!(product(narrow[0], f32s[1]) == want, "a: {what}, {accumulate}");
                assert!(product(f32s[0], narrow[1]) == want, "b: {what}, {accumulate}");
                assert!(product(narrow[0], narrow[1]) == want, "both: {what}, {accumulate}");
            }
            let mut sums = vec![0f32; m * n];
            matmul(&mut sums, f32s[0], f32s[1], [m, n, k], false).unwrap();
            for bias in [None, Some(&bias[..])] {
                let add = |i: usize, x: f32| bias.map_or(x, |bias| x + bias[i % n]);
                let with_bias: Vec<f32> =
                    sums.iter().enumerate().map(|(i, x)| add(i, *x)).collect();
                let mut c = vec![T::default(); m * n];
                let into = T::slice_mut(&mut c);
                matmul_into(into, narrow[0], narrow[1], bias, [m, n, k]).unwrap();
                let rounded = with_bias.iter().map(|x| T::from_f32(*x).to_f32().to_bits());
                assert!(c.iter().map(|x| x.to_f32().to_bits()).eq(rounded), "rounded: {what}");
                let mut c = vec![0f32; m * n];
                matmul_into(FloatSliceMut::F32(&mut c), f32s[0], f32s[1], bias, [m, n, k]).unwrap();
                assert!(c == with_bias, "f32 with a bias: {what}");
            }
        }
    }
}

#[test]
fn narrow_operands_give_the_bits_of_wide_ones() {
    narrow_operands::<bf16>();
    narrow_operands::<f16>();
}
