//! A GGUF file: metadata, tensor table, the description of the model, the vocabulary.

use crate::Target;
use ondine_fixtures::{ARCHITECTURES, Tiny};
use ondine_runtime::Limits;
use ondine_runtime::gguf::{HeaderWriter, ModelFile, Value};
use ondine_runtime::model::model_spec;
use ondine_runtime::source::{ByteSource, Memory};
use ondine_runtime::tokenizer::{EncodeOptions, Tokenizer};
use std::io;
use std::sync::Arc;

pub(super) const TARGET: Target = Target {
    name: "gguf",
    run,
    words: &[
        "GGUF",
        "general.architecture",
        "general.alignment",
        "split.count",
        "llama",
        "gemma3",
        "lfm2",
        "olmoe",
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type",
        "gpt2",
        "blk.0.attn_q.weight",
        "token_embd.weight",
    ],
    seeds,
};

fn run(bytes: &[u8]) {
    let limits = Limits::default();
    let mapped = ModelFile::from_source(Arc::new(Memory::new("fuzz", bytes)), &limits);
    let streamed = ModelFile::from_source(Arc::new(Streamed(bytes.to_vec())), &limits);
    assert_eq!(
        mapped.is_ok(),
        streamed.is_ok(),
        "the way to the bytes decides whether they are right"
    );
    let Ok(file) = mapped else { return };
    read_metadata(&file);
    read_tensors(&file, bytes.len() as u64);
    // Both may refuse; a model that describes itself is never larger than its file lets it be.
    let _ = model_spec(&file, &limits);
    if let Ok(tokenizer) = Tokenizer::from_gguf(&file.metadata, &limits) {
        let options = EncodeOptions::default();
        let ids = tokenizer.encode("Hello, wörld! \u{1f980} 123\n\n  <s>", options);
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_len()));
        tokenizer.decode(&ids, true);
    }
}

fn read_metadata(file: &ModelFile) {
    for (key, value) in file.metadata.iter() {
        if let Value::Array(array) = value {
            let read = array.integers().map(Iterator::count);
            let read = read.or_else(|| array.floats().map(Iterator::count));
            let read = read.or_else(|| array.strings().map(Iterator::count));
            assert!(read.is_none_or(|count| count == array.len()), "{key}");
        }
        let _ = file.metadata.unsigned(key);
        let _ = file.metadata.float(key);
        let _ = file.metadata.string(key);
        let _ = file.metadata.boolean(key);
    }
}

/// A checked tensor lies inside its file, so reading its ends must work.
fn read_tensors(file: &ModelFile, length: u64) {
    for tensor in file.tensors() {
        let end = tensor.offset.checked_add(tensor.bytes);
        assert!(end.is_some_and(|end| end <= length), "{}", tensor.name);
        let (_, _) = (tensor.columns(), tensor.rows());
        let mut byte = [0u8; 1];
        if tensor.bytes > 0 {
            let source = file.source(tensor);
            source.read_at(tensor.offset, &mut byte).expect("inside");
            let last = tensor.offset + tensor.bytes - 1;
            source.read_at(last, &mut byte).expect("inside");
        }
    }
}

/// Bytes that are never in the address space as a whole.
struct Streamed(Vec<u8>);

impl ByteSource for Streamed {
    fn name(&self) -> &str {
        "fuzz"
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(out.len());
        let range = end.and_then(|end| self.0.get(start..end));
        out.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let small = |architecture| Tiny {
        embedding: 16,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        feed_forward: 16,
        layers: 1,
        experts: 2,
        used_experts: 1,
        ..Tiny::new(architecture, 1)
    };
    let mut seeds: Vec<Vec<u8>> = ARCHITECTURES
        .into_iter()
        .map(|name| small(name).gguf())
        .collect();
    let mut every_type = HeaderWriter::new();
    every_type
        .u32("number", 1)
        .f32("float", 1.5)
        .boolean("boolean", true)
        .string("text", "text")
        .i32_array("numbers", &[1, -2, 3])
        .f32_array("floats", &[0.5, -0.5])
        .boolean_array("booleans", &[true, false])
        .string_array("texts", &["a", "", "c"])
        .tensor("a", &[32, 2], 2, 36);
    let mut bytes = every_type.finish();
    bytes.resize(bytes.len() + 64, 0);
    seeds.push(bytes);
    seeds.push(vocabulary("gpt2"));
    seeds.push(vocabulary("llama"));
    seeds
}

/// A file that holds a vocabulary and no tensor.
fn vocabulary(model: &str) -> Vec<u8> {
    let mut header = HeaderWriter::new();
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(
        [
            "H", "e", "l", "o", "he", "ll", "hell", "\u{0120}", "\u{2581}",
        ]
        .map(String::from),
    );
    let types: Vec<i32> = (0..tokens.len() as i32)
        .map(|index| match index {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        })
        .collect();
    let scores: Vec<f32> = (0..tokens.len()).map(|index| -(index as f32)).collect();
    header
        .string("general.architecture", "llama")
        .string("tokenizer.ggml.model", model)
        .string("tokenizer.ggml.pre", "gpt-2")
        .string_array("tokenizer.ggml.tokens", &tokens)
        .i32_array("tokenizer.ggml.token_type", &types)
        .f32_array("tokenizer.ggml.scores", &scores)
        .string_array("tokenizer.ggml.merges", &["h e", "l l", "he ll"])
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    header.finish()
}
