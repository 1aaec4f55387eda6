//! Real vocabularies against expected ids (`tests/data/tokenizers`: 80 texts per model, without special
//! tokens, ids from llama.cpp b11434). The models are found by the environment variable
//! `ONDINE_TEST_MODELS`; without it there is nothing to compare with.

use std::path::Path;

use ondine_runtime::Limits;
use ondine_runtime::tokenizer::{EncodeOptions, Tokenizer};
use serde_json::Value;

#[test]
fn smollm2_ids_are_the_reference_ids() {
    compare(
        "smollm2-135m-instruct.gguf",
        include_str!("data/tokenizers/smollm2.jsonl"),
        true,
    );
}

#[test]
fn gemma3_ids_are_the_reference_ids() {
    compare(
        "gemma-3-270m.gguf",
        include_str!("data/tokenizers/gemma3.jsonl"),
        false,
    );
}

/// `lossless`: decoding gives every text back.
fn compare(model: &str, lines: &str, lossless: bool) {
    let directory = std::env::var_os("ONDINE_TEST_MODELS");
    let path = directory.map(|directory| Path::new(&directory).join(model));
    let Some(path) = path.filter(|path| path.is_file()) else {
        println!("skipped: ONDINE_TEST_MODELS names no directory with {model}");
        return;
    };
    let tokenizer = Tokenizer::open(&path, &Limits::default()).unwrap();
    let mut texts = 0;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = line["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(line["ids"].clone()).unwrap();
        let ids = tokenizer.encode(text, EncodeOptions::default());
        assert_eq!(ids, expected, "{text:?}");
        let mut stream = tokenizer.stream_decoder(true);
        let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        streamed.push_str(&stream.finish());
        assert_eq!(
            streamed.trim_start(),
            tokenizer.decode(&ids, true).trim_start()
        );
        if lossless {
            assert_eq!(streamed, text);
        }
        texts += 1;
    }
    assert_eq!(texts, 80);
}
