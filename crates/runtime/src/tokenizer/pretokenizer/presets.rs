//! The pre-tokenizers that GGUF files name in `tokenizer.ggml.pre`.
//!
//! Names, expressions and defaults are those of llama.cpp b11434 (`llama-vocab.cpp`).

use super::{Dialect, Llama3Style, Pattern, Stage};

/// What a pre-tokenizer's name stands for.
#[derive(Debug)]
pub(in crate::tokenizer) struct Preset {
    pub stages: Vec<Stage>,
    /// A word that is a token is taken whole, without merges.
    pub ignore_merges: bool,
    /// BOS is added unless the file says otherwise.
    pub add_bos: bool,
    /// The default BOS id is not used.
    pub without_bos: bool,
    /// Pieces are UTF-8 with U+2581 for spaces and `<0xXX>` byte tokens, not GPT-2's byte alphabet.
    pub spaces_escaped: bool,
    /// A word of line feeds only is looked up whole first.
    pub whole_newlines: bool,
    /// BOS is added whatever the file says (Gemma 4 files carry a wrong flag).
    pub force_bos: bool,
}

const CONTRACTIONS: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
const DEEPSEEK_3_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const KANA_AND_HAN: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const HANGUL_AND_HAN: &str = "[一-龥ࠀ-一가-\u{D7FF}]+";
const BLOOM: &str = " ?[^(\\s|.,!?…。，、।۔،)]+";
/// Cased letters of the scripts that DeepSeek LLM keeps together.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-z\u{B5}À-ÖØ-öø-ƺƼ-ƿ\u{1C4}-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-\u{3F5}Ϸ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1F7D}ᾀ-ᾴᾶ-ᾼ\u{1FBE}ῂ-ῄῆ-ῌῐ-\u{1FD3}ῖ-\u{1FDB}ῠ-Ῥῲ-ῴῶ-ῼ\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}ⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const AFMOE_ASIAN: &str = "[一-鿿㐀-䶿豈-\u{FAFF}\u{3040}-ゟ゠-ヿ･-ﾟ⼀-\u{2FDF}เ-\u{E7F}\u{E80}-\u{EFF}ក-\u{17FF}က-႟ꩠ-ꩿꧠ-\u{A9FF}가-\u{D7AF}ᄀ-ᇿ]+";

fn pattern(source: &str) -> Stage {
    let compiled = Pattern::new(source, Dialect::Gguf);
    // The sources are constants of this file, each compiled by a test.
    Stage::Pattern(Box::new(compiled.expect("a built-in pattern compiles")))
}

fn llama3(digits: usize) -> Stage {
    Stage::Llama3(Llama3Style {
        digits,
        marks: false,
        unicode_case: false,
    })
}

/// Words that end in lower case and may start in upper case, with their contraction. The expressions
/// that tell case apart do so for ASCII only; `cased` and `uncased` are what they leave of letters.
fn cased_words(upper: &str, lower: &str, contraction: &str, rest: &str) -> Stage {
    let lead = r"[^\r\n\p{L}\p{N}]?";
    pattern(&format!(
        r"{lead}{upper}*{lower}+{contraction}|{lead}{upper}+{lower}*{contraction}|{rest}"
    ))
}

