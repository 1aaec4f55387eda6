//! Schemas with keywords that the engine does not know: what is said to be enforced is, and every schema has an instance.
//! The crate `jsonschema` judges.

use super::tests::Fixture;
use super::*;
use crate::constraint::self_contained;

/// Schemas whose rewritten form conforms to nothing else, and what others leave to the caller.
fn schemas() -> Vec<(Json, &'static [&'static str])> {
    let kind = |name: &str, field: &str| json!({"if": {"properties": {"kind": {"const": name}}, "required": ["kind"]}, "then": {"required": [field]}});
    let object = |properties: Json, more: Json| {
        let mut schema = json!({"type": "object", "additionalProperties": false});
        schema["properties"] = properties;
        if let (Json::Object(schema), Json::Object(more)) = (&mut schema, more) {
            schema.extend(more);
        }
        schema
    };
    let ab = || json!({"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"type": "boolean"}, "c": {"type": "null"}});
    vec![
        (
            object(ab(), json!({"dependentRequired": {"a": ["b"]}})),
            &[],
        ),
        (
            object(
                ab(),
                json!({"dependencies": {"a": ["b"], "b": {"required": ["c"]}}}),
            ),
            &[],
        ),
        (
            object(
                ab(),
                json!({"dependentSchemas": {"b": {"properties": {"a": {"maximum": 3}}, "required": ["a"]}}}),
            ),
            &[],
        ),
        (
            object(
                ab(),
                json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            ),
            &[],
        ),
        (object(ab(), json!({"not": {"required": ["a", "b"]}})), &[]),
        (object(ab(), json!({"minProperties": 2})), &[]),
        (
            object(ab(), json!({"minProperties": 1, "maxProperties": 1})),
            &[],
        ),
        (
            object(ab(), json!({"maxProperties": 2, "required": ["c"]})),
            &[],
        ),
        (
            object(
                ab(),
                json!({"if": {"properties": {"b": {"const": true}}, "required": ["b"]}, "then": {"required": ["a"]}, "else": {"required": ["c"]}}),
            ),
            &[],
        ),
        (
            object(
                json!({"kind": {"enum": ["x", "y", "z"]}, "p": {"type": "null"}, "q": {"type": "null"}}),
                json!({"required": ["kind"], "allOf": [kind("x", "p"), kind("y", "q")]}),
            ),
            &[],
        ),
        (
            json!({"type": "object", "propertyNames": {"enum": ["a", "bc"]}, "additionalProperties": {"type": "boolean"}}),
            &[],
        ),
        (
            json!({"type": "object", "propertyNames": {"pattern": "^[a-c]{1,3}$"}, "additionalProperties": {"type": "null"}, "minProperties": 1}),
            &[],
        ),
        (
            json!({"type": "array", "contains": {"const": "x"}, "items": {"enum": ["x", "y"]}, "maxItems": 4}),
            &[],
        ),
        (
            json!({"enum": ["a", "b", "ab"], "not": {"const": "a"}}),
            &[],
        ),
        (
            json!({"type": "string", "maxLength": 6, "not": {"enum": ["a", "abc"]}}),
            &[],
        ),
        (
            json!({"not": {"type": ["object", "array", "string"]}, "type": ["object", "array", "integer"]}),
            &[],
        ),
        (
            json!({"oneOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}),
            &[],
        ),
        (
            json!({"allOf": [object(ab(), json!({})), {"$ref": "#/$defs/x%7Ey~1z"}], "$defs": {"x~y/z": {"required": ["c"]}}}),
            &[],
        ),
        (
            json!({"$id": "https://example.org/s.json", "$ref": "s.json#/$defs/a", "$defs": {"a": {"$anchor": "here", "type": "array", "maxItems": 2,
            "items": {"$ref": "#here"}}}}),
            &[],
        ),
        (
            json!({"properties": {"a": {"type": "null"}}, "allOf": [{"properties": {"b": {"type": "null"}}}], "unevaluatedProperties": false, "type": "object"}),
            &[],
        ),
        (
            json!({"type": "object", "properties": {"far": {"$ref": "https://example.org/far.json"}, "near": {"type": "null"}}, "additionalProperties": false}),
            &[],
        ),
        (
            json!({"type": "string", "format": "json-pointer", "maxLength": 9}),
            &[],
        ),
        (
            json!({"type": "array", "uniqueItems": true, "items": {"enum": ["a", "b", "c"]}, "minItems": 2}),
            &["uniqueItems"],
        ),
        (
            json!({"type": "array", "uniqueItems": true, "items": {"type": "string", "pattern": "^[a-c]+$"}, "minItems": 3}),
            &["uniqueItems"],
        ),
        (
            json!({"type": "string", "pattern": "^(?!ab)[a-c]{2,5}$"}),
            &["pattern"],
        ),
        (
            json!({"oneOf": [{"type": "integer", "multipleOf": 2}, {"type": "integer", "multipleOf": 3}]}),
            &["oneOf"],
        ),
        (
            json!({"type": "array", "items": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}, "minItems": 2,
            "uniqueItems": true}),
            &["uniqueItems"],
        ),
    ]
}

#[test]
fn what_is_enforced_conforms() {
    let fixture = Fixture::new();
    for (schema, left_out) in schemas() {
        let validator = jsonschema::options().should_validate_formats(true);
        let validator = validator
            .build(&self_contained(&schema, false))
            .expect("a schema");
        let spec = ConstraintSpec::LooseJsonSchema(schema.to_string());
        let constraint = fixture
            .factory
            .build(&spec)
            .unwrap_or_else(|error| panic!("{schema}: {error}"));
        assert_eq!(constraint.left_out(), left_out, "{schema}");
        let strict = fixture
            .factory
            .build(&ConstraintSpec::JsonSchema(schema.to_string()));
        assert_eq!(strict.is_ok(), left_out.is_empty(), "{schema}");
        for seed in 0..24 {
            let text = closed(&fixture, &spec, seed);
            let value: Json = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{schema}: {error}: {text}"));
            let is_valid = validator.is_valid(&value);
            assert!(is_valid || !left_out.is_empty(), "{schema}\n{text}");
        }
    }
}

#[test]
fn every_schema_has_an_instance_and_a_shape() {
    let fixture = Fixture::new();
    for (schema, _) in schemas() {
        let validator = jsonschema::options().should_validate_formats(true);
        let validator = validator
            .build(&self_contained(&schema, false))
            .expect("a schema");
        let instance = fixture
            .factory
            .instance(&schema.to_string(), &mut |value| validator.is_valid(value));
        let instance = instance.unwrap_or_else(|| panic!("{schema} has no instance"));
        let value = serde_json::from_str(&instance.text).expect("JSON");
        assert!(validator.is_valid(&value), "{schema}\n{}", instance.text);
        fixture
            .factory
            .build(&instance.shape)
            .unwrap_or_else(|error| panic!("{schema}: {error}"));
    }
    let nothing = fixture
        .factory
        .instance(r#"{"type": "string", "enum": [1]}"#, &mut |_| true);
    assert_eq!(nothing, None);
}

#[test]
fn large_schemas_are_read_for_what_they_use() {
    let fixture = Fixture::new();
    let unused: serde_json::Map<String, Json> = (0..40_000)
        .map(|index| {
            (
                format!("unused-{index}"),
                json!({"type": "string", "description": "nobody refers to this"}),
            )
        })
        .collect();
    let schema = json!({"$defs": unused, "type": "boolean"});
    let text = schema.to_string();
    assert!(text.len() > 2 << 20);
    fixture
        .factory
        .build(&ConstraintSpec::JsonSchema(text))
        .expect("a small grammar");
}

/// A text by random opinions that must come to its end.
fn closed(fixture: &Fixture, spec: &ConstraintSpec, seed: u64) -> String {
    const MOST: usize = 220;
    let mut constraint = fixture.factory.build(spec).expect("built before");
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut text = Vec::new();
    for step in 0..MOST {
        if constraint.must_stop() {
            break;
        }
        let mask = constraint.mask_within(MOST - step, 120).expect("a mask");
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let allowed: Vec<u32> = (0..fixture.tokenizer.vocab_len() as u32)
            .filter(|&token| mask.allows(token))
            .collect();
        let token = allowed[(random >> 33) as usize % allowed.len()];
        constraint.commit(token).expect("allowed");
        if fixture.tokenizer.is_end_of_generation(token) {
            break;
        }
        text.extend_from_slice(fixture.tokenizer.token_bytes(token));
    }
    String::from_utf8_lossy(&text).into_owned()
}
