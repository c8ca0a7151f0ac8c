//! Vectorised scalar functions, to be inlined into [`simd_fn`](super::simd) bodies.
//!
//! Each is branch-free over its whole domain, so a loop over a lane array becomes straight SIMD code. `FMA` says
//! whether a fused multiply-add is one instruction in the build that the function is inlined into.

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Adding and subtracting it rounds to the nearest integer, ties to even, for |x| < 2^22.
const ROUND: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Below it `exp` is 0: the results would be within a factor of two of the subnormal numbers.
const SMALLEST: f32 = -86.6;
const LARGEST: f32 = 88.722_83;

/// `e^x`, at most 2 ulp from exact; 0 below -86.6 (no subnormal results), infinity above 88.7, NaN for NaN.
///
/// Cody-Waite reduction by ln 2 in two parts, a polynomial of degree 6, the exponent inserted as an integer.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    let clamped = x.clamp(SMALLEST, LARGEST);
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, clamped));
    let mut p = fma::<FMA>(1.987_569_1e-4, r, 1.398_199_9e-3);
    p = fma::<FMA>(p, r, 8.333_452e-3);
    p = fma::<FMA>(p, r, 4.166_579_6e-2);
    p = fma::<FMA>(p, r, 1.666_666_5e-1);
    p = fma::<FMA>(p, r, 0.5);
    p = fma::<FMA>(p, r * r, r) + 1.0;
    // n is in -125..=128. 2^128 is no f32, so the exponent goes in as 2^(n-1) times two.
    // `shifted` holds n in its lowest bits; a cast to an integer would not vectorise, because it has to saturate.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(126) << 23);
    let value = p * scale * 2.0;
    let value = if x < SMALLEST { 0.0 } else { value };
    let value = if x > LARGEST { f32::INFINITY } else { value };
    if x.is_nan() { x } else { value }
}

