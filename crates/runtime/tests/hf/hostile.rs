//! Damaged and hostile checkpoints: one sentence, no panic, nothing outside the directory.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use ondine_fixtures::Tiny;
use ondine_runtime::Limits;
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::model::model_spec;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkpoint::{Checkpoint, bytes_of, safetensors, tiny};

/// Opens, describes and reads everything. The error is what a user would read.
fn try_everything(directory: &Path) -> Result<(), String> {
    let limits = Limits::default();
    let file = ondine_runtime::hf::open(directory, &limits).map_err(|error| error.to_string())?;
    model_spec(&file, &limits).map_err(|error| error.to_string())?;
    read_all(&file);
    Ok(())
}

fn read_all(file: &ModelFile) {
    for tensor in file.tensors() {
        bytes_of(file, tensor);
    }
}

fn assert_one_sentence(error: &str) {
    assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
    assert!(error.chars().count() < 500, "{error}");
}

fn small(architecture: &'static str) -> Checkpoint {
    Checkpoint::of(&Tiny {
        layers: 3,
        ..tiny(architecture, 3)
    })
}

/// The error of a llama checkpoint that `change` has changed.
fn refusal(architecture: &'static str, change: impl FnOnce(&mut Checkpoint)) -> String {
    let mut checkpoint = small(architecture);
    change(&mut checkpoint);
    let directory = TempDir::new().expect("a directory");
    checkpoint.write(directory.path(), 1);
    let error = try_everything(directory.path()).expect_err("it is damaged");
    assert_one_sentence(&error);
    error
}

fn assert_says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

#[test]
fn tensors_are_checked_against_the_configuration() {
    let error = refusal("llama", |all| {
        all.tensors
            .retain(|tensor| !tensor.name.contains("layers.1.mlp.up"))
    });
    assert_says(&error, &["layers.1.mlp.up_proj.weight", "missing"]);
    let error = refusal("llama", |all| all.tensor("layers.1.mlp.up").shape.reverse());
    assert_says(&error, &["layers.1.mlp.up_proj.weight", "shape"]);
    let error = refusal("llama", |all| {
        all.tensor("layers.1.mlp.up").name.insert(0, 'x')
    });
    assert_says(&error, &["xmodel.layers.1.mlp.up_proj.weight", "no place"]);
    let error = refusal("llama", |all| {
        all.set("num_hidden_layers", json!(2));
    });
    assert_says(&error, &["model.layers.2.", "beyond the 2"]);
    let error = refusal("llama", |all| {
        all.set("vocab_size", json!(7));
    });
    assert_says(&error, &["model.embed_tokens.weight", "7 tokens"]);
    let error = refusal("llama", |all| {
        all.set("tie_word_embeddings", json!(false));
    });
    assert_says(&error, &["lm_head.weight", "missing"]);
    let error = refusal("llama", |all| {
        let mut copy = all.tensor("model.norm.weight").clone();
        copy.name = "norm.weight".into();
        all.tensors.push(copy);
    });
    assert_says(&error, &["norm.weight", "two names"]);
    let error = refusal("llama", |all| all.tensor("layers.1.mlp.up").element = "I32");
    assert_says(
        &error,
        &["model.layers.1.mlp.up_proj.weight", "F32, F16 or BF16"],
    );
    let error = refusal("llama", |all| all.tensor("layers.1.mlp.up").element = "Q9");
    assert_says(&error, &["model.safetensors", "`Q9`", "not supported"]);
    let error = refusal("llama", |all| all.tensor("layers.1.mlp.up").shape[0] += 1);
    assert_says(&error, &["model.safetensors", "shape"]);
    let error = refusal("llama", |all| {
        all.tensor("layers.1.mlp.up").shape = vec![u64::MAX, 2]
    });
    assert_says(&error, &["model.safetensors", "shape"]);
    let error = refusal("llama", |all| {
        all.tensor("layers.1.mlp.up").shape.extend([1; 20])
    });
    assert_says(&error, &["model.safetensors", "too many dimensions"]);
}

#[test]
fn experts_must_be_complete_and_alike() {
    let error = refusal("qwen3moe", |all| {
        all.tensors
            .retain(|tensor| !tensor.name.contains("layers.1.mlp.experts.2.up"))
    });
    assert_says(&error, &["layers.1.mlp.experts.0.up_proj", "3 of 4"]);
    let error = refusal("qwen3moe", |all| all.tensor("experts.2.up").shape.reverse());
    assert_says(&error, &["experts.2.up_proj", "differs"]);
    let error = refusal("qwen3moe", |all| {
        all.set("num_experts", json!(2));
    });
    assert_says(&error, &["expert", "beyond the 2"]);
    let error = refusal("granitemoe", |all| {
        all.set("num_local_experts", json!(1));
    });
    assert_says(&error, &["input_linear", "more matrices"]);
    let error = refusal("bloom", |all| {
        all.set("n_head", json!(4_000_000_000u32));
    });
    assert_says(&error, &["heads"]);
}

