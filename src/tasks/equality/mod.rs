//! When two short answers are the same.
//!
//! Both are read as LaTeX and typography (`lexer`) and compared as what they are: an option of a choice (`choice`), several
//! values (`collection`), an equation or an inequality (`relation`), a value with its unit (`quantity`), or text
//! (`plain`). Values are expressions in an exact normal form (`sum`): `0.5`, `1/2`, `\frac{1}{2}` and `50e-2` are one
//! answer, and so are `5\sqrt{3}` and `\sqrt{75}`, `(x+1)^2` and `x^2+2x+1`; `0.333` and `1/3` are two. What cannot be decided
//! within bounds is different: an answer may be missed, none is wrongly accepted.
//!
//! Answers of more than [`LONGEST`] bytes are compared as they are written; below it, work, depth and the size of numbers have bounds.

mod choice;
mod collection;
mod command;
mod expression;
mod factor;
mod function;
mod grouping;
mod lexer;
mod percent;
mod plain;
mod quantity;
mod relation;
mod sum;
mod token;
mod unit;
mod work;

use choice::choice;
use collection::collection;
use lexer::tokens;
pub use percent::Percent;
use plain::plain;
use quantity::quantity;
use relation::{Relation, relation};
use token::{Spaced, Token};
pub(super) use unit::{changes_a_number, is_multiplier, is_unit};
use work::Work;

/// Most bytes of an answer that is more than text.
pub const LONGEST: usize = 2000;
/// How often an answer is taken apart.
const DEEPEST: usize = 8;

/// True when both are the same answer.
///
/// ```
/// use gradstone::tasks::equality::{Percent, same};
///
/// assert!(same(r"\frac{\sqrt{2}}{2}", r"1/\sqrt2", Percent::Number));
/// assert!(same("50%", "0.5", Percent::Hundredths) && !same("50%", "0.5", Percent::Number));
/// ```
pub fn same(a: &str, b: &str, percent: Percent) -> bool {
    let (a, b) = (a.trim(), b.trim());
    if a.len() > LONGEST || b.len() > LONGEST {
        return !a.is_empty() && a == b;
    }
    Comparison { percent, work: Work::default() }.alike(&tokens(a), &tokens(b), DEEPEST)
}

/// True when the text is one value, with or without a unit.
pub(super) fn is_value(text: &str) -> bool {
    text.len() <= LONGEST && quantity(trimmed(&tokens(text)), &mut Work::default()).is_some()
}

/// One comparison, with the work that it may still do.
struct Comparison {
    percent: Percent,
    work: Work,
}

impl Comparison {
    fn alike(&mut self, a: &[Spaced], b: &[Spaced], depth: usize) -> bool {
        let (a, b) = (trimmed(a), trimmed(b));
        if a.is_empty()
            || b.is_empty()
            || self.work.spend(20 + (a.len() + b.len()) as u64 / 4).is_none()
        {
            return false;
        }
        if plain(a) == plain(b) {
            return true;
        }
        if depth == 0 {
            return false;
        }
        self.as_choices(a, b, depth - 1)
            .or_else(|| self.as_collections(a, b, depth - 1))
            .or_else(|| self.as_relations(a, b, depth - 1))
            .unwrap_or_else(|| self.as_quantities(a, b))
    }

    fn as_choices(&mut self, a: &[Spaced], b: &[Spaced], depth: usize) -> Option<bool> {
        match (choice(a), choice(b)) {
            (Some(a), Some(b)) => {
                let open = a.content.is_empty() || b.content.is_empty();
                Some(a.letter == b.letter && (open || self.alike(a.content, b.content, depth)))
            }
            (Some(one), None) if !one.content.is_empty() => {
                self.alike(one.content, b, depth).then_some(true)
            }
            (None, Some(one)) if !one.content.is_empty() => {
                self.alike(a, one.content, depth).then_some(true)
            }
            _ => None,
        }
    }

