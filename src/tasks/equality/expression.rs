//! Reads an expression into its normal form: `4x-7`, `5\sqrt{3}`, `\frac{1}{7!}`, `(x+1)^2`, `3\frac{1}{2}`, `1.2 \times 10^5`.
//!
//! What is ambiguous has no value here and is compared as text: `1/2x` is one half of x to some and 1/(2x) to others.

use super::function::{absolute, binomial, factorial};
use super::sum::{Atom, Ratio, Sum, whole};
use super::token::{Spaced, Token};
use super::work::Work;
use num_bigint::BigInt;
use num_traits::{Signed, Zero};

/// Most tokens of an expression.
const LONGEST: usize = 400;
/// Deepest nesting of brackets and arguments.
const DEEPEST: usize = 24;
/// Largest power of ten that is written out.
const LARGEST_POWER: i64 = 1000;

/// The value of an expression, where it is one.
pub(super) fn value(tokens: &[Spaced], work: &mut Work) -> Option<Sum> {
    // A word is no product of its letters.
    if tokens.len() > LONGEST
        || (tokens.len() == 1 && matches!(tokens[0].token, Token::Word { .. }))
    {
        return None;
    }
    let mut parser =
        Parser { tokens, at: 0, depth: 0, bars: 0, pending: String::new().into_bytes(), work };
    let value = parser.sum()?;
    parser.ended().then_some(value)
}

