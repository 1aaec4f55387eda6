//! Instances of a schema, made without a model.
//!
//! Each try walks the schema once and decides where there is a choice, the first time for what is least, later at random; whether
//! the result conforms is for the caller to judge. It needs no grammar, so it is not bounded by what a grammar engine can hold.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::compare::{base_type, required, type_of, values_of};
use super::document::{Document, Target};
use super::pattern::{portable, whole};

/// Subschemas that one try looks at, and their nesting.
const MOST_STEPS: usize = 20_000;
const MOST_DEPTH: usize = 48;

/// Items of an array at most.
const MOST_ITEMS: usize = 256;

/// An instance, and a schema of what is like it: the same properties, items and choices, with other texts and numbers.
pub(in super::super) struct Made {
    pub(in super::super) value: Json,
    pub(in super::super) shape: Json,
}

/// Makes instances of one schema.
pub(in super::super) struct Instances<'a> {
    document: &'a Document<'a>,
    root: &'a Json,
    /// A string that conforms to a schema of strings, written out, if one is found.
    string: &'a dyn Fn(&Json) -> Option<String>,
    /// Strings by their schema.
    strings: BTreeMap<String, Option<String>>,
    tries: u64,
    random: u64,
    steps: usize,
    /// Which item of an array is being made, so that items differ.
    turn: usize,
}

type Fields = Map<String, Json>;

impl<'a> Instances<'a> {
    pub(in super::super) fn new(
        document: &'a Document<'a>,
        root: &'a Json,
        string: &'a dyn Fn(&Json) -> Option<String>,
    ) -> Self {
        Instances {
            document,
            root,
            string,
            strings: BTreeMap::new(),
            tries: 0,
            random: 0,
            steps: 0,
            turn: 0,
        }
    }

    /// The next try; none when it came to nothing.
    pub(in super::super) fn next(&mut self) -> Option<Made> {
        self.random = self.tries.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.tries += 1;
        self.steps = 0;
        self.turn = 0;
        self.settle(vec![self.root], Vec::new(), Vec::new(), 0)
    }

    /// A number below `count`: 0 at the first try, then any.
    fn choose(&mut self, count: usize) -> usize {
        if count <= 1 {
            return 0;
        }
        if self.tries == 1 {
            return 0;
        }
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % count
    }

    /// An instance of all of `open` and `done`, with one of each list of `choices`.
    fn settle(
        &mut self,
        mut open: Vec<&'a Json>,
        mut done: Vec<&'a Fields>,
        mut choices: Vec<Vec<Vec<&'a Json>>>,
        depth: usize,
    ) -> Option<Made> {
        while let Some(schema) = open.pop() {
            self.steps += 1;
            if self.steps > MOST_STEPS || depth > MOST_DEPTH {
                return None;
            }
            let fields = match schema {
                Json::Bool(true) => continue,
                Json::Object(fields) => fields,
                _ => return None,
            };
            if done.iter().any(|known| std::ptr::eq(*known, fields)) {
                continue;
            }
            match self.document.referred(fields) {
                Some(Target::Found(target)) => open.push(target),
                Some(Target::Nowhere) => return None,
                Some(Target::Metaschema) => {
                    return Some(Made {
                        value: json!({}),
                        shape: json!({"const": {}}),
                    });
                }
                None => (),
            }
            if fields.contains_key("$ref") && self.document.ignores_siblings() {
                continue;
            }
            done.push(fields);
            if let Some(Json::Array(all)) = fields.get("allOf") {
                open.extend(all);
            }
            for key in ["anyOf", "oneOf"] {
                if let Some(Json::Array(options)) = fields.get(key) {
                    choices.push(options.iter().map(|option| vec![option]).collect());
                }
            }
            if let Some(condition) = fields.get("if") {
                let met = [Some(condition), fields.get("then")];
                let unmet: Vec<&Json> = fields.get("else").into_iter().collect();
                choices.push(vec![unmet, met.into_iter().flatten().collect()]);
            }
        }
        let Some(options) = choices.pop() else {
            return self.make(&done, depth);
        };
        let first = self.choose(options.len());
        for index in 0..options.len() {
            let option = options[(first + index) % options.len()].clone();
            let made = self.settle(option, done.clone(), choices.clone(), depth + 1);
            if made.is_some() || self.steps > MOST_STEPS {
                return made;
            }
        }
        None
    }

