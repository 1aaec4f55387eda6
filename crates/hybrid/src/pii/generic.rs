//! Kinds that belong to no country and that a bounded pattern finds: cards, crypto addresses, hardware addresses, dates, IPv4.

use super::Entity;
use super::checksum::{base58check, bech32, digits, luhn};
use super::recognizer::{Edge, Recognizer, Strictness, Validity, between, open, unchecked, word};

macro_rules! day {
    () => {
        "(?:0?[1-9]|[12][0-9]|3[01])"
    };
}
macro_rules! month {
    () => {
        "(?:0?[1-9]|1[0-2])"
    };
}
macro_rules! year {
    () => {
        "(?:[0-9]{4}|[0-9]{2})"
    };
}
macro_rules! name {
    () => {
        "(?:JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)"
    };
}
macro_rules! long_name {
    () => {
        "(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
    };
}
macro_rules! octet {
    () => {
        "(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]?[0-9])"
    };
}

pub(crate) const RECOGNIZERS: &[Recognizer] = &[
    Recognizer {
        entity: Entity::new("CREDIT_CARD"),
        patterns: &[
            word(
                r"(?:4[0-9]{3}|5[0-5][0-9]{2}|[136][0-9]{3}|2[0-9]{3})[- ]?[0-9]{3,4}[- ]?[0-9]{3,4}[- ]?[0-9]{3,5}",
                0.3,
            ),
            word(r"[0-9]{12,19}", 0.05),
        ],
        check: card,
        context: &[
            "card",
            "credit",
            "debit",
            "visa",
            "mastercard",
            "amex",
            "maestro",
            "cc",
        ],
    },
    Recognizer {
        entity: Entity::new("CRYPTO"),
        patterns: &[
            open(r"(?:bc1|[13])[A-Z0-9]{25,59}", 0.5),
            word(r"0x[0-9A-F]{40}", 0.5),
        ],
        check: wallet,
        context: &["wallet", "bitcoin", "btc", "ethereum", "crypto"],
    },
    Recognizer {
        entity: Entity::new("MAC_ADDRESS"),
        patterns: &[
            word(r"(?:[0-9A-F]{2}:){5}[0-9A-F]{2}", 0.6),
            word(r"(?:[0-9A-F]{2}-){5}[0-9A-F]{2}", 0.6),
            word(r"[0-9A-F]{4}\.[0-9A-F]{4}\.[0-9A-F]{4}", 0.6),
        ],
        // Broadcast and the null address belong to nobody.
        check: |text, _| {
            let hexadecimal = || text.bytes().filter(u8::is_ascii_alphanumeric);
            let all = |byte: u8| hexadecimal().all(|b| b.to_ascii_uppercase() == byte);
            Validity::excluding(!all(b'0') && !all(b'F'))
        },
        context: &["mac", "hardware address", "physical address", "ethernet"],
    },
    Recognizer {
        entity: Entity::new("IP_ADDRESS"),
        patterns: &[word(
            concat!(
                octet!(),
                r"(?:\.",
                octet!(),
                r"){3}(?:/(?:[0-2]?[0-9]|3[0-2]))?"
            ),
            0.6,
        )],
        check: |text, _| {
            let address = text.split('/').next().unwrap_or_default();
            Validity::excluding(address.parse::<std::net::Ipv4Addr>().is_ok())
        },
        context: &["ip", "ipv4", "ipv6"],
    },
    Recognizer {
        entity: Entity::new("DATE_TIME"),
        patterns: &[
            between(
                r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,9})?)?(?:[+-][0-2][0-9]:[0-5][0-9]|Z)",
                0.8,
                Edge::Word,
                Edge::Open,
            ),
            word(
                r"[0-9]{4}-[01][0-9]-[0-3][0-9][ T][0-2][0-9]:[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,9})?)?",
                0.6,
            ),
            word(concat!(month!(), "/", day!(), "/", year!()), 0.6),
            word(concat!(day!(), "/", month!(), "/", year!()), 0.6),
            word(concat!("[0-9]{4}/", month!(), "/", day!()), 0.6),
            word(concat!(month!(), "-", day!(), "-[0-9]{4}"), 0.6),
            word(concat!(day!(), "-", month!(), "-[0-9]{4}"), 0.6),
            word(concat!("[0-9]{4}-", month!(), "-", day!()), 0.6),
            word(concat!(day!(), r"\.", month!(), r"\.", year!()), 0.6),
            word(concat!(day!(), "-", name!(), "-", year!()), 0.6),
            word(concat!(name!(), "-", year!()), 0.6),
            word(concat!(day!(), "-", name!()), 0.6),
            word(concat!(month!(), "/[0-9]{4}"), 0.2),
            word(concat!(month!(), "/[0-9]{2}"), 0.1),
            word(
                concat!(
                    day!(),
                    "(?:st|nd|rd|th)?(?: of)? ",
                    long_name!(),
                    r"(?:\.?,? [0-9]{4})?"
                ),
                0.5,
            ),
            word(
                concat!(
                    long_name!(),
                    r"\.? ",
                    day!(),
                    "(?:st|nd|rd|th)?(?:,? [0-9]{4})?"
                ),
                0.5,
            ),
            word(concat!(long_name!(), r"\.?,? (?:18|19|20)[0-9]{2}"), 0.5),
        ],
        check: unchecked,
        context: &["date", "birthday", "born", "dob"],
    },
    Recognizer {
        entity: Entity::new("US_ZIP_CODE"),
        patterns: &[between(
            r"[A-Z]{2} [0-9]{5}(?:-[0-9]{4})?",
            0.1,
            Edge::Word,
            Edge::Word,
        )],
        check: unchecked,
        context: &["zip", "zip code", "address"],
    },
];

/// ISO/IEC 7812: Luhn, and an issuer that gives out numbers of this length. Other numbers that pass Luhn stay barely likely.
fn card(text: &str, _: Strictness) -> Validity {
    let digits = digits(text);
    let length = digits.len();
    let prefix = digits
        .iter()
        .take(4)
        .fold(0, |prefix, digit| prefix * 10 + digit);
    if !luhn(&digits) || (length == 13 && digits[0] == 1) {
        return Validity::Invalid;
    }
    let issued = match prefix {
        4000..=4999 => (13..=19).contains(&length),
        2221..=2720 => length == 16,
        2131 => length == 15,
        5000..=5599 | 3000..=3999 | 1000..=1999 => {
            (13..=17).contains(&length) || is_maestro(prefix)
        }
        5600..=6999 => (12..=19).contains(&length),
        _ => false,
    };
    Validity::confirming(issued)
}

/// Maestro numbers begin with 50 or 56 to 69 and have 12 to 19 digits.
fn is_maestro(prefix: u32) -> bool {
    matches!(prefix / 100, 50 | 56..=69)
}

/// Bitcoin addresses carry checksums; Ethereum's capitals would need Keccak, so its shape alone counts.
fn wallet(text: &str, _: Strictness) -> Validity {
    match text.as_bytes() {
        [b'0', ..] => Validity::Unknown,
        [b'1' | b'3', ..] => base58check(text).into(),
        _ => bech32(text).into(),
    }
}
