//! Damaged and hostile model files: one sentence, no panic, no hang, no memory on the file's word.

use std::path::Path;
use std::sync::Arc;

use ondine_fixtures::{ARCHITECTURES, Random, Tiny};
use ondine_kernels::TensorType;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{LoadOptions, Run, Select, Wanted};
use ondine_runtime::chat_template::{ChatRequest, Message};
use ondine_runtime::gguf::{HeaderWriter, ModelFile};
use ondine_runtime::source::Memory;
use ondine_runtime::{Limits, Model};

/// Opens, loads and computes as far as the file allows. The error is what a user would read.
fn try_everything(bytes: Vec<u8>) -> Result<(), String> {
    let limits = Limits::default();
    let source = Arc::new(Memory::new("hostile.gguf", bytes));
    let file = ModelFile::from_source(source, &limits).map_err(|error| error.to_string())?;
    let model = Model::from_file(Path::new("hostile.gguf"), file, &limits)
        .map_err(|error| error.to_string())?;
    if let Ok(template) = model.chat_template() {
        let _ = template.render(&ChatRequest::new(vec![Message::user("Hello")]));
    }
    let options = LoadOptions {
        threads: Some(1),
        context: Some(64),
        ..LoadOptions::default()
    };
    let mut decoder = model
        .load(
            &CpuBackend::with_isa(ondine_kernels::Isa::detect()),
            &options,
        )
        .map_err(|error| error.to_string())?;
    let sequence = decoder.start();
    let run = Run {
        sequence,
        tokens: &[1, 2, 3],
        wanted: Wanted::Last,
        select: Select::All,
    };
    decoder
        .forward(&[run], &mut |_| ())
        .map_err(|error| error.to_string())
}

fn assert_one_sentence(error: &str) {
    assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
    assert!(error.chars().count() < 400, "{error}");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for architecture in ["llama", "lfm2", "qwen3moe"] {
        let whole = Tiny::new(architecture, 1).gguf();
        assert_eq!(try_everything(whole.clone()), Ok(()));
        // The last tensor's padding may be missing; everything before it may not.
        for length in (0..whole.len() - 32).step_by(whole.len() / 300) {
            let error = try_everything(whole[..length].to_vec()).expect_err("cut");
            assert_one_sentence(&error);
        }
    }
}

#[test]
fn random_damage_never_panics() {
    let mut random = Random::new(42);
    for architecture in ARCHITECTURES {
        let whole = Tiny {
            layers: 2,
            ..Tiny::new(architecture, 2)
        }
        .gguf();
        // Most damage goes to the header, where the structure is.
        let header = header_length(&whole);
        for _ in 0..150 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random.below(3) {
                let position = match random.below(10) {
                    0 => random.below(bytes.len()),
                    _ => random.below(header),
                };
                match random.below(4) {
                    0 => bytes[position] ^= 1 << random.below(8),
                    1 => bytes[position] = 0xff,
                    2 => {
                        let end = (position + 8).min(bytes.len());
                        let value = interesting(&mut random).to_le_bytes();
                        bytes[position..end].copy_from_slice(&value[..end - position]);
                    }
                    _ => bytes[position] = random.bits() as u8,
                }
            }
            if let Err(error) = try_everything(bytes) {
                assert_one_sentence(&error);
            }
        }
    }
}

fn interesting(random: &mut Random) -> u64 {
    let values = [
        0,
        1,
        2,
        31,
        33,
        255,
        1 << 31,
        (1 << 32) - 1,
        1 << 32,
        1 << 40,
        1 << 62,
        u64::MAX / 32,
        u64::MAX - 1,
        u64::MAX,
    ];
    values[random.below(values.len())]
}

fn header_length(file: &[u8]) -> usize {
    let source = Arc::new(Memory::new("whole", file.to_vec()));
    let file = ModelFile::from_source(source, &Limits::default()).expect("a whole file");
    let first = file.tensors().iter().map(|tensor| tensor.offset).min();
    first.expect("tensors") as usize
}

#[test]
fn counts_and_sizes_are_not_believed() {
    let header = |version: u32, tensors: u64, entries: u64| {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        bytes
    };
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut huge_string = header(3, 0, 1);
    huge_string.extend(u64::MAX.to_le_bytes());
    let mut huge_array = header(3, 0, 1);
    huge_array.extend(string("tokenizer.ggml.tokens"));
    huge_array.extend(9u32.to_le_bytes());
    huge_array.extend(8u32.to_le_bytes());
    huge_array.extend((1u64 << 60).to_le_bytes());
    let mut nested = header(3, 0, 1);
    nested.extend(string("nested"));
    nested.extend(9u32.to_le_bytes());
    for _ in 0..100_000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("wrong magic", b"GGML\x03\0\0\0".to_vec()),
        ("other byte order", b"GGUF\0\0\0\x03".to_vec()),
        ("version 1", header(1, 0, 0)),
        ("version 99", header(99, 0, 0)),
        ("10^9 entries", header(3, 0, 1_000_000_000)),
        ("10^18 tensors", header(3, 1_000_000_000_000_000_000, 0)),
        ("a string of 2^64 - 1 bytes", huge_string),
        ("an array of 2^60 strings", huge_array),
        ("arrays in arrays", nested),
        ("nothing in it", header(3, 0, 0)),
    ] {
        let error = try_everything(bytes).expect_err(name);
        assert_one_sentence(&error);
    }
}

#[test]
fn tensors_must_lie_in_the_file_and_fit_their_shape() {
    let tensor = |shape: &[u64], ty: u32, offset_bytes: u64| {
        let mut header = HeaderWriter::new();
        header.string("general.architecture", "llama");
        header.tensor("token_embd.weight", shape, ty, offset_bytes);
        header.finish()
    };
    for (name, bytes) in [
        ("past the end", tensor(&[64, 64], 0, 64 * 64 * 4)),
        (
            "a size that overflows",
            tensor(&[u64::MAX, u64::MAX], 0, 32),
        ),
        (
            "elements that overflow",
            tensor(&[1 << 32, 1 << 32, 1 << 32, 2], 0, 32),
        ),
        ("no elements", tensor(&[0, 64], 0, 32)),
        (
            "partial blocks",
            tensor(&[33, 2], TensorType::Q4_0 as u32, 64),
        ),
        ("unknown type", tensor(&[32, 2], 12345, 64)),
    ] {
        let error = try_everything(bytes).expect_err(name);
        assert_one_sentence(&error);
    }
}

/// Scales of NaN and infinity compute to something, or are refused; they do not crash.
#[test]
fn scales_that_are_not_numbers_do_not_crash() {
    for tensor_type in TensorType::ALL {
        let tiny = Tiny {
            embedding: 256,
            heads: 8,
            head_dim: 32,
            feed_forward: 256,
            layers: 1,
            tensor_type,
            ..Tiny::new("llama", 3)
        };
        let mut bytes = tiny.gguf();
        let start = header_length(&bytes);
        for pair in bytes[start..].chunks_exact_mut(34) {
            pair[..2].copy_from_slice(&[0xff, 0x7f]);
        }
        let _ = try_everything(bytes);
    }
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let template = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}";
    let tokens = ondine_runtime::chat_template::SpecialTokens::new("<s>", "</s>");
    let error = ondine_runtime::chat_template::ChatTemplate::from_source(template, tokens)
        .and_then(|template| template.render(&ChatRequest::new(vec![Message::user("Hello")])))
        .expect_err("it never ends");
    assert_one_sentence(&error.to_string());
}
