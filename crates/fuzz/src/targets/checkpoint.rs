//! A Hugging Face directory: `config.json` and safetensors, one after the other in the input.

use crate::Target;
use crate::directory::Directory;
use ondine_runtime::Limits;
use ondine_runtime::hf;
use ondine_runtime::model::model_spec;

/// Between the configuration and the weights.
const MARK: &[u8] = b"\n---\n";

pub(super) const TARGET: Target = Target {
    name: "checkpoint",
    run,
    words: &[
        "\n---\n",
        "\"model_type\":\"llama\"",
        "\"architectures\"",
        "\"hidden_size\"",
        "\"num_hidden_layers\"",
        "\"num_attention_heads\"",
        "\"rope_scaling\"",
        "\"rope_type\":\"llama3\"",
        "\"layer_types\"",
        "\"tie_word_embeddings\":true",
        "\"dtype\":\"F16\"",
        "\"shape\":[",
        "\"data_offsets\":[0,",
        "__metadata__",
        "gemma3_text",
        "lfm2",
        "1e400",
        "-1",
    ],
    seeds,
};

thread_local! {
    static DIRECTORY: Directory = Directory::new("checkpoint");
}

fn run(bytes: &[u8]) {
    let at = bytes.windows(MARK.len()).position(|part| part == MARK);
    let (config, weights) = match at {
        Some(at) => (&bytes[..at], &bytes[at + MARK.len()..]),
        None => (bytes, &[][..]),
    };
    DIRECTORY.with(|directory| {
        directory.put("config.json", config);
        directory.put("model.safetensors", weights);
        let limits = Limits::default();
        match hf::open(directory.path(), &limits) {
            Ok(file) => {
                for tensor in file.tensors() {
                    let mut first = [0u8; 1];
                    if tensor.bytes > 0 {
                        let source = file.source(tensor);
                        source.read_at(tensor.offset, &mut first).expect("inside");
                        let last = tensor.offset + tensor.bytes - 1;
                        source.read_at(last, &mut first).expect("inside");
                    }
                }
                let _ = model_spec(&file, &limits);
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    });
}

fn seeds() -> Vec<Vec<u8>> {
    let configs = [
        r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":8,"intermediate_size":8,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,"vocab_size":4,"rms_norm_eps":1e-5,"rope_theta":10000.0,"max_position_embeddings":64,"tie_word_embeddings":true,"hidden_act":"silu","rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":16}}"#,
        r#"{"architectures":["Qwen3ForCausalLM"],"model_type":"qwen3","hidden_size":8,"intermediate_size":8,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,"vocab_size":4,"rms_norm_eps":1e-6,"max_position_embeddings":64,"hidden_act":"silu"}"#,
        r#"{"architectures":["Gemma3ForCausalLM"],"model_type":"gemma3_text","hidden_size":8,"intermediate_size":8,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,"vocab_size":4,"sliding_window":4,"layer_types":["sliding_attention"],"query_pre_attn_scalar":4,"rms_norm_eps":1e-6,"hidden_activation":"gelu_pytorch_tanh"}"#,
        r#"{"architectures":["GPT2LMHeadModel"],"model_type":"gpt2","n_embd":8,"n_layer":1,"n_head":2,"n_positions":16,"vocab_size":4,"layer_norm_epsilon":1e-5,"activation_function":"gelu_new"}"#,
    ];
    let weights = safetensors();
    configs
        .map(|config| [config.as_bytes(), MARK, &weights].concat())
        .to_vec()
}

/// The tensors of a llama of one layer, width 8, two heads of 4, one of them for keys and values, four tokens.
fn safetensors() -> Vec<u8> {
    let shapes: [(&str, &[u64]); 11] = [
        ("model.embed_tokens.weight", &[4, 8]),
        ("model.norm.weight", &[8]),
        ("model.layers.0.input_layernorm.weight", &[8]),
        ("model.layers.0.post_attention_layernorm.weight", &[8]),
        ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
        ("model.layers.0.self_attn.k_proj.weight", &[4, 8]),
        ("model.layers.0.self_attn.v_proj.weight", &[4, 8]),
        ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
        ("model.layers.0.mlp.gate_proj.weight", &[8, 8]),
        ("model.layers.0.mlp.up_proj.weight", &[8, 8]),
        ("model.layers.0.mlp.down_proj.weight", &[8, 8]),
    ];
    let mut offset = 0;
    let entries: Vec<String> = shapes
        .iter()
        .map(|(name, shape)| {
            let start = offset;
            offset += 2 * shape.iter().product::<u64>();
            format!(
                r#""{name}":{{"dtype":"F16","shape":{shape:?},"data_offsets":[{start},{offset}]}}"#
            )
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + offset as usize, 0x3c);
    bytes
}
