//! Where in a text the final answer stands.
//!
//! What a model thinks is no answer: only what follows the last `</think>` counts ([`region`]), and of that what `<answer>` tags
//! enclose, where there are such. There the answer is, in this order: in the last closed `\boxed{…}` ([`boxed`]), after the last
//! `####`, after the last "answer is …", the last line, the last number or formula ([`stated`]). Every scan is
//! linear in the text, whatever it holds.

mod boxed;
mod piece;
mod run;
mod statement;

pub use boxed::{Boxed, boxed};
pub use statement::stated;

/// What counts of a completion: what follows the last `</think>`, inside of the last `<answer>` where there is one. `None` where
/// the thinking did not end.
pub fn region(text: &str) -> Option<&str> {
    let start = text.rfind("</think>").map_or(0, |at| at + "</think>".len());
    let after = &text[start..];
    if after.contains("<think>") {
        return None;
    }
    let Some((_, inside)) = after.rsplit_once("<answer>") else { return Some(after) };
    Some(inside.split_once("</answer>").map_or(inside, |(inside, _)| inside))
}

/// Where the statement of the final answer begins: at the last closed box, else at the last `####`, else at the last "answer
/// is". `None` for a text that only ends with a number.
pub fn begins(text: &str) -> Option<usize> {
    if let Some(found) = boxed(text) {
        return Some(found.start);
    }
    text.rfind("####").or_else(|| statement::the_word_answer(text).map(|(at, _)| at))
}

/// The answer in a reference solution: what stands in a box or after `####`, else all of it.
pub fn known(reference: &str) -> &str {
    if let Some(found) = boxed(reference) {
        return found.inside;
    }
    match reference.rfind("####") {
        Some(at) => reference[at + 4..].trim(),
        None => reference.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_is_no_answer() {
        for (text, counts) in [
            ("<think>5</think>6", Some("6")),
            ("<think>5</think>6<think>7</think> 8", Some(" 8")),
            ("5</think>6", Some("6")),
            ("<think>5", None),
            ("<think>5</think>6 <think>7", None),
            ("a <answer>5</answer> b", Some("5")),
            ("<answer>4</answer> no <answer>5</answer>", Some("5")),
            ("<answer>5", Some("5")),
            ("<think><answer>5</answer></think>6", Some("6")),
            ("6", Some("6")),
            ("", Some("")),
        ] {
            assert_eq!(region(text), counts, "{text}");
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
    fn known_answers() {
        for (reference, answer) in [
            (r"Adding, $2+5=\boxed 7$ in all.", "7"),
            ("She has 9+9 = 18.\n#### 18", "18"),
            (r"so \boxed{\frac12}.", r"\frac12"),
            (" 7 ", "7"),
            ("", ""),
        ] {
            assert_eq!(known(reference), answer, "{reference}");
        }
    }

    #[test]
    fn hostile_lengths_are_linear() {
        let start = std::time::Instant::now();
        for piece in [
            "\\boxed{",
            "{",
            "1,",
            "-",
            "####",
            "answer is ",
            "\\frac{1",
            "1/",
            "..",
            "\\boxed   ",
            "$a ",
            "$",
            "$$",
            "\\(",
            "<answer>",
            "answer to ",
            "answer",
            "#### answer\n",
            "\\boxed 7",
            "1 ",
            "(",
            "a. ",
            "*",
            "1e",
            "</think>",
            "\n",
            "not ",
            "1 or ",
            "é",
        ] {
            let text = piece.repeat(1_000_000 / piece.len());
            let _ = (boxed(&text), stated(&text), known(&text), region(&text), begins(&text));
        }
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }
}
