//! What can go wrong, in one type.

use ondine_runtime::backend::{BackendError, Unavailable};
use ondine_runtime::chat_template::TemplateError;
use ondine_runtime::{GenerateError, ModelError};
use thiserror::Error;

/// Why something failed; the message is one sentence: what, where, what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The model was not found or could not be downloaded.
    #[error(transparent)]
    Hub(#[from] ondine_hub::HubError),
    /// The model could not be opened.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// No backend can run here.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The conversation cannot be rendered.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The generation failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}
