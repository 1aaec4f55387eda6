//! Checkpoint directories: every architecture's equals its model file, and damage is refused in words.

mod checkpoint;
mod hostile;
mod logits;
mod options;

use checkpoint::{Checkpoint, Tensor, both, bytes_of, model_file, tiny};
use half::{bf16, f16};
use ondine_fixtures::{ARCHITECTURES, Tiny};
use ondine_kernels::TensorType;
use ondine_runtime::gguf::{ModelFile, ModelFileError};
use ondine_runtime::model::{Mixer, ModelSpec, RopeStyle, model_spec};
use ondine_runtime::tokenizer::{EncodeOptions, Tokenizer};
use ondine_runtime::{Limits, Model};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Adding one to what was stored as the difference from one costs a rounding of numbers about one.
const ROUNDING: f32 = 2.0 * f32::EPSILON;

#[test]
fn every_architecture_is_the_same_model() {
    for architecture in ARCHITECTURES {
        for tensor_type in [TensorType::F32, TensorType::F16, TensorType::BF16] {
            for untied in [false, true] {
                let tiny = Tiny {
                    tensor_type,
                    untied: untied || architecture == "olmoe",
                    ..tiny(architecture, 5)
                };
                let checkpoint = Checkpoint::of(&tiny);
                assert_same(&tiny, &checkpoint, 1);
            }
        }
    }
}

#[test]
fn shards_are_the_same_model() {
    for architecture in ["llama", "granitemoe", "qwen3moe"] {
        let tiny = tiny(architecture, 6);
        assert_same(&tiny, &Checkpoint::of(&tiny), 3);
    }
}

