//! A relative path that is safe to join to any directory, on any system.

use std::cmp::Ordering;
use std::fmt;
use std::path::{Path, PathBuf};
use unicode_normalization::UnicodeNormalization;

/// Longest path in bytes.
const PATH_BYTES: usize = 1024;
/// Longest component in bytes: the limit of most file systems.
const COMPONENT_BYTES: usize = 255;

/// A checked path: `/` between components, none of them empty, `.` or `..`; no backslash, colon, control or invisible character,
/// nor one that looks like a separator or a dot; no name that one system would read differently from another.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BundlePath(String);

/// Why a path is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("path {path:?} is refused: {reason}; rename the file")]
pub struct PathError {
    /// The path, as it was given.
    pub path: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl BundlePath {
    /// Checks `path`.
    ///
    /// # Errors
    /// [`PathError`] with the rule that is broken.
    pub fn parse(path: &str) -> Result<Self, PathError> {
        match fault(path) {
            None => Ok(BundlePath(path.to_owned())),
            Some(reason) => Err(PathError {
                path: path.chars().take(PATH_BYTES).collect(),
                reason,
            }),
        }
    }

    /// The path with `/` between its components.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its place below `root`.
    pub fn under(&self, root: &Path) -> PathBuf {
        self.components()
            .fold(root.to_owned(), |path, part| path.join(part))
    }

    /// The components, first to last.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether this path is `directory` or lies below it.
    pub fn is_within(&self, directory: &BundlePath) -> bool {
        self.0
            .strip_prefix(directory.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The key under which two paths collide on a system that ignores case, or that composes and decomposes letters.
    pub fn folded(&self) -> String {
        // Twice, since lower case may leave something to compose.
        let lower: String = self.0.nfkc().flat_map(char::to_lowercase).collect();
        lower.nfkc().flat_map(char::to_lowercase).collect()
    }
}

/// Component by component, each by code point: the order of the model-signing format.
impl Ord for BundlePath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.components().cmp(other.components())
    }
}

impl PartialOrd for BundlePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for BundlePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for BundlePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.0)
    }
}

fn fault(path: &str) -> Option<&'static str> {
    if path.len() > PATH_BYTES {
        return Some("it is longer than 1024 bytes");
    }
    if path.chars().any(is_reserved) {
        return Some(
            "it holds a backslash, a colon or another character that some system reserves",
        );
    }
    if path.chars().any(is_invisible) {
        return Some("it holds an invisible character");
    }
    if path.chars().any(is_look_alike) {
        return Some("it holds a character that looks like a dot, a slash, a backslash or a colon");
    }
    path.split('/').find_map(component_fault)
}

fn is_reserved(c: char) -> bool {
    c.is_control() || matches!(c, '\\' | ':' | '<' | '>' | '"' | '|' | '?' | '*')
}

/// Characters without a picture: format characters, fillers, selectors of variants, tags, and what belongs to no script.
pub(crate) fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{ffff}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}')
        || c.is_whitespace() && c != ' '
}

/// What a reader, or a system that normalises names, takes for one of `. / \ :`.
fn is_look_alike(c: char) -> bool {
    matches!(
        c,
        '\u{2024}'
            ..='\u{2026}'
                | '\u{2044}'
                | '\u{2215}'
                | '\u{2216}'
                | '\u{2236}'
                | '\u{29f5}'
                | '\u{29f8}'
                | '\u{29f9}'
                | '\u{3002}'
                | '\u{a789}'
                | '\u{fe13}'
                | '\u{fe30}'
                | '\u{fe52}'
                | '\u{fe55}'
                | '\u{fe68}'
                | '\u{ff0e}'
                | '\u{ff0f}'
                | '\u{ff1a}'
                | '\u{ff3c}'
                | '\u{ff61}'
    )
}

fn component_fault(component: &str) -> Option<&'static str> {
    if component.is_empty() {
        return Some("it is absolute or has an empty component");
    }
    if component == "." || component == ".." {
        return Some("it has a component \".\" or \"..\"");
    }
    if component.len() > COMPONENT_BYTES {
        return Some("a component is longer than 255 bytes");
    }
    if component.ends_with(['.', ' ']) {
        return Some("a component ends in a dot or a space, which some systems drop");
    }
    let stem = component
        .split('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let device = matches!(stem.as_str(), "con" | "prn" | "aux" | "nul")
        || (stem.len() == 4
            && (stem.starts_with("com") || stem.starts_with("lpt"))
            && stem.ends_with(|c: char| c.is_ascii_digit()));
    device.then_some("a component is the name of a device on Windows")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_are_accepted() {
        for path in [
            "a",
            "a/b.gguf",
            ".gitignore",
            "weights/größe-1.bin",
            "..a",
            "a..b",
            "console",
        ] {
            assert_eq!(BundlePath::parse(path).unwrap().as_str(), path);
        }
    }

    #[test]
    fn tricks_are_refused() {
        let long = "a".repeat(256);
        for path in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "./a",
            "a/.",
            "a\\b",
            "c:a",
            "a\0b",
            "a\nb",
            "a.",
            "a ",
            "nul",
            "NUL.txt",
            "com1",
            "a/lpt9.gguf",
            "\u{202e}a",
            "a\u{200b}",
            "a\u{a0}b",
            "a\u{ff0f}b",
            "a\u{2215}b",
            "\u{ff0e}\u{ff0e}/a",
            "\u{2025}/a",
            "c\u{ff1a}a",
            "a*",
            "a|b",
            &long,
        ] {
            assert!(BundlePath::parse(path).is_err(), "{path:?}");
        }
        assert!(BundlePath::parse(&"a/".repeat(600)).is_err());
    }

    #[test]
    fn names_that_some_system_takes_for_the_same_fold_together() {
        let folded = |path: &str| BundlePath::parse(path).unwrap().folded();
        for (a, b) in [
            ("Model.GGUF", "model.gguf"),
            ("gro\u{308}ße", "gr\u{f6}ße"),
            ("\u{ff4d}odel", "model"),
            ("\u{212a}", "k"),
        ] {
            assert_eq!(folded(a), folded(b));
        }
        assert_ne!(folded("model"), folded("m\u{43e}del"));
    }

    #[test]
    fn order_is_by_component() {
        let a = BundlePath::parse("a/z").unwrap();
        let b = BundlePath::parse("a.b").unwrap();
        assert!(a < b, "a plain byte order would put '.' before '/'");
    }

    #[test]
    fn within_is_about_whole_components() {
        let git = BundlePath::parse(".git").unwrap();
        assert!(BundlePath::parse(".git/config").unwrap().is_within(&git));
        assert!(git.is_within(&git));
        assert!(!BundlePath::parse(".gitignore").unwrap().is_within(&git));
    }
}
