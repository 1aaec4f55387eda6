//! libFuzzer's entry to the target `prefix_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ondine_fuzz::run("prefix_file", bytes));
