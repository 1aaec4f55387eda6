//! What configurations and the files beside them can say.

use std::fs;

use ondine_runtime::gguf::ModelFile;
use ondine_runtime::model::{Attention, Mixer, ModelSpec, Rope, RopeFactors};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkpoint::{Checkpoint, tiny};
use crate::{open, spec, values};

/// A tiny model whose configuration was changed, opened.
fn with(architecture: &'static str, changes: Value) -> (ModelFile, ModelSpec) {
    let mut checkpoint = Checkpoint::of(&tiny(architecture, 1));
    let Value::Object(changes) = changes else {
        panic!("changes are an object");
    };
    checkpoint.config.extend(changes);
    let directory = TempDir::new().expect("a directory");
    checkpoint.write(directory.path(), 1);
    let file = open(&directory).expect("a whole checkpoint");
    let spec = spec(&file);
    (file, spec)
}

fn attention(spec: &ModelSpec, layer: usize) -> &Attention {
    match &spec.layers[layer].mixer {
        Mixer::Attention(attention) => attention,
        Mixer::ShortConvolution(_) => panic!("layer {layer} is a convolution"),
    }
}

fn rope(spec: &ModelSpec, layer: usize) -> &Rope {
    attention(spec, layer)
        .rope
        .as_ref()
        .expect("rotary positions")
}

fn close(actual: f32, expected: f64) {
    let error = (f64::from(actual) / expected - 1.0).abs();
    assert!(error < 1e-6, "{actual} is not {expected}");
}

#[test]
fn llama3_stretches_long_wavelengths() {
    let scaling = json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192 });
    let (file, spec) = with(
        "llama",
        json!({ "rope_theta": 500000.0, "rope_scaling": scaling.clone() }),
    );
    assert_eq!(
        rope(&spec, 0).factors,
        RopeFactors::Always("rope_freqs.weight".into())
    );
    let factors = values(&file, "rope_freqs.weight");
    // Figures of the reference implementation's formula for heads of 16.
    for (factor, expected) in factors.iter().zip(LLAMA3_FACTORS) {
        close(*factor, expected);
    }
    assert_eq!(factors.len(), 8);
    // The same, as newer tools write it.
    let mut parameters = scaling;
    parameters["rope_theta"] = json!(500000.0);
    let (other, spec) = with(
        "llama",
        json!({ "rope_theta": null, "rope_scaling": null, "rope_parameters": parameters }),
    );
    assert_eq!(values(&other, "rope_freqs.weight"), factors);
    close(rope(&spec, 0).base, 500000.0);
}

const LLAMA3_FACTORS: [f64; 8] = [1.0, 1.0, 1.0, 1.0, 3.2922621029408843, 32.0, 32.0, 32.0];

#[test]
fn linear_and_yarn_scale_positions() {
    let (_, spec) = with(
        "llama",
        json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } }),
    );
    close(rope(&spec, 0).frequency_scale, 0.25);
    assert_eq!(rope(&spec, 0).extrapolation, 0.0);

    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16 });
    let (_, spec) = with("qwen2", json!({ "rope_scaling": yarn.clone() }));
    let of = rope(&spec, 0);
    close(of.frequency_scale, 0.25);
    assert_eq!((of.extrapolation, of.original_context), (1.0, 128));
    assert_eq!(
        (of.attention_factor, of.beta_fast, of.beta_slow),
        (1.0, 16.0, 1.0)
    );

    // The whole factor on sine and cosine is what the configuration declares.
    let mut declared = yarn;
    declared["attention_factor"] = json!(1.5);
    let (_, spec) = with("qwen2", json!({ "rope_scaling": declared }));
    let whole = f64::from(rope(&spec, 0).attention_factor) * (1.0 + 0.1 * 4f64.ln());
    close(whole as f32, 1.5);
}

#[test]
fn longrope_has_two_sets_of_factors() {
    let (short, long) = ([1.0; 8], [2.5; 8]);
    let scaling = json!({ "type": "su", "short_factor": short, "long_factor": long });
    let changes = json!({ "rope_scaling": scaling, "original_max_position_embeddings": 128 });
    let (file, spec) = with("phi3", changes);
    let of = rope(&spec, 0);
    assert!(matches!(of.factors, RopeFactors::ByContext { .. }));
    assert_eq!((of.original_context, of.frequency_scale), (128, 1.0));
    close(of.attention_factor, (1.0 + 4f64.ln() / 128f64.ln()).sqrt());
    assert_eq!(values(&file, "rope_factors_short.weight"), [1.0; 8]);
    assert_eq!(values(&file, "rope_factors_long.weight"), [2.5; 8]);
}

