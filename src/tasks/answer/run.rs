//! Numbers and formulas in running text.
//!
//! A run is a stretch of mathematics between words: `7 1/4`, `4.7 \times 10^{3}`, `3*77 = 231`, `$5\sqrt{3}$`, `3 or 5`. It is read
//! whole, so that no number is taken out of a formula that it is only a part of.

use super::piece::{Kind, Piece, Pieces, pieces};
use crate::tasks::equality;

/// A stretch of mathematics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    pub(super) text: &'a str,
    /// What stands before and after it makes it no answer of its own: `not 5`, `apples - 3`, `5 dozen`.
    pub(super) depends: bool,
}

/// The runs of a text, in order.
pub(super) fn runs(text: &str) -> Runs<'_> {
    Runs { text, ahead: pieces(text), pieces: Vec::new(), before: Before::default() }
}

/// The last run of a text.
pub(super) fn last(text: &str) -> Option<Run<'_>> {
    runs(text).last()
}

/// See [`runs`].
pub(super) struct Runs<'a> {
    text: &'a str,
    ahead: Pieces<'a>,
    pieces: Vec<Piece<'a>>,
    before: Before<'a>,
}

impl<'a> Iterator for Runs<'a> {
    type Item = Run<'a>;

    fn next(&mut self) -> Option<Run<'a>> {
        loop {
            match self.ahead.next() {
                Some(piece) if !matches!(piece.kind, Kind::Word | Kind::Break) => {
                    self.pieces.push(piece)
                }
                ended => {
                    let pieces = std::mem::take(&mut self.pieces);
                    let found = run(self.text, &pieces, self.before, ended);
                    let goes_on = ended.is_some_and(|ended| ended.kind == Kind::Word);
                    self.before = Before {
                        piece: ended,
                        after_a_run: found.is_some(),
                        in_sentence: goes_on && (found.is_some() || self.before.in_sentence),
                    };
                    if found.is_some() {
                        return found;
                    }
                    ended?;
                }
            }
        }
    }
}

/// Words before a run that say it is not the answer.
const DENIES: [&str; 14] = [
    "not", "than", "least", "most", "between", "nor", "never", "instead", "except", "isn't",
    "under", "below", "above", "exceed",
];
/// Words between two numbers that make them parts of one.
const BETWEEN: [&str; 3] = ["to", "of", "times"];
/// Words that calculate with a number that stands before them in the sentence.
const CALCULATES: [&str; 5] = ["by", "minus", "plus", "over", "from"];

/// What stands before a run.
#[derive(Clone, Copy, Debug, Default)]
struct Before<'a> {
    /// The word or break right before.
    piece: Option<Piece<'a>>,
    /// A run stands right before that word.
    after_a_run: bool,
    /// A run stands in the same sentence.
    in_sentence: bool,
}

/// The run that these pieces hold.
fn run<'a>(
    text: &'a str,
    pieces: &[Piece<'a>],
    context: Before<'a>,
    after: Option<Piece<'a>>,
) -> Option<Run<'a>> {
    let before = context.piece;
    let is_value = |piece: &Piece<'_>| matches!(piece.kind, Kind::Math | Kind::Delimited);
    let first = pieces.iter().position(is_value)?;
    let last = pieces.iter().rposition(is_value)?;
    let mut start = first;
    // A sign that touches the number belongs to it, and so does a bracket.
    while let Some(piece) = start.checked_sub(1).map(|at| pieces[at]) {
        let touches = piece.end == pieces[start].start;
        let apart = start < 2
            || pieces[start - 2].end < piece.start
            || pieces[start - 2].kind == Kind::Open;
        let word_before = start == 1
            && before.is_some_and(|before| before.kind == Kind::Word && before.end == piece.start);
        match piece.kind {
            Kind::Open => start -= 1,
            Kind::Operator
                if touches
                    && apart
                    && !word_before
                    && matches!(piece.text, "-" | "−" | "+" | "±") =>
            {
                start -= 1
            }
            _ => break,
        }
    }
    let mut end = last + 1;
    while end < pieces.len() && matches!(pieces[end].kind, Kind::Close | Kind::Suffix) {
        end += 1;
    }
    let inside = &pieces[start..end];
    let has_value = inside.iter().any(|piece| {
        piece.kind == Kind::Delimited
            || piece.text.contains(|c: char| c.is_ascii_digit() || "½⅓⅔¼¾π√\\".contains(c))
    });
    if !has_value {
        return None;
    }
    let after_a_word = before.is_some_and(|before| before.kind == Kind::Word);
    // `apples - 3`, `price * 3`, `covid-19`: an operand that is no number stands before.
    let dangling = after_a_word
        && pieces[..start].iter().any(|piece| {
            piece.kind == Kind::Operator && !matches!(piece.text, "=" | "," | "≈" | "\\approx")
        });
    let says = |words: &[&str]| {
        before.is_some_and(|piece| {
            piece.kind == Kind::Word
                && words.iter().any(|word| piece.text.eq_ignore_ascii_case(word))
        })
    };
    let said = says(&DENIES)
        || (context.after_a_run && says(&BETWEEN))
        || (context.in_sentence && says(&CALCULATES));
    let joined = pieces[..start].iter().any(|piece| piece.kind == Kind::Joiner) && after_a_word;
    let calculated = inside.iter().any(|piece| piece.text == "=");
    let whole_end = inside.last().map_or(0, |piece| piece.end);
    let mut depends = dangling || (said && start == 0) || (joined && !calculated);
    let mut slice = match inside {
        [one] if one.kind == Kind::Delimited => undelimited(one.text),
        _ => balanced(&text[inside.first()?.start..whole_end]),
    };
    if end == pieces.len()
        && let Some(after) = after.filter(|after| after.kind == Kind::Word)
    {
        if equality::is_multiplier(after.text) || equality::is_unit(after.text) {
            slice = &text[inside.first()?.start..after.end];
        } else if equality::changes_a_number(after.text) {
            depends = true;
        }
    }
    Some(Run { text: slice, depends })
}

