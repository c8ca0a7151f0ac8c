//! The last box of a text.

/// A box: `\boxed{…}`, `\fbox{…}`, or `\boxed 7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boxed<'a> {
    /// The byte where its command begins.
    pub start: usize,
    /// What is in it.
    pub inside: &'a str,
    /// It has braces, or something follows it, so that a text that was cut off holds all of it.
    pub closed: bool,
}

/// The last box whose braces close, or that has none and needs none.
pub fn boxed(text: &str) -> Option<Boxed<'_>> {
    let (braced, bare) = (with_braces(text), without_braces(text));
    match (braced, bare) {
        (Some(braced), Some(bare)) => Some(if bare.start > braced.start { bare } else { braced }),
        (braced, bare) => braced.or(bare),
    }
}

const NAMES: [&str; 2] = ["\\boxed", "\\fbox"];

fn with_braces(text: &str) -> Option<Boxed<'_>> {
    let bytes = text.as_bytes();
    // Where each open brace stands, and where the command of its box begins if it has one.
    let mut open: Vec<(usize, Option<usize>)> = Vec::new();
    let mut last: Option<(usize, usize, usize)> = None;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'{' => open.push((at + 1, command_before(&text[..at]))),
            b'}' => {
                if let Some((start, Some(command))) = open.pop()
                    && last.is_none_or(|(before, ..)| start > before)
                {
                    last = Some((start, at, command));
                }
            }
            _ => {}
        }
        at += 1;
    }
    let (start, end, command) = last?;
    Some(Boxed { start: command, inside: text.get(start..end)?, closed: true })
}

/// Where the command of a box begins that stands right before.
fn command_before(before: &str) -> Option<usize> {
    let before = before.trim_end();
    let name = NAMES.iter().find(|name| before.ends_with(**name))?;
    Some(before.len() - name.len())
}

/// `\boxed 7`, `\boxed7`, `\boxed\frac{1}{2}`: up to a blank, a dollar sign or the punctuation of a sentence.
fn without_braces(text: &str) -> Option<Boxed<'_>> {
    let starts = text.rmatch_indices(NAMES[0]);
    starts.filter_map(|(start, name)| bare(text, start, start + name.len())).next()
}

fn bare(text: &str, start: usize, end: usize) -> Option<Boxed<'_>> {
    let rest = &text[end..];
    let blanks = rest.bytes().take_while(|byte| *byte == b' ').take(8).count();
    let content = &rest[blanks..];
    let first = content.chars().next()?;
    let follows = first.is_ascii_digit()
        || first == '\\'
        || first == '-'
        || (blanks > 0 && first.is_alphabetic());
    if !follows {
        return None;
    }
    let ends = |(at, c): (usize, char)| {
        let next = content[at + c.len_utf8()..].chars().next();
        let punctuation =
            matches!(c, '.' | ',' | ';' | ':') && !next.is_some_and(|c| c.is_ascii_digit());
        (c.is_whitespace()
            || c == '$'
            || punctuation
            || content[at..].starts_with("\\)")
            || content[at..].starts_with("\\]"))
        .then_some(at)
    };
    let length = content.char_indices().take(200).find_map(ends);
    let inside = match length {
        Some(length) => &content[..length],
        None if content.len() <= 200 => content,
        None => return None,
    };
    (!inside.is_empty()).then_some(Boxed { start, inside, closed: length.is_some() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes() {
        for (text, inside) in [
            (r"so \boxed{42}", Some("42")),
            (r"\boxed{1} then \boxed{\frac{1}{2}}.", Some(r"\frac{1}{2}")),
            (r"\boxed {7}", Some("7")),
            (r"\fbox{8}", Some("8")),
            (r"\boxed{1} and \boxed{2", Some("1")),
            (r"\boxed{\boxed{5}}", Some("5")),
            (r"\boxed{a\}b}", Some(r"a\}b")),
            (r"} } \boxed{3} }", Some("3")),
            (r"\boxed{}", Some("")),
            (r"{ \boxed{9}", Some("9")),
            (r"$2+5=\boxed 7$ in all", Some("7")),
            (r"\boxed7.", Some("7")),
            (r"\boxed{6} or \boxed 7.5, so", Some("7.5")),
            (r"\boxed 7 no: \boxed{8}", Some("8")),
            (r"\boxed\frac{1}{2}$", Some(r"\frac{1}{2}")),
            ("boxed{4}", None),
            ("\\boxed", None),
            ("\\", None),
            ("", None),
        ] {
            let found = boxed(text).map(|found| found.inside);
            assert_eq!(found, inside, "{text}");
        }
        assert!(!boxed(r"it is \boxed 7").unwrap().closed);
        assert!(boxed(r"it is \boxed 7 and").unwrap().closed);
    }
}
