//! `file:` sources and the shared cache of other tools: files that are already on this machine.

use crate::error::SourceError;
use crate::progress::{Event, Phase, Progress};
use crate::transfer::{PartialFile, Validator};
use std::path::Path;

/// Copies a file through the checking writer. A copy, not a link: the original may be edited in place.
pub(crate) fn copy(
    from: &Path,
    partial: &mut PartialFile,
    size: Option<u64>,
    limit: u64,
    progress: &dyn Progress,
) -> Result<(), SourceError> {
    let unreadable = |source| SourceError::Unreadable {
        path: from.to_path_buf(),
        source,
    };
    let mut file = std::fs::File::open(from).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(std::io::Error::other("it is no regular file")));
    }
    if let Some(expected) = size.filter(|size| *size != metadata.len()) {
        return Err(SourceError::WrongLength {
            expected,
            found: metadata.len(),
        });
    }
    partial.restart()?;
    partial.set_validator(Validator {
        source: partial.validator().source.clone(),
        ..Validator::default()
    })?;
    progress.event(Event::Started {
        phase: Phase::Unpack,
        total: Some(metadata.len()),
        done: 0,
    });
    partial.append(&mut file, limit, progress)
}
