//! Tiny models as checkpoint directories: what a training framework would have saved of them.
//!
//! The inverse of what converters do, written apart from the reader's tables.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ondine_fixtures::Tiny;
use ondine_kernels::TensorType;
use ondine_runtime::Limits;
use ondine_runtime::gguf::{ModelFile, TensorInfo};
use ondine_runtime::source::Memory;
use serde_json::{Map, Value, json};

/// A checkpoint that can be changed before it is written.
#[derive(Clone)]
pub struct Checkpoint {
    pub config: Map<String, Value>,
    pub tensors: Vec<Tensor>,
}

/// A tensor to be stored.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub element: &'static str,
    /// Slowest dimension first.
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

/// A tiny model of `architecture` in a shape that a configuration can express.
pub fn tiny(architecture: &'static str, seed: u64) -> Tiny {
    let tiny = Tiny::new(architecture, seed);
    let wide = ["bloom", "gpt2", "mpt"].contains(&architecture);
    Tiny {
        feed_forward: if wide {
            4 * tiny.embedding
        } else {
            tiny.feed_forward
        },
        ..tiny
    }
}

/// The model file of `tiny`.
pub fn model_file(tiny: &Tiny) -> ModelFile {
    let source = Arc::new(Memory::new(tiny.architecture, tiny.gguf()));
    ModelFile::from_source(source, &Limits::default()).expect("a whole file")
}

/// The stored bytes of `tensor`.
pub fn bytes_of(file: &ModelFile, tensor: &TensorInfo) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes as usize];
    let source = file.source(tensor);
    source
        .read_at(tensor.offset, &mut bytes)
        .expect("in the source");
    bytes
}

impl Checkpoint {
    /// What would have been converted to `tiny`'s model file.
    pub fn of(tiny: &Tiny) -> Self {
        let file = model_file(tiny);
        let mut tensors = Vec::new();
        for tensor in file.tensors() {
            let element = match tensor.tensor_type {
                TensorType::F32 => "F32",
                TensorType::F16 => "F16",
                TensorType::BF16 => "BF16",
                other => panic!("{other} is no checkpoint's type"),
            };
            let stored = Tensor {
                name: tensor.name.clone(),
                element,
                shape: tensor.shape.iter().rev().copied().collect(),
                bytes: bytes_of(&file, tensor),
            };
            store(tiny, stored, &mut tensors);
        }
        Checkpoint {
            config: config(tiny, &file),
            tensors: fuse(tiny, tensors),
        }
    }

    pub fn set(&mut self, key: &str, value: Value) -> &mut Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    pub fn tensor(&mut self, part: &str) -> &mut Tensor {
        let found = self
            .tensors
            .iter_mut()
            .find(|tensor| tensor.name.contains(part));
        found.unwrap_or_else(|| panic!("no tensor is called {part}"))
    }

    /// Writes `config.json` and the tensors into `directory`, in `shards` files.
    pub fn write(&self, directory: &Path, shards: usize) {
        let config = serde_json::to_vec_pretty(&self.config).expect("JSON");
        fs::write(directory.join("config.json"), config).expect("written");
        if shards == 1 {
            let bytes = safetensors(&self.tensors);
            fs::write(directory.join("model.safetensors"), bytes).expect("written");
            return;
        }
        let mut places = Map::new();
        for (number, part) in self
            .tensors
            .chunks(self.tensors.len().div_ceil(shards))
            .enumerate()
        {
            let name = format!("model-{:05}-of-{shards:05}.safetensors", number + 1);
            fs::write(directory.join(&name), safetensors(part)).expect("written");
            for tensor in part {
                places.insert(tensor.name.clone(), json!(name));
            }
        }
        let index = json!({ "metadata": { "total_size": 0 }, "weight_map": places });
        fs::write(
            directory.join("model.safetensors.index.json"),
            index.to_string(),
        )
        .expect("written");
    }
}

/// A safetensors file of `tensors`.
pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut table = Map::new();
    table.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut data = Vec::new();
    for tensor in tensors {
        let begin = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry = json!({ "dtype": tensor.element, "shape": tensor.shape, "data_offsets": [begin, data.len()] });
        table.insert(tensor.name.clone(), entry);
    }
    let header = Value::Object(table).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}

