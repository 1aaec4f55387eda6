//! What a verb answers when it cannot do its work, and the exit code that goes with it.

use std::io;
use thiserror::Error;

/// The reason why a verb ended early.
#[derive(Debug, Error)]
pub enum CliError {
    /// The work failed: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The arguments make no sense together: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A policy, a verification or a gate said no: exit code 3.
    #[error("{0}")]
    Refused(String),
    /// The user interrupted: exit code 130, as shells expect.
    #[error("{0}")]
    Interrupted(String),
    /// The reader of standard output went away: nobody is left to tell, and nothing is wrong.
    #[error("standard output was closed")]
    OutputClosed,
}

impl CliError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Refused(_) => 3,
            Self::Interrupted(_) => 130,
            Self::OutputClosed => 0,
        }
    }
}

impl From<ondine_hub::HubError> for CliError {
    fn from(error: ondine_hub::HubError) -> Self {
        match &error {
            ondine_hub::HubError::Cancelled => Self::Interrupted(error.to_string()),
            _ if error.is_refusal() => Self::Refused(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Errors of standard output; those of other files carry their path and are turned into `Failed` where they happen.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(format!("cannot write to standard output: {error}")),
        }
    }
}
