//! Character classes of the regular-expression engine.

use super::super::unicode::{
    CategorySet, Char, DECIMAL, LETTER, MARK, NUMBER, PUNCTUATION, SYMBOL, Tables, category_set,
};

/// Whose meaning of `\s`, `\d` and `\p{..}` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tokenizer) enum Dialect {
    /// As the GGUF world splits: the expressions run on text whose characters beyond ASCII are replaced by
    /// one letter per major category and whose whitespace beyond ASCII is a vertical tab, so `\p{Lu}` is any
    /// letter and `\d` is ASCII.
    Gguf,
    /// As Hugging Face tokenizers do: Oniguruma with Unicode classes.
    Unicode,
}

/// A set of characters.
#[derive(Debug, Clone, Default)]
pub(super) struct CharClass {
    /// Members among U+0000..U+007F, negation already applied.
    ascii: u128,
    negated: bool,
    categories: CategorySet,
    /// Ascending and disjoint, both ends included.
    ranges: Vec<(u32, u32)>,
    whitespace: bool,
    any_of: Vec<CharClass>,
    all_of: Vec<CharClass>,
    /// Whitespace beyond ASCII counts as U+000B.
    collapse_whitespace: bool,
}

impl CharClass {
    pub(super) fn matches(&self, c: Char) -> bool {
        let code_point = c.code_point();
        if code_point < 0x80 {
            return self.ascii >> code_point & 1 != 0;
        }
        if self.collapse_whitespace && c.is_whitespace() {
            return self.ascii >> 0x0B & 1 != 0;
        }
        self.evaluate(c)
    }

    /// Members among ASCII as a bitmap.
    pub(super) fn ascii(&self) -> u128 {
        self.ascii
    }

    fn evaluate(&self, c: Char) -> bool {
        let member = c.in_set(self.categories)
            || (self.whitespace && c.is_whitespace())
            || self.in_ranges(c.code_point())
            || self.any_of.iter().any(|class| class.matches(c));
        (member != self.negated) && self.all_of.iter().all(|class| class.matches(c))
    }

    fn in_ranges(&self, code_point: u32) -> bool {
        let after = self.ranges.partition_point(|range| range.0 <= code_point);
        after > 0 && code_point <= self.ranges[after - 1].1
    }
}

/// Collects the members of a class.
#[derive(Debug, Clone)]
pub(super) struct ClassBuilder {
    class: CharClass,
    dialect: Dialect,
    fold_case: bool,
}

impl ClassBuilder {
    pub(super) fn new(dialect: Dialect, fold_case: bool) -> Self {
        ClassBuilder {
            class: CharClass {
                collapse_whitespace: dialect == Dialect::Gguf,
                ..CharClass::default()
            },
            dialect,
            fold_case,
        }
    }

    pub(super) fn negate(&mut self) {
        self.class.negated = true;
    }

    pub(super) fn range(&mut self, first: u32, last: u32) {
        self.class.ranges.push((first, last));
        if !self.fold_case {
            return;
        }
        let letters = |from: u32, to: u32| (first.max(from), last.min(to));
        let (low, high) = letters(0x41, 0x5A);
        if low <= high {
            self.class.ranges.push((low + 0x20, high + 0x20));
        }
        let (low, high) = letters(0x61, 0x7A);
        if low <= high {
            self.class.ranges.push((low - 0x20, high - 0x20));
        }
        // The two characters beyond ASCII whose simple case folding is an ASCII letter.
        for (upper, lower, folded) in [(0x53, 0x73, 0x17F), (0x4B, 0x6B, 0x212A)] {
            let inside = |c: u32| first <= c && c <= last;
            if inside(upper) || inside(lower) {
                self.class.ranges.push((folded, folded));
            }
        }
    }

    pub(super) fn nested(&mut self, class: CharClass) {
        self.class.any_of.push(class);
    }

    pub(super) fn intersect(&mut self, class: CharClass) {
        self.class.all_of.push(class);
    }

