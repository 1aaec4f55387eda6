//! What a long work tells its caller; the caller decides whether a bar, a log line or nothing comes of it.

use std::time::Duration;

/// The stretch of work that byte counts belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Bytes come over the network.
    Download,
    /// Bytes are taken out of a package or copied from another place on this machine.
    Unpack,
    /// A file is read again to check its hash.
    Verify,
}

/// One thing that happened.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A source is being tried.
    Trying {
        /// The source, as the registry writes it.
        source: &'a str,
    },
    /// A phase starts.
    Started {
        /// Which.
        phase: Phase,
        /// Bytes in all, if known.
        total: Option<u64>,
        /// Bytes that were already here.
        done: u64,
    },
    /// A phase went on.
    Advanced {
        /// Bytes done so far, counted from the start of the file.
        done: u64,
    },
    /// The same source will be asked again.
    Retrying {
        /// What went wrong.
        reason: &'a str,
        /// The pause before the next try.
        after: Duration,
    },
    /// A source failed; the next one is tried.
    SourceFailed {
        /// The source.
        source: &'a str,
        /// What went wrong.
        reason: &'a str,
    },
    /// Another process is downloading the same model.
    Waiting,
    /// Something the user should read: licence terms, trust on first use.
    Note(&'a str),
    /// The work ended; a bar can go.
    Finished,
}

/// Receives events, and is asked whether to go on.
pub trait Progress: Send + Sync {
    /// Called on the thread that does the work; should return quickly.
    fn event(&self, event: Event<'_>);

    /// Asked at least every 100 ms while bytes move; answering true ends the work with [`crate::HubError::Cancelled`].
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Says nothing and never cancels.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}
