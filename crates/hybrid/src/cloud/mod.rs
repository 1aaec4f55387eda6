//! From a decision to a whole answer: attempts, retries, hedges and handovers, over any clock and any connection.
//!
//! [`conduct`] is the one loop that drives a request; clock and connections are a [`World`], which may be simulated. What was shown
//! stays: whoever goes on does so from there. Everything that leaves passes [`crate::egress`] with the label of the first attempt.

mod breaker;
mod conduct;
mod health;
mod overlap;

pub use breaker::Breaker;
pub use conduct::{Outcome, Output, Request, Step, StepKind, conduct};
pub use health::{Health, HealthOptions};
pub use overlap::Overlap;

use crate::egress::Cleared;
use std::time::Duration;
use thiserror::Error;

/// One running answer: a stream from a provider, or the device's model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Line(pub u64);

/// News of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// More of the answer.
    Text(String),
    /// The answer is whole.
    Done,
    /// There will be no more.
    Failed(Fault),
    /// The device's model does not trust its own answer; it goes on unless somebody takes over.
    Unsure,
}

/// Why a line failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// No connection.
    #[error("it cannot be reached")]
    Unreachable,
    /// Refused with a status of HTTP.
    #[error("it answered with status {status}")]
    Refused {
        /// The status.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Nothing came for too long.
    #[error("nothing came in time")]
    TimedOut,
    /// The stream ended before the answer did.
    #[error("the stream broke")]
    Broken,
    /// It sent what is no answer.
    #[error("what came is no answer ({0})")]
    Garbled(String),
}

impl Fault {
    /// Whether the same request can succeed if it is sent again.
    pub fn is_passing(&self) -> bool {
        match self {
            Fault::Refused { status, .. } => *status == 429 || *status == 408 || *status >= 500,
            Fault::Unreachable | Fault::TimedOut | Fault::Broken => true,
            Fault::Garbled(_) => false,
        }
    }
}

/// Clock and connections.
pub trait World {
    /// Time since some beginning; never goes back.
    fn now(&self) -> Duration;

    /// The next event of any open line, or none when it is `until`.
    fn wait(&mut self, until: Duration) -> Option<(Line, Event)>;

    /// Starts the device's model, to go on after `prefix`.
    fn start_device(&mut self, prefix: &str) -> Line;

    /// Sends a request out; its answer arrives as events.
    fn open(&mut self, request: Cleared<'_>) -> Line;

    /// Cancels a line; no event of it is wanted any more.
    fn close(&mut self, line: Line);

    /// False once nobody waits for the answer; [`World::wait`] returns early then.
    fn is_wanted(&self) -> bool {
        true
    }
}
