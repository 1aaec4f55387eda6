//! `tokenizer.json`, and text through the tokenizer that comes of it.

use crate::Target;
use crate::directory::Directory;
use ondine_runtime::Limits;
use ondine_runtime::tokenizer::{EncodeOptions, Tokenizer};

pub(super) const TARGET: Target = Target {
    name: "tokenizer_json",
    run,
    words: &[
        "\"type\":\"BPE\"",
        "\"type\":\"Sequence\"",
        "\"type\":\"ByteLevel\"",
        "\"type\":\"Split\"",
        "\"type\":\"Replace\"",
        "\"pattern\":{\"Regex\":\"",
        "\"pattern\":{\"String\":\"",
        "\"behavior\":\"Isolated\"",
        "\"pre_tokenizer\":",
        "\"normalizer\":",
        "\"decoder\":",
        "\"post_processor\":",
        "\"added_tokens\":[",
        "\"merges\":[",
        "\"vocab\":{",
        "\"byte_fallback\":true",
        "\\p{L}+",
        "(?!\\S)",
        "{1,3}",
        "\\ud800",
    ],
    seeds,
};

const TEXT: &str = "Hello, wörld! e\u{301}\u{1f980} 12345\n\n  <|end|> \u{0}\u{2581}x  日本語 ";

thread_local! {
    static DIRECTORY: Directory = Directory::new("tokenizer");
}

fn run(bytes: &[u8]) {
    DIRECTORY.with(|directory| {
        directory.put("tokenizer.json", bytes);
        match Tokenizer::from_hf_dir(directory.path(), &Limits::default()) {
            Ok(tokenizer) => {
                let ids = tokenizer.encode(TEXT, EncodeOptions::default());
                assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_len()));
                tokenizer.decode(&ids, true);
                tokenizer.decode(&[0, 1, u32::MAX], false);
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    });
}

fn seeds() -> Vec<Vec<u8>> {
    let byte_level = r#"{"version":"1.0","truncation":null,"padding":null,
"added_tokens":[{"id":7,"content":"<|end|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":{"type":"NFC"},
"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},
"post_processor":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":false,"use_regex":true},
"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":"","end_of_word_suffix":"","fuse_unk":false,"byte_fallback":false,"ignore_merges":false,
"vocab":{"H":0,"e":1,"l":2,"o":3,"He":4,"ll":5,"Hell":6},"merges":["H e","l l","He ll"]}}"#;
    let metaspace = r#"{"version":"1.0",
"added_tokens":[{"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},{"id":1,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
"pre_tokenizer":null,
"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]}}},
"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,
"vocab":{"<unk>":0,"<s>":1,"<0x00>":2,"<0x0A>":3,"▁":4,"H":5,"e":6,"l":7,"He":8},"merges":[["H","e"]]}}"#;
    vec![byte_level.into(), metaspace.into()]
}
