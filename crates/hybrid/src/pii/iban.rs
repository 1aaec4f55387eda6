//! International bank account numbers (ISO 13616): country, length and structure from the SWIFT registry, MOD 97-10.

use super::checksum::iban_mod_97;
use super::recognizer::Validity;
use std::ops::Range;

/// Country and structure of the part after the check digits: counts of digits (n), capital letters (a) and either (c).
const STRUCTURES: &[(&str, &str)] = &[
    ("AD", "8n12c"),
    ("AE", "19n"),
    ("AL", "8n16c"),
    ("AT", "16n"),
    ("AZ", "4a20c"),
    ("BA", "16n"),
    ("BE", "12n"),
    ("BG", "4a6n8c"),
    ("BH", "4a14c"),
    ("BI", "23n"),
    ("BR", "23n1a1c"),
    ("BY", "4c4n16c"),
    ("CH", "5n12c"),
    ("CR", "18n"),
    ("CY", "8n16c"),
    ("CZ", "20n"),
    ("DE", "18n"),
    ("DJ", "23n"),
    ("DK", "14n"),
    ("DO", "4c20n"),
    ("EE", "16n"),
    ("EG", "25n"),
    ("ES", "20n"),
    ("FI", "14n"),
    ("FK", "2a12n"),
    ("FO", "14n"),
    ("FR", "10n11c2n"),
    ("GB", "4a14n"),
    ("GE", "2a16n"),
    ("GI", "4a15c"),
    ("GL", "14n"),
    ("GR", "7n16c"),
    ("GT", "24c"),
    ("HR", "17n"),
    ("HU", "24n"),
    ("IE", "4a14n"),
    ("IL", "19n"),
    ("IQ", "4a15n"),
    ("IS", "22n"),
    ("IT", "1a10n12c"),
    ("JO", "4a4n18c"),
    ("KW", "4a22c"),
    ("KZ", "3n13c"),
    ("LB", "4n20c"),
    ("LC", "4a24c"),
    ("LI", "5n12c"),
    ("LT", "16n"),
    ("LU", "3n13c"),
    ("LV", "4a13c"),
    ("LY", "21n"),
    ("MC", "10n11c2n"),
    ("MD", "20c"),
    ("ME", "18n"),
    ("MK", "3n10c2n"),
    ("MN", "16n"),
    ("MR", "23n"),
    ("MT", "4a5n18c"),
    ("MU", "4a19n3a"),
    ("NI", "4a20n"),
    ("NL", "4a10n"),
    ("NO", "11n"),
    ("OM", "3n16c"),
    ("PK", "4a16c"),
    ("PL", "24n"),
    ("PS", "4a21c"),
    ("PT", "21n"),
    ("QA", "4a21c"),
    ("RO", "4a16c"),
    ("RS", "18n"),
    ("RU", "14n15c"),
    ("SA", "2n18c"),
    ("SC", "4a20n3a"),
    ("SD", "14n"),
    ("SE", "20n"),
    ("SI", "15n"),
    ("SK", "20n"),
    ("SM", "1a10n12c"),
    ("SO", "19n"),
    ("ST", "21n"),
    ("SV", "4a20n"),
    ("TL", "19n"),
    ("TN", "20n"),
    ("TR", "5n17c"),
    ("UA", "6n19c"),
    ("VA", "18n"),
    ("VG", "4a16n"),
    ("XK", "16n"),
    ("YE", "4a4n18c"),
];

/// The account number that begins at `start`, with single blanks or hyphens allowed between its characters.
pub(crate) fn find(text: &str, start: usize) -> Option<(Range<usize>, Validity)> {
    let bytes = text.as_bytes();
    let [a, b, c, d, ..] = bytes.get(start..)? else {
        return None;
    };
    if !(a.is_ascii_alphabetic()
        && b.is_ascii_alphabetic()
        && c.is_ascii_digit()
        && d.is_ascii_digit())
    {
        return None;
    }
    let country = text.get(start..start + 2)?.to_ascii_uppercase();
    let structure = STRUCTURES.iter().find(|(code, _)| *code == country)?.1;
    let length = 4 + parts(structure).map(|(count, _)| count).sum::<usize>();
    let mut iban = String::with_capacity(length);
    let mut end = start;
    while iban.len() < length {
        match bytes.get(end)? {
            byte if byte.is_ascii_alphanumeric() => iban.push(char::from(*byte)),
            b' ' | b'-' if bytes.get(end + 1).is_some_and(u8::is_ascii_alphanumeric) => {}
            _ => return None,
        }
        end += 1;
    }
    let goes_on = bytes.get(end).is_some_and(u8::is_ascii_alphanumeric);
    if goes_on || !iban_mod_97(&iban) || !fits(&iban[4..].to_ascii_uppercase(), structure) {
        return None;
    }
    // ISO 13616 prints capitals only; small letters leave a doubt.
    let capitals = !iban.bytes().any(|b| b.is_ascii_lowercase());
    Some((start..end, Validity::confirming(capitals)))
}

/// Each count of a structure with its kind.
fn parts(structure: &str) -> impl Iterator<Item = (usize, char)> {
    structure
        .split_inclusive(['n', 'a', 'c'])
        .filter_map(|part| {
            let (count, kind) = part.split_at(part.len() - 1);
            Some((count.parse().ok()?, kind.chars().next()?))
        })
}

fn fits(body: &str, structure: &str) -> bool {
    let mut rest = body;
    parts(structure).all(|(count, kind)| {
        let (part, tail) = rest.split_at(count);
        rest = tail;
        part.bytes().all(|b| match kind {
            'n' => b.is_ascii_digit(),
            'a' => b.is_ascii_uppercase(),
            _ => b.is_ascii_alphanumeric(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_of_the_registry() {
        for text in [
            "GB33BUKB20201555555555",
            "FR76 3000 6000 0112 3456 7890 189",
            "MT31MALT01100000000000000000123",
            "SC52BAHL01031234567890123456USD",
        ] {
            assert_eq!(
                find(text, 0),
                Some((0..text.len(), Validity::Valid)),
                "{text}"
            );
        }
        assert_eq!(
            find("gb33bukb20201555555555", 0).unwrap().1,
            Validity::Unknown
        );
        assert_eq!(find("GB33BUKB20201555555556", 0), None);
        assert_eq!(find("GB33BUKB2020155555555", 0), None);
        assert_eq!(find("ZZ33BUKB20201555555555", 0), None);
    }
}
