//! From a checkpoint to a smaller one, and what that cost: quantisation, calibration, evaluation and a gate.
//!
//! Nothing here ships to the device.
#![forbid(unsafe_code)]
#![allow(
    clippy::needless_range_loop,
    reason = "loops over lanes name the lane, which indexes several arrays"
)]

pub mod calibrate;
pub mod comparison;
mod error;
pub mod evaluate;
mod format;
pub mod gate;
mod gptq;
pub mod imatrix;
mod linear_algebra;
mod quantize;
pub mod sensitivity;

pub use error::CompressError;
pub use format::{Effort, Encoder, writable};
pub use quantize::{Method, QuantizeOptions, QuantizeReport, TensorReport, quantize};
