//! Made-up sentences: how much is found, and what is found that is not there.

use ondine_hybrid::pii::{Entity, ScanOptions, Scanner};
use serde::Deserialize;

#[derive(Deserialize)]
struct Sentence {
    text: String,
    spans: Vec<(String, usize, usize)>,
}

/// Exact matches, true spans, and findings that touch no true span of the kind.
fn measure(kind: &str) -> (usize, usize, usize) {
    let options = ScanOptions {
        entities: Some([Entity::named(kind)].into()),
        ..ScanOptions::default()
    };
    let scanner = Scanner::new(options).unwrap();
    let (mut exact, mut total, mut wrong) = (0, 0, 0);
    for line in include_str!("data/synthetic_sentences.jsonl").lines() {
        let sentence: Sentence = serde_json::from_str(line).unwrap();
        let expected: Vec<_> = sentence
            .spans
            .iter()
            .filter(|(entity, ..)| entity == kind)
            .collect();
        let found = scanner.scan(&sentence.text);
        let mut all_found = true;
        for (_, start, end) in &expected {
            let hit = found.iter().any(|f| f.start == *start && f.end == *end);
            exact += usize::from(hit);
            all_found &= hit;
        }
        total += expected.len();
        let outside = |f: &&ondine_hybrid::pii::Finding| {
            !expected.iter().any(|(_, s, e)| f.start < *e && *s < f.end)
        };
        wrong += found.iter().filter(outside).count();
        if std::env::var_os("SHOW").is_some() {
            let spans: Vec<_> = found
                .iter()
                .map(|f| (&sentence.text[f.start..f.end], f.score, f.confidence))
                .collect();
            if !all_found || found.iter().any(|f| outside(&f)) {
                println!(
                    "{kind} {:?}\n   found {spans:?} expected {:?}",
                    sentence.text,
                    expected
                        .iter()
                        .map(|(_, s, e)| &sentence.text[*s..*e])
                        .collect::<Vec<_>>()
                );
            }
        }
    }
    println!("{kind}: {exact} of {total} exactly, {wrong} false");
    (exact, total, wrong)
}

#[test]
fn recall_and_false_findings() {
    // Patterns alone find about 59 % of the telephone numbers, 40 % of the dates and 77 % of the cards.
    for (kind, least, most_wrong) in [
        ("PHONE_NUMBER", 0.80, 10),
        ("DATE_TIME", 0.90, 8),
        ("CREDIT_CARD", 0.97, 2),
        ("US_SSN", 1.0, 2),
        ("IP_ADDRESS", 1.0, 0),
        ("EMAIL_ADDRESS", 1.0, 0),
    ] {
        let (exact, total, wrong) = measure(kind);
        assert!(
            exact as f32 >= least * total as f32,
            "{kind}: {exact} of {total}"
        );
        assert!(wrong <= most_wrong, "{kind}: {wrong} false findings");
    }
}
