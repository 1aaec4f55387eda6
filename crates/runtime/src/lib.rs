//! From prompt to text: model files, tokenizer, chat template, KV cache, decoding loop, sampling,
//! constrained output and the backends that compute.
#![deny(unsafe_code)]

pub mod backend;
pub mod bench;
pub mod chat_template;
pub mod constraint;
mod continuation;
pub mod fidelity;
mod generate;
pub mod gguf;
pub mod hf;
mod kv_cache;
mod limits;
pub mod model;
mod model_file;
mod packed_cache;
pub mod perplexity;
mod prefix;
pub mod sample;
mod session;
pub mod source;
pub mod speculate;
pub mod tokenizer;

pub use continuation::{Continuation, GenerateError, GenerationStats, Piece, StopReason};
pub use generate::{GenerateOptions, Generation, Speculation};
pub use limits::Limits;
pub use model_file::{Model, ModelError, open_model_file};
pub use packed_cache::{PackedCache, PackedFile};
pub use prefix::PrefixError;
pub use session::{ContextOverflow, PrefixUse, SINK_TOKENS, Session};
