//! Foreign text in messages of our own.

use crate::path::is_invisible;
use std::fmt::Display;

/// Longest foreign text in a message, in characters.
const MOST: usize = 300;

/// What `error` says, on one line, without what would move a terminal's cursor: parsers quote what they read.
pub(crate) fn one_line(error: &dyn Display) -> String {
    let text = error.to_string();
    let mut out: String = text.chars().take(MOST).map(plain).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

fn plain(c: char) -> char {
    match c {
        '\n' | '\t' => ' ',
        c if c.is_control() || is_invisible(c) => '\u{fffd}',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_on_its_line() {
        assert_eq!(
            one_line(&"a\nb\u{1b}[2Jc\u{202e}"),
            "a b\u{fffd}[2Jc\u{fffd}"
        );
        assert_eq!(one_line(&"x".repeat(9000)).chars().count(), MOST + 1);
    }
}
