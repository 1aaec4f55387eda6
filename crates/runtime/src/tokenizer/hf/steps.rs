//! Pre-tokenizers of `tokenizer.json`: cutting normalized text into words, step by step.

use std::ops::Range;

use serde_json::Value;

use super::super::bpe::Alphabet;
use super::super::pretokenizer::{Llama3Style, Pattern, Stage};
use super::super::unicode::{Char, PUNCTUATION, Tables, decode};
use super::super::{TokenizerError, byte_alphabet};
use super::normalizer::compile;
use super::{MAX_DEPTH, invalid, kind, list, shorten};

/// One step. Each looks at every word alone.
#[derive(Debug)]
pub(super) enum Step {
    Split {
        matcher: Matcher,
        behavior: Behavior,
        /// What matches counts as what does not, and the reverse.
        invert: bool,
    },
    /// A word that does not start with a space gets one.
    PrefixSpace,
    /// Each byte becomes one character of GPT-2's alphabet.
    Bytes,
    /// Spaces become `mark`, which is also put in front.
    Metaspace { mark: char, prepend: Prepend },
}

/// What a split looks for.
#[derive(Debug)]
pub(super) enum Matcher {
    /// Matches that leave no gaps.
    Covering(Stage),
    Pattern(Box<Pattern>),
    /// This text.
    Text(Vec<u32>),
    /// Each character for which the function holds.
    Each(fn(Char) -> bool),
    /// This character.
    Character(u32),
}

/// What becomes of matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behavior {
    Removed,
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

/// When [`Step::Metaspace`] puts its mark in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prepend {
    Always,
    /// At the start of the whole text.
    First,
    Never,
}

/// The steps of `value`, and how the words that they leave are spelled.
pub(super) fn parse(value: &Value) -> Result<(Vec<Step>, Alphabet), TokenizerError> {
    let mut steps = Vec::new();
    add(value, 0, &mut steps)?;
    // The model itself spells bytes when no step looks at the spelled words.
    match steps.last() {
        Some(Step::Bytes) => {
            steps.pop();
            Ok((steps, Alphabet::Bytes))
        }
        _ => Ok((steps, Alphabet::Text)),
    }
}

/// Whether a Metaspace component puts its mark in front.
pub(super) fn prepends(value: &Value) -> bool {
    prepend_scheme(value).is_ok_and(|prepend| prepend != Prepend::Never)
}

fn add(value: &Value, depth: usize, steps: &mut Vec<Step>) -> Result<(), TokenizerError> {
    let split = |matcher, behavior| Step::Split {
        matcher,
        behavior,
        invert: false,
    };
    match kind(value) {
        "" if value.is_null() => {}
        "Sequence" if depth < MAX_DEPTH => {
            for part in list(value, "pretokenizers") {
                add(part, depth + 1, steps)?;
            }
        }
        "ByteLevel" => {
            if value["add_prefix_space"].as_bool().unwrap_or(true) {
                steps.push(Step::PrefixSpace);
            }
            if value["use_regex"].as_bool().unwrap_or(true) {
                steps.push(split(Matcher::Covering(Stage::Gpt2), Behavior::Isolated));
            }
            steps.push(Step::Bytes);
        }
        "Split" => steps.push(Step::Split {
            matcher: matcher(&value["pattern"])?,
            behavior: behavior(value, None)?,
            invert: value["invert"].as_bool().unwrap_or(false),
        }),
        "Digits" => {
            let each = value["individual_digits"].as_bool().unwrap_or(false);
            let behavior = if each {
                Behavior::Isolated
            } else {
                Behavior::Contiguous
            };
            steps.push(split(Matcher::Each(Char::is_number), behavior));
        }
        "Punctuation" => {
            let behavior = behavior(value, Some(Behavior::Isolated))?;
            steps.push(split(Matcher::Each(is_punctuation), behavior));
        }
        "WhitespaceSplit" => {
            steps.push(split(Matcher::Each(Char::is_whitespace), Behavior::Removed));
        }
        "Whitespace" => steps.push(Step::Split {
            matcher: Matcher::Pattern(Box::new(compile(r"\w+|[^\w\s]+")?)),
            behavior: Behavior::Removed,
            invert: true,
        }),
        "CharDelimiterSplit" => {
            let delimiter = character(value, "delimiter")?;
            steps.push(split(
                Matcher::Character(delimiter as u32),
                Behavior::Removed,
            ));
        }
        "Metaspace" => {
            let mark = character(value, "replacement")?;
            steps.push(Step::Metaspace {
                mark,
                prepend: prepend_scheme(value)?,
            });
            if value["split"].as_bool().unwrap_or(true) {
                let matcher = Matcher::Character(mark as u32);
                steps.push(split(matcher, Behavior::MergedWithNext));
            }
        }
        other => {
            let what = format!("the pre-tokenizer '{}'", shorten(other));
            return Err(TokenizerError::Unsupported { what });
        }
    }
    Ok(())
}

