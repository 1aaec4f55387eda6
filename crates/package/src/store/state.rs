//! Which version is current.

use super::Installed;
use crate::digest::Digest;
use serde::{Deserialize, Serialize};

/// How many failed versions are remembered.
const MOST_FAILED: usize = 64;

/// What `state.json` holds. It is replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub name: Option<String>,
    pub current: Option<Digest>,
    pub previous: Option<Digest>,
    /// Whether the current version has proved itself.
    pub healthy: bool,
    /// Whether the current version has been started since it was installed.
    pub started: bool,
    pub highest_version: u64,
    /// Identity of the highest version: the only one of that number that may be installed again.
    #[serde(default)]
    pub newest: Option<Digest>,
    /// Versions that failed here, newest last.
    pub failed: Vec<Digest>,
}

impl State {
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The new version runs next; what ran so far is what a rollback returns to, if it has proved itself.
    pub fn switch_to(&mut self, installed: &Installed) {
        if self.healthy || self.previous.is_none() {
            self.previous = self.current;
        }
        self.name = Some(installed.manifest.name.clone());
        self.current = Some(installed.identity);
        self.healthy = false;
        self.started = false;
        self.highest_version = installed.manifest.version;
        self.newest = Some(installed.identity);
    }

    /// The version before comes back because the files of the current one are damaged, which is not the version's fault: it may
    /// be installed again.
    pub fn fall_back(&mut self) {
        self.current = self.previous.take();
        self.healthy = true;
        self.started = true;
    }

    /// The version before comes back, and the current one is not offered again.
    pub fn give_up(&mut self) {
        self.failed.extend(self.current);
        self.failed
            .drain(..self.failed.len().saturating_sub(MOST_FAILED));
        self.current = self.previous.take();
        self.healthy = true;
        self.started = true;
    }
}
