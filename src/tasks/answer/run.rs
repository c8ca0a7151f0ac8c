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
                    self.before = self.before.then(&pieces, found.is_some(), ended);
                    if found.is_some() {
                        return found;
                    }
                    ended?;
                }
            }
        }
    }
}

/// Words in a sentence that deny what follows them.
const DENIES: [&str; 9] =
    ["not", "never", "cannot", "nor", "isn't", "can't", "aren't", "doesn't", "isn’t"];
/// Words after which a sentence begins anew.
const TURNS: [&str; 9] =
    ["but", "so", "then", "therefore", "thus", "hence", "have", "gives", "because"];
/// Words right before a number that is not the value in question.
const BOUNDS: [&str; 21] = [
    "than", "least", "most", "between", "instead", "except", "under", "below", "above", "exceed",
    "step", "question", "problem", "case", "part", "equation", "figure", "chapter", "section",
    "example", "exercise",
];
/// Words between two numbers that make them parts of one.
const BETWEEN: [&str; 3] = ["to", "of", "times"];
/// Words that calculate with a number that stands before them in the sentence.
const CALCULATES: [&str; 5] = ["by", "minus", "plus", "over", "from"];
/// Words after a number that compare it or say that it is not the answer.
const TAKES_BACK: [&str; 6] = ["than", "not", "wrong", "incorrect", "isn't", "isn’t"];
/// How far such a word is looked for, in bytes.
const NEAR: usize = 60;

/// What stands before a run.
#[derive(Clone, Copy, Debug, Default)]
struct Before<'a> {
    /// The word or break right before.
    piece: Option<Piece<'a>>,
    /// A run stands right before that word.
    after_a_run: bool,
    /// A run stands in the same sentence.
    in_sentence: bool,
    /// A word denies what follows.
    denied: bool,
}

impl<'a> Before<'a> {
    /// After the pieces that end with a word or a break.
    fn then(self, pieces: &[Piece<'_>], is_run: bool, ended: Option<Piece<'a>>) -> Before<'a> {
        let goes_on = ended.is_some_and(|ended| ended.kind == Kind::Word);
        let anew = pieces.iter().any(|piece| piece.text == ",") || is(ended, &TURNS);
        Before {
            piece: ended,
            after_a_run: is_run,
            in_sentence: goes_on && (is_run || self.in_sentence),
            denied: goes_on && (is(ended, &DENIES) || (self.denied && !anew)),
        }
    }

    /// True where a run with these pieces before its own is not the answer.
    fn takes(self, ahead: &[Piece<'_>]) -> bool {
        let after_a_word = self.piece.is_some_and(|piece| piece.kind == Kind::Word);
        // `apples - 3`, `price * 3`, `covid-19`: an operand that is no number stands before. `< 3` is no number either.
        let dangling = ahead.iter().any(|piece| {
            let sign = piece.kind == Kind::Operator;
            sign && (matches!(piece.text, "<" | ">" | "≤" | "≥")
                || (after_a_word && !matches!(piece.text, "=" | "," | "≈" | "\\approx")))
        });
        let said = self.denied
            || is(self.piece, &BOUNDS)
            || (self.after_a_run && is(self.piece, &BETWEEN))
            || (self.in_sentence && is(self.piece, &CALCULATES));
        dangling || (said && ahead.is_empty())
    }
}

/// True where a piece is one of these words.
fn is(piece: Option<Piece<'_>>, words: &[&str]) -> bool {
    piece.is_some_and(|piece| {
        piece.kind == Kind::Word && words.iter().any(|word| piece.text.eq_ignore_ascii_case(word))
    })
}

/// The run that these pieces hold.
fn run<'a>(
    text: &'a str,
    pieces: &[Piece<'a>],
    before: Before<'a>,
    after: Option<Piece<'a>>,
) -> Option<Run<'a>> {
    let (start, end) = extent(pieces, before.piece)?;
    let inside = &pieces[start..end];
    let (first, last) = (inside.first()?, inside.last()?);
    let after_a_word = before.piece.is_some_and(|piece| piece.kind == Kind::Word);
    let joined = pieces[..start].iter().any(|piece| piece.kind == Kind::Joiner) && after_a_word;
    let calculated = inside.iter().any(|piece| piece.text == "=");
    // `8+` goes on; `8 - so many` does not.
    let cut_off = pieces[end..].first().is_some_and(|piece| {
        let dash = matches!(piece.text, "-" | "−" | "–") && piece.start > last.end;
        piece.kind == Kind::Operator && !dash && !matches!(piece.text, "," | "=" | "≈" | "|")
    });
    let mut depends = before.takes(&pieces[..start])
        || (joined && !calculated)
        || cut_off
        || is_taken_back(&text[last.end..]);
    let mut slice = match inside {
        [one] if one.kind == Kind::Delimited => undelimited(one.text),
        _ => balanced(&text[first.start..last.end]),
    };
    if end == pieces.len()
        && let Some(after) = after.filter(|after| after.kind == Kind::Word)
    {
        if equality::is_multiplier(after.text) || equality::is_unit(after.text) {
            slice = &text[first.start..after.end];
        } else if equality::changes_a_number(after.text) {
            depends = true;
        }
    }
    Some(Run { text: slice, depends })
}

