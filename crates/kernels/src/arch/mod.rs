//! Code that depends on the machine: vector lanes and the thread pool. The only place with unsafe code.

pub mod lanes;
pub mod threads;
pub mod wide;
