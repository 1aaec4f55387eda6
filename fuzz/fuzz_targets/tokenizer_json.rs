//! libFuzzer's entry to the target `tokenizer_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ondine_fuzz::run("tokenizer_json", bytes));
