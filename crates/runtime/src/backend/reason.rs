//! Why a backend cannot be used, or could not go on.

use std::time::Duration;

use thiserror::Error;

/// Why a backend cannot be used, or could not go on: one sentence for people, [`Unavailable::kind`] for
/// programs. Whatever has such a reason can be done by another backend.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// There is no such device, instruction set or runtime library.
    #[error("{0}")]
    NotPresent(String),
    /// The driver or the runtime library is older than what is needed.
    #[error("{0}")]
    DriverTooOld(String),
    /// The model needs something that the device does not do.
    #[error("{0}")]
    Unsupported(String),
    /// It needs more memory than there is.
    #[error("{0}")]
    OutOfMemory(String),
    /// The conversation is longer than the compiled graph allows.
    #[error("{wanted} tokens do not fit into the device's context of {limit}")]
    ContextTooLong {
        /// Tokens the conversation would hold.
        wanted: usize,
        /// Tokens the device can hold.
        limit: usize,
    },
    /// The device's compiler refused the model.
    #[error("{0}")]
    CompileFailed(String),
    /// What was compiled before and kept on disk is damaged.
    #[error("{0}")]
    CacheDamaged(String),
    /// The device went away or its driver failed while it computed.
    #[error("{0}")]
    DeviceLost(String),
    /// A step took longer than its deadline.
    #[error("{what} took longer than {} ms", limit.as_millis())]
    Timeout {
        /// What was waited for.
        what: String,
        /// The deadline.
        limit: Duration,
    },
    /// The device computed what cannot be: scores that are not numbers.
    #[error("{0}")]
    BadResult(String),
}

impl Unavailable {
    /// The reason's name, for reports and programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Unavailable::NotPresent(_) => "NotPresent",
            Unavailable::DriverTooOld(_) => "DriverTooOld",
            Unavailable::Unsupported(_) => "UnsupportedOp",
            Unavailable::OutOfMemory(_) => "OutOfMemory",
            Unavailable::ContextTooLong { .. } => "ContextTooLong",
            Unavailable::CompileFailed(_) => "CompileFailed",
            Unavailable::CacheDamaged(_) => "CacheDamaged",
            Unavailable::DeviceLost(_) => "DeviceLost",
            Unavailable::Timeout { .. } => "Timeout",
            Unavailable::BadResult(_) => "BadResult",
        }
    }
}
