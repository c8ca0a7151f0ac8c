//! Prime factors, as far as trial division finds them.

use num_bigint::BigInt;
use num_traits::{One, Zero};

/// Numbers up to the square of this are factored.
const TRIAL: u32 = 4096;

/// The prime factors of a positive number with their powers; what trial division does not split stays in one piece, but for a
/// square or a cube.
pub(super) fn factors(number: &BigInt) -> Vec<(BigInt, i64)> {
    let (mut found, mut rest, mut divisor) = (Vec::new(), number.clone(), 2u32);
    while divisor <= TRIAL && !rest.is_one() {
        let mut power = 0;
        while (&rest % divisor).is_zero() {
            rest /= divisor;
            power += 1;
        }
        if power > 0 {
            found.push((BigInt::from(divisor), power));
        }
        divisor += if divisor == 2 { 1 } else { 2 };
    }
    if !rest.is_one() {
        let power = (2..=3).find(|power| rest.nth_root(*power).pow(*power) == rest).unwrap_or(1);
        found.push((rest.nth_root(power), i64::from(power)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_multiply_to_the_number() {
        let large = 1_000_003i64;
        for number in [1, 2, 97, 360, 1 << 40, 4093 * 4099, large, large * large, 12 * large] {
            let factors = factors(&BigInt::from(number));
            let product: BigInt =
                factors.iter().map(|(prime, power)| prime.pow(*power as u32)).product();
            assert_eq!(product, BigInt::from(number), "{factors:?}");
        }
        assert_eq!(factors(&BigInt::from(large * large)), [(BigInt::from(large), 2)]);
    }
}
