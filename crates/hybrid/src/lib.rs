//! Where a request runs: the scanner that finds personal data, the policy that says what may leave, the gate that nothing passes
//! unseen, and the router that chooses a place.
#![forbid(unsafe_code)]

pub mod cloud;
pub mod egress;
pub mod pii;
pub mod policy;
mod redact;
pub mod route;

pub use redact::{RestoreMap, Restorer};
