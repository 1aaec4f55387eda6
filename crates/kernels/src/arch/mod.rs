//! Code that depends on the machine: vector lanes and the thread pool. The only place with unsafe code.

pub mod compiled;
pub mod lanes;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod product;
pub(crate) mod scheduler;
pub mod threads;
pub(crate) mod tiles;
pub mod wide;
