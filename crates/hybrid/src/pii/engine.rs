//! One pass over normalised text: words and telling characters first, then a lazily built automaton of every pattern at the few
//! places where one could begin.
//!
//! Every pattern has a bounded length and each place is tried once, so the time is linear in the text.

use super::recognizer::{Edge, Pattern, Recognizer, Strictness, Validity, is_word};
use super::{Entity, ScanError, generic, iban, national, network, phone, secret};
use regex_automata::hybrid::dfa::{Cache, DFA, OverlappingState};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};
use std::sync::Mutex;

/// Something found in normalised text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hit {
    pub(crate) entity: Entity,
    /// Bytes of the text that was scanned.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// What format and check digits say, 0 to 1.
    pub(crate) score: f32,
    /// Words that would raise the confidence.
    pub(crate) context: &'static [&'static str],
}

/// The compiled patterns. Building takes some milliseconds; share it.
pub(crate) struct Engine {
    recognizers: Vec<&'static Recognizer>,
    /// Recogniser and pattern of each pattern id of the automaton.
    anchored: Automaton,
    /// Patterns that may begin inside a word.
    open: Automaton,
}

struct Automaton {
    dfa: DFA,
    patterns: Vec<(usize, &'static Pattern)>,
    /// Caches that no scan uses right now.
    caches: Mutex<Vec<Cache>>,
}

/// Longest match of any pattern, in bytes; bounds the work at each place.
const MAX_MATCH: usize = 128;
/// Words longer than this are encoded data, not numbers that people write.
const MAX_OPEN_WORD: usize = 4096;

impl Engine {
    pub(crate) fn new() -> Result<Self, ScanError> {
        let recognizers: Vec<_> = generic::RECOGNIZERS.iter().chain(national::recognizers()).collect();
        let all = || {
            recognizers
                .iter()
                .enumerate()
                .flat_map(|(index, r)| r.patterns.iter().map(move |pattern| (index, pattern)))
        };
        Ok(Self {
            anchored: Automaton::new(all().filter(|(_, p)| p.before != Edge::Open).collect())?,
            open: Automaton::new(all().filter(|(_, p)| p.before == Edge::Open).collect())?,
            recognizers,
        })
    }

    /// Every recogniser that has patterns.
    pub(crate) fn recognizers(&self) -> &[&'static Recognizer] {
        &self.recognizers
    }

    /// Everything in `text`, which must be normalised, in the order of the recognisers; overlaps are kept.
    pub(crate) fn scan(&self, text: &str, strictness: Strictness, wanted: &dyn Fn(&Entity) -> bool) -> Vec<Hit> {
        let places = Places::of(text);
        let mut hits = Vec::new();
        let mut run = |automaton: &Automaton, starts: &mut dyn Iterator<Item = usize>| {
            automaton.run(text, starts, &mut |index, pattern, start, end| {
                let recognizer = self.recognizers[index];
                if !wanted(&recognizer.entity) {
                    return;
                }
                let score = match (recognizer.check)(&text[start..end], strictness) {
                    Validity::Valid => 1.0,
                    Validity::Unknown => pattern.score,
                    Validity::Invalid => return,
                };
                hits.push(Hit { entity: recognizer.entity.clone(), start, end, score, context: recognizer.context });
            });
        };
        run(&self.anchored, &mut places.starts.iter().copied());
        run(&self.open, &mut places.open_starts(text));
        include_leading_blank(text, &mut hits);
        let mut add = |entity: Entity, range: std::ops::Range<usize>, score: f32, context| {
            if wanted(&entity) {
                hits.push(Hit { entity, start: range.start, end: range.end, score, context });
            }
        };
        let mut past = 0;
        for &start in &places.starts {
            if start < past {
                continue;
            }
            if let Some((range, validity)) = iban::find(text, start)
                && !text[..start].chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric())
            {
                past = range.end;
                let score = if validity == Validity::Valid { 1.0 } else { 0.5 };
                add(Entity::new("IBAN_CODE"), range, score, &["iban", "bank", "account", "transaction"]);
            }
        }
        let mut past = 0;
        for &at in &places.at_signs {
            if let Some(range) = network::email(text, at).filter(|range| range.start >= past) {
                past = range.end;
                add(Entity::new("EMAIL_ADDRESS"), range, 1.0, &["mail"]);
            }
        }
        let mut past = 0;
        for &dot in &places.dots {
            if dot < past {
                continue;
            }
            if let Some((range, has_scheme)) = network::url(text, dot) {
                past = range.end;
                add(Entity::new("URL"), range, if has_scheme { 0.6 } else { 0.5 }, &["url", "website", "link"]);
            }
        }
        let mut past = 0;
        for &colon in &places.colons {
            if colon < past {
                continue;
            }
            if let Some((range, unspecified)) = network::ipv6(text, colon) {
                past = range.end;
                add(Entity::new("IP_ADDRESS"), range, if unspecified { 0.1 } else { 0.6 }, &["ip", "ipv6"]);
            }
        }
        for year in &places.years {
            add(Entity::new("DATE_TIME"), year.clone(), 0.3, &["date", "year", "born"]);
        }
        phone::find(text, &places.numbers, wanted, &mut hits);
        secret::find(text, wanted, &mut hits);
        without_contained(hits)
    }
}

