//! A value with its unit: `-$1,234.50`, `3/4`, `5 cm`, `12%`, `3 million`, `10\pi\text{ cm}^2`, `31 (in total)`.

use super::expression;
use super::percent::Percent;
use super::sum::{self, Ratio, Sum, whole};
use super::token::{Spaced, Token};
use super::unit;
use super::work::Work;

/// A value and its unit.
#[derive(Debug)]
pub(super) struct Quantity {
    value: Sum,
    /// Empty where there is none.
    unit: String,
    percent: bool,
}

impl Quantity {
    /// True where it is one number, whatever its unit.
    pub(super) fn is_constant(&self) -> bool {
        self.value.is_constant()
    }

    /// True when both are the same, units included where both have one.
    pub(super) fn equals(&self, other: &Quantity, percent: Percent, work: &mut Work) -> bool {
        let units = [self.unit(), other.unit()];
        let units_agree = units[0] == units[1] || units.contains(&"");
        if !units_agree {
            return false;
        }
        let plainly = |work: &mut Work| sum::same(&self.value, &other.value, work);
        let in_hundredths = |work: &mut Work| match (self.hundredths(work), other.hundredths(work))
        {
            (Some(a), Some(b)) => sum::same(&a, &b, work),
            _ => false,
        };
        match percent {
            Percent::Number => plainly(work),
            Percent::Hundredths => in_hundredths(work),
            Percent::Either => plainly(work) || in_hundredths(work),
        }
    }

    fn unit(&self) -> &str {
        if self.percent && self.unit.is_empty() { "%" } else { &self.unit }
    }

    fn hundredths(&self, work: &mut Work) -> Option<Sum> {
        if !self.percent {
            return Some(self.value.clone());
        }
        self.value.over(&Sum::constant(whole(100)), work)
    }
}

/// Reads a value with its unit.
pub(super) fn quantity(tokens: &[Spaced], work: &mut Work) -> Option<Quantity> {
    let tokens = without_a_remark(tokens);
    let (tokens, currency, negative) = without_currency(tokens);
    let first = tokens
        .iter()
        .rev()
        .take(unit::LONGEST)
        .take_while(|spaced| unit::may_belong(spaced))
        .count();
    let mut read = None;
    for at in tokens.len() - first..=tokens.len() {
        let (number, rest) = tokens.split_at(at);
        // A unit begins with a word or a sign.
        if matches!(
            rest.first().map(|spaced| &spaced.token),
            Some(
                Token::Number(_)
                    | Token::Open
                    | Token::Close
                    | Token::Symbol('^' | '/' | '*' | '-' | '.')
            )
        ) {
            continue;
        }
        let (factor, percent, rest) = multiplied(rest);
        let Some(unit) = unit::unit(rest) else { continue };
        let Some(value) = expression::value(number, work) else { continue };
        if !value.is_constant() && !rest.is_empty() && !is_upright(rest) {
            continue;
        }
        let value = value.times(&Sum::constant(factor), work)?;
        read = Some((value, unit, percent));
        break;
    }
    let (value, unit, percent) = read?;
    if !currency.is_empty() && !unit.is_empty() && unit != currency {
        return None;
    }
    let unit = if unit.is_empty() { currency } else { unit };
    Some(Quantity { value: if negative { value.negated() } else { value }, unit, percent })
}

/// `(in total)` after an answer says nothing about its value.
fn without_a_remark(tokens: &[Spaced]) -> &[Spaced] {
    let Some(open) = tokens.iter().rposition(|spaced| spaced.is('(')) else { return tokens };
    let Some((last, inside)) = tokens[open + 1..].split_last() else { return tokens };
    let words = inside.iter().all(unit::is_plain_word);
    let remark = open > 0 && tokens[open].blank && last.is(')') && !inside.is_empty() && words;
    if remark { &tokens[..open] } else { tokens }
}

/// The number after a sign of money, the name of the money, and whether a minus stood before it.
fn without_currency(tokens: &[Spaced]) -> (&[Spaced], String, bool) {
    let negative = tokens.first().is_some_and(|first| first.is('-'));
    let after_sign = if negative { &tokens[1..] } else { tokens };
    let is_sign =
        |spaced: &Spaced| matches!(spaced.token, Token::Symbol('$' | '€' | '£' | '¥' | '₹'));
    let is_name = |spaced: &Spaced| {
        matches!(&spaced.token, Token::Word { letters, .. }
            if matches!(letters.as_str(), "US" | "USD" | "EUR" | "GBP" | "Rs" | "INR" | "RS" | "JPY"))
    };
    let length = match after_sign {
        [name, sign, ..] if is_name(name) && is_sign(sign) => 2,
        [name, point, ..] if is_name(name) && point.is('.') => 2,
        [first, ..] if is_sign(first) || is_name(first) => 1,
        _ => return (tokens, String::new(), false),
    };
    let sign = &after_sign[..length];
    let of_money = if length == 2 && is_sign(&sign[1]) { &sign[1..] } else { &sign[..1] };
    let name = unit::unit(of_money).unwrap_or_default();
    (&after_sign[length..], name, negative)
}

/// The words after a number that multiply it, a percent sign, and what is left.
fn multiplied(mut tokens: &[Spaced]) -> (Ratio, bool, &[Spaced]) {
    let mut factor = whole(1);
    while let Some((first, rest)) = tokens.split_first()
        && let Some((_, size)) = unit::MULTIPLIERS.iter().find(|(word, _)| first.is_word(word))
    {
        factor *= whole(*size);
        tokens = rest;
    }
    match tokens.split_first() {
        Some((first, rest)) if first.is('%') || first.is_word("percent") => (factor, true, rest),
        _ => (factor, false, tokens),
    }
}

fn is_upright(tokens: &[Spaced]) -> bool {
    matches!(tokens.first(), Some(Spaced { token: Token::Word { upright: true, .. }, .. }))
}