/// Names as they are when a language model is a part of a larger one.
#[test]
fn a_nested_text_model_is_the_same_model() {
    for (module, head) in [
        ("language_model.model.", "language_model.lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
    ] {
        let tiny = tiny("gemma3", 7);
        let mut checkpoint = Checkpoint::of(&tiny);
        for tensor in &mut checkpoint.tensors {
            tensor.name = tensor.name.replacen("model.", module, 1);
        }
        let mut copy = checkpoint.tensor("embed_tokens").clone();
        copy.name = head.to_owned();
        checkpoint.tensors.push(copy);
        checkpoint.tensors.push(vision_tensor());
        let text = std::mem::take(&mut checkpoint.config);
        checkpoint
            .set("text_config", text.into())
            .set("model_type", "gemma3".into())
            .set("tie_word_embeddings", true.into());
        assert_same(&tiny, &checkpoint, 1);
    }
}

/// A directory is a whole model: weights, vocabulary, template, and a hash that the configuration
/// is part of.
#[test]
fn a_directory_opens_as_a_model() {
    let tiny = tiny("llama", 1);
    let expected = Tokenizer::from_gguf(&model_file(&tiny).metadata, &Limits::default());
    let expected = expected.expect("a vocabulary");
    let directory = TempDir::new().expect("a directory");
    let mut checkpoint = Checkpoint::of(&tiny);
    checkpoint.write(directory.path(), 2);
    let tokenizer = tokenizer_json(&model_file(&tiny));
    std::fs::write(directory.path().join("tokenizer.json"), tokenizer).expect("written");
    let open = || Model::open(directory.path(), &Limits::default()).expect("a whole model");
    let model = open();
    let text = "the thing and then an other on the inner";
    let options = EncodeOptions::default();
    let ids = model.tokenizer().encode(text, options);
    assert_eq!(ids, expected.encode(text, options));

    let hash = model.hash().expect("a hash");
    assert_eq!(open().hash().expect("a hash"), hash);
    checkpoint.set("rope_theta", 10_000.0.into());
    checkpoint.write(directory.path(), 2);
    assert_ne!(open().hash().expect("a hash"), hash);
}

/// The vocabulary of a tiny model as a `tokenizer.json`.
fn tokenizer_json(file: &ModelFile) -> String {
    let texts = |key: &str| {
        let array = file.metadata.array(key).expect("an array").expect("there");
        let strings = array.strings().expect("strings");
        strings
            .map(|text| String::from_utf8(text.to_vec()).expect("UTF-8"))
            .collect::<Vec<_>>()
    };
    let tokens = texts("tokenizer.ggml.tokens");
    let ends = tokens.len() - 2;
    let vocabulary: Map<String, Value> = tokens[..ends]
        .iter()
        .enumerate()
        .map(|(id, text)| (text.clone(), id.into()))
        .collect();
    let added: Vec<Value> = tokens[ends..]
        .iter()
        .enumerate()
        .map(|(id, text)| {
            json!({
                "id": ends + id, "content": text, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    // One merge is of a piece that is no token: a GGUF reader skips it, here it would be an error.
    let mut merges = texts("tokenizer.ggml.merges");
    merges.retain(|merge| merge.split(' ').all(|piece| vocabulary.contains_key(piece)));
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": added, "pre_tokenizer": bytes, "decoder": bytes, "post_processor": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": merges,
        },
    })
    .to_string()
}

fn vision_tensor() -> Tensor {
    Tensor {
        name: "model.vision_tower.encoder.layers.0.norm.weight".into(),
        element: "BF16",
        shape: vec![2, 1],
        bytes: vec![0; 4],
    }
}

/// Experts that newer tools save fused.
#[test]
fn fused_experts_are_the_same_model() {
    let tiny = tiny("qwen3moe", 8);
    let mut checkpoint = Checkpoint::of(&tiny);
    let separate = std::mem::take(&mut checkpoint.tensors);
    for mut tensor in separate {
        let Some((layer, expert)) = tensor.name.split_once(".mlp.experts.") else {
            checkpoint.tensors.push(tensor);
            continue;
        };
        let (number, kind) = expert.split_once('.').expect("a number");
        let name = format!("{layer}.mlp.experts.{}", kind.replace(".weight", ""));
        if number == "0" {
            tensor.name = name;
            tensor.shape.insert(0, 1);
            checkpoint.tensors.push(tensor);
        } else {
            let stacked = checkpoint.tensor(&name);
            stacked.bytes.extend_from_slice(&tensor.bytes);
            stacked.shape[0] += 1;
        }
    }
    let separate = std::mem::take(&mut checkpoint.tensors);
    let named = |name: &str| separate.iter().find(|tensor| tensor.name == name);
    for tensor in &separate {
        if let Some(layer) = tensor.name.strip_suffix(".gate_proj") {
            let up = named(&format!("{layer}.up_proj")).expect("up beside gate");
            let fused = both(tiny.experts, tensor, up, "mlp.experts.gate_up_proj");
            checkpoint.tensors.push(fused);
        } else if !tensor.name.ends_with(".up_proj") {
            checkpoint.tensors.push(tensor.clone());
        }
    }
    assert_same(&tiny, &checkpoint, 1);
}

/// That `checkpoint`, written in `shards` files, is the model file of `tiny`.
fn assert_same(tiny: &Tiny, checkpoint: &Checkpoint, shards: usize) {
    let expected = model_file(tiny);
    let directory = TempDir::new().expect("a directory");
    checkpoint.write(directory.path(), shards);
    let actual = open(&directory).expect("a whole checkpoint");
    let name = tiny.architecture;
    assert_eq!(
        actual.sources().len(),
        shards + 1,
        "{name}: weights and config.json"
    );
    let (mut expected_spec, mut actual_spec) = (spec(&expected), spec(&actual));
    turn_halves(&mut expected_spec);
    actual_spec.name.clone_from(&expected_spec.name);
    let (expected_text, actual_text) = (format!("{expected_spec:#?}"), format!("{actual_spec:#?}"));
    for (number, (expected, actual)) in expected_text.lines().zip(actual_text.lines()).enumerate() {
        assert_eq!(expected, actual, "{name}, line {number} of the description");
    }
    assert_eq!(expected_text.len(), actual_text.len(), "{name}");

    let mut names: Vec<&str> = expected
        .tensors()
        .iter()
        .map(|tensor| &*tensor.name)
        .collect();
    let mut actual_names: Vec<&str> = actual
        .tensors()
        .iter()
        .map(|tensor| &*tensor.name)
        .collect();
    names.sort_unstable();
    actual_names.sort_unstable();
    assert_eq!(names, actual_names, "{name}");
    for tensor in expected.tensors() {
        let (expected, other) = (
            values(&expected, &tensor.name),
            values(&actual, &tensor.name),
        );
        assert_eq!(
            actual.tensor(&tensor.name).unwrap().shape,
            tensor.shape,
            "{name} {}",
            tensor.name
        );
        let rotated = ["attn_q.weight", "attn_k.weight"]
            .iter()
            .any(|part| tensor.name.ends_with(part));
        let permuted = ["llama", "granite", "granitemoe", "smollm3"].contains(&name) && rotated;
        let columns = tensor.columns() as usize;
        for (index, &value) in expected.iter().enumerate() {
            let place = match permuted {
                true => halves_place(index / columns, tiny.head_dim) * columns + index % columns,
                false => index,
            };
            let tolerance = match name.starts_with("gemma") && tensor.name.contains("norm") {
                true => ROUNDING,
                false => 0.0,
            };
            assert!(
                (value - other[place]).abs() <= tolerance,
                "{name} {} {index}",
                tensor.name
            );
        }
    }
}

fn open(directory: &TempDir) -> Result<ModelFile, ModelFileError> {
    ondine_runtime::hf::open(directory.path(), &Limits::default())
}

fn spec(file: &ModelFile) -> ModelSpec {
    model_spec(file, &Limits::default()).expect("a whole model")
}

/// Checkpoints rotate halves, and have their rows in that order.
fn turn_halves(spec: &mut ModelSpec) {
    for layer in &mut spec.layers {
        if let Mixer::Attention(attention) = &mut layer.mixer
            && let Some(rope) = &mut attention.rope
        {
            rope.style = RopeStyle::Halves;
        }
    }
}

/// Where row `row` of a query or key projection for adjacent pairs is among rows for halves.
fn halves_place(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    head * head_dim + within % 2 * (head_dim / 2) + within / 2
}

/// A tensor's elements.
fn values(file: &ModelFile, name: &str) -> Vec<f32> {
    let tensor = file
        .tensor(name)
        .unwrap_or_else(|| panic!("{name} is missing"));
    let bytes = bytes_of(file, tensor);
    match tensor.tensor_type {
        TensorType::F16 => bytes
            .chunks_exact(2)
            .map(|raw| f16::from_le_bytes([raw[0], raw[1]]).to_f32())
            .collect(),
        TensorType::BF16 => bytes
            .chunks_exact(2)
            .map(|raw| bf16::from_le_bytes([raw[0], raw[1]]).to_f32())
            .collect(),
        _ => bytes
            .chunks_exact(4)
            .map(|raw| f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]))
            .collect(),
    }
}
