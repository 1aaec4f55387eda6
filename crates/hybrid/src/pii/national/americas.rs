//! United States, Canada, Brazil, Mexico, Argentina, Chile.

use super::super::Entity;
use super::super::checksum::{digits, luhn, weighted};
use super::super::recognizer::{Recognizer, Strictness, Validity, open, unchecked, word};
use super::{compact, exactly};

/// The group of a taxpayer number (Internal Revenue Service): 50 to 65, 70 to 88, 90 to 92, 94 to 99.
macro_rules! itin {
    ($first:literal, $second:literal) => {
        concat!(
            "9[0-9]{2}",
            $first,
            "(?:5[0-9]|6[0-5]|7[0-9]|8[0-8]|9[0-24-9])",
            $second,
            "[0-9]{4}"
        )
    };
}

pub(super) const RECOGNIZERS: &[Recognizer] = &[
    Recognizer {
        entity: Entity::new("ABA_ROUTING_NUMBER"),
        patterns: &[
            word(r"[0-36-8][0-9]{8}", 0.05),
            word(r"[0-36-8][0-9]{3}-[0-9]{4}-[0-9]", 0.3),
        ],
        check: |text, _| {
            exactly(text, 9)
                .is_some_and(|d| weighted(&d, &[3, 7, 1, 3, 7, 1, 3, 7, 1]).is_multiple_of(10))
                .into()
        },
        context: &["aba", "routing", "bank"],
    },
    Recognizer {
        entity: Entity::new("MEDICAL_LICENSE"),
        patterns: &[open(r"[A-HJ-MPRSTUX][A-Z9][0-9]{7}", 0.4)],
        check: drug_enforcement_number,
        context: &["dea", "medical", "certificate"],
    },
    Recognizer {
        entity: Entity::new("US_BANK_NUMBER"),
        patterns: &[word(r"[0-9]{8,17}", 0.05)],
        check: unchecked,
        context: &["account", "acct", "bank", "check", "debit", "savings"],
    },
    Recognizer {
        entity: Entity::new("US_DRIVER_LICENSE"),
        patterns: &[
            // The states' formats, those that differ only in length joined.
            word(
                r"[A-Z][0-9]{1,14}|[A-Z][0-9]{18}|[A-Z]{2}[0-9]{3,7}|[A-Z][0-9]{6}R|[A-Z]{2}[0-9]{6}[A-Z]|[0-9]{2}[A-Z]{3}[0-9]{5,6}|[0-9]{7,9}[A-Z]|[0-9]{8}[A-Z]{2}|[0-9]{3}[A-Z]{2}[0-9]{4}|[A-Z][0-9][A-Z][0-9][A-Z]",
                0.3,
            ),
            word(r"[0-9]{6,14}|[0-9]{16}", 0.01),
        ],
        check: unchecked,
        context: &[
            "driver", "driving", "license", "licence", "permit", "dl", "cdl",
        ],
    },
    Recognizer {
        entity: Entity::new("US_ITIN"),
        patterns: &[
            word(itin!("[- ]", ""), 0.05),
            word(itin!("", "[- ]"), 0.05),
            word(itin!("", ""), 0.3),
            word(itin!("[- ]", "[- ]"), 0.5),
        ],
        check: unchecked,
        context: &["itin", "taxpayer", "tax", "tin"],
    },
    Recognizer {
        entity: Entity::new("US_MBI"),
        // Centers for Medicare & Medicaid Services: letters without S, L, O, I, B and Z.
        patterns: &[
            word(
                r"[0-9][AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y][0-9][AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y][0-9][AC-HJKMNP-RT-Y]{2}[0-9]{2}",
                0.3,
            ),
            word(
                r"[0-9][AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y][0-9]-[AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y][0-9]-[AC-HJKMNP-RT-Y]{2}[0-9]{2}",
                0.5,
            ),
        ],
        check: unchecked,
        context: &["medicare", "medicaid", "mbi", "beneficiary", "cms"],
    },
    Recognizer {
        entity: Entity::new("US_NPI"),
        patterns: &[
            word(r"[12][0-9]{9}", 0.1),
            word(r"[12][0-9]{3}[ -][0-9]{3}[ -][0-9]{3}", 0.4),
        ],
        check: provider_identifier,
        context: &["npi", "provider", "taxonomy"],
    },
    Recognizer {
        entity: Entity::new("US_PASSPORT"),
        patterns: &[word(r"[0-9]{9}", 0.05), word(r"[A-Z][0-9]{8}", 0.1)],
        check: unchecked,
        context: &["passport", "travel", "united states", "document"],
    },
    Recognizer {
        entity: Entity::new("US_SSN"),
        patterns: &[
            word(r"[0-9]{5}-[0-9]{4}", 0.05),
            word(r"[0-9]{3}-[0-9]{6}", 0.05),
            word(r"[0-9]{9}", 0.05),
            word(r"[0-9]{3}[- .][0-9]{2}[- .][0-9]{4}", 0.5),
        ],
        check: social_security,
        context: &["ssn", "social security", "social", "ssid"],
    },
    Recognizer {
        entity: Entity::new("CA_SIN"),
        patterns: &[
            word(r"[1-79][0-9]{8}", 0.05),
            word(r"[1-79][0-9]{2}(?: [0-9]{3} |-[0-9]{3}-)[0-9]{3}", 0.5),
        ],
        check: |text, _| Validity::excluding(luhn(&digits(text))),
        context: &["sin", "social insurance", "assurance sociale", "nas"],
    },
    Recognizer {
        entity: Entity::new("BR_CPF"),
        patterns: &[
            word(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", 0.5),
            word(r"[0-9]{11}", 0.01),
        ],
        check: |text, _| exactly(text, 11).is_some_and(|d| two_mod_11(&d)).into(),
        context: &["cpf", "cadastro de pessoas"],
    },
    Recognizer {
        entity: Entity::new("BR_CNPJ"),
        patterns: &[
            word(r"[0-9]{2}\.[0-9]{3}\.[0-9]{3}/[0-9]{4}-[0-9]{2}", 0.5),
            word(r"[0-9]{14}", 0.01),
        ],
        check: legal_entity,
        context: &["cnpj"],
    },
    Recognizer {
        entity: Entity::new("MX_CURP"),
        patterns: &[word(
            r"[A-Z][AEIOUX][A-Z]{2}[0-9]{6}[HMX][A-Z]{5}[A-Z0-9][0-9]",
            0.5,
        )],
        check: population_registry,
        context: &["curp"],
    },
    Recognizer {
        entity: Entity::new("AR_CUIT"),
        patterns: &[word(r"(?:2[0347]|3[034])-[0-9]{8}-[0-9]", 0.4)],
        check: |text, _| {
            exactly(text, 11)
                .is_some_and(|d| {
                    weighted(&d, &[5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1]).is_multiple_of(11)
                })
                .into()
        },
        context: &["cuit", "cuil"],
    },
    Recognizer {
        entity: Entity::new("CL_RUT"),
        patterns: &[
            word(r"[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}-[0-9K]", 0.4),
            word(r"[0-9]{7,8}-[0-9K]", 0.2),
        ],
        check: chilean_roll,
        context: &["rut", "run"],
    },
];

/// Drug Enforcement Administration: digits 1, 3, 5 plus twice digits 2, 4, 6 end in the seventh.
fn drug_enforcement_number(text: &str, _: Strictness) -> Validity {
    let digits = digits(text.get(2..).unwrap_or_default());
    (digits.len() == 7 && weighted(&digits[..6], &[1, 2, 1, 2, 1, 2]) % 10 == digits[6]).into()
}

/// Centers for Medicare & Medicaid Services: Luhn with the prefix 80840; a body of one repeated digit was never issued.
fn provider_identifier(text: &str, _: Strictness) -> Validity {
    exactly(text, 10)
        .is_some_and(|d| {
            let prefixed: Vec<u32> = [8, 0, 8, 4, 0]
                .into_iter()
                .chain(d.iter().copied())
                .collect();
            luhn(&prefixed) && d[1..9].iter().any(|digit| *digit != d[0])
        })
        .into()
}

/// Social Security Administration: areas 000 and 666, group 00 and serial 0000 are never issued; nor are advertised samples.
fn social_security(text: &str, _: Strictness) -> Validity {
    let mut separators: Vec<char> = text.chars().filter(|c| !c.is_ascii_digit()).collect();
    separators.dedup();
    let digits = compact(text);
    let repeated = digits.bytes().all(|b| b == digits.as_bytes()[0]);
    let sample = ["000", "666", "123456789", "98765432", "078051120"]
        .iter()
        .any(|sample| digits.starts_with(sample));
    let issued = digits.len() == 9 && &digits[3..5] != "00" && &digits[5..] != "0000";
    Validity::excluding(separators.len() <= 1 && !repeated && !sample && issued)
}

/// Two check digits, each the weighted sum modulo 11 of all before it (Receita Federal, CPF).
fn two_mod_11(digits: &[u32]) -> bool {
    let check = |length: usize| {
        let sum: u32 = digits[..length]
            .iter()
            .zip((2..=length as u32 + 1).rev())
            .map(|(d, w)| d * w)
            .sum();
        sum * 10 % 11 % 10
    };
    digits.iter().any(|d| *d != digits[0]) && check(9) == digits[9] && check(10) == digits[10]
}

/// Receita Federal, CNPJ: as CPF, with weights that wrap at nine.
fn legal_entity(text: &str, _: Strictness) -> Validity {
    exactly(text, 14)
        .is_some_and(|d| {
            let check = |weights: &[u32]| match weighted(&d, weights) % 11 {
                0 | 1 => 0,
                rest => 11 - rest,
            };
            check(&[5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2]) == d[12]
                && check(&[6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2]) == d[13]
                && d.iter().any(|digit| *digit != d[0])
        })
        .into()
}

/// Registro Nacional de Población: base 37 with Ñ between N and O, weights 18 to 2, modulo 10.
fn population_registry(text: &str, _: Strictness) -> Validity {
    let text = compact(text);
    let value = |c: char| match c {
        '0'..='9' => c as u32 - '0' as u32,
        'A'..='N' => c as u32 - 'A' as u32 + 10,
        _ => c as u32 - 'O' as u32 + 25,
    };
    let sum: u32 = text
        .chars()
        .take(17)
        .zip((2..=18).rev())
        .map(|(c, w)| value(c) * w)
        .sum();
    Validity::confirming(
        text.chars().last().and_then(|c| c.to_digit(10)) == Some((10 - sum % 10) % 10),
    )
}

/// Servicio de Registro Civil: weights 2 to 7 from the right, modulo 11, K for ten.
fn chilean_roll(text: &str, _: Strictness) -> Validity {
    let text = compact(text);
    let (body, check) = text.split_at(text.len() - 1);
    let sum: u32 = digits(body)
        .iter()
        .rev()
        .zip((2..=7).cycle())
        .map(|(d, w)| d * w)
        .sum();
    let expected = match 11 - sum % 11 {
        11 => '0',
        10 => 'K',
        rest => char::from_digit(rest, 10).unwrap_or('0'),
    };
    check.starts_with(expected).into()
}
