//! Units: what an answer counts or measures. `5 cm`, `5\text{ centimetres}`; `24 pages/day`; `€24`.
//!
//! A unit is compared only where both answers have one: most references leave it out.

use super::token::{Spaced, Token};

/// Most tokens of a unit.
pub(super) const LONGEST: usize = 12;

/// Words that multiply the number before them.
pub(super) const MULTIPLIERS: [(&str, i64); 5] = [
    ("hundred", 100),
    ("thousand", 1000),
    ("million", 1_000_000),
    ("billion", 1_000_000_000),
    ("trillion", 1_000_000_000_000),
];

/// Words that make the number before them another one, which is not read.
const CHANGES: [&str; 29] = [
    "dozen",
    "dozens",
    "pi",
    "sqrt",
    "half",
    "halves",
    "third",
    "thirds",
    "quarter",
    "quarters",
    "fourths",
    "fifths",
    "sixths",
    "sevenths",
    "eighths",
    "ninths",
    "tenths",
    "hundredths",
    "thousandths",
    "plus",
    "minus",
    "factorial",
    "squared",
    "cubed",
    "root",
    "score",
    "gross",
    "choose",
    "point",
];

/// Words after a number that say something about it and are no unit.
const SAYS_MORE: [&str; 33] = [
    "or",
    "and",
    "to",
    "mod",
    "modulo",
    "is",
    "are",
    "was",
    "isn't",
    "aren't",
    "not",
    "no",
    "if",
    "unless",
    "but",
    "except",
    "without",
    "wrong",
    "incorrect",
    "false",
    "impossible",
    "than",
    "from",
    "over",
    "divided",
    "multiplied",
    "sin",
    "cos",
    "tan",
    "log",
    "ln",
    "nor",
    "never",
];

/// True for a word such as `million`.
pub(in super::super) fn is_multiplier(word: &str) -> bool {
    MULTIPLIERS.iter().any(|(known, _)| word.eq_ignore_ascii_case(known))
}

/// True for a word such as `dozen`.
pub(in super::super) fn changes_a_number(word: &str) -> bool {
    CHANGES.iter().any(|known| word.eq_ignore_ascii_case(known))
}

/// A symbol or an abbreviation, and the name by which units are compared.
const SYMBOLS: [(&str, &str); 67] = [
    ("m", "metre"),
    ("meter", "metre"),
    ("cm", "centimetre"),
    ("centimeter", "centimetre"),
    ("mm", "millimetre"),
    ("millimeter", "millimetre"),
    ("km", "kilometre"),
    ("kilometer", "kilometre"),
    ("g", "gram"),
    ("gramme", "gram"),
    ("kg", "kilogram"),
    ("mg", "milligram"),
    ("s", "second"),
    ("sec", "second"),
    ("min", "minute"),
    ("mins", "minute"),
    ("h", "hour"),
    ("hr", "hour"),
    ("hrs", "hour"),
    ("l", "litre"),
    ("liter", "litre"),
    ("ml", "millilitre"),
    ("milliliter", "millilitre"),
    ("cl", "centilitre"),
    ("ft", "foot"),
    ("feet", "foot"),
    ("in", "inch"),
    ("inches", "inch"),
    ("yd", "yard"),
    ("mi", "mile"),
    ("lb", "pound of weight"),
    ("lbs", "pound of weight"),
    ("oz", "ounce"),
    ("mph", "mile/hour"),
    ("kph", "kilometre/hour"),
    ("kmh", "kilometre/hour"),
    ("°", "degree"),
    ("deg", "degree"),
    ("°c", "degree celsius"),
    ("°f", "degree fahrenheit"),
    ("c", "degree celsius"),
    ("f", "degree fahrenheit"),
    ("k", "kelvin"),
    ("rad", "radian"),
    ("$", "dollar"),
    ("us$", "dollar"),
    ("usd", "dollar"),
    ("buck", "dollar"),
    ("€", "euro"),
    ("eur", "euro"),
    ("£", "pound"),
    ("gbp", "pound"),
    ("¥", "yen"),
    ("jpy", "yen"),
    ("₹", "rupee"),
    ("rs", "rupee"),
    ("inr", "rupee"),
    ("¢", "cent"),
    ("kr", "krone"),
    ("sq", "square"),
    ("people", "person"),
    ("persons", "person"),
    ("children", "child"),
    ("hz", "hertz"),
    ("n", "newton"),
    ("w", "watt"),
    ("v", "volt"),
];

