//! Where in a text the final answer stands.
//!
//! In this order: the last closed `\boxed{…}`, the last `#### …`, the last "answer is …" or "answer: …", the last
//! number. Every scan is linear in the text, whatever it holds.

/// The content of the last `\boxed{…}` (or `\fbox{…}`) whose braces close.
pub fn boxed(text: &str) -> Option<&str> {
    let (start, end) = inside_the_last_box(text)?;
    text.get(start..end)
}

fn inside_the_last_box(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    // Where each open brace stands and whether it belongs to a box.
    let mut open: Vec<(usize, bool)> = Vec::new();
    let mut last: Option<(usize, usize)> = None;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'{' => open.push((at + 1, is_box(text[..at].trim_end()))),
            b'}' => {
                if let Some((start, true)) = open.pop()
                    && last.is_none_or(|(before, _)| start > before)
                {
                    last = Some((start, at));
                }
            }
            _ => {}
        }
        at += 1;
    }
    last
}

fn is_box(before: &str) -> bool {
    before.ends_with("\\boxed") || before.ends_with("\\fbox")
}

/// The answer that a text without a box states.
pub fn stated(text: &str) -> Option<&str> {
    if let Some(at) = text.rfind("####") {
        let line = text[at + 4..].lines().next().unwrap_or_default().trim();
        return (!line.is_empty()).then_some(line);
    }
    after_the_word_answer(text).or_else(|| last_number(text))
}

/// Where the statement of the final answer begins: at the last closed box, else at the last `####`, else at the last "answer
/// is". `None` for a text that only ends with a number.
pub fn begins(text: &str) -> Option<usize> {
    if let Some((inside, _)) = inside_the_last_box(text) {
        return text[..inside].rfind('\\');
    }
    text.rfind("####").or_else(|| the_word_answer(text).map(|(at, _)| at))
}

/// The answer in a reference solution: what stands in a box or after `####`, else all of it.
pub fn known(reference: &str) -> &str {
    if let Some(inside) = boxed(reference) {
        return inside;
    }
    match reference.rfind("####") {
        Some(at) => reference[at + 4..].trim(),
        None => reference.trim(),
    }
}

/// The last "answer is" or one of its like: where it begins and where it ends.
fn the_word_answer(text: &str) -> Option<(usize, usize)> {
    let lower = text.to_ascii_lowercase();
    let starts = ["answer is", "answer:", "answer =", "answer equals"];
    let (at, start) = starts.iter().filter_map(|s| lower.rfind(s).map(|at| (at, s))).max()?;
    Some((at, at + start.len()))
}

fn after_the_word_answer(text: &str) -> Option<&str> {
    let (_, end) = the_word_answer(text)?;
    let rest = text[end..].trim_start_matches([':', ' ', '*', '=']);
    let sentence = &rest[..end_of_sentence(rest)];
    let sentence = sentence.trim_matches(|c: char| c.is_whitespace() || c == '*');
    if sentence.is_empty() {
        return None;
    }
    let after_equals = sentence.rsplit('=').next().unwrap_or(sentence);
    if super::equality::is_number(after_equals) {
        return Some(after_equals);
    }
    // A sentence around a number means the number; one without means itself ("the answer is yes").
    numbers(sentence).next().or(Some(sentence))
}

/// Up to a line end, or a full stop, `!` or `?` that no letter or digit follows.
fn end_of_sentence(text: &str) -> usize {
    let bytes = text.as_bytes();
    let ends = |at: usize| match bytes[at] {
        b'\n' => true,
        b'.' | b'!' | b'?' => bytes.get(at + 1).is_none_or(|next| next.is_ascii_whitespace()),
        _ => false,
    };
    (0..bytes.len()).find(|at| ends(*at)).unwrap_or(bytes.len())
}

/// The last number of a text: sign, digits with thousands commas, decimals, or a fraction of such.
pub fn last_number(text: &str) -> Option<&str> {
    numbers(text).last()
}

fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            match number_at(text.as_bytes(), at) {
                Some(end) => {
                    let start = std::mem::replace(&mut at, end);
                    return text.get(start..end);
                }
                None => at += 1,
            }
        }
        None
    })
}

