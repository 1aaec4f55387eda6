//! The Jinja environment of chat templates: the syntax and helpers that the `transformers` library gives them.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat;

use super::python_json::{Layout, dumps};

/// Work and memory of a rendering at most: so many instructions, or 64 times as many bytes.
const FUEL: u64 = 1_000_000;

/// Levels of macro calls and recursive loops at most; small enough for the stack of any thread.
const MAX_RECURSION: usize = 100;

/// Characters of a line's indentation in JSON at most.
const MAX_INDENT: usize = 32;

/// What a template passed to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_unknown_method_callback(python_method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson);
    environment.add_filter("from_json", from_json);
    environment.add_filter("string", string);
    environment.set_formatter(|output, state, value| {
        let value = charge_text(state, value)?;
        escape_formatter(output, state, &value)
    });
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    Ok(environment)
}

/// `{% generation %}` blocks mark what a model is trained on and render as their content. `with` blocks do the same,
/// also in that assignments inside do not last.
pub(super) fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        let replaced = [("generation", "with"), ("endgeneration", "endwith")];
        let replaced = replaced.into_iter().find_map(|(from, to)| {
            let after = name.strip_prefix(from)?;
            let end = after.trim_start().trim_start_matches(['-', '+']);
            end.starts_with("%}").then_some((to, after))
        });
        rest = match replaced {
            Some((with, after)) => {
                out.push_str(&tag[..tag.len() - name.len()]);
                out.push_str(with);
                after
            }
            None => tag,
        };
    }
    out.push_str(rest);
    out
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let raised = Raised(message.to_string());
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(raised))
}

/// `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
fn tojson(
    state: &State,
    value: &Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let argument = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => named.get(name)?,
        };
        Ok(argument.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let mut layout = Layout::default();
    if let Some(value) = argument(0, "ensure_ascii")? {
        layout.ensure_ascii = value.is_true();
    }
    if let Some(indent) = argument(1, "indent")? {
        layout.indent = Some(match (indent.as_usize(), indent.as_str()) {
            (Some(width), _) => " ".repeat(width.min(MAX_INDENT)),
            (None, Some(text)) => text.chars().take(MAX_INDENT).collect(),
            (None, None) => String::new(),
        });
    }
    if let Some(separators) = argument(2, "separators")? {
        let text = |index| -> Result<String, Error> {
            Ok(separators.get_item_by_index(index)?.to_string())
        };
        layout.separators = Some((text(0)?, text(1)?));
    }
    if let Some(value) = argument(3, "sort_keys")? {
        layout.sort_keys = value.is_true();
    }
    named.assert_all_used()?;
    dumps(value, &layout, Some(state))
}

fn from_json(text: &str) -> Result<Value, Error> {
    match serde_json::from_str(text) {
        Ok(json) => Ok(super::python_json::to_template(&json)),
        Err(error) => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("from_json got no JSON: {error}"),
        )),
    }
}

fn string(state: &State, value: &Value) -> Result<Value, Error> {
    minijinja::filters::string(state, &charge_text(state, value)?)
}

/// Pays for turning a list or map into text before the engine does, which counts only what came out: a list of lists
/// can name the same part so often that nothing ever comes out.
fn charge_text(state: &State, value: &Value) -> Result<Value, Error> {
    const LEVELS: usize = 100;
    fn walk(state: &State, value: &Value, levels: usize) -> Result<(), Error> {
        if value.as_object().is_none() {
            return Ok(());
        }
        // Joined lists are not copied, so that their length alone says how large their text is.
        state.consume_fuel(value.len().unwrap_or(0) as u64)?;
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map) {
            return Ok(());
        }
        if levels == 0 {
            return state.consume_fuel(u64::MAX);
        }
        for item in value.try_iter()?.checked() {
            state.consume_fuel(1)?;
            let item = item?;
            if value.kind() == ValueKind::Map {
                walk(state, &value.get_item(&item)?, levels - 1)?;
            } else {
                walk(state, &item, levels - 1)?;
            }
        }
        Ok(())
    }
    // Joined lists and other iterables are made as they are read: copy them while paying.
    if value.kind() == ValueKind::Iterable {
        let mut items = Vec::new();
        for item in value.try_iter()?.checked() {
            state.consume_fuel(1)?;
            items.push(item?);
        }
        let copy = Value::from(items);
        walk(state, &copy, LEVELS)?;
        return Ok(copy);
    }
    walk(state, value, LEVELS)?;
    Ok(value.clone())
}

/// Unlike the engine's, takes `boolean` by name.
fn default(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let argument = |index: usize, name: &str| match positional.get(index) {
        Some(value) => Ok(Some(value.clone())),
        None => named.get::<Option<Value>>(name),
    };
    let other = argument(0, "default_value")?;
    let replaces_false = argument(1, "boolean")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    if value.is_undefined() || (replaces_false && !value.is_true()) {
        Ok(other.unwrap_or_else(|| Value::from("")))
    } else {
        Ok(value.clone())
    }
}

/// Unlike the engine's, turns what is no number into 0.
fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    named: Kwargs,
) -> Result<Value, Error> {
    let other = match &default {
        Some(value) => Some(value.clone()),
        None => named.get("default")?,
    };
    let number = minijinja::filters::int(state, value, default, base, named);
    Ok(number.unwrap_or_else(|_| other.unwrap_or_else(|| Value::from(0))))
}

/// Unlike the engine's, turns what is no number into 0.
fn float(value: &Value, default: Option<f64>) -> f64 {
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    number.unwrap_or(default.unwrap_or(0.0))
}

/// In Python a text and a map are sequences too.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::String | ValueKind::Map
    )
}

/// Unlike the engine, where a loop over none is allowed.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && (value.as_str().is_some() || value.try_iter().is_ok())
}

/// Methods of Python's types.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let argument = arguments.first().and_then(Value::as_str);
    let done = match (method, value.as_str(), argument) {
        ("removeprefix", Some(text), Some(prefix)) => {
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        ("removesuffix", Some(text), Some(suffix)) => {
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        ("index", Some(text), Some(part)) => match text.find(part) {
            Some(place) => text[..place].chars().count().into(),
            None => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    "substring not found",
                ));
            }
        },
        ("rsplit", Some(text), Some(separator)) if !separator.is_empty() => {
            let most = arguments.get(1).and_then(Value::as_usize);
            let parts = text.rsplitn(
                most.map_or(usize::MAX, |most| most.saturating_add(1)),
                separator,
            );
            let parts: Vec<&str> = parts.collect();
            parts.into_iter().rev().map(Value::from).collect()
        }
        ("partition", Some(text), Some(separator)) if !separator.is_empty() => {
            let (before, found, after) = match text.split_once(separator) {
                Some((before, after)) => (before, separator, after),
                None => (text, "", ""),
            };
            [before, found, after]
                .into_iter()
                .map(Value::from)
                .collect()
        }
        ("swapcase", Some(text), None) => {
            let swap = |character: char| match character.is_uppercase() {
                true => character.to_lowercase().collect::<String>(),
                false => character.to_uppercase().collect(),
            };
            text.chars().map(swap).collect::<String>().into()
        }
        ("format", Some(text), _) if has_large_number(text) => {
            let what = "format with a width of more than four digits";
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
        _ => return pycompat::unknown_method_callback(state, value, method, arguments),
    };
    Ok(done)
}

/// Whether `text` has more than four digits in a row.
fn has_large_number(text: &str) -> bool {
    let mut runs = text.as_bytes().split(|byte| !byte.is_ascii_digit());
    runs.any(|run| run.len() > 4)
}