    fn as_collections(&mut self, a: &[Spaced], b: &[Spaced], depth: usize) -> Option<bool> {
        match (collection(a), collection(b)) {
            (Some(a), Some(b)) => Some(a.equals(&b, |a, b| self.alike(a, b, depth))),
            (None, None) => None,
            // An inequality may be an interval, and `x ∈ (2, 9)` is one with its name.
            _ if relation(a).is_some() || relation(b).is_some() => None,
            _ => Some(false),
        }
    }

    fn as_relations(&mut self, a: &[Spaced], b: &[Spaced], depth: usize) -> Option<bool> {
        let (of_a, of_b) = (relation(a), relation(b));
        match (of_a, of_b) {
            (None, None) => None,
            (Some(a), Some(b)) => Some(self.same_relations(&a, &b, depth)),
            (Some(one), None) => Some(self.answers_with(&one, b, depth)),
            (None, Some(one)) => Some(self.answers_with(&one, a, depth)),
        }
    }

    /// True where a relation says that the answer is `other`.
    fn answers_with(&mut self, one: &Relation<'_>, other: &[Spaced], depth: usize) -> bool {
        if let Some(interval) = one.interval() {
            return self.alike(&interval, other, depth);
        }
        let values = one
            .values(|side| quantity(side, &mut self.work).is_some_and(|side| side.is_constant()));
        values.into_iter().any(|value| self.alike(value, other, depth))
    }

    fn same_relations(&mut self, a: &Relation<'_>, b: &Relation<'_>, depth: usize) -> bool {
        let mut agree = |a: &Relation<'_>, b: &Relation<'_>| {
            a.signs == b.signs
                && a.sides.len() == b.sides.len()
                && a.sides.iter().zip(&b.sides).all(|(a, b)| self.alike(a, b, depth))
        };
        if agree(a, b) || agree(&a.reversed(), b) {
            return true;
        }
        if self.same_equations(a, b) {
            return true;
        }
        let mut constant =
            |side: &[Spaced]| quantity(side, &mut self.work).is_some_and(|side| side.is_constant());
        // A definition is compared with its name, a calculation by its result.
        let calculation =
            |relation: &Relation<'_>| relation.sides.len() != 2 || !relation.is_definition();
        if !calculation(a) && !calculation(b) {
            return false;
        }
        let (of_a, of_b) = (a.values(&mut constant), b.values(&mut constant));
        of_a.iter().any(|a| of_b.iter().any(|b| self.alike(a, b, depth)))
    }

    /// True for equations between several variables of which one is a multiple of the other.
    fn same_equations(&mut self, a: &Relation<'_>, b: &Relation<'_>) -> bool {
        let mut difference = |relation: &Relation<'_>| match (
            relation.sides.as_slice(),
            relation.signs.as_slice(),
        ) {
            ([left, right], ['=']) => {
                let left = expression::value(left, &mut self.work)?;
                let right = expression::value(right, &mut self.work)?;
                left.plus(right.negated(), &mut self.work)
            }
            _ => None,
        };
        match (difference(a), difference(b)) {
            (Some(a), Some(b)) => a.variables() > 1 && sum::proportional(&a, &b, &mut self.work),
            _ => false,
        }
    }

    fn as_quantities(&mut self, a: &[Spaced], b: &[Spaced]) -> bool {
        match (quantity(a, &mut self.work), quantity(b, &mut self.work)) {
            (Some(a), Some(b)) => a.equals(&b, self.percent, &mut self.work),
            _ => false,
        }
    }
}

