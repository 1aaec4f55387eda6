//! What can go wrong, each in one sentence: what, where, what to do.

use crate::digest::Sha256Digest;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a model could not be found or brought here.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// Neither a registered name nor a path that exists.
    #[error("no model called '{name}': {hint}")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// What to do: a likely name, or how to list them.
        hint: String,
    },
    /// A path was given and nothing is there.
    #[error("no such model file or directory: '{}'", path.display())]
    NoSuchPath {
        /// The path asked for.
        path: PathBuf,
    },
    /// A source that does not parse.
    #[error("'{spec}' is not a model source: {why}")]
    InvalidSource {
        /// The text given.
        spec: String,
        /// What is wrong with it.
        why: String,
    },
    /// A registry file that does not parse.
    #[error("registry {origin} is not usable: {why}")]
    InvalidRegistry {
        /// The file, or "built in".
        origin: String,
        /// What is wrong with it.
        why: String,
    },
    /// An environment variable with an unusable value.
    #[error("{variable} is not usable: {why}")]
    InvalidSetting {
        /// The variable's name.
        variable: &'static str,
        /// What is wrong with its value.
        why: String,
    },
    /// Not here, and the network may not be used.
    #[error("'{name}' is not on this machine and {why}")]
    NotCached {
        /// The model.
        name: String,
        /// Why it was not downloaded, and what to do.
        why: String,
    },
    /// Every source failed.
    #[error("cannot get '{name}': {}", join_failures(failures))]
    AllSourcesFailed {
        /// The model.
        name: String,
        /// Each source with its own reason, in the order tried.
        failures: Vec<(String, SourceError)>,
    },
    /// The disk cannot hold the model.
    #[error("not enough space in {}: {needed} bytes are needed and {available} are free; free some or set ONDINE_HOME to another disk", path.display())]
    NotEnoughSpace {
        /// The directory.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// Another process holds the model's lock for too long.
    #[error("another download of this model has held {} for {seconds} s; wait for it or end it", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long this process waited, in seconds.
        seconds: u64,
    },
    /// The user interrupted.
    #[error("cancelled; the same command goes on where it stopped")]
    Cancelled,
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: "read", "create", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

impl HubError {
    /// True when bytes arrived and were turned away because they are not the model that was promised.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::AllSourcesFailed { failures, .. } => failures.iter().any(|(_, error)| {
                matches!(
                    error,
                    SourceError::WrongHash { .. } | SourceError::WrongLength { .. }
                )
            }),
            _ => false,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// Why one source failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The hash of what arrived is not the one expected.
    #[error("its sha256 is {found} where {expected} is expected, so it was thrown away")]
    WrongHash {
        /// What the registry, the hub or the first download says.
        expected: Sha256Digest,
        /// What arrived.
        found: Sha256Digest,
    },
    /// The length is not the one expected.
    #[error("it is {found} bytes long where {expected} are expected")]
    WrongLength {
        /// Bytes expected.
        expected: u64,
        /// Bytes announced or received.
        found: u64,
    },
    /// Larger than the limit for any model.
    #[error("it is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The server answered with a status that is no success.
    #[error("the server answered {status}{hint}")]
    Status {
        /// HTTP status code.
        status: u16,
        /// What to do, if anything; starts with "; ".
        hint: &'static str,
        /// How long the server asks to wait.
        retry_after: Option<std::time::Duration>,
    },
    /// A redirect that may not be followed.
    #[error("redirected to where it may not go: {why}")]
    BadRedirect {
        /// What is wrong.
        why: String,
    },
    /// An answer outside the protocol.
    #[error("the server's answer makes no sense: {why}")]
    Protocol {
        /// What is wrong.
        why: String,
    },
    /// The connection failed, stalled or broke off.
    #[error("{why}")]
    Connection {
        /// What happened.
        why: String,
    },
    /// The Python package manager failed.
    #[error("{why}")]
    Wheel {
        /// What happened.
        why: String,
    },
    /// Network use is switched off.
    #[error("{why}")]
    Offline {
        /// What switched it off.
        why: &'static str,
    },
    /// A file source that is not there or cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Something that no other source can mend: disk full, cancelled.
    #[error(transparent)]
    Fatal(Box<HubError>),
}

#[cfg(feature = "download")]
impl SourceError {
    /// True if the same request may succeed in a moment.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connection { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }
}

impl From<HubError> for SourceError {
    fn from(error: HubError) -> Self {
        Self::Fatal(Box::new(error))
    }
}

fn join_failures(failures: &[(String, SourceError)]) -> String {
    if failures.is_empty() {
        return "it has no source".to_string();
    }
    let each: Vec<String> = failures
        .iter()
        .map(|(source, error)| format!("{source}: {error}"))
        .collect();
    each.join("; ")
}
