//! Identifiers of further countries that Presidio has no recogniser for.

use super::super::Entity;
use super::super::checksum::{digits, icao, is_date, luhn, weighted};
use super::super::recognizer::{Recognizer, Strictness, Validity, unchecked, word};
use super::{compact, exactly, number};

pub(super) const RECOGNIZERS: &[Recognizer] = &[
    Recognizer {
        entity: Entity::new("AT_SVNR"),
        patterns: &[word(r"[1-9][0-9]{3} ?[0-3][0-9][01][0-9]{3}", 0.05)],
        // Dachverband der Sozialversicherungsträger: weights around the fourth digit, modulo 11.
        check: |text, _| {
            Validity::excluding(exactly(text, 10).is_some_and(|d| {
                let others: Vec<u32> = d[..3].iter().chain(&d[4..]).copied().collect();
                weighted(&others, &[3, 7, 9, 5, 8, 4, 2, 1, 6]) % 11 == d[3] && is_birth(&d[4..8])
            }))
        },
        context: &["svnr", "sozialversicherungsnummer", "versicherungsnummer"],
    },
    Recognizer {
        entity: Entity::new("BE_NRN"),
        patterns: &[
            word(r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}", 0.5),
            word(r"[0-9]{11}", 0.01),
        ],
        // Rijksregister: 97 minus the remainder; those born from 2000 on put a 2 before.
        check: |text, _| {
            exactly(text, 11)
                .is_some_and(|d| {
                    let (body, check) = (number(&d[..9]), number(&d[9..]));
                    d[2] * 10 + d[3] <= 12
                        && [body, body + 2_000_000_000]
                            .iter()
                            .any(|n| 97 - n % 97 == check)
                })
                .into()
        },
        context: &["rijksregister", "registre national", "insz", "niss"],
    },
    Recognizer {
        entity: Entity::new("BG_EGN"),
        patterns: &[word(r"[0-9]{10}", 0.01)],
        check: |text, _| {
            Validity::excluding(exactly(text, 10).is_some_and(|d| {
                let month = (d[2] * 10 + d[3]) % 20;
                (1..=12).contains(&month)
                    && weighted(&d, &[2, 4, 8, 5, 10, 9, 7, 3, 6]) % 11 % 10 == d[9]
            }))
        },
        context: &["егн", "egn"],
    },
    Recognizer {
        entity: Entity::new("CH_AHV"),
        patterns: &[word(r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}", 0.5)],
        // Zentrale Ausgleichsstelle: an EAN-13.
        check: |text, _| {
            exactly(text, 13)
                .is_some_and(|d| {
                    weighted(&d, &[1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1]).is_multiple_of(10)
                })
                .into()
        },
        context: &["ahv", "avs", "sozialversicherung"],
    },
    Recognizer {
        entity: Entity::new("CN_RESIDENT_ID"),
        patterns: &[word(
            r"[1-8][0-9]{5}(?:19|20)[0-9]{2}[01][0-9][0-3][0-9]{4}[0-9X]",
            0.5,
        )],
        check: chinese_resident,
        context: &["身份证", "公民身份号码", "resident id"],
    },
    Recognizer {
        entity: Entity::new("CZ_RC"),
        patterns: &[word(r"[0-9]{2}[0-35-8][0-9][0-3][0-9]/[0-9]{3,4}", 0.5)],
        check: |text, _| {
            let digits = digits(text);
            Validity::excluding(
                digits.len() == 9 || number(&digits).is_multiple_of(11) || digits[9] == 0,
            )
        },
        context: &["rodné číslo", "rodne cislo", "r.č."],
    },
    Recognizer {
        entity: Entity::new("DK_CPR"),
        patterns: &[word(r"[0-3][0-9][01][0-9]{3}-[0-9]{4}", 0.4)],
        check: |text, _| Validity::excluding(is_birth(&digits(text)[..4])),
        context: &["cpr", "personnummer"],
    },
    Recognizer {
        entity: Entity::new("FR_NIR"),
        patterns: &[word(
            r"[1-478] ?[0-9]{2} ?(?:[0-9]{2}) ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}",
            0.3,
        )],
        // INSEE: 97 minus the number modulo 97; Corsica's 2A and 2B count as 19 and 18.
        check: |text, _| {
            let plain = compact(text).replace("2A", "19").replace("2B", "18");
            exactly(&plain, 15)
                .is_some_and(|d| 97 - number(&d[..13]) % 97 == number(&d[13..]))
                .into()
        },
        context: &["sécurité sociale", "insee", "nir"],
    },
    Recognizer {
        entity: Entity::new("HR_OIB"),
        patterns: &[word(r"[0-9]{11}", 0.01)],
        check: |text, _| {
            Validity::excluding(
                exactly(text, 11).is_some_and(|d| super::super::checksum::iso7064_mod_11_10(&d)),
            )
        },
        context: &["oib"],
    },
    Recognizer {
        entity: Entity::new("IE_PPSN"),
        patterns: &[word(r"[0-9]{7}[A-W][A-IW]?", 0.3)],
        check: irish_service_number,
        context: &["pps", "ppsn", "personal public service"],
    },
    Recognizer {
        entity: Entity::new("IL_ID"),
        patterns: &[word(r"[0-9]{9}", 0.01)],
        check: |text, _| Validity::excluding(luhn(&digits(text))),
        context: &["תעודת זהות", "teudat", "israeli id"],
    },
    Recognizer {
        entity: Entity::new("JP_MY_NUMBER"),
        patterns: &[word(r"[0-9]{4}[- ]?[0-9]{4}[- ]?[0-9]{4}", 0.05)],
        check: |text, _| {
            Validity::excluding(exactly(text, 12).is_some_and(|d| {
                let rest = weighted(&d, &[6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2]) % 11;
                d[11] == if rest <= 1 { 0 } else { 11 - rest }
            }))
        },
        context: &["マイナンバー", "個人番号", "my number"],
    },
    Recognizer {
        entity: Entity::new("NL_BSN"),
        patterns: &[word(r"[0-9]{9}", 0.01)],
        check: |text, _| {
            Validity::excluding(exactly(text, 9).is_some_and(|d| {
                (weighted(&d[..8], &[9, 8, 7, 6, 5, 4, 3, 2]) + d[8] * 10).is_multiple_of(11)
            }))
        },
        context: &["bsn", "burgerservicenummer", "sofinummer"],
    },
    Recognizer {
        entity: Entity::new("NO_FNR"),
        patterns: &[word(r"[0-7][0-9][01][0-9]{3} ?[0-9]{5}", 0.05)],
        check: |text, _| {
            exactly(text, 11)
                .is_some_and(|d| {
                    weighted(&d, &[3, 7, 6, 1, 8, 9, 4, 5, 2, 1]).is_multiple_of(11)
                        && weighted(&d, &[5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1]).is_multiple_of(11)
                })
                .into()
        },
        context: &["fødselsnummer", "fodselsnummer", "personnummer"],
    },
    Recognizer {
        entity: Entity::new("PT_NIF"),
        patterns: &[word(r"[1-35689][0-9]{8}", 0.01)],
        check: |text, _| {
            Validity::excluding(exactly(text, 9).is_some_and(|d| {
                let rest = weighted(&d, &[9, 8, 7, 6, 5, 4, 3, 2]) % 11;
                d[8] == if rest < 2 { 0 } else { 11 - rest }
            }))
        },
        context: &["nif", "contribuinte"],
    },
    Recognizer {
        entity: Entity::new("RO_CNP"),
        patterns: &[word(r"[1-9][0-9]{2}[01][0-9][0-3][0-9]{7}", 0.3)],
        check: |text, _| {
            exactly(text, 13)
                .is_some_and(|d| {
                    let rest = weighted(&d, &[2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9]) % 11;
                    d[12] == if rest == 10 { 1 } else { rest }
                })
                .into()
        },
        context: &["cnp", "cod numeric personal"],
    },
    Recognizer {
        entity: Entity::new("PASSPORT_MRZ"),
        // The second line of a machine readable passport (ICAO 9303-4).
        patterns: &[word(
            r"[A-Z0-9<]{9}[0-9][A-Z]{3}[0-9]{7}[MFX<][0-9]{7}",
            0.5,
        )],
        check: |text, _| {
            let part = |range: std::ops::Range<usize>| {
                text.get(range)
                    .is_some_and(|part| icao(&part.replace('<', "0")))
            };
            (part(0..10) && part(13..20) && part(21..28)).into()
        },
        context: &["passport", "mrz"],
    },
    Recognizer {
        entity: Entity::new("VEHICLE_VIN"),
        patterns: &[word(
            r"[A-HJ-NPR-Z0-9]{8}[0-9X][A-HJ-NPR-Z0-9]{4}[0-9]{4}",
            0.1,
        )],
        check: vehicle_identification,
        context: &["vin", "chassis", "vehicle identification"],
    },
    Recognizer {
        entity: Entity::new("IMEI"),
        patterns: &[word(r"[0-9]{2}-?[0-9]{6}-?[0-9]{6}-?[0-9]", 0.05)],
        check: |text, _| Validity::excluding(luhn(&digits(text))),
        context: &["imei", "device id"],
    },
    Recognizer {
        entity: Entity::new("SWIFT_BIC"),
        patterns: &[word(r"[A-Z]{4}[A-Z]{2}[A-Z0-9]{2}[0-9]{3}", 0.05)],
        check: unchecked,
        context: &["bic", "swift"],
    },
];

/// True if the four digits are a day and a month.
fn is_birth(digits: &[u32]) -> bool {
    matches!(digits, [d1, d2, m1, m2, ..] if is_date(2000, m1 * 10 + m2, d1 * 10 + d2))
}

/// GB 11643: weights 2^(17−i) modulo 11 name the last character, X for ten.
fn chinese_resident(text: &str, _: Strictness) -> Validity {
    let text = compact(text);
    let values = digits(&text[..17]);
    let sum = weighted(
        &values,
        &[7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2],
    );
    let expected = "10X98765432".chars().nth((sum % 11) as usize);
    (text.chars().last() == expected).into()
}

/// Department of Social Protection: weights 8 to 2 and nine times the second letter, modulo 23.
fn irish_service_number(text: &str, _: Strictness) -> Validity {
    let text = compact(text);
    let letters = &text.as_bytes()[7..];
    let second = match letters.get(1) {
        None | Some(b'W') => 0,
        Some(letter) => u32::from(letter - b'A') + 1,
    };
    let sum = weighted(&digits(&text), &[8, 7, 6, 5, 4, 3, 2]) + second * 9;
    let expected = "WABCDEFGHIJKLMNOPQRSTUV".as_bytes()[(sum % 23) as usize];
    Validity::confirming(letters[0] == expected)
}

/// 49 CFR 565.15: letters have values, weights by place, modulo 11 with X for ten. Only North America requires it.
fn vehicle_identification(text: &str, _: Strictness) -> Validity {
    const VALUES: &[u8; 26] = b"12345678.12345.7.923456789";
    let text = compact(text);
    let values: Vec<u32> = text
        .bytes()
        .map(|b| match b {
            b'0'..=b'9' => u32::from(b - b'0'),
            b'A'..=b'Z' => u32::from(VALUES[usize::from(b - b'A')].saturating_sub(b'0')),
            _ => 0,
        })
        .collect();
    let weights = [8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2];
    let expected = match weighted(&values, &weights) % 11 {
        10 => b'X',
        rest => b'0' + rest as u8,
    };
    let letters = text.bytes().filter(u8::is_ascii_alphabetic).count();
    Validity::excluding(letters >= 3 && text.as_bytes().get(8) == Some(&expected))
}
