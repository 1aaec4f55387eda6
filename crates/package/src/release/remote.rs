//! Where a repository is read from.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A repository that can be read: a directory, a web server, a registry.
pub trait Remote: Send + Sync {
    /// What to call it in an error.
    fn name(&self) -> &str;

    /// Opens the file at `path` (components with `/` between) from byte `offset` on; nothing when there is no such file.
    ///
    /// # Errors
    /// [`RemoteError`].
    fn open(&self, path: &str, offset: u64) -> Result<Option<Opened>, RemoteError>;
}

/// A file that is being read.
pub struct Opened {
    /// Where `body` begins: the offset that was asked for, or 0 where the server only sends whole files.
    pub start: u64,
    /// Length of the whole file, if it was said.
    pub length: Option<u64>,
    /// The bytes from `start`.
    pub body: Box<dyn Read + Send>,
}

/// A repository could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{why}")]
pub struct RemoteError {
    /// What happened.
    pub why: String,
    /// Whether the same request may succeed in a moment.
    pub transient: bool,
}

/// A repository in a directory.
#[derive(Clone, Debug)]
pub struct Directory {
    root: PathBuf,
    name: String,
}

impl Directory {
    /// The repository in `root`.
    pub fn new(root: &Path) -> Self {
        Directory {
            root: root.to_owned(),
            name: root.display().to_string(),
        }
    }
}

impl Remote for Directory {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, path: &str, offset: u64) -> Result<Option<Opened>, RemoteError> {
        let strange = path.split('/').any(|part| {
            part.is_empty() || part.starts_with('.') || part.contains(['\\', ':', '\0'])
        });
        if strange {
            return Ok(None);
        }
        let path = path
            .split('/')
            .fold(self.root.clone(), |path, part| path.join(part));
        let opened = File::open(&path).and_then(|mut file| {
            let length = file.metadata()?.len();
            let start = offset.min(length);
            file.seek(SeekFrom::Start(start))?;
            Ok(Opened {
                start,
                length: Some(length),
                body: Box::new(file),
            })
        });
        match opened {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RemoteError {
                why: format!("{}: {error}", path.display()),
                transient: false,
            }),
        }
    }
}

/// Reads a whole small file of at most `most` bytes; nothing when there is no such file.
pub(super) fn read_small(
    remote: &dyn Remote,
    path: &str,
    most: u64,
) -> Result<Option<Vec<u8>>, RemoteError> {
    let mut last = None;
    // A connection that breaks gets a second chance; a small file is simply fetched again.
    for _ in 0..2 {
        match read_once(remote, path, most) {
            Err(error) if error.transient => last = Some(error),
            other => return other,
        }
    }
    match last {
        Some(error) => Err(error),
        None => Ok(None),
    }
}

fn read_once(remote: &dyn Remote, path: &str, most: u64) -> Result<Option<Vec<u8>>, RemoteError> {
    let Some(opened) = remote.open(path, 0)? else {
        return Ok(None);
    };
    let too_long = || RemoteError {
        why: format!("it is longer than the {most} bytes that were expected"),
        transient: false,
    };
    if opened.length.is_some_and(|length| length > most) {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    let read = opened
        .body
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes);
    read.map_err(|error| RemoteError {
        why: format!(
            "the transfer broke off after {} bytes ({error})",
            bytes.len()
        ),
        transient: true,
    })?;
    if bytes.len() as u64 > most {
        return Err(too_long());
    }
    match opened.length {
        Some(length) if (bytes.len() as u64) < length => Err(RemoteError {
            why: format!("the transfer ended after {} of {length} bytes", bytes.len()),
            transient: true,
        }),
        _ => Ok(Some(bytes)),
    }
}
