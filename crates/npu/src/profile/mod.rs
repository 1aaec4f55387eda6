//! What a device is: precisions, peaks, memories and costs, read from TOML and checked once.
