//! The steps of a text: where each begins and ends, what is markup, and where the final answer stands.
//!
//! A response is reasoning and an answer. What stands between `<think>` and `</think>` is reasoning and the rest is the answer;
//! in a text without these tags the answer begins at `<answer>`, else where a final answer is stated ([`answer::begins`]).
//! Steps are looked for in the reasoning alone. Everything is in bytes of the text, so that a verdict about a step becomes
//! spans of tokens ([`Extent::tokens`](super::judgement::Extent::tokens)).
//!
//! Source: FaithRL, arXiv 2602.03507 (numbered lines inside `<think>`); tags and paragraphs are ours.

use super::answer;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How steps are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Segmentation {
    /// `<step>…</step>`. A step that is not closed ends where the next begins, or with the reasoning.
    Tags,
    /// Lines that begin with a number and a full stop or a bracket: `1. …`, `2) …`. A step ends where the next begins.
    Numbered,
    /// Parts between blank lines.
    Paragraphs,
}

/// A step, in bytes of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What opens it: its number or its tag; empty for a paragraph.
    pub opening: Range<usize>,
    /// Its words, up to where the next thing begins.
    pub body: Range<usize>,
}

/// A text cut into its parts, in bytes of the text. No two of them overlap; what is in none of them belongs to no step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segmented {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Tags that open no step: `<think>`, `</think>`, `</step>`.
    pub markup: Vec<Range<usize>>,
    /// The answer, up to the end of the text.
    pub answer: Option<Range<usize>>,
}

/// Cuts a text. Takes time linear in it, and never panics.
pub fn segment(text: &str, how: Segmentation) -> Segmented {
    let mut parts = Segmented::default();
    let reasoning = reasoning(text, how, &mut parts);
    match how {
        Segmentation::Tags => tagged(text, reasoning, &mut parts),
        Segmentation::Numbered => numbered(text, reasoning, &mut parts),
        Segmentation::Paragraphs => paragraphs(text, reasoning, &mut parts),
    }
    parts.steps.retain(|step| !text[step.body.clone()].trim().is_empty());
    parts
}

/// Finds the answer, and what stands before it.
fn reasoning(text: &str, how: Segmentation, parts: &mut Segmented) -> Range<usize> {
    let (open, close) = (text.find("<think>"), text.find("</think>"));
    let start = match open.filter(|open| close.is_none_or(|close| *open < close)) {
        Some(open) => {
            parts.markup.push(open..open + "<think>".len());
            open + "<think>".len()
        }
        None => 0,
    };
    let (end, answer) = if let Some(close) = close {
        let after = close + "</think>".len();
        parts.markup.push(close..after);
        (close, Some(after))
    } else if start > 0 {
        (text.len(), None)
    } else if let Some(at) = text.find("<answer>") {
        (at, Some(at))
    } else {
        let at = match how {
            // The words of the last step may state the answer too: then they are still the step's.
            Segmentation::Tags => text
                .rfind("</step>")
                .map(|at| at + "</step>".len())
                .filter(|at| !text[*at..].contains("<step>")),
            Segmentation::Numbered | Segmentation::Paragraphs => answer::begins(text),
        };
        (at.unwrap_or(text.len()), at)
    };
    let answer = answer.map(|at| at..text.len());
    parts.answer = answer.filter(|range| !text[range.clone()].trim().is_empty());
    start..end
}

fn tagged(text: &str, reasoning: Range<usize>, parts: &mut Segmented) {
    const OPEN: &str = "<step>";
    const CLOSE: &str = "</step>";
    let find = |tag: &str, from: usize| {
        text[from..reasoning.end].find(tag).map(|at| from + at..from + at + tag.len())
    };
    let mut next = find(OPEN, reasoning.start);
    while let Some(opening) = next {
        next = find(OPEN, opening.end);
        let limit = next.as_ref().map_or(reasoning.end, |next| next.start);
        let close = text[opening.end..limit].find(CLOSE).map(|at| opening.end + at);
        parts.markup.extend(close.map(|at| at..at + CLOSE.len()));
        let body = opening.end..close.unwrap_or(limit);
        parts.steps.push(Step { opening, body });
    }
}

fn numbered(text: &str, reasoning: Range<usize>, parts: &mut Segmented) {
    let mut openings: Vec<Range<usize>> = Vec::new();
    let mut line_start = reasoning.start;
    for line in text[reasoning.clone()].split_inclusive('\n') {
        let blank = line.len() - line.trim_start().len();
        let digits = line[blank..].bytes().take_while(u8::is_ascii_digit).count();
        let mut after = line[blank + digits..].chars();
        let marked =
            matches!(after.next(), Some('.' | ')')) && after.next().is_none_or(char::is_whitespace);
        // A longer number is a year or an amount.
        if marked && (1..=3).contains(&digits) {
            openings.push(line_start + blank..line_start + blank + digits + 1);
        }
        line_start += line.len();
    }
    let ends = openings.iter().skip(1).map(|next| next.start).chain([reasoning.end]);
    let step = |(opening, end): (&Range<usize>, usize)| Step {
        opening: opening.clone(),
        body: opening.end..end,
    };
    parts.steps.extend(openings.iter().zip(ends).map(step));
}

