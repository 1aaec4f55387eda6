//! Quantised block formats, packed layouts, float operations, attention over a paged key-value cache, and the thread
//! pool that runs them.
//!
//! Every kernel exists as portable scalar code and as vector code. [`Isa`] says which one runs; it is chosen once,
//! at run time. Unsafe code lives in `arch` only.

mod activations;
pub mod arch;
mod attention;
mod error;
mod formats;
mod isa;
mod machine_limits;
mod matmul;
pub mod ops;
mod packed;
mod schedule;
mod screen;
mod tensor_type;
#[cfg(test)]
mod test_blocks;
#[cfg(test)]
mod tests;

pub use activations::Activations;
pub use arch::compiled::{Work, compiled_for};
pub use arch::memory::{Bytes as AlignedBytes, release_spare as release_spare_memory};
pub use arch::threads::ThreadPool;
pub use attention::{
    ATTENTION_ERROR, ATTENTION_ERROR_F32, AttentionJob, AttentionParams, KvError, KvPage, KvShape,
    KvType, PAGE_TOKENS, attention,
};
pub use error::KernelError;
pub use formats::{BlockCodes, IQ4_CODES, MXFP4_CODES, dequantize, quantize};
pub use isa::{Isa, IsaError};
pub use machine_limits::MachineLimits;
pub use matmul::{
    Context, Epilogue, MatmulJob, matmul, matmul_gated, matmul_gated_quantized, matmul_group,
};
pub use packed::{PackedForm, PackedMatrix, PackedMatrixBuilder, SharedBytes};
pub use screen::{Best, Found, Screen};
pub use tensor_type::TensorType;
