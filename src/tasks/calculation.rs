//! Exact arithmetic on what a calculator is asked: whole numbers, decimals, `+ - * / %` and brackets.

use std::fmt;

/// The longest expression, bytes.
const LONGEST: usize = 256;
/// Most brackets and signs inside each other.
const DEEPEST: usize = 32;
/// Most decimals of a result that is written with decimals.
const DECIMALS: u32 = 18;

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoResult {
    /// It is no expression, or one that is too long.
    NotAnExpression,
    /// A number is divided by 0, or its remainder by 0 is asked for.
    DivisionByZero,
    /// A remainder of numbers that are not whole.
    NotWhole,
    /// A number does not fit 127 bits.
    TooLarge,
}

impl NoResult {
    /// All of them.
    pub const ALL: [NoResult; 4] = [
        NoResult::NotAnExpression,
        NoResult::DivisionByZero,
        NoResult::NotWhole,
        NoResult::TooLarge,
    ];
}

impl fmt::Display for NoResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoResult::NotAnExpression => "error: not an expression",
            NoResult::DivisionByZero => "error: division by zero",
            NoResult::NotWhole => "error: not whole",
            NoResult::TooLarge => "error: too large",
        })
    }
}

/// The exact value of an expression: a whole number, a number with decimals, or a fraction `a/b` where decimals would not
/// end. `%` is the remainder, from 0 up to the divisor; it binds like `*`.
///
/// # Errors
/// [`NoResult`]. Blanks between numbers and signs are allowed, anything else that is no part of an expression is not.
pub fn calculate(text: &str) -> Result<String, NoResult> {
    if text.len() > LONGEST {
        return Err(NoResult::NotAnExpression);
    }
    let mut scan = Scan { rest: text.trim_start(), depth: 0 };
    let value = scan.sum()?;
    if scan.rest.is_empty() { Ok(value.to_string()) } else { Err(NoResult::NotAnExpression) }
}

/// A fraction in lowest terms; the denominator is positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exact {
    numerator: i128,
    denominator: i128,
}

impl Exact {
    fn new(numerator: Option<i128>, denominator: Option<i128>) -> Result<Exact, NoResult> {
        let (Some(numerator), Some(denominator)) = (numerator, denominator) else {
            return Err(NoResult::TooLarge);
        };
        // The smallest number has no opposite.
        if numerator == i128::MIN || denominator == i128::MIN {
            return Err(NoResult::TooLarge);
        }
        let (mut a, mut b) = (numerator.abs(), denominator.abs());
        while b > 0 {
            (a, b) = (b, a % b);
        }
        let divisor = a.max(1) * denominator.signum();
        match divisor {
            0 => Err(NoResult::DivisionByZero),
            _ => Ok(Exact { numerator: numerator / divisor, denominator: denominator / divisor }),
        }
    }

    fn plus(self, other: Exact) -> Result<Exact, NoResult> {
        let left = self.numerator.checked_mul(other.denominator);
        let right = other.numerator.checked_mul(self.denominator);
        let sum = left.zip(right).and_then(|(left, right)| left.checked_add(right));
        Exact::new(sum, self.denominator.checked_mul(other.denominator))
    }

    fn negated(self) -> Exact {
        Exact { numerator: -self.numerator, ..self }
    }

    fn times(self, other: Exact) -> Result<Exact, NoResult> {
        Exact::new(
            self.numerator.checked_mul(other.numerator),
            self.denominator.checked_mul(other.denominator),
        )
    }

    fn over(self, other: Exact) -> Result<Exact, NoResult> {
        Exact::new(
            self.numerator.checked_mul(other.denominator),
            self.denominator.checked_mul(other.numerator),
        )
    }

    fn remainder(self, other: Exact) -> Result<Exact, NoResult> {
        if self.denominator != 1 || other.denominator != 1 {
            return Err(NoResult::NotWhole);
        }
        match other.numerator {
            0 => Err(NoResult::DivisionByZero),
            divisor => Exact::new(self.numerator.checked_rem_euclid(divisor), Some(1)),
        }
    }
}

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exact { numerator, denominator } = *self;
        if denominator == 1 {
            return write!(f, "{numerator}");
        }
        // As many decimals as make the denominator a power of ten, if any do.
        let scaled = (1..=DECIMALS).find_map(|decimals| {
            let power = 10i128.pow(decimals);
            let digits = (power % denominator == 0)
                .then(|| numerator.abs().checked_mul(power / denominator))??;
            Some((decimals as usize, digits))
        });
        match scaled {
            Some((decimals, digits)) => {
                let sign = if numerator < 0 { "-" } else { "" };
                let digits = format!("{digits:0>width$}", width = decimals + 1);
                let (whole, part) = digits.split_at(digits.len() - decimals);
                write!(f, "{sign}{whole}.{part}")
            }
            None => write!(f, "{numerator}/{denominator}"),
        }
    }
}

struct Scan<'a> {
    rest: &'a str,
    depth: usize,
}

