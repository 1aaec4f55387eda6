//! Character classes: one table look-up per character gives everything a pre-tokenizer asks.

use std::sync::OnceLock;

use super::unicode_runs::RUNS;

/// A set of general categories, one bit per [`Category`].
pub(super) type CategorySet = u32;

/// Unicode general categories, numbered as in the run table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Category {
    Cn,
    Cc,
    Cf,
    Co,
    Cs,
    Ll,
    Lm,
    Lo,
    Lt,
    Lu,
    Mc,
    Me,
    Mn,
    Nd,
    Nl,
    No,
    Pc,
    Pd,
    Pe,
    Pf,
    Pi,
    Po,
    Ps,
    Sc,
    Sk,
    Sm,
    So,
    Zl,
    Zp,
    Zs,
}

use Category as C;

const fn set(categories: &[Category]) -> CategorySet {
    let mut bits = 0;
    let mut i = 0;
    while i < categories.len() {
        bits |= 1 << categories[i] as u32;
        i += 1;
    }
    bits
}

pub(super) const LETTER: CategorySet = set(&[C::Ll, C::Lm, C::Lo, C::Lt, C::Lu]);
pub(super) const MARK: CategorySet = set(&[C::Mc, C::Me, C::Mn]);
pub(super) const NUMBER: CategorySet = set(&[C::Nd, C::Nl, C::No]);
pub(super) const PUNCTUATION: CategorySet = set(&[C::Pc, C::Pd, C::Pe, C::Pf, C::Pi, C::Po, C::Ps]);
pub(super) const SYMBOL: CategorySet = set(&[C::Sc, C::Sk, C::Sm, C::So]);
pub(super) const SEPARATOR: CategorySet = set(&[C::Zl, C::Zp, C::Zs]);
pub(super) const OTHER: CategorySet = set(&[C::Cn, C::Cc, C::Cf, C::Co, C::Cs]);
pub(super) const DECIMAL: CategorySet = set(&[C::Nd]);

/// The categories that `name` stands for in a regular expression (`L`, `Lu`, `Letter`, ...).
pub(super) fn category_set(name: &str) -> Option<CategorySet> {
    Some(match name {
        "L" | "Letter" => LETTER,
        "M" | "Mark" => MARK,
        "N" | "Number" => NUMBER,
        "P" | "Punctuation" => PUNCTUATION,
        "S" | "Symbol" => SYMBOL,
        "Z" | "Separator" => SEPARATOR,
        "C" | "Other" => OTHER,
        "Cn" => set(&[C::Cn]),
        "Cc" => set(&[C::Cc]),
        "Cf" => set(&[C::Cf]),
        "Co" => set(&[C::Co]),
        "Cs" => set(&[C::Cs]),
        "Ll" => set(&[C::Ll]),
        "Lm" => set(&[C::Lm]),
        "Lo" => set(&[C::Lo]),
        "Lt" => set(&[C::Lt]),
        "Lu" => set(&[C::Lu]),
        "Mc" => set(&[C::Mc]),
        "Me" => set(&[C::Me]),
        "Mn" => set(&[C::Mn]),
        "Nd" => DECIMAL,
        "Nl" => set(&[C::Nl]),
        "No" => set(&[C::No]),
        "Pc" => set(&[C::Pc]),
        "Pd" => set(&[C::Pd]),
        "Pe" => set(&[C::Pe]),
        "Pf" => set(&[C::Pf]),
        "Pi" => set(&[C::Pi]),
        "Po" => set(&[C::Po]),
        "Ps" => set(&[C::Ps]),
        "Sc" => set(&[C::Sc]),
        "Sk" => set(&[C::Sk]),
        "Sm" => set(&[C::Sm]),
        "So" => set(&[C::So]),
        "Zl" => set(&[C::Zl]),
        "Zp" => set(&[C::Zp]),
        "Zs" => set(&[C::Zs]),
        _ => return None,
    })
}

/// A code point with its category and whitespace bit, so that a predicate is one bit test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Char(u32);

const CATEGORY_SHIFT: u32 = 21;
const WHITESPACE_BIT: u32 = 1 << 26;

impl Char {
    /// Stands beyond either end of a range: belongs to no class.
    pub(super) const OUTSIDE: Char = Char(0x001F_FFFF | (31 << CATEGORY_SHIFT));

    pub(super) fn new(code_point: u32, tables: &Tables) -> Self {
        let category = u32::from(tables.category(code_point));
        let whitespace = if is_white_space(code_point) {
            WHITESPACE_BIT
        } else {
            0
        };
        Char(code_point | category << CATEGORY_SHIFT | whitespace)
    }

    pub(super) fn code_point(self) -> u32 {
        self.0 & 0x001F_FFFF
    }

    pub(super) fn is(self, ascii: char) -> bool {
        self.code_point() == ascii as u32
    }

    pub(super) fn in_set(self, set: CategorySet) -> bool {
        set >> ((self.0 >> CATEGORY_SHIFT) & 31) & 1 != 0
    }

