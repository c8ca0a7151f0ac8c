//! Sums of products with exact coefficients: the normal form in which expressions are compared.
//!
//! A [`Sum`] is a polynomial over *atoms*, which may have rational exponents: `5\sqrt{3}` is 5·3^(1/2). An atom is a prime
//! under a root, a name, a sum under a root or below a fraction line, a power with a variable exponent, or a function's value.
//! Atoms are treated as if nothing related them, so two sums that come out equal are equal, and a relation that is not known
//! (`\sin 30° = 1/2`) makes them differ: an answer may be missed, none is wrongly accepted. Roots of distinct square-free
//! integers are linearly independent over the rationals (Besicovitch 1940), so among these nothing is missed.

use super::factor::factors;
use super::work::Work;
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};
use std::collections::BTreeMap;

/// A coefficient or an exponent.
pub(super) type Ratio = BigRational;

/// What a product is made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Atom {
    /// A prime, or a number whose factors were not found.
    Prime(BigInt),
    /// A variable or a constant. `i` is the imaginary unit.
    Name(String),
    /// A sum that is the base of a power that cannot be multiplied out.
    Root(Sum),
    /// An atom to the power of a product.
    Power(Box<Atom>, Product),
    /// A function's value.
    Call(String, Vec<Sum>),
}

/// Atoms with their exponents, none of them 0.
pub(super) type Product = BTreeMap<Atom, Ratio>;

/// Products with their coefficients, none of them 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sum(pub(super) BTreeMap<Product, Ratio>);

/// Bits of a coefficient's numerator or denominator at most.
const MOST_BITS: u64 = 4096;
/// Largest exponent that is multiplied out, of a sum with more than one term.
const MOST_FACTORS: u32 = 32;
/// Deepest nesting of atoms.
const DEEPEST: usize = 8;

pub(super) fn whole(value: i64) -> Ratio {
    Ratio::from_integer(BigInt::from(value))
}

fn bits(value: &Ratio) -> u64 {
    value.numer().bits() + value.denom().bits()
}

impl Atom {
    fn depth(&self) -> usize {
        match self {
            Atom::Prime(_) | Atom::Name(_) => 0,
            Atom::Root(sum) => 1 + sum.depth(),
            Atom::Power(base, exponent) => 1 + base.depth().max(depth(exponent)),
            Atom::Call(_, arguments) => 1 + arguments.iter().map(Sum::depth).max().unwrap_or(0),
        }
    }

    fn is_constant(&self) -> bool {
        match self {
            Atom::Prime(_) => true,
            Atom::Name(name) => {
                matches!(name.as_str(), "π" | "e" | "i" | "∞")
                    || name.starts_with(|c: char| c.is_ascii_digit())
            }
            Atom::Root(sum) => sum.is_constant(),
            Atom::Power(base, exponent) => {
                base.is_constant() && exponent.keys().all(Atom::is_constant)
            }
            Atom::Call(_, arguments) => arguments.iter().all(Sum::is_constant),
        }
    }

    /// Known to be a positive number, so that its powers may be raised to powers.
    fn is_positive(&self) -> bool {
        match self {
            Atom::Prime(_) => true,
            Atom::Name(name) => matches!(name.as_str(), "π" | "e"),
            _ => false,
        }
    }

    fn is_imaginary_unit(&self) -> bool {
        matches!(self, Atom::Name(name) if name == "i")
    }
}

fn depth(product: &Product) -> usize {
    product.keys().map(Atom::depth).max().unwrap_or(0)
}

impl Sum {
    pub(super) fn constant(value: Ratio) -> Sum {
        Sum::term(Product::new(), value)
    }

    pub(super) fn atom(atom: Atom) -> Sum {
        Sum::term(Product::from([(atom, Ratio::one())]), Ratio::one())
    }

    pub(super) fn name(name: impl Into<String>) -> Sum {
        Sum::atom(Atom::Name(name.into()))
    }

    fn term(product: Product, coefficient: Ratio) -> Sum {
        if coefficient.is_zero() {
            return Sum::default();
        }
        Sum(BTreeMap::from([(product, coefficient)]))
    }