/// Expressions of published models that have a splitter of their own.
const KNOWN: [(&str, usize, bool); 3] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        3,
        false,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        1,
        false,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        1,
        true,
    ),
];
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Sources that [`matcher`] recognises.
#[cfg(test)]
pub(super) fn known_sources() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.0).chain([GPT2])
}

fn matcher(pattern: &Value) -> Result<Matcher, TokenizerError> {
    if let Some(text) = pattern["String"].as_str() {
        return Ok(Matcher::Text(text.chars().map(u32::from).collect()));
    }
    let Some(source) = pattern["Regex"].as_str() else {
        return Err(invalid("pre_tokenizer", "splits without a pattern"));
    };
    if source == GPT2 {
        return Ok(Matcher::Covering(Stage::Gpt2));
    }
    if let Some(&(_, digits, marks)) = KNOWN.iter().find(|known| known.0 == source) {
        return Ok(Matcher::Covering(Stage::Llama3(Llama3Style {
            digits,
            marks,
            unicode_case: true,
        })));
    }
    Ok(Matcher::Pattern(Box::new(compile(source)?)))
}

fn behavior(value: &Value, default: Option<Behavior>) -> Result<Behavior, TokenizerError> {
    match (value["behavior"].as_str(), default) {
        (Some("Removed"), _) => Ok(Behavior::Removed),
        (Some("Isolated"), _) => Ok(Behavior::Isolated),
        (Some("MergedWithPrevious"), _) => Ok(Behavior::MergedWithPrevious),
        (Some("MergedWithNext"), _) => Ok(Behavior::MergedWithNext),
        (Some("Contiguous"), _) => Ok(Behavior::Contiguous),
        (None, Some(default)) => Ok(default),
        _ => Err(invalid("pre_tokenizer", "splits with an unknown behavior")),
    }
}

fn prepend_scheme(value: &Value) -> Result<Prepend, TokenizerError> {
    match value["prepend_scheme"].as_str() {
        Some("always") => Ok(Prepend::Always),
        Some("first") => Ok(Prepend::First),
        Some("never") => Ok(Prepend::Never),
        // Files of before there were schemes.
        None => match value["add_prefix_space"].as_bool() {
            Some(false) => Ok(Prepend::Never),
            _ => Ok(Prepend::Always),
        },
        Some(_) => Err(invalid("pre_tokenizer", "has an unknown prepend_scheme")),
    }
}

fn character(value: &Value, key: &str) -> Result<char, TokenizerError> {
    let mut chars = value[key].as_str().unwrap_or_default().chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => Ok(c),
        _ => Err(invalid(
            "pre_tokenizer",
            &format!("lacks a character as '{key}'"),
        )),
    }
}

fn is_punctuation(c: Char) -> bool {
    let ascii = u8::try_from(c.code_point()).is_ok_and(|byte| byte.is_ascii_punctuation());
    ascii || c.in_set(PUNCTUATION)
}

/// A text and the words that it is cut into so far.
pub(super) struct Words {
    text: String,
    chars: Vec<Char>,
    /// Ranges of `chars`, ascending, none empty.
    words: Vec<Range<usize>>,
}

impl Words {
    /// Runs `steps` over `text`; `first` when it is the start of the whole text.
    pub(super) fn new(text: &str, steps: &[Step], first: bool) -> Self {
        let mut words = Words {
            text: text.to_owned(),
            chars: Vec::new(),
            words: Vec::new(),
        };
        decode(text, Tables::shared(), &mut words.chars);
        if !text.is_empty() {
            words.words.push(0..words.chars.len());
        }
        for step in steps {
            words.run(step, first);
        }
        words
    }

