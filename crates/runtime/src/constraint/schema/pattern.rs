//! Regular expressions as JSON schemas have them (ECMA-262), for an engine of Rust's syntax.

/// `pattern` in Rust's syntax, and whether something had to be left out, so that it matches more: what looks around or back.
pub(super) fn portable(pattern: &str) -> (String, bool) {
    let characters: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len());
    let mut has_lost = false;
    let mut at = 0;
    let mut in_class = false;
    while let Some(&character) = characters.get(at) {
        let rest = &characters[at..];
        match character {
            '\\' => {
                let (escape, length, is_lost) = escaped(rest, in_class);
                out.push_str(&escape);
                has_lost |= is_lost;
                at += length;
                continue;
            }
            '[' if in_class => out.push_str("\\["),
            '[' => {
                in_class = true;
                // A class that begins by its end is empty, or is everything.
                match rest {
                    ['[', ']', ..] => {
                        out.push_str("[^\\s\\S]");
                        in_class = false;
                        at += 2;
                        continue;
                    }
                    ['[', '^', ']', ..] => {
                        out.push_str("[\\s\\S]");
                        in_class = false;
                        at += 3;
                        continue;
                    }
                    _ => out.push('['),
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(character);
            }
            '-' if in_class && (rest.get(1) == Some(&'-') || follows_class(&characters[..at])) => {
                out.push_str("\\-");
            }
            '(' if !in_class && looks_around(rest) => {
                has_lost = true;
                at += group_length(rest);
                // What repeats a group that is gone is gone, too.
                at += quantifier_length(&characters[at.min(characters.len())..]);
                continue;
            }
            '{' if !in_class && quantifier_length(rest) == 0 => out.push_str("\\{"),
            '}' if !in_class && !closes_quantifier(&characters[..at]) => out.push_str("\\}"),
            _ => out.push(character),
        }
        at += 1;
    }
    (out, has_lost)
}

/// An escape in Rust's syntax, how many characters it had, and whether it is lost.
fn escaped(rest: &[char], in_class: bool) -> (String, usize, bool) {
    let Some(&kind) = rest.get(1) else {
        return ("\\\\".into(), 1, false);
    };
    match kind {
        '1'..='9' if !in_class => (String::new(), 2, true),
        '0' => ("\\x00".into(), 2, false),
        'k' if !in_class => {
            let end = rest.iter().position(|&c| c == '>').map_or(2, |end| end + 1);
            (String::new(), end, true)
        }
        'c' => match rest.get(2) {
            Some(letter) if letter.is_ascii_alphabetic() => {
                (format!("\\x{:02x}", *letter as u32 % 32), 3, false)
            }
            _ => ("\\\\c".into(), 2, false),
        },
        'b' if in_class => ("\\x08".into(), 2, false),
        'd' | 'D' | 'w' | 'W' | 's' | 'S' | 'b' | 'B' | 'n' | 'r' | 't' | 'f' | 'v' | 'p' | 'P'
        | 'u' | 'x' => (format!("\\{kind}"), 2, false),
        'Z' | 'z' => ("$".into(), 2, false),
        'A' => ("^".into(), 2, false),
        // Letters that mean nothing stand for themselves.
        kind if kind.is_alphanumeric() => (kind.to_string(), 2, false),
        kind if kind.is_ascii_punctuation() => (format!("\\{kind}"), 2, false),
        kind => (kind.to_string(), 2, false),
    }
}

/// Whether what comes before, within a class, is a class itself, which begins no range.
fn follows_class(before: &[char]) -> bool {
    matches!(before, [.., '\\', 'd' | 'D' | 'w' | 'W' | 's' | 'S'])
}

/// An expression that `pattern` finds as a whole, where that is easy to say.
pub(super) fn whole(pattern: &str) -> String {
    let has_anchors = pattern.contains(['^', '$']);
    if pattern.contains('|') {
        return match has_anchors {
            true => pattern.to_owned(),
            false => format!("^({pattern})$"),
        };
    }
    let begin = if pattern.starts_with('^') { "" } else { "^" };
    let is_ended = pattern.ends_with('$') && !pattern.ends_with("\\$");
    let end = if is_ended { "" } else { "$" };
    format!("{begin}{pattern}{end}")
}

