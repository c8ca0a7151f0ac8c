//! A short answer as tokens: LaTeX and typography read once, so that what follows knows neither.
//!
//! `\dfrac` and `\frac`, `×` and `\times`, `²` and `^{2}`, `½` and `\frac{1}{2}` give the same tokens. Typefaces, sizes and math
//! delimiters give none. Digits in groups of three are one number.

use super::command::{Meaning, is_function, meaning};
use super::grouping::joined;
use super::token::{Spaced, Token};

/// The tokens of a text.
pub(super) fn tokens(text: &str) -> Vec<Spaced> {
    let mut lexer = Lexer {
        rest: text,
        out: Vec::new(),
        blank: false,
        groups: Vec::new(),
        dollars: has_currency(text),
    };
    while let Some(c) = lexer.rest.chars().next() {
        lexer.step(c);
    }
    let mut tokens = joined(lexer.out);
    let mut blank = false;
    tokens.retain_mut(|spaced| match spaced.token {
        Token::Thin => {
            blank = true;
            false
        }
        Token::Joint => false,
        _ => {
            spaced.blank |= std::mem::take(&mut blank);
            true
        }
    });
    tokens
}

/// True where a dollar sign is money: they delimit mathematics in pairs.
fn has_currency(text: &str) -> bool {
    text.replace("\\$", "").matches('$').count() % 2 == 1
}

/// The kinds of LaTeX groups that are open.
#[derive(Clone, Copy, PartialEq)]
enum Group {
    /// Of `\text` and its like: gives no braces.
    Upright,
    Plain,
}

struct Lexer<'a> {
    rest: &'a str,
    out: Vec<Spaced>,
    blank: bool,
    groups: Vec<Group>,
    dollars: bool,
}