    /// The words in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        let (mut position, mut byte) = (0, 0);
        self.words.iter().map(move |word| {
            let bytes = |range: Range<usize>| {
                self.chars[range]
                    .iter()
                    .map(|c| c.utf8_len())
                    .sum::<usize>()
            };
            let start = byte + bytes(position..word.start);
            let end = start + bytes(word.clone());
            (position, byte) = (word.end, end);
            &self.text[start..end]
        })
    }

    fn run(&mut self, step: &Step, first: bool) {
        match step {
            Step::Split {
                matcher,
                behavior,
                invert,
            } => self.split(matcher, *behavior, *invert),
            Step::PrefixSpace => self.rewrite(|word, _, out| {
                if !word.starts_with(' ') {
                    out.push(' ');
                }
                out.push_str(word);
            }),
            Step::Bytes => {
                self.rewrite(|word, _, out| out.extend(word.bytes().map(byte_alphabet::character)))
            }
            Step::Metaspace { mark, prepend } => self.rewrite(|word, at_start, out| {
                let wanted = match prepend {
                    Prepend::Always => true,
                    Prepend::First => first && at_start,
                    Prepend::Never => false,
                };
                if wanted && !word.starts_with(['\u{20}', *mark]) {
                    out.push(*mark);
                }
                out.extend(word.chars().map(|c| if c == ' ' { *mark } else { c }));
            }),
        }
    }

    fn split(&mut self, matcher: &Matcher, behavior: Behavior, invert: bool) {
        let mut words = Vec::with_capacity(self.words.len() * 2);
        let mut parts = Vec::new();
        for word in &self.words {
            parts.clear();
            matcher.parts(&self.chars[word.clone()], |range, matched| {
                let range = word.start + range.start..word.start + range.end;
                parts.push((range, matched != invert));
            });
            behavior.apply(&parts, &mut words);
        }
        words.retain(|word| word.start < word.end);
        self.words = words;
    }

    /// Replaces each word by what `write` makes of it; it is told whether the word starts the text.
    fn rewrite(&mut self, mut write: impl FnMut(&str, bool, &mut String)) {
        let mut text = String::with_capacity(self.text.len() * 2);
        let mut ends = Vec::with_capacity(self.words.len());
        for (word, range) in self.iter().zip(&self.words) {
            write(word, range.start == 0, &mut text);
            ends.push(text.len());
        }
        decode(&text, Tables::shared(), &mut self.chars);
        let (mut position, mut byte) = (0, 0);
        for (word, end) in self.words.iter_mut().zip(ends) {
            let start = position;
            while byte < end {
                byte += self.chars[position].utf8_len();
                position += 1;
            }
            *word = start..position;
        }
        self.text = text;
    }
}

impl Matcher {
    /// Reports the matches of a word and what lies between them, in order.
    fn parts(&self, chars: &[Char], mut found: impl FnMut(Range<usize>, bool)) {
        let mut done = 0;
        let mut matched = |start: usize, end: usize| {
            if start > done {
                found(done..start, false);
            }
            found(start..end, true);
            done = end;
        };
        match self {
            Matcher::Covering(stage) => {
                let mut start = 0;
                stage.split(chars, |length| {
                    matched(start, start + length);
                    start += length;
                });
            }
            Matcher::Pattern(pattern) => pattern.matches(chars, matched),
            Matcher::Text(text) => {
                let mut start = 0;
                while !text.is_empty() && start + text.len() <= chars.len() {
                    let end = start + text.len();
                    let here = chars[start..end].iter().map(|c| c.code_point());
                    if here.eq(text.iter().copied()) {
                        matched(start, end);
                        start = end;
                    } else {
                        start += 1;
                    }
                }
            }
            Matcher::Each(_) | Matcher::Character(_) => {
                for (at, &c) in chars.iter().enumerate() {
                    let holds = match self {
                        Matcher::Each(holds) => holds(c),
                        Matcher::Character(code_point) => c.code_point() == *code_point,
                        _ => false,
                    };
                    if holds {
                        matched(at, at + 1);
                    }
                }
            }
        }
        if done < chars.len() {
            found(done..chars.len(), false);
        }
    }
}

impl Behavior {
    /// Appends what becomes of a word's parts (range, matched).
    fn apply(self, parts: &[(Range<usize>, bool)], words: &mut Vec<Range<usize>>) {
        let first = words.len();
        let mut before = false;
        match self {
            Behavior::Isolated => words.extend(parts.iter().map(|part| part.0.clone())),
            Behavior::Removed => {
                let kept = parts.iter().filter(|part| !part.1);
                words.extend(kept.map(|part| part.0.clone()));
            }
            Behavior::Contiguous | Behavior::MergedWithPrevious => {
                for (range, matched) in parts {
                    let joins = match self {
                        Behavior::Contiguous => *matched == before,
                        _ => *matched && !before,
                    };
                    match words[first..].last_mut() {
                        Some(last) if joins => last.end = range.end,
                        _ => words.push(range.clone()),
                    }
                    before = *matched;
                }
            }
            Behavior::MergedWithNext => {
                for (range, matched) in parts.iter().rev() {
                    match words[first..].last_mut() {
                        Some(last) if *matched && !before => last.start = range.start,
                        _ => words.push(range.clone()),
                    }
                    before = *matched;
                }
                words[first..].reverse();
            }
        }
    }
}
