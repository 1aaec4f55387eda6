//! `ondine serve`: an OpenAI-compatible interface to the models on this device.
//!
//! A request walks through [`http`](self) (who may ask, how much, how long), an endpoint of `openai/` or `ollama/` (what is
//! asked), `ask.rs` (prompt, constraint, place), and [`engine`], which computes many of them together. Its answer walks back as
//! events, which `ask.rs` turns into text and tool calls and the endpoint into its interface's form.
#![forbid(unsafe_code)]

mod app;
mod ask;
mod checked;
mod cloud;
pub mod engine;
mod error;
mod http;
mod models;
mod ollama;
mod openai;
mod page;
mod placement;
mod receipt;
mod redact;
mod tools;

pub use app::{App, ServerOptions};
pub use cloud::{CloudError, Hybrid, HybridOptions};
pub use error::ApiError;
pub use http::Server;
pub use models::{Loader, Models, Offer};
pub use placement::{Decision, OnDevice, Place, Placed, Placement, Question};
pub use receipt::{Receipt, Timings};
