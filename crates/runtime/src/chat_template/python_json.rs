//! JSON between requests and templates, written as Python's `json.dumps` writes it.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use serde_json::Value as Json;

/// Levels of lists and maps at most.
const MAX_DEPTH: usize = 100;

/// A template's value of a JSON value; the order of objects stays.
pub(super) fn to_template(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(x) => Value::from(*x),
        Json::Number(x) => match (x.as_i64(), x.as_u64()) {
            (Some(x), _) => Value::from(x),
            (_, Some(x)) => Value::from(x),
            _ => Value::from(x.as_f64()),
        },
        Json::String(x) => Value::from(x.as_str()),
        Json::Array(items) => items.iter().map(to_template).collect(),
        Json::Object(fields) => {
            let fields = fields.iter();
            Value::from_pairs(fields.map(|(name, value)| (name.as_str(), to_template(value))))
        }
    }
}

/// How JSON is laid out; the defaults of Python's `json.dumps`, but for characters outside ASCII, which stay.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    /// One item per line, indented by this.
    pub(super) indent: Option<String>,
    /// Between items, and between a name and its value.
    pub(super) separators: Option<(String, String)>,
    pub(super) sort_keys: bool,
    pub(super) ensure_ascii: bool,
}

/// The JSON text of `value`, paid from the budget of `state`.
///
/// # Errors
/// When it holds something that has no JSON form, such as an undefined value, when it has too many levels, and when
/// the budget is used up.
pub(super) fn dumps(
    value: &Value,
    layout: &Layout,
    state: Option<&State>,
) -> Result<String, Error> {
    let (item, name) = match &layout.separators {
        Some((item, name)) => (item.as_str(), name.as_str()),
        None if layout.indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let mut writer = Writer {
        out: String::new(),
        layout,
        item,
        name,
        state,
        paid: 0,
    };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer<'a> {
    out: String,
    layout: &'a Layout,
    item: &'a str,
    name: &'a str,
    state: Option<&'a State<'a, 'a>>,
    /// Bytes of `out` that are paid for.
    paid: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refuse("a value has too many levels for JSON"));
        }
        self.pay()?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut items = Vec::new();
                for item in value.try_iter()?.checked() {
                    items.push((None, item?));
                }
                self.container('[', items, ']', depth)?;
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    items.push((Some(key_text(&key)?), value.get_item(&key)?));
                }
                if self.layout.sort_keys {
                    items.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.container('{', items, '}', depth)?;
            }
            ValueKind::Undefined => return Err(refuse("an undefined value has no JSON form")),
            _ => return Err(refuse("a value has no JSON form")),
        }
        Ok(())
    }

    /// A small value that refers to the same part many times can have a text without end, so it is paid for as it
    /// grows.
    fn pay(&mut self) -> Result<(), Error> {
        const STEP: usize = 4096;
        // Writing a value costs more than copying its bytes.
        const BYTES_PER_FUEL: usize = 8;
        if self.out.len() - self.paid >= STEP {
            if let Some(state) = self.state {
                state.consume_fuel(((self.out.len() - self.paid) / BYTES_PER_FUEL) as u64)?;
            }
            self.paid = self.out.len();
        }
        Ok(())
    }

    fn container(
        &mut self,
        open: char,
        items: Vec<(Option<String>, Value)>,
        close: char,
        depth: usize,
    ) -> Result<(), Error> {
        self.out.push(open);
        let is_empty = items.is_empty();
        for (index, (key, value)) in items.into_iter().enumerate() {
            if index > 0 {
                self.out.push_str(self.item);
            }
            self.new_line(depth + 1);
            if let Some(key) = key {
                self.string(&key);
                self.out.push_str(self.name);
            }
            self.value(&value, depth + 1)?;
        }
        if !is_empty {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.layout.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn number(&mut self, value: &Value) {
        match f64::try_from(value.clone()) {
            Ok(number) if !value.is_integer() => self.out.push_str(&float_text(number)),
            _ => self.out.push_str(&value.to_string()),
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                ..'\u{20}' => self.escape(character),
                '\u{7f}'.. if self.layout.ensure_ascii && character != '\u{7f}' => {
                    self.escape(character);
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(self.out, "\\u{unit:04x}");
        }
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
            dumps(key, &Layout::default(), None)
        }
        _ => Err(refuse("a map's key has no JSON form")),
    }
}

/// As Python writes a float: the shortest digits that are the same number, with an exponent outside 1e-4..1e16.
fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .into();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&power) {
        format!("{number:?}")
    } else {
        let sign = if power < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", power.abs())
    }
}

fn refuse(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(json: &Json) -> String {
        dumps(&to_template(json), &Layout::default(), None).unwrap()
    }

    #[test]
    fn numbers_are_written_as_python_does() {
        for (number, expected) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.25e100, "-1.25e+100"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float_text(number), expected);
        }
        assert_eq!(
            text(&json!([1, -2, u64::MAX, 2.5])),
            "[1, -2, 18446744073709551615, 2.5]"
        );
    }

    #[test]
    fn text_and_layout_are_pythons() {
        let value = json!({"b": "é\"\\\n\u{1}\u{7f}", "a": [true, null, {}], "c": []});
        assert_eq!(
            text(&value),
            "{\"b\": \"é\\\"\\\\\\n\\u0001\u{7f}\", \"a\": [true, null, {}], \"c\": []}"
        );
        let layout = Layout {
            indent: Some("  ".into()),
            ensure_ascii: true,
            sort_keys: true,
            separators: None,
        };
        assert_eq!(
            dumps(
                &to_template(&json!({"b": "é😀", "a": [1, 2]})),
                &layout,
                None
            )
            .unwrap(),
            "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": \"\\u00e9\\ud83d\\ude00\"\n}"
        );
    }

    #[test]
    fn depth_is_bounded() {
        let mut value = Value::from(1);
        for _ in 0..MAX_DEPTH + 1 {
            value = Value::from(vec![value]);
        }
        assert!(dumps(&value, &Layout::default(), None).is_err());
    }
}