/// Symbols of one letter that a blank before them is enough to tell from a variable.
const LETTERS: [char; 6] = ['m', 'g', 's', 'h', 'l', 'L'];

/// True where a token may be part of a unit.
pub(super) fn may_belong(spaced: &Spaced) -> bool {
    match &spaced.token {
        Token::Word { .. } | Token::Letter(_) | Token::Number(_) | Token::Open | Token::Close => {
            true
        }
        Token::Command(name) => name == "frac",
        Token::Symbol(symbol) => "/^*°$€£¥₹¢.-%".contains(*symbol),
        _ => false,
    }
}

/// True for a word that changes nothing about the number before it.
pub(super) fn is_plain_word(spaced: &Spaced) -> bool {
    let Token::Word { letters, .. } = &spaced.token else { return false };
    let lower = letters.to_lowercase();
    letters.len() > 1
        && !SAYS_MORE.contains(&lower.as_str())
        && !changes_a_number(&lower)
        && !is_multiplier(&lower)
}

/// True for the symbol or the name of a known unit.
pub(in super::super) fn is_unit(word: &str) -> bool {
    let lower = word.to_lowercase();
    let singular = lower.strip_suffix('s').unwrap_or(&lower);
    lower.len() > 1
        && SYMBOLS.iter().any(|(symbol, name)| {
            [*symbol, *name].iter().any(|known| *known == lower || *known == singular)
        })
}

/// The unit that these tokens are, by the name under which units are compared; `None` for what is none.
pub(super) fn unit(tokens: &[Spaced]) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut rest = tokens;
    let mut words = 0;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match &first.token {
            Token::Word { letters, upright } => {
                words += 1;
                parts.push(word(letters, *upright, parts.last().map(String::as_str), first.blank)?);
            }
            Token::Letter(letter) => {
                let after_degree = parts.last().is_some_and(|part| part == "°");
                let below_line = parts.last().is_some_and(|part| part == "/");
                if after_degree && matches!(letter, 'C' | 'F') {
                    parts.pop();
                    parts.push(name(&format!("°{letter}").to_lowercase()));
                } else if (first.blank || below_line) && LETTERS.contains(letter) {
                    parts.push(name(&letter.to_lowercase().to_string()));
                } else {
                    return None;
                }
            }
            Token::Command(_) => {
                let (above, below, after) = fraction(rest)?;
                rest = after;
                words += 2;
                parts.extend([unit(above)?, "/".to_owned(), unit(below)?]);
            }
            Token::Symbol('^') => {
                let (power, after) = exponent(rest)?;
                rest = after;
                if !matches!(parts.last()?.chars().last(), Some(c) if c.is_alphabetic()) {
                    return None;
                }
                parts.push(format!("^{power}"));
            }
            Token::Symbol('°') => parts.push("°".to_owned()),
            Token::Symbol(symbol @ ('$' | '€' | '£' | '¥' | '₹' | '¢')) => {
                parts.push(name(&symbol.to_string()))
            }
            Token::Symbol('/') if !parts.is_empty() && !rest.is_empty() => {
                parts.push("/".to_owned())
            }
            Token::Symbol('*' | '-') if !parts.is_empty() && !rest.is_empty() => {}
            Token::Symbol('.') if words > 0 => {}
            _ => return None,
        }
    }
    (words <= 5).then(|| together(&parts))
}

