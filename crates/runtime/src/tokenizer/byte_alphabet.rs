//! GPT-2's byte alphabet: each byte as one printable character, so that text files can hold merges.

/// The character that stands for `byte`: itself when Latin-1 prints it, else one from U+0100 on.
pub(super) fn character(byte: u8) -> char {
    let code_point = match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => u32::from(byte),
        0x00..=0x20 => 0x100 + u32::from(byte),
        0x7F..=0xA0 => 0x100 + 0x21 + u32::from(byte) - 0x7F,
        0xAD => 0x143,
    };
    char::from_u32(code_point).unwrap_or('\u{FFFD}')
}

/// The byte that `character` stands for.
pub(super) fn byte(character: char) -> Option<u8> {
    let code_point = character as u32;
    let byte = match code_point {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code_point,
        0x100..=0x120 => code_point - 0x100,
        0x121..=0x142 => code_point - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// Appends the bytes that `text` spells; text with a character outside the alphabet stands for itself.
pub(super) fn append_bytes(text: &[u8], out: &mut Vec<u8>) {
    let before = out.len();
    if let Ok(text) = std::str::from_utf8(text) {
        for c in text.chars() {
            match byte(c) {
                Some(byte) => out.push(byte),
                None => {
                    out.truncate(before);
                    out.extend_from_slice(text.as_bytes());
                    return;
                }
            }
        }
    } else {
        out.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_is_a_bijection() {
        let mut seen = std::collections::HashSet::new();
        for value in 0..=255u8 {
            let c = character(value);
            assert_eq!(byte(c), Some(value));
            assert!(seen.insert(c) && !c.is_whitespace() && !c.is_control());
        }
        assert_eq!(character(b' '), 'Ġ');
        assert_eq!(character(b'\n'), 'Ċ');
        assert_eq!(byte('世'), None);
    }
}