impl Automaton {
    fn new(patterns: Vec<(usize, &'static Pattern)>) -> Result<Self, ScanError> {
        let expressions: Vec<&str> = patterns.iter().map(|(_, p)| p.expression).collect();
        let dfa = DFA::builder()
            .configure(
                DFA::config()
                    .match_kind(MatchKind::All)
                    .cache_capacity(8 << 20),
            )
            .syntax(syntax::Config::new().case_insensitive(true).unicode(true))
            .build_many(&expressions)
            .map_err(|error| ScanError::Patterns(error.to_string()))?;
        Ok(Self { dfa, patterns, caches: Mutex::new(Vec::new()) })
    }

    /// Calls `found` with recogniser, pattern, start and end of the longest match of each pattern at each start, leaving out
    /// starts inside that pattern's last match.
    fn run(
        &self,
        text: &str,
        starts: &mut dyn Iterator<Item = usize>,
        found: &mut dyn FnMut(usize, &'static Pattern, usize, usize),
    ) {
        let pooled = self.caches.lock().ok().and_then(|mut caches| caches.pop());
        let mut cache = pooled.unwrap_or_else(|| self.dfa.create_cache());
        let mut past = vec![0; self.patterns.len()];
        let mut longest: Vec<(usize, usize)> = Vec::new();
        for start in starts {
            longest.clear();
            let end = text.len().min(start + MAX_MATCH);
            let input = Input::new(text.as_bytes()).span(start..end).anchored(Anchored::Yes);
            let mut state = OverlappingState::start();
            // The automaton has no quit bytes and no limit on cache clears, so a search cannot fail.
            while self.dfa.try_search_overlapping_fwd(&mut cache, &input, &mut state).is_ok() {
                let Some(half) = state.get_match() else { break };
                let (id, end) = (half.pattern().as_usize(), half.offset());
                let pattern = self.patterns[id].1;
                if start < past[id] || !edges_hold(text, start, end, pattern) {
                    continue;
                }
                match longest.iter_mut().find(|(known, _)| *known == id) {
                    Some(entry) => entry.1 = end,
                    None => longest.push((id, end)),
                }
            }
            for &(id, end) in &longest {
                past[id] = end;
                let (recognizer, pattern) = self.patterns[id];
                found(recognizer, pattern, start, end);
            }
        }
        if let Ok(mut caches) = self.caches.lock() {
            caches.push(cache);
        }
    }
}

fn edges_hold(text: &str, start: usize, end: usize, pattern: &Pattern) -> bool {
    let matched = &text[start..end];
    pattern.before.allows(matched.chars().next(), text[..start].chars().next_back())
        && pattern.after.allows(matched.chars().next_back(), text[end..].chars().next())
}

/// The places where something could begin, each list ascending.
#[derive(Default)]
struct Places {
    /// Beginnings of words with digits, of digits inside them, and of the short words before them.
    starts: Vec<usize>,
    /// Words with at least five digits.
    open_words: Vec<std::ops::Range<usize>>,
    /// First digits of each word that has some.
    numbers: Vec<usize>,
    at_signs: Vec<usize>,
    /// Dots between two characters of a host name.
    dots: Vec<usize>,
    /// Colons that could be part of an IPv6 address.
    colons: Vec<usize>,
    /// Four digits after a word such as «in» or «since».
    years: Vec<std::ops::Range<usize>>,
}

/// What a byte is to [`Places::of`].
const WORD: u8 = 1;
const NUMERAL: u8 = 2;
const TELLING: u8 = 4;
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80 {
            classes[byte] = WORD;
        }
        if b.is_ascii_digit() {
            classes[byte] |= NUMERAL;
        }
        if matches!(b, b'@' | b'.' | b':') {
            classes[byte] = TELLING;
        }
        byte += 1;
    }
    classes
};

