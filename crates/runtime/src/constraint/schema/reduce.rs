//! A schema rewritten in the keywords that the grammar engine knows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value as Json, json};

use super::compare::{View, disjoint, required};
use super::document::{Document, Target};
use super::negate::negate;
use super::parts::{Condition, Names};
use super::pattern::portable;

/// Subschemas of the result at most.
const MOST_NODES: usize = 60_000;

/// Characters of a string at most where a schema allows more: expressions with large counts are what the engine has no room for.
const MOST_CHARACTERS: u64 = 2000;

/// The largest integer up to which binary64 knows all.
const MOST_INTEGER: i64 = (1 << 53) - 1;

/// Alternatives that exclude each other one by one; beyond them, they do not.
const MOST_EXCLUDED: usize = 12;

/// Properties of which one is picked at most.
const MOST_PICKED: usize = 32;

/// References that a negation follows.
const NEGATED_DEPTH: usize = 8;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Manner {
    /// All that can be.
    Whole,
    /// No patterns, where the engine has no room for them or does not understand them.
    WithoutPatterns,
}

/// A schema that the engine takes.
pub(in super::super) struct Reduced {
    pub(in super::super) schema: Json,
    /// Keywords that ask for more than the schema says, in order; where there are none, what conforms to it conforms to the
    /// original.
    pub(in super::super) left_out: Vec<&'static str>,
    /// What the schema refers to out of itself, the first.
    pub(in super::super) dangling: Option<String>,
}

/// Rewrites `root`; what nothing refers to is dropped.
///
/// # Errors
/// When the result would be too large.
pub(in super::super) fn reduce(root: &Json, manner: Manner) -> Result<Reduced, String> {
    let mut reducer = Reducer {
        document: Document::new(root),
        manner,
        left_out: BTreeSet::new(),
        definitions: HashMap::new(),
        open: Vec::new(),
        nodes: 0,
        dangling: None,
    };
    let mut schema = reducer.schema(root);
    let mut definitions = Map::new();
    while let Some((name, target)) = reducer.open.pop() {
        definitions.insert(name, reducer.schema(target));
    }
    if reducer.nodes > MOST_NODES {
        return Err(format!("it has more than {MOST_NODES} parts"));
    }
    if let Json::Object(fields) = &mut schema {
        let is_of_objects = fields.contains_key("properties") || fields.contains_key("required");
        if is_of_objects && !["type", "$ref"].iter().any(|key| fields.contains_key(*key)) {
            fields.insert("type".into(), "object".into());
        }
        if !definitions.is_empty() {
            fields.insert("$defs".into(), definitions.into());
        }
    }
    Ok(Reduced {
        schema,
        left_out: reducer.left_out.into_iter().collect(),
        dangling: reducer.dangling,
    })
}

struct Reducer<'a> {
    document: Document<'a>,
    manner: Manner,
    left_out: BTreeSet<&'static str>,
    /// Names of what is referred to, by its place in memory.
    definitions: HashMap<*const Json, String>,
    /// What is referred to and not yet rewritten.
    open: Vec<(String, &'a Json)>,
    nodes: usize,
    dangling: Option<String>,
}

