//! Finland, Italy, Poland, Spain, Sweden, Türkiye.

use super::super::Entity;
use super::super::checksum::{digits, is_date, luhn, weighted};
use super::super::recognizer::{
    Edge, Recognizer, Strictness, Validity, between, open, unchecked, word,
};
use super::{compact, exactly, number};

pub(super) const RECOGNIZERS: &[Recognizer] = &[
    Recognizer {
        entity: Entity::new("FI_PERSONAL_IDENTITY_CODE"),
        patterns: &[open(r"[0-9]{6}[-+A-FU-Y][0-9]{3}[0-9A-FHJ-NPR-Y]", 0.1)],
        check: finnish_identity,
        context: &["hetu", "henkilötunnus", "personbeteckning", "identity code"],
    },
    Recognizer {
        entity: Entity::new("IT_DRIVER_LICENSE"),
        patterns: &[word(
            r"[A-Z]{2}[0-9]{7}[A-Z]|U1[B-HJ-NPR-UWXYZ0-9]{7}[A-Z]",
            0.2,
        )],
        check: unchecked,
        context: &["patente", "licenza", "guida"],
    },
    Recognizer {
        entity: Entity::new("IT_FISCAL_CODE"),
        patterns: &[open(
            r"[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]",
            0.3,
        )],
        check: fiscal_code,
        context: &["codice fiscale", "cf"],
    },
    Recognizer {
        entity: Entity::new("IT_IDENTITY_CARD"),
        patterns: &[
            word(r"[A-Z]{2}\s?[0-9]{7}", 0.01),
            word(r"[0-9]{7}[A-Z]{2}", 0.01),
            word(r"[A-Z]{2}[0-9]{5}[A-Z]{2}", 0.01),
        ],
        check: unchecked,
        context: &["carta", "identità", "cie", "documento"],
    },
    Recognizer {
        entity: Entity::new("IT_PASSPORT"),
        patterns: &[word(r"[A-Z]{2}[0-9]{7}", 0.01)],
        check: unchecked,
        context: &["passaporto", "viaggio", "documento"],
    },
    Recognizer {
        entity: Entity::new("IT_VAT_CODE"),
        // Blanks and underscores may stand after each digit, even the last.
        patterns: &[word(r"(?:[0-9][ _]?){11}", 0.1)],
        check: |text, _| {
            exactly(text, 11)
                .is_some_and(|d| d.iter().any(|d| *d > 0) && luhn(&d))
                .into()
        },
        context: &["piva", "partita iva", "p.iva"],
    },
    Recognizer {
        entity: Entity::new("PL_PESEL"),
        patterns: &[open(
            r"[0-9]{2}(?:[02468][1-9]|[13579][0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{5}",
            0.4,
        )],
        // Ministry of Digital Affairs: weights 1 3 7 9, complement to ten.
        check: |text, _| {
            (text.bytes().all(|b| b.is_ascii_digit())
                && exactly(text, 11).is_some_and(|d| {
                    weighted(&d, &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1]).is_multiple_of(10)
                }))
            .into()
        },
        context: &["pesel"],
    },
    Recognizer {
        entity: Entity::new("ES_NIE"),
        patterns: &[word(r"[X-Z][0-9]{7,8}-?[A-Z]", 0.5)],
        check: |text, _| {
            let text = compact(text);
            let lead = u64::from(text.as_bytes()[0].wrapping_sub(b'X'));
            let body = digits(&text);
            let number = lead * 10_u64.pow(body.len() as u32) + number(&body);
            (text.len() <= 9 && text.ends_with(spanish_letter(number))).into()
        },
        context: &["nie", "extranjero"],
    },
    Recognizer {
        entity: Entity::new("ES_NIF"),
        patterns: &[word(r"[0-9]{7,8}-?[A-Z]", 0.5)],
        check: |text, _| {
            compact(text)
                .ends_with(spanish_letter(number(&digits(text))))
                .into()
        },
        context: &["dni", "nif", "documento nacional", "identificación"],
    },
    Recognizer {
        entity: Entity::new("ES_PASSPORT"),
        patterns: &[word(r"[A-Z]{3}[0-9]{6}", 0.05)],
        check: unchecked,
        context: &["pasaporte", "passport"],
    },
    Recognizer {
        entity: Entity::new("SE_ORGANISATIONSNUMMER"),
        patterns: &[
            word(r"[0-9]{6}-?[0-9]{4}", 0.6),
            open(r"[0-9]{6}-?[0-9]{4}", 0.2),
        ],
        // Bolagsverket: the third digit is at least 2, so that no birth date looks like it; Luhn.
        check: |text, _| {
            exactly(text, 10)
                .is_some_and(|d| d[2] >= 2 && luhn(&d))
                .into()
        },
        context: &["organisationsnummer", "orgnr", "org nr", "företag"],
    },
    Recognizer {
        entity: Entity::new("SE_PERSONNUMMER"),
        patterns: &[
            word(r"[0-9]{6,8}[-+]?[0-9]{4}", 0.5),
            open(r"[0-9]{6,8}[-+]?[0-9]{4}", 0.1),
        ],
        check: swedish_person,
        context: &["personnummer", "samordningsnummer", "personal identity"],
    },
    Recognizer {
        entity: Entity::new("TR_LICENSE_PLATE"),
        patterns: &[
            between(
                r"(?:0[1-9]|[1-7][0-9]|8[01])\s?[A-PR-VYZ]{1,3}\s?[0-9]{2,4}",
                0.3,
                Edge::Word,
                Edge::Word,
            ),
            between(
                r"(?:0[1-9]|[1-7][0-9]|8[01])-[A-PR-VYZ]{1,3}-[0-9]{2,4}",
                0.3,
                Edge::Word,
                Edge::Word,
            ),
        ],
        check: turkish_plate,
        context: &["plaka", "plate", "araç", "kayıt"],
    },
    Recognizer {
        entity: Entity::new("TR_NATIONAL_ID"),
        patterns: &[word(r"[1-9][0-9]{10}", 0.3)],
        check: turkish_identity,
        context: &["tc", "kimlik", "tckn", "nüfus", "national id"],
    },
];

