//! What a recogniser is: the shapes of one kind of personal data, the arithmetic that proves it and the words that point to it.

use super::Entity;

/// One kind of data: its shapes, its check and its context words.
pub(crate) struct Recognizer {
    pub(crate) entity: Entity,
    pub(crate) patterns: &'static [Pattern],
    pub(crate) check: fn(&str, Strictness) -> Validity,
    /// Lower-case words that raise the confidence when they stand near.
    pub(crate) context: &'static [&'static str],
}

/// One shape and how telling it is on its own.
pub(crate) struct Pattern {
    /// A regular expression of bounded length over normalised text, case-insensitive.
    pub(crate) expression: &'static str,
    /// How sure the shape alone makes, 0 to 1.
    pub(crate) score: f32,
    /// What must not stand right before.
    pub(crate) before: Edge,
    /// What must not stand right after.
    pub(crate) after: Edge,
}

/// What may meet at the edge of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    /// Any neighbour will do: the number is telling enough inside a longer word.
    Open,
    /// A word begins or ends here: exactly one of the two characters is a letter, digit or underscore.
    Word,
    /// The neighbour is no letter, digit, underscore or hyphen.
    Hyphen,
    /// The neighbour is no decimal digit.
    Digit,
    /// The neighbour is no ASCII letter or digit.
    Ascii,
}

impl Edge {
    /// True if `neighbour` may stand beside a match whose character on that side is `own`.
    pub(crate) fn allows(self, own: Option<char>, neighbour: Option<char>) -> bool {
        match self {
            Self::Open => true,
            Self::Word => own.is_some_and(is_word) != neighbour.is_some_and(is_word),
            Self::Hyphen => !neighbour.is_some_and(|c| is_word(c) || c == '-'),
            Self::Digit => !neighbour.is_some_and(|c| c.is_ascii_digit()),
            Self::Ascii => !neighbour.is_some_and(|c| c.is_ascii_alphanumeric()),
        }
    }
}

/// A letter, digit or underscore of any script.
pub(crate) fn is_word(c: char) -> bool {
    if c.is_ascii() {
        c.is_ascii_alphanumeric() || c == '_'
    } else {
        c.is_alphanumeric()
    }
}

/// What the check says about a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// The check digits agree: score 1.
    Valid,
    /// There is nothing to check, or a failed check does not exclude: the score of the shape.
    Unknown,
    /// It cannot be one.
    Invalid,
}

impl From<bool> for Validity {
    fn from(valid: bool) -> Self {
        if valid { Self::Valid } else { Self::Invalid }
    }
}

impl Validity {
    /// Unknown instead of valid: the check can only exclude.
    pub(crate) fn excluding(possible: bool) -> Self {
        if possible {
            Self::Unknown
        } else {
            Self::Invalid
        }
    }

    /// Unknown instead of invalid: the check can only confirm.
    pub(crate) fn confirming(confirmed: bool) -> Self {
        if confirmed {
            Self::Valid
        } else {
            Self::Unknown
        }
    }
}

/// What a failed check means for numbers that were once issued without one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strictness {
    /// Keep what only looks right.
    #[default]
    Lenient,
    /// Drop whatever fails its check.
    Strict,
}

/// A pattern that begins and ends at a word's edge.
pub(crate) const fn word(expression: &'static str, score: f32) -> Pattern {
    between(expression, score, Edge::Word, Edge::Word)
}

/// A pattern that may stand anywhere, even inside a longer word.
pub(crate) const fn open(expression: &'static str, score: f32) -> Pattern {
    between(expression, score, Edge::Open, Edge::Open)
}

/// A pattern with edges of its own.
pub(crate) const fn between(
    expression: &'static str,
    score: f32,
    before: Edge,
    after: Edge,
) -> Pattern {
    Pattern {
        expression,
        score,
        before,
        after,
    }
}

/// The check of kinds that have none.
pub(crate) fn unchecked(_: &str, _: Strictness) -> Validity {
    Validity::Unknown
}
