//! What LaTeX's commands mean in an answer.

/// What a command gives.
pub(super) enum Meaning {
    /// A size, a style: nothing.
    Nothing,
    Blank,
    /// Its argument is text.
    Upright,
    Symbol(char),
    Letter(char),
    /// Another name of this command.
    Command(&'static str),
    /// `\begin` or `\end`.
    Environment,
    Unknown,
}

pub(super) fn meaning(name: &str) -> Meaning {
    use Meaning::{Blank, Command, Environment, Letter, Nothing, Symbol, Unknown, Upright};
    match name {
        "left" | "right" | "big" | "Big" | "bigg" | "Bigg" | "bigl" | "bigr" | "Bigl" | "Bigr"
        | "displaystyle" | "textstyle" | "scriptstyle" | "limits" | "nolimits" | "mathbf"
        | "mathit" | "mathsf" | "mathtt" | "boldsymbol" | "bm" | "bf" | "rm" | "it"
        | "ensuremath" => Nothing,
        "quad" | "qquad" | "enspace" | "space" | "hspace" => Blank,
        "text" | "textbf" | "textit" | "textrm" | "textsf" | "texttt" | "textsc" | "emph"
        | "mbox" | "hbox" | "mathrm" | "operatorname" => Upright,
        "thinspace" | "medspace" => Blank,
        "cdot" | "times" | "ast" => Symbol('*'),
        "div" => Symbol('/'),
        "pm" => Symbol('±'),
        "circ" | "degree" | "textdegree" => Symbol('°'),
        "le" | "leq" | "leqslant" => Symbol('≤'),
        "ge" | "geq" | "geqslant" => Symbol('≥'),
        "lt" => Symbol('<'),
        "gt" => Symbol('>'),
        "ne" | "neq" => Symbol('≠'),
        "approx" => Symbol('≈'),
        "in" => Symbol('∈'),
        "cup" => Symbol('∪'),
        "cap" => Symbol('∩'),
        "colon" => Symbol(':'),
        "mid" | "vert" | "lvert" | "rvert" => Symbol('|'),
        "lbrace" => Symbol('{'),
        "rbrace" => Symbol('}'),
        "langle" => Symbol('⟨'),
        "rangle" => Symbol('⟩'),
        "emptyset" | "varnothing" => Symbol('∅'),
        "dots" | "ldots" | "cdots" => Symbol('…'),
        "prime" => Symbol('\''),
        "euro" => Symbol('€'),
        "pounds" | "textsterling" => Symbol('£'),
        "textdollar" => Symbol('$'),
        "infty" => Letter('∞'),
        "dfrac" | "tfrac" | "cfrac" => Command("frac"),
        "dbinom" | "tbinom" => Command("binom"),
        "begin" | "end" => Environment,
        _ => greek(name).map_or(Unknown, Letter),
    }
}

fn greek(name: &str) -> Option<char> {
    let names = [
        ("pi", 'π'),
        ("alpha", 'α'),
        ("beta", 'β'),
        ("gamma", 'γ'),
        ("delta", 'δ'),
        ("epsilon", 'ε'),
        ("varepsilon", 'ε'),
        ("zeta", 'ζ'),
        ("eta", 'η'),
        ("theta", 'θ'),
        ("iota", 'ι'),
        ("kappa", 'κ'),
        ("lambda", 'λ'),
        ("mu", 'μ'),
        ("nu", 'ν'),
        ("xi", 'ξ'),
        ("rho", 'ρ'),
        ("sigma", 'σ'),
        ("tau", 'τ'),
        ("phi", 'φ'),
        ("varphi", 'φ'),
        ("chi", 'χ'),
        ("psi", 'ψ'),
        ("omega", 'ω'),
        ("Delta", 'Δ'),
        ("Omega", 'Ω'),
        ("Sigma", 'Σ'),
        ("Phi", 'Φ'),
        ("Gamma", 'Γ'),
        ("Lambda", 'Λ'),
        ("Theta", 'Θ'),
        ("Psi", 'Ψ'),
    ];
    names.iter().find_map(|(known, letter)| (*known == name).then_some(*letter))
}

/// True for the name of a function of one argument.
pub(super) fn is_function(name: &str) -> bool {
    matches!(
        name,
        "sqrt"
            | "sin"
            | "cos"
            | "tan"
            | "cot"
            | "sec"
            | "csc"
            | "arcsin"
            | "arccos"
            | "arctan"
            | "sinh"
            | "cosh"
            | "tanh"
            | "log"
            | "ln"
            | "lg"
            | "exp"
            | "abs"
    )
}
