//! Numbers and formulas in running text.
//!
//! A run is a stretch of mathematics between words: `7 1/4`, `4.7 \times 10^{3}`, `3*77 = 231`, `$5\sqrt{3}$`, `3 or 5`. It is read
//! whole, so that no number is taken out of a formula that it is only a part of.

use crate::tasks::equality;

/// Most bytes between math delimiters, or in a group of a command.
const LONGEST_GROUP: usize = 400;

/// A stretch of mathematics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    pub(super) text: &'a str,
    /// What stands before and after it makes it no answer of its own: `not 5`, `apples - 3`, `5 dozen`.
    pub(super) depends: bool,
}

/// The runs of a text, in order.
pub(super) fn runs(text: &str) -> Runs<'_> {
    Runs { text, at: 0, pieces: Vec::new(), before: Before::default() }
}

/// The last run of a text.
pub(super) fn last(text: &str) -> Option<Run<'_>> {
    runs(text).last()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A number, a letter among numbers, a command with its arguments.
    Math,
    /// What stands between math delimiters.
    Delimited,
    /// Between two parts of a formula.
    Operator,
    /// After a number: `%`, `°`.
    Suffix,
    Open,
    Close,
    /// `and`, `or`.
    Joiner,
    Word,
    /// The end of a line or of a sentence, or what belongs to no formula.
    Break,
}

#[derive(Clone, Copy, Debug)]
struct Piece<'a> {
    kind: Kind,
    start: usize,
    end: usize,
    text: &'a str,
}

/// See [`runs`].
pub(super) struct Runs<'a> {
    text: &'a str,
    at: usize,
    pieces: Vec<Piece<'a>>,
    before: Before<'a>,
}

impl<'a> Iterator for Runs<'a> {
    type Item = Run<'a>;

