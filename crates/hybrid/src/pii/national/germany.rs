//! Germany.

use super::super::Entity;
use super::super::checksum::{digits, icao, iso7064_mod_11_10, weighted, weighted_cross_sum};
use super::super::recognizer::{Edge, Recognizer, Strictness, Validity, between, unchecked, word};
use super::{compact, exactly};

/// Serial numbers of passports and identity cards (ICAO 9303 and BSI TR-03110): no vowels and no letters that look like digits.
const SERIAL: &str = "[CFGHJ-NPRTV-Z][CFGHJ-NPRTV-Z0-9]{7}[0-9]";

pub(super) const RECOGNIZERS: &[Recognizer] = &[
    Recognizer {
        entity: Entity::new("DE_BSNR"),
        patterns: &[word(r"[0-9]{9}", 0.2)],
        check: |text, _| {
            Validity::excluding(exactly(text, 9).is_some_and(|d| d.iter().any(|d| *d > 0)))
        },
        context: &[
            "bsnr",
            "betriebsstätte",
            "praxis",
            "kassenärztlich",
            "behandlungsort",
        ],
    },
    Recognizer {
        entity: Entity::new("DE_FUEHRERSCHEIN"),
        patterns: &[word(r"[A-Z]{2}[0-9]{8}[A-Z0-9]", 0.35)],
        check: unchecked,
        context: &[
            "führerschein",
            "fahrerlaubnis",
            "driving licence",
            "driving license",
        ],
    },
    Recognizer {
        entity: Entity::new("DE_HANDELSREGISTER"),
        patterns: &[word(r"HR[AB]\s*[0-9]{1,6}", 0.5)],
        check: unchecked,
        context: &[
            "handelsregister",
            "amtsgericht",
            "registergericht",
            "gmbh",
            "firma",
        ],
    },
    Recognizer {
        entity: Entity::new("DE_HEALTH_INSURANCE"),
        patterns: &[word(r"[A-Z][0-9]{9}", 0.3)],
        check: health_insurance,
        context: &[
            "krankenversicher",
            "krankenkasse",
            "kvnr",
            "gesundheitskarte",
            "egk",
            "versichertennummer",
        ],
    },
    Recognizer {
        entity: Entity::new("DE_ID_CARD"),
        patterns: &[word(SERIAL, 0.4), word(r"T[0-9]{8}", 0.5)],
        check: identity_card,
        context: &[
            "ausweis",
            "npa",
            "identity card",
            "national id",
            "seriennummer",
        ],
    },
    Recognizer {
        entity: Entity::new("DE_KFZ"),
        patterns: &[between(
            r"[A-ZÄÖÜ]{1,3}(?:\s[A-Z]{1,2}\s|-[A-Z]{1,2}[-\s])[0-9]{1,4}[EH]?",
            0.3,
            Edge::Hyphen,
            Edge::Word,
        )],
        check: unchecked,
        context: &[
            "kennzeichen",
            "nummernschild",
            "kfz",
            "fahrzeug",
            "pkw",
            "lkw",
            "auto",
        ],
    },
    Recognizer {
        entity: Entity::new("DE_LANR"),
        patterns: &[word(r"[0-9]{9}", 0.3)],
        check: physician,
        context: &["lanr", "arztnummer", "arzt", "rezept", "kbv"],
    },
    Recognizer {
        entity: Entity::new("DE_PASSPORT"),
        patterns: &[word(SERIAL, 0.4)],
        check: |text, _| (compact(text).len() == 9 && is_serial(text) && icao(text)).into(),
        context: &["pass", "reisepass", "passport", "mrz"],
    },
    Recognizer {
        entity: Entity::new("DE_PLZ"),
        patterns: &[word(r"0[1-9][0-9]{3}|[1-9][0-9]{4}", 0.05)],
        check: |text, _| Validity::excluding(!matches!(text, "01000" | "99999")),
        context: &[
            "plz",
            "postleitzahl",
            "adresse",
            "anschrift",
            "wohnort",
            "straße",
            "strasse",
        ],
    },
    Recognizer {
        entity: Entity::new("DE_SOCIAL_SECURITY"),
        patterns: &[word(r"[0-9]{8}[A-Z][0-9]{3}", 0.5)],
        check: pension_insurance,
        context: &[
            "rentenversicherung",
            "sozialversicherung",
            "versicherungsnummer",
            "rvnr",
            "svnr",
        ],
    },
    Recognizer {
        entity: Entity::new("DE_TAX_ID"),
        patterns: &[word(r"[1-9][0-9]{10}", 0.5)],
        check: tax_identification,
        context: &["steuer", "idnr", "identifikationsnummer", "bzst"],
    },
    Recognizer {
        entity: Entity::new("DE_TAX_NUMBER"),
        patterns: &[
            word(r"(?:0[1-9]|1[0-6])[0-9]{11}", 0.5),
            word(r"[0-9]{3}/[0-9]{3}/[0-9]{5}", 0.4),
            word(r"[0-9]{2,3}/[0-9]{3,4}/[0-9]{4,5}", 0.2),
        ],
        check: unchecked,
        context: &["steuernummer", "steuer", "st.-nr", "finanzamt"],
    },
    Recognizer {
        entity: Entity::new("DE_VAT_ID"),
        patterns: &[
            word(r"DE[0-9]{9}", 0.5),
            word(r"DE[\s.-]?[0-9]{3}[\s.-]?[0-9]{3}[\s.-]?[0-9]{3}", 0.4),
        ],
        check: vat,
        context: &[
            "ust",
            "umsatzsteuer",
            "mehrwertsteuer",
            "vat",
            "rechnung",
            "invoice",
        ],
    },
];

