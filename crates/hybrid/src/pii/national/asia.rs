//! Korea, the Philippines, Singapore, Thailand.

use super::super::Entity;
use super::super::checksum::weighted;
use super::super::recognizer::{Edge, Recognizer, Strictness, Validity, between, unchecked, word};
use super::{compact, exactly};

/// A Korean registration number: birth date, then seven digits of which the first tells century, sex and nationality.
macro_rules! korean_registration {
    ($kind:literal) => {
        concat!(
            "[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])-?",
            $kind,
            "[0-9]{6}"
        )
    };
}

pub(super) const RECOGNIZERS: &[Recognizer] = &[
    Recognizer {
        entity: Entity::new("KR_BRN"),
        patterns: &[
            between(r"[0-9]{3}-[0-9]{2}-[0-9]{5}", 0.1, Edge::Digit, Edge::Digit),
            between(r"[0-9]{10}", 0.05, Edge::Digit, Edge::Digit),
        ],
        check: business_registration,
        context: &["사업자", "brn", "business registration", "business number"],
    },
    Recognizer {
        entity: Entity::new("KR_DRIVER_LICENSE"),
        patterns: &[between(
            r"[0-9]{2}[- ]?[0-9]{2}[- ]?[0-9]{6}[- ]?[0-9]{2}",
            0.05,
            Edge::Digit,
            Edge::Digit,
        )],
        // Korean National Police Agency: the issuing region.
        check: |text, _| {
            exactly(text, 12)
                .is_some_and(|d| matches!(d[0] * 10 + d[1], 11..=26 | 28))
                .into()
        },
        context: &["운전면허", "면허번호", "driver license", "driver's license"],
    },
    Recognizer {
        entity: Entity::new("KR_FRN"),
        patterns: &[between(
            korean_registration!("[5-8]"),
            0.5,
            Edge::Digit,
            Edge::Digit,
        )],
        check: |text, _| registration(text, 13),
        context: &[
            "외국인등록번호",
            "외국인번호",
            "frn",
            "foreigner registration",
        ],
    },
    Recognizer {
        entity: Entity::new("KR_PASSPORT"),
        patterns: &[
            between(
                r"[MSROD][0-9]{3}[A-Z][0-9]{4}",
                0.1,
                Edge::Ascii,
                Edge::Digit,
            ),
            between(r"[MSROD][0-9]{8}", 0.05, Edge::Ascii, Edge::Digit),
        ],
        check: unchecked,
        context: &["여권", "passport"],
    },
    Recognizer {
        entity: Entity::new("KR_RRN"),
        patterns: &[between(
            korean_registration!("[1-4]"),
            0.5,
            Edge::Digit,
            Edge::Digit,
        )],
        check: |text, _| registration(text, 11),
        context: &["주민등록번호", "rrn", "resident registration"],
    },
    Recognizer {
        entity: Entity::new("PH_TIN"),
        patterns: &[
            word(r"[0-9]{3}-[0-9]{3}-[0-9]{3}(?:-[0-9]{3})?", 0.05),
            word(r"[0-9]{9}|[0-9]{12}", 0.01),
        ],
        check: philippine_taxpayer,
        context: &["tin", "taxpayer", "bir", "tax id", "rdo"],
    },
    Recognizer {
        entity: Entity::new("SG_NRIC_FIN"),
        patterns: &[
            word(r"[A-Z][0-9]{7}[A-Z]", 0.3),
            word(r"[STFGM][0-9]{7}[A-Z]", 0.5),
        ],
        check: unchecked,
        context: &["nric", "fin"],
    },
    Recognizer {
        entity: Entity::new("SG_UEN"),
        patterns: &[word(
            r"[0-9]{8,9}[A-Z]|[TSR][0-9]{2}[A-Z]{2}[0-9]{4}[A-Z]",
            0.3,
        )],
        check: unique_entity,
        context: &["uen", "unique entity", "acra", "business registration"],
    },
    Recognizer {
        entity: Entity::new("TH_TNIN"),
        // Category, then the province and district of registration.
        patterns: &[word(
            r"[1-9](?:[134][0-9]|2[0-7]|5[0-8]|[67][0-7]|[89][0-6])[0-9]{10}",
            0.5,
        )],
        check: thai_identity,
        context: &["เลขประจำตัวประชาชน", "เลขบัตรประชาชน", "thai", "tnin"],
    },
];

