//! `config.json` as the metadata that a model file of the same architecture has.

use serde_json::Value;

use super::config::Config;
use super::family::Family;
use super::rope::{self, Factors};
use crate::Limits;
use crate::gguf::{HeaderWriter, ModelFileError};

/// A header in the making: its keys are the architecture's own, or general ones.
pub(super) struct Header {
    writer: HeaderWriter,
    architecture: &'static str,
}

impl Header {
    pub(super) fn new(architecture: &'static str) -> Self {
        let mut header = Header {
            writer: HeaderWriter::new(),
            architecture,
        };
        header.string("general.architecture", architecture);
        header
    }

    pub(super) fn string(&mut self, key: &str, value: &str) {
        self.writer.string(key, value);
    }

    pub(super) fn unsigned(&mut self, key: &str, value: u32) {
        self.writer.u32(key, value);
    }

    pub(super) fn own_string(&mut self, key: &str, value: &str) {
        let key = self.own(key);
        self.writer.string(&key, value);
    }

    pub(super) fn own_unsigned(&mut self, key: &str, value: u32) {
        let key = self.own(key);
        self.writer.u32(&key, value);
    }

    pub(super) fn own_float(&mut self, key: &str, value: f64) {
        let key = self.own(key);
        self.writer.f32(&key, value as f32);
    }

    fn own_flag(&mut self, key: &str, value: bool) {
        let key = self.own(key);
        self.writer.boolean(&key, value);
    }

    fn own_flags(&mut self, key: &str, values: &[bool]) {
        let key = self.own(key);
        self.writer.boolean_array(&key, values);
    }

