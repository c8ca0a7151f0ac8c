//! When two short answers are the same.
//!
//! Both are normalised (LaTeX spacing, `$`, `%`, thousands commas, units, wrappers) and compared as exact rationals
//! when both are numbers: `0.5`, `1/2`, `\frac{1}{2}`, `50e-2` and `.50` are one answer, `0.333` and `1/3` are two.
//! Everything else is compared as text without blanks and case. A percent sign is dropped, not divided by 100.

use super::quantity::quantity;

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