/// Renames one tensor and undoes what a converter does to its values.
fn store(tiny: &Tiny, mut tensor: Tensor, out: &mut Vec<Tensor>) {
    let architecture = tiny.architecture;
    let parts: Vec<String> = tensor.name.split('.').map(String::from).collect();
    let kind = parts[parts.len() - 1].clone();
    let (layer, inner) = match &parts[..] {
        [blk, layer, inner @ .., _] if blk == "blk" => (Some(layer.clone()), inner.join(".")),
        [inner @ .., _] => (None, inner.join(".")),
        [] => unreachable!(),
    };
    if ["gemma2", "gemma3"].contains(&architecture) && inner.ends_with("norm") {
        each_float(&mut tensor, |value| value - 1.0);
    }
    let permuted = ["llama", "granite", "granitemoe", "smollm3"].contains(&architecture);
    if permuted && (inner == "attn_q" || inner == "attn_k") {
        permute_rows(&mut tensor, tiny.head_dim);
    }
    if architecture == "gpt2" && kind == "weight" && layer.is_some() && !inner.ends_with("norm") {
        transpose(&mut tensor);
    }
    if architecture == "bloom" && inner == "attn_qkv" {
        interleave(&mut tensor, tiny.heads);
    }
    if inner == "shortconv.conv" {
        tensor.shape.insert(1, 1);
    }
    let Some(layer) = layer else {
        tensor.name = format!("{}.{kind}", outer_name(architecture, &inner));
        out.push(tensor);
        return;
    };
    let (module, inner) = layer_name(architecture, &inner);
    if let Some(kind) = inner.strip_prefix("experts ") {
        let experts = tensor.shape.remove(0);
        let each = tensor.bytes.len() / experts as usize;
        for (expert, bytes) in tensor.bytes.chunks(each).enumerate() {
            out.push(Tensor {
                name: format!("{module}.{layer}.mlp.experts.{expert}.{kind}.weight"),
                bytes: bytes.to_vec(),
                ..tensor.clone()
            });
        }
        return;
    }
    tensor.name = format!("{module}.{layer}.{inner}.{kind}");
    out.push(tensor);
}

fn outer_name(architecture: &str, name: &str) -> &'static str {
    match (architecture, name) {
        (_, "output") => "lm_head",
        ("gpt2", "token_embd") => "wte",
        ("gpt2", "position_embd") => "wpe",
        ("gpt2", "output_norm") => "ln_f",
        ("bloom", "token_embd") => "transformer.word_embeddings",
        ("bloom", "token_embd_norm") => "transformer.word_embeddings_layernorm",
        ("bloom", "output_norm") => "transformer.ln_f",
        ("mpt", "token_embd") => "transformer.wte",
        ("mpt", "output_norm") => "transformer.norm_f",
        ("lfm2", "token_embd_norm") => "model.embedding_norm",
        (_, "token_embd") => "model.embed_tokens",
        (_, "output_norm") => "model.norm",
        other => panic!("{other:?}"),
    }
}

fn layer_name(architecture: &str, name: &str) -> (&'static str, &'static str) {
    let gemma = ["gemma2", "gemma3"].contains(&architecture);
    match architecture {
        "gpt2" => (
            "h",
            match name {
                "attn_norm" => "ln_1",
                "attn_qkv" => "attn.c_attn",
                "attn_output" => "attn.c_proj",
                "ffn_norm" => "ln_2",
                "ffn_up" => "mlp.c_fc",
                "ffn_down" => "mlp.c_proj",
                other => panic!("{other}"),
            },
        ),
        "bloom" => (
            "transformer.h",
            match name {
                "attn_norm" => "input_layernorm",
                "attn_qkv" => "self_attention.query_key_value",
                "attn_output" => "self_attention.dense",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_up" => "mlp.dense_h_to_4h",
                "ffn_down" => "mlp.dense_4h_to_h",
                other => panic!("{other}"),
            },
        ),
        "mpt" => (
            "transformer.blocks",
            match name {
                "attn_norm" => "norm_1",
                "attn_qkv" => "attn.Wqkv",
                "attn_output" => "attn.out_proj",
                "ffn_norm" => "norm_2",
                "ffn_up" => "ffn.up_proj",
                "ffn_down" => "ffn.down_proj",
                other => panic!("{other}"),
            },
        ),
        "lfm2" => (
            "model.layers",
            match name {
                "attn_norm" => "operator_norm",
                "ffn_norm" => "ffn_norm",
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_output" => "self_attn.out_proj",
                "attn_q_norm" => "self_attn.q_layernorm",
                "attn_k_norm" => "self_attn.k_layernorm",
                "shortconv.in_proj" => "conv.in_proj",
                "shortconv.conv" => "conv.conv",
                "shortconv.out_proj" => "conv.out_proj",
                "ffn_gate" => "feed_forward.w1",
                "ffn_up" => "feed_forward.w3",
                "ffn_down" => "feed_forward.w2",
                other => panic!("{other}"),
            },
        ),
        _ => (
            "model.layers",
            match name {
                "attn_norm" => "input_layernorm",
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_qkv" => "self_attn.qkv_proj",
                "attn_output" => "self_attn.o_proj",
                "attn_q_norm" => "self_attn.q_norm",
                "attn_k_norm" => "self_attn.k_norm",
                "post_attention_norm" => "post_attention_layernorm",
                "ffn_norm" if gemma => "pre_feedforward_layernorm",
                "ffn_norm" => "post_attention_layernorm",
                "post_ffw_norm" => "post_feedforward_layernorm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" if architecture == "phi3" => "mlp.gate_up_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                "ffn_gate_inp" if architecture == "granitemoe" => "block_sparse_moe.router.layer",
                "ffn_gate_inp" => "mlp.gate",
                "ffn_gate_exps" if architecture == "granitemoe" => "gate_exps",
                "ffn_up_exps" if architecture == "granitemoe" => "up_exps",
                "ffn_down_exps" if architecture == "granitemoe" => "block_sparse_moe.output_linear",
                "ffn_gate_exps" => "experts gate_proj",
                "ffn_up_exps" => "experts up_proj",
                "ffn_down_exps" => "experts down_proj",
                other => panic!("{other}"),
            },
        ),
    }
}

