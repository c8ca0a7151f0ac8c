//! The pieces of running text: numbers, formulas between math delimiters, operators, words.

/// Most bytes between math delimiters, or in a group of a command.
const LONGEST_GROUP: usize = 400;

/// What a piece is in a formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
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

/// A piece and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) text: &'a str,
}

/// The pieces of a text, in order.
pub(super) fn pieces(text: &str) -> Pieces<'_> {
    Pieces { text, at: 0, last: None }
}

/// See [`pieces`].
pub(super) struct Pieces<'a> {
    text: &'a str,
    at: usize,
    /// The piece right before, unless it is a word or a break.
    last: Option<Piece<'a>>,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        loop {
            let rest = self.text.get(self.at..)?;
            let c = rest.chars().next()?;
            let (kind, length) = self.kind(rest, c);
            let start = self.at;
            self.at += length.max(c.len_utf8());
            if let Some(kind) = kind {
                let piece = Piece { kind, start, end: self.at, text: &self.text[start..self.at] };
                self.last = Some(piece).filter(|_| !matches!(kind, Kind::Word | Kind::Break));
                return Some(piece);
            }
        }
    }
}

impl<'a> Pieces<'a> {
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
            '.' if next.is_some_and(|c| c.is_ascii_digit()) => {
                (Some(Kind::Math), 1 + number(&rest[1..]))
            }
            '*' if next == Some('*') => (None, 2),
            // `Rs. 18/-`.
            '/' if is_price_end(rest) => (None, 2),
            // A calculator's note, `<<9*2=18>>`.
            '<' if next == Some('<') => match head(rest, LONGEST_GROUP).find(">>") {
                Some(end) => (None, end + 2),
                None => (Some(Kind::Break), 2),
            },
            '<' if next.is_some_and(|c| c.is_alphabetic() || c == '/') => (Some(Kind::Break), one),
            '–' | '—' if blank_next => (Some(Kind::Break), one),
            ':' if next.is_some_and(|c| c.is_ascii_digit()) && self.after_a_number() => {
                (Some(Kind::Operator), one)
            }
            '!' if self.touches_a_value() && is_factorial(&rest[1..]) => (Some(Kind::Suffix), one),
            '+' | '-' | '*' | '/' | '=' | '^' | '_' | '<' | '>' | ',' | '|' | '×' | '÷' | '·'
            | '−' | '–' | '±' | '≈' | '≤' | '≥' | '∪' | '∈' => {
                (Some(Kind::Operator), one)
            }
            '(' | '[' | '{' => (Some(Kind::Open), one),
            ')' | ']' | '}' => (Some(Kind::Close), one),
            '%'
            | '°'
            | '€'
            | '£'
            | '¥'
            | '₹'
            | '²'
            | '³'
            | '¹'
            | '⁰'
            | '⁴'..='⁹'
            | '⁻'
            | '⁺'
            | '\'' => (Some(Kind::Suffix), one),
            '½' | '⅓' | '⅔' | '¼' | '¾' | '√' | 'π' | '∞' => (Some(Kind::Math), one),
            c if c.is_alphabetic() => self.letters(rest),
            _ => (Some(Kind::Break), one),
        }
    }

    fn after_a_number(&self) -> bool {
        self.text[..self.at].ends_with(|c: char| c.is_ascii_digit())
    }

    fn touches_a_value(&self) -> bool {
        self.last.is_some_and(|piece| {
            piece.end == self.at && matches!(piece.kind, Kind::Math | Kind::Close)
        })
    }

    fn letters(&self, rest: &str) -> (Option<Kind>, usize) {
        let letter = |c: char| c.is_alphabetic() && c != 'π';
        let end = rest.find(|c: char| !letter(c) && c != '\'' && c != '’').unwrap_or(rest.len());
        let word = &rest[..end];
        let last = self.last;
        let touches = last.is_some_and(|piece| {
            piece.end == self.at && matches!(piece.kind, Kind::Math | Kind::Delimited | Kind::Close)
        });
        let next = rest[end..].chars().next();
        let kind = match word {
            "and" | "or" => Kind::Joiner,
            "sqrt" | "pi" | "sin" | "cos" | "tan" | "log" | "ln" => Kind::Math,
            // `5cm`, `3xy`, `(x+1)y`: part of what it touches.
            _ if touches => Kind::Math,
            _ if word.chars().count() == 1 => {
                let after_operator =
                    last.is_some_and(|piece| piece.kind == Kind::Operator && piece.text != ",");
                let operator = |c: char| "=+*/^<>≤≥×−".contains(c);
                let before_operator =
                    next.is_some_and(|c| {
                        operator(c) || c == '_' || c == '-' || c == '(' || c.is_ascii_digit()
                    }) || rest[end..].trim_start_matches(' ').starts_with(operator);
                if after_operator || before_operator { Kind::Math } else { Kind::Word }
            }
            _ => Kind::Word,
        };
        (Some(kind), end)
    }
}

/// True for the `/-` after a price.
fn is_price_end(rest: &str) -> bool {
    rest.strip_prefix("/-").is_some_and(|after| !after.starts_with(char::is_alphanumeric))
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
        "times" | "cdot" | "div" | "pm" | "approx" | "le" | "leq" | "ge" | "geq" | "lt" | "gt"
        | "cup" | "in" | "left" | "right" => Kind::Operator,
        "circ" | "degree" => Kind::Suffix,
        "quad" | "qquad" => return (None, 1 + length),
        "text" | "mathrm" | "textbf" | "mbox" => Kind::Word,
        "frac" | "dfrac" | "tfrac" | "sqrt" | "binom" | "pi" | "infty" | "sin" | "cos" | "tan"
        | "log" | "ln" | "overline" => Kind::Math,
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