impl<'a> Reducer<'a> {
    fn schema(&mut self, schema: &Json) -> Json {
        let Json::Object(fields) = schema else {
            return schema.clone();
        };
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            return Json::Bool(true);
        }
        let mut rewritten = Rewritten::default();
        if let Some(target) = self.document.referred(fields) {
            if matches!(target, Target::Nowhere) && self.dangling.is_none() {
                self.dangling = fields.get("$ref").map(Json::to_string);
            }
            let reference = self.reference(target);
            if self.document.ignores_siblings() || !has_siblings(fields) {
                return reference;
            }
            match reference {
                Json::Object(reference) => rewritten.fields.extend(reference),
                other => rewritten.more.push(other),
            }
        }
        for (key, value) in fields {
            self.keyword(key, value, fields, &mut rewritten);
        }
        rewritten.bound_integers();
        rewritten.whole()
    }

    fn list(&mut self, members: &[Json]) -> Vec<Json> {
        members.iter().map(|member| self.schema(member)).collect()
    }

    fn reference(&mut self, target: Target<'a>) -> Json {
        match target {
            Target::Nowhere => Json::Bool(false),
            // The empty schema conforms to the schema of schemas.
            Target::Metaschema => json!({"type": "object", "maxProperties": 0}),
            Target::Found(place) => {
                let next = format!("d{}", self.definitions.len());
                let address: *const Json = place;
                let is_new = !self.definitions.contains_key(&address);
                let name = self.definitions.entry(address).or_insert(next).clone();
                let reference = json!({"$ref": format!("#/$defs/{name}")});
                if is_new {
                    self.open.push((name, place));
                }
                reference
            }
        }
    }

    fn keyword(&mut self, key: &str, value: &Json, fields: &Map<String, Json>, to: &mut Rewritten) {
        match (key, value) {
            (
                "type" | "const" | "enum" | "minimum" | "maximum" | "exclusiveMinimum"
                | "exclusiveMaximum" | "multipleOf",
                _,
            ) => {
                to.fields.insert(key.into(), value.clone());
            }
            ("minLength" | "minItems" | "maxItems", _) => {
                if let Some(count) = count(value) {
                    to.fields.insert(key.into(), count.into());
                }
            }
            ("maxLength", _) => {
                let least = fields.get("minLength").and_then(count).unwrap_or(0);
                if let Some(most) = count(value) {
                    to.fields
                        .insert(key.into(), most.min(MOST_CHARACTERS.max(least)).into());
                }
            }
            ("pattern", Json::String(pattern)) => self.pattern(pattern, to),
            ("format", Json::String(format)) => to.format(format),
            ("properties", Json::Object(map)) => {
                let map = map
                    .iter()
                    .map(|(name, schema)| (name.clone(), self.schema(schema)));
                let map: Map<String, Json> = map.collect();
                to.fields.insert(key.into(), map.into());
            }
            ("patternProperties", Json::Object(map)) => self.pattern_properties(map, fields, to),
            ("additionalProperties", Json::Object(_) | Json::Bool(_)) => {
                let schema = self.schema(value);
                to.fields.entry(key).or_insert(schema);
            }
            ("items", Json::Object(_) | Json::Bool(_))
            | ("additionalItems", Json::Object(_) | Json::Bool(_)) => {
                let schema = self.schema(value);
                to.fields.insert(key.into(), schema);
            }
            ("items" | "prefixItems" | "anyOf", Json::Array(members)) => {
                let members = self.list(members);
                to.fields.insert(key.into(), members.into());
            }
            ("allOf", Json::Array(members)) => {
                let members = self.all_of(members);
                to.more.extend(members);
            }
            ("required", Json::Array(_)) => {
                let names: Vec<&str> = required(fields).collect();
                to.fields.insert(key.into(), json!(names));
            }
            ("oneOf", Json::Array(members)) => {
                let members = self.one_of(members);
                to.more.push(json!({"anyOf": members}));
            }
            ("not", _) => match negate(&self.document, value, NEGATED_DEPTH) {
                Some(other) if !disjoint(&self.document, &own(fields), &other) => {
                    let other = self.schema(&other);
                    to.more.push(other);
                }
                _ => self.leave_out("not"),
            },
            ("if", _) => {
                let choice = self.conditional(value, fields.get("then"), fields.get("else"));
                to.more.extend(choice);
            }
            ("dependencies" | "dependentRequired" | "dependentSchemas", Json::Object(map)) => {
                for (name, needed) in map {
                    let needed = match needed {
                        Json::Array(names) => json!({"required": names}),
                        schema => self.schema(schema),
                    };
                    to.more
                        .push(json!({"anyOf": [{"properties": {name: false}}, needed]}));
                }
            }
            ("propertyNames", _) => self.property_names(value, to),
            ("uniqueItems", Json::Bool(true)) => self.unique_items(fields, to),
            ("contains", _) => self.contains(value, fields, to),
            ("minProperties", _) => self.min_properties(count(value).unwrap_or(0), fields, to),
            ("maxProperties", _) => self.max_properties(count(value), fields, to),
            ("unevaluatedProperties", _) => self.unevaluated_properties(value, fields, to),
            ("unevaluatedItems", Json::Bool(true)) => (),
            ("unevaluatedItems", Json::Bool(false)) if !fields.contains_key("items") => {
                to.fields.insert("items".into(), false.into());
                if ["allOf", "anyOf", "oneOf", "if", "$ref"]
                    .iter()
                    .any(|key| fields.contains_key(*key))
                {
                    self.leave_out("unevaluatedItems");
                }
            }
            ("unevaluatedItems", _) => self.leave_out("unevaluatedItems"),
            // What it says is no schema is for the engine to refuse.
            (
                "properties" | "patternProperties" | "items" | "allOf" | "anyOf" | "oneOf"
                | "pattern",
                _,
            ) => {
                to.fields.insert(key.into(), value.clone());
            }
            // Annotations, and what nobody knows.
            _ => (),
        }
    }

    fn leave_out(&mut self, keyword: &'static str) {
        self.left_out.insert(keyword);
    }

    fn pattern(&mut self, pattern: &str, to: &mut Rewritten) {
        let (pattern, has_lost) = portable(pattern);
        if has_lost || self.manner == Manner::WithoutPatterns {
            self.leave_out("pattern");
        }
        if self.manner == Manner::Whole {
            to.fields.insert("pattern".into(), pattern.into());
        }
    }

    fn pattern_properties(
        &mut self,
        map: &Map<String, Json>,
        fields: &Map<String, Json>,
        to: &mut Rewritten,
    ) {
        if self.manner == Manner::WithoutPatterns {
            self.leave_out("patternProperties");
            let is_closed = fields.get("additionalProperties") == Some(&Json::Bool(false));
            // Names of the patterns are not made, where they need not be.
            if !is_closed {
                let listed = fields.contains_key("properties");
                to.fields
                    .insert("additionalProperties".into(), (!listed).into());
            }
            return;
        }
        let mut patterns = Map::new();
        for (pattern, schema) in map {
            let (pattern, has_lost) = portable(pattern);
            if has_lost {
                self.leave_out("patternProperties");
            }
            let schema = self.schema(schema);
            patterns.insert(pattern, schema);
        }
        to.fields
            .insert("patternProperties".into(), patterns.into());
    }

    /// Alternatives of which exactly one may hold.
    fn one_of(&mut self, members: &[Json]) -> Vec<Json> {
        let mut alternatives = Vec::new();
        for (index, member) in members.iter().enumerate() {
            let mut all = vec![self.schema(member)];
            for (other_index, other) in members.iter().enumerate() {
                if index == other_index || disjoint(&self.document, member, other) {
                    continue;
                }
                let negated = match members.len() {
                    0..=MOST_EXCLUDED => negate(&self.document, other, NEGATED_DEPTH),
                    _ => None,
                };
                // What excludes all of the member is no help.
                let negated = negated.filter(|negated| !disjoint(&self.document, member, negated));
                match negated {
                    Some(negated) => all.push(self.schema(&negated)),
                    None => self.leave_out("oneOf"),
                }
            }
            alternatives.push(joined(all));
        }
        alternatives
    }

    /// All members, those together that ask for something where one property has a certain value.
    fn all_of(&mut self, members: &[Json]) -> Vec<Json> {
        let mut by_property: BTreeMap<&str, Vec<Condition<'_>>> = BTreeMap::new();
        for member in members {
            if let Some(condition) = Condition::of(member) {
                by_property
                    .entry(condition.property)
                    .or_default()
                    .push(condition);
            }
        }
        by_property.retain(|_, conditions| conditions.len() > 1);
        let is_grouped = |member: &Json| {
            Condition::of(member)
                .is_some_and(|condition| by_property.contains_key(condition.property))
        };
        let rest: Vec<&Json> = members
            .iter()
            .filter(|member| !is_grouped(member))
            .collect();
        let mut all: Vec<Json> = rest.into_iter().map(|member| self.schema(member)).collect();
        for (property, conditions) in &by_property {
            all.push(self.by_value(property, conditions));
        }
        all
    }

    /// What conditions on one property come to, value by value.
    fn by_value(&mut self, property: &str, conditions: &[Condition<'_>]) -> Json {
        let mut values: Vec<&Json> = Vec::new();
        for value in conditions.iter().flat_map(|condition| &condition.values) {
            if !values.contains(value) {
                values.push(value);
            }
        }
        let mut ways = Vec::new();
        for value in &values {
            let mut all = vec![
                json!({"type": "object", "properties": {property: {"const": value}}, "required": [property]}),
            ];
            for condition in conditions
                .iter()
                .filter(|condition| condition.values.contains(value))
            {
                all.push(self.schema(condition.then));
            }
            ways.push(joined(all));
        }
        let others = json!({"enum": values});
        if let Some(other) = negate(&self.document, &others, NEGATED_DEPTH) {
            ways.push(
                json!({"type": "object", "properties": {property: other}, "required": [property]}),
            );
        }
        if conditions.iter().all(|condition| condition.is_required) {
            ways.push(json!({"type": "object", "properties": {property: false}}));
        }
        json!({"anyOf": ways})
    }

    fn conditional(
        &mut self,
        condition: &Json,
        then: Option<&Json>,
        otherwise: Option<&Json>,
    ) -> Option<Json> {
        if then.is_none() && otherwise.is_none() {
            return None;
        }
        let everything = Json::Bool(true);
        let (then, otherwise) = (
            then.unwrap_or(&everything),
            otherwise.unwrap_or(&everything),
        );
        let fulfilled = joined(vec![self.schema(condition), self.schema(then)]);
        let mut other = vec![self.schema(otherwise)];
        match negate(&self.document, condition, NEGATED_DEPTH) {
            Some(negated) => other.push(self.schema(&negated)),
            None => self.leave_out("if"),
        }
        Some(json!({"anyOf": [fulfilled, joined(other)]}))
    }

    fn property_names(&mut self, names: &Json, to: &mut Rewritten) {
        let view = View::of(&self.document, names);
        let texts = view.values().map(|values| {
            values
                .into_iter()
                .filter_map(Json::as_str)
                .collect::<Vec<_>>()
        });
        let closed = match texts {
            Some(texts) => {
                let listed: Map<String, Json> = texts
                    .into_iter()
                    .map(|name| (name.to_owned(), true.into()))
                    .collect();
                json!({"properties": listed, "additionalProperties": false})
            }
            None => {
                let mut patterns = Vec::new();
                for part in &view.parts {
                    for (key, value) in *part {
                        match (key.as_str(), value) {
                            ("pattern", Json::String(pattern)) => patterns.push(pattern.clone()),
                            ("minLength", least) => patterns
                                .push(format!("^[\\s\\S]{{{},}}$", count(least).unwrap_or(0))),
                            ("maxLength", most) => patterns.push(format!(
                                "^[\\s\\S]{{0,{}}}$",
                                count(most).unwrap_or(0).min(MOST_CHARACTERS)
                            )),
                            (
                                "type" | "$ref" | "allOf" | "description" | "title" | "$comment"
                                | "$id" | "$schema" | "examples" | "default",
                                _,
                            ) => (),
                            _ => self.left_out.extend(["propertyNames"]),
                        }
                    }
                }
                let Some(first) = patterns.pop() else {
                    return;
                };
                let (first, has_lost) = portable(&first);
                if has_lost || !patterns.is_empty() || self.manner == Manner::WithoutPatterns {
                    self.leave_out("propertyNames");
                }
                if self.manner == Manner::WithoutPatterns {
                    return;
                }
                json!({"patternProperties": {first: true}, "additionalProperties": false})
            }
        };
        to.more.push(closed);
    }

    fn unique_items(&mut self, fields: &Map<String, Json>, to: &mut Rewritten) {
        let most = fields.get("maxItems").and_then(count);
        if most.is_some_and(|most| most <= 1) {
            return;
        }
        self.leave_out("uniqueItems");
        let items = fields.get("items").filter(|items| items.is_object());
        let values = items
            .and_then(|items| View::of(&self.document, items).values())
            .map(|values| values.len() as u64);
        if let Some(values) = values {
            to.more.push(json!({"maxItems": values}));
        }
    }

    fn contains(&mut self, wanted: &Json, fields: &Map<String, Json>, to: &mut Rewritten) {
        let least = fields
            .get("minContains")
            .map_or(Some(1), count)
            .unwrap_or(1);
        if fields.contains_key("maxContains") {
            self.leave_out("maxContains");
        }
        let is_simple =
            !fields.contains_key("prefixItems") && !fields.get("items").is_some_and(Json::is_array);
        if least == 0 {
            return;
        }
        if !is_simple || least > 16 {
            self.leave_out("contains");
            return;
        }
        let wanted = self.schema(wanted);
        let items = fields
            .get("items")
            .map_or(Json::Bool(true), |items| self.schema(items));
        let first = vec![wanted; least as usize];
        to.more
            .push(json!({"minItems": least, "items": first, "additionalItems": items}));
    }

    fn min_properties(&mut self, least: u64, fields: &Map<String, Json>, to: &mut Rewritten) {
        let needed: BTreeSet<&str> = required(fields).collect();
        let missing = (least as usize).saturating_sub(needed.len());
        let optional = optional(fields, &needed);
        match (missing, optional.len()) {
            (0, _) => (),
            (_, 0) => {
                to.fields.insert("minProperties".into(), least.into());
            }
            (1, _) => {
                let ways: Vec<Json> = optional
                    .iter()
                    .take(MOST_PICKED)
                    .map(|name| json!({"required": [name]}))
                    .collect();
                to.more.push(json!({"anyOf": ways}));
            }
            (missing, listed) => {
                let picked: Vec<&str> = optional.into_iter().take(missing).collect();
                to.more.push(json!({"required": picked}));
                if listed < missing {
                    self.leave_out("minProperties");
                }
            }
        }
    }

    fn max_properties(
        &mut self,
        most: Option<u64>,
        fields: &Map<String, Json>,
        to: &mut Rewritten,
    ) {
        let Some(most) = most else {
            return;
        };
        let needed: BTreeSet<&str> = required(fields).collect();
        let optional = optional(fields, &needed);
        if optional.is_empty() {
            to.fields.insert("maxProperties".into(), most.into());
            return;
        }
        let room = (most as usize).saturating_sub(needed.len());
        let is_closed = fields.get("additionalProperties") == Some(&Json::Bool(false));
        if room >= optional.len() && is_closed && !fields.contains_key("patternProperties") {
            return;
        }
        match room {
            0 => to.more.push(json!({"maxProperties": most})),
            1 if optional.len() <= MOST_PICKED => {
                let ways: Vec<Json> = optional
                    .iter()
                    .map(|name| only(fields, &needed, &[name]))
                    .collect();
                to.more.push(json!({"anyOf": ways}));
            }
            room => {
                let picked: Vec<&str> = optional.iter().copied().take(room).collect();
                to.more.push(only(fields, &needed, &picked));
            }
        }
    }

    fn unevaluated_properties(
        &mut self,
        value: &Json,
        fields: &Map<String, Json>,
        to: &mut Rewritten,
    ) {
        if *value == Json::Bool(true) {
            return;
        }
        if *value != Json::Bool(false) {
            self.leave_out("unevaluatedProperties");
            return;
        }
        let mut names = Names::default();
        names.add(&self.document, fields, 6);
        if names.is_open {
            self.leave_out("unevaluatedProperties");
            return;
        }
        if names.is_uncertain {
            self.leave_out("unevaluatedProperties");
        }
        let every = |names: BTreeSet<String>| -> Map<String, Json> {
            names.into_iter().map(|name| (name, true.into())).collect()
        };
        let patterns = names
            .patterns
            .into_iter()
            .map(|pattern| portable(&pattern).0)
            .collect();
        to.more.push(json!({"properties": every(names.listed), "patternProperties": every(patterns), "additionalProperties": false}));
    }
}

