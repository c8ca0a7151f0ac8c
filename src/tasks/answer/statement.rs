//! The answer that a text without a box states.
//!
//! A statement is given in several readings, from the whole sentence to the one number in it, and equals the known answer if one of
//! them does. A sentence with several numbers, or one that says "not" or "at least", has no number as its reading.

use super::run;
use crate::tasks::equality;

/// Most bytes before the word "answer" in a heading.
const HEADING: usize = 32;

/// What a text without a box may state as its answer.
pub fn stated(text: &str) -> Vec<&str> {
    if let Some(at) = text.rfind("####") {
        return after_hashes(text[at + 4..].trim_start_matches('#'));
    }
    unmarked(text)
}

/// What a text states without `####`.
fn unmarked(text: &str) -> Vec<&str> {
    if let Some((_, end)) = the_word_answer(text) {
        return after_the_word(&text[end..]);
    }
    let mut readings = Vec::new();
    let mut lines = text.lines().rev().map(clean).filter(|line| !line.is_empty());
    if let Some(last) = lines.next() {
        // Several options in a row are the question again.
        if !(is_option(last) && lines.next().is_some_and(is_option)) {
            readings.push(last);
        }
    }
    readings.extend(run::last(text).filter(|run| !run.depends).map(|run| run.text));
    readings
}

/// What stands after the last `####`: an answer, a sentence with one, or a heading over one.
fn after_hashes(text: &str) -> Vec<&str> {
    let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
    if let Some((_, end)) = the_word_answer(text).filter(|(at, _)| *at < line.len()) {
        return after_the_word(&text[end..]);
    }
    let line = clean(line);
    if line.is_empty() || is_heading(line) {
        return unmarked(rest);
    }
    let mut readings = readings(line);
    // Words may be the answer or a heading: what is called the answer below is one too.
    if run::last(line).is_none()
        && let Some((_, end)) = the_word_answer(rest)
    {
        readings.extend(after_the_word(&rest[end..]));
    }
    readings
}

/// True for the heading of a part of a solution: `Step 1: count`, `Solution`, `2. Divide`.
fn is_heading(line: &str) -> bool {
    const WORDS: [&str; 23] = [
        "step",
        "part",
        "case",
        "solution",
        "conclusion",
        "result",
        "results",
        "summary",
        "explanation",
        "reasoning",
        "calculation",
        "calculations",
        "verification",
        "check",
        "final",
        "analysis",
        "method",
        "given",
        "problem",
        "question",
        "note",
        "approach",
        "total",
    ];
    let first = line.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    let numbered = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let words_after = |rest: &str| rest.trim_start().starts_with(char::is_alphabetic);
    let is_numbered = numbered.len() < line.len()
        && (numbered.strip_prefix(". ").is_some_and(words_after)
            || numbered.strip_prefix(") ").is_some_and(words_after));
    // `Result: 36` and `Result = 36` are answers.
    let known = WORDS.iter().any(|word| first.eq_ignore_ascii_case(word));
    let part = ["step", "part", "case", "problem", "question"]
        .iter()
        .any(|word| first.eq_ignore_ascii_case(word));
    let says_more = line[first.len()..].contains(|c: char| c.is_ascii_digit() || c == '\\');
    line.ends_with(':') || is_numbered || (known && (part || !says_more))
}

/// The last "answer is" or one of its like: where it begins and where what it announces begins.
pub(super) fn the_word_answer(text: &str) -> Option<(usize, usize)> {
    let lower = text.to_ascii_lowercase();
    let after = |at: usize, word: &str| announces(&lower, at, at + word.len()).map(|end| (at, end));
    lower.rmatch_indices("answer").find_map(|(at, word)| after(at, word)).or_else(|| {
        ["option is", "choice is"]
            .iter()
            .filter_map(|words| lower.rfind(words).map(|at| (at, at + words.len())))
            .max()
    })
}

