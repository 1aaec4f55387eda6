//! Where a request runs.
//!
//! The server asks a [`Placement`] before it computes anything. [`OnDevice`] keeps everything here; [`crate::Hybrid`] decides by a
//! policy.

use std::time::Duration;

use ondine_hybrid::route;
use ondine_runtime::chat_template::Message;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::cloud::Plan;
use crate::error::ApiError;

/// What a decision may be made by.
#[derive(Debug)]
#[non_exhaustive]
pub struct Question<'a> {
    /// The conversation; empty for plain completions.
    pub messages: &'a [Message],
    /// Class of the task, as policies name it.
    pub task: &'a str,
    /// Length of the prompt, in tokens of the device's model.
    pub prompt_tokens: usize,
    /// Tokens of the answer at most, if that was said.
    pub max_tokens: Option<usize>,
    /// Time for the whole answer.
    pub deadline: Option<Duration>,
    /// Whether the model may call tools.
    pub needs_tools: bool,
    /// Requests that wait here.
    pub waiting: usize,
    /// Tokens that a conversation can hold here.
    pub context: usize,
    /// Milliseconds for a token of an answer and of a prompt here, once they are measured.
    pub token_ms: Option<f32>,
    /// As above, of a prompt.
    pub prompt_token_ms: Option<f32>,
    /// Fields of a request to a provider that asks for the same; none where no provider could be asked for it.
    pub remote: Option<&'a Map<String, Value>>,
    /// What about the request keeps it here, if anything does.
    pub stays: Option<&'static str>,
}

/// Where a request runs, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// Where.
    pub place: Place,
    /// Why, in a few words for people.
    pub reason: String,
    /// How the decision was made: labels and numbers, never text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Box<route::Receipt>>,
}

/// A place where requests run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The model that is loaded here.
    Device,
    /// A provider of the policy.
    Provider(String),
}

impl Place {
    /// `device`, or the provider's name.
    pub fn name(&self) -> &str {
        match self {
            Place::Device => "device",
            Place::Provider(name) => name,
        }
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A decision, and what carries it out.
pub struct Placed {
    /// The decision.
    pub decision: Decision,
    /// How it is carried out where more than the device may take part.
    pub(crate) plan: Option<Box<Plan>>,
}

/// Decides where requests run.
pub trait Placement: Send + Sync {
    /// Decides. Nothing is sent and nothing is generated.
    ///
    /// # Errors
    /// When no place may answer.
    fn place(&self, question: &Question<'_>) -> Result<Placed, ApiError>;

    /// Adds its figures, in Prometheus' text form.
    fn figures(&self, _out: &mut String) {}
}

/// Everything runs here.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnDevice;

impl Placement for OnDevice {
    fn place(&self, _: &Question<'_>) -> Result<Placed, ApiError> {
        Ok(Placed {
            decision: Decision {
                place: Place::Device,
                reason: "no other place is configured".into(),
                route: None,
            },
            plan: None,
        })
    }
}
