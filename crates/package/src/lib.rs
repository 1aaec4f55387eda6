//! The shipped artifact: what a model is between the machine that made it and the device that runs it.
//!
//! ```text
//! files → bundle (manifest) → signature → sealed → delta against the version before → store on the device
//! ```
//!
//! | module | one line |
//! |---|---|
//! | [`digest`] | SHA-256 and BLAKE3 of a file, on all cores |
//! | [`path`] | a relative path that is safe to join to any directory |
//! | [`bundle`] | the manifest (canonical JSON) and the directory it describes |
//! | [`signature`] | OpenSSF Model Signing: sign and verify a directory |
//! | [`seal`] | encryption at rest, read at any offset |
//! | [`delta`] | from one version to the next |
//! | [`release`] | a signed index of releases: publish them, and bring a device to the right one |
//! | [`store`] | versions on a device, and the switch between them |
//!
//! Nothing here knows machine learning: a model is files with names and sizes. Every size that comes from outside is
//! bounded by [`Limits`] before memory is taken for it.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod delta;
pub mod digest;
mod limits;
pub mod path;
pub mod release;
pub mod seal;
pub mod signature;
pub mod source;
pub mod store;
mod text;

pub use limits::Limits;
pub use source::ByteSource;
