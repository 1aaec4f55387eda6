//! Dates and times that validators take: without leap seconds and leap days, which are valid at some moments only.

use serde_json::Value as Json;

use super::recursion::{is_data, is_map};

const TIME: &str = "[0-9:]{6}[0-5][0-9].*";
const DATE: &str = "([0-9]{4}-(0[13-9]|1[0-2])-[0-9]{2}|[0-9]{4}-02-([01][0-9]|2[0-8]))";

/// Adds to each `format` of dates and times, where no pattern is asked for, one that leaves such moments out. What
/// conforms then conforms to the schema as it was.
pub(super) fn without_leaps(schema: &mut Json) {
    match schema {
        Json::Object(fields) => {
            let pattern = match fields.get("format").and_then(Json::as_str) {
                Some("date") => Some(format!("^{DATE}$")),
                Some("time") => Some(format!("^{TIME}$")),
                Some("date-time") => Some(format!("^{DATE}[Tt]{TIME}$")),
                _ => None,
            };
            if let Some(pattern) = pattern {
                fields
                    .entry("pattern")
                    .or_insert_with(|| Json::String(pattern));
            }
            for (key, value) in fields {
                match value {
                    Json::Object(named) if is_map(key) => {
                        named.values_mut().for_each(without_leaps);
                    }
                    value if !is_data(key) => without_leaps(value),
                    _ => (),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(without_leaps),
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_schemas_are_changed() {
        let mut schema = json!({
            "properties": {
                "format": {"type": "string", "format": "date"},
                "own": {"format": "time", "pattern": "^1"},
                "at": {"anyOf": [{"format": "date-time"}, {"format": "uuid"}]}
            },
            "const": {"format": "date"}
        });
        without_leaps(&mut schema);
        let properties = &schema["properties"];
        assert!(properties["format"]["pattern"].is_string());
        assert_eq!(properties["own"]["pattern"], "^1");
        assert!(properties["at"]["anyOf"][0]["pattern"].is_string());
        assert_eq!(properties["at"]["anyOf"][1], json!({"format": "uuid"}));
        assert_eq!(schema["const"], json!({"format": "date"}));
    }
}
