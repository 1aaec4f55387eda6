//! Where a request runs.
//!
//! The server asks a [`Placement`] before it computes anything. [`OnDevice`] keeps everything here; a router over policy and
//! connections takes its place without any change in the endpoints.

use std::time::Duration;

use ondine_runtime::chat_template::Message;
use serde::Serialize;

/// What a decision may be made by.
#[derive(Debug)]
#[non_exhaustive]
pub struct Question<'a> {
    /// The conversation; empty for plain completions.
    pub messages: &'a [Message],
    /// Length of the prompt, in tokens of the device's model.
    pub prompt_tokens: usize,
    /// Time for the whole answer.
    pub deadline: Option<Duration>,
    /// Whether the model may call tools.
    pub needs_tools: bool,
    /// Requests that wait here.
    pub waiting: usize,
}

/// Where a request runs, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Where.
    pub place: Place,
    /// Why, in a few words for people.
    pub reason: String,
}

/// A place where requests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Place {
    /// The model that is loaded here.
    Device,
}

/// Decides where requests run.
pub trait Placement: Send + Sync {
    /// Decides. Nothing is sent and nothing is generated.
    fn place(&self, question: &Question<'_>) -> Decision;
}

/// Everything runs here.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnDevice;

impl Placement for OnDevice {
    fn place(&self, _: &Question<'_>) -> Decision {
        Decision {
            place: Place::Device,
            reason: "no other place is configured".into(),
        }
    }
}
