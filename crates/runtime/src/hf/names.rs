//! Which tensor of a checkpoint becomes which tensor of the model, for every family.
//!
//! A pattern is a name without its outer module (`model.`, `transformer.`), with `#` for the number
//! of a layer and `@` for that of an expert, and without `.weight` or `.bias`.

/// How a stored tensor is laid out, and so what is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As the model wants it.
    Same,
    /// A norm's weights, stored as their difference from one.
    PlusOne,
    /// [input, output] instead of [output, input].
    Transposed,
    /// Rows in the order head, then query/key/value, instead of query/key/value, then head.
    ByHead,
    /// A convolution's kernel [channels, 1, taps].
    Kernel,
    /// One expert's matrix; the model has all experts' in one tensor.
    Expert,
    /// Gate and up in one tensor, of each expert if there are several: the first half of the rows.
    FirstHalf,
    /// The second half of the rows.
    SecondHalf,
}

/// A pattern, the name it becomes (`#` for the layer), and how it is stored.
pub(super) struct Rule {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) form: Form,
}

const fn same(from: &'static str, to: &'static str) -> Rule {
    rule(from, to, Form::Same)
}

const fn rule(from: &'static str, to: &'static str, form: Form) -> Rule {
    Rule { from, to, form }
}

/// What most families since Llama share.
pub(super) const COMMON: &[Rule] = &[
    same("embed_tokens", "token_embd"),
    same("norm", "output_norm"),
    same("lm_head", "output"),
    same("layers.#.input_layernorm", "blk.#.attn_norm"),
    same("layers.#.post_attention_layernorm", "blk.#.ffn_norm"),
    same("layers.#.self_attn.q_proj", "blk.#.attn_q"),
    same("layers.#.self_attn.k_proj", "blk.#.attn_k"),
    same("layers.#.self_attn.v_proj", "blk.#.attn_v"),
    same("layers.#.self_attn.o_proj", "blk.#.attn_output"),
    same("layers.#.mlp.gate_proj", "blk.#.ffn_gate"),
    same("layers.#.mlp.up_proj", "blk.#.ffn_up"),
    same("layers.#.mlp.down_proj", "blk.#.ffn_down"),
];

/// The output head alone, for families that share nothing else.
pub(super) const HEAD: &[Rule] = &[same("lm_head", "output")];

pub(super) const MIXTRAL: &[Rule] = &[
    same("layers.#.block_sparse_moe.gate", "blk.#.ffn_gate_inp"),
    rule(
        "layers.#.block_sparse_moe.experts.@.w1",
        "blk.#.ffn_gate_exps",
        Form::Expert,
    ),
    rule(
        "layers.#.block_sparse_moe.experts.@.w2",
        "blk.#.ffn_down_exps",
        Form::Expert,
    ),
    rule(
        "layers.#.block_sparse_moe.experts.@.w3",
        "blk.#.ffn_up_exps",
        Form::Expert,
    ),
];

/// Norms of queries and keys (Qwen 3, OLMoE), and experts one by one or all together.
pub(super) const QWEN: &[Rule] = &[
    same("layers.#.self_attn.q_norm", "blk.#.attn_q_norm"),
    same("layers.#.self_attn.k_norm", "blk.#.attn_k_norm"),
    same("layers.#.mlp.gate", "blk.#.ffn_gate_inp"),
    rule(
        "layers.#.mlp.experts.@.gate_proj",
        "blk.#.ffn_gate_exps",
        Form::Expert,
    ),
    rule(
        "layers.#.mlp.experts.@.up_proj",
        "blk.#.ffn_up_exps",
        Form::Expert,
    ),
    rule(
        "layers.#.mlp.experts.@.down_proj",
        "blk.#.ffn_down_exps",
        Form::Expert,
    ),
    rule(
        "layers.#.mlp.experts.gate_up_proj",
        "blk.#.ffn_gate_exps",
        Form::FirstHalf,
    ),
    rule(
        "layers.#.mlp.experts.gate_up_proj",
        "blk.#.ffn_up_exps",
        Form::SecondHalf,
    ),
    same("layers.#.mlp.experts.down_proj", "blk.#.ffn_down_exps"),
];