#[test]
fn configurations_are_checked() {
    for (key, value) in [
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(-1)),
        ("num_hidden_layers", json!(4_000_000_000u32)),
        ("num_hidden_layers", json!(1e300)),
        ("hidden_size", json!("64")),
        ("hidden_size", Value::Null),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(3)),
        ("num_key_value_heads", json!(3)),
        ("rms_norm_eps", json!(-1)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(1e300)),
        ("partial_rotary_factor", json!(1e30)),
        ("head_dim", json!(4_000_000_000u32)),
        ("head_dim", json!(0)),
        ("rope_scaling", json!([])),
        ("rope_scaling", json!({ "type": "unheard_of" })),
        ("rope_scaling", json!({ "type": "linear" })),
        (
            "rope_scaling",
            json!({ "type": "llama3", "low_freq_factor": 4, "high_freq_factor": 4 }),
        ),
        (
            "rope_scaling",
            json!({ "type": "longrope", "long_factor": [1, 2], "short_factor": [1, 2] }),
        ),
        (
            "rope_scaling",
            json!({ "type": "yarn", "factor": 2, "original_max_position_embeddings": 0 }),
        ),
        ("max_position_embeddings", json!(1u64 << 40)),
        ("layer_types", json!(["full_attention"])),
        (
            "layer_types",
            json!(["sliding_attention", "full_attention", "full_attention"]),
        ),
        ("hidden_act", json!("relu")),
        ("model_type", json!("a".repeat(1000))),
        ("model_type", json!({})),
        ("text_config", json!(3)),
        ("tie_word_embeddings", json!("yes")),
    ] {
        let error = refusal("llama", |all| {
            all.set(key, value.clone());
        });
        let named = error.starts_with("/") && error.contains("config.json: ");
        assert!(named || error.contains("attn_"), "{key} {value}: {error}");
    }
}

#[test]
fn indices_are_checked() {
    let directory = TempDir::new().expect("a directory");
    let checkpoint = small("llama");
    checkpoint.write(directory.path(), 2);
    assert_eq!(try_everything(directory.path()), Ok(()));
    let path = directory.path().join("model.safetensors.index.json");
    let index: Value = serde_json::from_slice(&fs::read(&path).expect("an index")).expect("JSON");
    let shard = "model-00001-of-00002.safetensors";
    let refused = |change: &dyn Fn(&mut Value), words: &[&str]| {
        let mut changed = index.clone();
        change(&mut changed);
        fs::write(&path, changed.to_string()).expect("written");
        let error = try_everything(directory.path()).expect_err("it is damaged");
        assert_one_sentence(&error);
        assert_says(&error, words);
    };
    for name in [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..",
        "",
        "C:\\x.safetensors",
        ".hidden.safetensors",
        "config.json",
    ] {
        refused(
            &|index| index["weight_map"]["model.norm.weight"] = json!(name),
            &["plain"],
        );
    }
    refused(
        &|index| index["weight_map"]["model.norm.weight"] = json!(shard),
        &["model.norm.weight", "one revision"],
    );
    refused(
        &|index| index["weight_map"]["extra"] = json!(shard),
        &["`extra`", "no shard holds"],
    );
    refused(
        &|index| index["weight_map"]["extra"] = json!("absent.safetensors"),
        &["absent.safetensors"],
    );
    refused(&|index| *index = json!([]), &["index.json"]);
    refused(&|index| index["weight_map"] = json!({}), &["0 shards"]);

    let second = directory.path().join("model-00002-of-00002.safetensors");
    fs::copy(directory.path().join(shard), second).expect("copied");
    refused(&|_| (), &["both hold"]);
}

