//! Whether a text says, in words, that it gives no answer.

use super::answer;

/// The phrases that count as a refusal where a user names none.
pub const PHRASES: [&str; 7] = [
    "i don't know",
    "i do not know",
    "i can't answer",
    "i cannot answer",
    "cannot be determined",
    "not enough information",
    "no answer",
];

/// True when the final answer of a text is a refusal: a phrase stands in the last box or after the last `####`, or, where a
/// text has neither, after the phrase comes no number and no other answer. Case does not matter.
pub fn refuses(text: &str, phrases: &[String]) -> bool {
    if let Some(found) = answer::boxed(text) {
        return last_phrase(&plain(found.inside), phrases).is_some();
    }
    let text = plain(text);
    if let Some(at) = text.rfind("####") {
        let line = text[at..].lines().next().unwrap_or_default();
        return last_phrase(line, phrases).is_some();
    }
    last_phrase(&text, phrases).is_some_and(|end| {
        let rest = &text[end..];
        !rest.contains(|c: char| c.is_ascii_digit()) && !rest.contains("answer is")
    })
}

/// Lower case, with the apostrophes and blanks of a keyboard.
fn plain(text: &str) -> String {
    text.to_lowercase().replace('\u{2019}', "'").replace('\u{a0}', " ")
}

/// Where the last phrase of a plain text ends.
fn last_phrase(text: &str, phrases: &[String]) -> Option<usize> {
    let end = |phrase: &String| {
        let phrase = plain(phrase);
        let at = text.rfind(phrase.as_str()).filter(|_| !phrase.is_empty())?;
        Some(at + phrase.len())
    };
    phrases.iter().filter_map(end).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn phrases() -> Vec<String> {
        PHRASES.map(str::to_owned).to_vec()
    }

    #[test]
    fn the_final_answer_decides() {
        for (text, refusal) in [
            ("I don't know.", true),
            ("So I don\u{2019}t know", true),
            ("We have 3 facts. It CANNOT BE DETERMINED from them.", true),
            ("I don't know, but I would say 42", false),
            ("I don't know. The answer is yes", false),
            ("\\boxed{I do not know}", true),
            ("I don't know. \\boxed{4}", false),
            ("\\boxed{4}, or I don't know \\boxed{I don't know}", true),
            ("#### not enough information", true),
            ("I don't know\n#### 7", false),
            ("42", false),
            ("", false),
        ] {
            assert_eq!(refuses(text, &phrases()), refusal, "{text}");
        }
        assert!(!refuses("I don't know", &[]));
        assert!(!refuses("anything", &[String::new()]), "an empty phrase is no phrase");
        assert!(refuses(
            "WEISS ICH NICHT",
            &["weiß ich nicht".to_owned(), "weiss ich nicht".to_owned()]
        ));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}", phrase in "\\PC{0,8}") {
            refuses(&text, std::slice::from_ref(&phrase));
            refuses(&format!("{text}{phrase}#### {text}"), &[phrase]);
        }
    }
}
