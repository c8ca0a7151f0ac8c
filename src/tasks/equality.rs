//! When two short answers are the same.
//!
//! Both are normalised (LaTeX spacing, `$`, `%`, thousands commas, units, wrappers) and compared as exact rationals
//! when both are numbers: `0.5`, `1/2`, `\frac{1}{2}`, `50e-2` and `.50` are one answer, `0.333` and `1/3` are two.
//! Everything else is compared as text without blanks and case. A percent sign is dropped, not divided by 100.

/// True when both are the same answer.
pub fn same(a: &str, b: &str) -> bool {
    same_to_depth(&normal(a), &normal(b), 8)
}

/// True when the text is one number (with or without a unit).
pub fn is_number(text: &str) -> bool {
    quantity(&normal(text)).is_some()
}

fn same_to_depth(a: &str, b: &str, depth: usize) -> bool {
    match (quantity(a), quantity(b)) {
        (Some(a), Some(b)) => {
            let units_agree = a.unit.is_empty() || b.unit.is_empty() || a.unit == b.unit;
            return a.value == b.value && units_agree;
        }
        // `1 2` without blanks is not the number 12.
        (Some(_), None) | (None, Some(_)) => return false,
        (None, None) => {}
    }
    if let (Some(a), Some(b)) = (list(a), list(b))
        && depth > 0
    {
        let items_agree =
            || a.items.iter().zip(&b.items).all(|(a, b)| same_to_depth(a, b, depth - 1));
        return a.brackets == b.brackets && a.items.len() == b.items.len() && items_agree();
    }
    let (a, b) = (plain(a), plain(b));
    !a.is_empty() && a == b
}

/// An exact number, or its digits where it does not fit 128 bits.
#[derive(Debug, PartialEq)]
enum Value {
    Ratio { numerator: i128, denominator: i128 },
    Digits(String),
}

#[derive(Debug)]
struct Quantity {
    value: Value,
    unit: String,
}

/// A tuple, interval or set with at least two parts.
struct List<'a> {
    brackets: (char, char),
    items: Vec<&'a str>,
}

/// LaTeX and typography to plain characters; no judgement about numbers yet.
fn normal(text: &str) -> String {
    let mut text =
        text.trim().replace(['−', '–', '﹣', '－'], "-").replace(['\u{a0}', '\u{202f}', '~'], " ");
    for (from, to) in [
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\cfrac", "\\frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\displaystyle", ""),
        ("\\qquad", " "),
        ("\\quad", " "),
        ("\\,", " "),
        ("\\!", ""),
        ("\\;", " "),
        ("\\:", " "),
        ("\\ ", " "),
        ("{,}", ","),
        ("\\%", "%"),
        ("\\$", "$"),
        ("\\(", ""),
        ("\\)", ""),
        ("\\[", ""),
        ("\\]", ""),
        ("\\cdot", "*"),
        ("\\times", "*"),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("°", ""),
        ("\\degree", ""),
        ("\\pi", "π"),
        ("\\{", "{"),
        ("\\}", "}"),
    ] {
        if text.contains(from) {
            text = text.replace(from, to);
        }
    }
    text = unwrap_text(&text);
    let text = text.trim().trim_matches('$').trim().trim_end_matches(['.', ',', ';']).trim();
    // `x = 5` answers with 5; an equation with more than one sign, or an inequality, is left alone.
    match text.split_once('=') {
        Some((name, value)) if is_name(name) && !value.contains('=') => value.trim().to_string(),
        _ => text.to_string(),
    }
}

/// A variable: one or two letters, perhaps with an index or an argument.
fn is_name(text: &str) -> bool {
    let text = text.trim();
    let letters = text.chars().take_while(|c| c.is_alphabetic()).count();
    (1..=2).contains(&letters)
        && text.len() <= 8
        && !text.contains(['<', '>', '!', '+', '-', '*', '/'])
}

/// `\text{cm}` to ` cm `, for every command that only changes the typeface.
fn unwrap_text(text: &str) -> String {
    let mut out = text.to_string();
    for name in ["\\text{", "\\textbf{", "\\mathrm{", "\\mbox{", "\\mathbf{", "\\operatorname{"] {
        while let Some(at) = out.find(name) {
            let inside = at + name.len();
            let Some(end) = closing(&out, inside) else { break };
            // Each round removes a command, so a hostile text costs at most its length squared over six.
            out = format!("{} {} {}", &out[..at], &out[inside..end], &out[end + 1..]);
            if out.len() > 4096 {
                return out;
            }
        }
    }
    out
}

/// Where the brace closes that was opened just before `from`.
fn closing(text: &str, from: usize) -> Option<usize> {
    let mut depth = 1usize;
    for (at, byte) in text.bytes().enumerate().skip(from) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn plain(text: &str) -> String {
    let text: String =
        text.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect();
    // A choice: `(b)` and `b` are the same letter.
    match text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inside) if inside.chars().count() == 1 => inside.to_string(),
        _ => text,
    }
}