/// Granite keeps the experts' gate and up in one tensor: [experts, gate then up, embedding].
fn fuse(tiny: &Tiny, tensors: Vec<Tensor>) -> Vec<Tensor> {
    let mut out: Vec<Tensor> = Vec::new();
    let mut gate: Option<Tensor> = None;
    for tensor in tensors {
        if tensor.name.ends_with("gate_exps.weight") {
            gate = Some(tensor);
        } else if tensor.name.ends_with("up_exps.weight") {
            let gate = gate.take().expect("gate comes before up");
            out.push(both(
                tiny.experts,
                &gate,
                &tensor,
                "block_sparse_moe.input_linear.weight",
            ));
        } else {
            out.push(tensor);
        }
    }
    out
}

/// `gate` and `up` of every expert in one tensor called `name` in the layer of `gate`.
pub fn both(experts: usize, gate: &Tensor, up: &Tensor, name: &str) -> Tensor {
    let each = gate.bytes.len() / experts;
    let pairs = gate.bytes.chunks(each).zip(up.bytes.chunks(each));
    let bytes = pairs.flat_map(|(gate, up)| [gate, up].concat()).collect();
    let layer: Vec<&str> = gate.name.split('.').take(3).collect();
    Tensor {
        name: format!("{}.{name}", layer.join(".")),
        element: gate.element,
        shape: vec![gate.shape[0], 2 * gate.shape[1], gate.shape[2]],
        bytes,
    }
}

fn each_float(tensor: &mut Tensor, change: impl Fn(f32) -> f32) {
    assert_eq!(tensor.element, "F32");
    for raw in tensor.bytes.chunks_exact_mut(4) {
        let value = f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
        raw.copy_from_slice(&change(value).to_le_bytes());
    }
}

/// Rows 2j and 2j + 1 of a head go to j and j + half.
fn permute_rows(tensor: &mut Tensor, head_dim: usize) {
    let rows = tensor.shape[0] as usize;
    let row_bytes = tensor.bytes.len() / rows;
    let half = head_dim / 2;
    let from = |row: usize| {
        let (head, within) = (row / head_dim, row % head_dim);
        head * head_dim + 2 * (within % half) + within / half
    };
    let old = tensor.bytes.clone();
    for (row, target) in tensor.bytes.chunks_mut(row_bytes).enumerate() {
        target.copy_from_slice(&old[from(row) * row_bytes..][..row_bytes]);
    }
}

fn transpose(tensor: &mut Tensor) {
    let (rows, columns) = (tensor.shape[0] as usize, tensor.shape[1] as usize);
    let size = tensor.bytes.len() / (rows * columns);
    let old = tensor.bytes.clone();
    for row in 0..rows {
        for column in 0..columns {
            let (from, to) = (
                size * (row * columns + column),
                size * (column * rows + row),
            );
            tensor.bytes[to..to + size].copy_from_slice(&old[from..from + size]);
        }
    }
    tensor.shape.reverse();
}