/// A word of a unit.
fn word(letters: &str, upright: bool, before: Option<&str>, blank: bool) -> Option<String> {
    let lower = letters.to_lowercase();
    let singular =
        lower.strip_suffix('s').filter(|word| word.chars().count() > 1).unwrap_or(&lower);
    let known = SYMBOLS.iter().any(|(symbol, _)| *symbol == lower || *symbol == singular);
    let is_unit = match before {
        // Right after a digit or a bracket, only a known symbol is no product of variables.
        None if !upright && !blank => known || matches!(lower.as_str(), "am" | "pm"),
        None | Some(_) => {
            known
                || upright
                || letters.chars().count() > 2
                || matches!(
                    lower.as_str(),
                    "of" | "an" | "in" | "am" | "pm" | "at" | "on" | "by" | "we"
                )
        }
    };
    let one_letter = letters.chars().count() == 1 && !known && before.is_none();
    (is_unit
        && !one_letter
        && !SAYS_MORE.contains(&lower.as_str())
        && !changes_a_number(&lower)
        && !is_multiplier(&lower))
    .then(|| if lower == "per" { "/".to_owned() } else { name(&lower) })
}

/// The name by which a unit is compared.
fn name(lower: &str) -> String {
    let named = |word: &str| {
        SYMBOLS.iter().find(|(symbol, _)| *symbol == word).map(|(_, name)| (*name).to_owned())
    };
    let singular = lower.strip_suffix('s').filter(|word| word.len() > 2).unwrap_or(lower);
    named(lower).or_else(|| named(singular)).unwrap_or_else(|| singular.to_owned())
}

/// Both groups of words after a `\frac`.
fn fraction(tokens: &[Spaced]) -> Option<(&[Spaced], &[Spaced], &[Spaced])> {
    let group = |tokens: &'_ [Spaced]| {
        let inside = tokens.iter().position(|spaced| spaced.token == Token::Close)?;
        let opens = tokens.first()?.token == Token::Open;
        let words = inside > 1
            && tokens[1..inside]
                .iter()
                .all(|spaced| matches!(spaced.token, Token::Word { upright: true, .. }));
        (opens && words).then_some(inside)
    };
    let above = group(tokens)?;
    let below = group(&tokens[above + 1..])? + above + 1;
    Some((&tokens[1..above], &tokens[above + 2..below], &tokens[below + 1..]))
}

fn exponent(tokens: &[Spaced]) -> Option<(String, &[Spaced])> {
    let (tokens, braced) = match tokens {
        [Spaced { token: Token::Open, .. }, rest @ ..] => (rest, true),
        _ => (tokens, false),
    };
    let (sign, tokens) = match tokens {
        [minus, rest @ ..] if minus.is('-') => ("-", rest),
        _ => ("", tokens),
    };
    let [Spaced { token: Token::Number(power), .. }, rest @ ..] = tokens else { return None };
    let rest = match (braced, rest) {
        (false, rest) => rest,
        (true, [Spaced { token: Token::Close, .. }, rest @ ..]) => rest,
        _ => return None,
    };
    Some((format!("{sign}{power}"), rest))
}

/// One name: `square metre` and `metre^2` are the same.
fn together(parts: &[String]) -> String {
    let power = match parts.first().map(String::as_str) {
        Some("square") => Some("^2"),
        Some("cubic") => Some("^3"),
        _ => None,
    };
    let Some(power) = power.filter(|_| parts.len() > 1) else { return joined(parts) };
    let mut parts = parts[1..].to_vec();
    parts.insert(1, power.to_owned());
    joined(&parts)
}

fn joined(parts: &[String]) -> String {
    let mut out = String::new();
    for part in parts {
        if !out.is_empty() && part.chars().all(char::is_alphabetic) && !out.ends_with('/') {
            out.push(' ');
        }
        out.push_str(part);
    }
    if out == "°" { "degree".to_owned() } else { out }
}