    fn own(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(super) fn finish(&self) -> Vec<u8> {
        self.writer.finish()
    }
}

/// What the tensors are checked against and arranged by.
pub(super) struct Shape {
    /// Layers, at most [`Limits::layers`].
    pub(super) layers: u32,
    /// Experts of a layer, at most [`Limits::experts`]; 0 for none.
    pub(super) experts: u32,
    /// Query heads.
    pub(super) heads: u32,
    /// Tokens of the vocabulary, where the configuration says.
    pub(super) vocabulary: Option<u32>,
    /// Frequency factors of the rotary positions.
    pub(super) factors: Factors,
}

/// Writes everything that `config` says about a model of `family`.
pub(super) fn write(
    header: &mut Header,
    config: &Config,
    family: &Family,
    limits: &Limits,
) -> Result<Shape, ModelFileError> {
    let of = Sizes::of(config, family, limits)?;
    header.own_unsigned("block_count", of.layers);
    header.own_unsigned("context_length", of.context);
    header.own_unsigned("embedding_length", of.embedding);
    header.own_unsigned(
        "feed_forward_length",
        feed_forward(config, family, of.embedding)?,
    );
    header.own_unsigned("attention.head_count", of.heads);
    let vocabulary = config.unsigned(&["vocab_size"])?;
    if let Some(vocabulary) = vocabulary {
        header.own_unsigned("vocab_size", vocabulary);
    }
    let experts = experts(header, config, limits)?;
    let factors = if family.rope_base > 0.0 {
        rotary_family(header, config, family, &of)?
    } else {
        learnt_family(header, config, family, &of)?;
        Factors::new()
    };
    Ok(Shape {
        layers: of.layers,
        experts,
        heads: of.heads,
        vocabulary,
        factors,
    })
}

struct Sizes {
    layers: u32,
    context: u32,
    embedding: u32,
    heads: u32,
    /// [`Limits::width`]
    most_width: u64,
}

impl Sizes {
    fn of(config: &Config, family: &Family, limits: &Limits) -> Result<Self, ModelFileError> {
        // Gemma 3 leaves out what equals the defaults of its smallest model.
        let gemma3 = |default| (family.architecture == "gemma3").then_some(default);
        let layer_keys = ["num_hidden_layers", "n_layer", "n_layers"];
        let layers = config.size(&layer_keys, gemma3(26))?;
        if layers > limits.layers {
            let most = format!("at most {}", limits.layers);
            return Err(config.wrong(&layer_keys, &most));
        }
        let context = match family.architecture {
            "bloom" => config.size(&["seq_length"], Some(2048))?,
            "mpt" => config.size(&["max_seq_len"], Some(2048))?,
            "gpt2" => config.size(&["n_positions", "n_ctx"], Some(1024))?,
            _ => config.size(&["max_position_embeddings"], gemma3(131_072))?,
        };
        Ok(Sizes {
            layers,
            context,
            embedding: config.size(
                &["hidden_size", "n_embd", "n_embed", "d_model"],
                gemma3(2304),
            )?,
            heads: config.size(&["num_attention_heads", "n_head", "n_heads"], gemma3(8))?,
            most_width: limits.width,
        })
    }
}

fn feed_forward(config: &Config, family: &Family, embedding: u32) -> Result<u32, ModelFileError> {
    let multiple = |factor: u32| embedding.checked_mul(factor);
    match family.architecture {
        "bloom" => multiple(4),
        "gpt2" => match config.unsigned(&["n_inner"])? {
            Some(width) => Some(width),
            None => multiple(4),
        },
        "mpt" => multiple(config.size(&["expansion_ratio"], Some(4))?),
        "lfm2" => lfm2_feed_forward(config)?,
        // Granite 4 without experts has only the shared network.
        "granite" if config.value(&["shared_intermediate_size"]).is_some() => {
            Some(config.size(&["shared_intermediate_size"], None)?)
        }
        "gemma3" => Some(config.size(&["intermediate_size"], Some(9216))?),
        _ => Some(config.size(&["intermediate_size"], None)?),
    }
    .ok_or_else(|| {
        config.refuse("declares a feed-forward network that is too wide; fetch it again")
    })
}

/// LFM2 states a width that is then reduced and rounded, unless told not to.
fn lfm2_feed_forward(config: &Config) -> Result<Option<u32>, ModelFileError> {
    let width = config.size(&["block_ff_dim", "intermediate_size"], None)?;
    if !config
        .boolean(&["block_auto_adjust_ff_dim"])?
        .unwrap_or(true)
    {
        return Ok(Some(width));
    }
    let two_thirds = f64::from((u64::from(width) * 2 / 3) as u32);
    let multiplier = config
        .positive(&["block_ffn_dim_multiplier"])?
        .unwrap_or(1.0);
    let step = config.size(&["block_multiple_of"], Some(256))?;
    let scaled = (multiplier * two_thirds) as u64;
    Ok(u32::try_from(scaled.next_multiple_of(step.into())).ok())
}

fn experts(header: &mut Header, config: &Config, limits: &Limits) -> Result<u32, ModelFileError> {
    const COUNT: [&str; 2] = ["num_local_experts", "num_experts"];
    let count = match header.architecture {
        "llama" | "qwen3moe" | "olmoe" | "granitemoe" => config.unsigned(&COUNT)?.unwrap_or(0),
        _ => 0,
    };
    if count > limits.experts {
        return Err(config.wrong(&COUNT, &format!("at most {}", limits.experts)));
    }
    if count == 0 {
        return Ok(0);
    }
    header.own_unsigned("expert_count", count);
    let used = config.size(&["num_experts_per_tok"], None)?;
    header.own_unsigned("expert_used_count", used);
    if let Some(width) = config.unsigned(&["moe_intermediate_size"])? {
        header.own_unsigned("expert_feed_forward_length", width);
    }
    if let Some(width) = config.unsigned(&["shared_intermediate_size"])? {
        header.own_unsigned("expert_shared_feed_forward_length", width);
    }
    if ["qwen3moe", "olmoe"].contains(&header.architecture) {
        let normalise = config.boolean(&["norm_topk_prob"])?.unwrap_or(false);
        header.own_flag("expert_weights_norm", normalise);
    }
    Ok(count)
}

/// Llama and those who came after: RMS norms, grouped heads, rotary positions.
fn rotary_family(
    header: &mut Header,
    config: &Config,
    family: &Family,
    of: &Sizes,
) -> Result<Factors, ModelFileError> {
    let gemma3 = family.architecture == "gemma3";
    let epsilon = config
        .positive(&["rms_norm_eps", "norm_eps"])?
        .or(match family.architecture {
            "gemma2" | "gemma3" | "granite" | "granitemoe" => Some(1e-6),
            "lfm2" | "olmoe" => Some(1e-5),
            _ => None,
        })
        .ok_or_else(|| config.missing(&["rms_norm_eps"]))?;
    header.own_float("attention.layer_norm_rms_epsilon", epsilon);
    let kv_heads = config.size(
        &["num_key_value_heads"],
        Some(if gemma3 { 4 } else { of.heads }),
    )?;
    match convolutions(config, family, of.layers)? {
        Some(convolutions) => {
            let heads: Vec<i32> = convolutions
                .iter()
                .map(|&convolution| if convolution { 0 } else { kv_heads as i32 })
                .collect();
            let key = header.own("attention.head_count_kv");
            header.writer.i32_array(&key, &heads);
            let taps = config.size(&["conv_L_cache"], Some(3))?;
            header.own_unsigned("shortconv.l_cache", taps);
        }
        None => header.own_unsigned("attention.head_count_kv", kv_heads),
    }
    let default_size = match family.architecture {
        "gemma2" | "gemma3" => 256,
        "qwen3" | "qwen3moe" => 128,
        _ => of.embedding / of.heads,
    };
    let head_size = config.unsigned(&["head_dim"])?.unwrap_or(default_size);
    if u64::from(head_size) > of.most_width {
        return Err(config.wrong(&["head_dim"], &format!("at most {}", of.most_width)));
    }
    header.own_unsigned("attention.key_length", head_size);
    header.own_unsigned("attention.value_length", head_size);
    windows(header, config, family, of.layers)?;
    scales(header, config, family)?;
    if family.rotary {
        rope::write(header, config, family, head_size, of.context)
    } else {
        header.own_flag("rope.scaling.finetuned", false);
        Ok(Factors::new())
    }
}

/// Which layers of an LFM2 are convolutions.
fn convolutions(
    config: &Config,
    family: &Family,
    layers: u32,
) -> Result<Option<Vec<bool>>, ModelFileError> {
    if family.architecture != "lfm2" {
        return Ok(None);
    }
    if let Some(kinds) = kinds(config, layers)? {
        return Ok(Some(kinds.iter().map(|&kind| kind == "conv").collect()));
    }
    const KEY: &str = "full_attn_idxs";
    let Some(Value::Array(attention)) = config.value(&[KEY]) else {
        return Err(config.missing(&["layer_types", KEY]));
    };
    let mut convolutions = vec![true; layers as usize];
    for index in attention {
        let index = index.as_u64().and_then(|index| usize::try_from(index).ok());
        let Some(layer) = index.and_then(|index| convolutions.get_mut(index)) else {
            return Err(config.wrong(&[KEY], "a list of layers"));
        };
        *layer = false;
    }
    Ok(Some(convolutions))
}

/// `layer_types`: the kind of every layer.
fn kinds(config: &Config, layers: u32) -> Result<Option<Vec<&str>>, ModelFileError> {
    const KEY: &str = "layer_types";
    let Some(list) = config.list(KEY, layers as usize)? else {
        return Ok(None);
    };
    const KINDS: [&str; 4] = ["full_attention", "sliding_attention", "conv", "attention"];
    let kinds = list.iter().map(|kind| {
        let kind = kind.as_str();
        kind.filter(|kind| KINDS.contains(kind))
    });
    match kinds.collect::<Option<Vec<_>>>() {
        Some(kinds) => Ok(Some(kinds)),
        None => Err(config.wrong(&[KEY], &format!("a list of {}", KINDS.join(", ")))),
    }
}

fn windows(
    header: &mut Header,
    config: &Config,
    family: &Family,
    layers: u32,
) -> Result<(), ModelFileError> {
    let sliding = kinds(config, layers)?.map(|kinds| {
        kinds
            .iter()
            .map(|&kind| kind == "sliding_attention")
            .collect::<Vec<_>>()
    });
    let window = config.unsigned(&["sliding_window"])?;
    match family.architecture {
        "gemma2" | "gemma3" => {
            let default = if config.mentions("sliding_window") {
                0
            } else {
                4096
            };
            header.own_unsigned("attention.sliding_window", window.unwrap_or(default));
            let periods = ["sliding_window_pattern", "_sliding_window_pattern"];
            if let Some(sliding) = sliding {
                header.own_flags("attention.sliding_window_pattern", &sliding);
            } else if let Some(period) = config.unsigned(&periods)? {
                header.own_unsigned("attention.sliding_window_pattern", period);
            }
            return Ok(());
        }
        "phi3" => {
            header.own_unsigned("attention.sliding_window", window.unwrap_or(0));
            return Ok(());
        }
        "llama" if config.string(&["model_type"])? == Some("mistral") => {
            // The first Mistral did not say its window; the others say `null`.
            let said = config.mentions("sliding_window");
            let window = window.or((!said).then_some(4096));
            if let Some(window) = window {
                header.own_unsigned("attention.sliding_window", window);
            }
        }
        "smollm3" => rope_pattern(header, config, layers)?,
        _ => {}
    }
    if sliding.is_some_and(|sliding| sliding.contains(&true)) {
        return Err(config.refuse(
            "`layer_types` has sliding attention, which is not supported for this kind of model",
        ));
    }
    Ok(())
}

/// Which layers of a SmolLM3 have rotary positions.
fn rope_pattern(header: &mut Header, config: &Config, layers: u32) -> Result<(), ModelFileError> {
    const LIST: &str = "no_rope_layers";
    let rotated: Vec<bool> = match config.list(LIST, layers as usize)? {
        // The name deceives: 1 stands for a layer with rotary positions.
        Some(list) => list
            .iter()
            .map(|flag| match flag {
                Value::Bool(flag) => Some(*flag),
                flag => flag
                    .as_u64()
                    .filter(|&flag| flag <= 1)
                    .map(|flag| flag == 1),
            })
            .collect::<Option<_>>()
            .ok_or_else(|| config.wrong(&[LIST], "a list of 0 and 1"))?,
        None => {
            let period = config.size(&["no_rope_layer_interval"], Some(4))?;
            (1..=layers).map(|layer| layer % period != 0).collect()
        }
    };
    header.own_flags("attention.rope_pattern", &rotated);
    Ok(())
}

/// Scales and caps.
fn scales(header: &mut Header, config: &Config, family: &Family) -> Result<(), ModelFileError> {
    match family.architecture {
        "gemma2" | "gemma3" => {
            let scalar = config
                .positive(&["query_pre_attn_scalar"])?
                .unwrap_or(256.0);
            header.own_float("attention.scale", (1.0 / (scalar as f32).sqrt()).into());
            let gemma2 = family.architecture == "gemma2";
            let cap = |keys: &[&str], default: f64| match config.float(keys)? {
                Some(cap) => Ok(cap),
                // `null` switches a cap off; only a file of another origin leaves it out.
                None if gemma2 && !config.mentions(keys[0]) => Ok(default),
                None => Ok(0.0),
            };
            let attention = cap(&["attn_logit_softcapping"], 50.0)?;
            let logits = cap(&["final_logit_softcapping"], 30.0)?;
            if gemma2 {
                header.own_float("attn_logit_softcapping", attention);
            } else if attention != 0.0 {
                let what = "`attn_logit_softcapping` is set, which is not supported for Gemma 3";
                return Err(config.refuse(what));
            }
            header.own_float("final_logit_softcapping", logits);
        }
        "granite" | "granitemoe" => {
            for (key, name) in [
                ("attention_multiplier", "attention.scale"),
                ("embedding_multiplier", "embedding_scale"),
                ("residual_multiplier", "residual_scale"),
                ("logits_scaling", "logit_scale"),
            ] {
                let scale = config.positive(&[key])?.unwrap_or(1.0);
                header.own_float(name, scale);
            }
        }
        _ => {}
    }
    Ok(())
}

/// GPT-2 and its time: LayerNorm, learnt positions or ALiBi.
fn learnt_family(
    header: &mut Header,
    config: &Config,
    family: &Family,
    of: &Sizes,
) -> Result<(), ModelFileError> {
    let epsilon = config.positive(&["layer_norm_epsilon"])?.unwrap_or(1e-5);
    header.own_float("attention.layer_norm_epsilon", epsilon);
    if family.architecture != "mpt" {
        header.own_unsigned("attention.head_count_kv", of.heads);
        return Ok(());
    }
    let attention = config.object(&["attn_config"])?;
    let attention = attention.as_ref();
    let kv_heads = attention
        .map(|attention| attention.unsigned(&["kv_n_heads"]))
        .transpose()?
        .flatten();
    header.own_unsigned("attention.head_count_kv", kv_heads.unwrap_or(of.heads));
    if let Some(clamp) = number(attention, "clip_qkv")? {
        header.own_float("attention.clamp_kqv", clamp);
    }
    let alibi = attention
        .map(|attention| attention.boolean(&["alibi"]))
        .transpose()?
        .flatten()
        .unwrap_or(true);
    let bias = number(attention, "alibi_bias_max")?.unwrap_or(8.0);
    header.own_float("attention.max_alibi_bias", if alibi { bias } else { 0.0 });
    Ok(())
}

/// A number that zero switches off.
fn number(config: Option<&Config>, key: &str) -> Result<Option<f64>, ModelFileError> {
    match config {
        Some(config) => Ok(config.float(&[key])?.filter(|&number| number > 0.0)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gguf::ModelFile;

    fn metadata(config: Value) -> ModelFile {
        let config = Config::of(config);
        let family = Family::of(&config).unwrap();
        let limits = Limits::default();
        let mut header = Header::new(family.architecture);
        write(&mut header, &config, &family, &limits).unwrap();
        ModelFile::from_parts(header.finish(), vec![], vec![], vec![], &limits).unwrap()
    }

    /// Published Gemma 3 configurations say only what differs from the defaults.
    #[test]
    fn gemma3_defaults() {
        let file = metadata(json!({
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
                "num_hidden_layers": 34, "rope_scaling": { "factor": 8.0, "rope_type": "linear" },
                "sliding_window": 1024,
            },
        }));
        let unsigned = |key: &str| file.metadata.unsigned(&format!("gemma3.{key}")).unwrap();
        assert_eq!(unsigned("attention.head_count"), Some(8));
        assert_eq!(unsigned("attention.head_count_kv"), Some(4));
        assert_eq!(unsigned("attention.key_length"), Some(256));
        assert_eq!(unsigned("context_length"), Some(131_072));
        assert_eq!(unsigned("attention.sliding_window"), Some(1024));
        let float = |key: &str| file.metadata.float(&format!("gemma3.{key}")).unwrap();
        assert_eq!(float("attention.scale"), Some(1.0 / 16.0));
        assert_eq!(float("rope.freq_base"), Some(1e6));
        assert_eq!(float("rope.freq_base_swa"), Some(1e4));
        assert_eq!(float("rope.scaling.factor"), Some(8.0));
    }

    /// LFM2-350M declares 6656 and has 4608; Granite 4 without experts has only the shared network.
    #[test]
    fn derived_widths() {
        let lfm2 = |adjust: bool| {
            let config = json!({
                "block_ff_dim": 6656, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256,
                "block_auto_adjust_ff_dim": adjust,
            });
            lfm2_feed_forward(&Config::of(config)).unwrap()
        };
        assert_eq!((lfm2(true), lfm2(false)), (Some(4608), Some(6656)));
        let granite = metadata(json!({
            "model_type": "granitemoehybrid", "num_local_experts": 0, "num_hidden_layers": 2,
            "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4,
            "shared_intermediate_size": 2048, "intermediate_size": 512,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "position_embedding_type": "rope",
        }));
        let width = granite
            .metadata
            .unsigned("granite.feed_forward_length")
            .unwrap();
        assert_eq!(width, Some(2048));
        assert!(!granite.metadata.contains("granite.rope.scaling.finetuned"));
    }
}
