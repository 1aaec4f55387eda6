//! Telephone numbers: candidates by shape, confirmed by the numbering plans of `phonenumber`.

use super::Entity;
use super::engine::Hit;
use phonenumber::country::Id;
use std::ops::Range;

const CONTEXT: &[&str] = &[
    "phone", "number", "tel", "cell", "mobile", "call", "fax", "office", "sms", "text", "whatsapp",
    "contact", "dial",
];

/// Plans that are tried without any hint of the country.
const REGIONS: &[Id] = &[
    Id::US,
    Id::GB,
    Id::DE,
    Id::FR,
    Id::IL,
    Id::IN,
    Id::CA,
    Id::BR,
    Id::JP,
    Id::CN,
];
/// Plans that are tried only where the text speaks of telephones.
const FURTHER: &[Id] = &[
    Id::IT,
    Id::ES,
    Id::NL,
    Id::BE,
    Id::CH,
    Id::AT,
    Id::SE,
    Id::NO,
    Id::DK,
    Id::FI,
    Id::PL,
    Id::PT,
    Id::HU,
    Id::CZ,
    Id::AU,
    Id::NZ,
    Id::IE,
    Id::GR,
    Id::RO,
    Id::SI,
    Id::MX,
    Id::ZA,
    Id::TR,
    Id::KR,
    Id::RU,
    Id::UA,
];

/// Adds the numbers that begin at or shortly before one of `numbers`, the first digits of words.
pub(crate) fn find(
    text: &str,
    numbers: &[usize],
    wanted: &dyn Fn(&Entity) -> bool,
    hits: &mut Vec<Hit>,
) {
    let kinds = [
        Entity::new("PHONE_NUMBER"),
        Entity::new("TR_PHONE_NUMBER"),
        Entity::new("PH_MOBILE_NUMBER"),
    ];
    let [any, turkish, philippine] = kinds.map(|kind| wanted(&kind).then_some(kind));
    if any.is_none() && turkish.is_none() && philippine.is_none() {
        return;
    }
    let mut past = 0;
    for &first in numbers {
        if first < past || !has_enough_digits(text, first) {
            continue;
        }
        let Some(run) = Run::at(text, first) else {
            continue;
        };
        past = run.end();
        for (kind, regions) in [(&turkish, [Id::TR]), (&philippine, [Id::PH])] {
            if let Some(kind) = kind {
                run.matches(
                    text,
                    &mut |part| is_valid(part, &regions).then_some(0.4),
                    kind,
                    hits,
                );
            }
        }
        if let Some(kind) = &any {
            let mut hint = None;
            let mut judge = |part: &str| {
                let mut hinted = || *hint.get_or_insert_with(|| is_hinted(text, first..run.end()));
                if looks_like_another_kind(part) && !hinted() {
                    None
                } else if is_valid(part, REGIONS) {
                    Some(0.4)
                } else if hinted() && (is_valid(part, FURTHER) || is_grouped(part)) {
                    Some(0.3)
                } else {
                    None
                }
            };
            run.matches(text, &mut judge, kind, hits);
        }
    }
}

/// True if seven digits follow with no letter between; most numbers in a text end sooner.
fn has_enough_digits(text: &str, first: usize) -> bool {
    let mut digits = 0;
    for byte in text.as_bytes()[first..].iter().take(24) {
        match byte {
            b'0'..=b'9' => digits += 1,
            b' ' | b'-' | b'.' | b'/' | b'(' | b')' | b'~' | b'+' => {}
            _ => break,
        }
    }
    digits >= 7
}

/// Groups of digits that punctuation joins.
struct Run {
    /// Each group with the plus sign or bracket that opens it.
    groups: Vec<Range<usize>>,
}

impl Run {
    /// More groups than any number is written in.
    const MAX_GROUPS: usize = 9;
    /// Most parts of one run that are judged, which bounds the time for a table of numbers.
    const MAX_TRIES: usize = 8;

