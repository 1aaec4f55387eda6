//! India.

use super::super::Entity;
use super::super::checksum::verhoeff;
use super::super::recognizer::{Recognizer, Strictness, Validity, unchecked, word};
use super::{compact, exactly};

pub(super) const RECOGNIZERS: &[Recognizer] = &[
    Recognizer {
        entity: Entity::new("IN_AADHAAR"),
        patterns: &[
            word(r"[0-9]{12}", 0.01),
            word(r"[0-9]{4}[- :][0-9]{4}[- :][0-9]{4}", 0.01),
        ],
        // Unique Identification Authority: first digit 2 to 9, no palindrome, Verhoeff.
        check: |text, _| {
            exactly(text, 12)
                .is_some_and(|d| d[0] >= 2 && !d.iter().eq(d.iter().rev()) && verhoeff(&d))
                .into()
        },
        context: &["aadhaar", "uidai"],
    },
    Recognizer {
        entity: Entity::new("IN_GSTIN"),
        patterns: &[word(r"[0-9]{2}[A-Z0-9]{11}Z[A-Z0-9]", 0.1)],
        check: goods_and_services_tax,
        context: &["gst", "gstin", "goods and services"],
    },
    Recognizer {
        entity: Entity::new("IN_PAN"),
        patterns: &[
            // Income Tax Department: the fourth letter is the kind of holder.
            word(r"[A-Z]{3}[ABCFGHJLPT][A-Z][0-9]{4}[A-Z]", 0.5),
            word(r"[A-Z]{5}[0-9]{4}[A-Z]", 0.1),
            // What remains of one that was misread.
            word(r"[A-Z0-9_@#$%^?~-]{10}", 0.01),
        ],
        check: account_number,
        context: &["permanent account", "pan"],
    },
    Recognizer {
        entity: Entity::new("IN_PASSPORT"),
        patterns: &[word(r"[A-Z][1-9][0-9]\s?[0-9]{4}[1-9]", 0.1)],
        check: unchecked,
        context: &["passport"],
    },
    Recognizer {
        entity: Entity::new("IN_VEHICLE_REGISTRATION"),
        patterns: &[
            word(r"[A-Z]{1,2}[0-9]{4}", 0.01),
            word(r"I[0-9]{5}", 0.01),
            word(r"[A-Z]{3}[0-9]{4}", 0.2),
            word(r"[0-9]{1,3}(?:CD|CC|UN)[1-9][0-9]{1,3}", 0.4),
            word(
                r"[A-Z]{2}(?:[0-9][A-Z]{1,3}|[0-9]{2}[A-Z]{1,2})[0-9]{4}",
                0.5,
            ),
            // The Bharat series, and the armed forces.
            word(r"[2-9][1-9]BH[0-9]{4}[A-HJ-NP-Z]{2}", 0.85),
            word(r"[0-9]{2}[A-FHKPRX][0-9]{6}[A-Z]", 0.85),
        ],
        check: vehicle_registration,
        context: &["rto", "vehicle", "plate", "registration"],
    },
    Recognizer {
        entity: Entity::new("IN_VOTER"),
        patterns: &[
            word(r"[A-Z][ABCDGHJKMNPRSY][A-Z][0-9]{7}", 0.4),
            word(r"[A-Z]{3}[0-9]{7}", 0.3),
        ],
        check: unchecked,
        context: &["voter", "epic", "elector"],
    },
];

/// Goods and Services Tax Network: state 01 to 37, a PAN, the entity's number, Z, a check character.
fn goods_and_services_tax(text: &str, _: Strictness) -> Validity {
    let text = compact(text);
    let bytes = text.as_bytes();
    if bytes.len() != 15 {
        return Validity::Invalid;
    }
    let state = text[..2].parse::<u32>().unwrap_or(0);
    let pan = &bytes[2..12];
    let is_pan = pan[..5].iter().filter(|b| b.is_ascii_alphabetic()).count() >= 3
        && pan[5..9].iter().all(u8::is_ascii_digit)
        && pan[9].is_ascii_alphabetic();
    ((1..=37).contains(&state) && is_pan && bytes[13] == b'Z').into()
}

/// The last registration district of each state and territory code (Ministry of Road Transport); codes without a number are known
/// prefixes whose districts vary.
const DISTRICTS: &[(&str, u32)] = &[
    ("AN", 1),
    ("AP", 40),
    ("AR", 26),
    ("AS", 34),
    ("BR", 57),
    ("CG", 30),
    ("CH", 4),
    ("CT", 0),
    ("DD", 3),
    ("DH", 0),
    ("DL", 16),
    ("DN", 9),
    ("GA", 12),
    ("GJ", 39),
    ("HP", 99),
    ("HR", 99),
    ("JH", 24),
    ("JK", 22),
    ("KA", 71),
    ("KL", 99),
    ("LA", 2),
    ("LD", 9),
    ("MH", 58),
    ("ML", 10),
    ("MN", 7),
    ("MP", 71),
    ("MZ", 8),
    ("NL", 10),
    ("OD", 35),
    ("OR", 31),
    ("PB", 99),
    ("PY", 5),
    ("RJ", 58),
    ("SK", 8),
    ("TN", 99),
    ("TR", 8),
    ("TS", 38),
    ("UA", 0),
    ("UK", 20),
    ("UL", 0),
    ("UP", 96),
    ("UT", 0),
    ("WB", 98),
];

/// A state's plate is confirmed by its district; other shapes stay as likely as they look. Number 0000 is never given out.
fn vehicle_registration(text: &str, _: Strictness) -> Validity {
    let text = compact(text);
    let serial = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let serial = &serial[serial.trim_end_matches(|c: char| c.is_ascii_digit()).len()..];
    if serial.bytes().all(|b| b == b'0') {
        return Validity::Invalid;
    }
    let district: String = text[2..]
        .chars()
        .take(2)
        .take_while(char::is_ascii_digit)
        .collect();
    let known = DISTRICTS.iter().find(|(code, _)| *code == &text[..2]);
    match (known, district.parse::<u32>()) {
        (Some((_, last)), Ok(district)) if text.len() >= 8 => {
            Validity::confirming((1..=*last).contains(&district) && text.ends_with(serial))
        }
        _ => Validity::Unknown,
    }
}

/// Income Tax Department: ten characters with a letter and the four-digit serial.
fn account_number(text: &str, _: Strictness) -> Validity {
    let bytes = text.as_bytes();
    Validity::excluding(
        bytes.iter().any(u8::is_ascii_alphabetic)
            && bytes
                .windows(4)
                .any(|four| four.iter().all(u8::is_ascii_digit)),
    )
}
