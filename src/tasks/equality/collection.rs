//! Several values in one answer: `(6, -1)`, `[2, 9)`, `\{3,8\}`, `4 and 6`, `x=3 or x=-3`, `2 \pm \sqrt{3}`, unions, matrices.

use super::token::{Spaced, Token};

/// Most items of a collection.
const MOST: usize = 64;
/// Most items that are compared in any order.
const MOST_UNORDERED: usize = 12;

/// The values, and what holds them together.
#[derive(Debug)]
pub(super) struct Collection {
    kind: Kind,
    pub(super) items: Vec<Vec<Spaced>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// A tuple or an interval, with its brackets.
    Ordered(char, char),
    /// Without brackets, in the order in which they stand.
    Bare,
    /// A set, or values of which any is meant.
    Unordered,
    Union,
    /// The name of the environment, and the length of every row.
    Matrix(String, Vec<usize>),
}

impl Collection {
    /// True when both hold the same items.
    pub(super) fn equals(
        &self,
        other: &Collection,
        mut alike: impl FnMut(&[Spaced], &[Spaced]) -> bool,
    ) -> bool {
        if self.items.len() != other.items.len() {
            return false;
        }
        let in_order = match (&self.kind, &other.kind) {
            (Kind::Unordered, Kind::Unordered | Kind::Bare) | (Kind::Bare, Kind::Unordered) => {
                false
            }
            (Kind::Union, Kind::Union) => false,
            (a, b) if a == b => true,
            _ => return false,
        };
        if in_order {
            return self.items.iter().zip(&other.items).all(|(a, b)| alike(a, b));
        }
        if self.items.len() > MOST_UNORDERED {
            return false;
        }
        let mut left: Vec<_> = other.items.iter().collect();
        self.items.iter().all(|item| match left.iter().position(|other| alike(item, other)) {
            Some(at) => {
                left.swap_remove(at);
                true
            }
            None => false,
        })
    }
}

/// The collection that an answer is, if it is one: at least two items, or an empty set.
pub(super) fn collection(tokens: &[Spaced]) -> Option<Collection> {
    if let Some(matrix) = matrix(tokens) {
        return Some(matrix);
    }
    if let Some(parts) = split(tokens, |spaced| spaced.is('∪')) {
        return Some(Collection {
            kind: Kind::Union,
            items: parts.into_iter().map(<[_]>::to_vec).collect(),
        });
    }
    let (kind, inside) = match brackets(tokens) {
        Some((open, close)) => {
            let kind = if open == '{' { Kind::Unordered } else { Kind::Ordered(open, close) };
            (kind, &tokens[1..tokens.len() - 1])
        }
        None => (Kind::Bare, tokens),
    };
    let (mut kind, inside) = (kind, inside);
    if kind == Kind::Bare && inside.iter().any(|spaced| spaced.is_word("or")) {
        kind = Kind::Unordered;
    }
    let joins = |spaced: &Spaced| {
        spaced.is(',')
            || spaced.is(';')
            || spaced.is_word("and")
            || spaced.is_word("or")
            || spaced.is('&')
    };
    let parts = split(inside, joins).unwrap_or_else(|| vec![inside]);
    let mut items = Vec::new();
    for part in parts {
        match plus_and_minus(part) {
            Some(both) => {
                items.extend(both);
                if kind == Kind::Bare {
                    kind = Kind::Unordered;
                }
            }
            None => items.push(part.to_vec()),
        }
    }
    ((2..=MOST).contains(&items.len())).then_some(Collection { kind, items })
}

/// The brackets around the whole.
fn brackets(tokens: &[Spaced]) -> Option<(char, char)> {
    let open = match tokens.first()?.token {
        Token::Symbol(open @ ('(' | '[' | '{' | '⟨')) => open,
        Token::Open => '{',
        _ => return None,
    };
    let close = match tokens.last()?.token {
        Token::Symbol(close @ (')' | ']' | '}' | '⟩')) => close,
        Token::Close => '}',
        _ => return None,
    };
    let mut depth = 0i32;
    for (at, spaced) in tokens.iter().enumerate() {
        depth += step(spaced);
        if depth == 0 {
            return (at + 1 == tokens.len()).then_some((open, close));
        }
    }
    None
}

/// How a token changes the depth of brackets.
fn step(spaced: &Spaced) -> i32 {
    match &spaced.token {
        Token::Symbol('(' | '[' | '{' | '⟨') | Token::Open => 1,
        Token::Symbol(')' | ']' | '}' | '⟩') | Token::Close => -1,
        Token::Command(name) if name.starts_with("begin ") => 1,
        Token::Command(name) if name.starts_with("end ") => -1,
        _ => 0,
    }
}

/// The parts between the tokens outside of brackets that separate; `None` where none does, or a part is empty.
pub(super) fn split(
    tokens: &[Spaced],
    mut separates: impl FnMut(&Spaced) -> bool,
) -> Option<Vec<&[Spaced]>> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (at, spaced) in tokens.iter().enumerate() {
        depth += step(spaced);
        if depth < 0 {
            return None;
        }
        if depth == 0 && separates(spaced) {
            let part = &tokens[start..at];
            start = at + 1;
            // `4, and 6` has a comma and a word.
            let second = part.is_empty() && at > 0 && tokens[at - 1].is(',') && !spaced.is(',');
            if !second {
                parts.push(part);
            }
            if parts.len() > MOST {
                return None;
            }
        }
    }
    parts.push(&tokens[start..]);
    (parts.len() > 1 && depth == 0 && parts.iter().all(|part| !part.is_empty())).then_some(parts)
}

/// Both values of an answer with one `±`.
fn plus_and_minus(tokens: &[Spaced]) -> Option<[Vec<Spaced>; 2]> {
    let at = tokens.iter().position(|spaced| spaced.is('±'))?;
    let twice = tokens[at + 1..].iter().any(|spaced| spaced.is('±') || spaced.is('∓'));
    (!twice && at + 1 < tokens.len()).then(|| {
        ['+', '-'].map(|sign| {
            let mut value = tokens.to_vec();
            value[at].token = Token::Symbol(sign);
            value
        })
    })
}

/// A matrix or a column: rows between `\\`, entries between `&`.
fn matrix(tokens: &[Spaced]) -> Option<Collection> {
    let [
        Spaced { token: Token::Command(begin), .. },
        inside @ ..,
        Spaced { token: Token::Command(end), .. },
    ] = tokens
    else {
        return None;
    };
    let name = begin.strip_prefix("begin ")?;
    if end.strip_prefix("end ")? != name || !name.ends_with("matrix") {
        return None;
    }
    let is_row_end =
        |spaced: &Spaced| matches!(&spaced.token, Token::Command(name) if name == "\\");
    let inside = match inside.split_last() {
        Some((last, before)) if is_row_end(last) => before,
        _ => inside,
    };
    let (mut items, mut lengths) = (Vec::new(), Vec::new());
    for row in split(inside, is_row_end).unwrap_or_else(|| vec![inside]) {
        let entries = split(row, |spaced| spaced.is('&')).unwrap_or_else(|| vec![row]);
        lengths.push(entries.len());
        items.extend(entries.into_iter().map(<[_]>::to_vec));
    }
    // Square and round brackets around a matrix mean the same.
    let name = if name == "bmatrix" { "pmatrix" } else { name };
    (items.len() <= MOST && items.iter().all(|item| !item.is_empty()))
        .then(|| Collection { kind: Kind::Matrix(name.to_owned(), lengths), items })
}