/// Digital and Population Data Services Agency: the nine digits modulo 31 name the control character; capitals only.
fn finnish_identity(text: &str, _: Strictness) -> Validity {
    let control = "0123456789ABCDEFHJKLMNPRSTUVWXY".chars();
    let Some((head, tail)) = text.split_at_checked(10) else {
        return Validity::Invalid;
    };
    let digits = digits(head);
    let [d1, d2, m1, m2, y1, y2, _, _, _] = digits[..] else {
        return Validity::Invalid;
    };
    let year = 1900 + y1 * 10 + y2;
    let born = is_date(year, m1 * 10 + m2, d1 * 10 + d2)
        || is_date(year + 100, m1 * 10 + m2, d1 * 10 + d2);
    let expected = control.clone().nth((number(&digits) % 31) as usize);
    (born && tail.chars().next() == expected).into()
}

/// Ministry of Finance decree of 23 December 1976: odd and even places have their own values, modulo 26 names the last letter.
fn fiscal_code(text: &str, _: Strictness) -> Validity {
    const ODD: [u32; 26] = [
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
        23,
    ];
    let text = compact(text);
    let value = |byte: u8| {
        usize::from(if byte.is_ascii_digit() {
            byte - b'0'
        } else {
            byte - b'A'
        })
    };
    let bytes = text.as_bytes();
    let [body @ .., check] = bytes else {
        return Validity::Invalid;
    };
    // Letters stand for the digits of a code that two people would share.
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => u32::from(byte - b'0'),
        _ => "LMNPQRSTUV".bytes().position(|b| b == byte).unwrap_or(9) as u32,
    };
    let day = digit(bytes[9]) * 10 + digit(bytes[10]);
    if !matches!(day, 1..=31 | 41..=71) {
        return Validity::Invalid;
    }
    let sum: u32 = body
        .iter()
        .enumerate()
        .map(|(index, byte)| {
            if index % 2 == 0 {
                ODD[value(*byte)]
            } else {
                value(*byte) as u32
            }
        })
        .sum();
    Validity::confirming(u32::from(check - b'A') == sum % 26)
}

/// Ministry of the Interior: the number modulo 23 names the letter.
fn spanish_letter(number: u64) -> char {
    "TRWAGMYFPDXBNJZSQVHLCKE"
        .chars()
        .nth((number % 23) as usize)
        .unwrap_or('T')
}

/// Skatteverket: the last ten digits; coordination numbers add 60 to the day; Luhn.
fn swedish_person(text: &str, _: Strictness) -> Validity {
    let digits = digits(text);
    let Some(number) = digits.len().checked_sub(10).map(|start| &digits[start..]) else {
        return Validity::Invalid;
    };
    let month = number[2] * 10 + number[3];
    let day = number[4] * 10 + number[5];
    let day = if day >= 61 { day - 60 } else { day };
    (matches!(month, 1..=12) && matches!(day, 1..=31) && luhn(number)).into()
}

/// The first two digits are one of the 81 provinces.
fn turkish_plate(text: &str, _: Strictness) -> Validity {
    match compact(text)
        .get(..2)
        .and_then(|province| province.parse::<u32>().ok())
    {
        Some(province) => (1..=81).contains(&province).into(),
        None => Validity::Unknown,
    }
}

/// Nüfus ve Vatandaşlık İşleri: the tenth digit from the odd and even places, the eleventh from the sum of all.
fn turkish_identity(text: &str, _: Strictness) -> Validity {
    exactly(text, 11)
        .is_some_and(|d| {
            let odd: u32 = d[..9].iter().step_by(2).sum();
            let even: u32 = d[1..8].iter().step_by(2).sum();
            let all: u32 = d[..10].iter().sum();
            d[0] != 0 && (odd * 7 + 40 - even) % 10 == d[9] && all % 10 == d[10]
        })
        .into()
}
