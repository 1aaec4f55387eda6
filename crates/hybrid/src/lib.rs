//! Hybrid.