/// Where what the word announces begins, if it announces something.
fn announces(lower: &str, at: usize, end: usize) -> Option<usize> {
    let rest = &lower[end..];
    let trimmed = rest.strip_prefix('s').unwrap_or(rest).trim_start_matches(['*', '_']);
    let blanks = trimmed.bytes().take_while(|byte| *byte == b' ').count();
    let verb = &trimmed[blanks..];
    let begins = lower.len() - verb.len();
    if verb.starts_with([':', '=']) {
        return Some(begins + 1);
    }
    let verbs = ["is", "are", "equals", "would be", "will be", "should be", "must be", "comes to"];
    let is_word = |words: &&&str| {
        verb.strip_prefix(**words).is_some_and(|after| !after.starts_with(char::is_alphanumeric))
    };
    if let Some(words) = verbs.iter().find(is_word).filter(|_| blanks > 0) {
        return Some(begins + words.len());
    }
    // "the answer to the question is".
    if verb.starts_with("to ") || verb.starts_with("for ") {
        let near =
            verb.char_indices().take(120).map(|(at, c)| at + c.len_utf8()).last().unwrap_or(0);
        let sentence = &verb[..near];
        let sentence = &sentence[..sentence.find(['\n', '.', '?']).unwrap_or(sentence.len())];
        return sentence.find(" is ").map(|found| begins + found + 4);
    }
    // A heading: nothing else stands in its line.
    if !verb.starts_with(['\n', '\r']) {
        return None;
    }
    let near = (at.saturating_sub(HEADING)..=at).find(|from| lower.is_char_boundary(*from))?;
    let line = lower[near..at].rsplit('\n').next().unwrap_or_default();
    let before = line.trim_matches(|c: char| c.is_whitespace() || "#*_".contains(c));
    matches!(before, "" | "final" | "the" | "the final" | "my").then_some(begins)
}

/// What the words "answer is" announce.
fn after_the_word(text: &str) -> Vec<&str> {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || ":*_=`\"".contains(c));
    for (open, close) in [("$$", "$$"), ("\\[", "\\]")] {
        if let Some((inside, _)) =
            text.strip_prefix(open).and_then(|inside| inside.split_once(close))
        {
            return readings(inside.trim());
        }
    }
    let end = end_of_sentence(text);
    let sentence = clean(&text[..end]);
    let found = readings(sentence);
    // A sentence that only leads to the answer: "Answer: let us count. ... So 7."
    if run::last(sentence).is_none() && sentence.split_whitespace().count() > 5 {
        return unmarked(&text[end..]);
    }
    found
}

/// The readings of a sentence: all of it, its first clause, the one number or formula in that.
fn readings(sentence: &str) -> Vec<&str> {
    if sentence.is_empty() {
        return Vec::new();
    }
    let clause = clean(first_clause(without_a_conjunction(sentence)));
    let mut readings = vec![sentence];
    if clause != sentence && !clause.is_empty() {
        readings.push(clause);
    }
    if equality::is_value(clause) {
        return readings;
    }
    let mut runs = run::runs(clause).take(2);
    if let (Some(only), None) = (runs.next(), runs.next())
        && !only.depends
        && !hedges(clause)
    {
        readings.push(only.text);
    }
    readings
}

/// True for a sentence that does not say of a number that it is the answer.
fn hedges(clause: &str) -> bool {
    let words = [
        "not",
        "than",
        "least",
        "most",
        "between",
        "neither",
        "nor",
        "never",
        "wrong",
        "incorrect",
        "unless",
        "except",
        "instead",
    ];
    let lower = clause.to_ascii_lowercase();
    let mut all = lower
        .split(|c: char| !c.is_alphanumeric() && c != '\'')
        .filter(|word| !word.is_empty())
        .peekable();
    while let Some(word) = all.next() {
        let or = word == "or" && all.peek().is_some_and(|next| *next != "so");
        if or || words.contains(&word) || word.ends_with("n't") {
            return true;
        }
    }
    false
}