/// Query, key and value of a head together.
fn interleave(tensor: &mut Tensor, heads: usize) {
    let each = tensor.bytes.len() / (3 * heads);
    let old = tensor.bytes.clone();
    for (index, target) in tensor.bytes.chunks_mut(each).enumerate() {
        let (head, part) = (index / 3, index % 3);
        target.copy_from_slice(&old[(part * heads + head) * each..][..each]);
    }
}

fn config(tiny: &Tiny, file: &ModelFile) -> Map<String, Value> {
    let vocabulary = file
        .tensor("token_embd.weight")
        .expect("an embedding")
        .rows();
    let mut config = match tiny.architecture {
        "gpt2" => json!({
            "n_layer": tiny.layers, "n_embd": tiny.embedding, "n_head": tiny.heads, "n_positions": 512, "n_ctx": 512,
            "n_inner": null, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        }),
        "bloom" => json!({
            "n_layer": tiny.layers, "hidden_size": tiny.embedding, "n_head": tiny.heads, "seq_length": 512,
            "layer_norm_epsilon": 1e-5, "apply_residual_connection_post_layernorm": false,
        }),
        "mpt" => json!({
            "n_layers": tiny.layers, "d_model": tiny.embedding, "n_heads": tiny.heads, "max_seq_len": 512,
            "expansion_ratio": 4, "no_bias": true,
            "attn_config": { "alibi": true, "alibi_bias_max": 8, "clip_qkv": 6.0, "qk_ln": false, "softmax_scale": null },
        }),
        _ => json!({
            "num_hidden_layers": tiny.layers, "hidden_size": tiny.embedding, "num_attention_heads": tiny.heads,
            "num_key_value_heads": if tiny.architecture == "olmoe" { tiny.heads } else { tiny.kv_heads },
            "head_dim": tiny.head_dim, "intermediate_size": tiny.feed_forward, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "rope_theta": 50000.0, "rope_scaling": null, "hidden_act": "silu",
        }),
    };
    let experts = json!({ "num_experts": tiny.experts, "num_experts_per_tok": tiny.used_experts });
    let (model_type, more) = match tiny.architecture {
        "gemma2" => (
            "gemma2",
            json!({
                "rope_theta": 10000.0, "sliding_window": tiny.window, "query_pre_attn_scalar": tiny.head_dim,
                "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh",
            }),
        ),
        "gemma3" => (
            "gemma3_text",
            json!({
                "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window": tiny.window,
                "query_pre_attn_scalar": tiny.head_dim, "sliding_window_pattern": 6, "attn_logit_softcapping": null,
                "final_logit_softcapping": null, "hidden_activation": "gelu_pytorch_tanh",
            }),
        ),
        "phi3" => (
            "phi3",
            json!({ "original_max_position_embeddings": 512, "sliding_window": tiny.window }),
        ),
        "smollm3" => (
            "smollm3",
            json!({
                "no_rope_layers": (1..=tiny.layers).map(|layer| i32::from(layer % 4 != 0)).collect::<Vec<_>>(),
            }),
        ),
        "granite" => ("granite", granite()),
        "granitemoe" => {
            let mut more = granite();
            more["num_local_experts"] = json!(tiny.experts);
            more["num_experts_per_tok"] = json!(tiny.used_experts);
            ("granitemoe", more)
        }
        "olmoe" => ("olmoe", experts),
        "qwen3moe" => {
            let mut more = experts;
            more["norm_topk_prob"] = json!(true);
            more["moe_intermediate_size"] = json!(tiny.feed_forward);
            ("qwen3_moe", more)
        }
        "lfm2" => {
            let kinds = (0..tiny.layers).map(|layer| {
                if layer % 3 == 2 {
                    "full_attention"
                } else {
                    "conv"
                }
            });
            (
                "lfm2",
                json!({
                    "layer_types": kinds.collect::<Vec<_>>(), "conv_L_cache": 3, "conv_bias": false, "norm_eps": 1e-6,
                    "block_ff_dim": tiny.feed_forward, "block_auto_adjust_ff_dim": false, "tie_embedding": !tiny.untied,
                }),
            )
        }
        same => (same, json!({})),
    };
    config["model_type"] = json!(model_type);
    config["vocab_size"] = json!(vocabulary);
    let (Value::Object(mut config), Value::Object(more)) = (config, more) else {
        unreachable!("both are objects");
    };
    config.extend(more);
    config
}

fn granite() -> Value {
    json!({
        "attention_multiplier": 0.0625, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0,
    })
}
