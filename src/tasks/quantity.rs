//! Reading a number with its unit, exactly: decimals, fractions, mixed numbers, powers of ten, thousands commas.
//!
//! The text is already normalised by [`super::equality`], whose tests cover what is read here.

/// An exact number, or its digits where it does not fit 128 bits.
#[derive(Debug, PartialEq)]
pub(super) enum Value {
    Ratio { numerator: i128, denominator: i128 },
    Digits(String),
}

/// A number and its unit.
#[derive(Debug)]
pub(super) struct Quantity {
    /// Exact.
    pub(super) value: Value,
    /// Normalised; empty where there is none.
    pub(super) unit: String,
}

/// Reads `-$1,234.50`, `3/4`, `1 1/2`, `\frac{3}{4}`, `1.5*10^{3}`, `5 cm`, `12%`.
pub(super) fn quantity(text: &str) -> Option<Quantity> {
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
