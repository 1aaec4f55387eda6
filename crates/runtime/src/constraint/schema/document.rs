//! One schema document and where its references lead.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::super::recursion::is_data;
use super::pattern::portable;

/// A schema with all that its references may name.
pub(in super::super) struct Document<'a> {
    root: &'a Json,
    /// Places with an identifier.
    named: HashMap<&'a str, &'a Json>,
    /// Places with an anchor.
    anchors: HashMap<&'a str, &'a Json>,
    /// Whether the schema declares a draft in which what stands beside `$ref` means nothing.
    ignores_siblings: bool,
}

/// Where a reference leads.
#[derive(Clone, Copy)]
pub(in super::super) enum Target<'a> {
    Found(&'a Json),
    /// The schema of schemas.
    Metaschema,
    /// Out of the document, or to nothing.
    Nowhere,
}

impl<'a> Document<'a> {
    pub(in super::super) fn new(root: &'a Json) -> Self {
        let (mut named, mut anchors) = (HashMap::new(), HashMap::new());
        note_names(root, &mut named, &mut anchors);
        let draft = root.get("$schema").and_then(Json::as_str).unwrap_or("");
        Document {
            root,
            named,
            anchors,
            ignores_siblings: ["draft-03", "draft-04", "draft-06", "draft-07"]
                .iter()
                .any(|old| draft.contains(old)),
        }
    }

    /// What a schema refers to, whatever keyword says so.
    pub(super) fn referred(&self, fields: &Map<String, Json>) -> Option<Target<'a>> {
        let reference = ["$ref", "$dynamicRef", "$recursiveRef"]
            .iter()
            .find_map(|key| fields.get(*key)?.as_str())?;
        Some(self.target(reference))
    }

    /// Whether only the reference counts, of a schema that has one.
    pub(super) fn ignores_siblings(&self) -> bool {
        self.ignores_siblings
    }

    pub(super) fn target(&self, reference: &str) -> Target<'a> {
        if let Some(found) = self.named.get(reference) {
            return Target::Found(found);
        }
        let (document, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        if document.contains("json-schema.org/") {
            return Target::Metaschema;
        }
        let Some(base) = self.base(document) else {
            return Target::Nowhere;
        };
        if fragment.is_empty() || fragment == "/" {
            return Target::Found(base);
        }
        let found = match fragment.strip_prefix('/') {
            Some(_) => base
                .pointer(&percent_decoded(fragment))
                .or_else(|| base.pointer(fragment)),
            None => self.anchors.get(fragment).copied(),
        };
        found.map_or(Target::Nowhere, Target::Found)
    }

    /// The document or part with this identifier, given whole or from its last `/` on.
    fn base(&self, identifier: &str) -> Option<&'a Json> {
        if identifier.is_empty() {
            return Some(self.root);
        }
        let is_it = |name: &str| {
            let name = name.trim_end_matches('#');
            let name = name.strip_prefix("./").unwrap_or(name);
            let wanted = identifier.trim_start_matches("./");
            let end = name.strip_suffix(wanted);
            end.is_some_and(|rest| {
                rest.is_empty() || rest.ends_with('/') || wanted.starts_with('/')
            })
        };
        if let Some(found) = self.named.get(identifier) {
            return Some(found);
        }
        let mut found: Vec<_> = self.named.iter().filter(|(name, _)| is_it(name)).collect();
        found.sort_by_key(|(name, _)| name.len());
        found.first().map(|(_, place)| **place)
    }
}

/// `schema` for a validator that knows only what is in it: what refers out of it conforms to nothing, references are written as
/// identifiers of resources are, and the draft by its own name; with `portable_patterns`, patterns are in the syntax of Rust, as far
/// as that goes.
pub fn self_contained(schema: &Json, portable_patterns: bool) -> Json {
    let document = Document::new(schema);
    let mut copied = copy(&document, schema, portable_patterns);
    if let Json::Object(fields) = &mut copied
        && let Some(Json::String(draft)) = fields.shift_remove("$schema")
        && let Some((_, name)) = DRAFTS.iter().find(|(mark, _)| draft.contains(mark))
    {
        fields.insert("$schema".into(), (*name).into());
    }
    copied
}

