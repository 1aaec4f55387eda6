//! United Kingdom.

use super::super::Entity;
use super::super::checksum::weighted;
use super::super::recognizer::{Recognizer, Strictness, Validity, unchecked, word};
use super::{compact, exactly};

pub(super) const RECOGNIZERS: &[Recognizer] = &[
    Recognizer {
        entity: Entity::new("UK_NHS"),
        patterns: &[word(r"[0-9]{3}[- ]?[0-9]{3}[- ]?[0-9]{4}", 0.5)],
        check: |text, _| {
            exactly(text, 10)
                .is_some_and(|d| weighted(&d, &[10, 9, 8, 7, 6, 5, 4, 3, 2, 1]).is_multiple_of(11))
                .into()
        },
        context: &["nhs", "national health", "health authority"],
    },
    Recognizer {
        entity: Entity::new("UK_NINO"),
        // A blank before the number belongs to the printed form, so it may be part of the match.
        patterns: &[word(
            r" ?[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]",
            0.5,
        )],
        check: |text, _| Validity::excluding(is_insurance_prefix(&compact(text))),
        context: &["national insurance", "ni number", "nino"],
    },
    Recognizer {
        entity: Entity::new("UK_PASSPORT"),
        patterns: &[word(r"[A-Z]{2}[0-9]{7}", 0.1)],
        check: unchecked,
        context: &["passport", "travel document", "hmpo"],
    },
    Recognizer {
        entity: Entity::new("UK_POSTCODE"),
        // Royal Mail's formats A9 9AA, A99 9AA, A9A 9AA, AA9 9AA, AA99 9AA, AA9A 9AA with the letters each place allows.
        patterns: &[word(
            r"(?:GIR\s?0AA|(?:[A-PR-UWYZ][0-9][0-9A-HJKPSTUW]?|[A-PR-UWYZ][A-HK-Y][0-9][0-9ABEHMNPRVWXY]?)\s?[0-9][ABD-HJLNP-UW-Z]{2})",
            0.1,
        )],
        check: unchecked,
        context: &[
            "postcode",
            "post code",
            "postal code",
            "address",
            "delivery",
            "shipping",
        ],
    },
    Recognizer {
        entity: Entity::new("UK_DRIVING_LICENCE"),
        // Surname padded with 9, decade, month (plus 50 for women), day, year, initials, serial.
        patterns: &[word(
            r"[A-Z9]{5}[0-9](?:[05][1-9]|[16][0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9][A-Z9]{2}[A-Z0-9][A-Z]{2}",
            0.5,
        )],
        check: |text, _| {
            let surname = compact(text)[..5].trim_end_matches('9').to_string();
            Validity::excluding(!surname.is_empty() && !surname.contains('9'))
        },
        context: &[
            "driving licence",
            "driving license",
            "driver",
            "dvla",
            "licence",
        ],
    },
    Recognizer {
        entity: Entity::new("UK_VEHICLE_REGISTRATION"),
        patterns: &[
            word(
                r"[A-HJ-PR-Y]{2}(?:0[1-9]|[1-7][0-9])[- ]?[A-HJ-PR-Z]{3}",
                0.3,
            ),
            word(
                r"[A-HJ-NPR-TV-Y][0-9]{1,3}[- ]?[A-HJ-PR-Y][A-HJ-PR-Z]{2}",
                0.2,
            ),
            word(r"[A-HJ-PR-Z]{3}[- ]?[0-9]{1,3}[- ]?[A-HJ-NPR-TV-Y]", 0.15),
        ],
        check: vehicle_registration,
        context: &[
            "vehicle",
            "registration",
            "plate",
            "vrn",
            "dvla",
            "v5c",
            "car",
        ],
    },
];

/// HM Revenue & Customs: prefixes that are never given out.
fn is_insurance_prefix(number: &str) -> bool {
    !["BG", "GB", "NK", "KN", "NT", "TN", "ZZ"]
        .iter()
        .any(|prefix| number.starts_with(prefix))
}

/// DVLA: since 2001 two letters, then the half year: 02 to 29 from March, 51 to 79 from September.
fn vehicle_registration(text: &str, _: Strictness) -> Validity {
    let text = compact(text);
    match text.as_bytes() {
        [a, b, tens @ b'0'..=b'9', ones @ b'0'..=b'9', _, _, _]
            if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() =>
        {
            matches!((tens - b'0') * 10 + (ones - b'0'), 2..=29 | 51..=79).into()
        }
        _ => Validity::Unknown,
    }
}
