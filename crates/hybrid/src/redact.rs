//! Placeholders for personal data, and the way back.
//!
//! `<EMAIL_ADDRESS_1>` stands for an address in what is sent; the same address gets the same placeholder, so that an answer can
//! speak of it, and [`RestoreMap::restore`] puts the address back into the answer.

use crate::pii::Finding;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// What each placeholder stands for. It holds the personal data itself: keep it on the device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RestoreMap {
    originals: BTreeMap<String, String>,
}

impl RestoreMap {
    /// Replaces what the findings name. Overlapping findings become one placeholder, named after the surest of them.
    pub fn redact(&mut self, text: &str, findings: &[Finding]) -> String {
        let mut redacted = String::with_capacity(text.len());
        let mut copied = 0;
        for (range, entity) in merged(findings) {
            redacted.push_str(&text[copied..range.start]);
            redacted.push_str(&self.placeholder(&entity, &text[range.clone()], text));
            copied = range.end;
        }
        redacted.push_str(&text[copied..]);
        redacted
    }

    /// Puts every original back.
    pub fn restore(&self, text: &str) -> String {
        let mut restorer = self.restorer();
        let mut restored = restorer.push(text);
        restored.push_str(&restorer.finish());
        restored
    }

    /// As [`RestoreMap::restore`] for text that arrives in pieces.
    pub fn restorer(&self) -> Restorer {
        Restorer {
            map: self.clone(),
            held: String::new(),
        }
    }

    /// Bytes of an original from which it is recognised by itself; shorter ones are parts of too many other words.
    const TELLING: usize = 5;

    /// Characters of an original that count as its beginning: two end many a word.
    const BEGUN: usize = 3;

    /// Puts placeholders where originals stand by themselves.
    pub(crate) fn replace_known(&self, text: &mut String) {
        for (placeholder, original) in &self.originals {
            let is_of_names = self.originals.keys().any(|name| name.contains(original));
            if original.len() >= Self::TELLING && !is_of_names && text.contains(original) {
                *text = text.replace(original, placeholder);
            }
        }
    }

    /// Whether a text ends within an original, so that the rest of it would follow.
    pub(crate) fn ends_within(&self, text: &str) -> bool {
        let lowered = |original: &String| original.chars().flat_map(char::to_lowercase).collect();
        let originals: Vec<Vec<char>> = self.originals.values().map(lowered).collect();
        let longest = originals.iter().map(Vec::len).max().unwrap_or(0);
        let backwards = text.chars().rev().take(longest);
        let mut tail: Vec<char> = backwards.flat_map(|c| c.to_lowercase().rev()).collect();
        tail.reverse();
        let mut originals = originals.iter();
        originals.any(|original| beginning_at_end(original, &tail) >= Self::BEGUN)
    }

    /// Placeholders and originals.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.originals
            .iter()
            .map(|(placeholder, original)| (placeholder.as_str(), original.as_str()))
    }

    /// True if nothing was replaced.
    pub fn is_empty(&self) -> bool {
        self.originals.is_empty()
    }

    fn placeholder(&mut self, entity: &str, original: &str, text: &str) -> String {
        let prefix = format!("<{entity}_");
        let of_kind = || {
            self.originals
                .iter()
                .filter(|(known, _)| known.starts_with(&prefix))
        };
        if let Some((known, _)) = of_kind().find(|(_, known)| *known == original) {
            return known.clone();
        }
        // A text that already holds such a placeholder must come back unchanged, so its number is passed over.
        let first = of_kind().count() + 1;
        let fresh = (first..)
            .map(|number| format!("{prefix}{number}>"))
            .find(|name| !self.originals.contains_key(name) && !text.contains(name.as_str()));
        let fresh = fresh.unwrap_or_else(|| format!("{prefix}0>"));
        self.originals.insert(fresh.clone(), original.to_string());
        fresh
    }
}

/// Restores text that arrives in pieces: holds back what could be the beginning of a placeholder.
#[derive(Debug)]
pub struct Restorer {
    map: RestoreMap,
    held: String,
}

impl Restorer {
    /// The longest placeholder, in bytes; a bracket that stays open longer is text.
    const LONGEST: usize = 96;

    /// Takes a piece and answers what is certain.
    pub fn push(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        let mut out = String::new();
        let mut rest = self.held.as_str();
        while let Some(open) = rest.find('<') {
            out.push_str(&rest[..open]);
            rest = &rest[open..];
            match rest.find(['>', '\n']).filter(|end| *end < Self::LONGEST) {
                Some(end) => {
                    let name = &rest[..=end];
                    match self.map.originals.get(name) {
                        Some(original) => {
                            out.push_str(original);
                            rest = &rest[end + 1..];
                        }
                        None => {
                            out.push('<');
                            rest = &rest[1..];
                        }
                    }
                }
                None if rest.len() >= Self::LONGEST => {
                    out.push('<');
                    rest = &rest[1..];
                }
                None => {
                    self.held = rest.to_string();
                    return out;
                }
            }
        }
        out.push_str(rest);
        self.held.clear();
        out
    }