/// GKV-Spitzenverband, § 290 SGB V: the letter counts as two digits, weights 1 and 2, cross sums, modulo 10.
fn health_insurance(text: &str, _: Strictness) -> Validity {
    let text = compact(text);
    let Some(letter) = text.bytes().next().filter(u8::is_ascii_uppercase) else {
        return Validity::Invalid;
    };
    let mut effective = ordinal(letter);
    effective.extend(digits(&text[1..]));
    (text.len() == 10
        && effective.len() == 11
        && weighted_cross_sum(&effective[..10], &[1, 2, 1, 2, 1, 2, 1, 2, 1, 2]) % 10
            == effective[10])
        .into()
}

/// The new card carries ICAO's check digit; the old one, T and eight digits, none.
fn identity_card(text: &str, _: Strictness) -> Validity {
    let text = compact(text);
    match text.strip_prefix('T') {
        Some(rest) if rest.len() == 8 && rest.bytes().all(|b| b.is_ascii_digit()) => {
            Validity::Unknown
        }
        _ => (text.len() == 9 && icao(&text)).into(),
    }
}

/// True if `text` uses the letters and digits of a serial number only.
fn is_serial(text: &str) -> bool {
    !compact(text).bytes().any(|b| b"ABDEIOQSU".contains(&b))
}

/// Kassenärztliche Bundesvereinigung, *Richtlinie zur Arztnummernvergabe*: weights 4 and 9, complement to ten.
fn physician(text: &str, _: Strictness) -> Validity {
    exactly(text, 9)
        .is_some_and(|d| (weighted(&d, &[4, 9, 4, 9, 4, 9]) + d[6]).is_multiple_of(10))
        .into()
}

/// Deutsche Rentenversicherung (VKVV § 4): area, birth date (supplementary numbers add 50 to the day), letter, serial, check digit.
fn pension_insurance(text: &str, _: Strictness) -> Validity {
    let text = compact(text);
    let bytes = text.as_bytes();
    if bytes.len() != 12 || !bytes[8].is_ascii_uppercase() {
        return Validity::Invalid;
    }
    let mut effective = digits(&text[..8]);
    let (day, month) = match effective[..] {
        [_, _, a, b, c, d, ..] => (a * 10 + b, c * 10 + d),
        _ => return Validity::Invalid,
    };
    effective.extend(ordinal(bytes[8]));
    effective.extend(digits(&text[9..]));
    ((matches!(day, 1..=31 | 51..=81) && matches!(month, 1..=12) && effective.len() == 13)
        && weighted_cross_sum(&effective[..12], &[2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1]) % 10
            == effective[12])
        .into()
}

/// Bundeszentralamt für Steuern (§ 139b AO): eleven digits, no digit more than three times among the first ten, ISO 7064.
fn tax_identification(text: &str, _: Strictness) -> Validity {
    exactly(text, 11)
        .is_some_and(|d| {
            let most = (0..10)
                .map(|n| d[..10].iter().filter(|digit| **digit == n).count())
                .max();
            d[0] != 0 && most <= Some(3) && iso7064_mod_11_10(&d)
        })
        .into()
}

/// Bundeszentralamt für Steuern: ISO 7064 over nine digits. The rule is not published for every number, so a failure excludes
/// only where the caller is strict.
fn vat(text: &str, strictness: Strictness) -> Validity {
    let text = compact(text);
    let Some(number) = text.strip_prefix("DE").and_then(|rest| exactly(rest, 9)) else {
        return Validity::Invalid;
    };
    match (iso7064_mod_11_10(&number), strictness) {
        (true, _) => Validity::Valid,
        (false, Strictness::Lenient) => Validity::Unknown,
        (false, Strictness::Strict) => Validity::Invalid,
    }
}

/// A letter's place in the alphabet as two digits.
fn ordinal(letter: u8) -> Vec<u32> {
    let place = u32::from(letter - b'A') + 1;
    vec![place / 10, place % 10]
}
