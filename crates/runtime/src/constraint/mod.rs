//! Output that conforms to a JSON schema, a regular expression or a grammar.
//!
//! A grammar engine follows the text token by token and says which tokens may come next; sampling is masked with
//! that. The end of the answer is among them only where the text is complete, so an answer that ends by itself is
//! always valid. JSON schemas are rewritten in the keywords that the engine knows (`schema/`). Where the text may not become
//! longer, it is steered to a short valid end (`shortest.rs`); recursive schemas are unrolled to a bounded depth
//! (`recursion.rs`), so that there always is one.
//!
//! Without the feature `constraint` the types are the same, but no constraint can be made.

#[cfg(feature = "constraint")]
mod engine;
#[cfg(feature = "constraint")]
mod formats;
mod recursion;
#[cfg(feature = "constraint")]
mod schema;
#[cfg(feature = "constraint")]
mod shortest;
#[cfg(not(feature = "constraint"))]
mod without;

#[cfg(feature = "constraint")]
pub use engine::{Constraint, ConstraintFactory};
#[cfg(not(feature = "constraint"))]
pub use without::{Constraint, ConstraintFactory};

pub use recursion::bound_recursion;
#[cfg(feature = "constraint")]
pub use schema::self_contained;

/// What a text must conform to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConstraintSpec {
    /// JSON that conforms to this JSON schema, given as text.
    JsonSchema(String),
    /// As far as a grammar can enforce it, JSON that conforms to this JSON schema. What [`Constraint::left_out`] names is left to
    /// the caller, who judges the whole text and asks again where it does not conform.
    LooseJsonSchema(String),
    /// Any JSON value.
    AnyJson,
    /// Text that this regular expression (syntax of Rust's `regex`) matches from its beginning to its end.
    Regex(String),
    /// Text of this grammar, in llguidance's variant of Lark's syntax; the rule `start` is the whole text.
    Lark(String),
}

/// An instance of a JSON schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// It, as JSON.
    pub text: String,
    /// What is like it: the same properties, items and choices, with other texts and numbers.
    pub shape: ConstraintSpec,
}

/// Why text cannot be constrained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The model's vocabulary does not allow it.
    #[error("this model's output cannot be constrained: {what}; use another model")]
    Vocabulary {
        /// What is missing.
        what: String,
    },
    /// The schema, expression or grammar is not valid, or not supported.
    #[error("the {kind} cannot be used: {what}; correct it")]
    Invalid {
        /// What was given: "JSON schema", "regular expression" or "grammar".
        kind: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// Following the text became too expensive, or a token did not fit.
    #[error("the constraint cannot be followed further: {what}; simplify it")]
    Failed {
        /// What went wrong.
        what: String,
    },
    /// This build has no constraints.
    #[error("constrained output is not part of this build; build with the feature \"constraint\"")]
    NotBuilt,
}