/// What a schema becomes: keywords, and what must be fulfilled besides.
#[derive(Default)]
struct Rewritten {
    fields: Map<String, Json>,
    more: Vec<Json>,
}

impl Rewritten {
    fn whole(mut self) -> Json {
        self.more.retain(|schema| *schema != Json::Bool(true));
        if !self.more.is_empty() {
            self.fields.insert("allOf".into(), self.more.into());
        }
        Json::Object(self.fields)
    }

    /// Integers that every reader of JSON takes for integers.
    fn bound_integers(&mut self) {
        let has = |kind: &str| match self.fields.get("type") {
            Some(Json::String(name)) => name == kind,
            Some(Json::Array(names)) => names.iter().any(|name| name == kind),
            _ => false,
        };
        if !has("integer") || has("number") {
            return;
        }
        for (key, strict, bound) in [
            ("minimum", "exclusiveMinimum", -MOST_INTEGER),
            ("maximum", "exclusiveMaximum", MOST_INTEGER),
        ] {
            if !self.fields.contains_key(key) && !self.fields.contains_key(strict) {
                self.fields.insert(key.into(), bound.into());
            }
        }
    }

    /// Formats that the engine does not know are narrowed to what it does, or are annotations.
    fn format(&mut self, format: &str) {
        let pattern = match format {
            "date-time" | "time" | "date" | "duration" | "email" | "hostname" | "ipv4" | "ipv6"
            | "uuid" | "uri" => {
                self.fields.insert("format".into(), format.into());
                return;
            }
            "iri" => return self.format("uri"),
            "idn-email" => return self.format("email"),
            "idn-hostname" => return self.format("hostname"),
            "uri-reference" | "iri-reference" | "uri-template" => "^[a-zA-Z0-9/._~-]*$",
            "json-pointer" => "^(/[a-zA-Z0-9_-]+)*$",
            "relative-json-pointer" => "^(0|[1-9][0-9]{0,3})(/[a-zA-Z0-9_-]+)*$",
            "regex" => "^[a-zA-Z0-9_ ]*$",
            _ => return,
        };
        self.more.push(json!({"pattern": pattern}));
    }
}