/// Without "therefore" and its like.
fn without_a_conjunction(sentence: &str) -> &str {
    let words = [
        "therefore",
        "thus",
        "hence",
        "so",
        "finally",
        "altogether",
        "overall",
        "in total",
        "in all",
    ];
    let begins = |word: &&&str| {
        sentence.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word))
    };
    let rest = words.iter().find(begins).map_or(sentence, |word| &sentence[word.len()..]);
    if rest.starts_with([',', ' ']) { rest.trim_start_matches([',', ' ']) } else { sentence }
}

/// Up to what only comments on it: `77, in all, so that is enough`, `C because ...`.
fn first_clause(sentence: &str) -> &str {
    let comma = sentence.match_indices(", ").find(|(at, comma)| {
        let word: String = sentence[at + comma.len()..]
            .chars()
            .take_while(|c| c.is_alphabetic())
            .take(12)
            .collect();
        word.len() > 1 && !matches!(word.as_str(), "and" | "or" | "pi" | "sqrt")
    });
    let words = [" because ", " since ", " as ", " so ", " which ", "; ", " — ", " – "];
    let remark = sentence.match_indices(" (").find(|(at, bracket)| {
        let inside = &sentence[at + bracket.len()..];
        inside.chars().take(2).filter(|c| c.is_alphabetic()).count() == 2
    });
    let marks = comma.into_iter().chain(remark).map(|(at, _)| at);
    let ends = words.iter().filter_map(|word| sentence.find(word)).chain(marks);
    &sentence[..ends.min().unwrap_or(sentence.len())]
}

/// Without blanks, emphasis, code and quotation marks around it, a list's mark, and the words "option" and "choice" before it.
fn clean(text: &str) -> &str {
    let outer = |c: char| c.is_whitespace() || "*_`\"“”#>".contains(c);
    let mut text = text.trim_matches(outer);
    for mark in ["- ", "• ", "option ", "choice ", "Option ", "Choice "] {
        text = text.strip_prefix(mark).unwrap_or(text);
    }
    let quoted = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    text = quoted.unwrap_or(text);
    // `**36**.` has its full stop outside.
    let inner = text.trim_end_matches(['.', ' ']);
    if inner.ends_with("**") { inner.trim_matches(outer) } else { text.trim_matches(outer) }
}

/// True for a line such as `D) 27`.
fn is_option(line: &str) -> bool {
    let mut chars = line.trim_start_matches('(').chars();
    chars.next().is_some_and(|c| c.is_ascii_uppercase())
        && matches!(chars.next(), Some(')' | '.' | ':'))
}

/// Up to a line end, or a full stop, `!` or `?` after which the sentence does not go on.
fn end_of_sentence(text: &str) -> usize {
    let bytes = text.as_bytes();
    let ends = |at: usize| match bytes[at] {
        b'\n' => true,
        b'.' => is_blank(bytes.get(at + 1)) && !is_abbreviation(&bytes[..at]),
        b'?' => is_blank(bytes.get(at + 1)),
        b'!' => {
            let next = bytes[at + 1..].iter().find(|byte| **byte != b' ');
            is_blank(bytes.get(at + 1))
                && !next
                    .is_some_and(|byte| b"=+-*/".contains(byte) && bytes.get(at + 1) == Some(&b' '))
        }
        _ => false,
    };
    (0..bytes.len()).find(|at| ends(*at)).unwrap_or(bytes.len())
}

fn is_blank(byte: Option<&u8>) -> bool {
    byte.is_none_or(|byte| byte.is_ascii_whitespace() || matches!(byte, b'*' | b'"'))
}

fn is_abbreviation(before: &[u8]) -> bool {
    ["rs", "approx", "a.m", "p.m", "st", "mt"].iter().any(|word| {
        let Some(start) = before.len().checked_sub(word.len()) else { return false };
        let apart = start == 0 || !before[start - 1].is_ascii_alphanumeric();
        before[start..].eq_ignore_ascii_case(word.as_bytes()) && apart
    })
}