    /// Adds the class that the escape `\letter` names; false when there is none.
    pub(super) fn escape(&mut self, letter: char) -> bool {
        let lower = letter.to_ascii_lowercase();
        let mut inner = ClassBuilder::new(self.dialect, false);
        match (lower, self.dialect) {
            ('s', _) => inner.class.whitespace = true,
            ('d', Dialect::Gguf) => inner.range(0x30, 0x39),
            ('d', Dialect::Unicode) => inner.class.categories = DECIMAL,
            ('w', Dialect::Gguf) => {
                for (first, last) in [('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')] {
                    inner.range(first as u32, last as u32);
                }
            }
            ('w', Dialect::Unicode) => {
                let more = ["Nd", "Nl", "Pc"].into_iter().filter_map(category_set);
                inner.class.categories = more.fold(LETTER | MARK, |all, more| all | more);
                inner.class.ranges.extend_from_slice(ENCLOSED_LETTERS);
            }
            _ => return false,
        }
        self.add_possibly_negated(inner, lower != letter);
        true
    }

    /// Adds `\p{name}` (or `\P{name}`); false when the property is not known.
    pub(super) fn property(&mut self, name: &str, negated: bool) -> bool {
        let (name, negated) = match name.strip_prefix('^') {
            Some(rest) => (rest, !negated),
            None => (name, negated),
        };
        let mut inner = ClassBuilder::new(self.dialect, false);
        match category_set(name) {
            Some(categories) => inner.class.categories = self.widen(categories),
            None if name == "Han" => inner.class.ranges.extend_from_slice(HAN),
            None => return false,
        }
        self.add_possibly_negated(inner, negated);
        true
    }

    pub(super) fn build(mut self) -> CharClass {
        self.class.ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(self.class.ranges.len());
        for &(first, last) in &self.class.ranges {
            match merged.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => {
                    previous.1 = previous.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        self.class.ranges = merged;
        let tables = Tables::shared();
        self.class.ascii = (0..0x80)
            .filter(|&c| self.class.evaluate(Char::new(c, tables)))
            .fold(0, |bits, c| bits | 1 << c);
        self.class
    }

    fn add_possibly_negated(&mut self, mut inner: ClassBuilder, negated: bool) {
        if negated {
            inner.negate();
            self.nested(inner.build());
        } else {
            self.class.categories |= inner.class.categories;
            self.class.whitespace |= inner.class.whitespace;
            self.class.ranges.append(&mut inner.class.ranges);
        }
    }

    /// Sub-categories of letters cannot be told apart in the GGUF dialect.
    fn widen(&self, categories: CategorySet) -> CategorySet {
        if self.dialect == Dialect::Unicode {
            return categories;
        }
        [LETTER, MARK, NUMBER, PUNCTUATION, SYMBOL]
            .into_iter()
            .filter(|major| categories & major != 0)
            .fold(categories, |all, major| all | major)
    }
}

/// Symbols with the property `Other_Alphabetic` (`PropList.txt` 15.1): letters in circles and squares.
const ENCLOSED_LETTERS: &[(u32, u32)] = &[
    (0x24B6, 0x24E9),
    (0x1F130, 0x1F149),
    (0x1F150, 0x1F169),
    (0x1F170, 0x1F189),
];

/// Script property Han (`Scripts.txt` 15.1).
const HAN: &[(u32, u32)] = &[
    (0x2E80, 0x2E99),
    (0x2E9B, 0x2EF3),
    (0x2F00, 0x2FD5),
    (0x3005, 0x3005),
    (0x3007, 0x3007),
    (0x3021, 0x3029),
    (0x3038, 0x303B),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFA6D),
    (0xFA70, 0xFAD9),
    (0x16FE2, 0x16FE3),
    (0x16FF0, 0x16FF1),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B739),
    (0x2B740, 0x2B81D),
    (0x2B820, 0x2CEA1),
    (0x2CEB0, 0x2EBE0),
    (0x2EBF0, 0x2EE5D),
    (0x2F800, 0x2FA1D),
    (0x30000, 0x3134A),
    (0x31350, 0x323AF),
];
