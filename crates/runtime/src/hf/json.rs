//! Small JSON files beside a checkpoint, bounded before they are read.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::Limits;
use crate::gguf::ModelFileError;

/// The bytes of the text file at `path`; nothing when there is no such file.
pub(super) fn read_text(path: &Path, limits: &Limits) -> Result<Option<String>, ModelFileError> {
    let failed = |source| ModelFileError::Io {
        file: path.display().to_string(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(limits.json_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limits.json_bytes {
        let what = format!(
            "is longer than the {} bytes allowed; check that it is the right file",
            limits.json_bytes
        );
        return Err(invalid(path, what));
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| invalid(path, "is not UTF-8 text; fetch the file again"))
}

/// The JSON file at `path`; nothing when there is no such file.
pub(super) fn read<T: DeserializeOwned>(
    path: &Path,
    limits: &Limits,
) -> Result<Option<T>, ModelFileError> {
    let Some(text) = read_text(path, limits)? else {
        return Ok(None);
    };
    match serde_json::from_str(&text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(invalid(
            path,
            format!("is not the JSON it should be ({error}); fetch the file again"),
        )),
    }
}

/// An error about the file at `path`.
pub(super) fn invalid(path: &Path, what: impl Into<String>) -> ModelFileError {
    ModelFileError::Invalid {
        file: path.display().to_string(),
        what: what.into(),
    }
}

/// The path of the file `name` in `directory`; nothing when `name` is anything but a plain file name,
/// so that it cannot leave the directory.
pub(super) fn beside(directory: &Path, name: &str) -> Option<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+ ".contains(c);
    let good =
        !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.chars().all(plain);
    good.then(|| directory.join(name))
}