fn paragraphs(text: &str, reasoning: Range<usize>, parts: &mut Segmented) {
    let mut starts: Vec<usize> = Vec::new();
    let mut after_blank = true;
    let mut line_start = reasoning.start;
    for line in text[reasoning.clone()].split_inclusive('\n') {
        let blank = line.trim().is_empty();
        if !blank && after_blank {
            starts.push(line_start);
        }
        after_blank = blank;
        line_start += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([reasoning.end]);
    let step = |(start, end): (&usize, usize)| Step { opening: *start..*start, body: *start..end };
    parts.steps.extend(starts.iter().zip(ends).map(step));
}

#[cfg(test)]
mod tests {
    use super::*;
    use Segmentation::{Numbered, Paragraphs, Tags};
    use proptest::prelude::*;

    /// Openings and bodies of the steps, and the answer, as text.
    fn cut(text: &str, how: Segmentation) -> (Vec<(&str, &str)>, Option<&str>) {
        let parts = segment(text, how);
        let steps = parts.steps.iter().map(|s| (&text[s.opening.clone()], &text[s.body.clone()]));
        (steps.collect(), parts.answer.map(|range| &text[range]))
    }

    #[test]
    fn numbered_lines() {
        let text = "<think>So:\n1. a is b\n  more\n 2) b is c\n3.5 is no step\n1984. nor is this\n</think>\nc";
        let steps = vec![
            ("1.", " a is b\n  more\n "),
            ("2)", " b is c\n3.5 is no step\n1984. nor is this\n"),
        ];
        assert_eq!(cut(text, Numbered), (steps, Some("\nc")));
        assert_eq!(
            cut("1. 2+2=4\n2. so \\boxed{4}.", Numbered),
            (vec![("1.", " 2+2=4\n"), ("2.", " so ")], Some("\\boxed{4}."))
        );
        assert_eq!(cut("1.\n2. b", Numbered), (vec![("2.", " b")], None), "an empty step is none");
        assert_eq!(cut("1. a", Numbered), (vec![("1.", " a")], None));
        assert_eq!(cut("no numbers", Numbered), (vec![], None));
        // The prompt opened the reasoning.
        assert_eq!(cut("1. a</think>b", Numbered), (vec![("1.", " a")], Some("b")));
        assert_eq!(cut("<think>1. a \\boxed{3}", Numbered), (vec![("1.", " a \\boxed{3}")], None));
        assert_eq!(
            cut("1. a\n<answer>3</answer>", Numbered),
            (vec![("1.", " a\n")], Some("<answer>3</answer>"))
        );
        assert_eq!(cut("1. a</think> ", Numbered), (vec![("1.", " a")], None));
    }

    #[test]
    fn tags() {
        let text = "x <step>one</step> y <step>two <step>the answer is 3</step>\n 3";
        let parts = segment(text, Tags);
        let steps = vec![("<step>", "one"), ("<step>", "two "), ("<step>", "the answer is 3")];
        assert_eq!(cut(text, Tags), (steps, Some("\n 3")));
        assert!(parts.markup.iter().all(|range| &text[range.clone()] == "</step>"));
        assert_eq!(parts.markup.len(), 2);
        assert_eq!(cut("<step>open", Tags), (vec![("<step>", "open")], None));
        let cut_off = vec![("<step>", "a"), ("<step>", "b")];
        assert_eq!(cut("<step>a</step> <step>b", Tags), (cut_off, None));
        assert_eq!(cut("<step></step><step> </step>", Tags), (vec![], None));
        let thought = "<think><step>a</step></think> so 4";
        assert_eq!(cut(thought, Tags), (vec![("<step>", "a")], Some(" so 4")));
        assert_eq!(segment(thought, Tags).markup.len(), 3);
    }

    #[test]
    fn blank_lines() {
        let text = "\n\nfirst\nstill\n \nsecond\n\n#### 4";
        let steps = vec![("", "first\nstill\n \n"), ("", "second\n\n")];
        assert_eq!(cut(text, Paragraphs), (steps, Some("#### 4")));
        assert_eq!(cut(" \n\t\n", Paragraphs), (vec![], None));
        assert_eq!(cut("one", Paragraphs), (vec![("", "one")], None));
        assert_eq!(cut("a\r\n\r\nb", Paragraphs), (vec![("", "a\r\n\r\n"), ("", "b")], None));
    }

    proptest! {
        #[test]
        fn parts_are_in_order_and_share_nothing(
            pieces in proptest::collection::vec(proptest::sample::select(&[
                "<think>", "</think>", "<step>", "</step>", "<answer>", "1.", "12) ", "2. ", "\n", "\n\n", " ", "é",
                "\\boxed{", "}", "#### ", "answer is ", "words", "\u{2029}", "\u{a0}",
            ][..]), 0..30),
            how in proptest::sample::select(&[Tags, Numbered, Paragraphs][..]),
        ) {
            let text = pieces.concat();
            let parts = segment(&text, how);
            let mut all: Vec<Range<usize>> = parts.markup.clone();
            all.extend(parts.steps.iter().flat_map(|step| [step.opening.clone(), step.body.clone()]));
            all.extend(parts.answer.clone());
            all.retain(|range| !range.is_empty());
            all.sort_by_key(|range| range.start);
            prop_assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start), "{:?} {:?}", text, parts);
            prop_assert!(all.iter().all(|range| text.get(range.clone()).is_some()));
            prop_assert!(parts.steps.windows(2).all(|pair| pair[0].body.end <= pair[1].opening.start));
        }
    }
}