#[test]
fn gemma3_scales_only_global_layers() {
    let scaling = json!({ "rope_type": "linear", "factor": 8.0 });
    let kinds = [
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "sliding_attention",
    ];
    let (_, flat) = with(
        "gemma3",
        json!({ "rope_scaling": scaling, "layer_types": kinds }),
    );
    let both = json!({
        "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 10000.0 },
    });
    let (_, nested) = with(
        "gemma3",
        json!({ "rope_parameters": both, "layer_types": kinds, "rope_theta": null }),
    );
    for spec in [flat, nested] {
        let windows = [0, 1, 2, 3].map(|layer| attention(&spec, layer).window);
        assert_eq!(windows, [Some(8), None, Some(8), Some(8)]);
        assert_eq!(
            (rope(&spec, 0).base, rope(&spec, 0).frequency_scale),
            (10000.0, 1.0)
        );
        assert_eq!(
            (rope(&spec, 1).base, rope(&spec, 1).frequency_scale),
            (1000000.0, 0.125)
        );
    }
}

#[test]
fn switches_reach_the_description() {
    let (_, spec) = with("smollm3", json!({ "no_rope_layers": [0, 1, 1, 0] }));
    let rotated = [0, 1, 2, 3].map(|layer| attention(&spec, layer).rope.is_some());
    assert_eq!(rotated, [false, true, true, false]);

    let mistral = |window: Value| {
        let (_, spec) = with(
            "llama",
            json!({ "model_type": "mistral", "sliding_window": window }),
        );
        attention(&spec, 0).window
    };
    assert_eq!((mistral(json!(5)), mistral(Value::Null)), (Some(5), None));

    let (_, spec) = with(
        "gemma2",
        json!({ "query_pre_attn_scalar": 64, "attn_logit_softcapping": null }),
    );
    assert_eq!(
        (attention(&spec, 0).scale, attention(&spec, 0).softcap),
        (0.125, None)
    );

    let normalised = |architecture, normalise: bool| {
        let (_, spec) = with(architecture, json!({ "norm_topk_prob": normalise }));
        match &spec.layers[0].feed_forward {
            ondine_runtime::model::FeedForward::Experts(experts) => experts.normalise,
            _ => panic!("experts"),
        }
    };
    assert!(normalised("olmoe", true) && !normalised("qwen3moe", false));

    let (_, spec) = with("llama", json!({ "partial_rotary_factor": 0.5 }));
    assert_eq!(rope(&spec, 0).dimensions, 8);
}

#[test]
fn templates_and_tokens_are_metadata() {
    let checkpoint = Checkpoint::of(&tiny("llama", 1));
    let directory = TempDir::new().expect("a directory");
    checkpoint.write(directory.path(), 1);
    let write =
        |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("written");
    let template = || {
        let file = open(&directory).expect("a whole checkpoint");
        let template = file
            .metadata
            .string("tokenizer.chat_template")
            .expect("text");
        template.map(str::to_owned)
    };
    assert_eq!(template(), None);
    write("tokenizer_config.json", r#"{ "chat_template": "one" }"#);
    assert_eq!(template().as_deref(), Some("one"));
    let several = r#"{ "chat_template": [{ "name": "tool_use", "template": "a" }, { "name": "default", "template": "b" }] }"#;
    write("tokenizer_config.json", several);
    assert_eq!(template().as_deref(), Some("b"));
    write("chat_template.jinja", "{{ file }}");
    assert_eq!(template().as_deref(), Some("{{ file }}"));

    write(
        "generation_config.json",
        r#"{ "eos_token_id": [7, 9], "bos_token_id": null }"#,
    );
    let file = open(&directory).expect("a whole checkpoint");
    let id = |key: &str| file.metadata.unsigned(key).expect("a number");
    assert_eq!(id("tokenizer.ggml.eos_token_id"), Some(7));
    assert_eq!(id("tokenizer.ggml.bos_token_id"), None);
}
