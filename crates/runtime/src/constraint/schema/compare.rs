//! What two schemas have in common, as far as that can be read off them.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::document::{Document, Target};

const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];

/// References and `allOf` that are followed.
const DEPTH: usize = 6;

/// All that an instance of a schema must fulfil at the same time, alternatives aside.
pub(super) struct View<'a> {
    pub(super) parts: Vec<&'a Map<String, Json>>,
    /// Nothing conforms.
    is_false: bool,
}

impl<'a> View<'a> {
    pub(super) fn of<'b: 'a>(document: &Document<'b>, schema: &'a Json) -> Self {
        let mut view = View {
            parts: Vec::new(),
            is_false: false,
        };
        view.add(document, schema, DEPTH);
        view
    }

    fn add<'b: 'a>(&mut self, document: &Document<'b>, schema: &'a Json, depth: usize) {
        match schema {
            Json::Bool(false) => self.is_false = true,
            Json::Object(fields) if depth > 0 => {
                match document.referred(fields) {
                    Some(Target::Found(target)) => self.add(document, target, depth - 1),
                    Some(Target::Nowhere) => self.is_false = true,
                    Some(Target::Metaschema) | None => (),
                }
                if fields.contains_key("$ref") && document.ignores_siblings() {
                    return;
                }
                self.parts.push(fields);
                if let Some(Json::Array(all)) = fields.get("allOf") {
                    for member in all {
                        self.add(document, member, depth - 1);
                    }
                }
            }
            _ => (),
        }
    }

    /// The types that an instance may have; `integer` counts as `number`.
    pub(super) fn types(&self) -> BTreeSet<&'static str> {
        let mut types: BTreeSet<_> = TYPES.into();
        for part in &self.parts {
            let own: Option<BTreeSet<_>> = match part.get("type") {
                Some(Json::String(name)) => Some([base_type(name)].into_iter().flatten().collect()),
                Some(Json::Array(names)) => {
                    let names = names.iter().filter_map(Json::as_str);
                    Some(names.filter_map(base_type).collect())
                }
                _ => None,
            };
            if let Some(own) = own {
                types.retain(|kind| own.contains(kind));
            }
            if let Some(values) = values_of(part) {
                types.retain(|kind| values.iter().any(|value| type_of(value) == *kind));
            }
        }
        types
    }

    /// The values that an instance may have, where they are listed.
    pub(super) fn values(&self) -> Option<Vec<&'a Json>> {
        let mut lists = self.parts.iter().filter_map(|part| values_of(part));
        let first = lists.next()?;
        Some(lists.fold(first, |common, list| {
            common
                .into_iter()
                .filter(|value| list.contains(value))
                .collect()
        }))
    }

    fn required(&self) -> BTreeSet<&'a str> {
        self.parts.iter().flat_map(|part| required(part)).collect()
    }

    /// What the property `name` must fulfil, as far as it is listed; `false` where it is excluded.
    fn property(&self, name: &str) -> Vec<&'a Json> {
        let of = |part: &&'a Map<String, Json>| {
            let listed = part.get("properties").and_then(|map| map.get(name));
            match listed {
                Some(schema) => Some(schema),
                None if part.contains_key("patternProperties") => None,
                None => part.get("additionalProperties"),
            }
        };
        self.parts.iter().filter_map(of).collect()
    }
}

/// Whether no instance can conform to both; false where that cannot be seen.
pub(super) fn disjoint(document: &Document<'_>, first: &Json, second: &Json) -> bool {
    apart(document, first, second, DEPTH)
}

fn apart(document: &Document<'_>, first: &Json, second: &Json, depth: usize) -> bool {
    if depth == 0 {
        return false;
    }
    let (one, two) = (View::of(document, first), View::of(document, second));
    if one.is_false || two.is_false {
        return true;
    }
    let (one_types, two_types) = (one.types(), two.types());
    if one_types.is_disjoint(&two_types) {
        return true;
    }
    if let (Some(one), Some(two)) = (one.values(), two.values()) {
        return !one.iter().any(|value| two.contains(value));
    }
    let is_object = |types: &BTreeSet<&str>| types.len() == 1 && types.contains("object");
    if is_object(&one_types) || is_object(&two_types) {
        let required: BTreeSet<&str> = one.required().union(&two.required()).copied().collect();
        let differs = |name: &&str| {
            let (ones, twos) = (one.property(name), two.property(name));
            let is_apart = |a: &&Json| twos.iter().any(|b| apart(document, a, b, depth - 1));
            ones.iter()
                .chain(&twos)
                .any(|schema| **schema == Json::Bool(false))
                || ones.iter().any(is_apart)
        };
        if required.iter().any(differs) {
            return true;
        }
    }
    let splits = |view: &View<'_>, other: &Json| {
        view.parts.iter().any(|part| {
            let options = part.get("anyOf").or_else(|| part.get("oneOf"));
            options.and_then(Json::as_array).is_some_and(|options| {
                options.len() <= 16
                    && options
                        .iter()
                        .all(|option| apart(document, option, other, depth - 1))
            })
        })
    };
    splits(&one, second) || splits(&two, first)
}

/// The values of `const` or `enum`.
pub(super) fn values_of(fields: &Map<String, Json>) -> Option<Vec<&Json>> {
    match (fields.get("const"), fields.get("enum")) {
        (Some(value), _) => Some(vec![value]),
        (None, Some(Json::Array(values))) => Some(values.iter().collect()),
        _ => None,
    }
}

pub(super) fn required(fields: &Map<String, Json>) -> impl Iterator<Item = &str> {
    let names = fields.get("required").and_then(Json::as_array);
    names.into_iter().flatten().filter_map(Json::as_str)
}

/// `integer` is a `number`; none for what is no type.
pub(super) fn base_type(name: &str) -> Option<&'static str> {
    let name = if name == "integer" { "number" } else { name };
    TYPES.into_iter().find(|kind| *kind == name)
}

pub(super) fn type_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}

pub(super) fn types() -> [&'static str; 6] {
    TYPES
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_apart_is_seen_and_nothing_else() {
        let root = json!({"$defs": {"text": {"type": "string"}}});
        let document = Document::new(&root);
        let kind = |name: &str| json!({"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]});
        for (first, second, expected) in [
            (
                json!({"type": "integer"}),
                json!({"type": ["string", "null"]}),
                true,
            ),
            (json!({"type": "integer"}), json!({"type": "number"}), false),
            (
                json!({"$ref": "#/$defs/text"}),
                json!({"type": "object"}),
                true,
            ),
            (kind("a"), kind("b"), true),
            (kind("a"), kind("a"), false),
            (
                json!({"required": ["a"]}),
                json!({"required": ["b"]}),
                false,
            ),
            (
                json!({"type": "object", "required": ["a"]}),
                json!({"type": "object", "properties": {"b": {}}, "additionalProperties": false}),
                true,
            ),
            (json!({"enum": ["a", 1]}), json!({"enum": ["b", 2]}), true),
            (
                json!({"anyOf": [{"type": "null"}, {"type": "array"}]}),
                json!({"type": "string"}),
                true,
            ),
            (
                json!({"anyOf": [{"type": "null"}, {}]}),
                json!({"type": "string"}),
                false,
            ),
        ] {
            assert_eq!(
                disjoint(&document, &first, &second),
                expected,
                "{first} {second}"
            );
            assert_eq!(
                disjoint(&document, &second, &first),
                expected,
                "{second} {first}"
            );
        }
    }
}