#[test]
fn missing_files_are_named() {
    let directory = TempDir::new().expect("a directory");
    let error = try_everything(directory.path()).expect_err("empty");
    assert_says(&error, &["config.json", "missing"]);
    small("llama").write(directory.path(), 1);
    fs::remove_file(directory.path().join("model.safetensors")).expect("removed");
    let error = try_everything(directory.path()).expect_err("no weights");
    assert_says(&error, &["model.safetensors", "fetch"]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let directory = TempDir::new().expect("a directory");
    let checkpoint = small("lfm2");
    checkpoint.write(directory.path(), 1);
    let whole = safetensors(&checkpoint.tensors);
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
    let lengths = (0..header)
        .step_by(37)
        .chain((header..whole.len()).step_by(whole.len() / 50));
    for length in lengths {
        fs::write(directory.path().join("model.safetensors"), &whole[..length]).expect("written");
        assert_one_sentence(&try_everything(directory.path()).expect_err("cut"));
    }
    let mut longer = whole.clone();
    longer.push(0);
    fs::write(directory.path().join("model.safetensors"), longer).expect("written");
    let error = try_everything(directory.path()).expect_err("longer");
    assert_says(&error, &["1 bytes", "no tensor"]);
}

#[test]
fn lengths_are_not_believed() {
    let directory = TempDir::new().expect("a directory");
    small("llama").write(directory.path(), 1);
    for length in [u64::MAX, u64::MAX - 7, 1 << 40, 1 << 28] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        fs::write(directory.path().join("model.safetensors"), bytes).expect("written");
        assert_one_sentence(&try_everything(directory.path()).expect_err("too long"));
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for name in [
        "generation_config.json",
        "tokenizer_config.json",
        "config.json",
    ] {
        let path = directory.path().join(name);
        let before = fs::read(&path).ok();
        fs::write(&path, &deep).expect("written");
        assert_one_sentence(&try_everything(directory.path()).expect_err("too deep"));
        match before {
            Some(before) => fs::write(&path, before).expect("written"),
            None => fs::remove_file(&path).expect("removed"),
        }
    }
    let limits = Limits {
        json_bytes: 16,
        ..Limits::default()
    };
    let error = ondine_runtime::hf::open(directory.path(), &limits).err();
    assert_says(
        &error.expect("too long").to_string(),
        &["config.json", "16 bytes"],
    );
}

/// Names twice in one header, which a reader of JSON objects would not notice.
#[test]
fn a_name_declared_twice_is_refused() {
    let directory = TempDir::new().expect("a directory");
    let checkpoint = small("llama");
    checkpoint.write(directory.path(), 1);
    let whole = safetensors(&checkpoint.tensors);
    let text = |name: &str| {
        whole
            .windows(name.len())
            .position(|window| window == name.as_bytes())
    };
    let from = text("layers.1.mlp.up_proj").expect("a tensor");
    let mut twice = whole.clone();
    twice[from + 7] = b'2';
    fs::write(directory.path().join("model.safetensors"), twice).expect("written");
    let error = try_everything(directory.path()).expect_err("twice");
    assert_says(&error, &["layers.2.mlp.up_proj", "declared twice"]);
}

/// A small checkpoint of an architecture with views: its configuration, its weights.
fn parts(architecture: &'static str) -> (Vec<u8>, Vec<u8>) {
    let checkpoint = Checkpoint::of(&Tiny {
        layers: 2,
        embedding: 32,
        head_dim: 8,
        feed_forward: if architecture == "gpt2" { 128 } else { 32 },
        ..Tiny::new(architecture, 4)
    });
    let config = serde_json::to_vec(&checkpoint.config).expect("JSON");
    (config, safetensors(&checkpoint.tensors))
}

fn samples() -> &'static [(Vec<u8>, Vec<u8>)] {
    static PARTS: OnceLock<Vec<(Vec<u8>, Vec<u8>)>> = OnceLock::new();
    PARTS.get_or_init(|| {
        ["llama", "granitemoe", "gpt2", "lfm2", "gemma3"]
            .map(parts)
            .into()
    })
}

/// Bytes that mean something in JSON are likelier to reach deep than others.
fn damage(bytes: &mut [u8], edits: &[(prop::sample::Index, u8)], within: usize) {
    for (place, byte) in edits {
        let place = place.index(within.min(bytes.len()));
        bytes[place] = match byte % 4 {
            0 => *byte,
            1 => b"0123456789-.eE"[*byte as usize % 14],
            2 => b"\"[]{},:ntf"[*byte as usize % 10],
            _ => bytes[place] ^ (1 << (byte % 8)),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn damage_never_panics(
        sample in 0usize..5,
        config_edits in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..3),
        header_edits in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..3),
    ) {
        let (mut config, mut weights) = samples()[sample].clone();
        let header = 8 + u64::from_le_bytes(weights[..8].try_into().expect("8 bytes")) as usize;
        let within = config.len();
        damage(&mut config, &config_edits, within);
        damage(&mut weights, &header_edits, header);
        let directory = TempDir::new().expect("a directory");
        fs::write(directory.path().join("config.json"), config).expect("written");
        fs::write(directory.path().join("model.safetensors"), weights).expect("written");
        match try_everything(directory.path()) {
            Err(error) => assert_one_sentence(&error),
            Ok(()) if config_edits.is_empty() && header_edits.is_empty() => {}
            Ok(()) => {}
        }
    }

    #[test]
    fn any_header_is_refused_or_read(text in "[{]\"[a-z.]{1,9}\":[{]\"dtype\":\"(F32|BF16|I64)\",\"shape\":\\[[0-9]{0,20}(,[0-9]{1,20})?\\],\"data_offsets\":\\[[0-9]{1,20},[0-9]{1,20}\\][}][}]") {
        let directory = TempDir::new().expect("a directory");
        fs::write(directory.path().join("config.json"), &samples()[0].0).expect("written");
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len() + 64, 0);
        fs::write(directory.path().join("model.safetensors"), bytes).expect("written");
        assert_one_sentence(&try_everything(directory.path()).expect_err("no model"));
    }
}