    fn at(text: &str, first: usize) -> Option<Self> {
        let bytes = text.as_bytes();
        let mut groups = Vec::new();
        let mut index = first;
        loop {
            let digits = bytes[index..]
                .iter()
                .take_while(|b| b.is_ascii_digit())
                .count();
            let opening = bytes[..index]
                .iter()
                .rev()
                .take(2)
                .take_while(|b| matches!(b, b'+' | b'('))
                .count();
            groups.push(index - opening..index + digits);
            index += digits;
            let gap = bytes[index..]
                .iter()
                .take(4)
                .take_while(|b| matches!(b, b' ' | b'-' | b'.' | b'/' | b'(' | b')' | b'~' | b'+'))
                .count();
            let goes_on = bytes.get(index + gap).is_some_and(u8::is_ascii_digit);
            if gap == 0 || !goes_on || groups.len() == Self::MAX_GROUPS {
                break;
            }
            index += gap;
        }
        let before = text[..groups[0].start].chars().next_back();
        let barred = before.is_some_and(|c| {
            super::recognizer::is_word(c) || matches!(c, '%' | '$' | '€' | '£' | '¥')
        });
        (!barred).then_some(Self { groups })
    }

    fn end(&self) -> usize {
        self.groups.last().map_or(0, |group| group.end)
    }

    /// Judges the whole run, then its parts from the longest on, and goes on behind what was accepted.
    fn matches(
        &self,
        text: &str,
        judge: &mut dyn FnMut(&str) -> Option<f32>,
        kind: &Entity,
        hits: &mut Vec<Hit>,
    ) {
        let count = self.groups.len();
        let mut from = 0;
        let mut tries = 0;
        while from < count && tries < Self::MAX_TRIES {
            let found = (from + 1..=count).rev().find_map(|to| {
                let range = self.groups[from].start..self.groups[to - 1].end;
                let part = &text[range.clone()];
                let digits = part.bytes().filter(u8::is_ascii_digit).count();
                let whole = from == 0 && to == count;
                if !(7..=16).contains(&digits)
                    || !self.is_free(text, &range)
                    || !(whole || self.separates(text, from, to))
                {
                    return None;
                }
                tries += 1;
                judge(part).map(|score| (to, range, score))
            });
            match found {
                Some((to, range, score)) => {
                    hits.push(Hit {
                        entity: kind.clone(),
                        start: range.start,
                        end: range.end,
                        score,
                        context: CONTEXT,
                    });
                    from = to;
                }
                None => from += 1,
            }
        }
    }

    /// True if no letter or digit touches the range and it is no date or time.
    fn is_free(&self, text: &str, range: &Range<usize>) -> bool {
        let after = text[range.end..].chars().next();
        let part = &text[range.clone()];
        let groups: Vec<&str> = part.split(['-', '/', '.']).collect();
        let lengths: Vec<usize> = part.split(['-', '/', '.', ' ']).map(str::len).collect();
        let is_year = |group: &str| {
            ["18", "19", "20", "21"]
                .iter()
                .any(|century| group.starts_with(century))
        };
        let is_date = (groups.len() > 1
            && is_year(groups[0])
            && matches!(lengths[..], [4, 1 | 2, 1 | 2] | [4, 1 | 2, 1 | 2, 2, ..]))
            || (matches!(lengths[..], [1 | 2, 1 | 2, 2 | 4]) && part.contains('/'));
        let is_time = after == Some(':');
        !after.is_some_and(super::recognizer::is_word) && !is_date && !is_time
    }

    /// True if blanks, not hyphens or dots, part the groups `from..to` from their neighbours.
    fn separates(&self, text: &str, from: usize, to: usize) -> bool {
        let gap = |left: usize| &text[self.groups[left].end..self.groups[left + 1].start];
        let parted = |gap: &str| gap.contains(' ') || gap.contains('/');
        let opens = |group: usize| text[self.groups[group].clone()].starts_with(['+', '(']);
        (from == 0 || parted(gap(from - 1)))
            && (to == self.groups.len() || parted(gap(to - 1)))
            && (opens(from) || (to - from == 1) || to == self.groups.len() || opens(to))
    }
}

/// True if the number is valid in one of the plans and has the trunk prefix that the plan requires.
fn is_valid(part: &str, regions: &[Id]) -> bool {
    let digits: String = part.chars().filter(char::is_ascii_digit).collect();
    if part.starts_with('+') || part.starts_with("(+") {
        // A trunk prefix in brackets is written but not dialled: +46 (0)8 123 456.
        let international = part.replace("(0)", "");
        return parses(None, &international);
    }
    regions.iter().any(|region| {
        let needs_trunk = matches!(
            region,
            Id::GB
                | Id::DE
                | Id::FR
                | Id::IL
                | Id::JP
                | Id::PH
                | Id::NL
                | Id::BE
                | Id::CH
                | Id::AT
                | Id::SE
                | Id::AU
                | Id::NZ
                | Id::IE
        );
        let code = country_code(*region);
        let from_abroad =
            digits.len() > 10 && (digits.starts_with(code) || digits.starts_with("00"));
        let begins = fits_plan(*region, &digits) && (!needs_trunk || digits.starts_with('0'));
        (begins || from_abroad) && parses(Some(*region), part)
    })
}

