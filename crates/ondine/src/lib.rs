//! Small language models on this device.
//!
//! ```no_run
//! use ondine::{Engine, GenerateOptions};
//! use std::io::Write;
//!
//! fn main() -> Result<(), ondine::Error> {
//!     let engine = Engine::open("smollm2-135m-instruct")?; // a name, a .gguf file or a directory
//!     let mut chat = engine.chat()?;
//!     for piece in chat.send("Why is the sky blue?", GenerateOptions::default())? {
//!         print!("{}", piece?.text);
//!         let _ = std::io::stdout().flush();
//!     }
//!     Ok(())
//! }
//! ```
//!
//! [`Engine`] and [`Chat`] are the short way. Below them is everything that they are made of, re-exported
//! from `ondine-runtime`: [`Model`] (a checked file), [`Session`] (tokens and their keys and values),
//! [`Session::generate`] (an iterator over pieces of text), and [`backend`], the seam at which
//! processors and accelerators are exchanged.
#![forbid(unsafe_code)]

mod chat;
mod engine;
mod error;

pub use chat::{Answer, Chat};
pub use engine::Engine;
pub use error::Error;
pub use ondine_hub as hub;
pub use ondine_runtime::*;
