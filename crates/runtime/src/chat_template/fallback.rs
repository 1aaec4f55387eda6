//! The documented chat forms of model families, for models that bring no template.

use std::fmt;

/// A family of models with a documented chat form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// `<|im_start|>` and `<|im_end|>` around each message: Qwen, SmolLM, Hermes and others.
    ChatMl,
    /// `[INST]` and `[/INST]` around what the user says: Llama 2, Mistral.
    Llama2,
    /// Headers between `<|start_header_id|>` and `<|end_header_id|>`: Llama 3 and later.
    Llama3,
    /// `<start_of_turn>` and `<end_of_turn>`: Gemma.
    Gemma,
    /// `<|user|>` and `<|end|>`: Phi 3.
    Phi3,
    /// `<|user|>` and the end-of-text token: Zephyr, StableLM.
    Zephyr,
    /// `<|start_of_role|>` and `<|end_of_role|>`: Granite.
    Granite,
    /// "User:" and "Assistant:", which any model can follow.
    Plain,
}

/// The family whose form fits a model: by the tokens in its vocabulary, which no other family has, else by its
/// architecture.
pub fn fallback_for(architecture: &str, has: &dyn Fn(&str) -> bool) -> Family {
    let by_token = [
        ("<|im_start|>", Family::ChatMl),
        ("<|start_header_id|>", Family::Llama3),
        ("<start_of_turn>", Family::Gemma),
        ("<|start_of_role|>", Family::Granite),
        ("<|end|>", Family::Phi3),
        ("<|user|>", Family::Zephyr),
        ("[INST]", Family::Llama2),
    ];
    if let Some((_, family)) = by_token.into_iter().find(|(token, _)| has(token)) {
        return family;
    }
    match architecture {
        "llama" | "mistral" => Family::Llama2,
        "stablelm" => Family::Zephyr,
        _ => Family::Plain,
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::ChatMl => "ChatML",
            Family::Llama2 => "Llama 2",
            Family::Llama3 => "Llama 3",
            Family::Gemma => "Gemma",
            Family::Phi3 => "Phi-3",
            Family::Zephyr => "Zephyr",
            Family::Granite => "Granite",
            Family::Plain => "plain",
        })
    }
}

impl Family {
    /// The form as a template.
    pub(super) fn source(self) -> &'static str {
        match self {
            Family::ChatMl => CHATML,
            Family::Llama2 => LLAMA_2,
            Family::Llama3 => LLAMA_3,
            Family::Gemma => GEMMA,
            Family::Phi3 => PHI_3,
            Family::Zephyr => ZEPHYR,
            Family::Granite => GRANITE,
            Family::Plain => PLAIN,
        }
    }
}

const CHATML: &str = r"
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}";

/// The system message stands inside the first turn of the user.
const LLAMA_2: &str = r"
{%- set found = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set found.system = '<<SYS>>\n' ~ message.content ~ '\n<</SYS>>\n\n' %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' ~ message.content | trim ~ ' ' ~ eos_token }}
    {%- else %}
        {{- bos_token ~ '[INST] ' ~ found.system ~ message.content | trim ~ ' [/INST]' }}
        {%- set found.system = '' %}
    {%- endif %}
{%- endfor %}";

const LLAMA_3: &str = r"
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' }}
    {{- message.content | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}";

/// There is no system role; its message begins the first turn of the user.
const GEMMA: &str = r"
{{- bos_token }}
{%- set found = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set found.system = message.content | trim ~ '\n\n' %}
    {%- else %}
        {%- set role = 'model' if message.role == 'assistant' else 'user' %}
        {{- '<start_of_turn>' ~ role ~ '\n' ~ found.system ~ message.content | trim ~ '<end_of_turn>\n' }}
        {%- set found.system = '' %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}";

const PHI_3: &str = r"
{%- for message in messages %}
    {{- '<|' ~ message.role ~ '|>\n' ~ message.content ~ '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\n' }}
{%- endif %}";

const ZEPHYR: &str = r"
{%- for message in messages %}
    {{- '<|' ~ message.role ~ '|>\n' ~ message.content ~ eos_token ~ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\n' }}
{%- endif %}";

const GRANITE: &str = r"
{%- for message in messages %}
    {{- '<|start_of_role|>' ~ message.role ~ '<|end_of_role|>' ~ message.content ~ '<|end_of_text|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_of_role|>assistant<|end_of_role|>' }}
{%- endif %}";

const PLAIN: &str = r"
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- message.content ~ '\n\n' }}
    {%- elif message.role == 'assistant' %}
        {{- 'Assistant: ' ~ message.content ~ '\n\n' }}
    {%- else %}
        {{- 'User: ' ~ message.content ~ '\n\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}";
