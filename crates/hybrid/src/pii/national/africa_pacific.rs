//! Australia, New Zealand, Nigeria, South Africa.

use super::super::Entity;
use super::super::checksum::{digits, is_date, luhn, verhoeff, weighted};
use super::super::recognizer::{Recognizer, Strictness, Validity, unchecked, word};
use super::exactly;

pub(super) const RECOGNIZERS: &[Recognizer] = &[
    Recognizer {
        entity: Entity::new("AU_ABN"),
        patterns: &[
            word(r"[0-9]{2}\s[0-9]{3}\s[0-9]{3}\s[0-9]{3}", 0.1),
            word(r"[0-9]{11}", 0.01),
        ],
        check: business_number,
        context: &["abn", "australian business number"],
    },
    Recognizer {
        entity: Entity::new("AU_ACN"),
        patterns: &[
            word(r"[0-9]{3}\s[0-9]{3}\s[0-9]{3}", 0.1),
            word(r"[0-9]{9}", 0.01),
        ],
        check: company_number,
        context: &["acn", "australian company number"],
    },
    Recognizer {
        entity: Entity::new("AU_MEDICARE"),
        patterns: &[
            word(r"[2-6][0-9]{3}\s[0-9]{5}\s[0-9]", 0.1),
            word(r"[2-6][0-9]{9}", 0.01),
        ],
        check: medicare,
        context: &["medicare"],
    },
    Recognizer {
        entity: Entity::new("AU_TFN"),
        patterns: &[
            word(r"[0-9]{3}\s[0-9]{3}\s[0-9]{3}", 0.1),
            word(r"[0-9]{9}", 0.01),
        ],
        check: tax_file_number,
        context: &["tfn", "tax file number"],
    },
    Recognizer {
        entity: Entity::new("NZ_IRD"),
        patterns: &[word(r"[0-9]{2,3}[- ]?[0-9]{3}[- ]?[0-9]{3}", 0.01)],
        check: inland_revenue,
        context: &["ird", "inland revenue"],
    },
    Recognizer {
        entity: Entity::new("NG_NIN"),
        patterns: &[word(r"[0-9]{11}", 0.01)],
        check: |text, _| exactly(text, 11).is_some_and(|d| verhoeff(&d)).into(),
        context: &[
            "nin",
            "nimc",
            "national identification",
            "national identity",
            "nigeria",
        ],
    },
    Recognizer {
        entity: Entity::new("NG_VEHICLE_REGISTRATION"),
        patterns: &[word(r"[A-Z]{3}[- ]?[0-9]{3}[A-Z]{2}", 0.5)],
        check: unchecked,
        context: &["plate", "vehicle", "registration"],
    },
    Recognizer {
        entity: Entity::new("ZA_ID_NUMBER"),
        patterns: &[word(r"[0-9]{10}[0-2][89][0-9]", 0.2)],
        check: south_african_identity,
        context: &["id", "identity", "south african", "rsa"],
    },
];

/// Australian Business Register: one is taken from the first digit, then a weighted sum modulo 89.
fn business_number(text: &str, _: Strictness) -> Validity {
    let Some(mut digits) = exactly(text, 11) else {
        return Validity::Invalid;
    };
    // The lead digit of an issued number is never 0; taking one from 0 gives −10, which is 79 modulo 89.
    let lead = if digits[0] == 0 {
        79
    } else {
        (digits[0] - 1) * 10
    };
    digits[0] = 0;
    let sum = lead + weighted(&digits, &[10, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19]);
    sum.is_multiple_of(89).into()
}

/// Australian Securities and Investments Commission: weights 8 to 1, complement to ten.
fn company_number(text: &str, _: Strictness) -> Validity {
    exactly(text, 9)
        .is_some_and(|d| (weighted(&d, &[8, 7, 6, 5, 4, 3, 2, 1]) + d[8]).is_multiple_of(10))
        .into()
}

/// Services Australia: the ninth digit checks the first eight.
fn medicare(text: &str, _: Strictness) -> Validity {
    exactly(text, 10)
        .is_some_and(|d| weighted(&d, &[1, 3, 7, 9, 1, 3, 7, 9]) % 10 == d[8])
        .into()
}

/// Australian Taxation Office: weighted sum modulo 11.
fn tax_file_number(text: &str, _: Strictness) -> Validity {
    exactly(text, 9)
        .is_some_and(|d| weighted(&d, &[1, 4, 3, 7, 5, 8, 6, 9, 10]).is_multiple_of(11))
        .into()
}

/// Inland Revenue, *Resident withholding tax specification*: modulus 11 with a second set of weights when the first gives 10.
fn inland_revenue(text: &str, _: Strictness) -> Validity {
    let mut digits = digits(text);
    if digits.len() == 8 {
        digits.insert(0, 0);
    }
    if digits.len() != 9 || !(10_000_000..=150_000_000).contains(&super::number(&digits)) {
        return Validity::Invalid;
    }
    let check = |weights: &[u32]| (11 - weighted(&digits[..8], weights) % 11) % 11;
    let mut expected = check(&[3, 2, 7, 6, 5, 4, 3, 2]);
    if expected == 10 {
        expected = check(&[7, 4, 3, 2, 5, 2, 7, 6]);
    }
    // One check digit over any nine digits says too little on its own: it only excludes.
    Validity::excluding(expected == digits[8])
}

/// Department of Home Affairs: birth date, citizenship 0 to 2, a digit that is 8 or 9, Luhn.
fn south_african_identity(text: &str, _: Strictness) -> Validity {
    exactly(text, 13)
        .is_some_and(|d| {
            let (year, month, day) = (d[0] * 10 + d[1], d[2] * 10 + d[3], d[4] * 10 + d[5]);
            let born = is_date(1900 + year, month, day) || is_date(2000 + year, month, day);
            born && d[10] <= 2 && d[11] >= 8 && luhn(&d)
        })
        .into()
}
