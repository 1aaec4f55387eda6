//! Hand-written splitters of the common pre-tokenizers: one pass, no backtracking.
//!
//! Each takes the characters of one range and reports word lengths (in characters) that add up to the
//! range. They follow llama.cpp's splitters, which stand for the regular expression quoted at each.

use super::super::unicode::{Char, is_han};

/// What the Llama-3-like expressions differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tokenizer) struct Llama3Style {
    /// `\p{N}{1,n}`: longest run of digits kept together.
    pub digits: usize,
    /// Combining marks belong to words (`[\p{L}\p{M}]+`, Qwen 3.5).
    pub marks: bool,
    /// Contractions fold case as Unicode does (`'ſ` is `'s`), as Hugging Face's `(?i:...)`; else ASCII only.
    pub unicode_case: bool,
}

/// A range of characters that answers [`Char::OUTSIDE`] beyond its end.
struct Range<'a>(&'a [Char]);

impl Range<'_> {
    fn at(&self, position: usize) -> Char {
        self.0.get(position).copied().unwrap_or(Char::OUTSIDE)
    }

    /// First position from `position` on that does not satisfy `test`.
    fn skip(&self, mut position: usize, test: impl Fn(Char) -> bool) -> usize {
        while position < self.0.len() && test(self.0[position]) {
            position += 1;
        }
        position
    }

    /// End of `\p{N}{1,most}` at `position`.
    fn digits(&self, position: usize, most: usize) -> usize {
        let within = self.0.len().min(position + most);
        Range(&self.0[..within]).skip(position, Char::is_number)
    }

    /// Length of the contraction (`'s 't 'm 'd 're 've 'll`) at `position`; `fold` maps to lower case.
    fn contraction(&self, position: usize, fold: impl Fn(u32) -> u32) -> Option<usize> {
        if !self.at(position).is('\'') {
            return None;
        }
        let letter = |offset| char::from_u32(fold(self.at(position + offset).code_point()));
        match (letter(1)?, letter(2)) {
            ('s' | 't' | 'm' | 'd', _) => Some(2),
            ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(3),
            _ => None,
        }
    }

    /// End of `\s+(?!\S)|\s+` at `position`: a run that a word follows leaves its last character to it.
    fn whitespace(&self, position: usize) -> Option<usize> {
        let end = self.skip(position, Char::is_whitespace);
        match end - position {
            0 => None,
            1 => Some(end),
            _ if end < self.0.len() => Some(end - 1),
            _ => Some(end),
        }
    }

    /// End of `\s*[\r\n]+` at `position`: up to the last line break of the whitespace run.
    fn lines(&self, position: usize) -> Option<usize> {
        let end = self.skip(position, Char::is_whitespace);
        (position..end)
            .rev()
            .find(|&at| self.0[at].is_newline())
            .map(|at| at + 1)
    }
}

fn same_case(code_point: u32) -> u32 {
    code_point
}

fn ascii_lower(code_point: u32) -> u32 {
    match code_point {
        0x41..=0x5A => code_point + 0x20,
        _ => code_point,
    }
}

fn unicode_lower(code_point: u32) -> u32 {
    match code_point {
        0x17F => u32::from(b's'),
        _ => ascii_lower(code_point),
    }
}