    /// The number that it is, if it is a rational one.
    pub(super) fn as_ratio(&self) -> Option<Ratio> {
        match self.single() {
            Some((product, coefficient)) => product.is_empty().then(|| coefficient.clone()),
            None => self.is_zero().then(Ratio::zero),
        }
    }

    fn single(&self) -> Option<(&Product, &Ratio)> {
        (self.0.len() == 1).then(|| self.0.iter().next()).flatten()
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    /// True where no variable stands in it.
    pub(super) fn is_constant(&self) -> bool {
        self.0.keys().all(|product| product.keys().all(Atom::is_constant))
    }

    /// How many variables stand in it outside of roots and functions.
    pub(super) fn variables(&self) -> usize {
        let names = self
            .0
            .keys()
            .flat_map(BTreeMap::keys)
            .filter(|atom| matches!(atom, Atom::Name(_)) && !atom.is_constant());
        names.collect::<std::collections::BTreeSet<_>>().len()
    }

    fn depth(&self) -> usize {
        self.0.keys().map(depth).max().unwrap_or(0)
    }

    fn add_term(&mut self, product: Product, coefficient: Ratio) {
        use std::collections::btree_map::Entry;
        match self.0.entry(product) {
            Entry::Vacant(place) => {
                if !coefficient.is_zero() {
                    place.insert(coefficient);
                }
            }
            Entry::Occupied(mut place) => {
                *place.get_mut() += coefficient;
                if place.get().is_zero() {
                    place.remove();
                }
            }
        }
    }

    pub(super) fn plus(mut self, other: Sum, work: &mut Work) -> Option<Sum> {
        for (product, coefficient) in other.0 {
            work.spend(1 + bits(&coefficient) / 64)?;
            self.add_term(product, coefficient);
        }
        Some(self)
    }

    pub(super) fn negated(mut self) -> Sum {
        for coefficient in self.0.values_mut() {
            *coefficient = -std::mem::take(coefficient);
        }
        self
    }

    pub(super) fn times(&self, other: &Sum, work: &mut Work) -> Option<Sum> {
        let mut total = Sum::default();
        for (left, a) in &self.0 {
            for (right, b) in &other.0 {
                let size = bits(a) + bits(b);
                // A greatest common divisor takes the square of the length.
                work.spend(1 + (left.len() + right.len()) as u64 / 4 + (size / 64).pow(2) / 16)?;
                if size > MOST_BITS {
                    return None;
                }
                let mut product = left.clone();
                for (atom, exponent) in right {
                    *product.entry(atom.clone()).or_insert_with(Ratio::zero) += exponent;
                }
                total = total.plus(normal(product, a * b, work)?, work)?;
            }
        }
        Some(total)
    }

    pub(super) fn over(&self, below: &Sum, work: &mut Work) -> Option<Sum> {
        self.times(&below.to_ratio(&whole(-1), work)?, work)
    }

    /// To the power of a sum.
    pub(super) fn to(&self, exponent: &Sum, work: &mut Work) -> Option<Sum> {
        if let Some(ratio) = exponent.as_ratio() {
            return self.to_ratio(&ratio, work);
        }
        if exponent.0.len() > DEEPEST || exponent.depth() + self.depth() >= DEEPEST {
            return None;
        }
        let mut total = Sum::constant(Ratio::one());
        for (product, coefficient) in &exponent.0 {
            let factor = if product.is_empty() {
                self.to_ratio(coefficient, work)?
            } else {
                let bases: Vec<(Atom, Ratio)> = match self.as_ratio().filter(Signed::is_positive) {
                    Some(base) => primes(&base, work)?.into_iter().collect(),
                    None => match self.single() {
                        // An atom whose powers may be raised to powers, or which stands alone.
                        Some((base, one)) if one.is_one() && base.len() == 1 => {
                            let (atom, power) = base.iter().next()?;
                            if !power.is_one() && !atom.is_positive() {
                                return None;
                            }
                            vec![(atom.clone(), power.clone())]
                        }
                        _ => vec![(Atom::Root(self.clone()), Ratio::one())],
                    },
                };
                let power = |(atom, power): (Atom, Ratio)| {
                    (Atom::Power(Box::new(atom), product.clone()), power * coefficient)
                };
                Sum::term(bases.into_iter().map(power).collect(), Ratio::one())
            };
            total = total.times(&factor, work)?;
        }
        Some(total)
    }

    fn to_ratio(&self, exponent: &Ratio, work: &mut Work) -> Option<Sum> {
        if exponent.is_zero() {
            // 0 to the power of 0 has no value.
            return (!self.is_zero()).then(|| Sum::constant(Ratio::one()));
        }
        if self.is_zero() {
            return exponent.is_positive().then(Sum::default);
        }
        if self.depth() >= DEEPEST {
            return None;
        }
        if exponent.is_integer() {
            return self.to_integer(exponent.to_integer().to_i32()?, work);
        }
        let Some((product, coefficient)) = self.single() else {
            let content = self.content();
            let rest = self.times(&Sum::constant(content.recip()), work)?;
            let root = Product::from([(Atom::Root(rest), exponent.clone())]);
            return root_of(&content, exponent, work)?.times(&Sum::term(root, Ratio::one()), work);
        };
        let mut total = root_of(coefficient, exponent, work)?;
        let (positive, rest): (Vec<_>, Vec<_>) =
            product.iter().partition(|(atom, _)| atom.is_positive());
        let positive: Product =
            positive.into_iter().map(|(atom, power)| (atom.clone(), power * exponent)).collect();
        total = total.times(&normal(positive, Ratio::one(), work)?, work)?;
        let rest: Product =
            rest.into_iter().map(|(atom, power)| (atom.clone(), power.clone())).collect();
        let under = match rest.iter().next() {
            None => return Some(total),
            Some((atom, power)) if rest.len() == 1 && power.is_one() => atom.clone(),
            Some(_) => Atom::Root(Sum::term(rest, Ratio::one())),
        };
        total.times(&Sum::term(Product::from([(under, exponent.clone())]), Ratio::one()), work)
    }

    fn to_integer(&self, exponent: i32, work: &mut Work) -> Option<Sum> {
        let size = exponent.unsigned_abs();
        if let Some((product, coefficient)) = self.single() {
            if bits(coefficient).saturating_sub(2).saturating_mul(u64::from(size)) > MOST_BITS {
                return None;
            }
            let power = whole(i64::from(exponent));
            let raised = product.iter().map(|(atom, old)| (atom.clone(), old * &power)).collect();
            return normal(raised, coefficient.pow(exponent), work);
        }
        if size > MOST_FACTORS {
            return None;
        }
        if exponent < 0 {
            let content = self.content();
            let rest = self.times(&Sum::constant(content.recip()), work)?;
            let below = Product::from([(Atom::Root(rest), whole(i64::from(exponent)))]);
            return Some(Sum::term(below, content.pow(exponent)));
        }
        let mut total = Sum::constant(Ratio::one());
        for _ in 0..size {
            total = total.times(self, work)?;
        }
        Some(total)
    }

    /// The positive number that leaves coprime integers as coefficients.
    fn content(&self) -> Ratio {
        use num_integer::Integer;
        let mut above = BigInt::zero();
        let mut below = BigInt::one();
        for coefficient in self.0.values() {
            above = above.gcd(coefficient.numer());
            below = below.lcm(coefficient.denom());
        }
        if above.is_zero() { Ratio::one() } else { Ratio::new(above.abs(), below) }
    }
}

/// A product with a coefficient in normal form: whole powers of numbers and of sums are multiplied out, and `i² = -1`.
fn normal(product: Product, mut coefficient: Ratio, work: &mut Work) -> Option<Sum> {
    let (mut rest, mut sums) = (Product::new(), Vec::new());
    for (atom, exponent) in product {
        let up = exponent.floor();
        let left = match &atom {
            _ if exponent.is_zero() => continue,
            Atom::Prime(prime) => {
                let power = up.to_integer().to_i32()?;
                if prime.bits().saturating_mul(u64::from(power.unsigned_abs())) > MOST_BITS {
                    return None;
                }
                coefficient *= Ratio::from_integer(prime.clone()).pow(power);
                exponent - up
            }
            Atom::Root(sum) if exponent >= Ratio::one() => {
                sums.push((
                    sum.clone(),
                    up.to_integer().to_u32().filter(|power| *power <= MOST_FACTORS)?,
                ));
                exponent - up
            }
            _ if atom.is_imaginary_unit() && exponent.is_integer() => {
                use num_integer::Integer;
                let quarter = exponent.to_integer().mod_floor(&BigInt::from(4));
                if quarter >= BigInt::from(2) {
                    coefficient = -coefficient;
                }
                Ratio::from_integer(quarter % BigInt::from(2))
            }
            _ => exponent,
        };
        if !left.is_zero() {
            rest.insert(atom, left);
        }
    }
    if bits(&coefficient) > MOST_BITS {
        return None;
    }
    let mut total = Sum::term(rest, coefficient);
    for (sum, power) in sums {
        for _ in 0..power {
            total = total.times(&sum, work)?;
        }
    }
    Some(total)
}

/// The real root (or `i` times one) of a number: factors are taken out of it.
fn root_of(value: &Ratio, exponent: &Ratio, work: &mut Work) -> Option<Sum> {
    if exponent.denom() > &BigInt::from(64) || exponent.numer().abs() > BigInt::from(4096) {
        return None;
    }
    let product = primes(&value.abs(), work)?
        .into_iter()
        .map(|(prime, power)| (prime, power * exponent))
        .collect();
    let size = normal(product, Ratio::one(), work)?;
    if value.is_positive() {
        return Some(size);
    }
    let odd = |n: &BigInt| n.bit(0);
    if odd(exponent.denom()) {
        return Some(if odd(exponent.numer()) { size.negated() } else { size });
    }
    if exponent.denom() != &BigInt::from(2) {
        return None;
    }
    let turns = Product::from([(
        Atom::Name("i".to_owned()),
        Ratio::from_integer(exponent.numer().clone()),
    )]);
    size.times(&normal(turns, Ratio::one(), work)?, work)
}

/// The prime factors of a positive number.
fn primes(value: &Ratio, work: &mut Work) -> Option<Product> {
    work.spend(200 + bits(value))?;
    let mut product = Product::new();
    for (number, sign) in [(value.numer(), 1), (value.denom(), -1)] {
        for (prime, power) in factors(number) {
            *product.entry(Atom::Prime(prime)).or_insert_with(Ratio::zero) += whole(sign * power);
        }
    }
    product.retain(|_, power| !power.is_zero());
    Some(product)
}

/// True when two sums are the same number or the same function.
pub(super) fn same(a: &Sum, b: &Sum, work: &mut Work) -> bool {
    a == b || vanishes(a.clone(), b.clone(), work) == Some(true)
}

/// True when one is a multiple of the other by a number other than 0.
pub(super) fn proportional(a: &Sum, b: &Sum, work: &mut Work) -> bool {
    let (Some((product, first)), Some((other, second))) = (a.0.iter().next(), b.0.iter().next())
    else {
        return false;
    };
    product == other
        && a.times(&Sum::constant(second / first), work)
            .is_some_and(|scaled| same(&scaled, b, work))
}

/// True when the difference is 0 after every sum below a fraction line has been multiplied away.
fn vanishes(a: Sum, b: Sum, work: &mut Work) -> Option<bool> {
    let mut difference = a.plus(b.negated(), work)?;
    for _ in 0..DEEPEST {
        let below = difference
            .0
            .keys()
            .flatten()
            .filter(|(atom, power)| matches!(atom, Atom::Root(_)) && power.is_negative());
        let Some((atom, power)) = below.min_by(|a, b| a.1.cmp(b.1)) else {
            return Some(difference.is_zero());
        };
        let factor = Sum::term(Product::from([(atom.clone(), -power.floor())]), Ratio::one());
        difference = difference.times(&factor, work)?;
    }
    None
}
