//! Secrets: keys and tokens by the format that their issuer publishes, private keys by their frame, and values that are assigned
//! to a telling name and look random.

use super::Entity;
use super::engine::Hit;
use super::places::Places;
use std::ops::Range;

/// Prefix, fewest further characters, and what it is.
const PREFIXES: &[(&str, usize, &str)] = &[
    ("AKIA", 16, "API_KEY"),
    ("ASIA", 16, "API_KEY"),
    ("AIza", 35, "API_KEY"),
    ("sk-", 20, "API_KEY"),
    ("sk_live_", 16, "API_KEY"),
    ("sk_test_", 16, "API_KEY"),
    ("rk_live_", 16, "API_KEY"),
    ("pk_live_", 16, "API_KEY"),
    ("whsec_", 24, "API_KEY"),
    ("SG.", 40, "API_KEY"),
    ("key-", 32, "API_KEY"),
    ("AC", 32, "API_KEY"),
    ("gsk_", 20, "API_KEY"),
    ("r8_", 30, "API_KEY"),
    ("xai-", 40, "API_KEY"),
    ("lin_api_", 30, "API_KEY"),
    ("dapi", 32, "API_KEY"),
    ("ghp_", 36, "ACCESS_TOKEN"),
    ("gho_", 36, "ACCESS_TOKEN"),
    ("ghu_", 36, "ACCESS_TOKEN"),
    ("ghs_", 36, "ACCESS_TOKEN"),
    ("ghr_", 36, "ACCESS_TOKEN"),
    ("github_pat_", 22, "ACCESS_TOKEN"),
    ("glpat-", 20, "ACCESS_TOKEN"),
    ("xoxb-", 20, "ACCESS_TOKEN"),
    ("xoxp-", 20, "ACCESS_TOKEN"),
    ("xoxa-", 20, "ACCESS_TOKEN"),
    ("xoxs-", 20, "ACCESS_TOKEN"),
    ("xapp-", 20, "ACCESS_TOKEN"),
    ("npm_", 36, "ACCESS_TOKEN"),
    ("pypi-", 40, "ACCESS_TOKEN"),
    ("hf_", 30, "ACCESS_TOKEN"),
    ("dop_v1_", 64, "ACCESS_TOKEN"),
    ("shpat_", 32, "ACCESS_TOKEN"),
    ("ya29.", 30, "ACCESS_TOKEN"),
    ("EAAC", 60, "ACCESS_TOKEN"),
    ("eyJ", 20, "ACCESS_TOKEN"),
];

/// Names whose values are secrets, in small letters.
const NAMES: &[&str] = &[
    "password",
    "passwd",
    "passwort",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "api_key",
    "apikey",
    "api-key",
    "access_key",
    "accesskey",
    "private_key",
    "auth",
    "bearer",
    "authorization",
    "credential",
    "client_secret",
    "accountkey",
    "sharedaccesskey",
];

/// Least length and entropy, in bits a character, of a value that counts as random.
const RANDOM_LENGTH: usize = 16;
const RANDOM_ENTROPY: f32 = 3.5;
/// The longest token looked at.
const MAX_TOKEN: usize = 4096;
const FRAME: &str = "-----BEGIN ";

/// Adds the secrets of `text`.
pub(crate) fn find(
    text: &str,
    places: &Places,
    wanted: &dyn Fn(&Entity) -> bool,
    hits: &mut Vec<Hit>,
) {
    let mut add = |entity: &'static str, range: Range<usize>, score: f32| {
        let entity = Entity::new(entity);
        if wanted(&entity) {
            hits.push(Hit {
                entity,
                start: range.start,
                end: range.end,
                score,
                context: &["key", "token", "secret"],
            });
        }
    };
    let bytes = text.as_bytes();
    let mut past = 0;
    for word in &places.dense {
        if word.start < past {
            continue;
        }
        let left = bytes[past..word.start]
            .iter()
            .rev()
            .take(MAX_TOKEN)
            .take_while(|b| TOKEN[usize::from(**b)])
            .count();
        let start = word.start - left;
        let length = bytes[start..]
            .iter()
            .take(MAX_TOKEN)
            .take_while(|b| TOKEN[usize::from(**b)])
            .count();
        past = start + length;
        if length < 10 {
            continue;
        }
        let token = &text[start..past];
        if let Some(end) = framed(text, start) {
            add("PRIVATE_KEY", start..end, 1.0);
            past = end;
        } else if let Some(entity) = by_prefix(token) {
            add(entity, start..past, 1.0);
        } else if is_random(token) && named_before(text, start) {
            add("ACCESS_TOKEN", start..past, 0.6);
        }
    }
    let mut past = 0;
    for &at in &places.assignments {
        if at >= past
            && let Some((entity, range)) = assigned(text, at)
        {
            past = range.end;
            add(entity, range, 0.6);
        }
    }
}

/// Bytes that tokens are made of.
const TOKEN: [bool; 256] = {
    let mut set = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let b = byte as u8;
        set[byte] =
            b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/' | b'+' | b'~');
        byte += 1;
    }
    set
};