/// Without math delimiters.
fn undelimited(text: &str) -> &str {
    for (open, close) in [("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")] {
        if let Some(inside) = text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)) {
            return inside;
        }
    }
    text
}

/// Without a bracket at an end that has no partner.
fn balanced(text: &str) -> &str {
    let mut depth = 0i32;
    let mut lowest = 0;
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        lowest = lowest.min(depth);
    }
    // Half-open intervals are written with two kinds of brackets, so kinds are not told apart.
    if depth > 0 {
        return text.trim_start_matches(['(', '[', '{']);
    }
    if lowest < 0 { text.trim_end_matches([')', ']', '}']) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_run() {
        for (text, expected) in [
            ("first 10, then 20", Some("20")),
            ("7-2", Some("7-2")),
            ("it is -2", Some("-2")),
            ("the change is −8.", Some("−8")),
            ("costs $1,234.50.", Some("1,234.50")),
            ("1,2,3", Some("1,2,3")),
            (r"half is \frac{1}{2}", Some(r"\frac{1}{2}")),
            (r"half is \frac{1}{x}", Some(r"\frac{1}{x}")),
            ("about 3/4", Some("3/4")),
            (".5", Some(".5")),
            ("so each gets 3 1/6", Some("3 1/6")),
            ("in all 7 1/4 hours", Some("7 1/4")),
            ("that makes 2.5e5", Some("2.5e5")),
            (r"so 4.7 \times 10^{3}", Some(r"4.7 \times 10^{3}")),
            ("in all 2 500 000", Some("2 500 000")),
            ("Together they have **18**.", Some("18")),
            ("3*77=231 eggs", Some("3*77=231")),
            ("so $x = 5$.", Some("x = 5")),
            ("either 3 or 5", Some("3 or 5")),
            ("5\\% of it", Some("5\\%")),
            ("it is 3 million.", Some("3 million")),
            ("it rose by 50% last year", Some("50%")),
            ("a total of 18 cm in all", Some("18 cm")),
            ("it comes to $18$ hours", Some("$18$ hours")),
            ("16 - 3 = 13 eggs. 9 * $2 = $18", Some("9 * $2 = $18")),
            ("(42)", Some("(42)")),
            ("it is 42 (see above)", Some("42")),
            ("9 * 2 = $<<9*2=18>>18", Some("9 * 2 = $<<9*2=18>>18")),
            ("4.5 × 10⁻⁴ m", Some("4.5 × 10⁻⁴")),
            ("so (it is 42)", Some("42")),
            ("- 5", Some("5")),
            ("−5 ½", Some("−5 ½")),
            ("none", None),
            ("a - b", None),
            ("", None),
        ] {
            assert_eq!(last(text).map(|run| run.text), expected, "{text}");
        }
        for text in [
            "not 5",
            "at least 5",
            "12 apples - 5",
            "5 dozen",
            "3 cats and 5 dogs",
            "covid-19",
            "2 thirds",
            "1 to 99",
            "9 multiplied by 6",
        ] {
            assert!(last(text).is_some_and(|run| run.depends), "{text}");
        }
    }
}
