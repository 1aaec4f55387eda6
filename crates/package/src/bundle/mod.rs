//! The bundle: a directory with a model, what belongs to it, and a manifest that lists every file with its size and hashes.

mod manifest;
mod pack;

pub use manifest::{FileEntry, Manifest, ManifestError, Parent, Role, RuntimeVersion};
pub use pack::{Input, PackError, check, pack};

/// File name of the manifest inside a bundle.
pub const MANIFEST_NAME: &str = "manifest.json";
