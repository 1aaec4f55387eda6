//! What an accelerator needs: which devices there are, how fast a model would run on them, and a simulator that runs
//! the same plan.
//!
//! | module | one line |
//! |---|---|
//! | [`choose`] | backends by name |
//! | [`export`] | models in the formats of vendor runtimes |
//! | [`profile`] | what a device is: a TOML file whose every number has a source |
//! | [`program`] | a model lowered to tiles: transfers, computation, the host's share, and their schedule |
//! | [`plan`] | speed, memory, energy and verdict of a model on a device |
//! | [`sim`] | a backend that executes the tiles in the device's precisions |
#![deny(unsafe_code)]

mod cache;
pub mod choose;
pub mod export;
mod library;
#[cfg(feature = "onnx")]
pub mod onnx;
#[cfg(feature = "openvino")]
pub mod openvino;
pub mod plan;
pub mod profile;
pub mod program;
pub mod sim;