impl Places {
    fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut places = Self::default();
        // The last two words, the nearer one last.
        let mut before = [0..0, 0..0];
        let mut index = 0;
        while index < bytes.len() {
            let class = CLASSES[usize::from(bytes[index])];
            if class & WORD == 0 {
                if class & TELLING != 0 {
                    places.telling(bytes, index);
                }
                index += 1;
                continue;
            }
            let start = index;
            let mut digits = 0;
            while let Some(class) = bytes.get(index).map(|b| CLASSES[usize::from(*b)])
                && class & WORD != 0
            {
                digits += usize::from(class & NUMERAL != 0);
                index += 1;
            }
            let word = start..index;
            if digits > 0 {
                places.numeric_word(text, &word, digits, &before);
            } else if is_hexadecimal_group(bytes, &word) {
                places.starts.push(start);
            }
            before = [before[1].clone(), word];
        }
        places.starts.dedup();
        places
    }

    fn telling(&mut self, bytes: &[u8], index: usize) {
        let previous = index.checked_sub(1).map_or(0, |i| bytes[i]);
        let next = bytes.get(index + 1).copied().unwrap_or(0);
        match bytes[index] {
            b'@' => self.at_signs.push(index),
            b'.' if previous.is_ascii_alphanumeric() && next.is_ascii_alphanumeric() => self.dots.push(index),
            b':' if next == b':' || (previous.is_ascii_hexdigit() && next.is_ascii_hexdigit()) => {
                self.colons.push(index);
            }
            _ => {}
        }
    }

    fn numeric_word(&mut self, text: &str, word: &std::ops::Range<usize>, digits: usize, before: &[std::ops::Range<usize>; 2]) {
        let bytes = text.as_bytes();
        let near = |left: &std::ops::Range<usize>, right: usize| left.end > left.start && right - left.end == 1;
        if near(&before[1], word.start) {
            if near(&before[0], before[1].start) && before[0].len() <= 4 && before[1].len() <= 4 {
                self.start(before[0].start);
            }
            if before[1].len() <= 4 || is_month(&bytes[before[1].clone()]) {
                self.start(before[1].start);
            }
        } else if word.start - before[1].end == 2 && is_month(&bytes[before[1].clone()]) {
            self.start(before[1].start);
        }
        let mut previous_class = 0;
        for index in word.clone() {
            let byte = bytes[index];
            let class = if byte.is_ascii_digit() { 1 } else if byte.is_ascii() { 2 } else { 3 };
            let begins = class != previous_class && (class == 1 || previous_class == 0 || previous_class == 3);
            if begins && text.is_char_boundary(index) {
                self.start(index);
            }
            if class == 1 && previous_class != 1 {
                self.numbers.push(index);
            }
            previous_class = class;
        }
        if digits >= 5 && word.len() >= 6 {
            self.open_words.push(word.start..word.end.min(word.start + MAX_OPEN_WORD));
        }
        if digits == 4 && word.len() == 4 && near(&before[1], word.start) {
            let year = (bytes[word.start] - b'0') * 10 + (bytes[word.start + 1] - b'0');
            let goes_on = matches!(bytes.get(word.end), Some(b'-' | b'/' | b':' | b'.' | b','))
                && bytes.get(word.end + 1).is_some_and(u8::is_ascii_digit);
            if (18..=20).contains(&year) && !goes_on && introduces_year(&text[before[1].clone()]) {
                self.years.push(word.clone());
            }
        }
    }

    fn start(&mut self, at: usize) {
        // Words that lead two numbers would come twice and out of order.
        if self.starts.last().is_none_or(|last| *last < at) {
            self.starts.push(at);
        }
    }

    fn open_starts<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.open_words
            .iter()
            .flat_map(Clone::clone)
            .filter(|at| text.is_char_boundary(*at))
    }
}