impl Lexer<'_> {
    fn push(&mut self, token: Token) {
        self.out.push(Spaced { token, blank: std::mem::take(&mut self.blank) });
    }

    fn symbol(&mut self, symbol: char) {
        self.push(Token::Symbol(symbol));
    }

    fn group(&mut self, inside: impl FnOnce(&mut Self)) {
        self.push(Token::Open);
        inside(self);
        self.push(Token::Close);
    }

    fn number(&mut self, digits: impl Into<String>) {
        self.push(Token::Number(digits.into()));
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
    }

    /// Reads one token or more, beginning with `c`.
    fn step(&mut self, c: char) {
        if c == '\\' {
            return self.command();
        }
        // A calculator's note, `<<9*2=18>>`, says nothing more.
        if let Some((note, _)) = self.rest.strip_prefix("<<").and_then(|rest| rest.split_once(">>"))
        {
            return self.skip(note.len() + 4);
        }
        if self.rest == "/-" {
            // After a price: `Rs. 18/-`.
            return self.skip(2);
        }
        if c.is_ascii_digit() || (c == '.' && self.is_decimal_point()) {
            return self.digits();
        }
        if superscript(c).is_some() {
            return self.script('^', superscript);
        }
        if subscript(c).is_some() {
            return self.script('_', subscript);
        }
        if c.is_alphabetic() && c != 'π' {
            return self.letters();
        }
        self.skip(c.len_utf8());
        if let Some((above, below)) = vulgar_fraction(c) {
            self.push(Token::Command("frac".to_owned()));
            self.group(|lexer| lexer.number(above));
            self.group(|lexer| lexer.number(below));
            return;
        }
        match c {
            '\u{2009}' | '\u{202f}' | '\u{2006}' => self.push(Token::Thin),
            '~' => self.blank = true,
            '\u{200b}' | '\u{feff}' | '\u{2060}' => {}
            c if c.is_whitespace() => self.blank = true,
            '{' => {
                self.groups.push(Group::Plain);
                self.push(Token::Open);
            }
            '}' => match self.groups.pop() {
                Some(Group::Upright) => self.blank = true,
                _ => self.push(Token::Close),
            },
            '$' if self.dollars => self.symbol('$'),
            '$' => {}
            '−' | '–' | '—' | '﹣' | '－' | '‐' | '‑' => self.symbol('-'),
            '×' | '·' | '⋅' | '∙' | '∗' | '•' => self.symbol('*'),
            '÷' | '∕' | '⁄' => self.symbol('/'),
            'π' => self.push(Token::Letter('π')),
            '∞' => self.push(Token::Letter('∞')),
            '√' => self.push(Token::Command("sqrt".to_owned())),
            '˚' | 'º' => self.degree(),
            '°' => self.degree(),
            '⩽' | '≦' => self.symbol('≤'),
            '⩾' | '≧' => self.symbol('≥'),
            '’' | '′' => self.symbol('\''),
            '，' => self.symbol(','),
            '（' => self.symbol('('),
            '）' => self.symbol(')'),
            '∶' | '：' => self.symbol(':'),
            '￥' => self.symbol('¥'),
            other => self.symbol(other),
        }
    }

    /// A point before digits that do not go on with a number, as `.5`.
    fn is_decimal_point(&self) -> bool {
        let after_digits = matches!(
            self.out.last(),
            Some(Spaced { token: Token::Number(_) | Token::Word { .. }, .. })
        );
        self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) && (self.blank || !after_digits)
    }

    fn digits(&mut self) {
        let bytes = self.rest.as_bytes();
        let count = |from: usize| {
            bytes.get(from..).unwrap_or_default().iter().take_while(|b| b.is_ascii_digit()).count()
        };
        let mut end = count(0);
        if bytes.get(end) == Some(&b'.') && count(end + 1) > 0 {
            end += 1 + count(end + 1);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'-' | b'+')));
            let power = count(end + 1 + sign);
            let after = bytes.get(end + 1 + sign + power);
            if power > 0 && !after.is_some_and(u8::is_ascii_alphabetic) {
                end += 1 + sign + power;
            }
        }
        let digits = self.rest[..end].to_owned();
        self.skip(end);
        self.number(digits);
    }

    /// Raised or lowered digits in a row.
    fn script(&mut self, sign: char, plain: fn(char) -> Option<char>) {
        self.symbol(sign);
        let raised: String = self.rest.chars().map_while(plain).collect();
        let bytes = self.rest.chars().take_while(|c| plain(*c).is_some()).map(char::len_utf8).sum();
        self.skip(bytes);
        self.group(|lexer| {
            let digits = raised.trim_start_matches(['-', '+']);
            for sign in raised[..raised.len() - digits.len()].chars() {
                lexer.symbol(sign);
            }
            if !digits.is_empty() {
                match digits.chars().next().filter(|c| digits.len() == 1 && c.is_alphabetic()) {
                    Some(letter) => lexer.push(Token::Letter(letter)),
                    None => lexer.number(digits),
                }
            }
        });
    }

    fn letters(&mut self) {
        let end = self.rest.find(|c: char| !c.is_alphabetic() || superscript(c).is_some());
        let run = &self.rest[..end.unwrap_or(self.rest.len())];
        // Before noon and after it, with full stops.
        for (written, word) in [("a.m", "am"), ("p.m", "pm")] {
            let head = self.rest.get(..3).unwrap_or_default();
            if head.eq_ignore_ascii_case(written)
                && !self.rest[3..].starts_with(char::is_alphanumeric)
            {
                self.skip(3);
                if self.rest.starts_with('.') {
                    self.skip(1);
                }
                return self.push(Token::Word { letters: word.to_owned(), upright: true });
            }
        }
        let upright = self.groups.last() == Some(&Group::Upright);
        let run = run.to_owned();
        self.skip(run.len());
        let mut chars = run.chars();
        let token = match (chars.next(), chars.next()) {
            (Some(letter), None) if !upright => Token::Letter(letter),
            _ if !upright && run == "pi" => Token::Letter('π'),
            _ if !upright && (run == "inf" || run == "infinity") => Token::Letter('∞'),
            _ if !upright && is_function(&run) => Token::Command(run),
            _ => Token::Word { letters: run, upright },
        };
        self.push(token);
    }

    fn command(&mut self) {
        self.skip(1);
        let end = self.rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(self.rest.len());
        if end == 0 {
            let Some(c) = self.rest.chars().next() else { return };
            self.skip(c.len_utf8());
            match c {
                ',' | ';' | ':' | '>' => self.push(Token::Thin),
                '!' => self.push(Token::Joint),
                '\\' => self.push(Token::Command("\\".to_owned())),
                '(' | ')' | '[' | ']' => self.blank = true,
                '|' => self.symbol('‖'),
                c if c.is_whitespace() => self.blank = true,
                c => self.symbol(c),
            }
            return;
        }
        let name = self.rest[..end].to_owned();
        self.skip(end);
        match meaning(&name) {
            Meaning::Nothing => {
                if matches!(name.as_str(), "left" | "right") && self.rest.starts_with('.') {
                    self.skip(1);
                }
            }
            Meaning::Blank => self.blank = true,
            Meaning::Upright => {
                let after = self.rest.trim_start();
                if let Some(inside) = after.strip_prefix('{') {
                    self.rest = inside;
                    self.groups.push(Group::Upright);
                    self.blank = true;
                }
            }
            Meaning::Symbol('°') => self.degree(),
            Meaning::Symbol(symbol) => self.symbol(symbol),
            Meaning::Letter(letter) => self.push(Token::Letter(letter)),
            Meaning::Command(name) => self.push(Token::Command(name.to_owned())),
            Meaning::Environment => {
                let inside =
                    self.rest.trim_start().strip_prefix('{').and_then(|rest| rest.split_once('}'));
                if let Some((kind, rest)) = inside {
                    self.rest = rest;
                    self.push(Token::Command(format!("{name} {}", kind.trim())));
                }
            }
            Meaning::Unknown => self.push(Token::Command(name)),
        }
    }

    /// The sign of a degree, out of the exponent that LaTeX puts it in.
    fn degree(&mut self) {
        if self.out.last().is_some_and(|last| last.is('^')) {
            self.out.pop();
        } else if let [.., power, Spaced { token: Token::Open, .. }] = self.out.as_slice()
            && power.is('^')
            && let Some(after) = self.rest.trim_start().strip_prefix('}')
        {
            self.out.truncate(self.out.len() - 2);
            self.groups.pop();
            self.rest = after;
        }
        self.symbol('°');
    }
}