/// False if length or first digits alone exclude the national number, which saves the plan's expressions.
fn fits_plan(region: Id, digits: &str) -> bool {
    let first = |set: &[char]| digits.starts_with(set);
    match (region, digits.len()) {
        (Id::US | Id::CA, 10) => !first(&['0', '1']) && !digits[3..].starts_with(['0', '1']),
        (Id::US | Id::CA, 11) => first(&['1']),
        (Id::US | Id::CA, _) => false,
        (Id::IN, 10) => !first(&['0', '1']),
        (Id::IN, 11) => first(&['0']),
        (Id::BR, length) => {
            (10..=12).contains(&length) || (length == 8 && first(&['2', '3', '4', '5']))
        }
        // Chinese mobile numbers begin with 1, all others with the trunk prefix.
        (Id::CN, length) => {
            (first(&['1']) && length == 11) || (first(&['0']) && (10..=12).contains(&length))
        }
        (Id::FR, length) => length == 10,
        (Id::GB, length) => (10..=11).contains(&length),
        (Id::IL, length) => (9..=10).contains(&length),
        (Id::JP, length) => (10..=11).contains(&length),
        (_, length) => length <= 12,
    }
}

fn parses(region: Option<Id>, part: &str) -> bool {
    phonenumber::parse(region, part).is_ok_and(|number| {
        region.is_none_or(|region| {
            number.country().id() == Some(region) || shares_plan(region, number.country().id())
        }) && number.is_valid()
    })
}

/// The United States and Canada, with some islands, number together.
fn shares_plan(region: Id, other: Option<Id>) -> bool {
    matches!(region, Id::US | Id::CA) && other.is_some_and(|other| country_code(other) == "1")
}

fn country_code(region: Id) -> &'static str {
    match region {
        Id::US | Id::CA => "1",
        Id::GB => "44",
        Id::DE => "49",
        Id::FR => "33",
        Id::IL => "972",
        Id::IN => "91",
        Id::BR => "55",
        Id::JP => "81",
        Id::CN => "86",
        Id::PH => "63",
        Id::TR => "90",
        _ => "00",
    }
}

/// True if words about telephones lead up to the range or follow right behind it.
fn is_hinted(text: &str, range: Range<usize>) -> bool {
    const BEFORE: &[&str] = &[
        "phone", "tel", "cell", "mobile", "call", "call me", "fax", "sms", "whatsapp", "dial",
        "message", "messages", "reach me", "ring",
    ];
    const AFTER: &[&str] = &[
        "phone", "tel", "cell", "mobile", "fax", "office", "home", "work",
    ];
    let behind = text[range.end..]
        .split('\n')
        .next()
        .unwrap_or_default()
        .trim_start_matches([' ', '-', '(', ','])
        .to_lowercase();
    super::context::nearby(&text[..range.end], range.clone(), BEFORE)
        || AFTER.iter().any(|word| behind.starts_with(word))
}

/// True for the shapes of other numbers that a numbering plan may accept by accident: dotted network addresses, social security
/// numbers, and unbroken rows of digits as long as those on cards.
fn looks_like_another_kind(part: &str) -> bool {
    let lengths: Vec<usize> = part.split('-').map(str::len).collect();
    let unbroken = part.len() >= 12 && part.bytes().all(|b| b.is_ascii_digit());
    part.parse::<std::net::Ipv4Addr>().is_ok() || lengths == [3, 2, 4] || unbroken
}

/// Seven to fifteen digits in groups of at least two, as people write numbers of plans that are not tried here.
fn is_grouped(part: &str) -> bool {
    let digits = part.bytes().filter(u8::is_ascii_digit).count();
    let groups: Vec<&str> = part
        .split(|c: char| !c.is_ascii_digit())
        .filter(|group| !group.is_empty())
        .collect();
    let country = usize::from(part.starts_with('+'));
    (7..=15).contains(&digits)
        && (groups.len() >= 2 || digits >= 9)
        && groups
            .iter()
            .skip(country)
            .all(|group| group.len() >= 2 || *group == "0")
}
