//! The recorded cases of Presidio's recogniser tests: same spans, same kinds, same scores.

use ondine_hybrid::pii::{Entity, ScanOptions, Scanner, Strictness, Validity};
use serde::Deserialize;
use std::collections::HashMap;

#[derive(Deserialize)]
struct Case {
    entity: String,
    text: String,
    #[serde(default)]
    config: HashMap<String, String>,
    #[serde(default)]
    spans: Option<Vec<(String, usize, usize, f32)>>,
    #[serde(default)]
    result: Option<bool>,
}

#[test]
fn every_recorded_case() {
    let scanner = Scanner::new(ScanOptions::default()).unwrap();
    let mut failures = Vec::new();
    let mut count = 0;
    for line in include_str!("data/presidio_cases.jsonl").lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        if case
            .config
            .get("leniency")
            .is_some_and(|leniency| leniency != "1")
        {
            // The grouping rules of libphonenumber's stricter levels are not offered.
            continue;
        }
        count += 1;
        let strict = case
            .config
            .get("strict_checksum")
            .is_some_and(|strict| strict == "True");
        let options = ScanOptions {
            entities: Some([Entity::named(&case.entity)].into()),
            strictness: if strict {
                Strictness::Strict
            } else {
                Strictness::Lenient
            },
            ..ScanOptions::default()
        };
        let scanner = scanner.with_options(options);
        if let Some(spans) = &case.spans {
            let mut found: Vec<_> = scanner
                .scan(&case.text)
                .into_iter()
                .map(|f| (f.entity.to_string(), f.start, f.end, f.score))
                .collect();
            let mut expected = spans.clone();
            expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
            found.sort_by(|a, b| a.partial_cmp(b).unwrap());
            if found != expected {
                failures.push(format!(
                    "{} {:?}: {found:?} instead of {expected:?}",
                    case.entity, case.text
                ));
            }
        } else {
            let found = scanner.validate(&Entity::named(&case.entity), &case.text);
            let agrees = match case.result {
                Some(valid) => found == Some(Validity::from(valid)),
                // Text that has not even the shape is invalid here; there it is not known.
                None => found != Some(Validity::Valid),
            };
            if !agrees {
                failures.push(format!(
                    "{} {:?}: {found:?} instead of {:?}",
                    case.entity, case.text, case.result
                ));
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {count} failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}