    fn make(&mut self, done: &[&'a Fields], depth: usize) -> Option<Made> {
        let mut lists = done.iter().filter_map(|fields| values_of(fields));
        if let Some(mut values) = lists.next() {
            for list in lists {
                values.retain(|value| list.contains(value));
            }
            values.retain(|value| done.iter().all(|fields| allows_type(fields, value)));
            if values.is_empty() {
                return None;
            }
            let index = (self.choose(values.len()) + self.turn) % values.len();
            return Some(Made {
                value: values[index].clone(),
                shape: json!({"const": values[index]}),
            });
        }
        let kinds = kinds(done);
        if kinds.is_empty() {
            return None;
        }
        match kinds[self.choose(kinds.len())] {
            "null" => Some(Made {
                value: Json::Null,
                shape: json!({"type": "null"}),
            }),
            "boolean" => Some(Made {
                value: Json::Bool(!(self.choose(2) + self.turn).is_multiple_of(2)),
                shape: json!({"type": "boolean"}),
            }),
            "number" => self.number(done),
            "string" => self.text(done),
            "array" => self.array(done, depth),
            _ => self.object(done, depth),
        }
    }

    fn number(&mut self, done: &[&'a Fields]) -> Option<Made> {
        let (mut low, mut high) = (f64::NEG_INFINITY, f64::INFINITY);
        let mut step: f64 = 0.0;
        let mut is_whole = false;
        let mut shape = json!({"type": "number"});
        for fields in done {
            is_whole |= fields.get("type") == Some(&json!("integer"))
                || fields
                    .get("type")
                    .and_then(Json::as_array)
                    .is_some_and(|kinds| {
                        kinds.contains(&json!("integer")) && !kinds.contains(&json!("number"))
                    });
        }
        if is_whole {
            shape["type"] = "integer".into();
        }
        let mut lowest_excluded = false;
        let mut highest_excluded = false;
        for fields in done {
            let bound = |key: &str| fields.get(key).and_then(Json::as_f64);
            let is_strict = |key: &str| fields.get(key) == Some(&Json::Bool(true));
            for (value, strict) in [
                (bound("minimum"), is_strict("exclusiveMinimum")),
                (bound("exclusiveMinimum"), true),
            ] {
                if let Some(value) = value.filter(|value| *value >= low) {
                    lowest_excluded = strict || lowest_excluded && value == low;
                    low = value;
                }
            }
            for (value, strict) in [
                (bound("maximum"), is_strict("exclusiveMaximum")),
                (bound("exclusiveMaximum"), true),
            ] {
                if let Some(value) = value.filter(|value| *value <= high) {
                    highest_excluded = strict || highest_excluded && value == high;
                    high = value;
                }
            }
            if let Some(multiple) = bound("multipleOf") {
                step = step.max(multiple.abs());
            }
        }
        for (key, value, is_there) in [
            (
                if lowest_excluded {
                    "exclusiveMinimum"
                } else {
                    "minimum"
                },
                low,
                low.is_finite(),
            ),
            (
                if highest_excluded {
                    "exclusiveMaximum"
                } else {
                    "maximum"
                },
                high,
                high.is_finite(),
            ),
            ("multipleOf", step, step > 0.0),
        ] {
            if is_there {
                shape[key] = number(value)?;
            }
        }
        let unit = match (step > 0.0, is_whole) {
            (true, _) => step,
            (false, true) => 1.0,
            (false, false) if low.is_finite() && high.is_finite() => ((high - low) / 4.0).min(1.0),
            (false, false) => 1.0,
        };
        let start = match (low.is_finite(), high.is_finite()) {
            (true, _) if low > 0.0 => (low / unit).ceil() * unit,
            (_, true) if high < 0.0 => (high / unit).floor() * unit,
            _ => 0.0,
        };
        let direction = if start >= 0.0 && start < high {
            1.0
        } else {
            -1.0
        };
        let mut value = start + direction * unit * (self.turn + self.choose(3)) as f64;
        if lowest_excluded && value <= low {
            value += unit;
        }
        if highest_excluded && value >= high {
            value -= unit;
        }
        Some(Made {
            value: number(value)?,
            shape,
        })
    }

    fn text(&mut self, done: &[&'a Fields]) -> Option<Made> {
        let mut least = 0;
        let mut most = None;
        let mut parts: Vec<Json> = Vec::new();
        for fields in done {
            let count = |key: &str| {
                fields
                    .get(key)
                    .and_then(Json::as_f64)
                    .map(|count| count as usize)
            };
            least = least.max(count("minLength").unwrap_or(0));
            if let Some(own) = count("maxLength") {
                most = Some(most.map_or(own, |most: usize| most.min(own)));
            }
            if let Some(pattern) = fields.get("pattern").and_then(Json::as_str) {
                parts.push(json!({"pattern": portable(pattern).0}));
            }
            if let Some(format) = fields.get("format").and_then(Json::as_str) {
                parts.push(json!({"format": format}));
            }
        }
        if most.is_some_and(|most| most < least) {
            return None;
        }
        let mut shape = json!({"type": "string"});
        if least > 0 {
            shape["minLength"] = least.into();
        }
        if let Some(most) = most {
            shape["maxLength"] = most.into();
        }
        if !parts.is_empty() {
            shape["allOf"] = parts.clone().into();
        }
        let formats: Vec<&str> = parts
            .iter()
            .filter_map(|part| part["format"].as_str())
            .collect();
        let samples = formats.iter().find_map(|format| samples(format));
        if let (Some(samples), 1) = (samples, parts.len()) {
            let index = (self.turn + self.choose(samples.len())) % samples.len();
            return Some(Made {
                value: samples[index].into(),
                shape,
            });
        }
        if parts.iter().all(|part| part.get("pattern").is_none()) {
            let salt = match self.turn + self.choose(3) {
                0 => String::new(),
                salt => salt.to_string(),
            };
            let mut text = "a".repeat(least.saturating_sub(salt.len()).max(usize::from(least > 0)));
            text.push_str(&salt);
            if most.is_some_and(|most| text.len() > most) {
                text.truncate(most.unwrap_or(0));
            }
            return Some(Made {
                value: text.into(),
                shape,
            });
        }
        let tight = tightened(&shape);
        let (shape_of_it, shortest) = match self.string_like(&tight) {
            Some(found) => (tight, found),
            None => (shape.clone(), self.string_like(&shape)?),
        };
        // Items that must differ differ in their length.
        let mut longer = shape_of_it;
        longer["minLength"] = (shortest.chars().count() + self.turn).into();
        let value = match self.turn {
            0 => None,
            _ => self.string_like(&longer),
        };
        Some(Made {
            value: value.unwrap_or(shortest).into(),
            shape,
        })
    }

    fn string_like(&mut self, shape: &Json) -> Option<String> {
        let key = shape.to_string();
        if let Some(known) = self.strings.get(&key) {
            return known.clone();
        }
        let found = (self.string)(shape);
        self.strings.insert(key, found.clone());
        found
    }

    fn array(&mut self, done: &[&'a Fields], depth: usize) -> Option<Made> {
        let count = |fields: &Fields, key: &str| {
            fields
                .get(key)
                .and_then(Json::as_f64)
                .map(|count| count as usize)
        };
        let mut length = done
            .iter()
            .filter_map(|fields| count(fields, "minItems"))
            .max()
            .unwrap_or(0);
        let wanted: Vec<(&Json, usize)> = done
            .iter()
            .filter_map(|fields| {
                Some((
                    fields.get("contains")?,
                    count(fields, "minContains").unwrap_or(1),
                ))
            })
            .collect();
        length = wanted
            .iter()
            .map(|(_, least)| *least)
            .fold(length, usize::max);
        if length == 0 && self.tries > 8 {
            length = self.choose(2);
        }
        let most = done
            .iter()
            .filter_map(|fields| count(fields, "maxItems"))
            .min();
        if length > MOST_ITEMS || most.is_some_and(|most| most < length) {
            return None;
        }
        let (mut values, mut shapes) = (Vec::new(), Vec::new());
        let turn = self.turn;
        for index in 0..length {
            let mut item: Vec<&'a Json> = Vec::new();
            for fields in done {
                let first = match fields.get("items") {
                    Some(Json::Array(first)) => Some(first),
                    _ => fields.get("prefixItems").and_then(Json::as_array),
                };
                let listed = first.and_then(|first| first.get(index));
                let rest = match fields.get("items") {
                    Some(Json::Array(_)) => fields.get("additionalItems"),
                    items => items,
                };
                item.extend(listed.or(rest));
                if let Some(Json::Object(contained)) = fields.get("contains") {
                    let least = count(fields, "minContains").unwrap_or(1);
                    if index < least {
                        item.extend(
                            done.iter()
                                .filter_map(|fields| fields.get("contains"))
                                .filter(|json| json.as_object() == Some(contained)),
                        );
                    }
                }
            }
            self.turn = turn + index;
            let made = self.settle(item, Vec::new(), Vec::new(), depth + 1)?;
            values.push(made.value);
            shapes.push(made.shape);
        }
        self.turn = turn;
        Some(Made {
            shape: json!({"type": "array", "prefixItems": shapes, "items": false, "minItems": length, "maxItems": length}),
            value: values.into(),
        })
    }

    fn object(&mut self, done: &[&'a Fields], depth: usize) -> Option<Made> {
        let mut names: Vec<String> = Vec::new();
        let mut add = |name: &str| {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        };
        done.iter()
            .flat_map(|fields| required(fields))
            .for_each(&mut add);
        let mut checked = 0;
        while let Some(name) = names.get(checked).cloned() {
            checked += 1;
            for fields in done {
                for key in ["dependencies", "dependentRequired", "dependentSchemas"] {
                    let needed = fields.get(key).and_then(|map| map.get(&name));
                    match needed {
                        Some(Json::Array(more)) => {
                            for more in more.iter().filter_map(Json::as_str) {
                                if !names.iter().any(|known| known == more) {
                                    names.push(more.to_owned());
                                }
                            }
                        }
                        Some(schema @ Json::Object(inner))
                            if !done.iter().any(|known| std::ptr::eq(*known, inner)) =>
                        {
                            return self.settle(vec![schema], done.to_vec(), Vec::new(), depth + 1);
                        }
                        _ => (),
                    }
                }
            }
        }
        let count = |key: &'static str| {
            done.iter()
                .filter_map(move |fields| fields.get(key).and_then(Json::as_f64))
        };
        let least = count("minProperties").fold(0.0, f64::max) as usize;
        let most = count("maxProperties").fold(f64::INFINITY, f64::min);
        let mut made = Vec::new();
        for name in &names {
            made.push((name.clone(), self.property(done, name, depth)?));
        }
        let mut optional: Vec<&'a String> = done
            .iter()
            .filter_map(|fields| fields.get("properties").and_then(Json::as_object))
            .flat_map(Map::keys)
            .filter(|name| !names.contains(*name))
            .collect();
        if !optional.is_empty() {
            let first = self.choose(optional.len());
            optional.rotate_left(first);
        }
        let wants_more = self.tries > 16 && self.choose(3) == 0;
        for name in optional {
            let is_wanted = made.len() < least
                || wants_more && self.choose(4) == 0 && (made.len() as f64) < most;
            if is_wanted
                && !made.iter().any(|(known, _)| known == name)
                && let Some(value) = self.property(done, name, depth)
            {
                made.push((name.clone(), value));
            }
        }
        for extra in 0..64 {
            if made.len() >= least {
                break;
            }
            let name = self.extra_name(done, extra, depth)?;
            if made.iter().any(|(known, _)| *known == name) {
                continue;
            }
            let value = self.property(done, &name, depth)?;
            made.push((name, value));
        }
        if made.len() < least || made.len() as f64 > most {
            return None;
        }
        let names: Vec<&String> = made.iter().map(|(name, _)| name).collect();
        let required = json!(names);
        let (mut value, mut shape) = (Map::new(), Map::new());
        for (name, part) in made {
            value.insert(name.clone(), part.value);
            shape.insert(name, part.shape);
        }
        Some(Made {
            value: value.into(),
            shape: json!({"type": "object", "properties": shape, "required": required, "additionalProperties": false}),
        })
    }

    /// A value for the property `name`.
    fn property(&mut self, done: &[&'a Fields], name: &str, depth: usize) -> Option<Made> {
        let mut all: Vec<&'a Json> = Vec::new();
        for fields in done {
            let listed = fields.get("properties").and_then(|map| map.get(name));
            let patterns = fields.get("patternProperties").and_then(Json::as_object);
            match (listed, patterns) {
                (Some(schema), _) => all.push(schema),
                // Which pattern a name has is not known; most have one alone.
                (None, Some(patterns)) if !patterns.is_empty() => {
                    all.extend(patterns.values().next())
                }
                _ => all.extend(fields.get("additionalProperties")),
            }
        }
        self.settle(all, Vec::new(), Vec::new(), depth + 1)
    }

    /// A name that no schema lists.
    fn extra_name(&mut self, done: &[&'a Fields], extra: usize, depth: usize) -> Option<String> {
        let names = done.iter().find_map(|fields| fields.get("propertyNames"));
        if let Some(names) = names {
            let turn = std::mem::replace(&mut self.turn, extra);
            let made = self.settle(vec![names], Vec::new(), Vec::new(), depth + 1);
            self.turn = turn;
            if let Some(Json::String(name)) = made.map(|made| made.value) {
                return Some(name);
            }
        }
        let patterns = done
            .iter()
            .find_map(|fields| fields.get("patternProperties")?.as_object());
        if let Some((pattern, _)) = patterns.and_then(|patterns| patterns.iter().next()) {
            let least = 1 + extra;
            let schema = json!({"type": "string", "pattern": whole(&portable(pattern).0), "minLength": least});
            if let Some(name) = (self.string)(&schema) {
                return Some(name);
            }
        }
        Some(format!("name{}", extra + 1))
    }
}

fn allows_type(fields: &Fields, value: &Json) -> bool {
    let is_it = |name: &str| {
        base_type(name) == Some(type_of(value))
            && (name != "integer" || value.as_f64().is_some_and(|number| number.fract() == 0.0))
    };
    match fields.get("type") {
        Some(Json::String(name)) => is_it(name),
        Some(Json::Array(names)) => names.iter().filter_map(Json::as_str).any(is_it),
        _ => true,
    }
}

/// A schema of strings of which the patterns find the whole.
fn tightened(shape: &Json) -> Json {
    let mut tight = shape.clone();
    for part in tight["allOf"].as_array_mut().into_iter().flatten() {
        if let Some(pattern) = part["pattern"].as_str().map(whole) {
            part["pattern"] = pattern.into();
        }
    }
    tight
}

/// The types that an instance may have, those that its keywords speak of where none is named.
fn kinds(done: &[&Fields]) -> Vec<&'static str> {
    let mut kinds = vec!["string", "number", "boolean", "null", "array", "object"];
    let mut is_named = false;
    for fields in done {
        let named: Vec<&'static str> = match fields.get("type") {
            Some(Json::String(name)) => base_type(name).into_iter().collect(),
            Some(Json::Array(names)) => names
                .iter()
                .filter_map(|name| base_type(name.as_str()?))
                .collect(),
            _ => continue,
        };
        is_named = true;
        kinds.retain(|kind| named.contains(kind));
    }
    if is_named {
        return kinds;
    }
    let speaks_of = |keys: &[&str]| {
        done.iter()
            .any(|fields| keys.iter().any(|key| fields.contains_key(*key)))
    };
    for (kind, keys) in [
        (
            "object",
            &[
                "properties",
                "required",
                "additionalProperties",
                "patternProperties",
                "minProperties",
                "propertyNames",
                "maxProperties",
            ][..],
        ),
        ("array", &["items", "minItems", "prefixItems", "contains"]),
        ("string", &["pattern", "minLength", "format", "maxLength"]),
        (
            "number",
            &["minimum", "maximum", "multipleOf", "exclusiveMinimum"],
        ),
    ] {
        if speaks_of(keys) {
            return vec![kind];
        }
    }
    kinds
}

fn number(value: f64) -> Option<Json> {
    match value.fract() == 0.0 && value.abs() < 9e15 {
        true => Some((value as i64).into()),
        false => serde_json::Number::from_f64(value).map(Json::Number),
    }
}

/// Texts of a format; none where any text will do.
fn samples(format: &str) -> Option<&'static [&'static str]> {
    Some(match format {
        "date-time" => &[
            "2024-01-15T12:00:00Z",
            "2024-02-16T13:30:00Z",
            "2024-03-17T14:45:00Z",
        ],
        "date" => &["2024-01-15", "2024-02-16", "2024-03-17"],
        "time" => &["12:00:00Z", "13:30:00Z", "14:45:00Z"],
        "duration" => &["P1D", "PT2H", "P3M"],
        "email" | "idn-email" => &["a@example.com", "b@example.com", "c@example.com"],
        "hostname" | "idn-hostname" => &["a.example.com", "b.example.com", "c.example.com"],
        "ipv4" => &["192.0.2.1", "192.0.2.2", "192.0.2.3"],
        "ipv6" => &["2001:db8::1", "2001:db8::2", "2001:db8::3"],
        "uuid" => &[
            "123e4567-e89b-42d3-a456-426614174000",
            "123e4567-e89b-42d3-a456-426614174001",
        ],
        "uri" | "iri" | "uri-reference" | "iri-reference" | "uri-template" => &[
            "https://example.com/a",
            "https://example.com/b",
            "https://example.com/c",
        ],
        "json-pointer" => &["/a", "/b", "/c"],
        "relative-json-pointer" => &["0/a", "1/b", "2/c"],
        "regex" => &["a", "b", "c"],
        _ => return None,
    })
}