fn list(text: &str) -> Option<List<'_>> {
    let open = text.chars().next().filter(|c| "([{".contains(*c))?;
    let close = text.chars().last().filter(|c| ")]}".contains(*c))?;
    let inside = text.get(1..text.len() - 1)?;
    let (mut items, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            b',' if depth == 0 => {
                items.push(inside[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
        if depth < 0 {
            return None;
        }
    }
    items.push(inside[start..].trim());
    (items.len() > 1 && depth == 0).then_some(List { brackets: (open, close), items })
}

/// Reads `-$1,234.50`, `3/4`, `1 1/2`, `\frac{3}{4}`, `1.5*10^{3}`, `5 cm`, `12%`.
fn quantity(text: &str) -> Option<Quantity> {
    let mut scan = Scan { rest: text.trim() };
    let mut negative = scan.sign();
    scan.skip_any(&["$", "€", "£", "US$"]);
    negative ^= scan.sign();
    let mut value = scan.number()?;
    if value.is_whole() && !scan.rest.starts_with('/') {
        // A mixed number: `1 1/2`, `1\frac{1}{2}`.
        let mut ahead = Scan { rest: scan.rest.trim_start() };
        let written = ahead.rest;
        if let Some(part) = ahead.number().filter(Value::is_proper_fraction) {
            let consumed = &written[..written.len() - ahead.rest.len()];
            if !consumed.contains(['/', '\\']) {
                return None;
            }
            value = value.plus(part)?;
            scan = ahead;
        }
    }
    if scan.skip_any(&["*10^", " *10^", " * 10^", "* 10^"]) {
        value = value.shifted(scan.exponent()?)?;
    }
    scan.rest = scan.rest.trim_start();
    for (word, power) in [("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12)] {
        if scan.skip_any(&[word]) {
            value = value.shifted(power)?;
        }
    }
    scan.skip_any(&["%", "percent"]);
    let unit = unit(scan.rest)?;
    Some(Quantity { value: if negative { value.negated() } else { value }, unit })
}

/// The unit after a number, normalised; `None` when what follows is not a unit (`5x`, `5 or 6`, `5 dozen`).
fn unit(text: &str) -> Option<String> {
    let text = text.trim().trim_start_matches('$').trim_end_matches(['$', '.']).trim();
    if text.is_empty() {
        return Some(String::new());
    }
    let lower = text.to_lowercase();
    let symbol = lower.split(['^', '²', '³']).next().unwrap_or_default();
    let known = [
        "m", "cm", "mm", "km", "g", "kg", "mg", "s", "h", "l", "ml", "ft", "in", "lb", "oz", "mph",
        "km/h", "m/s", "min", "hr", "c", "f", "k",
    ];
    if known.contains(&symbol) {
        return Some(lower.replace(['{', '}'], ""));
    }
    let says_more =
        ["or", "and", "dozen", "hundred", "pi", "sqrt", "to", "half", "plus", "minus", "times"];
    let words: Vec<&str> = lower.split_whitespace().collect();
    let is_word = |word: &&str| {
        word.chars().count() > 1
            && word.chars().all(char::is_alphabetic)
            && !says_more.contains(word)
    };
    (words.len() <= 4 && words.iter().all(is_word))
        .then(|| words.join(" ").trim_end_matches('s').to_string())
}

struct Scan<'a> {
    rest: &'a str,
}

impl<'a> Scan<'a> {
    fn skip_any(&mut self, prefixes: &[&str]) -> bool {
        match prefixes.iter().find_map(|prefix| self.rest.strip_prefix(prefix)) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn sign(&mut self) -> bool {
        let negative = self.rest.starts_with('-');
        if negative || self.rest.starts_with('+') {
            self.rest = self.rest[1..].trim_start();
        }
        negative
    }

    fn digits(&mut self) -> &'a str {
        let count = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.rest.split_at(count);
        self.rest = rest;
        digits
    }

    fn exponent(&mut self) -> Option<i32> {
        let braced = self.skip_any(&["{"]);
        let negative = self.sign();
        let value: i32 = self.digits().parse().ok()?;
        if braced && !self.skip_any(&["}"]) {
            return None;
        }
        Some(if negative { -value } else { value })
    }

    fn number(&mut self) -> Option<Value> {
        if self.skip_any(&["\\frac"]) {
            let numerator = self.argument()?;
            return numerator.over(self.argument()?);
        }
        let value = self.decimal()?;
        let mut ahead = Scan { rest: self.rest.trim_start() };
        if ahead.skip_any(&["/"]) {
            ahead.rest = ahead.rest.trim_start();
            if let Some(denominator) = ahead.decimal() {
                self.rest = ahead.rest;
                return value.over(denominator);
            }
        }
        Some(value)
    }

    /// One argument of `\frac`: a braced number or a single digit.
    fn argument(&mut self) -> Option<Value> {
        self.rest = self.rest.trim_start();
        if self.skip_any(&["{"]) {
            self.rest = self.rest.trim_start();
            let negative = self.sign();
            let value = self.decimal()?;
            self.rest = self.rest.trim_start();
            return self.skip_any(&["}"]).then(|| if negative { value.negated() } else { value });
        }
        let digit = self.rest.chars().next()?.to_digit(10)?;
        self.rest = &self.rest[1..];
        Some(Value::whole(i128::from(digit)))
    }

    /// Digits with thousands commas, a point and decimals, `e` and an exponent.
    fn decimal(&mut self) -> Option<Value> {
        let mut digits = self.digits().to_string();
        if (1..=3).contains(&digits.len()) {
            while let Some(rest) = self.rest.strip_prefix(',') {
                let mut group = Scan { rest };
                let three = group.digits();
                if three.len() != 3 {
                    break;
                }
                digits.push_str(three);
                self.rest = group.rest;
            }
        }
        let mut decimals = "";
        if let Some(rest) = self.rest.strip_prefix('.') {
            let mut after = Scan { rest };
            decimals = after.digits();
            if !digits.is_empty() || !decimals.is_empty() {
                self.rest = after.rest;
            }
        }
        if digits.is_empty() && decimals.is_empty() {
            return None;
        }
        let value = Value::decimal(&digits, decimals);
        let mut ahead = Scan { rest: self.rest };
        if ahead.skip_any(&["e", "E"])
            && let Some(power) = ahead.exponent()
        {
            self.rest = ahead.rest;
            return value.shifted(power);
        }
        Some(value)
    }
}

impl Value {
    fn whole(numerator: i128) -> Value {
        Value::Ratio { numerator, denominator: 1 }
    }

    fn decimal(digits: &str, decimals: &str) -> Value {
        let (digits, decimals) = (digits.trim_start_matches('0'), decimals.trim_end_matches('0'));
        let written = format!("0{digits}{decimals}");
        let scale = 10i128.checked_pow(decimals.len() as u32);
        match (written.parse::<i128>().ok(), scale) {
            (Some(numerator), Some(denominator)) => Value::reduced(numerator, denominator),
            _ => Value::Digits(format!("{digits}.{decimals}")),
        }
    }

    fn reduced(numerator: i128, denominator: i128) -> Value {
        let (mut a, mut b) = (numerator.unsigned_abs(), denominator.unsigned_abs());
        while b > 0 {
            (a, b) = (b, a % b);
        }
        let divisor = i128::try_from(a).unwrap_or(1).max(1);
        Value::Ratio { numerator: numerator / divisor, denominator: denominator / divisor }
    }

    fn over(self, below: Value) -> Option<Value> {
        let Value::Ratio { numerator: a, denominator: b } = self else { return None };
        let Value::Ratio { numerator: c, denominator: d } = below else { return None };
        let (mut numerator, mut denominator) = (a.checked_mul(d)?, b.checked_mul(c)?);
        if denominator == 0 {
            return None;
        }
        if denominator < 0 {
            (numerator, denominator) = (numerator.checked_neg()?, denominator.checked_neg()?);
        }
        Some(Value::reduced(numerator, denominator))
    }

    fn plus(self, other: Value) -> Option<Value> {
        let Value::Ratio { numerator: a, denominator: b } = self else { return None };
        let Value::Ratio { numerator: c, denominator: d } = other else { return None };
        let numerator = a.checked_mul(d)?.checked_add(c.checked_mul(b)?)?;
        Some(Value::reduced(numerator, b.checked_mul(d)?))
    }

    /// Times ten to a power.
    fn shifted(self, power: i32) -> Option<Value> {
        let factor = Value::whole(10i128.checked_pow(power.unsigned_abs())?);
        let Value::Ratio { numerator, denominator } = self else { return None };
        if power < 0 {
            return Value::Ratio { numerator, denominator }.over(factor);
        }
        let Value::Ratio { numerator: ten, .. } = factor else { return None };
        Some(Value::reduced(numerator.checked_mul(ten)?, denominator))
    }

    fn negated(self) -> Value {
        match self {
            Value::Ratio { numerator, denominator } => {
                Value::Ratio { numerator: numerator.saturating_neg(), denominator }
            }
            Value::Digits(digits) => Value::Digits(match digits.strip_prefix('-') {
                Some(positive) => positive.to_string(),
                None => format!("-{digits}"),
            }),
        }
    }

    fn is_whole(&self) -> bool {
        matches!(self, Value::Ratio { denominator: 1, .. })
    }

    fn is_proper_fraction(&self) -> bool {
        matches!(self, Value::Ratio { numerator, denominator } if *denominator > 1 && numerator < denominator)
    }
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
            assert!(
                same(a, b),
                "{a} and {b}: {:?} {:?}",
                quantity(&normal(a)),
                quantity(&normal(b))
            );
            assert!(same(b, a), "{b} and {a}");
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
            assert!(
                !same(a, b),
                "{a} and {b}: {:?} {:?}",
                quantity(&normal(a)),
                quantity(&normal(b))
            );
            assert!(!same(b, a), "{b} and {a}");
        }
    }
}
