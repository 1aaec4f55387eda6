//! The findings do not depend on how the text arrives, and hostile text is no trouble.

use ondine_hybrid::pii::{ScanOptions, Scanner, StreamScanner};
use proptest::prelude::*;

fn scanner() -> Scanner {
    Scanner::new(ScanOptions::default()).unwrap()
}

#[test]
fn a_long_text_in_any_pieces() {
    let unit = "Pay GB33 BUKB 2020 1555 5555 55 or call +1 415 555 0132, é y\u{200b}@example.org %61@b.com ";
    let text: String = unit.repeat(220_000 / unit.len());
    let whole = scanner().scan(&text);
    assert!(whole.len() > 4 * (220_000 / unit.len()) - 8);
    for size in [1_000, 4_097, 65_536, 73_728] {
        let mut stream = StreamScanner::new(scanner());
        let mut found = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let cut = (size.min(rest.len())..=rest.len())
                .find(|at| rest.is_char_boundary(*at))
                .unwrap();
            found.extend(stream.push(&rest[..cut]));
            rest = &rest[cut..];
        }
        found.extend(stream.finish());
        assert!(found == whole, "pieces of {size} bytes");
    }
}

#[test]
fn a_number_across_every_window_edge_is_found() {
    let card = "4111 1111 1111 1111";
    for shift in 0..card.len() {
        let text = format!(
            "{}{card} {}",
            "x ".repeat((65_536 - shift) / 2),
            "y ".repeat(20_000)
        );
        let found = scanner().scan(&text);
        let at = text.find(card).unwrap();
        assert!(
            found
                .iter()
                .any(|f| f.entity.name() == "CREDIT_CARD" && f.start == at),
            "shift {shift}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_text_gives_spans_inside_it(text in "(\\PC|[0-9 .:@%\\\\/=&;#x+_-]|[A-Z]{1,3}|%[0-9A-F]{2}|\\\\u[0-9a-f]{4}|&#[0-9]{2};){0,60}") {
        for finding in scanner().scan(&text) {
            prop_assert!(finding.start < finding.end && text.get(finding.start..finding.end).is_some(), "{:?}", finding);
        }
    }
}
