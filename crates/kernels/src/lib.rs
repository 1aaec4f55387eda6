//! Quantised block formats, packed layouts, float operations, attention over a paged key-value cache, and the thread
//! pool that runs them.
//!
//! Every kernel exists as portable scalar code and as vector code. [`Isa`] says which one runs; it is chosen once,
//! at run time. Unsafe code lives in `arch` only.

pub mod arch;
mod attention;
mod isa;
pub mod ops;
mod tensor_type;

pub use arch::threads::ThreadPool;
pub use attention::{
    ATTENTION_ERROR, ATTENTION_ERROR_F32, AttentionContext, AttentionJob, AttentionParams, KvError,
    KvPage, KvShape, KvType, PAGE_TOKENS, attention,
};
pub use isa::{Isa, IsaError};
pub use tensor_type::TensorType;
