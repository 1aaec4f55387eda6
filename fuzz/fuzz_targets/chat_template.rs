//! libFuzzer's entry to the target `chat_template`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ondine_fuzz::run("chat_template", bytes));