fn by_prefix(token: &str) -> Option<&'static str> {
    PREFIXES.iter().find_map(|(prefix, least, entity)| {
        let rest = token.strip_prefix(prefix)?;
        let varied = || entropy(rest) >= 3.0;
        let sound = match *prefix {
            // A signed web token has three parts; the first begins with an encoded brace.
            "eyJ" => rest.matches('.').count() >= 1,
            "AKIA" | "ASIA" => rest
                .bytes()
                .take(16)
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()),
            "AC" => rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit()),
            _ => !rest.contains('/'),
        };
        (rest.len() >= *least && sound && varied()).then_some(*entity)
    })
}

/// The end of the private key whose frame begins at `start`; what is left of the text if the frame never ends.
fn framed(text: &str, start: usize) -> Option<usize> {
    let rest = text[start..].strip_prefix(FRAME)?;
    let head = rest.split("-----").next()?;
    if !head.contains("PRIVATE KEY") || head.len() > 64 {
        return None;
    }
    let closing = format!("-----END {head}-----");
    let end = text[start..]
        .find(&closing)
        .map(|at| start + at + closing.len());
    Some(end.unwrap_or(text.len()))
}

/// The secret that `name:` or `name=` before `at` assigns.
fn assigned(text: &str, at: usize) -> Option<(&'static str, Range<usize>)> {
    if !named_before(text, at) {
        return None;
    }
    let rest = &text[at + 1..];
    let lead = rest.len()
        - rest
            .trim_start_matches([' ', '"', '\'', '\\', '=', '>'])
            .len();
    if lead > 4 {
        return None;
    }
    let start = at + 1 + lead;
    let value: usize = text[start..]
        .char_indices()
        .take(MAX_TOKEN)
        .take_while(|(_, c)| !c.is_whitespace() && !"\"',;)}]<>\\".contains(*c))
        .map(|(_, c)| c.len_utf8())
        .sum();
    let secret = &text[start..start + value];
    let password = name_before(text, at).is_some_and(|name| {
        contains_ignoring_case(name, "pass") || contains_ignoring_case(name, "pwd")
    });
    let has_digit_or_sign = secret.chars().any(|c| !c.is_alphabetic());
    if password && value >= 4 && (has_digit_or_sign || value >= 8) {
        Some(("PASSWORD", start..start + value))
    } else if value >= RANDOM_LENGTH && is_random(secret) {
        let entity = by_prefix(secret).unwrap_or("ACCESS_TOKEN");
        Some((entity, start..start + value))
    } else {
        None
    }
}

fn named_before(text: &str, at: usize) -> bool {
    name_before(text, at).is_some_and(|name| {
        NAMES
            .iter()
            .any(|secret| contains_ignoring_case(name, secret))
    })
}

/// The last word before `at`.
fn name_before(text: &str, at: usize) -> Option<&str> {
    let head = text[..at].trim_end_matches([' ', '"', '\'', '\\', ':', '=']);
    let length = head
        .bytes()
        .rev()
        .take(32)
        .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        .count();
    (length >= 3 && at - head.len() <= 4).then(|| &head[head.len() - length..])
}

fn contains_ignoring_case(name: &str, part: &str) -> bool {
    name.as_bytes()
        .windows(part.len())
        .any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}

fn is_random(token: &str) -> bool {
    token.len() >= RANDOM_LENGTH
        && token.bytes().any(|b| b.is_ascii_digit())
        && entropy(token) >= RANDOM_ENTROPY
}

/// Shannon entropy of the bytes, in bits a byte.
fn entropy(token: &str) -> f32 {
    let mut counts = [0_u32; 256];
    for byte in token.bytes() {
        counts[usize::from(byte)] += 1;
    }
    let total = token.len() as f32;
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| *count as f32 / total)
        .map(|share| -share * share.log2())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(String, String)> {
        let mut hits = Vec::new();
        find(text, &Places::of(text), &|_| true, &mut hits);
        hits.into_iter()
            .map(|hit| (hit.entity.to_string(), text[hit.start..hit.end].to_string()))
            .collect()
    }

    #[test]
    fn formats_frames_and_assignments() {
        let token = ["ghp", "_0123456789abcdefghijABCDEFGHIJ456789"].concat();
        let key = ["AKIA", "IOSFODNN7EXAMPLE"].concat();
        let text = format!(
            "a {token}, {key}; password: hunter2! and client_secret=\"9f8A7b6C5d4E3f2A1b0C\""
        );
        let found_kinds: std::collections::BTreeSet<_> = found(&text).into_iter().collect();
        let expected = [
            ("ACCESS_TOKEN", "9f8A7b6C5d4E3f2A1b0C"),
            ("ACCESS_TOKEN", token.as_str()),
            ("API_KEY", key.as_str()),
            ("PASSWORD", "hunter2!"),
        ];
        let expected = expected.map(|(kind, secret)| (kind.to_string(), secret.to_string()));
        assert_eq!(found_kinds, expected.into_iter().collect());
        let pem = "x -----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- y";
        assert_eq!(found(pem)[0].1, &pem[2..pem.len() - 2]);
        let cut = "-----BEGIN PRIVATE KEY-----\nMIIE";
        assert_eq!(found(cut)[0].1, cut);
    }

    #[test]
    fn prose_and_paths_are_left_alone() {
        for text in [
            "the token ring network of 1985 was slow",
            "https://example.org/a/very/long/path/with-many-parts-1",
            "password policies matter: everyone agrees",
            "skill-based-matchmaking-is-a-thing",
        ] {
            assert_eq!(found(text), [], "{text}");
        }
    }
}
