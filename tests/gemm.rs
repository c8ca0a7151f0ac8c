//! A row of a product has the same bits whatever the number of rows, in every shape that a small model has: what makes a
//! sampler and a trainer agree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::device::cpu::gemm::{matmul, plain, transposed};

#[test]
fn a_row_does_not_depend_on_the_number_of_rows() {
    const MOST: usize = 70;
    let number = |i: usize, prime: usize| ((i * prime) % 1999) as f32 / 999.5 - 1.0;
    for k in [1, 3, 8, 16, 17, 24, 31, 32, 64, 100, 256] {
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