fn is_other(c: Char) -> bool {
    !(c.is_whitespace() || c.is_letter() || c.is_number())
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
pub(super) fn gpt2(chars: &[Char], mut emit: impl FnMut(usize)) {
    let range = Range(chars);
    let mut position = 0;
    while position < chars.len() {
        let end = gpt2_word(&range, position);
        emit(end - position);
        position = end;
    }
}

fn gpt2_word(range: &Range<'_>, position: usize) -> usize {
    if let Some(length) = range.contraction(position, same_case) {
        return position + length;
    }
    let space = usize::from(range.at(position).is(' '));
    let body = position + space;
    if body < range.0.len() {
        let first = range.0[body];
        if first.is_letter() {
            return range.skip(body, Char::is_letter);
        }
        if first.is_number() {
            return range.skip(body, Char::is_number);
        }
        if is_other(first) {
            return range.skip(body, is_other);
        }
    }
    range.whitespace(position).unwrap_or(position + 1)
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
/// and its relatives, see [`Llama3Style`].
pub(super) fn llama3(chars: &[Char], style: Llama3Style, mut emit: impl FnMut(usize)) {
    let range = Range(chars);
    let mut position = 0;
    while position < chars.len() {
        let end = llama3_word(&range, position, style);
        emit(end - position);
        position = end;
    }
}

fn llama3_word(range: &Range<'_>, position: usize, style: Llama3Style) -> usize {
    let fold = if style.unicode_case {
        unicode_lower
    } else {
        ascii_lower
    };
    if let Some(length) = range.contraction(position, fold) {
        return position + length;
    }
    let first = range.at(position);
    let in_word = |c: Char| c.is_letter() || (style.marks && c.is_mark());
    if !first.is_newline()
        && !first.is_number()
        && (in_word(first) || in_word(range.at(position + 1)))
    {
        return range.skip(position + 1, in_word);
    }
    if first.is_number() {
        return range.digits(position, style.digits);
    }
    let in_other = |c: Char| is_other(c) && !(style.marks && c.is_mark());
    let body = position + usize::from(first.is(' '));
    if body < range.0.len() && in_other(range.0[body]) {
        let end = range.skip(body, in_other);
        return range.skip(end, Char::is_newline);
    }
    range
        .lines(position)
        .or_else(|| range.whitespace(position))
        .unwrap_or(position + 1)
}

/// Kimi K2: runs of Han; words of other letters with an optional leading character and trailing
/// contraction; then as Llama 3. Combining marks are not letters here.
pub(super) fn kimi_k2(chars: &[Char], mut emit: impl FnMut(usize)) {
    let range = Range(chars);
    let mut position = 0;
    while position < chars.len() {
        let end = kimi_word(&range, position);
        emit(end - position);
        position = end;
    }
}

fn kimi_word(range: &Range<'_>, position: usize) -> usize {
    let han = |c: Char| is_han(c.code_point());
    let letter = |c: Char| c.is_letter() && !han(c);
    let first = range.at(position);
    if han(first) {
        return range.skip(position, han);
    }
    let lead = !(first.is_newline() || first.is_letter() || first.is_number());
    if letter(first) || (lead && letter(range.at(position + 1))) {
        let end = range.skip(position + usize::from(lead), letter);
        return end + range.contraction(end, ascii_lower).unwrap_or(0);
    }
    if first.is_number() {
        return range.digits(position, 3);
    }
    let body = position + usize::from(first.is(' '));
    if body < range.0.len() && is_other(range.0[body]) {
        let end = range.skip(body, is_other);
        return range.skip(end, Char::is_newline);
    }
    range
        .lines(position)
        .or_else(|| range.whitespace(position))
        .unwrap_or(position + 1)
}

/// Numbers in groups of three counted from the right (`1|234|567`). What stands before a number stays with
/// its first group, as in the reference; a later stage parts them.
pub(super) fn digit_groups(chars: &[Char], mut emit: impl FnMut(usize)) {
    let range = Range(chars);
    let (mut word, mut position) = (0, 0);
    while position < chars.len() {
        let start = range.skip(position, |c| !c.is_number());
        position = range.skip(start, Char::is_number);
        let mut cut = start + (position - start) % 3;
        if cut == start {
            cut += 3;
        }
        while cut <= position {
            emit(cut - word);
            word = cut;
            cut += 3;
        }
    }
    if chars.len() > word {
        emit(chars.len() - word);
    }
}

/// `(?=(\d{3})+(?!\d))` as a split: a cut before each group of three ASCII digits counted from the right.
pub(super) fn ascii_digit_cuts(chars: &[Char], mut emit: impl FnMut(usize)) {
    let digit = |c: Char| matches!(c.code_point(), 0x30..=0x39);
    let range = Range(chars);
    let (mut word, mut position) = (0, 0);
    while position < chars.len() {
        if !digit(chars[position]) {
            position += 1;
            continue;
        }
        let end = range.skip(position, digit);
        let mut cut = position + (end - position) % 3;
        while cut < end {
            if cut > word {
                emit(cut - word);
                word = cut;
            }
            cut += 3;
        }
        position = end;
    }
    if position > word {
        emit(position - word);
    }
}

/// `[^\n]+|[\n]+`
pub(super) fn line_runs(chars: &[Char], mut emit: impl FnMut(usize)) {
    let range = Range(chars);
    let mut position = 0;
    while position < chars.len() {
        let newline = chars[position].is('\n');
        let end = range.skip(position, |c| c.is('\n') == newline);
        emit(end - position);
        position = end;
    }
}