/// A schema of objects that have no properties but `needed` and `picked`.
fn only(fields: &Map<String, Json>, needed: &BTreeSet<&str>, picked: &[&str]) -> Json {
    let listed = fields.get("properties").and_then(Json::as_object);
    let mut properties: Map<String, Json> = needed
        .iter()
        .chain(picked)
        .map(|name| ((*name).to_owned(), true.into()))
        .collect();
    for name in listed.into_iter().flat_map(Map::keys) {
        properties.entry(name.clone()).or_insert(false.into());
    }
    json!({"properties": properties, "additionalProperties": false})
}

/// Listed properties that are neither needed nor excluded.
fn optional<'f>(fields: &'f Map<String, Json>, needed: &BTreeSet<&str>) -> Vec<&'f str> {
    let listed = fields.get("properties").and_then(Json::as_object);
    let listed = listed.into_iter().flatten();
    listed
        .filter(|(name, schema)| !needed.contains(name.as_str()) && **schema != Json::Bool(false))
        .map(|(name, _)| name.as_str())
        .collect()
}

/// What a schema says besides `not`.
fn own(fields: &Map<String, Json>) -> Json {
    let own = fields.iter().filter(|(key, _)| *key != "not");
    Json::Object(
        own.map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    )
}

fn joined(mut all: Vec<Json>) -> Json {
    all.retain(|schema| *schema != Json::Bool(true));
    match all.len() {
        0 => Json::Bool(true),
        1 => all.remove(0),
        _ => json!({"allOf": all}),
    }
}

/// A whole number, however it is written.
fn count(value: &Json) -> Option<u64> {
    let whole = |number: f64| (number >= 0.0 && number.fract() == 0.0).then_some(number as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(whole))
}

fn has_siblings(fields: &Map<String, Json>) -> bool {
    fields.keys().any(|key| {
        !matches!(
            key.as_str(),
            "$ref"
                | "$dynamicRef"
                | "$recursiveRef"
                | "description"
                | "title"
                | "$comment"
                | "default"
                | "examples"
                | "deprecated"
                | "readOnly"
                | "writeOnly"
                | "$defs"
                | "definitions"
                | "$id"
                | "id"
                | "$schema"
        )
    })
}
