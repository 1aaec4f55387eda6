//! From prompt to text: model files, tokenizer, chat template, KV cache, decoding loop, sampling,
//! constrained output and the backends that compute.
#![deny(unsafe_code)]

pub mod backend;
pub mod chat_template;
pub mod constraint;
pub mod gguf;
mod kv_cache;
mod limits;
pub mod model;
pub mod sample;
pub mod source;
pub mod tokenizer;

pub use limits::Limits;
