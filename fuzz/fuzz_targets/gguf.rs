//! libFuzzer's entry to the target `gguf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ondine_fuzz::run("gguf", bytes));