/// National Tax Service: weights 1 3 7, the ninth product also adds its tens.
fn business_registration(text: &str, _: Strictness) -> Validity {
    exactly(text, 10)
        .is_some_and(|d| {
            let sum = weighted(&d, &[1, 3, 7, 1, 3, 7, 1, 3, 5]) + d[8] * 5 / 10;
            (sum + d[9]).is_multiple_of(10)
        })
        .into()
}

/// Ministry of the Interior and Safety: weights 2 to 9 and 2 to 5, subtracted from `base` modulo 11. Numbers issued since
/// October 2020 have no check digit, so a failure excludes nothing.
fn registration(text: &str, base: u32) -> Validity {
    let Some(digits) = exactly(text, 13) else {
        return Validity::Invalid;
    };
    let sum = weighted(&digits, &[2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5]);
    let region = digits[7] * 10 + digits[8];
    Validity::confirming(region <= 95 && (base - sum % 11) % 10 == digits[12])
}

/// Bureau of Internal Revenue: weights 9 to 2 modulo 11 give the ninth digit; three more digits name the branch.
fn philippine_taxpayer(text: &str, _: Strictness) -> Validity {
    let text = compact(text);
    let digits = super::super::checksum::digits(&text);
    Validity::excluding(
        matches!(digits.len(), 9 | 12)
            && digits.len() == text.len()
            && weighted(&digits[..8], &[9, 8, 7, 6, 5, 4, 3, 2]) % 11 == digits[8],
    )
}

/// Accounting and Corporate Regulatory Authority: businesses, local companies (year first) and other entities.
fn unique_entity(text: &str, _: Strictness) -> Validity {
    const ENTITY_TYPES: &str = "LP LL FC PF RF MQ MM NB CC CS MB FM GS DP CP NR CM CD MD HS VH CH MH CL XL CX HC RP TU TC FB FN PA PB SS MC SM GA GB";
    const LETTERS: &str = "ABCDEFGHJKLMNPQRSTUVWX0123456789";
    let text = compact(text);
    let digits = super::super::checksum::digits(&text);
    let expected = match (text.len(), digits.len()) {
        (9, 8) => nth("XMKECAWLJDB", weighted(&digits, &[10, 4, 9, 3, 8, 2, 7, 1])),
        (10, 9) if digits[0] <= 2 => nth(
            "ZKCMDNERGWH",
            weighted(&digits, &[10, 8, 6, 4, 9, 7, 5, 3, 1]),
        ),
        (10, 6) if ENTITY_TYPES.split(' ').any(|kind| kind == &text[3..5]) => {
            let values: Option<Vec<u32>> = text[..9]
                .chars()
                .map(|c| LETTERS.find(c).map(|index| index as u32))
                .collect();
            values.and_then(|values| {
                let sum = weighted(&values, &[4, 3, 5, 3, 10, 2, 2, 5, 7]);
                nth(LETTERS, (sum + 11 - 5) % 11)
            })
        }
        _ => None,
    };
    (expected.is_some() && text.chars().last() == expected).into()
}

/// The letter of `alphabet` that the remainder modulo 11 names.
fn nth(alphabet: &str, sum: u32) -> Option<char> {
    alphabet.chars().nth((sum % 11) as usize)
}

/// Department of Provincial Administration: weights 13 to 2, complement to eleven.
fn thai_identity(text: &str, _: Strictness) -> Validity {
    exactly(text, 13)
        .is_some_and(|d| {
            (11 - weighted(&d, &[13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11) % 10 == d[12]
        })
        .into()
}
