//! libFuzzer's entry to the target `sealed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ondine_fuzz::run("sealed", bytes));
