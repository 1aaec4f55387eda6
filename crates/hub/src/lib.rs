//! The model registry and everything that brings a model file onto this machine.
//!
//! A [`Registry`] names models: checksum, size, licence and a list of [`Source`]s tried in order. A [`Hub`] joins a
//! registry with the [`Settings`] of this machine and answers one question: where is the file of this model?
//!
//! ```no_run
//! use ondine_hub::{Hub, Silent};
//! # fn main() -> Result<(), ondine_hub::HubError> {
//! let hub = Hub::from_environment()?;
//! let found = hub.resolve("smollm2-135m-instruct", &Silent)?;
//! println!("{}", found.path.display());
//! # Ok(())
//! # }
//! ```
//!
//! The walk of a download reads `pull → (huggingface | http | wheel | local) → transfer → cache`. Whatever the source, the bytes pass
//! through one writer ([`Limits`] bound it, SHA-256 runs over it) into a `.part` file, which is renamed into the cache
//! only when its hash is right.
//!
//! Without the `download` feature the crate reads the registry and the cache and opens no connection.
#![forbid(unsafe_code)]

mod cache;
mod digest;
mod error;
mod progress;
mod registry;
mod resolve;
mod settings;
mod source;

#[cfg(feature = "download")]
mod http;
#[cfg(feature = "download")]
mod huggingface;
#[cfg(feature = "download")]
mod local;
#[cfg(feature = "download")]
mod pull;
#[cfg(feature = "download")]
mod transfer;
#[cfg(feature = "download")]
mod web;
#[cfg(feature = "download")]
mod wheel;

pub use cache::{Record, Trust};
pub use digest::Sha256Digest;
pub use error::{HubError, SourceError};
pub use progress::{Event, Phase, Progress, Silent};
pub use registry::{ModelEntry, Registry};
pub use resolve::{Hub, ModelStatus, Resolved};
pub use settings::{HuggingFaceSettings, Limits, Retry, Settings, Timeouts};
pub use source::{Source, WebAddress, WheelMember};
#[cfg(feature = "download")]
pub use web::{Web, WebAnswer, WebRequest};