/// The pre-tokenizer called `name`; `None` when it is not known.
pub(in crate::tokenizer) fn preset(name: &str) -> Option<Preset> {
    let mut preset = Preset {
        stages: Vec::new(),
        ignore_merges: false,
        add_bos: false,
        without_bos: false,
        spaces_escaped: false,
        whole_newlines: false,
        force_bos: false,
    };
    let not_lower = "(?:(?=[\\p{L}])[^a-z])";
    let not_upper = "(?:(?=[\\p{L}])[^A-Z])";
    let contraction = format!("{CONTRACTIONS}?");
    let slashed = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    preset.stages = match name {
        "default" => vec![
            pattern(r"[\p{P}\$\+<=>\^~\|]+"),
            Stage::Gpt2,
            pattern(r"\p{N}+"),
            pattern("[0-9][0-9][0-9]"),
        ],
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
        | "lfm2" | "jina-v5-nano" => {
            preset.ignore_merges = true;
            preset.add_bos = true;
            vec![llama3(3)]
        }
        "dbrx" | "smaug-bpe" => vec![llama3(3)],
        "chatglm-bpe" => {
            preset.without_bos = true;
            vec![llama3(3)]
        }
        "glm4" | "glm5" => {
            preset.without_bos = true;
            preset.ignore_merges = true;
            vec![llama3(3)]
        }
        "minicpm5" => {
            preset.ignore_merges = true;
            let words = format!(
                r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            vec![pattern(r"\p{N}{1,3}"), pattern(&words)]
        }
        "jais-2" => {
            let words = format!(
                r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s{{512}}(?!\S)|\s{{256}}(?!\S)|\s{{128}}(?!\S)|\s{{64}}(?!\S)|\s{{32}}(?!\S)|\s{{16}}(?!\S)|\s{{8}}(?!\S)|\s{{4}}(?!\S)|\s{{1,2}}(?!\S)|\s{{1}}"
            );
            vec![pattern(&words)]
        }
        "deepseek-llm" => vec![
            pattern("[\r\n]"),
            pattern(DEEPSEEK_LETTERS),
            pattern("\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+"),
            pattern("\\s+$"),
            pattern(HANGUL_AND_HAN),
            pattern(r"\p{N}+"),
        ],
        "deepseek-coder" => vec![
            pattern("[\r\n]"),
            pattern(r"\s?\p{L}+"),
            pattern(r"\s?\p{P}+"),
            pattern(HANGUL_AND_HAN),
            pattern(r"\p{N}"),
        ],
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => vec![
            pattern(r"\p{N}{1,3}"),
            pattern(KANA_AND_HAN),
            pattern(DEEPSEEK_3_WORDS),
        ],
        "spark2_5" => vec![
            pattern(r"\p{N}{1,3}"),
            pattern(KANA_AND_HAN),
            pattern(SPARK_WORDS),
            pattern(r"\p{N}"),
        ],
        "youtu" => {
            preset.ignore_merges = true;
            let rest = format!(r"\p{{N}}|{slashed}");
            vec![
                pattern(
                    "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+",
                ),
                cased_words(r"[\p{L}\p{M}]", r"[\p{L}\p{M}]", &contraction, &rest),
            ]
        }
        "falcon" => vec![
            pattern(r"[\p{P}\$\+<=>\^~\|`]+"),
            Stage::Gpt2,
            pattern("[0-9][0-9][0-9]"),
        ],
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => vec![pattern(r"\p{N}"), Stage::Gpt2],
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de"
        | "a.x-4.0" | "mellum" | "modern-bert" | "jina-v1-en" | "jina-v2-code" | "roberta-bpe"
        | "mpt" | "olmo" | "jais" | "exaone4" | "trillion" | "granite-docling" => vec![Stage::Gpt2],
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "stablelm2" | "megrez" | "hunyuan"
        | "solar-open" | "grok-2" => vec![llama3(1)],
        "qwen35" => vec![Stage::Llama3(Llama3Style {
            digits: 1,
            marks: true,
            unicode_case: false,
        })],
        "laguna" => vec![Stage::LineRuns, llama3(1)],
        "bloom" | "poro-chat" | "gpt3-finnish" => vec![pattern(BLOOM)],
        "viking" => vec![pattern(BLOOM), pattern(r"\p{N}")],
        "tekken" => {
            preset.ignore_merges = true;
            preset.add_bos = true;
            vec![cased_words(
                not_lower,
                not_upper,
                "",
                &format!(r"\p{{N}}|{slashed}"),
            )]
        }
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => {
            let rest = format!(r"\p{{N}}{{1,3}}|{slashed}");
            vec![cased_words(not_lower, not_upper, &contraction, &rest)]
        }
        "granite-embed-multi-97m" => {
            preset.ignore_merges = true;
            let upper = r"(?:(?=[\p{L}\p{M}])[^a-z])";
            let lower = r"(?:(?=[\p{L}\p{M}])[^A-Z])";
            let rest = format!(r"\p{{N}}{{1,3}}|{slashed}");
            vec![cased_words(upper, lower, &contraction, &rest)]
        }
        "tiny_aya" | "cohere2moe" => {
            let rest = format!(r"\p{{N}}{{1,3}}|{slashed}");
            let letters = r"[\p{L}\p{M}]";
            vec![
                Stage::DigitGroups,
                cased_words(letters, letters, &contraction, &rest),
            ]
        }
        "chameleon" => {
            preset.add_bos = true;
            vec![
                pattern("<sentinel:[0-9]+>"),
                pattern("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
                pattern("([\\t\\n]|    |  )"),
                pattern(r"\p{N}"),
                pattern(r"[\p{P}!-/:-@\[-`{-~]"),
                Stage::Gpt2,
            ]
        }
        "kimi-k2" => vec![Stage::KimiK2],
        "superbpe" => vec![pattern(r"\p{N}+"), Stage::AsciiDigitCuts],
        "bailingmoe" | "bailingmoe2" | "llada-moe" => vec![pattern(
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        )],
        "seed-coder" => vec![pattern(&format!(
            r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
        ))],
        "ufakzeka" => vec![pattern(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        "afmoe" => vec![
            Stage::DigitGroups,
            pattern(AFMOE_ASIAN),
            pattern(DEEPSEEK_3_WORDS),
        ],
        "exaone-moe" => vec![pattern(&format!(
            r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        ))],
        "gemma4" | "granite-embed-multi-311m" => {
            preset.spaces_escaped = true;
            preset.whole_newlines = true;
            preset.force_bos = true;
            vec![Stage::LineRuns]
        }
        "sarvam-moe" => {
            preset.spaces_escaped = true;
            vec![Stage::LineRuns]
        }
        _ => return None,
    };
    Some(preset)
}

/// One name of each of [`preset`]'s entries.
#[cfg(test)]
pub(in crate::tokenizer) const NAMES: &[&str] = &[
    "default",
    "llama-bpe",
    "dbrx",
    "chatglm-bpe",
    "glm4",
    "minicpm5",
    "jais-2",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "spark2_5",
    "youtu",
    "falcon",
    "smollm",
    "gpt-2",
    "qwen2",
    "qwen35",
    "laguna",
    "bloom",
    "viking",
    "tekken",
    "gpt-4o",
    "granite-embed-multi-97m",
    "tiny_aya",
    "chameleon",
    "kimi-k2",
    "superbpe",
    "bailingmoe",
    "seed-coder",
    "ufakzeka",
    "afmoe",
    "exaone-moe",
    "gemma4",
    "sarvam-moe",
];
