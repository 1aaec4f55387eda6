//! What an accelerator needs: which devices there are, how fast a model would run on them, and a simulator that runs
//! the same plan.
//!
//! | module | one line |
//! |---|---|
//! | [`profile`] | what a device is: a TOML file whose every number has a source |
#![deny(unsafe_code)]

pub mod profile;