    fn next(&mut self) -> Option<Run<'a>> {
        loop {
            let piece = self.piece();
            match piece {
                Some(piece) if !matches!(piece.kind, Kind::Word | Kind::Break) => self.pieces.push(piece),
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
    "not", "than", "least", "most", "between", "nor", "never", "instead", "except", "isn't", "under", "below", "above", "exceed",
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
fn run<'a>(text: &'a str, pieces: &[Piece<'a>], context: Before<'a>, after: Option<Piece<'a>>) -> Option<Run<'a>> {
    let before = context.piece;
    let is_value = |piece: &Piece<'_>| matches!(piece.kind, Kind::Math | Kind::Delimited);
    let first = pieces.iter().position(is_value)?;
    let last = pieces.iter().rposition(is_value)?;
    let mut start = first;
    // A sign that touches the number belongs to it, and so does a bracket.
    while let Some(piece) = start.checked_sub(1).map(|at| pieces[at]) {
        let touches = piece.end == pieces[start].start;
        let apart = start < 2 || pieces[start - 2].end < piece.start || pieces[start - 2].kind == Kind::Open;
        let word_before = start == 1 && before.is_some_and(|before| before.kind == Kind::Word && before.end == piece.start);
        match piece.kind {
            Kind::Open => start -= 1,
            Kind::Operator if touches && apart && !word_before && matches!(piece.text, "-" | "−" | "+" | "±") => start -= 1,
            _ => break,
        }
    }
    let mut end = last + 1;
    while end < pieces.len() && matches!(pieces[end].kind, Kind::Close | Kind::Suffix) {
        end += 1;
    }
    let inside = &pieces[start..end];
    let has_value = inside.iter().any(|piece| {
        piece.kind == Kind::Delimited || piece.text.contains(|c: char| c.is_ascii_digit() || "½⅓⅔¼¾π√\\".contains(c))
    });
    if !has_value {
        return None;
    }
    let after_a_word = before.is_some_and(|before| before.kind == Kind::Word);
    // `apples - 3`, `price * 3`, `covid-19`: an operand that is no number stands before.
    let dangling = after_a_word
        && pieces[..start].iter().any(|piece| piece.kind == Kind::Operator && !matches!(piece.text, "=" | "," | "≈" | "\\approx"));
    let says = |words: &[&str]| {
        before.is_some_and(|piece| piece.kind == Kind::Word && words.iter().any(|word| piece.text.eq_ignore_ascii_case(word)))
    };
    let said = says(&DENIES) || (context.after_a_run && says(&BETWEEN)) || (context.in_sentence && says(&CALCULATES));
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

impl<'a> Runs<'a> {
    /// The next piece.
    fn piece(&mut self) -> Option<Piece<'a>> {
        loop {
            let rest = self.text.get(self.at..)?;
            let c = rest.chars().next()?;
            let (kind, length) = self.kind(rest, c);
            let start = self.at;
            self.at += length.max(c.len_utf8());
            if let Some(kind) = kind {
                return Some(Piece { kind, start, end: self.at, text: &self.text[start..self.at] });
            }
        }
    }

    /// What begins at `rest`, and how long it is; no kind: nothing, as a blank.
    fn kind(&self, rest: &str, c: char) -> (Option<Kind>, usize) {
        let one = c.len_utf8();
        let next = rest[one..].chars().next();
        let blank_next = next.is_none_or(char::is_whitespace);
        match c {
            '\n' => (Some(Kind::Break), one),
            c if c.is_whitespace() => (None, one),
            '$' => match dollars(rest) {
                Some(length) => (Some(Kind::Delimited), length),
                None => (None, one),
            },
            '\\' => command(rest),
            '0'..='9' => (Some(Kind::Math), number(rest)),
            '.' if next.is_some_and(|c| c.is_ascii_digit()) => (Some(Kind::Math), 1 + number(&rest[1..])),
            '*' if next == Some('*') => (None, 2),
            // A calculator's note, `<<9*2=18>>`.
            '<' if next == Some('<') => match head(rest, LONGEST_GROUP).find(">>") {
                Some(end) => (None, end + 2),
                None => (Some(Kind::Break), 2),
            },
            '<' if next.is_some_and(|c| c.is_alphabetic() || c == '/') => (Some(Kind::Break), one),
            '–' | '—' if blank_next => (Some(Kind::Break), one),
            ':' if next.is_some_and(|c| c.is_ascii_digit()) && self.after_a_number() => (Some(Kind::Operator), one),
            '!' if self.touches_a_value() && is_factorial(&rest[1..]) => (Some(Kind::Suffix), one),
            '+' | '-' | '*' | '/' | '=' | '^' | '_' | '<' | '>' | ',' | '|' | '×' | '÷' | '·' | '−' | '–' | '±' | '≈' | '≤' | '≥'
            | '∪' | '∈' => (Some(Kind::Operator), one),
            '(' | '[' | '{' => (Some(Kind::Open), one),
            ')' | ']' | '}' => (Some(Kind::Close), one),
            '%' | '°' | '€' | '£' | '¥' | '₹' | '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '⁻' | '⁺' | '\'' => (Some(Kind::Suffix), one),
            '½' | '⅓' | '⅔' | '¼' | '¾' | '√' | 'π' | '∞' => (Some(Kind::Math), one),
            c if c.is_alphabetic() => self.letters(rest),
            _ => (Some(Kind::Break), one),
        }
    }

    fn after_a_number(&self) -> bool {
        self.text[..self.at].ends_with(|c: char| c.is_ascii_digit())
    }

    fn touches_a_value(&self) -> bool {
        self.pieces.last().is_some_and(|piece| piece.end == self.at && matches!(piece.kind, Kind::Math | Kind::Close))
    }

    fn letters(&self, rest: &str) -> (Option<Kind>, usize) {
        let letter = |c: char| c.is_alphabetic() && c != 'π';
        let end = rest.find(|c: char| !letter(c) && c != '\'' && c != '’').unwrap_or(rest.len());
        let word = &rest[..end];
        let last = self.pieces.last();
        let touches = last.is_some_and(|piece| piece.end == self.at && matches!(piece.kind, Kind::Math | Kind::Delimited | Kind::Close));
        let next = rest[end..].chars().next();
        let kind = match word {
            "and" | "or" => Kind::Joiner,
            "sqrt" | "pi" | "sin" | "cos" | "tan" | "log" | "ln" => Kind::Math,
            // `5cm`, `3xy`, `(x+1)y`: part of what it touches.
            _ if touches => Kind::Math,
            _ if word.chars().count() == 1 => {
                let after_operator = last.is_some_and(|piece| piece.kind == Kind::Operator && piece.text != ",");
                let operator = |c: char| "=+*/^<>≤≥×−".contains(c);
                let before_operator = next.is_some_and(|c| operator(c) || c == '_' || c == '-' || c.is_ascii_digit())
                    || rest[end..].trim_start_matches(' ').starts_with(operator);
                if after_operator || before_operator { Kind::Math } else { Kind::Word }
            }
            _ => Kind::Word,
        };
        (Some(kind), end)
    }
}

/// True where what follows a `!` makes it a factorial and no exclamation.
fn is_factorial(after: &str) -> bool {
    after.starts_with(['/', '^', ')', '$', '}', '*'])
        || after.trim_start_matches(' ').starts_with(['=', '+', '-', '*', '/', '×', '−', '\\'])
}

/// The length of a number: thousands commas, decimals, a power of ten.
fn number(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        bytes.get(from..).unwrap_or_default().iter().take_while(|b| b.is_ascii_digit()).count()
    };
    let mut at = digits(0);
    if (1..=3).contains(&at) {
        while bytes.get(at) == Some(&b',') && digits(at + 1) == 3 {
            at += 4;
        }
    }
    if bytes.get(at) == Some(&b'.') && digits(at + 1) > 0 {
        at += 1 + digits(at + 1);
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'-' | b'+')));
        if digits(at + 1 + sign) > 0 {
            at += 1 + sign + digits(at + 1 + sign);
        }
    }
    at
}