pub(super) const GEMMA: &[Rule] = &[
    rule("norm", "output_norm", Form::PlusOne),
    rule("layers.#.input_layernorm", "blk.#.attn_norm", Form::PlusOne),
    rule(
        "layers.#.post_attention_layernorm",
        "blk.#.post_attention_norm",
        Form::PlusOne,
    ),
    rule(
        "layers.#.pre_feedforward_layernorm",
        "blk.#.ffn_norm",
        Form::PlusOne,
    ),
    rule(
        "layers.#.post_feedforward_layernorm",
        "blk.#.post_ffw_norm",
        Form::PlusOne,
    ),
    rule(
        "layers.#.self_attn.q_norm",
        "blk.#.attn_q_norm",
        Form::PlusOne,
    ),
    rule(
        "layers.#.self_attn.k_norm",
        "blk.#.attn_k_norm",
        Form::PlusOne,
    ),
];

pub(super) const PHI3: &[Rule] = &[
    same("layers.#.self_attn.qkv_proj", "blk.#.attn_qkv"),
    same("layers.#.mlp.gate_up_proj", "blk.#.ffn_up"),
];

pub(super) const GRANITE_EXPERTS: &[Rule] = &[
    same(
        "layers.#.block_sparse_moe.router.layer",
        "blk.#.ffn_gate_inp",
    ),
    rule(
        "layers.#.block_sparse_moe.input_linear",
        "blk.#.ffn_gate_exps",
        Form::FirstHalf,
    ),
    rule(
        "layers.#.block_sparse_moe.input_linear",
        "blk.#.ffn_up_exps",
        Form::SecondHalf,
    ),
    same(
        "layers.#.block_sparse_moe.output_linear",
        "blk.#.ffn_down_exps",
    ),
    rule(
        "layers.#.shared_mlp.input_linear",
        "blk.#.ffn_gate_shexp",
        Form::FirstHalf,
    ),
    rule(
        "layers.#.shared_mlp.input_linear",
        "blk.#.ffn_up_shexp",
        Form::SecondHalf,
    ),
    same("layers.#.shared_mlp.output_linear", "blk.#.ffn_down_shexp"),
];

/// Granite 4 without experts keeps the shared network's names.
pub(super) const GRANITE_DENSE: &[Rule] = &[
    rule(
        "layers.#.shared_mlp.input_linear",
        "blk.#.ffn_gate",
        Form::FirstHalf,
    ),
    rule(
        "layers.#.shared_mlp.input_linear",
        "blk.#.ffn_up",
        Form::SecondHalf,
    ),
    same("layers.#.shared_mlp.output_linear", "blk.#.ffn_down"),
];

pub(super) const LFM2: &[Rule] = &[
    same("embedding_norm", "token_embd_norm"),
    same("layers.#.operator_norm", "blk.#.attn_norm"),
    same("layers.#.ffn_norm", "blk.#.ffn_norm"),
    same("layers.#.self_attn.out_proj", "blk.#.attn_output"),
    same("layers.#.self_attn.q_layernorm", "blk.#.attn_q_norm"),
    same("layers.#.self_attn.k_layernorm", "blk.#.attn_k_norm"),
    same("layers.#.conv.in_proj", "blk.#.shortconv.in_proj"),
    same("layers.#.conv.out_proj", "blk.#.shortconv.out_proj"),
    rule("layers.#.conv.conv", "blk.#.shortconv.conv", Form::Kernel),
    same("layers.#.feed_forward.w1", "blk.#.ffn_gate"),
    same("layers.#.feed_forward.w2", "blk.#.ffn_down"),
    same("layers.#.feed_forward.w3", "blk.#.ffn_up"),
];

pub(super) const GPT2: &[Rule] = &[
    same("wte", "token_embd"),
    same("wpe", "position_embd"),
    same("ln_f", "output_norm"),
    same("h.#.ln_1", "blk.#.attn_norm"),
    same("h.#.ln_2", "blk.#.ffn_norm"),
    rule("h.#.attn.c_attn", "blk.#.attn_qkv", Form::Transposed),
    rule("h.#.attn.c_proj", "blk.#.attn_output", Form::Transposed),
    rule("h.#.mlp.c_fc", "blk.#.ffn_up", Form::Transposed),
    rule("h.#.mlp.c_proj", "blk.#.ffn_down", Form::Transposed),
];

