//! A short valid end of a text that must come to one.
//!
//! A beam of texts grows byte by byte, each by what closes most; the first that is complete is taken. Bytes, not tokens, because
//! what may follow is then found some hundred times quicker, and every text can be written in any vocabulary. Bytes after which
//! the same bytes may follow count as one: of the letters of a name one is tried, but the `@` after it as well.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

/// Widths of the beams that are tried in turn.
const WIDTHS: [usize; 3] = [1, 4, 12];

/// The token that ends a text; the others are their bytes.
const END: u32 = 256;

/// Finds ends, for all grammars.
pub(super) struct Shortest {
    parsers: ParserFactory,
}

impl Shortest {
    pub(super) fn new(limits: llguidance::api::ParserLimits) -> Result<Self, String> {
        let mut words: Vec<Vec<u8>> = (0..=255_u8).map(|byte| vec![byte]).collect();
        // This byte is in no text and marks control tokens.
        words[255] = Vec::new();
        words.push(b"\xff<end>".to_vec());
        let trie = TokTrie::from(&TokRxInfo::new(END + 1, END), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let capabilities = InferenceCapabilities::default();
        let mut parsers = ParserFactory::new(&environment, capabilities, &[])
            .map_err(|error| error.to_string())?;
        parsers.quiet();
        *parsers.limits_mut() = limits;
        Ok(Shortest { parsers })
    }

    /// At the beginning of a text of `grammar`.
    pub(super) fn begin(&self, grammar: TopLevelGrammar) -> Matcher {
        Matcher::new(self.parsers.create_parser(grammar))
    }
}

/// Follows a text and finds its end when asked.
pub(super) struct Follower {
    matcher: Matcher,
    place: Place,
}

impl Follower {
    pub(super) fn new(matcher: Matcher) -> Self {
        Follower {
            matcher,
            place: Place::default(),
        }
    }

    /// Takes note of what was written since the last time. False when it cannot be followed.
    pub(super) fn write(&mut self, bytes: &[u8]) -> bool {
        let tokens: Vec<u32> = bytes.iter().map(|&byte| u32::from(byte)).collect();
        bytes.iter().for_each(|&byte| self.place.pass(byte));
        self.matcher.consume_tokens(&tokens).is_ok()
    }

    /// The shortest end that was found within `time`, if possible one that `fits`; at most `most` bytes.
    pub(super) fn end(
        &self,
        most: usize,
        time: Duration,
        fits: impl Fn(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let until = Instant::now() + time;
        let mut best: Option<Vec<u8>> = None;
        for width in WIDTHS {
            let Some(end) = self.search(width, most, until) else {
                continue;
            };
            let is_done = fits(&end);
            if best.as_ref().is_none_or(|best| end.len() < best.len()) {
                best = Some(end);
            }
            if is_done {
                break;
            }
        }
        best
    }

    fn search(&self, width: usize, most: usize, until: Instant) -> Option<Vec<u8>> {
        let mut kinds = Kinds::default();
        let mut beam = vec![Branch::new(self.matcher.clone(), self.place)];
        while !beam.is_empty() {
            let mut grown: Vec<Branch> = Vec::new();
            if Instant::now() > until {
                return None;
            }
            for branch in &mut beam {
                if branch.matcher.is_accepting().unwrap_or(false) {
                    return Some(std::mem::take(&mut branch.bytes));
                }
                if branch.bytes.len() < most {
                    branch.grow(width, &mut kinds, &mut grown);
                }
            }
            grown.sort_by_key(Branch::cost);
            grown.truncate(width);
            beam = grown;
        }
        None
    }
}

/// Bytes that may follow, in their order.
type Allowed = Vec<u8>;

/// Of the bytes that may follow, one of each kind: after those of a kind the same may follow. Learnt once for each set of bytes.
#[derive(Default)]
struct Kinds(HashMap<Allowed, Vec<u8>>);

impl Kinds {
    /// Bytes that are looked at, of a set.
    const MOST: usize = 128;

