//! Other spellings of a text: what a reader, a parser or a decoder at the other end would see. Each spelling keeps the way back
//! to the bytes that it was made from.

use std::ops::Range;

/// Text made from another text, and where each piece came from.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) text: String,
    pieces: Vec<Piece>,
}

/// Bytes of a view and the bytes of the source that they stand for. Pieces of equal length map byte by byte.
#[derive(Debug, Clone, Copy)]
struct Piece {
    view: usize,
    view_len: usize,
    source: usize,
    source_len: usize,
}

impl View {
    /// The source of `range`, both ends widened to whole pieces where lengths differ.
    pub(crate) fn source(&self, range: Range<usize>) -> Range<usize> {
        let piece = |at: usize| {
            let index = self.pieces.partition_point(|piece| piece.view <= at);
            self.pieces[index.saturating_sub(1)]
        };
        if self.pieces.is_empty() || range.is_empty() {
            return range;
        }
        let (first, last) = (piece(range.start), piece(range.end - 1));
        let start = match first.view_len == first.source_len {
            true => first.source + (range.start - first.view),
            false => first.source,
        };
        let end = match last.view_len == last.source_len {
            true => last.source + (range.end - last.view),
            false => last.source + last.source_len,
        };
        start..end
    }

    fn copy(&mut self, source: usize, text: &str) {
        if text.is_empty() {
            return;
        }
        self.pieces.push(Piece {
            view: self.text.len(),
            view_len: text.len(),
            source,
            source_len: text.len(),
        });
        self.text.push_str(text);
    }

    fn replace(&mut self, source: Range<usize>, text: &str) {
        self.pieces.push(Piece {
            view: self.text.len(),
            view_len: text.len(),
            source: source.start,
            source_len: source.len(),
        });
        self.text.push_str(text);
    }
}

/// `text` with full-width forms, digits of other scripts, odd blanks and hyphens folded to ASCII and invisible characters left out;
/// `None` if nothing changes.
pub(crate) fn folded(text: &str) -> Option<View> {
    if text.is_ascii() {
        return None;
    }
    let mut view = View::default();
    let mut copied = 0;
    let mut next = 0;
    while let Some(at) = not_ascii(text, next) {
        let Some(c) = text[at..].chars().next() else {
            break;
        };
        next = at + c.len_utf8();
        let Some(folded) = fold(c) else { continue };
        view.copy(copied, &text[copied..at]);
        copied = at + c.len_utf8();
        match folded {
            Fold::To(ascii) => view.replace(at..copied, ascii.encode_utf8(&mut [0; 4])),
            Fold::Away => {}
        }
    }
    if copied == 0 {
        return None;
    }
    view.copy(copied, &text[copied..]);
    Some(view)
}