pub(super) const BLOOM: &[Rule] = &[
    same("word_embeddings", "token_embd"),
    same("word_embeddings_layernorm", "token_embd_norm"),
    same("ln_f", "output_norm"),
    same("h.#.input_layernorm", "blk.#.attn_norm"),
    same("h.#.post_attention_layernorm", "blk.#.ffn_norm"),
    rule(
        "h.#.self_attention.query_key_value",
        "blk.#.attn_qkv",
        Form::ByHead,
    ),
    same("h.#.self_attention.dense", "blk.#.attn_output"),
    same("h.#.mlp.dense_h_to_4h", "blk.#.ffn_up"),
    same("h.#.mlp.dense_4h_to_h", "blk.#.ffn_down"),
];

pub(super) const MPT: &[Rule] = &[
    same("wte", "token_embd"),
    same("wpe", "position_embd"),
    same("norm_f", "output_norm"),
    same("blocks.#.norm_1", "blk.#.attn_norm"),
    same("blocks.#.norm_2", "blk.#.ffn_norm"),
    same("blocks.#.attn.Wqkv", "blk.#.attn_qkv"),
    same("blocks.#.attn.out_proj", "blk.#.attn_output"),
    same("blocks.#.ffn.up_proj", "blk.#.ffn_up"),
    same("blocks.#.ffn.down_proj", "blk.#.ffn_down"),
];

/// A tensor's name taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// What [`Rule::from`] is compared with.
    pub(super) pattern: String,
    /// The first number in the name.
    pub(super) layer: Option<u32>,
    /// The second number in the name.
    pub(super) expert: Option<u32>,
    pub(super) bias: bool,
}

impl Name {
    /// Takes `name` apart; nothing when it is no parameter of a language model's layers.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let bare = strip_module(name);
        let (bare, bias) = match bare.strip_suffix(".bias") {
            Some(bare) => (bare, true),
            None => (bare.strip_suffix(".weight").unwrap_or(bare), false),
        };
        let (mut layer, mut expert) = (None, None);
        let mut parts = Vec::new();
        for part in bare.split('.') {
            let number = part.bytes().all(|byte| byte.is_ascii_digit());
            match (number && !part.is_empty(), layer, expert) {
                (false, ..) => parts.push(part),
                (true, None, _) => {
                    layer = Some(canonical(part)?);
                    parts.push("#");
                }
                (true, Some(_), None) => {
                    expert = Some(canonical(part)?);
                    parts.push("@");
                }
                (true, Some(_), Some(_)) => return None,
            }
        }
        Some(Name {
            pattern: parts.join("."),
            layer,
            expert,
            bias,
        })
    }
}

/// Whether a tensor takes no part in generating text: other modalities, and buffers that follow
/// from the configuration.
pub(super) fn is_idle(name: &str) -> bool {
    const MODULES: [&str; 3] = ["vision_tower.", "multi_modal_projector.", "vision_model."];
    const BUFFERS: [&str; 3] = [".rotary_emb.inv_freq", ".attn.masked_bias", ".rope.freqs"];
    let bare = name.strip_prefix("model.").unwrap_or(name);
    let causal_mask = name.ends_with(".attn.bias");
    let of = |modules: &[&str]| modules.iter().any(|module| bare.starts_with(module));
    causal_mask || of(&MODULES) || BUFFERS.iter().any(|buffer| name.ends_with(buffer))
}

fn strip_module(name: &str) -> &str {
    const MODULES: [&str; 5] = [
        "language_model.model.",
        "model.language_model.",
        "language_model.",
        "model.",
        "transformer.",
    ];
    let stripped = MODULES.iter().find_map(|module| name.strip_prefix(module));
    stripped.unwrap_or(name)
}

/// A number without leading zeros, so that no two names mean the same tensor.
fn canonical(digits: &str) -> Option<u32> {
    let plain = digits == "0" || !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let name = Name::parse("model.layers.12.mlp.experts.3.up_proj.weight").unwrap();
        assert_eq!(name.pattern, "layers.#.mlp.experts.@.up_proj");
        assert_eq!(
            (name.layer, name.expert, name.bias),
            (Some(12), Some(3), false)
        );
        let name = Name::parse("h.0.attn.c_attn.bias").unwrap();
        assert_eq!(
            (name.pattern.as_str(), name.bias),
            ("h.#.attn.c_attn", true)
        );
        let nested = Name::parse("language_model.model.norm.weight").unwrap();
        assert_eq!(nested.pattern, "norm");
        assert_eq!(Name::parse("model.layers.01.norm.weight"), None);
        assert_eq!(Name::parse("model.layers.99999999999.norm.weight"), None);
        assert_eq!(Name::parse("a.1.2.3"), None);
    }
}