    fn of(&mut self, branch: &Branch, allowed: Allowed) -> Vec<u8> {
        if let Some(known) = self.0.get(&allowed) {
            return known.clone();
        }
        let mut seen: Vec<(Allowed, bool, usize)> = Vec::new();
        let mut kinds: Vec<(bool, u8)> = Vec::new();
        for &byte in by_rank(&allowed, branch.place.in_string)
            .iter()
            .take(Self::MOST)
        {
            let mut matcher = branch.matcher.clone();
            if matcher.consume_token(u32::from(byte)).is_err() {
                continue;
            }
            let is_end = matcher.is_accepting().unwrap_or(false);
            let mut place = branch.place;
            place.pass(byte);
            let kind = (allowed_bytes(&mut matcher), is_end, place.cost());
            if seen.contains(&kind) {
                continue;
            }
            // What leads on comes before what may be repeated.
            kinds.push((kind.0 == allowed, byte));
            seen.push(kind);
        }
        kinds.sort_by_key(|&(repeats, _)| repeats);
        let kinds: Vec<u8> = kinds.into_iter().map(|(_, byte)| byte).collect();
        self.0.insert(allowed, kinds.clone());
        kinds
    }
}

fn allowed_bytes(matcher: &mut Matcher) -> Allowed {
    let Ok(mask) = matcher.compute_mask_or_eos() else {
        return Vec::new();
    };
    (0..=254_u8)
        .filter(|&byte| mask.is_allowed(u32::from(byte)))
        .collect()
}

/// A text that may become the end.
struct Branch {
    matcher: Matcher,
    bytes: Vec<u8>,
    place: Place,
}

impl Branch {
    fn new(matcher: Matcher, place: Place) -> Self {
        Branch {
            matcher,
            bytes: Vec::new(),
            place,
        }
    }

    /// Its length when all that is open is closed.
    fn cost(&self) -> usize {
        self.bytes.len() + self.place.cost()
    }

    /// Appends the texts that are a byte longer, and what that forces, to `grown`; not those that another one stands for.
    fn grow(&mut self, width: usize, kinds: &mut Kinds, grown: &mut Vec<Branch>) {
        let allowed = allowed_bytes(&mut self.matcher);
        let choices = match width {
            1 => by_rank(&allowed, self.place.in_string)
                .first()
                .copied()
                .into_iter()
                .collect(),
            _ => kinds.of(self, allowed),
        };
        for byte in choices {
            let mut matcher = self.matcher.clone();
            if matcher.consume_token(u32::from(byte)).is_err() {
                continue;
            }
            let mut branch = Branch {
                matcher,
                bytes: self.bytes.clone(),
                place: self.place,
            };
            branch.note(&[byte]);
            if !branch.matcher.is_accepting().unwrap_or(false) {
                let forced = branch.matcher.compute_ff_bytes();
                let tokens: Vec<u32> = forced.iter().map(|&byte| u32::from(byte)).collect();
                if branch.matcher.consume_tokens(&tokens).is_err() {
                    continue;
                }
                branch.note(&forced);
            }
            grown.push(branch);
        }
    }

    fn note(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        bytes.iter().for_each(|&byte| self.place.pass(byte));
    }
}

/// Where in JSON a text is. In other grammars it only guides the search.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Place {
    /// Bytes that close what is open.
    fn cost(&self) -> usize {
        2 * self.depth + usize::from(self.in_string)
    }

    fn pass(&mut self, byte: u8) {
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ => (),
            }
            return;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => (),
        }
    }
}

/// The bytes to go on with, the most promising first. Of those beyond ASCII, which only grow the text, the first alone.
fn by_rank(allowed: &[u8], in_string: bool) -> Vec<u8> {
    let rank = |byte: u8| match (byte, in_string) {
        (b'"', true) => 0,
        (b'a'..=b'z' | b'0'..=b'9' | b'A'..=b'Z', true) => 1,
        (b'}' | b']', false) => 0,
        (b'"', false) => 1,
        (b',' | b':', false) => 2,
        (b'0'..=b'9', false) => 3,
        (b't' | b'f' | b'n', false) => 4,
        (b'[', false) => 5,
        (b'{', false) => 6,
        (b' ' | b'\n' | b'\r' | b'\t' | b'\\', _) => 9,
        (0x80.., _) => 8,
        _ => 7,
    };
    let mut sorted = allowed.to_vec();
    sorted.sort_by_key(|&byte| rank(byte));
    let mut has_wide = false;
    sorted.retain(|&byte| byte < 0x80 || !std::mem::replace(&mut has_wide, true));
    sorted
}