    pub(super) fn is_letter(self) -> bool {
        self.in_set(LETTER)
    }

    pub(super) fn is_number(self) -> bool {
        self.in_set(NUMBER)
    }

    pub(super) fn is_mark(self) -> bool {
        self.in_set(MARK)
    }

    /// The `White_Space` property.
    pub(super) fn is_whitespace(self) -> bool {
        self.0 & WHITESPACE_BIT != 0
    }

    pub(super) fn is_newline(self) -> bool {
        self.is('\r') || self.is('\n')
    }

    /// Bytes of this character in UTF-8.
    pub(super) fn utf8_len(self) -> usize {
        match self.code_point() {
            0..0x80 => 1,
            0x80..0x800 => 2,
            0x800..0x1_0000 => 3,
            _ => 4,
        }
    }
}

/// Code points with the `White_Space` property (`PropList.txt`, unchanged since Unicode 6.3).
fn is_white_space(code_point: u32) -> bool {
    matches!(code_point, 0x09..=0x0D | 0x20 | 0x85 | 0xA0 | 0x1680 | 0x2000..=0x200A
        | 0x2028 | 0x2029 | 0x202F | 0x205F | 0x3000)
}

const BLOCK: usize = 256;

/// Two-stage category table: `blocks[index[code point / 256]][code point % 256]`.
pub(super) struct Tables {
    /// Shape [0x110000 / 256].
    index: Vec<u16>,
    /// Shape [distinct blocks, 256].
    blocks: Vec<u8>,
}

impl Tables {
    /// The shared tables, unpacked from the run list on first use (about 0.1 ms).
    pub(super) fn shared() -> &'static Tables {
        static TABLES: OnceLock<Tables> = OnceLock::new();
        TABLES.get_or_init(Tables::unpack)
    }

    /// Code points above U+10FFFF are unassigned.
    pub(super) fn category(&self, code_point: u32) -> u8 {
        let code_point = code_point as usize;
        match self.index.get(code_point / BLOCK) {
            Some(&block) => self.blocks[usize::from(block) * BLOCK + code_point % BLOCK],
            None => Category::Cn as u8,
        }
    }

    fn unpack() -> Tables {
        let mut index = Vec::with_capacity(0x11_0000 / BLOCK);
        let mut blocks = Vec::new();
        // Whole blocks of one category (most of the code space) are stored once per category.
        let mut uniform = [None; 32];
        let mut run = 0;
        for first in (0..0x11_0000u32).step_by(BLOCK) {
            let mut content = [0u8; BLOCK];
            let mut single = true;
            for (offset, slot) in content.iter_mut().enumerate() {
                let code_point = first + offset as u32;
                while run + 1 < RUNS.len() && RUNS[run + 1] >> 8 <= code_point {
                    run += 1;
                    single &= offset == 0;
                }
                *slot = RUNS[run] as u8;
            }
            let fresh = (blocks.len() / BLOCK) as u16;
            let block = if single {
                *uniform[usize::from(content[0]) % 32].get_or_insert(fresh)
            } else {
                fresh
            };
            if block == fresh {
                blocks.extend_from_slice(&content);
            }
            index.push(block);
        }
        Tables { index, blocks }
    }
}

/// Decodes `text` for classification.
pub(super) fn decode(text: &str, tables: &Tables, out: &mut Vec<Char>) {
    out.clear();
    out.reserve(text.len());
    out.extend(text.chars().map(|c| Char::new(c as u32, tables)));
}

/// Han ideographs as the Kimi pre-tokenizer defines them (unified blocks A to F, compatibility).
pub(super) fn is_han(code_point: u32) -> bool {
    matches!(code_point, 0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF
        | 0x2A700..=0x2B73F | 0x2B740..=0x2B81F | 0x2B820..=0x2CEAF | 0x2CEB0..=0x2EBEF
        | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_agrees_with_the_runs_and_with_the_standard_library() {
        let tables = Tables::shared();
        for pair in RUNS.windows(2) {
            let (first, next) = (pair[0] >> 8, pair[1] >> 8);
            for code_point in [first, next - 1] {
                assert_eq!(
                    tables.category(code_point),
                    pair[0] as u8,
                    "U+{code_point:04X}"
                );
            }
        }
        for c in '\0'..=char::MAX {
            assert_eq!(
                Char::new(c as u32, tables).is_whitespace(),
                c.is_whitespace(),
                "{c:?}"
            );
            assert_eq!(Char::new(c as u32, tables).utf8_len(), c.len_utf8());
        }
        assert!(Char::new('é' as u32, tables).is_letter());
        assert!(Char::new('½' as u32, tables).is_number());
        assert!(Char::new(0x301, tables).is_mark());
        assert!(!Char::OUTSIDE.is_letter() && !Char::OUTSIDE.is_whitespace());
        assert_eq!(tables.category(0x0020_0000), Category::Cn as u8);
    }
}
