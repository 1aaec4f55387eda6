//! Check digits: the arithmetic that separates a document number from any other number.
//!
//! Every function takes ASCII text and answers `false` for text of another shape; none panics.

/// The decimal digits of `text`, everything else left out.
pub(crate) fn digits(text: &str) -> Vec<u32> {
    text.bytes()
        .filter(u8::is_ascii_digit)
        .map(|byte| u32::from(byte - b'0'))
        .collect()
}

/// Luhn's formula (ISO/IEC 7812-1, annex B) over all digits, the check digit last.
pub(crate) fn luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(index, &digit)| match (index % 2, digit * 2) {
            (0, _) => digit,
            (_, doubled) => doubled - if doubled > 9 { 9 } else { 0 },
        })
        .sum();
    !digits.is_empty() && sum.is_multiple_of(10)
}

/// Sum of `digits[i] * weights[i]` over the shorter of the two.
pub(crate) fn weighted(digits: &[u32], weights: &[u32]) -> u32 {
    digits.iter().zip(weights).map(|(d, w)| d * w).sum()
}

/// As [`weighted`], with the decimal digits of each product summed (the doubled digits of Luhn, generalised).
pub(crate) fn weighted_cross_sum(digits: &[u32], weights: &[u32]) -> u32 {
    digits
        .iter()
        .zip(weights)
        .map(|(d, w)| d * w)
        .map(|product| product / 10 + product % 10)
        .sum()
}

/// Verhoeff's dihedral check (J. Verhoeff, *Error detecting decimal codes*, 1969), the check digit last.
pub(crate) fn verhoeff(digits: &[u32]) -> bool {
    let mut state = 0;
    for (index, &digit) in digits.iter().rev().enumerate() {
        state = dihedral(state, permuted(index % 8, digit));
    }
    !digits.is_empty() && state == 0
}

/// Multiplication in the dihedral group of the pentagon: rotations are 0..5, reflections 5..10.
fn dihedral(left: u32, right: u32) -> u32 {
    match (left < 5, right < 5) {
        (true, true) => (left + right) % 5,
        (true, false) => 5 + (left + right - 5) % 5,
        (false, true) => 5 + (left - 5 + 5 - right) % 5,
        (false, false) => (left - 5 + 5 - (right - 5)) % 5,
    }
}

/// Verhoeff's permutation (1 5 8 9 4 2 7 0)(3 6) applied `times` times.
fn permuted(times: usize, digit: u32) -> u32 {
    const ONCE: [u32; 10] = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4];
    (0..times).fold(digit, |digit, _| ONCE[digit as usize])
}

/// ISO 7064 MOD 11,10: German tax and VAT numbers. The check digit is last.
pub(crate) fn iso7064_mod_11_10(digits: &[u32]) -> bool {
    let Some((&check, body)) = digits.split_last() else {
        return false;
    };
    let product = body.iter().fold(10, |product, digit| {
        let sum = (digit + product) % 10;
        (if sum == 0 { 10 } else { sum }) * 2 % 11
    });
    (11 - product) % 10 == check
}

/// ISO 7064 MOD 97-10 of an IBAN without separators (ISO 13616).
pub(crate) fn iban_mod_97(iban: &str) -> bool {
    if iban.len() < 5 || !iban.is_ascii() {
        return false;
    }
    let (head, body) = iban.split_at(4);
    let mut remainder = 0_u32;
    for byte in body.bytes().chain(head.bytes()) {
        remainder = match byte.to_ascii_uppercase() {
            digit @ b'0'..=b'9' => (remainder * 10 + u32::from(digit - b'0')) % 97,
            letter @ b'A'..=b'Z' => (remainder * 100 + u32::from(letter - b'A') + 10) % 97,
            _ => return false,
        };
    }
    remainder == 1
}

/// The check digit of machine readable documents (ICAO 9303-3, 4.9): weights 7 3 1, letters count from 10, modulo 10.
pub(crate) fn icao(text: &str) -> bool {
    let mut sum = 0;
    let bytes = text.as_bytes();
    let Some((&check, body)) = bytes.split_last() else {
        return false;
    };
    for (byte, weight) in body.iter().zip([7, 3, 1].into_iter().cycle()) {
        let Some(value) = (*byte as char).to_digit(36) else {
            return false;
        };
        sum += value * weight;
    }
    check.is_ascii_digit() && sum % 10 == u32::from(check - b'0')
}