    /// What was held back at the end.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The union of the findings as disjoint ranges, each with the kind of its surest finding.
fn merged(findings: &[Finding]) -> Vec<(Range<usize>, String)> {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| (finding.start, finding.end));
    let mut merged: Vec<(Range<usize>, &Finding)> = Vec::new();
    for finding in sorted {
        match merged.last_mut() {
            Some((range, surest)) if finding.start < range.end => {
                range.end = range.end.max(finding.end);
                let key = |f: &Finding| (f.confidence, f.score, f.end - f.start);
                if key(finding) > key(surest) {
                    *surest = finding;
                }
            }
            _ => merged.push((finding.start..finding.end, finding)),
        }
    }
    merged
        .into_iter()
        .map(|(range, finding)| (range, finding.entity.to_string()))
        .collect()
}

/// Length of the longest beginning of `word`, shorter than all of it, with which `text` ends; in linear time (Knuth, Morris and
/// Pratt).
fn beginning_at_end(word: &[char], text: &[char]) -> usize {
    // Of each beginning of the word: the longest shorter one with which it ends.
    let mut shorter = vec![0; word.len() + 1];
    let mut matched = 0;
    for length in 2..=word.len() {
        while matched > 0 && word[matched] != word[length - 1] {
            matched = shorter[matched];
        }
        matched += usize::from(word[matched] == word[length - 1]);
        shorter[length] = matched;
    }
    let mut matched = 0;
    for c in text {
        while matched > 0 && word.get(matched) != Some(c) {
            matched = shorter[matched];
        }
        matched += usize::from(word.get(matched) == Some(c));
    }
    if matched == word.len() {
        shorter[matched]
    } else {
        matched
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pii::{ScanOptions, Scanner};
    use proptest::prelude::*;

    fn scanner() -> Scanner {
        Scanner::new(ScanOptions {
            min_confidence: 0.4,
            ..ScanOptions::default()
        })
        .unwrap()
    }

    #[test]
    fn one_placeholder_an_original_and_back() {
        let text =
            "a@example.org wrote to b@example.org; a@example.org waits. <EMAIL_ADDRESS_3> stays.";
        let mut map = RestoreMap::default();
        let redacted = map.redact(text, &scanner().scan(text));
        assert_eq!(
            redacted,
            "<EMAIL_ADDRESS_1> wrote to <EMAIL_ADDRESS_2>; <EMAIL_ADDRESS_1> waits. <EMAIL_ADDRESS_3> stays."
        );
        assert_eq!(map.restore(&redacted), text);
        assert_eq!(
            map.restore("1 < 2 <b> <EMAIL_ADDRESS_2"),
            "1 < 2 <b> <EMAIL_ADDRESS_2"
        );
    }

    proptest! {
        #[test]
        fn any_text_comes_back_however_it_is_cut(parts in prop::collection::vec("(<|>|_|[a-z]{1,3}|4111 1111 1111 1111|x@y\\.com|<CREDIT_CARD_1>|é| |\n){0,6}", 0..4), cut in 1usize..9) {
            let text = parts.concat();
            let mut map = RestoreMap::default();
            let redacted = map.redact(&text, &scanner().scan(&text));
            prop_assert_eq!(map.restore(&redacted), text.clone());
            let mut restorer = map.restorer();
            let mut restored = String::new();
            let characters: Vec<char> = redacted.chars().collect();
            for piece in characters.chunks(cut) {
                restored.push_str(&restorer.push(&piece.iter().collect::<String>()));
            }
            restored.push_str(&restorer.finish());
            prop_assert_eq!(restored, text);
        }
    }

    #[test]
    fn a_text_that_ends_within_a_long_original_is_known() {
        let original: String = (0..200)
            .map(|i| format!("&#{};", 97 + i * 7 % 26))
            .collect();
        let mut map = RestoreMap::default();
        map.placeholder("CRYPTO", &original, "");
        for length in [3, 255, 256, 257, original.len() - 1] {
            assert!(map.ends_within(&format!("see {}", &original[..length])));
        }
        assert!(!map.ends_within(&format!("see {} there", &original[..257])));
    }

    proptest! {
        #[test]
        fn the_longest_beginning_is_found(word in "[ab]{0,12}", text in "[ab]{0,30}") {
            let (word, text): (Vec<char>, Vec<char>) = (word.chars().collect(), text.chars().collect());
            let ends = |length: &usize| text.ends_with(&word[..*length]);
            let expected = (0..word.len().max(1)).rev().find(ends).unwrap_or(0);
            prop_assert_eq!(beginning_at_end(&word, &text), expected);
        }
    }
}
