//! Functions whose values are computed where their arguments are numbers.

use super::sum::{Atom, Ratio, Sum};
use super::work::Work;
use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive};

/// The absolute value.
pub(super) fn absolute(value: Sum) -> Sum {
    match value.as_ratio() {
        Some(ratio) => Sum::constant(ratio.abs()),
        None => Sum::atom(Atom::Call("abs".to_owned(), vec![value])),
    }
}

/// `n!`: a number for a whole `n` of at most 300.
pub(super) fn factorial(value: &Sum, work: &mut Work) -> Option<Sum> {
    let Some(ratio) = value.as_ratio() else {
        return Some(Sum::atom(Atom::Call("!".to_owned(), vec![value.clone()])));
    };
    let n = ratio.to_integer().to_u64().filter(|n| ratio.is_integer() && *n <= 300)?;
    work.spend(n)?;
    Some(Sum::constant(Ratio::from_integer((1..=n).map(BigInt::from).product())))
}

/// How many ways there are to choose `k` of `n`: a number for whole ones of at most 200.
pub(super) fn binomial(n: &Sum, k: &Sum, work: &mut Work) -> Option<Sum> {
    let (Some(n_ratio), Some(k_ratio)) = (n.as_ratio(), k.as_ratio()) else {
        return Some(Sum::atom(Atom::Call("binom".to_owned(), vec![n.clone(), k.clone()])));
    };
    let whole_number =
        |ratio: &Ratio| ratio.to_integer().to_u64().filter(|n| ratio.is_integer() && *n <= 200);
    let (n, k) = (whole_number(&n_ratio)?, whole_number(&k_ratio)?);
    if k > n {
        return Some(Sum::default());
    }
    work.spend(4 * n)?;
    let mut value = BigInt::from(1);
    for step in 1..=k.min(n - k) {
        // Divides evenly: the value after each step is a binomial coefficient.
        value = value * (n + 1 - step) / step;
    }
    Some(Sum::constant(Ratio::from_integer(value)))
}
