//! Schemas of what does not conform to another.

use serde_json::{Map, Value as Json, json};

use super::compare::{required, types, values_of};
use super::document::{Document, Target};
use super::pattern::all_but;

/// A schema to which nothing conforms that conforms to `schema`, and much of the rest does; none where no such is known.
pub(super) fn negate(document: &Document<'_>, schema: &Json, depth: usize) -> Option<Json> {
    let fields = match schema {
        Json::Bool(all) => return Some(Json::Bool(!all)),
        Json::Object(fields) if depth > 0 => fields,
        _ => return None,
    };
    let negate = |schema: &Json| negate(document, schema, depth - 1);
    let mut ways = Vec::new();
    match document.referred(fields) {
        Some(Target::Found(target)) => ways.extend(negate(target)),
        Some(Target::Nowhere) => return Some(Json::Bool(true)),
        Some(Target::Metaschema) | None => (),
    }
    if fields.contains_key("$ref") && document.ignores_siblings() {
        return one_of_them(ways);
    }
    for name in required(fields) {
        ways.push(json!({"type": "object", "properties": {name: false}}));
    }
    if let Some(Json::Object(properties)) = fields.get("properties") {
        for (name, schema) in properties {
            if let Some(other) = negate(schema) {
                ways.push(
                    json!({"type": "object", "properties": {name: other}, "required": [name]}),
                );
            }
        }
    }
    if let Some(values) = values_of(fields) {
        ways.extend(none_of(&values));
    } else if let Some(kinds) = fields.get("type") {
        ways.push(other_types(kinds));
    }
    for (key, joined) in [("allOf", true), ("anyOf", false)] {
        if let Some(Json::Array(members)) = fields.get(key) {
            let negated: Vec<Option<Json>> = members.iter().map(negate).collect();
            match (joined, negated.iter().all(Option::is_some)) {
                (true, _) => ways.extend(negated.into_iter().flatten()),
                (false, true) => {
                    let all: Vec<Json> = negated.into_iter().flatten().collect();
                    ways.push(json!({"allOf": all}));
                }
                (false, false) => (),
            }
        }
    }
    if let Some(not) = fields.get("not") {
        ways.push(not.clone());
    }
    bounds(fields, &mut ways);
    one_of_them(ways)
}

fn one_of_them(mut ways: Vec<Json>) -> Option<Json> {
    match ways.len() {
        0 => None,
        1 => ways.pop(),
        _ => Some(json!({"anyOf": ways})),
    }
}

/// Numbers and strings beyond the bounds.
fn bounds(fields: &Map<String, Json>, ways: &mut Vec<Json>) {
    for (key, opposite) in [
        ("minimum", "exclusiveMaximum"),
        ("maximum", "exclusiveMinimum"),
    ] {
        if let Some(bound) = fields.get(key).filter(|bound| bound.is_number()) {
            ways.push(json!({"type": "number", opposite: bound}));
        }
    }
    for (kind, lowest, highest) in [
        ("string", "minLength", "maxLength"),
        ("array", "minItems", "maxItems"),
    ] {
        if let Some(least @ 1..) = fields.get(lowest).and_then(Json::as_u64) {
            ways.push(json!({"type": kind, highest: least - 1}));
        }
        if let Some(most) = fields.get(highest).and_then(Json::as_u64) {
            ways.push(json!({"type": kind, lowest: most.saturating_add(1)}));
        }
    }
}

fn other_types(kinds: &Json) -> Json {
    let names: Vec<&str> = match kinds {
        Json::String(name) => vec![name],
        Json::Array(names) => names.iter().filter_map(Json::as_str).collect(),
        _ => Vec::new(),
    };
    let is_other = |kind: &&str| match *kind {
        "number" => !names.contains(&"number") && !names.contains(&"integer"),
        kind => !names.contains(&kind),
    };
    json!({"type": types().into_iter().filter(is_other).collect::<Vec<_>>()})
}

/// What is none of `values`: of other types, or other texts, numbers and truth values.
fn none_of(values: &[&Json]) -> Vec<Json> {
    let has = |is: fn(&Json) -> bool| values.iter().any(|value| is(value));
    let mut free: Vec<&str> = Vec::new();
    for (kind, is) in [
        ("null", Json::is_null as fn(&Json) -> bool),
        ("boolean", Json::is_boolean),
        ("number", Json::is_number),
        ("array", Json::is_array),
        ("object", Json::is_object),
    ] {
        if !has(is) {
            free.push(kind);
        }
    }
    let texts: Vec<&str> = values.iter().filter_map(|value| value.as_str()).collect();
    let mut ways = Vec::new();
    match texts.is_empty() {
        true => free.push("string"),
        false => ways.push(json!({"type": "string", "pattern": all_but(&texts)})),
    }
    for truth in [false, true] {
        if has(Json::is_boolean) && !values.contains(&&Json::Bool(truth)) {
            ways.push(json!({"const": truth}));
        }
    }
    let numbers: Vec<f64> = values.iter().filter_map(|value| value.as_f64()).collect();
    if !numbers.is_empty() {
        let lowest = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        ways.push(json!({"type": "number", "exclusiveMaximum": lowest}));
        ways.push(json!({"type": "number", "exclusiveMinimum": highest}));
    }
    if !free.is_empty() {
        ways.insert(0, json!({"type": free}));
    }
    ways
}
