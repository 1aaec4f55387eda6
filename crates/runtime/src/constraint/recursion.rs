//! Recursive schemas, unrolled: an answer can nest so deep and no deeper, so that it comes to an end.
//!
//! Every definition that refers back to itself is copied once for each level; what would refer beyond the last level is `false`,
//! which nothing fulfils: an optional property goes, a list stays empty, an alternative falls away. What conforms to the unrolled
//! schema conforms to the original.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

/// Levels of a definition that refers to itself; each further definition of the same circle adds [`MORE_LEVELS`].
const LEVELS: usize = 8;
const MORE_LEVELS: usize = 2;
const MOST_LEVELS: usize = 24;

/// Bytes that copies may take.
const MOST_BYTES: usize = 256 << 10;

/// Referred-to places at most; beyond them, schemas stay as they are.
const MOST_TARGETS: usize = 512;

/// Unrolls what is recursive in a JSON schema (`$ref` to `#/…`). False when nothing is, or when it would become too large.
///
/// [`super::ConstraintSpec::JsonSchema`] needs no such treatment; schemas within grammars do.
pub fn bound_recursion(schema: &mut Json) -> bool {
    let Some(circles) = Circles::of(schema) else {
        return false;
    };
    let mut copies = Map::new();
    for target in &circles.targets {
        let Some(circle) = target.circle else {
            continue;
        };
        for level in 0..circles.levels[circle] {
            let mut copy = target.body.clone();
            rewrite(&mut copy, &mut |pointer| {
                circles.renamed(pointer, Some((circle, level)))
            });
            copies.insert(name(target.index, level), copy);
        }
    }
    rewrite(schema, &mut |pointer| circles.renamed(pointer, None));
    let Json::Object(fields) = schema else {
        return false;
    };
    match fields.entry("$defs").or_insert_with(|| json!({})) {
        Json::Object(definitions) => definitions.extend(copies),
        _ => return false,
    }
    true
}

/// The places that references point to, and which of them lie on a circle.
struct Circles {
    targets: Vec<Target>,
    by_pointer: BTreeMap<String, usize>,
    /// Levels of each circle.
    levels: Vec<usize>,
}

struct Target {
    index: usize,
    /// What is there, without the definitions it may contain.
    body: Json,
    circle: Option<usize>,
}

/// What becomes of a reference.
enum Renamed {
    Same,
    To(String),
    Nothing,
}

impl Circles {
    /// None when nothing is recursive, or more than can be unrolled.
    fn of(schema: &Json) -> Option<Self> {
        let mut by_pointer = BTreeMap::new();
        visit(schema, &mut |pointer| {
            let next = by_pointer.len();
            by_pointer.entry(pointer.to_owned()).or_insert(next);
        });
        if by_pointer.len() > MOST_TARGETS {
            return None;
        }
        let mut targets: Vec<Target> = Vec::new();
        for (pointer, &index) in &by_pointer {
            let mut body = place(schema, pointer)?.clone();
            if let Json::Object(fields) = &mut body {
                for key in ["$defs", "definitions", "$schema", "$id", "id"] {
                    if fields
                        .get(key)
                        .is_some_and(|value| !is_schema_named(key, value))
                    {
                        fields.remove(key);
                    }
                }
            }
            targets.push(Target {
                index,
                body,
                circle: None,
            });
        }
        targets.sort_by_key(|target| target.index);
        let edges: Vec<Vec<usize>> = targets
            .iter()
            .map(|target| {
                let mut edges = Vec::new();
                visit(&target.body, &mut |pointer| {
                    edges.extend(by_pointer.get(pointer))
                });
                edges
            })
            .collect();
        let reached: Vec<Vec<bool>> = (0..edges.len()).map(|from| reach(&edges, from)).collect();
        let mut levels = Vec::new();
        for index in 0..targets.len() {
            if targets[index].circle.is_some() || !reached[index][index] {
                continue;
            }
            let members: Vec<usize> = (0..targets.len())
                .filter(|&other| reached[index][other] && reached[other][index])
                .collect();
            let bytes: usize = members
                .iter()
                .map(|&member| targets[member].body.to_string().len())
                .sum();
            let wanted = (LEVELS + MORE_LEVELS * (members.len() - 1)).min(MOST_LEVELS);
            let affordable = MOST_BYTES / bytes.max(1);
            if affordable < 2 {
                return None;
            }
            for &member in &members {
                targets[member].circle = Some(levels.len());
            }
            levels.push(wanted.min(affordable));
        }
        (!levels.is_empty()).then_some(Circles {
            targets,
            by_pointer,
            levels,
        })
    }

    /// Where a reference to `pointer` goes that is made in a circle and level of copies, or outside of all.
    fn renamed(&self, pointer: &str, from: Option<(usize, usize)>) -> Renamed {
        let Some(target) = self
            .by_pointer
            .get(pointer)
            .map(|&index| &self.targets[index])
        else {
            return Renamed::Same;
        };
        let Some(circle) = target.circle else {
            return Renamed::Same;
        };
        let level = match from {
            Some((from, level)) if from == circle => level + 1,
            _ => 0,
        };
        match level < self.levels[circle] {
            true => Renamed::To(format!("#/$defs/{}", name(target.index, level))),
            false => Renamed::Nothing,
        }
    }
}

