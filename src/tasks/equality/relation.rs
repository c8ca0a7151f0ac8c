//! Equations and inequalities as answers: `x = 5` answers with 5, `4 * 9 = 36` with 36, `2 < x \le 9` with `(2, 9]`.

use super::collection::split;
use super::token::{Spaced, Token};

/// Sides and the signs between them.
#[derive(Debug)]
pub(super) struct Relation<'a> {
    pub(super) sides: Vec<&'a [Spaced]>,
    pub(super) signs: Vec<char>,
}

/// The relation that an answer is, if it is one. The side before a first `=` may be empty.
pub(super) fn relation(tokens: &[Spaced]) -> Option<Relation<'_>> {
    let tokens = match tokens.split_first() {
        Some((first, rest)) if first.is('=') && !rest.is_empty() => {
            return Some(Relation { sides: vec![rest], signs: vec!['='] });
        }
        _ => tokens,
    };
    let mut signs = Vec::new();
    let sides = split(tokens, |spaced| match spaced.token {
        Token::Symbol(sign @ ('=' | '<' | '>' | '≤' | '≥' | '≠' | '≈' | '∈')) => {
            signs.push(sign);
            true
        }
        _ => false,
    })?;
    (sides.len() <= 16).then_some(Relation { sides, signs })
}

impl<'a> Relation<'a> {
    /// What it says the answer is: the last side, where those before it are names or `is_constant`. With `≈` the side before
    /// that sign is the answer too.
    pub(super) fn values(
        &self,
        mut is_constant: impl FnMut(&[Spaced]) -> bool,
    ) -> Vec<&'a [Spaced]> {
        let Some((last, before)) = self.sides.split_last() else { return Vec::new() };
        let approximate = match self.signs.split_last() {
            Some(('≈', exact)) => exact.iter().all(|sign| *sign == '='),
            Some((_, _)) => false,
            None => false,
        };
        let exact =
            approximate || self.signs.iter().all(|sign| *sign == '=') || self.signs == ['∈'];
        if !exact || !before.iter().all(|side| is_name(side) || is_constant(side)) {
            return Vec::new();
        }
        match before.last() {
            Some(side) if approximate && !is_name(side) => vec![last, side],
            _ => vec![last],
        }
    }

    /// True where the first side is a name and the only one of its kind: `x = 3`, `y = 2x + 1`.
    pub(super) fn is_definition(&self) -> bool {
        self.signs == ['='] && self.sides.len() == 2 && is_name(self.sides[0])
    }

    /// With its sides the other way round.
    pub(super) fn reversed(&self) -> Relation<'a> {
        let turned = |sign: &char| match sign {
            '<' => '>',
            '>' => '<',
            '≤' => '≥',
            '≥' => '≤',
            other => *other,
        };
        Relation {
            sides: self.sides.iter().rev().copied().collect(),
            signs: self.signs.iter().rev().map(turned).collect(),
        }
    }

    /// The interval of an inequality in one variable.
    pub(super) fn interval(&self) -> Option<Vec<Spaced>> {
        let ascending = |signs: &[char]| signs.iter().all(|sign| matches!(sign, '<' | '≤'));
        let relation = if ascending(&self.signs) {
            Relation { sides: self.sides.clone(), signs: self.signs.clone() }
        } else {
            self.reversed()
        };
        if !ascending(&relation.signs) {
            return None;
        }
        let is_variable =
            |side: &[Spaced]| matches!(side, [Spaced { token: Token::Letter(_), .. }]);
        let infinity = |sign: &[char]| {
            let token = |token| Spaced { token, blank: false };
            let mut side: Vec<Spaced> =
                sign.iter().map(|sign| token(Token::Symbol(*sign))).collect();
            side.push(token(Token::Letter('∞')));
            side
        };
        let (low, low_sign, high_sign, high) =
            match (relation.sides.as_slice(), relation.signs.as_slice()) {
                ([low, x, high], [first, second]) if is_variable(x) => {
                    (low.to_vec(), *first, *second, high.to_vec())
                }
                ([low, x], [sign]) if is_variable(x) && !is_variable(low) => {
                    (low.to_vec(), *sign, '<', infinity(&[]))
                }
                ([x, high], [sign]) if is_variable(x) && !is_variable(high) => {
                    (infinity(&['-']), '<', *sign, high.to_vec())
                }
                _ => return None,
            };
        let symbol = |symbol| Spaced { token: Token::Symbol(symbol), blank: false };
        let mut out = vec![symbol(if low_sign == '<' { '(' } else { '[' })];
        out.extend(low);
        out.push(symbol(','));
        out.extend(high);
        out.push(symbol(if high_sign == '<' { ')' } else { ']' }));
        Some(out)
    }
}

/// What an answer may be called: a variable, `f(x)`, `\angle ABC`, words. No product or sum.
pub(super) fn is_name(tokens: &[Spaced]) -> bool {
    let Some(first) = tokens.first() else { return false };
    let begins = match &first.token {
        Token::Letter(_) | Token::Command(_) => true,
        Token::Word { letters, upright } => {
            *upright
                || letters.chars().count() != 3
                || first.blank
                || tokens.len() > 1
                || is_capital(letters)
        }
        Token::Symbol(symbol) => *symbol == '|',
        _ => false,
    };
    let (mut depth, mut factors) = (0i32, 0);
    for (at, spaced) in tokens.iter().enumerate() {
        match &spaced.token {
            Token::Open | Token::Symbol('(') => depth += 1,
            Token::Close | Token::Symbol(')') => depth -= 1,
            Token::Symbol('_' | '\'' | '|' | ',' | '°' | '#' | '"' | ':' | '*') => {}
            Token::Symbol(symbol) if "+-/^%".contains(*symbol) && depth > 0 => {}
            Token::Number(_) if depth > 0 || (at > 0 && tokens[at - 1].is('_')) => {}
            Token::Letter(_)
                if depth == 0
                    && !(at > 0
                        && (tokens[at - 1].is('_')
                            || matches!(
                                tokens[at - 1].token,
                                Token::Command(_) | Token::Word { .. }
                            ))) =>
            {
                factors += 1
            }
            Token::Letter(_) => {}
            Token::Word { letters, .. } if says_no(letters) => return false,
            Token::Word { .. } => {}
            Token::Command(name)
                if matches!(name.as_str(), "frac" | "sqrt" | "binom" | "\\" | "over") =>
            {
                return false;
            }
            Token::Command(_) => {}
            _ => return false,
        }
    }
    begins && depth == 0 && factors <= 2 && tokens.len() <= 24
}

fn is_capital(letters: &str) -> bool {
    letters.chars().all(char::is_uppercase)
}

fn says_no(word: &str) -> bool {
    ["not", "never", "cannot", "isn", "no"].contains(&word.to_lowercase().as_str())
}