/// A legacy Bitcoin address: base 58 of a payload and the first four bytes of its double SHA-256.
pub(crate) fn base58check(text: &str) -> bool {
    const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let mut number: Vec<u8> = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        let Some(value) = ALPHABET.iter().position(|&letter| letter == byte) else {
            return false;
        };
        let mut carry = value;
        for digit in number.iter_mut().rev() {
            carry += usize::from(*digit) * 58;
            *digit = (carry & 0xff) as u8;
            carry >>= 8;
        }
        while carry > 0 {
            number.insert(0, (carry & 0xff) as u8);
            carry >>= 8;
        }
    }
    let zeros = text.bytes().take_while(|&byte| byte == b'1').count();
    let mut payload = vec![0; zeros];
    payload.append(&mut number);
    if payload.len() < 5 {
        return false;
    }
    let (body, check) = payload.split_at(payload.len() - 4);
    sha256(&sha256(body))[..4] == *check
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).to_vec()
}

/// A segwit address (BIP 173 and BIP 350): bech32 or bech32m over prefix and data.
pub(crate) fn bech32(text: &str) -> bool {
    const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    const GENERATOR: [u32; 5] = [
        0x3b6a_57b2,
        0x2650_8e6d,
        0x1ea1_19fa,
        0x3d42_33dd,
        0x2a14_62b3,
    ];
    let mixed = text.bytes().any(|b| b.is_ascii_uppercase())
        && text.bytes().any(|b| b.is_ascii_lowercase());
    let lower = text.to_ascii_lowercase();
    let Some(separator) = lower.rfind('1') else {
        return false;
    };
    if mixed || separator < 1 || separator + 7 > lower.len() || lower.len() > 90 {
        return false;
    }
    let (prefix, data) = (&lower[..separator], &lower[separator + 1..]);
    let Some(data) = data
        .bytes()
        .map(|b| ALPHABET.iter().position(|&letter| letter == b))
        .collect::<Option<Vec<_>>>()
    else {
        return false;
    };
    let values = prefix
        .bytes()
        .map(|b| usize::from(b >> 5))
        .chain([0])
        .chain(prefix.bytes().map(|b| usize::from(b & 31)))
        .chain(data);
    let remainder = values.fold(1_u32, |state, value| {
        let top = state >> 25;
        let mixed_in = ((state & 0x1ff_ffff) << 5) ^ value as u32;
        GENERATOR
            .iter()
            .enumerate()
            .filter(|(bit, _)| top >> bit & 1 == 1)
            .fold(mixed_in, |state, (_, generator)| state ^ generator)
    });
    remainder == 1 || remainder == 0x2bc8_30a3
}

/// True if `day` exists in `month` of `year` (Gregorian).
pub(crate) fn is_date(year: u32, month: u32, day: u32) -> bool {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let last = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    (1..=last).contains(&day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_accepts_its_published_example_and_no_changed_digit() {
        type Check = fn(&str) -> bool;
        let examples: [(&str, Check); 7] = [
            ("4111111111111111", |t| luhn(&digits(t))),
            ("2363", |t| verhoeff(&digits(t))),
            ("86095742719", |t| iso7064_mod_11_10(&digits(t))),
            ("GB82WEST12345698765432", iban_mod_97),
            ("L898902C36", icao),
            ("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", base58check),
            ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", bech32),
        ];
        for (text, check) in examples {
            assert!(check(text), "{text}");
            let changed = text.len() - 2;
            for replacement in "0123456789".chars() {
                let mut other = text.to_string();
                other.replace_range(changed..=changed, &replacement.to_string());
                assert!(other == text || !check(&other), "{other}");
            }
        }
    }

    #[test]
    fn odd_shapes_are_refused() {
        for text in ["", "1", "é", "AB", "bc1", "0000"] {
            assert!(!iban_mod_97(text));
            assert!(!base58check(text));
            assert!(!bech32(text));
        }
        assert!(!icao("") && !luhn(&[]) && !verhoeff(&[]) && !iso7064_mod_11_10(&[]));
        assert!(is_date(2000, 2, 29) && !is_date(1900, 2, 29) && !is_date(2001, 13, 1));
    }
}
