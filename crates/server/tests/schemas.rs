//! Structured output: a schema that cannot be followed is refused, and the refusal says why.

mod support;

use ondine_server::ServerOptions;
use ondine_server::engine::EngineOptions;
use serde_json::json;
use support::Running;

#[test]
fn what_is_not_supported_is_named() {
    let server = Running::tiny(EngineOptions::default(), ServerOptions::default());
    for (schema, part) in [
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (
            json!({"type": "array", "contains": {"type": "string"}}),
            "contains",
        ),
        (json!({"not": {"type": "string"}}), "not"),
        (
            json!({"if": {"type": "string"}, "then": {"minLength": 2}}),
            "if",
        ),
        (
            json!({"type": "object", "dependentRequired": {"a": ["b"]}}),
            "dependentRequired",
        ),
        (
            json!({"$ref": "https://example.org/other.json"}),
            "example.org",
        ),
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
