//! The files below a directory, as the format sees them.

use super::SignatureError;
use crate::Limits;
use crate::path::BundlePath;
use std::fs;
use std::path::{Path, PathBuf};

/// Directories below directories.
const MOST_DEPTH: usize = 64;
/// The name of the only resource when the model is one file.
pub(super) const SINGLE_FILE: &str = ".";

/// All files below `directory`, in order of path.
///
/// # Errors
/// Symbolic links, special files, refused names, unreadable directories.
pub fn walk(directory: &Path, limits: &Limits) -> Result<Vec<BundlePath>, SignatureError> {
    walk_except(directory, &[], limits)
}

/// Names and places of what is signed, in order of path; `.` stands for a model of one file.
pub(super) fn files(
    model: &Path,
    ignored: &[BundlePath],
    limits: &Limits,
) -> Result<(Vec<String>, Vec<PathBuf>), SignatureError> {
    let kind = fs::symlink_metadata(model)
        .map_err(|source| unreadable(model, source))?
        .file_type();
    if kind.is_symlink() {
        return Err(SignatureError::SymbolicLink(model.display().to_string()));
    }
    if kind.is_file() {
        return Ok((vec![SINGLE_FILE.to_owned()], vec![model.to_owned()]));
    }
    let found = walk_except(model, ignored, limits)?;
    let paths = found.iter().map(|path| path.under(model)).collect();
    Ok((
        found.iter().map(|path| path.as_str().to_owned()).collect(),
        paths,
    ))
}

/// Where `file` lies below `model`, if it does.
pub(super) fn inside(model: &Path, file: &Path) -> Result<Option<BundlePath>, SignatureError> {
    let Ok(model) = fs::canonicalize(model) else {
        return Ok(None);
    };
    let Some(name) = file.file_name() else {
        return Ok(None);
    };
    let parent = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Ok(parent) = fs::canonicalize(parent) else {
        return Ok(None);
    };
    match parent.join(name).strip_prefix(&model) {
        Ok(inside) if !inside.as_os_str().is_empty() => Ok(Some(bundle_path(inside)?)),
        _ => Ok(None),
    }
}

/// The last component of the model's path.
pub(super) fn model_name(model: &Path) -> String {
    let full = fs::canonicalize(model).unwrap_or_else(|_| model.to_owned());
    full.file_name().map_or_else(
        || "model".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn walk_except(
    root: &Path,
    ignored: &[BundlePath],
    limits: &Limits,
) -> Result<Vec<BundlePath>, SignatureError> {
    let mut found = Vec::new();
    let mut waiting = vec![(root.to_owned(), 0)];
    while let Some((directory, depth)) = waiting.pop() {
        for entry in fs::read_dir(&directory).map_err(|source| unreadable(&directory, source))? {
            let entry = entry.map_err(|source| unreadable(&directory, source))?;
            let path = entry.path();
            let name = bundle_path(path.strip_prefix(root).unwrap_or(&path))?;
            if ignored.iter().any(|ignored| name.is_within(ignored)) {
                continue;
            }
            let kind = entry
                .file_type()
                .map_err(|source| unreadable(&path, source))?;
            if kind.is_symlink() {
                return Err(SignatureError::SymbolicLink(name.to_string()));
            } else if kind.is_dir() {
                waiting.push((path, depth + 1));
            } else if kind.is_file() {
                found.push(name);
            } else {
                return Err(SignatureError::Special(name.to_string()));
            }
            if found.len() > limits.files || waiting.len() > limits.files || depth > MOST_DEPTH {
                return Err(SignatureError::TooMany(
                    root.display().to_string(),
                    limits.files,
                ));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn bundle_path(relative: &Path) -> Result<BundlePath, SignatureError> {
    let refused =
        || SignatureError::Statement(format!("the name {} is not UTF-8", relative.display()));
    let parts = relative
        .components()
        .map(|part| part.as_os_str().to_str().ok_or_else(refused))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(BundlePath::parse(&parts.join("/"))?)
}

fn unreadable(path: &Path, source: std::io::Error) -> SignatureError {
    SignatureError::Unreadable {
        path: path.display().to_string(),
        source,
    }
}