fn superscript(c: char) -> Option<char> {
    Some(match c {
        '²' => '2',
        '³' => '3',
        '¹' => '1',
        '⁰' => '0',
        '⁴'..='⁹' => char::from_u32(u32::from(c) - u32::from('⁴') + u32::from('4'))?,
        '⁻' => '-',
        '⁺' => '+',
        'ⁿ' => 'n',
        _ => return None,
    })
}

fn subscript(c: char) -> Option<char> {
    match c {
        '₀'..='₉' => char::from_u32(u32::from(c) - u32::from('₀') + u32::from('0')),
        _ => None,
    }
}

fn vulgar_fraction(c: char) -> Option<(&'static str, &'static str)> {
    Some(match c {
        '½' => ("1", "2"),
        '⅓' => ("1", "3"),
        '⅔' => ("2", "3"),
        '¼' => ("1", "4"),
        '¾' => ("3", "4"),
        '⅕' => ("1", "5"),
        '⅖' => ("2", "5"),
        '⅗' => ("3", "5"),
        '⅘' => ("4", "5"),
        '⅙' => ("1", "6"),
        '⅚' => ("5", "6"),
        '⅐' => ("1", "7"),
        '⅛' => ("1", "8"),
        '⅜' => ("3", "8"),
        '⅝' => ("5", "8"),
        '⅞' => ("7", "8"),
        '⅑' => ("1", "9"),
        '⅒' => ("1", "10"),
        _ => return None,
    })
}
