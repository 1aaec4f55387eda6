//! One pass over normalised text: words and telling characters first, then a lazily built automaton of every pattern at the few
//! places where one could begin.
//!
//! Every pattern has a bounded length and each place is tried once, so the time is linear in the text.

use super::places::Places;
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

impl Engine {
    pub(crate) fn new() -> Result<Self, ScanError> {
        let recognizers: Vec<_> = generic::RECOGNIZERS
            .iter()
            .chain(national::recognizers())
            .collect();
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
    pub(crate) fn scan(
        &self,
        text: &str,
        places: &Places,
        strictness: Strictness,
        wanted: &dyn Fn(&Entity) -> bool,
    ) -> Vec<Hit> {
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
                hits.push(Hit {
                    entity: recognizer.entity.clone(),
                    start,
                    end,
                    score,
                    context: recognizer.context,
                });
            });
        };
        run(&self.anchored, &mut places.starts.iter().copied());
        run(&self.open, &mut places.open_starts(text));
        include_leading_blank(text, &mut hits);
        let mut add = |entity: Entity, range: std::ops::Range<usize>, score: f32, context| {
            if wanted(&entity) {
                hits.push(Hit {
                    entity,
                    start: range.start,
                    end: range.end,
                    score,
                    context,
                });
            }
        };
        let mut past = 0;
        for &start in &places.starts {
            if start < past {
                continue;
            }
            if let Some((range, validity)) = iban::find(text, start)
                && !text[..start]
                    .chars()
                    .next_back()
                    .is_some_and(|c| c.is_ascii_alphanumeric())
            {
                past = range.end;
                let score = if validity == Validity::Valid {
                    1.0
                } else {
                    0.5
                };
                add(
                    Entity::new("IBAN_CODE"),
                    range,
                    score,
                    &["iban", "bank", "account", "transaction"],
                );
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
                add(
                    Entity::new("URL"),
                    range,
                    if has_scheme { 0.6 } else { 0.5 },
                    &["url", "website", "link"],
                );
            }
        }
        let mut past = 0;
        for &colon in &places.colons {
            if colon < past {
                continue;
            }
            if let Some((range, unspecified)) = network::ipv6(text, colon) {
                past = range.end;
                add(
                    Entity::new("IP_ADDRESS"),
                    range,
                    if unspecified { 0.1 } else { 0.6 },
                    &["ip", "ipv6"],
                );
            }
        }
        for year in &places.years {
            add(
                Entity::new("DATE_TIME"),
                year.clone(),
                0.3,
                &["date", "year", "born"],
            );
        }
        phone::find(text, &places.numbers, wanted, &mut hits);
        secret::find(text, places, wanted, &mut hits);
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
        Ok(Self {
            dfa,
            patterns,
            caches: Mutex::new(Vec::new()),
        })
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
            let input = Input::new(text.as_bytes())
                .span(start..end)
                .anchored(Anchored::Yes);
            let mut state = OverlappingState::start();
            // The automaton has no quit bytes and no limit on cache clears, so a search cannot fail.
            while self
                .dfa
                .try_search_overlapping_fwd(&mut cache, &input, &mut state)
                .is_ok()
            {
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
    pattern
        .before
        .allows(matched.chars().next(), text[..start].chars().next_back())
        && pattern
            .after
            .allows(matched.chars().next_back(), text[end..].chars().next())
}

/// A national insurance number is printed with a blank before it; after a word that blank is part of the match.
fn include_leading_blank(text: &str, hits: &mut [Hit]) {
    for hit in hits.iter_mut().filter(|hit| hit.entity.name() == "UK_NINO") {
        let before = &text[..hit.start];
        if before
            .strip_suffix(' ')
            .and_then(|rest| rest.chars().next_back())
            .is_some_and(is_word)
        {
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
    let mut by_start: std::collections::BTreeMap<(usize, usize), usize> =
        std::collections::BTreeMap::new();
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
