//! Kinds of unbounded length, found from their one telling character: e-mail addresses, web addresses, IPv6 addresses.

use super::recognizer::is_word;
use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::ops::Range;
use std::sync::OnceLock;

/// The longest host name (RFC 1035, 2.3.4).
const MAX_HOST: usize = 253;
/// The longest local part looked at: RFC 5321 allows 64, real mail more.
const MAX_LOCAL: usize = 128;
/// The longest path taken into a finding; the rest of a longer one says nothing more about a person's address.
const MAX_PATH: usize = 2048;

/// The e-mail address around the `@` at `at`: RFC 5322's dot-atom, a host name and a top-level domain that exists.
pub(crate) fn email(text: &str, at: usize) -> Option<Range<usize>> {
    let local = text[..at]
        .char_indices()
        .rev()
        .take(MAX_LOCAL)
        .take_while(|(_, c)| is_local(*c))
        .last()?
        .0;
    let before = text[..local].chars().next_back();
    // An address begins where a word begins: punctuation that only stands before it is not part of it.
    let inside = before.is_some_and(is_word);
    let start = local
        + text[local..at]
            .char_indices()
            .find(|(_, c)| is_word(*c) || (inside && *c != '.'))?
            .0;
    if text[..at].ends_with('.') {
        return None;
    }
    let mut end = at + 1;
    let mut last_good = None;
    for label in text[at + 1..].split('.') {
        let length = label
            .char_indices()
            .find(|(_, c)| !is_word(*c) && *c != '-')
            .map_or(label.len(), |(index, _)| index);
        let name = label[..length].trim_end_matches('-');
        if name.is_empty() || name.starts_with('-') || end - at > MAX_HOST {
            break;
        }
        let label_end = end + name.len();
        if end > at + 1 && is_top_level(name) {
            last_good = Some(label_end);
        }
        if length < label.len() || name.len() < length {
            break;
        }
        end = label_end + 1;
    }
    last_good.map(|end| start..end)
}

fn is_local(c: char) -> bool {
    is_word(c) || "!#$%&'*+-/=?^`{|}~.".contains(c)
}

/// The web address around the dot at `dot`, and whether it names its scheme. Quotation marks on both sides belong to it.
pub(crate) fn url(text: &str, dot: usize) -> Option<(Range<usize>, bool)> {
    let bytes = text.as_bytes();
    let is_host = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let run_start = dot
        - bytes[..dot]
            .iter()
            .rev()
            .take(MAX_HOST)
            .take_while(|b| is_host(b))
            .count();
    let run_end = dot
        + bytes[dot..]
            .iter()
            .take(MAX_HOST)
            .take_while(|b| is_host(b))
            .count();
    let start = run_start
        + bytes[run_start..dot]
            .iter()
            .take_while(|b| !b.is_ascii_alphanumeric())
            .count();
    // The last label that is a top-level domain ends the host.
    let mut end = None;
    let mut label_end = run_end;
    while let Some(at) = text[start..label_end].rfind('.') {
        let label = &text[start + at + 1..label_end];
        // «www» and a brand's own top-level domain are a name cut short, not an address.
        let cut_short = text[start..start + at].eq_ignore_ascii_case("www");
        if at > 0 && !cut_short && is_top_level(label) {
            end = Some(label_end);
            break;
        }
        label_end = start + at;
    }
    let host_end = end?;
    if start >= dot || host_end <= dot {
        return None;
    }
    let mut end = host_end;
    if bytes.get(end) == Some(&b'/') {
        end += text[end..]
            .char_indices()
            .take_while(|(index, c)| {
                *index < MAX_PATH && !c.is_whitespace() && !"()<>\"'".contains(*c)
            })
            .last()
            .map_or(0, |(index, c)| index + c.len_utf8());
    }
    let scheme = ["https://", "http://"].into_iter().find(|scheme| {
        start >= scheme.len()
            && text
                .get(start - scheme.len()..start)
                .is_some_and(|before| before.eq_ignore_ascii_case(scheme))
    });
    let mut range = start - scheme.map_or(0, str::len)..end;
    let quote = |byte: Option<&u8>| matches!(byte, Some(b'"' | b'\''));
    if range.start > 0 && quote(bytes.get(range.start - 1)) && quote(bytes.get(range.end)) {
        range = range.start - 1..range.end + 1;
    }
    Some((range, scheme.is_some()))
}

/// The IPv6 address around the colon at `colon` (RFC 4291), with zone and prefix length, and whether it is the unspecified one.
pub(crate) fn ipv6(text: &str, colon: usize) -> Option<(Range<usize>, bool)> {
    const MAX: usize = 48;
    let bytes = text.as_bytes();
    let left = bytes[..colon]
        .iter()
        .rev()
        .take(MAX)
        .take_while(|b| b.is_ascii_hexdigit() || **b == b':')
        .count();
    let start = colon - left;
    let right = bytes[colon..]
        .iter()
        .take(MAX)
        .take_while(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
        .count();
    let mut end = colon + right;
    while end > colon && bytes[end - 1] == b'.' {
        end -= 1;
    }
    if left >= MAX || text[..start].chars().next_back().is_some_and(is_word) || !is_free(text, end)
    {
        return None;
    }
    let address: Ipv6Addr = text.get(start..end)?.parse().ok()?;
    let unspecified = address.is_unspecified();
    if bytes.get(end) == Some(&b'%') {
        let zone = bytes[end + 1..]
            .iter()
            .take(MAX)
            .take_while(|b| b.is_ascii_alphanumeric())
            .count();
        end += if zone > 0 { zone + 1 } else { 0 };
    }
    if bytes.get(end) == Some(&b'/') {
        let length = bytes[end + 1..]
            .iter()
            .take(3)
            .take_while(|b| b.is_ascii_digit())
            .count();
        let prefix = text[end + 1..end + 1 + length].parse::<u32>();
        if prefix.is_ok_and(|prefix| prefix <= 128) && is_free(text, end + 1 + length) {
            end += 1 + length;
        }
    }
    Some((start..end, unspecified))
}

/// True if no word, colon or further octet goes on at `end`.
fn is_free(text: &str, end: usize) -> bool {
    !text[end..]
        .chars()
        .next()
        .is_some_and(|c| is_word(c) || c == ':')
}

/// True for the top-level domains of the root zone, also in their encoded form.
fn is_top_level(label: &str) -> bool {
    static NAMES: OnceLock<HashSet<&'static str>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        include_str!("../../data/top_level_domains.txt")
            .lines()
            .collect()
    });
    label.len() >= 2 && (names.contains(label) || names.contains(label.to_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_end_where_they_should() {
        let text = "write to <a.b+c@mail.example.co.uk>, or see http://example.org/x?y. Or [::1].";
        assert_eq!(
            &text[email(text, text.find('@').unwrap()).unwrap()],
            "a.b+c@mail.example.co.uk"
        );
        let dot = text.find(".org").unwrap();
        assert_eq!(&text[url(text, dot).unwrap().0], "http://example.org/x?y.");
        assert_eq!(
            &text[ipv6(text, text.find("::").unwrap()).unwrap().0],
            "::1"
        );
    }

    #[test]
    fn look_alikes_are_refused() {
        assert_eq!(email("a@b", 1), None);
        assert_eq!(email("@b.com", 0), None);
        assert_eq!(email("x.@b.com", 2), None);
        assert_eq!(url("www.microsoft", 3), None);
        assert_eq!(url("1.5", 1), None);
        assert_eq!(ipv6("std::vec", 3), None);
        assert_eq!(ipv6("12:34:56", 2), None);
    }
}
