//! What all requests share.

use std::sync::Mutex;
use std::time::Duration;

use ondine_hybrid::pii::{ScanError, ScanOptions, Scanner};

use crate::models::Models;
use crate::placement::Placement;

/// Bounds and permissions of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The token that requests must carry as `Authorization: Bearer …`.
    pub token: Option<String>,
    /// Origins besides the server's own whose pages may use it, such as `https://example.org`.
    pub origins: Vec<String>,
    /// Bytes of a request's body at most.
    pub body_bytes: usize,
    /// Time for a request's head and for its body.
    pub read_timeout: Duration,
    /// Time for a whole answer; requests may ask for less.
    pub answer_timeout: Duration,
    /// Time that a client may take before it reads on.
    pub write_timeout: Duration,
    /// Connections at the same time at most; more wait.
    pub connections: usize,
    /// Time that running answers have to finish when the server ends.
    pub grace: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            token: None,
            origins: Vec::new(),
            body_bytes: 8 << 20,
            read_timeout: Duration::from_secs(20),
            answer_timeout: Duration::from_secs(900),
            write_timeout: Duration::from_secs(60),
            connections: 512,
            grace: Duration::from_secs(20),
        }
    }
}

/// A server's state: what every request may use.
pub struct App {
    pub(crate) models: Models,
    pub(crate) placement: Box<dyn Placement>,
    pub(crate) options: ServerOptions,
    pub(crate) scanner: Scanner,
    /// Responses by status code.
    pub(crate) responses: Mutex<std::collections::BTreeMap<u16, u64>>,
}

impl App {
    /// A server of `models`, whose requests run where `placement` says.
    ///
    /// # Errors
    /// When the scanner for personal data cannot be made.
    pub fn new(
        models: Models,
        placement: Box<dyn Placement>,
        options: ServerOptions,
    ) -> Result<Self, ScanError> {
        let scanner = Scanner::new(ScanOptions {
            min_confidence: 0.4,
            ..ScanOptions::default()
        })?;
        Ok(App {
            models,
            placement,
            options,
            scanner,
            responses: Mutex::default(),
        })
    }
}