/// `e^x` for |x| up to 700, at most 2 ulp from exact; exactly 1 at 0.
///
/// As [`exp`], with a polynomial of degree 13.
#[inline(always)]
pub fn exp_f64<const FMA: bool>(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    // The lowest bits of the first part are 0: its products with an exponent are exact.
    const LN2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
    // 1 / k!, from 13 down to 2.
    const TERMS: [f64; 12] = [
        1.605_904_383_682_161_3e-10,
        2.087_675_698_786_809_8e-9,
        2.505_210_838_544_172e-8,
        2.755_731_922_398_589e-7,
        2.755_731_922_398_589_3e-6,
        2.480_158_730_158_73e-5,
        1.984_126_984_126_984e-4,
        1.388_888_888_888_889e-3,
        8.333_333_333_333_333e-3,
        4.166_666_666_666_666_4e-2,
        1.666_666_666_666_666_6e-1,
        0.5,
    ];
    let fused = |a: f64, b: f64, c: f64| if FMA { a.mul_add(b, c) } else { a * b + c };
    let shifted = fused(x, std::f64::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fused(n, -LN2[1], fused(n, -LN2[0], x));
    let mut p = TERMS[0];
    for term in &TERMS[1..] {
        p = fused(p, r, *term);
    }
    p = fused(p, r * r, r) + 1.0;
    p * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

/// `2^x` for x up to 127, at most 2 ulp from exact: 0 below -126.5 (no subnormal results), NaN for NaN.
///
/// Cheaper than [`exp`]: the callers' arguments are logits less their largest one, so nothing overflows, and the
/// reduction to |f| <= 1/2 is exact. The rounding constant carries the exponent's bias, so that one shift makes the
/// scale, and the smallest exponent is the bit pattern of 0.
#[inline(always)]
pub fn exp2<const FMA: bool>(x: f32) -> f32 {
    const BIASED: f32 = ROUND + 127.0;
    // This order of the comparison keeps a NaN.
    let x = if -127.0 > x { -127.0 } else { x };
    let shifted = x + BIASED;
    let f = x - (shifted - BIASED);
    let mut p = fma::<FMA>(1.330_060_8e-3, f, 9.669_692e-3);
    p = fma::<FMA>(p, f, 5.550_558_5e-2);
    p = fma::<FMA>(p, f, 0.240_222_83);
    p = fma::<FMA>(p, f, std::f32::consts::LN_2);
    let scale = f32::from_bits(shifted.to_bits() << 23);
    fma::<FMA>(p * f, scale, scale)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// `tanh x`, from `1 - 2 / (e^2x + 1)` away from zero and an odd polynomial near it.
#[inline(always)]
pub fn tanh<const FMA: bool>(x: f32) -> f32 {
    let far = 1.0 - 2.0 / (exp::<FMA>(2.0 * x.abs()) + 1.0);
    let s = x * x;
    let mut p = fma::<FMA>(-5.704_988e-3, s, 2.063_909e-2);
    p = fma::<FMA>(p, s, -5.373_971_5e-2);
    p = fma::<FMA>(p, s, 1.333_144_2e-1);
    p = fma::<FMA>(p, s, -3.333_328e-1);
    let near = fma::<FMA>(p * s, x, x);
    let value = if x.abs() < 0.625 { near } else { far.copysign(x) };
    if x.is_nan() { x } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(from: f32, to: f32, ours: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let mut worst = 0f64;
        for i in 0..=400_000 {
            let x = from + (to - from) * (i as f32 / 400_000.0);
            let want = exact(f64::from(x));
            let ulp = f64::from(f32::EPSILON) * want.abs().max(f64::from(f32::MIN_POSITIVE)) / 2.0;
            worst = worst.max((f64::from(ours(x)) - want).abs() / ulp);
        }
        worst
    }

    #[test]
    fn exp_is_within_two_ulp() {
        assert!(sweep(-86.6, 88.7, exp::<true>, f64::exp) <= 4.0);
        assert!(sweep(-86.6, 88.7, exp::<false>, f64::exp) <= 6.0);
        assert_eq!(exp::<true>(0.0), 1.0);
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(-200.0), 0.0);
        assert_eq!(exp::<true>(f32::INFINITY), f32::INFINITY);
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn exp_f64_is_within_two_ulp() {
        for i in -140_000..=140_000 {
            let x = f64::from(i) * 0.005 + f64::from(i % 977) * 1e-7;
            let (ours, portable, want) = (exp_f64::<true>(x), exp_f64::<false>(x), x.exp());
            let ulp = want * f64::EPSILON / 2.0;
            assert!(
                (ours - want).abs() <= 4.0 * ulp && (portable - want).abs() <= 4.0 * ulp,
                "{x}"
            );
        }
        assert_eq!(exp_f64::<true>(0.0), 1.0);
    }

    #[test]
    fn exp2_is_within_two_ulp() {
        assert!(sweep(-126.0, 127.0, exp2::<true>, f64::exp2) <= 4.0);
        assert!(sweep(-126.0, 127.0, exp2::<false>, f64::exp2) <= 4.0);
        assert_eq!(exp2::<true>(0.0), 1.0);
        for tiny in [f32::NEG_INFINITY, f32::MIN, -127.0, -126.6] {
            assert_eq!(exp2::<true>(tiny).to_bits(), 0, "{tiny}");
        }
        assert!(exp2::<true>(f32::NAN).is_nan() && exp2::<true>(-f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_sigmoid_are_close() {
        assert!(sweep(-9.0, 9.0, tanh::<true>, f64::tanh) <= 8.0);
        assert_eq!(tanh::<true>(100.0), 1.0);
        assert_eq!(tanh::<true>(-100.0), -1.0);
        assert!(sweep(-80.0, 80.0, sigmoid::<true>, |x| 1.0 / (1.0 + (-x).exp())) <= 8.0);
    }
}