/// The end of the number that starts at `start`, if one does.
fn number_at(bytes: &[u8], start: usize) -> Option<usize> {
    let before = start.checked_sub(1).and_then(|at| bytes.get(at));
    let mut at = start;
    if bytes.get(at) == Some(&b'-') {
        // In `7-2`, `x-2` and `)-2` the sign is a subtraction.
        if before.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b')') {
            return None;
        }
        at += 1;
        if bytes.get(at) == Some(&b'$') {
            at += 1;
        }
    }
    if bytes.get(at) == Some(&b'\\') {
        return latex_fraction(bytes, at);
    }
    let mut end = plain_number(bytes, at)?;
    if bytes.get(end) == Some(&b'/')
        && let Some(denominator) = plain_number(bytes, end + 1)
    {
        end = denominator;
    }
    Some(end)
}

fn plain_number(bytes: &[u8], start: usize) -> Option<usize> {
    let digits = |from: usize| {
        bytes.get(from..).unwrap_or_default().iter().take_while(|b| b.is_ascii_digit()).count()
    };
    let whole = digits(start);
    let mut at = start + whole;
    if (1..=3).contains(&whole) {
        while bytes.get(at) == Some(&b',') && digits(at + 1) == 3 {
            at += 4;
        }
    }
    if bytes.get(at) == Some(&b'.') && digits(at + 1) > 0 {
        at += 1 + digits(at + 1);
    }
    (at > start).then_some(at)
}

fn latex_fraction(bytes: &[u8], start: usize) -> Option<usize> {
    let rest = bytes.get(start..)?;
    let name =
        [&b"\\frac"[..], b"\\dfrac", b"\\tfrac"].into_iter().find(|n| rest.starts_with(n))?;
    let mut at = start + name.len();
    for _ in 0..2 {
        if bytes.get(at) != Some(&b'{') {
            return None;
        }
        let sign = usize::from(bytes.get(at + 1) == Some(&b'-'));
        at = plain_number(bytes, at + 1 + sign)?;
        if bytes.get(at) != Some(&b'}') {
            return None;
        }
        at += 1;
    }
    Some(at)
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
            ("boxed{4}", None),
            ("\\boxed", None),
            ("\\", None),
            ("", None),
        ] {
            assert_eq!(boxed(text), inside, "{text}");
        }
    }

    #[test]
    fn statements_begin() {
        for (text, rest) in [
            (r"2+2=4, so \boxed{4}.", Some(r"\boxed{4}.")),
            (r"\boxed{1} and \fbox{\frac{1}{2}} #### 3", Some(r"\fbox{\frac{1}{2}} #### 3")),
            ("x\n#### 12", Some("#### 12")),
            ("é: the Answer: 5. No, the answer is 6", Some("answer is 6")),
            ("it is 7", None),
            (r"\boxed{4", None),
            ("", None),
        ] {
            assert_eq!(begins(text).map(|at| &text[at..]), rest, "{text}");
        }
    }

    #[test]
    fn stated_answers() {
        for (text, answer) in [
            ("x\n#### 1,234\nmore 5", Some("1,234")),
            ("#### 1\n#### 2", Some("2")),
            ("####", None),
            ("The answer is 42.", Some("42")),
            ("The answer is 3.5. Then 7 more.", Some("3.5")),
            ("The Answer: **17**", Some("17")),
            ("answer is 1. No, the answer is 2!", Some("2")),
            ("the answer is x = 5", Some(" 5")),
            ("the answer is 12 + 30 = 42.", Some(" 42")),
            ("The final answer is: yes.", Some("yes")),
            ("the answer is about 12 apples or so", Some("12")),
            ("answer is", None),
            ("first 10, then 20", Some("20")),
            ("7-2", Some("2")),
            ("it is -2", Some("-2")),
            ("costs $1,234.50.", Some("1,234.50")),
            ("1,2,3", Some("3")),
            ("1,2345", Some("2345")),
            (r"half is \frac{1}{2}", Some(r"\frac{1}{2}")),
            (r"half is \frac{1}{x}", Some("1")),
            ("about 3/4", Some("3/4")),
            (".5", Some(".5")),
            ("none", None),
            ("", None),
            ("−5 ½", Some("5")),
        ] {
            assert_eq!(stated(text), answer, "{text}");
        }
    }

    #[test]
    fn hostile_lengths_are_linear() {
        let start = std::time::Instant::now();
        for piece in
            ["\\boxed{", "{", "1,", "-", "####", "answer is ", "\\frac{1", "1/", "..", "\\boxed   "]
        {
            let text = piece.repeat(100_000);
            let _ = (boxed(&text), stated(&text), known(&text));
        }
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}
