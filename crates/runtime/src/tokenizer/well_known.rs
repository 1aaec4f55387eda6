//! Tokens with a role that files often leave unsaid, recognised by their text as llama.cpp b11434 does.

use super::SpecialNames;
use super::vocabulary::{Kind, Vocabulary};

/// Texts that end a generation in some family, whatever the file's ids say.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
];
/// How many of [`END_TEXTS`] can be the end of a turn.
const TURN_TEXTS: usize = 11;

const FIM_PREFIX_TEXTS: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];
const FIM_SUFFIX_TEXTS: &[&str] = &[
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];
const FIM_MIDDLE_TEXTS: &[&str] = &[
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
/// A model that starts a new file or pads has finished what it was asked to fill in.
const FIM_END_TEXTS: [&[&str]; 3] = [
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &[
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
    ],
    &["<|file_sep|>"],
];

/// Completes `names` by well-known texts and collects the tokens that end a generation: `ends`, those
/// named, and the ends of filling in the middle (`fim_ends` where the file says: pad, repository, file).
pub(super) fn find_ends(
    vocabulary: &mut Vocabulary,
    names: &mut SpecialNames,
    fim_ends: [Option<u32>; 3],
    mut ends: Vec<u32>,
) -> Vec<u32> {
    for (id, texts) in fim_ends.into_iter().zip(FIM_END_TEXTS) {
        ends.extend(id.or_else(|| find_control(vocabulary, texts)));
    }
    let by_text = |vocabulary: &mut Vocabulary, id: Option<u32>, texts: &[&str]| {
        id.or_else(|| find_control(vocabulary, texts))
    };
    names.eot = by_text(vocabulary, names.eot, &END_TEXTS[..TURN_TEXTS]);
    names.eom = by_text(vocabulary, names.eom, &["<|eom_id|>"]);
    names.fim_prefix = by_text(vocabulary, names.fim_prefix, FIM_PREFIX_TEXTS);
    names.fim_suffix = by_text(vocabulary, names.fim_suffix, FIM_SUFFIX_TEXTS);
    names.fim_middle = by_text(vocabulary, names.fim_middle, FIM_MIDDLE_TEXTS);

    for text in END_TEXTS {
        ends.extend(find_control(vocabulary, &[text]));
    }
    // These frame channels that a program reads, so they are rendered.
    for text in ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"] {
        if let Some(id) = vocabulary.token(text.as_bytes()) {
            vocabulary.set_kind(id, Kind::USER_DEFINED);
        }
    }
    ends.extend([names.eos, names.eot, names.eom].into_iter().flatten());
    ends.sort_unstable();
    ends.dedup();

    let end = |text: &str| {
        vocabulary
            .token(text.as_bytes())
            .filter(|id| ends.binary_search(id).is_ok())
    };
    let calls = end("<|call|>").or(end("<|calls|>")).is_some();
    let harmony = end("<|return|>").or(end("<|flush|>")).is_some();
    // In these families "<|end|>" ends a message, not the answer.
    let message_end = end("<|end|>").filter(|_| calls && harmony);
    // In these, "</s>" is a plain token.
    let other_ends = end("<|tool_response>").or(end("<|plamo:eos|>")).is_some();
    let plain_s = end("</s>").filter(|_| other_ends);
    for (id, kind) in [(message_end, Kind::USER_DEFINED), (plain_s, Kind::NORMAL)] {
        if let Some(id) = id {
            ends.retain(|&end| end != id);
            vocabulary.set_kind(id, kind);
        }
    }
    ends
}

/// The first of `texts` that is a token; it becomes a control token.
fn find_control(vocabulary: &mut Vocabulary, texts: &[&str]) -> Option<u32> {
    let id = texts
        .iter()
        .find_map(|text| vocabulary.token(text.as_bytes()))?;
    vocabulary.set_kind(id, vocabulary.kind(id).with(Kind::CONTROL));
    Some(id)
}
