//! `config.json`: checked access to what it says about the language model.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::json;
use crate::Limits;
use crate::gguf::ModelFileError;

/// The language model's part of `config.json`. A value that is `null` counts as absent.
pub(super) struct Config {
    path: PathBuf,
    values: Map<String, Value>,
}

impl Config {
    /// Reads `config.json` in `directory`. Of a model with several modalities, `text_config` takes
    /// precedence over what surrounds it.
    pub(super) fn read(directory: &Path, limits: &Limits) -> Result<Self, ModelFileError> {
        Self::open(&directory.join("config.json"), limits)
    }

    /// Reads the configuration in the file at `path`.
    pub(super) fn open(path: &Path, limits: &Limits) -> Result<Self, ModelFileError> {
        match json::read(path, limits)? {
            Some(values) => Self::new(path.to_owned(), values),
            None => Err(json::invalid(
                path,
                "is missing; a checkpoint directory needs it, fetch it again",
            )),
        }
    }

    fn new(path: PathBuf, mut values: Map<String, Value>) -> Result<Self, ModelFileError> {
        match values.remove("text_config") {
            None | Some(Value::Null) => {}
            Some(Value::Object(text)) => values.extend(text),
            Some(_) => return Err(json::invalid(&path, "`text_config` is not an object")),
        }
        Ok(Config { path, values })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The value of the first of `keys` that is there and not `null`.
    pub(super) fn value(&self, keys: &[&str]) -> Option<&Value> {
        keys.iter()
            .filter_map(|key| self.values.get(*key))
            .find(|value| !value.is_null())
    }

    /// Whether `key` is there, `null` included.
    pub(super) fn mentions(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A non-negative integer of at most 32 bits, under the first of `keys` that is there.
    pub(super) fn unsigned(&self, keys: &[&str]) -> Result<Option<u32>, ModelFileError> {
        let Some(value) = self.value(keys) else {
            return Ok(None);
        };
        let number = match value.as_u64() {
            Some(number) => u32::try_from(number).ok(),
            // A whole number that some tool wrote as a float.
            None => value
                .as_f64()
                .filter(|number| number.fract() == 0.0 && (0.0..4e9).contains(number))
                .map(|number| number as u32),
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(keys, "a whole number from 0 to 4294967295")),
        }
    }

    /// A positive integer that must be there, unless the model's kind has a default.
    pub(super) fn size(&self, keys: &[&str], default: Option<u32>) -> Result<u32, ModelFileError> {
        match self.unsigned(keys)?.or(default) {
            Some(0) => Err(self.wrong(keys, "a positive number")),
            Some(size) => Ok(size),
            None => Err(self.missing(keys)),
        }
    }

    /// A finite number.
    pub(super) fn float(&self, keys: &[&str]) -> Result<Option<f64>, ModelFileError> {
        self.value(keys)
            .map(|value| {
                finite(value).ok_or_else(|| self.wrong(keys, "a number that a model can use"))
            })
            .transpose()
    }

    /// A positive number.
    pub(super) fn positive(&self, keys: &[&str]) -> Result<Option<f64>, ModelFileError> {
        match self.float(keys)? {
            Some(number) if number <= 0.0 => Err(self.wrong(keys, "a positive number")),
            other => Ok(other),
        }
    }

    /// A bool.
    pub(super) fn boolean(&self, keys: &[&str]) -> Result<Option<bool>, ModelFileError> {
        self.value(keys)
            .map(|value| {
                value
                    .as_bool()
                    .ok_or_else(|| self.wrong(keys, "true or false"))
            })
            .transpose()
    }

    /// A string.
    pub(super) fn string(&self, keys: &[&str]) -> Result<Option<&str>, ModelFileError> {
        self.value(keys)
            .map(|value| value.as_str().ok_or_else(|| self.wrong(keys, "a string")))
            .transpose()
    }

    /// A list of exactly `length` elements.
    pub(super) fn list(
        &self,
        key: &str,
        length: usize,
    ) -> Result<Option<&[Value]>, ModelFileError> {
        match self.value(&[key]) {
            None => Ok(None),
            Some(Value::Array(list)) if list.len() == length => Ok(Some(list)),
            Some(_) => Err(self.wrong(&[key], &format!("a list of {length} elements"))),
        }
    }

    /// The object under the first of `keys` that is there, as a configuration of its own.
    pub(super) fn object(&self, keys: &[&str]) -> Result<Option<Config>, ModelFileError> {
        match self.value(keys) {
            None => Ok(None),
            Some(Value::Object(values)) => Ok(Some(Config {
                path: self.path.clone(),
                values: values.clone(),
            })),
            Some(_) => Err(self.wrong(keys, "an object")),
        }
    }

    /// That `key` is not there or has one of the `supported` values.
    pub(super) fn only(&self, key: &str, supported: &[Value]) -> Result<(), ModelFileError> {
        match self.value(&[key]) {
            Some(value) if !supported.contains(value) => Err(self.refuse(&format!(
                "`{key}` is {}, which is not supported",
                brief(value)
            ))),
            _ => Ok(()),
        }
    }

    pub(super) fn missing(&self, keys: &[&str]) -> ModelFileError {
        let key = keys.first().copied().unwrap_or_default();
        self.refuse(&format!("`{key}` is missing; fetch the file again"))
    }

    /// The first of `keys` that is there is not `expected`.
    pub(super) fn wrong(&self, keys: &[&str], expected: &str) -> ModelFileError {
        let there = keys.iter().find(|key| self.value(&[key]).is_some());
        let key = there.or(keys.first()).copied().unwrap_or_default();
        let is = self.value(&[key]).map_or("absent".into(), brief);
        self.refuse(&format!(
            "`{key}` is {is}, which is not {expected}; correct the file or fetch it again"
        ))
    }

    pub(super) fn refuse(&self, what: &str) -> ModelFileError {
        json::invalid(&self.path, what)
    }
}

/// A number that also a 32-bit float can hold.
pub(super) fn finite(value: &Value) -> Option<f64> {
    value.as_f64().filter(|&number| (number as f32).is_finite())
}

/// The value as JSON, cut to what fits into an error.
pub(super) fn brief(value: &Value) -> String {
    let text = match value {
        Value::Array(list) => format!("a list of {} elements", list.len()),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    };
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
impl Config {
    pub(super) fn of(values: Value) -> Self {
        let Value::Object(values) = values else {
            panic!("a test's configuration is an object");
        };
        Config::new("config.json".into(), values).unwrap()
    }
}