impl Scan<'_> {
    /// Skips a sign and the blanks after it.
    fn skip(&mut self, sign: char) -> bool {
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Result<Exact, NoResult> {
        let mut value = self.product()?;
        loop {
            value = if self.skip('+') {
                value.plus(self.product()?)?
            } else if self.skip('-') {
                value.plus(self.product()?.negated())?
            } else {
                return Ok(value);
            };
        }
    }

    fn product(&mut self) -> Result<Exact, NoResult> {
        let mut value = self.factor()?;
        loop {
            value = if self.skip('*') {
                value.times(self.factor()?)?
            } else if self.skip('/') {
                value.over(self.factor()?)?
            } else if self.skip('%') {
                value.remainder(self.factor()?)?
            } else {
                return Ok(value);
            };
        }
    }

    fn factor(&mut self) -> Result<Exact, NoResult> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(NoResult::NotAnExpression);
        }
        let value = if self.skip('-') {
            self.factor()?.negated()
        } else if self.skip('(') {
            let value = self.sum()?;
            if !self.skip(')') {
                return Err(NoResult::NotAnExpression);
            }
            value
        } else {
            self.number()?
        };
        self.depth -= 1;
        Ok(value)
    }

    fn digits(&mut self) -> &str {
        let count = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.rest.split_at(count);
        self.rest = rest;
        digits
    }

    fn number(&mut self) -> Result<Exact, NoResult> {
        let mut written = self.digits().to_owned();
        let mut decimals = 0;
        if !written.is_empty() && self.rest.starts_with('.') {
            self.rest = &self.rest[1..];
            let part = self.digits().to_owned();
            if part.is_empty() {
                return Err(NoResult::NotAnExpression);
            }
            decimals = part.len() as u32;
            written.push_str(&part);
        }
        if written.is_empty() {
            return Err(NoResult::NotAnExpression);
        }
        self.rest = self.rest.trim_start();
        Exact::new(written.parse().ok(), 10i128.checked_pow(decimals))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn results_are_exact() {
        for (text, result) in [
            ("12*7", "84"),
            ("1+2*3", "7"),
            ("(1+2)*3", "9"),
            ("10-2-3", "5"),
            ("12/3/2", "2"),
            ("--3", "3"),
            ("2*-3", "-6"),
            (" 7 + 8 ", "15"),
            ("(7+8)%10", "5"),
            ("-7%5", "3"),
            ("-(7)%5", "3"),
            ("7+8%5", "10"),
            ("1/4", "0.25"),
            ("-1/8", "-0.125"),
            ("1/3", "1/3"),
            ("2/6*3", "1"),
            ("0.1+0.2", "0.3"),
            ("1.50", "1.5"),
            ("3.0", "3"),
            ("007", "7"),
            ("10/4", "2.5"),
            ("1/1000000000000000000", "0.000000000000000001"),
            ("1/10000000000000000000", "1/10000000000000000000"),
            ("99999999999999999*99999999999999999", "9999999999999999800000000000000001"),
        ] {
            assert_eq!(calculate(text).as_deref(), Ok(result), "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_has_no_result() {
        use NoResult::{DivisionByZero, NotAnExpression, NotWhole, TooLarge};
        let deep = format!("{}1{}", "(".repeat(40), ")".repeat(40));
        let long = "1+".repeat(200) + "1";
        let huge = "9".repeat(60);
        let edge = format!("-{}-1-1", i128::MAX);
        for (text, expected) in [
            ("", NotAnExpression),
            ("1+", NotAnExpression),
            ("1 2", NotAnExpression),
            ("1..2", NotAnExpression),
            (".5", NotAnExpression),
            ("5.", NotAnExpression),
            ("1e3", NotAnExpression),
            ("2^3", NotAnExpression),
            ("1=1", NotAnExpression),
            ("(1", NotAnExpression),
            ("1)", NotAnExpression),
            ("+1", NotAnExpression),
            ("x", NotAnExpression),
            ("１", NotAnExpression),
            (&deep, NotAnExpression),
            (&long, NotAnExpression),
            ("1/0", DivisionByZero),
            ("1/(2-2)", DivisionByZero),
            ("1%0", DivisionByZero),
            ("1.5%1", NotWhole),
            (&huge, TooLarge),
            (&edge, TooLarge),
            ("1/3+1/99999999999999999999999999999999999999", TooLarge),
        ] {
            assert_eq!(calculate(text), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-0-9+*/%(). ]{0,40}", other in "\\PC{0,20}") {
            let _ = calculate(&text);
            let _ = calculate(&other);
        }

        #[test]
        fn whole_numbers_as_a_processor_has_them(a in -1_000_000i64..1_000_000, b in 1i64..1000) {
            prop_assert_eq!(calculate(&format!("{a}+{b}*({a}-{b})")), Ok((a + b * (a - b)).to_string()));
            prop_assert_eq!(calculate(&format!("({a})%{b}")), Ok(a.rem_euclid(b).to_string()));
            prop_assert_eq!(calculate(&format!("({a})/{b}*{b}")), Ok(a.to_string()));
        }
    }
}
