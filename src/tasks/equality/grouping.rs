//! Digits in groups of three are one number: `1,234,567`, `1\,234`, `1{,}234`, `1 234 567`, and `22,\! 047,\! 500` of the MATH set.

use super::token::{Spaced, Token};

/// What stands between two groups.
#[derive(Clone, Copy, PartialEq)]
enum Separator {
    Comma,
    /// A comma that LaTeX is told not to follow with a blank.
    TightComma,
    Thin,
    Blank,
}

/// The tokens with every number in one piece. Inside brackets a plain comma separates items and a blank joins nothing.
pub(super) fn joined(tokens: Vec<Spaced>) -> Vec<Spaced> {
    let (mut out, mut depth, mut at) = (Vec::with_capacity(tokens.len()), 0i32, 0);
    while at < tokens.len() {
        match tokens[at].token {
            Token::Symbol('(' | '[' | '{' | '⟨') => depth += 1,
            Token::Symbol(')' | ']' | '}' | '⟩') => depth -= 1,
            _ => {}
        }
        let after_number = matches!(out.last(), Some(Spaced { token: Token::Number(_), .. }));
        if let Some((digits, end)) = number(&tokens, at, depth > 0).filter(|_| !after_number) {
            out.push(Spaced { token: Token::Number(digits), blank: tokens[at].blank });
            at = end;
        } else {
            out.push(tokens[at].clone());
            at += 1;
        }
    }
    out
}

/// The number whose first group is at `at`, and where it ends.
fn number(tokens: &[Spaced], at: usize, in_brackets: bool) -> Option<(String, usize)> {
    let Token::Number(first) = &tokens[at].token else { return None };
    let is_first = (1..=3).contains(&first.len()) && first.bytes().all(|b| b.is_ascii_digit());
    if !is_first || first.starts_with('0') {
        return None;
    }
    let (mut digits, mut end, mut kind) = (first.clone(), at + 1, None);
    while let Some((separator, next)) = separator(tokens, end) {
        let allowed = !in_brackets || matches!(separator, Separator::TightComma | Separator::Thin);
        let Some(Spaced { token: Token::Number(group), .. }) = tokens.get(next) else { break };
        let whole = group.bytes().take_while(u8::is_ascii_digit).count();
        if !allowed || kind.is_some_and(|kind| kind != separator) || whole != 3 {
            break;
        }
        kind = Some(separator);
        digits.push_str(group);
        end = next + 1;
        if group.len() > 3 {
            break;
        }
    }
    let kind = kind?;
    if kind == Separator::Blank {
        // `3 100/7` may be a mixed number, and in `1 234 56` nothing is a group.
        let next = tokens.get(end);
        if next.is_some_and(|next| next.is('/') || matches!(next.token, Token::Number(_))) {
            return None;
        }
    }
    Some((digits, end))
}

/// The separator that begins at `at`, and where the next group should begin.
fn separator(tokens: &[Spaced], at: usize) -> Option<(Separator, usize)> {
    let next = tokens.get(at)?;
    match &next.token {
        Token::Symbol(',') if !next.blank => {
            let mut after = at + 1;
            while tokens.get(after).is_some_and(|t| matches!(t.token, Token::Joint | Token::Thin)) {
                after += 1;
            }
            if tokens[at + 1..after].iter().any(|t| t.token == Token::Joint) {
                return Some((Separator::TightComma, after));
            }
            let tight = after == at + 1 && !tokens.get(after)?.blank;
            tight.then_some((Separator::Comma, after))
        }
        Token::Open if tokens.get(at + 1)?.is(',') && tokens.get(at + 2)?.token == Token::Close => {
            Some((Separator::TightComma, at + 3))
        }
        Token::Thin | Token::Joint => {
            let count = tokens[at..]
                .iter()
                .take_while(|t| matches!(t.token, Token::Thin | Token::Joint))
                .count();
            Some((Separator::Thin, at + count))
        }
        Token::Number(_) if next.blank => Some((Separator::Blank, at)),
        _ => None,
    }
}