/// The first byte from `from` on that is not ASCII, eight bytes at a time.
fn not_ascii(text: &str, from: usize) -> Option<usize> {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let bytes = text.as_bytes();
    let mut at = from;
    while let Some(eight) = bytes.get(at..at + 8) {
        let eight: [u8; 8] = eight.try_into().ok()?;
        let high = u64::from_le_bytes(eight) & HIGH;
        if high != 0 {
            return Some(at + high.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    (at..bytes.len()).find(|at| bytes[*at] >= 0x80)
}

enum Fold {
    To(char),
    Away,
}

fn fold(c: char) -> Option<Fold> {
    let code = u32::from(c);
    let folded = match code {
        0xff01..=0xff5e => char::from_u32(code - 0xfee0)?,
        0xa0 | 0x1680 | 0x2000..=0x200a | 0x202f | 0x205f | 0x3000 => ' ',
        0x2028 | 0x2029 | 0x85 => '\n',
        0x2010..=0x2015 | 0x2212 | 0xfe58 | 0xfe63 => '-',
        0xfe6b => '@',
        0xfe52 | 0x2024 | 0x3002 | 0xff61 => '.',
        // Marks that nobody sees: soft hyphen, joiners, direction marks, variation selectors, tags, fillers.
        0xad
        | 0x34f
        | 0x61c
        | 0x115f
        | 0x1160
        | 0x17b4
        | 0x17b5
        | 0x180b..=0x180f
        | 0x200b..=0x200f
        | 0x202a..=0x202e
        | 0x2060..=0x206f
        | 0x3164
        | 0xfe00..=0xfe0f
        | 0xfeff
        | 0xffa0
        | 0xe0000..=0xe0fff => return Some(Fold::Away),
        _ => char::from_digit(decimal(code)?, 10)?,
    };
    Some(Fold::To(folded))
}

/// The value of a decimal digit of another script (Unicode's general category Nd; each script's ten lie together).
fn decimal(code: u32) -> Option<u32> {
    const ZEROS: &[u32] = &[
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6,
        0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90,
        0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0,
        0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1fbf0,
    ];
    let zero = ZEROS[..ZEROS.partition_point(|zero| *zero <= code)].last()?;
    (code - zero < 10).then_some(code - zero)
}

/// `text` with JSON, percent, HTML and quoted-printable escapes read, which begin at some of `places`; `None` if there are none.
pub(crate) fn unescaped(text: &str, places: &[usize]) -> Option<View> {
    let mut view = View::default();
    let mut copied = 0;
    for &at in places {
        if at < copied {
            continue;
        }
        if let Some((length, decoded)) = escape(text, at) {
            view.copy(copied, &text[copied..at]);
            view.replace(at..at + length, &decoded);
            copied = at + length;
        }
    }
    if copied == 0 {
        return None;
    }
    view.copy(copied, &text[copied..]);
    Some(view)
}

/// The length and meaning of the escape at `at`.
fn escape(text: &str, at: usize) -> Option<(usize, String)> {
    let rest = &text[at..];
    match rest.as_bytes() {
        [b'\\', b'u', ..] => json_escape(rest),
        [b'\\', b'x', ..] => {
            let code = u8::from_str_radix(rest.get(2..4)?, 16).ok()?;
            Some((4, char::from(code).to_string()))
        }
        [b'\\', c @ (b'"' | b'\\' | b'/'), ..] => Some((2, char::from(*c).to_string())),
        [b'\\', b'n' | b'r', ..] => Some((2, "\n".into())),
        [b'\\', b't' | b'b' | b'f', ..] => Some((2, " ".into())),
        [marker @ (b'%' | b'='), ..] => hexadecimal_escapes(rest, *marker),
        [b'&', ..] => html_escape(rest),
        _ => None,
    }
}

/// `\uXXXX`, also two of them for one character.
fn json_escape(rest: &str) -> Option<(usize, String)> {
    let unit = |from: usize| {
        (rest.get(from..from + 2)? == "\\u")
            .then(|| u16::from_str_radix(rest.get(from + 2..from + 6)?, 16).ok())
            .flatten()
    };
    let first = unit(0)?;
    let pair = char::decode_utf16([first].into_iter().chain(unit(6))).next()?;
    match pair {
        Ok(c) => Some((if c.len_utf16() == 2 { 12 } else { 6 }, c.to_string())),
        Err(_) => Some((6, "\u{fffd}".into())),
    }
}

/// `%XX` or `=XX`: as many of them as make one character.
fn hexadecimal_escapes(rest: &str, marker: u8) -> Option<(usize, String)> {
    let byte = |index: usize| {
        let escape = rest.as_bytes().get(index * 3..index * 3 + 3)?;
        (escape[0] == marker && escape[1].is_ascii_hexdigit() && escape[2].is_ascii_hexdigit())
            .then(|| u8::from_str_radix(rest.get(index * 3 + 1..index * 3 + 3)?, 16).ok())
            .flatten()
    };
    let first = byte(0)?;
    let count = match first {
        0..=0x7f => 1,
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    let bytes: Option<Vec<u8>> = (0..count).map(byte).collect();
    match bytes.and_then(|bytes| String::from_utf8(bytes).ok()) {
        Some(character) => Some((count * 3, character)),
        None => Some((3, "\u{fffd}".into())),
    }
}

fn html_escape(rest: &str) -> Option<(usize, String)> {
    let end = rest.bytes().take(12).position(|b| b == b';')?;
    let name = &rest[1..end];
    let c = match name.strip_prefix('#') {
        Some(number) => match number.strip_prefix(['x', 'X']) {
            Some(hexadecimal) => char::from_u32(u32::from_str_radix(hexadecimal, 16).ok()?)?,
            None => char::from_u32(number.parse().ok()?)?,
        },
        None => match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            "nbsp" => ' ',
            "commat" => '@',
            "period" => '.',
            "hyphen" | "dash" => '-',
            _ => return None,
        },
    };
    Some((end + 1, c.to_string()))
}

/// Runs of base64 or hexadecimal digits around the words of `dense` that decode to text, with what they say.
pub(crate) fn encoded_runs(text: &str, dense: &[Range<usize>]) -> Vec<(Range<usize>, String)> {
    let bytes = text.as_bytes();
    let mut runs = Vec::new();
    let mut past = 0;
    for word in dense {
        if word.start < past {
            continue;
        }
        let start = word.start
            - bytes[past..word.start]
                .iter()
                .rev()
                .take_while(|b| BASE64[usize::from(**b)])
                .count();
        // Letters of other scripts count as words too, but not as base64.
        let start = start
            + bytes[start..]
                .iter()
                .take_while(|b| !BASE64[usize::from(**b)])
                .count();
        let end = run_end(bytes, start);
        past = end.max(word.end);
        if end - start >= SHORTEST
            && could_be_text(&bytes[start..start + 4])
            && let Some(decoded) = decoded(&text[start..end])
        {
            let padded = end
                + bytes[end..]
                    .iter()
                    .take(2)
                    .take_while(|b| **b == b'=')
                    .count();
            runs.push((start..padded, decoded));
        }
    }
    runs
}

/// The shortest run that can hide something: nine digits in base64 are twelve characters, six letters are eight.
const SHORTEST: usize = 8;

const BASE64: [bool; 256] = {
    let mut set = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        set[byte] =
            (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'+' | b'/' | b'-' | b'_');
        byte += 1;
    }
    set
};

/// False if the first four characters are neither the hexadecimal nor the base64 spelling of ordinary characters; this turns
/// most words away before anything is copied.
fn could_be_text(head: &[u8]) -> bool {
    let control =
        |byte: u8| (byte < 0x20 && !matches!(byte, b'\n' | b'\r' | b'\t')) || byte == 0x7f;
    let hexadecimal = || head.iter().all(u8::is_ascii_hexdigit);
    let base64 = || {
        let bits = head.iter().fold(0_u32, |bits, byte| {
            bits << 6 | u32::from(base64_value(*byte).unwrap_or(0))
        });
        let [_, bytes @ ..] = bits.to_be_bytes();
        // A lone continuation byte cannot begin a character, and one must follow a lead byte.
        let begins = bytes[0] < 0x80 || (bytes[0] >= 0xc2 && (0x80..0xc0).contains(&bytes[1]));
        begins && !bytes.iter().any(|byte| control(*byte))
    };
    hexadecimal() || base64()
}

fn base64_value(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

/// The end of the run at `start`; a line break inside goes on where the line was long, as in mail and certificates.
fn run_end(bytes: &[u8], start: usize) -> usize {
    let mut index = start;
    let mut line = start;
    loop {
        while index < bytes.len() && BASE64[usize::from(bytes[index])] {
            index += 1;
        }
        let skip = match bytes.get(index..) {
            Some([b'\r', b'\n', next, ..]) if BASE64[usize::from(*next)] => 2,
            Some([b'\n', next, ..]) if BASE64[usize::from(*next)] => 1,
            _ => return index,
        };
        if index - line < 56 {
            return index;
        }
        index += skip;
        line = index;
    }
}

/// What a run says if it decodes to text, tried as hexadecimal first.
fn decoded(run: &str) -> Option<String> {
    let plain: Vec<u8> = run.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let hexadecimal = || {
        let pairs = plain.chunks_exact(2);
        if !pairs.remainder().is_empty() || plain.len() < 12 {
            return None;
        }
        let bytes: Option<Vec<u8>> = pairs
            .map(|pair| Some((hex(pair[0])? << 4) | hex(pair[1])?))
            .collect();
        readable(bytes?)
    };
    hexadecimal().or_else(|| readable(base64(&plain)?))
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// RFC 4648 base64 of either alphabet, without padding.
fn base64(run: &[u8]) -> Option<Vec<u8>> {
    if run.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(run.len() * 3 / 4);
    for group in run.chunks(4) {
        let mut bits = 0_u32;
        for byte in group {
            let value = base64_value(*byte)?;
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        let bytes = bits.to_be_bytes();
        let control = |byte: &u8| *byte < 0x20 && !matches!(byte, b'\n' | b'\r' | b'\t');
        // Most words that only look encoded end here, after their first letters.
        if out.len() < 3
            && bytes[1..group.len()]
                .iter()
                .any(|b| control(b) || *b == 0x7f)
        {
            return None;
        }
        out.extend_from_slice(&bytes[1..group.len()]);
    }
    Some(out)
}

/// The text that the bytes write, in UTF-8 or UTF-16, if it is one.
fn readable(bytes: Vec<u8>) -> Option<String> {
    let wide = bytes.len() >= 8 && bytes.iter().skip(1).step_by(2).all(|b| *b == 0);
    let text = if wide {
        bytes.iter().step_by(2).map(|b| char::from(*b)).collect()
    } else {
        String::from_utf8(bytes).ok()?
    };
    let readable = text.chars().all(|c| !c.is_control() || c.is_whitespace());
    readable.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(text: &str) -> super::super::places::Places {
        super::super::places::Places::of(text)
    }

    #[test]
    fn every_spelling_leads_back_to_its_bytes() {
        let text = "x ４１\u{200b}11 y";
        let view = folded(text).unwrap();
        assert_eq!(view.text, "x 4111 y");
        assert_eq!(&text[view.source(2..6)], "４１\u{200b}11");
        assert_eq!(&text[view.source(2..4)], "４１");
        let text = r#"{"m":"a\u0040b.org %34%31 &#52;&amp; \ud83d\ude00"}"#;
        let view = unescaped(text, &places(text).escapes).unwrap();
        assert_eq!(view.text, "{\"m\":\"a@b.org 41 4& 😀\"}");
        let at = view.text.find("a@b.org").unwrap();
        assert_eq!(&text[view.source(at..at + 7)], r"a\u0040b.org");
        assert!(
            folded("plain").is_none()
                && folded("schön").is_none()
                && unescaped("100 % a & b", &[4, 8]).is_none()
        );
    }

    #[test]
    fn encoded_runs_are_read_and_words_are_not() {
        let text = "see YUBiLmNvbSA0MTEx= or 612e6240632e636f6d now";
        let runs: Vec<String> = encoded_runs(text, &places(text).dense)
            .into_iter()
            .map(|(_, decoded)| decoded)
            .collect();
        assert_eq!(runs, ["a@b.com 4111", "a.b@c.com"]);
        let prose = "International responsibilities, characteristically";
        assert_eq!(encoded_runs(prose, &places(prose).dense).len(), 0);
    }
}
