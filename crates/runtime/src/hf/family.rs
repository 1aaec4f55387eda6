//! The families of checkpoints: which architecture each is, and what it asks of its configuration.

use serde_json::{Value, json};

use super::config::{Config, brief};
use super::names::{self, Rule};
use crate::gguf::ModelFileError;

/// How the checkpoints with some `model_type` are read.
pub(super) struct Family {
    /// `general.architecture` of the model.
    pub(super) architecture: &'static str,
    /// Tables of tensor names; the first rule that fits counts.
    rules: [&'static [Rule]; 2],
    /// Rotary positions; the halves of a head are rotated together in every checkpoint.
    pub(super) rotary: bool,
    /// Rotary base when the configuration has none.
    pub(super) rope_base: f64,
}

const NONE: &[Rule] = &[];

impl Family {
    /// The family of `config`.
    ///
    /// # Errors
    /// When it is not known, or asks for something that the model cannot do.
    pub(super) fn of(config: &Config) -> Result<Self, ModelFileError> {
        if config.value(&["quantization_config"]).is_some() {
            return Err(config.refuse(
                "`quantization_config` declares quantised weights; take the original checkpoint or a GGUF file",
            ));
        }
        let Some(model_type) = config.string(&["model_type"])? else {
            return Err(config.missing(&["model_type"]));
        };
        let family = Self::named(model_type, config)?.ok_or_else(|| {
            config.refuse(&format!(
                "`model_type` is {}, which is not supported; take one of {}, or a GGUF file",
                brief(&Value::from(model_type)),
                MODEL_TYPES.join(", ")
            ))
        })?;
        family.check(config)?;
        Ok(family)
    }

    fn named(model_type: &str, config: &Config) -> Result<Option<Self>, ModelFileError> {
        use names::*;
        let rotary = |architecture, special, rope_base| Family {
            architecture,
            rules: [special, COMMON],
            rotary: true,
            rope_base,
        };
        let learnt = |architecture, special| Family {
            architecture,
            rules: [special, HEAD],
            rotary: false,
            rope_base: 0.0,
        };
        Ok(Some(match model_type {
            "llama" | "mistral" => rotary("llama", NONE, 1e4),
            "mixtral" => rotary("llama", MIXTRAL, 1e6),
            "qwen2" => rotary("qwen2", NONE, 1e4),
            "qwen3" => rotary("qwen3", QWEN, 1e4),
            "qwen3_moe" => rotary("qwen3moe", QWEN, 1e4),
            "olmoe" => rotary("olmoe", QWEN, 1e4),
            "gemma2" => rotary("gemma2", GEMMA, 1e4),
            "gemma3_text" | "gemma3" => rotary("gemma3", GEMMA, 1e6),
            "phi3" => rotary("phi3", PHI3, 1e4),
            "smollm3" => rotary("smollm3", NONE, 2e6),
            "granite" => rotary("granite", NONE, 1e4),
            "granitemoe" | "granitemoeshared" => rotary("granitemoe", GRANITE_EXPERTS, 1e4),
            "granitemoehybrid" => {
                let family = match config.unsigned(&["num_local_experts"])? {
                    None | Some(0) => rotary("granite", GRANITE_DENSE, 1e4),
                    Some(_) => rotary("granitemoe", GRANITE_EXPERTS, 1e4),
                };
                let positions = config.string(&["position_embedding_type"])?;
                Family {
                    rotary: positions == Some("rope"),
                    ..family
                }
            }
            "lfm2" => rotary("lfm2", LFM2, 1e6),
            "bloom" => learnt("bloom", BLOOM),
            "gpt2" => learnt("gpt2", GPT2),
            "mpt" => learnt("mpt", MPT),
            _ => return Ok(None),
        }))
    }

    /// Every rule, those that count first.
    pub(super) fn rules(&self) -> impl Iterator<Item = &'static Rule> {
        self.rules.into_iter().flatten()
    }

    /// The rules for tensors named `pattern`: one, or two for a tensor that holds two.
    pub(super) fn rules_for(&self, pattern: &str) -> impl Iterator<Item = &'static Rule> {
        let table = self
            .rules
            .into_iter()
            .find(|table| table.iter().any(|rule| rule.from == pattern));
        table
            .unwrap_or(NONE)
            .iter()
            .filter(move |rule| rule.from == pattern)
    }

    /// That every switch which changes the computation stands where the model has it.
    fn check(&self, config: &Config) -> Result<(), ModelFileError> {
        let silu = [json!("silu"), json!("swish")];
        let gelu = ["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu"].map(Value::from);
        let (no, yes) = ([json!(false)], [json!(true)]);
        match self.architecture {
            "gemma2" | "gemma3" => {
                // `hidden_act` is a remnant: `hidden_activation` is what counts.
                config.only("hidden_activation", &gelu[..1])?;
                config.only("use_bidirectional_attention", &no)?;
            }
            "gpt2" => {
                config.only("activation_function", &gelu)?;
                config.only("scale_attn_weights", &yes)?;
                config.only("scale_attn_by_inverse_layer_idx", &no)?;
                config.only("add_cross_attention", &no)?;
            }
            "bloom" => config.only("apply_residual_connection_post_layernorm", &no)?,
            "mpt" => {
                config.only("logit_scale", &[])?;
                config.only("embedding_fraction", &[json!(1), json!(1.0)])?;
                if let Some(attention) = config.object(&["attn_config"])? {
                    attention.only("qk_ln", &no)?;
                    attention.only("prefix_lm", &no)?;
                    attention.only("softmax_scale", &[])?;
                    attention.only("rope", &no)?;
                }
            }
            _ => {
                config.only("hidden_act", &silu)?;
                config.only("use_sliding_window", &no)?;
                config.only("clip_qkv", &[])?;
                config.only(
                    "position_embedding_type",
                    &["rope", "nope"].map(Value::from),
                )?;
                config.only("conv_bias", &no)?;
            }
        }
        Ok(())
    }
}

/// Every `model_type` that [`Family::named`] knows, for people.
const MODEL_TYPES: [&str; 20] = [
    "bloom",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt2",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "lfm2",
    "llama",
    "mistral",
    "mixtral",
    "mpt",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_type_is_known() {
        for model_type in MODEL_TYPES {
            let config = Config::of(json!({ "model_type": model_type }));
            let family = Family::of(&config).unwrap();
            assert!(crate::model::ARCHITECTURES.contains(&family.architecture));
        }
    }

    #[test]
    fn what_cannot_be_computed_is_refused() {
        let refused = [
            json!({ "model_type": "llama", "hidden_act": "relu" }),
            json!({ "model_type": "llama", "quantization_config": { "bits": 4 } }),
            json!({ "model_type": "qwen2", "use_sliding_window": true }),
            json!({ "model_type": "gemma3_text", "use_bidirectional_attention": true }),
            json!({ "model_type": "olmoe", "clip_qkv": 8.0 }),
            json!({ "model_type": "mpt", "attn_config": { "qk_ln": true } }),
            json!({ "model_type": "granitemoehybrid", "position_embedding_type": "learnt" }),
            json!({ "model_type": "unheard_of" }),
            json!({ "model_type": 3 }),
            json!({}),
        ];
        for config in refused {
            let error = Family::of(&Config::of(config.clone())).err();
            let error = error.unwrap_or_else(|| panic!("{config}")).to_string();
            assert!(error.starts_with("config.json: `"), "{error}");
        }
    }
}
