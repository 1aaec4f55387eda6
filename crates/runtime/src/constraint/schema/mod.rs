//! JSON schemas as people write them, and what the grammar engine takes.
//!
//! [`reduce`] rewrites what can be rewritten so that whatever conforms to the result conforms to the schema, and names what had to
//! be left out; who wants that too must judge the answers. [`Instances`] makes instances without a model, for schemas whose answers
//! keep failing.

mod compare;
mod document;
mod instance;
mod negate;
mod parts;
mod pattern;
mod reduce;

pub(super) use document::Document;
pub(super) use instance::Instances;
pub(super) use reduce::{Manner, reduce};

pub use document::self_contained;