fn name(target: usize, level: usize) -> String {
    format!("unrolled-{target}-{level}")
}

/// Whether `value` under the key `key` is a schema of that name (in a map of schemas), not the keyword.
fn is_schema_named(key: &str, value: &Json) -> bool {
    matches!(key, "id" | "$id" | "$schema") && !value.is_string()
}

fn reach(edges: &[Vec<usize>], from: usize) -> Vec<bool> {
    let mut seen = vec![false; edges.len()];
    let mut open = edges[from].clone();
    while let Some(next) = open.pop() {
        if !std::mem::replace(&mut seen[next], true) {
            open.extend(&edges[next]);
        }
    }
    seen
}

/// What a reference of the form `#/…` points to, as the grammar engine reads it: without escapes.
fn place<'a>(schema: &'a Json, pointer: &str) -> Option<&'a Json> {
    let path = pointer.strip_prefix('#')?;
    if path.is_empty() || path == "/" {
        return Some(schema);
    }
    path.strip_prefix('/')?
        .split('/')
        .try_fold(schema, |place, step| match place {
            Json::Array(items) => items.get(step.parse::<usize>().ok()?),
            place => place.get(step),
        })
}

/// Keys whose value is data, not schemas.
pub(super) fn is_data(key: &str) -> bool {
    matches!(key, "const" | "enum" | "default" | "examples" | "required")
}

/// Keys whose value is a map from names to schemas.
pub(super) fn is_map(key: &str) -> bool {
    matches!(
        key,
        "properties"
            | "patternProperties"
            | "$defs"
            | "definitions"
            | "dependentSchemas"
            | "dependencies"
    )
}

/// All references in a schema.
fn visit(schema: &Json, note: &mut impl FnMut(&str)) {
    match schema {
        Json::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Json::String(pointer) if key == "$ref" => note(pointer),
                    Json::Object(named) if is_map(key) => {
                        named.values().for_each(|schema| visit(schema, note));
                    }
                    value if !is_data(key) => visit(value, note),
                    _ => (),
                }
            }
        }
        Json::Array(items) => items.iter().for_each(|item| visit(item, note)),
        _ => (),
    }
}

/// Changes all references in a schema.
fn rewrite(schema: &mut Json, change: &mut impl FnMut(&str) -> Renamed) {
    match schema {
        Json::Object(fields) => {
            let renamed = match fields.get("$ref") {
                Some(Json::String(pointer)) => change(pointer),
                _ => Renamed::Same,
            };
            match renamed {
                Renamed::Same => (),
                Renamed::To(pointer) => drop(fields.insert("$ref".into(), pointer.into())),
                Renamed::Nothing => {
                    *schema = Json::Bool(false);
                    return;
                }
            }
            for (key, value) in fields {
                match value {
                    Json::Object(named) if is_map(key) => {
                        named
                            .values_mut()
                            .for_each(|schema| rewrite(schema, change));
                    }
                    value if !is_data(key) => rewrite(value, change),
                    _ => (),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| rewrite(item, change)),
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_end_at_the_last_level() {
        let mut tree = json!({"$defs": {"node": {"type": "object", "properties": {"value": {"type": "integer"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}}, "$ref": "#/$defs/node"});
        assert!(bound_recursion(&mut tree));
        assert_eq!(tree["$ref"], "#/$defs/unrolled-0-0");
        let items =
            |level: usize| &tree["$defs"][name(0, level)]["properties"]["children"]["items"];
        assert_eq!(items(0)["$ref"], "#/$defs/unrolled-0-1");
        assert_eq!(*items(LEVELS - 1), json!(false));
    }

    #[test]
    fn the_whole_schema_can_be_what_recurs() {
        let mut list = json!({"type": "object", "properties": {"next": {"$ref": "#"}, "$ref": {"const": {"$ref": "#"}}}});
        assert!(bound_recursion(&mut list));
        assert_eq!(list["properties"]["next"]["$ref"], "#/$defs/unrolled-0-0");
        assert_eq!(list["properties"]["$ref"]["const"]["$ref"], "#");
        let last = &list["$defs"][name(0, LEVELS - 1)];
        assert_eq!(last["properties"]["next"], json!(false));
    }

    #[test]
    fn what_does_not_recur_stays_as_it_is() {
        let plain = json!({"$defs": {"a": {"type": "string"}, "b": {"items": {"$ref": "#/$defs/a"}}},
            "properties": {"x": {"$ref": "#/$defs/b"}, "y": {"$ref": "#/nowhere"}}});
        let mut schema = plain.clone();
        assert!(!bound_recursion(&mut schema));
        assert_eq!(schema, plain);
    }

    #[test]
    fn circles_of_several_definitions_share_their_levels() {
        let mut schema = json!({"$ref": "#/definitions/a", "definitions": {
            "a": {"anyOf": [{"type": "null"}, {"$ref": "#/definitions/b"}]},
            "b": {"type": "array", "items": {"$ref": "#/definitions/a"}}, "c": {"items": {"$ref": "#/definitions/a"}}}});
        assert!(bound_recursion(&mut schema));
        let text = schema["$defs"].to_string();
        let levels = LEVELS + MORE_LEVELS;
        assert_eq!(schema["$defs"].as_object().unwrap().len(), 2 * levels);
        assert!(!text.contains("definitions"), "{text}");
    }
}
