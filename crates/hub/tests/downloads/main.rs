//! Downloads over a real connection: a small server on the loopback device, a pip that is a script, a cache in a temporary
//! directory.

mod disk;
mod http;
mod hugging_face;
mod machine;
mod processes;
mod server;
mod trust;
mod wheels;
