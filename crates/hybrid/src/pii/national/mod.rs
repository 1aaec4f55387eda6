//! National identifiers: one table per region, each entry built from the issuing authority's description of the number.

mod africa_pacific;
mod americas;
mod asia;
mod europe;
mod germany;
mod india;
mod united_kingdom;
mod world;

use super::recognizer::Recognizer;

/// Every national recogniser.
pub(crate) fn recognizers() -> impl Iterator<Item = &'static Recognizer> {
    [
        africa_pacific::RECOGNIZERS,
        americas::RECOGNIZERS,
        asia::RECOGNIZERS,
        europe::RECOGNIZERS,
        germany::RECOGNIZERS,
        india::RECOGNIZERS,
        united_kingdom::RECOGNIZERS,
        world::RECOGNIZERS,
    ]
    .into_iter()
    .flatten()
}

/// `text` in capitals without its separators (blanks, hyphens, dots, colons, slashes, underscores).
fn compact(text: &str) -> String {
    text.chars()
        .filter(|c| !matches!(c, '-' | '.' | ':' | '/' | '_') && !c.is_whitespace())
        .map(|c| c.to_ascii_uppercase())
        .collect()
}

/// The digits of `text` if there are exactly `count` of them and nothing but separators besides.
fn exactly(text: &str, count: usize) -> Option<Vec<u32>> {
    let compact = compact(text);
    (compact.len() == count && compact.bytes().all(|b| b.is_ascii_digit()))
        .then(|| super::checksum::digits(&compact))
}

/// The number that the digits write.
fn number(digits: &[u32]) -> u64 {
    digits
        .iter()
        .fold(0, |number, digit| number * 10 + u64::from(*digit))
}
