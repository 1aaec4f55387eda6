//! Where in a text something could begin: words with digits and a few telling characters, found in one pass over the bytes.

/// The places where something could begin, each list ascending.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Beginnings of words with digits, of digits inside them, and of the short words before them.
    pub(crate) starts: Vec<usize>,
    /// Words with at least five digits.
    open_words: Vec<std::ops::Range<usize>>,
    /// First digits of each word that has some.
    pub(crate) numbers: Vec<usize>,
    pub(crate) at_signs: Vec<usize>,
    /// Dots between two characters of a host name.
    pub(crate) dots: Vec<usize>,
    /// Colons that could be part of an IPv6 address.
    pub(crate) colons: Vec<usize>,
    /// Four digits after a word such as «in» or «since».
    pub(crate) years: Vec<std::ops::Range<usize>>,
    /// Words with digits or with capitals inside: keys, tokens and encoded text have them, prose has few.
    pub(crate) dense: Vec<std::ops::Range<usize>>,
    /// Colons and equals signs, which may assign a secret.
    pub(crate) assignments: Vec<usize>,
    /// Characters that may begin an escape.
    pub(crate) escapes: Vec<usize>,
}

/// What a byte is to [`Places::of`].
const WORD: u8 = 1;
const NUMERAL: u8 = 2;
const TELLING: u8 = 4;
const CAPITAL: u8 = 8;
/// The shortest word of encoded text that is looked at.
const DENSE: usize = 4;
/// Words longer than this are encoded data, not numbers that people write.
const MAX_OPEN_WORD: usize = 4096;
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80 {
            classes[byte] = WORD;
        }
        if b.is_ascii_digit() {
            classes[byte] |= NUMERAL;
        }
        if b.is_ascii_uppercase() {
            classes[byte] |= CAPITAL;
        }
        if matches!(b, b'@' | b'.' | b':' | b'=' | b'\\' | b'%' | b'&') {
            classes[byte] = TELLING;
        }
        byte += 1;
    }
    classes
};

impl Places {
    /// The places of `text` in one pass over its bytes.
    pub(crate) fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut places = Self::default();
        // The last two words, the nearer one last.
        let mut before = [0..0, 0..0];
        let mut index = 0;
        while index < bytes.len() {
            let class = CLASSES[usize::from(bytes[index])];
            if class & WORD == 0 {
                if class & TELLING != 0 {
                    places.telling(bytes, index);
                }
                index += 1;
                continue;
            }
            let start = index;
            let mut digits = 0;
            let mut capitals = 0;
            while let Some(class) = bytes.get(index).map(|b| CLASSES[usize::from(*b)])
                && class & WORD != 0
            {
                digits += usize::from(class & NUMERAL != 0);
                capitals += usize::from(class & CAPITAL != 0);
                index += 1;
            }
            let word = start..index;
            let leading = usize::from(bytes[start].is_ascii_uppercase());
            if word.len() >= DENSE && (digits > 0 || capitals > leading) {
                places.dense.push(word.clone());
            }
            if digits > 0 {
                places.numeric_word(text, &word, digits, &before);
            } else if is_hexadecimal_group(bytes, &word) {
                places.starts.push(start);
            }
            before = [before[1].clone(), word];
        }
        places.starts.dedup();
        places
    }

    fn telling(&mut self, bytes: &[u8], index: usize) {
        let previous = index.checked_sub(1).map_or(0, |i| bytes[i]);
        let next = bytes.get(index + 1).copied().unwrap_or(0);
        match bytes[index] {
            b'@' => self.at_signs.push(index),
            b'\\' | b'%' | b'&' => self.escapes.push(index),
            b'=' => {
                self.assignments.push(index);
                self.escapes.push(index);
            }
            b'.' if previous.is_ascii_alphanumeric() && next.is_ascii_alphanumeric() => {
                self.dots.push(index)
            }
            b':' if next == b' ' || next == b'"' => self.assignments.push(index),
            b':' if next == b':' || (previous.is_ascii_hexdigit() && next.is_ascii_hexdigit()) => {
                self.colons.push(index);
            }
            _ => {}
        }
    }

    fn numeric_word(
        &mut self,
        text: &str,
        word: &std::ops::Range<usize>,
        digits: usize,
        before: &[std::ops::Range<usize>; 2],
    ) {
        let bytes = text.as_bytes();
        let near = |left: &std::ops::Range<usize>, right: usize| {
            left.end > left.start && right - left.end == 1
        };
        if near(&before[1], word.start) {
            if near(&before[0], before[1].start) && before[0].len() <= 4 && before[1].len() <= 4 {
                self.start(before[0].start);
            }
            if before[1].len() <= 4 || is_month(&bytes[before[1].clone()]) {
                self.start(before[1].start);
            }
        } else if word.start - before[1].end == 2 && is_month(&bytes[before[1].clone()]) {
            self.start(before[1].start);
        }
        let mut previous_class = 0;
        for index in word.clone() {
            let byte = bytes[index];
            let class = if byte.is_ascii_digit() {
                1
            } else if byte.is_ascii() {
                2
            } else {
                3
            };
            let begins = class != previous_class
                && (class == 1 || previous_class == 0 || previous_class == 3);
            if begins && text.is_char_boundary(index) {
                self.start(index);
            }
            if class == 1 && previous_class != 1 {
                self.numbers.push(index);
            }
            previous_class = class;
        }
        if digits >= 5 && word.len() >= 6 {
            self.open_words
                .push(word.start..word.end.min(word.start + MAX_OPEN_WORD));
        }
        if digits == 4 && word.len() == 4 && near(&before[1], word.start) {
            let year = (bytes[word.start] - b'0') * 10 + (bytes[word.start + 1] - b'0');
            let goes_on = matches!(bytes.get(word.end), Some(b'-' | b'/' | b':' | b'.' | b','))
                && bytes.get(word.end + 1).is_some_and(u8::is_ascii_digit);
            if (18..=20).contains(&year) && !goes_on && introduces_year(&text[before[1].clone()]) {
                self.years.push(word.clone());
            }
        }
    }

    fn start(&mut self, at: usize) {
        // Words that lead two numbers would come twice and out of order.
        if self.starts.last().is_none_or(|last| *last < at) {
            self.starts.push(at);
        }
    }

    /// Every character of the words with many digits.
    pub(crate) fn open_starts<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.open_words
            .iter()
            .flat_map(Clone::clone)
            .filter(|at| text.is_char_boundary(*at))
    }
}

fn is_month(word: &[u8]) -> bool {
    word.get(..3).is_some_and(|head| {
        [
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ]
        .iter()
        .any(|month| head.eq_ignore_ascii_case(month.as_bytes()))
    })
}

fn introduces_year(word: &str) -> bool {
    [
        "in", "since", "of", "from", "until", "till", "by", "during", "before", "after", "circa",
        "year", "a", "the", "early", "late",
    ]
    .iter()
    .any(|introduction| word.eq_ignore_ascii_case(introduction))
}

/// True if the word is the first group of a hardware address written without digits so far.
fn is_hexadecimal_group(bytes: &[u8], word: &std::ops::Range<usize>) -> bool {
    let separator = match (word.len(), bytes.get(word.end)) {
        (2, Some(&separator @ (b':' | b'-'))) | (4, Some(&separator @ b'.')) => separator,
        _ => return false,
    };
    bytes.get(word.end + 1 + word.len()) == Some(&separator)
        && bytes[word.clone()].iter().all(u8::is_ascii_hexdigit)
}