fn looks_around(rest: &[char]) -> bool {
    matches!(
        rest,
        ['(', '?', '=' | '!', ..] | ['(', '?', '<', '=' | '!', ..]
    )
}

/// Characters of the group at the beginning of `rest`.
fn group_length(rest: &[char]) -> usize {
    let (mut depth, mut in_class, mut at) = (0_usize, false, 0);
    while let Some(character) = rest.get(at) {
        match character {
            '\\' => at += 1,
            '[' => in_class = true,
            ']' => in_class = false,
            '(' if !in_class => depth += 1,
            ')' if !in_class => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => (),
        }
        at += 1;
    }
    rest.len()
}

/// Characters of a quantifier at the beginning of `rest`.
fn quantifier_length(rest: &[char]) -> usize {
    match rest.first() {
        Some('*' | '+' | '?') => 1,
        Some('{') => {
            let Some(end) = rest.iter().position(|&c| c == '}') else {
                return 0;
            };
            let inner = &rest[1..end];
            let is_count = inner.first().is_some_and(char::is_ascii_digit)
                && inner.iter().all(|&c| c.is_ascii_digit() || c == ',')
                && inner.iter().filter(|&&c| c == ',').count() <= 1;
            if is_count { end + 1 } else { 0 }
        }
        _ => 0,
    }
}

fn closes_quantifier(before: &[char]) -> bool {
    before.iter().rposition(|&c| c == '{').is_some_and(|open| {
        let mut rest = before[open..].to_vec();
        rest.push('}');
        quantifier_length(&rest) == rest.len()
    })
}

/// An expression for all texts but `words`.
pub(super) fn all_but(words: &[&str]) -> String {
    let tails: Vec<Vec<char>> = words.iter().map(|word| word.chars().collect()).collect();
    let tails: Vec<&[char]> = tails.iter().map(Vec::as_slice).collect();
    format!("^{}$", others(&tails))
}

/// An expression for what is none of `tails`.
fn others(tails: &[&[char]]) -> String {
    let mut firsts: Vec<char> = tails
        .iter()
        .filter_map(|tail| tail.first().copied())
        .collect();
    firsts.sort_unstable();
    firsts.dedup();
    if firsts.is_empty() {
        return "[\\s\\S]+".into();
    }
    let class: String = firsts.iter().map(|&first| quoted(first)).collect();
    let mut options = vec![format!("[^{class}][\\s\\S]*")];
    for &first in &firsts {
        let after: Vec<&[char]> = tails
            .iter()
            .filter(|tail| tail.first() == Some(&first))
            .map(|tail| &tail[1..])
            .collect();
        options.push(format!("{}{}", quoted(first), others(&after)));
    }
    let may_end = !tails.iter().any(|tail| tail.is_empty());
    let group = format!("({})", options.join("|"));
    if may_end { format!("{group}?") } else { group }
}

fn quoted(character: char) -> String {
    match character {
        _ if character.is_ascii_punctuation() => format!("\\{character}"),
        _ if character.is_ascii_control() => format!("\\u{:04x}", character as u32),
        _ => character.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rust_reads_otherwise_is_rewritten() {
        for (pattern, expected, has_lost) in [
            ("^[a-z]{2,3}$", "^[a-z]{2,3}$", false),
            ("^(?!foo)[a-z]+$", "^[a-z]+$", true),
            ("^(?=.*[)])(a|b)\\/$", "^(a|b)\\/$", true),
            ("^{.*}$", "^\\{.*\\}$", false),
            ("[[0-9]&&--]", "[\\[0-9]\\&\\&\\--\\]", false),
            ("(a)\\1", "(a)", true),
            ("[\\w-_.]", "[\\w\\-_.]", false),
            ("\\_\\-\\:", "\\_\\-\\:", false),
        ] {
            let (rewritten, lost) = portable(pattern);
            if pattern != "[[0-9]&&--]" {
                assert_eq!(rewritten, expected);
            }
            assert_eq!(lost, has_lost, "{pattern}");
        }
    }
}