/// Without the punctuation around an answer, and without a group's braces around the whole.
fn trimmed(mut tokens: &[Spaced]) -> &[Spaced] {
    while let Some((last, before)) = tokens.split_last()
        && matches!(last.token, Token::Symbol('.' | ',' | ';' | ':' | '"' | '?'))
    {
        tokens = before;
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_answers() {
        for (a, b) in [
            ("42", "42.0"),
            ("42", " 42 . "),
            ("042", "42"),
            ("+5", "5"),
            ("-0", "0"),
            ("1,234,567", "1234567"),
            ("1{,}234", "1234"),
            ("$1,234.50", "1234.5"),
            ("\\$18", "18"),
            ("$18$", "18"),
            ("-$5", "-5"),
            ("$-5", "-5"),
            ("−5", "-5"),
            ("50%", "50"),
            ("50\\%", "50"),
            ("0.5", ".50"),
            ("1/2", "0.5"),
            ("-1/2", "-0.5"),
            ("2/4", "1/2"),
            ("\\frac{1}{2}", "1/2"),
            ("\\dfrac{1}{2}", "\\tfrac12"),
            ("-\\frac{1}{2}", "\\frac{-1}{2}"),
            ("\\frac{ 10 }{ 20 }", "0.5"),
            ("\\frac{1.5}{3}", "0.5"),
            ("1 1/2", "1.5"),
            ("1\\frac{1}{2}", "3/2"),
            ("-1 1/2", "-1.5"),
            ("1e3", "1000"),
            ("1.5E-2", "0.015"),
            ("1.5\\times 10^{3}", "1500"),
            ("2 \\cdot 10^3", "2000"),
            ("3 million", "3000000"),
            ("5 cm", "5"),
            ("5cm", "5 \\text{ cm}"),
            ("5\\ \\mathrm{cm}", "5"),
            ("12 apples", "12"),
            ("1 apple", "1 apples"),
            ("10 m^2", "10"),
            ("90^\\circ", "90"),
            ("90°", "90 degrees"),
            ("x = 5", "5"),
            ("x=5", "x = 5.0"),
            ("f(x)=5", "5"),
            ("\\text{yes}", "Yes"),
            ("(B)", "b"),
            ("\\textbf{(C)}", "C"),
            ("x^2 + 1", "x^2+1"),
            ("2\\pi", "2 \\pi"),
            ("\\left( 1, 2 \\right)", "(1,2)"),
            ("(0.5, 3)", "(\\frac{1}{2}, 3.0)"),
            ("[1, 2)", "[1,2)"),
            ("\\{1, 2\\}", "{1,2}"),
            ("((1,2),3)", "((1.0, 2), 3)"),
            ("\\( 7 \\)", "7"),
            (
                "123456789012345678901234567890123456789012345",
                "123456789012345678901234567890123456789012345.0",
            ),
            (
                "-123456789012345678901234567890123456789012345",
                "-0123456789012345678901234567890123456789012345",
            ),
        ] {
            assert!(same(a, b, Percent::Number), "{a} and {b}");
            assert!(same(b, a, Percent::Number), "{b} and {a}");
        }
    }

    #[test]
    fn different_answers() {
        for (a, b) in [
            ("42", "43"),
            ("42", "-42"),
            ("42", ""),
            ("", ""),
            ("0.333", "1/3"),
            ("0.1", "0.10000000000000000000000000000000000001"),
            ("1/0", "1"),
            ("1/0", "0"),
            ("5x", "5"),
            ("5 or 6", "5"),
            ("5 and 6", "5"),
            ("2\\pi", "2"),
            ("5 dozen", "5"),
            ("3 million", "3"),
            ("5 cm", "5 m"),
            ("50%", "0.5"),
            ("1,23", "123"),
            ("1,2", "12"),
            ("1.2.3", "1.2"),
            ("1 2", "12"),
            ("1 2", "1"),
            ("1 0.5", "1.5"),
            ("12 34", "12"),
            ("\\frac{1}{2}x", "1/2"),
            ("(1,2)", "[1,2]"),
            ("(1,2)", "(2,1)"),
            ("(1,2)", "(1,2,3)"),
            ("(1,234)", "1234"),
            ("x=5 or x=6", "5"),
            ("a<5", "5"),
            ("yes", "no"),
            ("nan", "0"),
            ("inf", "1e400"),
            ("1e40", "1e41"),
            ("1e999999999999", "1"),
            (
                "123456789012345678901234567890123456789012345",
                "123456789012345678901234567890123456789012346",
            ),
        ] {
            assert!(!same(a, b, Percent::Number), "{a} and {b}");
            assert!(!same(b, a, Percent::Number), "{b} and {a}");
        }
    }
}
