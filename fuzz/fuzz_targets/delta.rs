//! libFuzzer's entry to the target `delta`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ondine_fuzz::run("delta", bytes));