/// Names of the drafts, by what is in all the ways to write them.
const DRAFTS: [(&str, &str); 6] = [
    ("draft-03", "http://json-schema.org/draft-04/schema#"),
    ("draft-04", "http://json-schema.org/draft-04/schema#"),
    ("draft-06", "http://json-schema.org/draft-06/schema#"),
    ("draft-07", "http://json-schema.org/draft-07/schema#"),
    ("2019-09", "https://json-schema.org/draft/2019-09/schema"),
    ("2020-12", "https://json-schema.org/draft/2020-12/schema"),
];

fn copy(document: &Document<'_>, place: &Json, portable_patterns: bool) -> Json {
    let fields = match place {
        Json::Object(fields) => fields,
        Json::Array(items) => {
            let items = items.iter();
            return items
                .map(|item| copy(document, item, portable_patterns))
                .collect();
        }
        other => return other.clone(),
    };
    let is_reference = fields.get("$ref").is_some_and(Json::is_string);
    if is_reference && matches!(document.referred(fields), Some(Target::Nowhere)) {
        return json!({"not": {}});
    }
    let field = |(key, value): (&String, &Json)| {
        let value = match (key.as_str(), value) {
            (key, value) if is_data(key) => value.clone(),
            ("$ref", Json::String(reference)) => percent_encoded(reference).into(),
            ("pattern", Json::String(pattern)) if portable_patterns => portable(pattern).0.into(),
            ("patternProperties", Json::Object(map)) if portable_patterns => {
                let map = map.iter().map(|(pattern, schema)| {
                    let schema = copy(document, schema, portable_patterns);
                    (portable(pattern).0, schema)
                });
                Json::Object(map.collect())
            }
            (_, value) => copy(document, value, portable_patterns),
        };
        (key.clone(), value)
    };
    Json::Object(fields.iter().map(field).collect())
}

fn percent_encoded(reference: &str) -> String {
    let mut encoded = String::with_capacity(reference.len());
    for character in reference.chars() {
        match character {
            '<' | '>' | '{' | '}' | '|' | '\\' | '^' | '`' | '"' | ' ' | '[' | ']' => {
                encoded.push_str(&format!("%{:02X}", character as u32));
            }
            other => encoded.push(other),
        }
    }
    encoded
}

fn note_names<'a>(
    place: &'a Json,
    named: &mut HashMap<&'a str, &'a Json>,
    anchors: &mut HashMap<&'a str, &'a Json>,
) {
    match place {
        Json::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Json::String(name) if matches!(key.as_str(), "$id" | "id") => {
                        named.entry(name).or_insert(place);
                    }
                    Json::String(name) if matches!(key.as_str(), "$anchor" | "$dynamicAnchor") => {
                        anchors.entry(name).or_insert(place);
                    }
                    Json::String(_) => (),
                    value if !is_data(key) => note_names(value, named, anchors),
                    _ => (),
                }
            }
        }
        Json::Array(items) => items
            .iter()
            .for_each(|item| note_names(item, named, anchors)),
        _ => (),
    }
}

/// `text` without percent escapes; as it is where that is no text.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, code) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_in_every_form() {
        let schema = json!({"$id": "https://example.org/a/tree.json", "definitions": {"a/b": {"const": 1}, "c d": {"const": 2},
            "named": {"$id": "#here", "const": 3}, "other": {"$id": "https://example.org/a/other.json", "$defs": {"x": {"const": 4}}}}});
        let document = Document::new(&schema);
        let leads = |reference: &str| match document.target(reference) {
            Target::Found(found) => found["const"].as_u64(),
            Target::Metaschema => Some(100),
            Target::Nowhere => Some(200),
        };
        assert_eq!(leads("#/definitions/a~1b"), Some(1));
        assert_eq!(leads("#/definitions/c%20d"), Some(2));
        assert_eq!(leads("#here"), Some(3));
        assert_eq!(leads("tree.json#/definitions/a~1b"), Some(1));
        assert_eq!(leads("other.json#/$defs/x"), Some(4));
        assert_eq!(leads("https://example.org/a/tree.json#"), None);
        assert_eq!(leads("http://json-schema.org/draft-07/schema#"), Some(100));
        assert_eq!(leads("https://example.org/elsewhere.json"), Some(200));
        assert_eq!(leads("#/definitions/nothing"), Some(200));
    }
}