fn is_month(word: &[u8]) -> bool {
    word.get(..3).is_some_and(|head| {
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
            .iter()
            .any(|month| head.eq_ignore_ascii_case(month.as_bytes()))
    })
}

fn introduces_year(word: &str) -> bool {
    ["in", "since", "of", "from", "until", "till", "by", "during", "before", "after", "circa", "year", "a", "the", "early", "late"]
        .iter()
        .any(|introduction| word.eq_ignore_ascii_case(introduction))
}

/// True if the word is the first group of a hardware address written without digits so far.
fn is_hexadecimal_group(bytes: &[u8], word: &std::ops::Range<usize>) -> bool {
    let separator = match (word.len(), bytes.get(word.end)) {
        (2, Some(&separator @ (b':' | b'-'))) | (4, Some(&separator @ b'.')) => separator,
        _ => return false,
    };
    bytes.get(word.end + 1 + word.len()) == Some(&separator)
        && bytes[word.clone()].iter().all(u8::is_ascii_hexdigit)
}

/// A national insurance number is printed with a blank before it; after a word that blank is part of the match.
fn include_leading_blank(text: &str, hits: &mut [Hit]) {
    for hit in hits.iter_mut().filter(|hit| hit.entity.name() == "UK_NINO") {
        let before = &text[..hit.start];
        if before.strip_suffix(' ').and_then(|rest| rest.chars().next_back()).is_some_and(is_word) {
            hit.start -= 1;
        }
    }
}

/// Leaves out what lies inside a hit of the same entity that is at least as sure.
fn without_contained(mut hits: Vec<Hit>) -> Vec<Hit> {
    /// How many neighbours are compared: more than patterns of one kind can overlap at one place.
    const NEIGHBOURS: usize = 24;
    hits.sort_by(|a, b| {
        (&a.entity, b.score, a.start, b.end)
            .partial_cmp(&(&b.entity, a.score, b.start, a.end))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let mut kept: Vec<Hit> = Vec::new();
    let mut by_start: std::collections::BTreeMap<(usize, usize), usize> = std::collections::BTreeMap::new();
    for hit in hits {
        if kept.last().is_some_and(|last| last.entity != hit.entity) {
            by_start.clear();
        }
        let contained = by_start
            .range(..=(hit.start, usize::MAX))
            .rev()
            .take(NEIGHBOURS)
            .any(|(_, end)| *end >= hit.end);
        if !contained {
            by_start.insert((hit.start, hit.end), hit.end);
            kept.push(hit);
        }
    }
    kept.sort_by_key(|hit| (hit.start, hit.end));
    kept
}