/// The first bytes of a text, at most so many.
fn head(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

/// The length of mathematics between dollar signs: no blank stands inside next to them, and no digit after the second.
fn dollars(text: &str) -> Option<usize> {
    if let Some(inside) = text.strip_prefix("$$") {
        return head(inside, LONGEST_GROUP).find("$$").map(|at| at + 4);
    }
    let inside = head(&text[1..], LONGEST_GROUP);
    let close = inside.find(['$', '\n']).filter(|at| inside[*at..].starts_with('$'))?;
    let content = &inside[..close];
    let after = text[close + 2..].chars().next();
    let tight = !content.is_empty() && content.trim() == content && !content.ends_with('\\');
    (tight && !after.is_some_and(|c| c.is_ascii_digit())).then_some(close + 2)
}

/// A command with its arguments.
fn command(text: &str) -> (Option<Kind>, usize) {
    for (open, close) in [("\\(", "\\)"), ("\\[", "\\]")] {
        if let Some(inside) = text.strip_prefix(open) {
            return match head(inside, LONGEST_GROUP).find(close) {
                Some(at) => (Some(Kind::Delimited), at + 4),
                None => (None, 2),
            };
        }
    }
    let length = text[1..].bytes().take_while(u8::is_ascii_alphabetic).count();
    if length == 0 {
        let kind = match text[1..].chars().next() {
            Some('%') => Some(Kind::Suffix),
            Some('{') => Some(Kind::Open),
            Some('}') => Some(Kind::Close),
            Some(',' | '!' | ';' | ':' | ' ' | '$') | None => None,
            Some(_) => Some(Kind::Break),
        };
        return (kind, 1 + text[1..].chars().next().map_or(0, char::len_utf8));
    }
    let name = &text[1..=length];
    let kind = match name {
        "times" | "cdot" | "div" | "pm" | "approx" | "le" | "leq" | "ge" | "geq" | "lt" | "gt" | "cup" | "in" | "left" | "right" => {
            Kind::Operator
        }
        "circ" | "degree" => Kind::Suffix,
        "quad" | "qquad" => return (None, 1 + length),
        "text" | "mathrm" | "textbf" | "mbox" => Kind::Word,
        "frac" | "dfrac" | "tfrac" | "sqrt" | "binom" | "pi" | "infty" | "sin" | "cos" | "tan" | "log" | "ln" | "overline" => Kind::Math,
        _ => Kind::Break,
    };
    let mut end = 1 + length;
    if matches!(kind, Kind::Math | Kind::Word) {
        while let Some(group) = group(&text[end..]) {
            end += group;
        }
    }
    (Some(kind), end)
}

/// The length of a group in braces or brackets.
fn group(text: &str) -> Option<usize> {
    if !text.starts_with(['{', '[']) {
        return None;
    }
    let mut depth = 0;
    for (at, c) in head(text, LONGEST_GROUP).char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            '\n' => return None,
            _ => {}
        }
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
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
        for text in ["not 5", "at least 5", "12 apples - 5", "5 dozen", "3 cats and 5 dogs", "covid-19", "2 thirds", "1 to 99", "9 multiplied by 6"] {
            assert!(last(text).is_some_and(|run| run.depends), "{text}");
        }
    }
}