/// Which of the pieces are the run: from the first value to the last, with the sign, the brackets and the percent sign that touch
/// them.
fn extent(pieces: &[Piece<'_>], before: Option<Piece<'_>>) -> Option<(usize, usize)> {
    let is_value = |piece: &Piece<'_>| matches!(piece.kind, Kind::Math | Kind::Delimited);
    let mut start = pieces.iter().position(is_value)?;
    let mut end = pieces.iter().rposition(is_value)? + 1;
    while let Some(piece) = start.checked_sub(1).map(|at| pieces[at]) {
        let touches = piece.end == pieces[start].start;
        let apart = start < 2
            || pieces[start - 2].end < piece.start
            || pieces[start - 2].kind == Kind::Open;
        let word_before = start == 1
            && before.is_some_and(|before| before.kind == Kind::Word && before.end == piece.start);
        let is_sign = matches!(piece.text, "-" | "−" | "+" | "±");
        let belongs = piece.kind == Kind::Open || (is_sign && touches && apart && !word_before);
        if !belongs {
            break;
        }
        start -= 1;
    }
    while end < pieces.len() && matches!(pieces[end].kind, Kind::Close | Kind::Suffix) {
        end += 1;
    }
    let has_value = pieces[start..end].iter().any(|piece| {
        piece.kind == Kind::Delimited
            || piece.text.contains(|c: char| c.is_ascii_digit() || "½⅓⅔¼¾π√\\".contains(c))
    });
    has_value.then_some((start, end))
}

/// True where the rest of the clause compares the number or denies it: `8 more than Tom has`, `8 is not the answer`.
fn is_taken_back(rest: &str) -> bool {
    let near = (0..=NEAR.min(rest.len())).rev().find(|at| rest.is_char_boundary(*at));
    let rest = &rest[..near.unwrap_or(0)];
    let clause = rest.split(['\n', ',', '.', ';', '(']).next().unwrap_or_default();
    let mut words = clause.split(|c: char| c.is_whitespace() || "*_".contains(c));
    words.any(|word| TAKES_BACK.iter().any(|known| word.eq_ignore_ascii_case(known)))
        || clause.starts_with(" times ")
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
            ("in all 7 1/4 hours", Some("7 1/4 hours")),
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
            "it cannot be 8",
            "8 is not the answer",
            "$8 more than Tom",
            "in step 8 we add",
            "8+",
            "<8",
            "9 multiplied by 6",
        ] {
            assert!(last(text).is_some_and(|run| run.depends), "{text}");
        }
    }
}
