//! What parts of a schema say together: conditions on the value of a property, and the properties that they name.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::compare::{required, values_of};
use super::document::{Document, Target};

/// A member of `allOf` that asks for something where a property has one of some values.
pub(super) struct Condition<'a> {
    pub(super) property: &'a str,
    pub(super) values: Vec<&'a Json>,
    /// Whether it is met only where the property is there.
    pub(super) is_required: bool,
    pub(super) then: &'a Json,
}

impl<'a> Condition<'a> {
    /// The condition that a member is, if it is one.
    pub(super) fn of(member: &'a Json) -> Option<Self> {
        let fields = member.as_object()?;
        let is_known = |key: &String| {
            matches!(
                key.as_str(),
                "if" | "then" | "$comment" | "description" | "title"
            )
        };
        if !fields.keys().all(is_known) {
            return None;
        }
        let condition = fields.get("if")?.as_object()?;
        if !condition
            .keys()
            .all(|key| matches!(key.as_str(), "properties" | "required" | "type"))
        {
            return None;
        }
        let properties = condition.get("properties")?.as_object()?;
        let (property, asked) = properties.iter().next().filter(|_| properties.len() == 1)?;
        let asked = asked.as_object()?;
        let names: Vec<&str> = required(condition).collect();
        if names.iter().any(|name| name != property) {
            return None;
        }
        Some(Condition {
            property,
            values: values_of(asked)?,
            is_required: !names.is_empty(),
            then: fields.get("then")?,
        })
    }
}

/// The properties that parts of a schema speak of.
#[derive(Default)]
pub(super) struct Names {
    pub(super) listed: BTreeSet<String>,
    pub(super) patterns: BTreeSet<String>,
    /// Others may come.
    pub(super) is_open: bool,
    /// Not all of the parts need hold.
    pub(super) is_uncertain: bool,
}

impl Names {
    /// Adds those of one part, down to `depth` parts within parts.
    pub(super) fn add(
        &mut self,
        document: &Document<'_>,
        fields: &Map<String, Json>,
        depth: usize,
    ) {
        if depth == 0 {
            self.is_uncertain = true;
            return;
        }
        if let Some(Target::Found(Json::Object(target))) = document.referred(fields) {
            self.add(document, target, depth - 1);
        }
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("properties", Json::Object(map)) => self.listed.extend(map.keys().cloned()),
                ("patternProperties", Json::Object(map)) => {
                    self.patterns.extend(map.keys().cloned())
                }
                ("additionalProperties", Json::Bool(false)) => (),
                ("additionalProperties", _) => self.is_open = true,
                ("allOf" | "anyOf" | "oneOf", Json::Array(members)) => {
                    self.is_uncertain |= key != "allOf";
                    for member in members.iter().filter_map(Json::as_object) {
                        self.add(document, member, depth - 1);
                    }
                }
                ("if" | "then" | "else", Json::Object(part)) => {
                    self.is_uncertain = true;
                    self.add(document, part, depth - 1);
                }
                ("dependentSchemas", Json::Object(map)) => {
                    self.is_uncertain = true;
                    for part in map.values().filter_map(Json::as_object) {
                        self.add(document, part, depth - 1);
                    }
                }
                _ => (),
            }
        }
    }
}
