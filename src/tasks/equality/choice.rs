//! The letter of a choice, alone or before what it stands for: `C`, `(C)`, `C.`, `(C) 14 metres`, `C: fourteen metres`.

use super::token::{Spaced, Token};

/// A letter, and what it stands for where that is said.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    /// A capital.
    pub(super) letter: char,
    pub(super) content: &'a [Spaced],
}

/// The choice that an answer is, if it is one and no other is named in it.
pub(super) fn choice(tokens: &[Spaced]) -> Option<Choice<'_>> {
    let (letter, content) = match tokens {
        [open, letter, close, content @ ..] if open.is('(') && close.is(')') => {
            (label(letter)?, content)
        }
        [letter, mark, content @ ..] if mark.is(')') || mark.is('.') || mark.is(':') => {
            (label(letter)?, content)
        }
        [letter] => (label(letter)?, &[][..]),
        _ => return None,
    };
    let bare = content.is_empty();
    if !bare && !letter.is_ascii_uppercase() {
        return None;
    }
    if let Some((first, rest)) = content.split_first() {
        let apart = first.blank || matches!(first.token, Token::Number(_) | Token::Command(_));
        let begins = match first.token {
            Token::Number(_)
            | Token::Letter(_)
            | Token::Word { .. }
            | Token::Command(_)
            | Token::Open => true,
            Token::Symbol(symbol) => match symbol {
                '-' => rest.first().is_some_and(|next| !next.blank),
                _ => "($€£[{".contains(symbol),
            },
            _ => false,
        };
        if !apart || !begins || names_another(content) {
            return None;
        }
    }
    Some(Choice { letter: letter.to_ascii_uppercase(), content })
}

fn label(spaced: &Spaced) -> Option<char> {
    let letter = match &spaced.token {
        Token::Letter(letter) => *letter,
        Token::Word { letters, .. } if letters.len() == 1 => letters.chars().next()?,
        _ => return None,
    };
    matches!(letter, 'A'..='J' | 'a'..='j').then_some(letter)
}

/// True where a second choice is named, or the content is no content: `(C) or (D)`, `A) 3 B) 5`, `(C) is wrong`.
fn names_another(content: &[Spaced]) -> bool {
    // `(C) or (D)`, and a sentence about the choice: `(C) is wrong`.
    let joins = ["or", "and", "not", "nor", "but", "is", "are", "was", "cannot", "can", "isn"];
    let marked = content.windows(2).any(|pair| {
        label(&pair[0]).is_some_and(|letter| letter.is_ascii_uppercase())
            && (pair[1].is(')') || pair[1].is('.') || pair[1].is(':'))
    });
    marked
        || joins.iter().any(|word| content.iter().any(|spaced| spaced.is_word(word)))
        || (content.len() == 1 && label(&content[0]).is_some())
}
