//! Structured output: whatever a schema says, the answer conforms to it, or the schema is refused and the refusal says why.
//!
//! The schemas are those of `data/schemas.json`, which were written for this test, and random ones. A validator of its own,
//! the crate `jsonschema`, judges. The model is a real one where it is there, else a tiny random one, which has no idea of an end.

mod support;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use ondine_fixtures::{Random, Tiny};
use ondine_runtime::{Limits, Model};
use ondine_server::engine::EngineOptions;
use ondine_server::{Offer, ServerOptions};
use serde_json::{Map, Value, json};
use support::Running;

const WRITTEN: &str = include_str!("data/schemas.json");

#[test]
fn answers_conform_to_their_schemas() {
    let (model, tokens) = match real_model() {
        Some(model) => (model, 160),
        None => (support::tiny(&Tiny::new("llama", 1)), 300),
    };
    let offer = Offer {
        name: "model".into(),
        modified: SystemTime::UNIX_EPOCH,
        bytes: 1,
        loader: Box::new(move || Ok(support::engine(&model, EngineOptions::default()))),
    };
    let server = Running::serve(vec![offer], ServerOptions::default());
    let mut schemas: Vec<Value> = serde_json::from_str(WRITTEN).expect("JSON");
    let mut random = Random::new(3);
    schemas.extend((0..70).map(|_| schema(&mut random, 3)));
    assert!(schemas.len() >= 120);

    let next = AtomicUsize::new(0);
    let refused = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while let Some(schema) = schemas.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let is_used = check(&server, schema, tokens);
                    refused.fetch_add(usize::from(!is_used), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(
        refused.load(Ordering::Relaxed),
        0,
        "every one of these schemas is supported"
    );
}

#[test]
fn what_a_grammar_cannot_enforce_is_judged_before_it_is_given() {
    let server = Running::tiny(EngineOptions::default(), ServerOptions::default());
    let person =
        json!({"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]});
    for schema in [
        json!({"type": "array", "uniqueItems": true, "items": {"enum": ["a", "b", "c"]}, "minItems": 3}),
        json!({"type": "array", "uniqueItems": true, "items": person, "minItems": 3}),
        json!({"type": "string", "pattern": "^(?!ab)[a-c]{2,5}$"}),
        json!({"oneOf": [{"type": "integer", "multipleOf": 2}, {"type": "integer", "multipleOf": 3}]}),
        json!({"type": "object", "patternProperties": {"^(?!x)[a-z]+$": {"type": "integer"}}, "additionalProperties": false,
            "minProperties": 1}),
        // More than the engine can hold, and a way out.
        json!({"type": "string", "pattern": "^(a|b)*a(a|b){40}$"}),
    ] {
        assert!(check(&server, &schema, 120), "{schema}");
        // A stream is held back until its text was judged.
        let body = json!({
            "messages": [{"role": "user", "content": "An example, as JSON."}],
            "stream": true,
            "response_format": {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}},
        });
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        let text: String = answer
            .body
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
            .filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned()))
            .collect();
        let instance: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(jsonschema::is_valid(&schema, &instance), "{schema}: {text}");
    }
}

/// Asks for an answer and judges it. False when the schema was refused.
fn check(server: &Running, schema: &Value, tokens: usize) -> bool {
    let body = json!({
        "messages": [{"role": "user", "content": "An example, as JSON."}],
        "max_tokens": tokens,
        "seed": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}},
    });
    let answer = server.post("/v1/chat/completions", &body);
    if answer.status == 400 {
        let _ = writeln!(std::io::stderr(), "refused: {schema}: {}", answer.body);
        return false;
    }
    assert_eq!(answer.status, 200, "{schema}: {answer:?}");
    let answer = answer.json();
    let text = answer["choices"][0]["message"]["content"]
        .as_str()
        .expect("text");
    let instance: Value =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{schema}\n{error}: {text}"));
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(schema)
        .expect("a schema");
    if let Err(error) = validator.validate(&instance) {
        panic!("{schema}\n{text}\n{error}");
    }
    true
}

#[test]
fn what_is_not_supported_is_named() {
    let server = Running::tiny(EngineOptions::default(), ServerOptions::default());
    for (schema, part) in [
        (
            json!({"type": "array", "uniqueItems": true, "minItems": 3, "items": {"type": "boolean"}}),
            "uniqueItems",
        ),
        (json!({"$ref": "https://example.org/other.json"}), "false"),
        (json!({"type": "wizard"}), "wizard"),
    ] {
        let body = json!({
            "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        });
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!(answer.status, 400, "{schema}: {answer:?}");
        let error = &answer.json()["error"];
        assert_eq!(error["param"], "response_format");
        assert!(
            error["message"].as_str().expect("a message").contains(part),
            "{schema}: {error}"
        );
    }
}

/// The model that `ONDINE_TEST_MODELS` has; says so when it is not there.
fn real_model() -> Option<Arc<Model>> {
    let directory = std::env::var_os("ONDINE_TEST_MODELS")?;
    let path = Path::new(&directory).join("smollm2-135m-instruct.gguf");
    let model = Model::open(&path, &Limits::default());
    if model.is_err() {
        let _ = writeln!(
            std::io::stderr(),
            "{} is not there; a random model answers",
            path.display()
        );
    }
    model.ok().map(Arc::new)
}

/// A random schema of what is supported.
fn schema(random: &mut Random, depth: usize) -> Value {
    let kinds = if depth == 0 { 6 } else { 10 };
    match random.below(kinds) {
        0 => {
            let low = random.below(2000) as i64 - 1000;
            json!({"type": "integer", "minimum": low, "maximum": low + random.below(5000) as i64})
        }
        1 => {
            json!({"type": "number", "minimum": -(random.below(100) as f64) / 4.0, "maximum": random.below(100) as f64 / 8.0})
        }
        2 => json!({"type": "boolean"}),
        3 => {
            let least = random.below(4);
            json!({"type": "string", "minLength": least, "maxLength": least + random.below(12)})
        }
        4 => {
            let patterns = [
                "^[a-z]{1,6}$",
                "^[0-9]{3}-[0-9]{2}$",
                "^(on|off|auto)$",
                "^v[0-9]+\\.[0-9]+$",
                "^#[0-9a-f]{6}$",
            ];
            json!({"type": "string", "pattern": patterns[random.below(patterns.len())]})
        }
        5 => {
            let values: Vec<Value> = (0..1 + random.below(5))
                .map(|i| {
                    if i % 3 == 2 {
                        json!(i)
                    } else {
                        json!(format!("value {i}"))
                    }
                })
                .collect();
            json!({"enum": values})
        }
        6 => {
            let least = random.below(3);
            json!({"type": "array", "items": schema(random, depth - 1), "minItems": least, "maxItems": least + random.below(3)})
        }
        7 => json!({"anyOf": [schema(random, depth - 1), {"type": "null"}]}),
        _ => {
            let mut properties = Map::new();
            let mut required = Vec::new();
            for index in 0..1 + random.below(4) {
                let name = format!(
                    "{}_{index}",
                    ["name", "size", "state", "items", "note"][random.below(5)]
                );
                properties.insert(name.clone(), schema(random, depth - 1));
                if random.below(3) > 0 {
                    required.push(name);
                }
            }
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}