/// A written number: `12`, `.5`, `2e-5`.
pub(super) fn number(written: &str) -> Option<Ratio> {
    let (mantissa, power) = match written.split_once(['e', 'E']) {
        Some((mantissa, power)) => (mantissa, power.parse::<i64>().ok()?),
        None => (written, 0),
    };
    let (digits, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let power = power.checked_sub(i64::try_from(decimals.len()).ok()?)?;
    if power.abs() > LARGEST_POWER || digits.len() + decimals.len() > 1000 {
        return None;
    }
    let value: BigInt = format!("{digits}{decimals}").parse().ok()?;
    Some(Ratio::from_integer(value) * whole(10).pow(i32::try_from(power).ok()?))
}

struct Parser<'a, 'w> {
    tokens: &'a [Spaced],
    at: usize,
    depth: usize,
    /// Absolute values that are open.
    bars: usize,
    /// Letters of a word, last first, that are variables still to be read.
    pending: Vec<u8>,
    work: &'w mut Work,
}

impl<'a> Parser<'a, '_> {
    fn ended(&self) -> bool {
        self.at == self.tokens.len() && self.pending.is_empty()
    }

    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at).map(|spaced| &spaced.token)
    }

    fn blank(&self) -> bool {
        self.tokens.get(self.at).is_some_and(|spaced| spaced.blank)
    }

    fn symbol(&self) -> Option<char> {
        match self.peek() {
            Some(Token::Symbol(symbol)) if self.pending.is_empty() => Some(*symbol),
            _ => None,
        }
    }

    fn skip(&mut self, symbol: char) -> bool {
        let there = self.symbol() == Some(symbol);
        self.at += usize::from(there);
        there
    }

    fn skip_token(&mut self, token: &Token) -> Option<()> {
        (self.pending.is_empty() && self.peek() == Some(token)).then(|| self.at += 1)
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth == DEEPEST {
            return None;
        }
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        read
    }

    fn sum(&mut self) -> Option<Sum> {
        let mut total = Sum::default();
        let mut negative = self.skip('-');
        if !negative {
            self.skip('+');
        }
        loop {
            let term = self.term()?;
            total = total.plus(if negative { term.negated() } else { term }, self.work)?;
            if self.skip('-') {
                negative = true;
            } else if self.skip('+') {
                negative = false;
            } else {
                return Some(total);
            }
        }
    }

    fn term(&mut self) -> Option<Sum> {
        let mut total = self.factor()?;
        // After a `/` whose divisor is not set off from what follows, a factor is ambiguous.
        let mut divided = false;
        loop {
            if self.skip('*') {
                let factor = self.factor()?;
                total = total.times(&factor, self.work)?;
                divided = false;
            } else if self.skip('/') {
                let factor = self.factor()?;
                total = total.over(&factor, self.work)?;
                divided = true;
            } else if self.begins_factor() {
                if divided && (!self.blank() || !self.pending.is_empty()) {
                    return None;
                }
                let factor = self.power()?;
                total = total.times(&factor, self.work)?;
            } else {
                return Some(total);
            }
        }
    }

    /// True where a factor follows without a sign of multiplication. A number is none: `x 2` means nothing.
    fn begins_factor(&self) -> bool {
        if !self.pending.is_empty() {
            return true;
        }
        match self.peek() {
            Some(Token::Letter(_) | Token::Open | Token::Symbol('(' | '[')) => true,
            Some(Token::Word { upright, .. }) => !upright,
            Some(Token::Symbol('|')) => self.bars == 0,
            Some(Token::Command(name)) => {
                matches!(name.as_str(), "frac" | "binom" | "sqrt")
                    || super::command::is_function(name)
            }
            _ => false,
        }
    }

    fn factor(&mut self) -> Option<Sum> {
        if self.skip('-') {
            return Some(self.nested(Self::factor)?.negated());
        }
        if self.skip('+') {
            return self.nested(Self::factor);
        }
        self.power()
    }

    /// A base with its factorials and its exponent.
    fn power(&mut self) -> Option<Sum> {
        let number_at = self.at;
        let mut base = self.nested(Self::primary)?;
        if let Some(part) = self.fraction_of_a_mixed_number(number_at, &base) {
            base = base.plus(Sum::constant(part), self.work)?;
        }
        while self.skip('!') {
            base = factorial(&base, self.work)?;
        }
        if self.skip('^') {
            let exponent = self.exponent()?;
            base = base.to(&exponent, self.work)?;
            if self.symbol() == Some('^') {
                return None;
            }
        }
        while self.skip('!') {
            base = factorial(&base, self.work)?;
        }
        Some(base)
    }

    fn exponent(&mut self) -> Option<Sum> {
        let negative = self.skip('-');
        let exponent = self.nested(Self::primary)?;
        Some(if negative { exponent.negated() } else { exponent })
    }

    /// The fraction after a whole number: `3 1/2`, `3\frac{1}{2}`.
    fn fraction_of_a_mixed_number(&mut self, at: usize, base: &Sum) -> Option<Ratio> {
        let is_number = self.at == at + 1 && matches!(self.tokens[at].token, Token::Number(_));
        if !is_number || !base.as_ratio()?.is_integer() {
            return None;
        }
        let digits = |token: Option<&Spaced>| match token.map(|spaced| &spaced.token) {
            Some(Token::Number(written)) => number(written).filter(Ratio::is_integer),
            _ => None,
        };
        let rest = &self.tokens[self.at..];
        let (above, below, length) = match self.peek()? {
            Token::Number(_) if self.blank() => {
                let slash = rest.get(1).filter(|slash| slash.is('/'))?;
                let tight = !slash.blank && !rest.get(2)?.blank;
                (digits(rest.first())?, digits(rest.get(2)).filter(|_| tight)?, 3)
            }
            Token::Command(name) if name == "frac" => {
                let (above, below, used) = arguments(&rest[1..])?;
                (above, below, 1 + used)
            }
            _ => return None,
        };
        if !above.is_positive() || above >= below {
            return None;
        }
        self.at += length;
        Some(above / below)
    }

    fn primary(&mut self) -> Option<Sum> {
        if let Some(letter) = self.pending.pop() {
            return Some(Sum::name(char::from(letter)));
        }
        let token = self.peek()?;
        self.at += 1;
        match token {
            Token::Number(written) => self.number(written),
            Token::Letter(letter) => self.variable(*letter),
            Token::Word { letters, upright: false } if letters.len() <= 3 && letters.is_ascii() => {
                self.pending = letters.bytes().rev().collect();
                self.primary()
            }
            Token::Open => {
                let mut inside = self.sum()?;
                if self.skip_token(&Token::Command("over".to_owned())).is_some() {
                    let below = self.sum()?;
                    inside = inside.over(&below, self.work)?;
                }
                self.skip_token(&Token::Close)?;
                Some(inside)
            }
            Token::Symbol('(') => self.sum().filter(|_| self.skip(')')),
            Token::Symbol('[') => self.sum().filter(|_| self.skip(']')),
            Token::Symbol('|') => {
                self.bars += 1;
                let inside = self.sum().filter(|_| self.skip('|'));
                self.bars -= 1;
                Some(absolute(inside?))
            }
            Token::Command(name) => self.function(name),
            _ => None,
        }
    }

    /// A number, a number in a base (`31_5`), or a time or ratio (`8:45`), which equal only themselves.
    fn number(&mut self, written: &str) -> Option<Sum> {
        if self.skip('_') {
            let base = self.subscript()?;
            return Some(Sum::name(format!("{}_{base}", written.trim_start_matches('0'))));
        }
        let mut parts = vec![written];
        while self.symbol() == Some(':') {
            let Some(Spaced { token: Token::Number(part), .. }) = self.tokens.get(self.at + 1)
            else {
                break;
            };
            parts.push(part);
            self.at += 2;
        }
        if parts.len() == 1 {
            return Some(Sum::constant(number(written)?));
        }
        let first = written.trim_start_matches('0');
        parts[0] = if first.is_empty() { "0" } else { first };
        Some(Sum::name(parts.join(":")))
    }

    fn variable(&mut self, letter: char) -> Option<Sum> {
        let mut name = letter.to_string();
        if self.skip('_') {
            name = format!("{name}_{}", self.subscript()?);
        }
        while self.skip('\'') {
            name.push('\'');
        }
        Some(Sum::name(name))
    }

    /// A subscript as text.
    fn subscript(&mut self) -> Option<String> {
        let start = self.at;
        if self.skip_token(&Token::Open).is_none() {
            self.at += 1;
            return Some(super::plain::plain(self.tokens.get(start..self.at)?));
        }
        let length =
            self.tokens[self.at..].iter().position(|spaced| spaced.token == Token::Close)?;
        self.at += length + 1;
        Some(super::plain::plain(&self.tokens[start + 1..self.at - 1]))
    }

    fn function(&mut self, name: &str) -> Option<Sum> {
        match name {
            "frac" => {
                let above = self.argument()?;
                let below = self.argument()?;
                above.over(&below, self.work)
            }
            "binom" => {
                let (n, k) = (self.argument()?, self.argument()?);
                binomial(&n, &k, self.work)
            }
            "sqrt" => {
                let degree = if self.skip('[') {
                    Some(self.sum().filter(|_| self.skip(']'))?)
                } else {
                    None
                };
                let under = self.nested(Self::primary)?;
                let degree = degree.map_or(Some(whole(2)), |degree| degree.as_ratio())?;
                if degree.is_zero() {
                    return None;
                }
                under.to(&Sum::constant(degree.recip()), self.work)
            }
            _ if super::command::is_function(name) => {
                let mut called = name.to_owned();
                if self.skip('_') {
                    called = format!("{called}_{}", self.subscript()?);
                }
                let power = if self.skip('^') { Some(self.exponent()?) } else { None };
                let value = self.nested(Self::argument_of_a_function)?;
                let value = match called.as_str() {
                    "abs" => absolute(value),
                    "exp" => Sum::name("e").to(&value, self.work)?,
                    _ => Sum::atom(Atom::Call(called, vec![value])),
                };
                match power {
                    None => Some(value),
                    // `\sin^{-1}` is no power of the sine.
                    Some(power) => power
                        .as_ratio()
                        .filter(Signed::is_positive)
                        .and_then(|_| value.to(&power, self.work)),
                }
            }
            _ => None,
        }
    }

    /// What a function is applied to: a group, or factors up to the next function or sign.
    fn argument_of_a_function(&mut self) -> Option<Sum> {
        if matches!(self.peek(), Some(Token::Symbol('(') | Token::Open)) {
            return self.primary();
        }
        let mut total = self.power()?;
        let mut degrees = self.skip('°');
        while self.begins_factor()
            && !matches!(self.peek(), Some(Token::Command(name)) if super::command::is_function(name) && name != "sqrt")
        {
            let factor = self.power()?;
            total = total.times(&factor, self.work)?;
            degrees |= self.skip('°');
        }
        if degrees {
            total = total.times(&Sum::name("°"), self.work)?;
        }
        Some(total)
    }

    /// An argument of `\frac`: a group, or a single digit or letter.
    fn argument(&mut self) -> Option<Sum> {
        if let Some(Token::Number(written)) = self.peek()
            && written.len() == 2
            && self.pending.is_empty()
            && matches!(self.tokens.get(self.at.checked_sub(1)?)?.token, Token::Command(_))
        {
            // Both arguments in one number, as `\frac12`.
            self.pending = written.bytes().rev().collect();
            self.at += 1;
        }
        if let Some(digit) = self.pending.last().filter(|digit| digit.is_ascii_digit()) {
            let digit = i64::from(digit - b'0');
            self.pending.pop();
            return Some(Sum::constant(whole(digit)));
        }
        if let Some(Token::Number(written)) = self.peek()
            && written.len() > 1
        {
            return None;
        }
        self.nested(Self::primary)
    }
}

/// Both arguments of a `\\frac` of whole numbers, and how many tokens they take.
fn arguments(tokens: &[Spaced]) -> Option<(Ratio, Ratio, usize)> {
    if let Some(Spaced { token: Token::Number(written), .. }) = tokens.first()
        && written.len() == 2
    {
        return Some((number(&written[..1])?, number(&written[1..])?, 1));
    }
    let (above, used) = argument(tokens)?;
    let (below, more) = argument(&tokens[used..])?;
    Some((above, below, used + more))
}

/// A whole number in a group, or a digit of its own, as an argument of `\frac`.
fn argument(tokens: &[Spaced]) -> Option<(Ratio, usize)> {
    let whole_number = |written: &str| number(written).filter(Ratio::is_integer);
    match tokens {
        [
            Spaced { token: Token::Open, .. },
            Spaced { token: Token::Number(written), .. },
            Spaced { token: Token::Close, .. },
            ..,
        ] => Some((whole_number(written)?, 3)),
        [Spaced { token: Token::Number(written), .. }, ..] if written.len() == 1 => {
            Some((whole_number(written)?, 1))
        }
        _ => None,
    }
}
