//! An answer as plain text, for what has no value: words, and whatever is written the same on both sides.

use super::token::{Spaced, Token};

/// The tokens in a row: no blanks but between words and between numbers, no case in words, no braces around a single token.
pub(super) fn plain(tokens: &[Spaced]) -> String {
    let mut out = String::new();
    let mut last_kind = 0;
    // For every open group: whether its braces were left out.
    let mut left_out = Vec::new();
    for (at, spaced) in tokens.iter().enumerate() {
        let kind = match spaced.token {
            Token::Number(_) => 1,
            Token::Word { .. } | Token::Letter(_) | Token::Command(_) => 2,
            _ => 0,
        };
        let apart =
            matches!(spaced.token, Token::Word { .. }) || !matches!(spaced.token, Token::Letter(_));
        if kind != 0 && kind == last_kind && apart {
            out.push(' ');
        }
        last_kind = kind;
        match &spaced.token {
            Token::Number(written) => out.push_str(written),
            Token::Letter(letter) => out.push(*letter),
            Token::Word { letters, .. } if letters.chars().count() == 1 => out.push_str(letters),
            Token::Word { letters, .. } => out.push_str(&letters.to_lowercase()),
            Token::Command(name) => {
                out.push('\\');
                out.push_str(name);
            }
            Token::Symbol(symbol) => out.push(*symbol),
            Token::Open => {
                let single = tokens.get(at + 2).is_some_and(|spaced| spaced.token == Token::Close);
                left_out.push(single);
                if !single {
                    out.push('\u{2}');
                }
            }
            Token::Close => {
                if left_out.pop() != Some(true) {
                    out.push('\u{3}');
                }
            }
            Token::Thin | Token::Joint => {}
        }
    }
    out
}
