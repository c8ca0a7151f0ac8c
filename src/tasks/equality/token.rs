//! What a short answer is made of.

/// A token, and whether blanks stand before it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spaced {
    pub(super) token: Token,
    pub(super) blank: bool,
}

/// What an answer is made of.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Digits, perhaps with a point and an exponent: `12`, `.5`, `2e-5`.
    Number(String),
    /// A letter that stands alone.
    Letter(char),
    /// Letters in a row; `upright` where LaTeX sets them as text, so that they are no product of variables.
    Word {
        letters: String,
        upright: bool,
    },
    /// A LaTeX command that means something here or that is not known, without its backslash.
    Command(String),
    /// An operator, a bracket, a sign. The braces of a set are `{` and `}`.
    Symbol(char),
    /// The braces of a LaTeX group.
    Open,
    Close,
    /// A blank that LaTeX makes thin, as between groups of digits. None is left when the tokens are complete.
    Thin,
    /// The command that removes a blank. None is left when the tokens are complete.
    Joint,
}

impl Spaced {
    pub(super) fn is(&self, symbol: char) -> bool {
        self.token == Token::Symbol(symbol)
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(&self.token, Token::Word { letters, .. } if letters.eq_ignore_ascii_case(word))
    }
}
