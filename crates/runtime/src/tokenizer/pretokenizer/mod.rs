//! Splitting text into the words that byte-pair merges may not cross.
//!
//! A pre-tokenizer is a list of stages. Each stage splits every word that the one before left.

mod class;
mod pattern;
mod presets;
mod split;

pub(super) use class::Dialect;
pub(super) use pattern::Pattern;
#[cfg(test)]
pub(super) use presets::NAMES;
pub(super) use presets::{Preset, preset};
pub(super) use split::Llama3Style;

use super::unicode::Char;

/// One pass over all words.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    Gpt2,
    Llama3(Llama3Style),
    KimiK2,
    DigitGroups,
    AsciiDigitCuts,
    LineRuns,
    /// Matches and what lies between them both become words.
    Pattern(Box<Pattern>),
}

impl Stage {
    /// Splits one word into `emit`ted lengths that add up to it.
    pub(super) fn split(&self, chars: &[Char], mut emit: impl FnMut(usize)) {
        match self {
            Stage::Gpt2 => split::gpt2(chars, emit),
            Stage::Llama3(style) => split::llama3(chars, *style, emit),
            Stage::KimiK2 => split::kimi_k2(chars, emit),
            Stage::DigitGroups => split::digit_groups(chars, emit),
            Stage::AsciiDigitCuts => split::ascii_digit_cuts(chars, emit),
            Stage::LineRuns => split::line_runs(chars, emit),
            Stage::Pattern(pattern) => {
                let mut done = 0;
                pattern.matches(chars, |start, end| {
                    if start > done {
                        emit(start - done);
                    }
                    if end > start {
                        emit(end - start);
                    }
                    done = end;
                });
                if done < chars.len() {
                    emit(chars.len() - done);
                }
            }
        }
    }
}

/// Runs `stages` over `chars`; `words` receives the lengths (in characters), none of them zero.
pub(super) fn split_words(stages: &[Stage], chars: &[Char], words: &mut Vec<usize>) {
    words.clear();
    if chars.is_empty() {
        return;
    }
    words.push(chars.len());
    let mut next = Vec::new();
    for stage in stages {
        next.clear();
        let mut start = 0;
        for &length in words.iter() {
            stage.split(&chars[start..start + length], |part| next.push(part));
            start += length;
        }
        std::mem::swap(words, &mut next);
    }
}
