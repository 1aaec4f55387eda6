//! One blob of known size and hash → a file, from wherever the last try stopped.

use super::index::Blob;
use super::remote::{Opened, Remote};
use super::{ReleaseError, blob_path};
use crate::digest::Algorithms;
use crate::store::{FileSystem, StoreError, at};
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

/// Tries in a row that may bring no byte.
const FRUITLESS: u32 = 4;
/// Tries in all.
const TRIES: u32 = 100;

/// What a download needs besides the blob.
pub(super) struct Downloader<'a, F: FileSystem> {
    pub files: &'a F,
    pub remote: &'a dyn Remote,
    /// The first pause after a broken connection; it doubles while nothing arrives.
    pub pause: Duration,
    /// Told the bytes that have arrived.
    pub progress: &'a dyn Fn(u64),
    /// Asked now and then.
    pub is_cancelled: &'a dyn Fn() -> bool,
}

impl<F: FileSystem> Downloader<'_, F> {
    /// Brings the blob to `path`, checked and synced; answers how many bytes came over the network.
    ///
    /// # Errors
    /// [`ReleaseError`]; what has arrived stays for the next try, unless it is wrong.
    pub fn fetch(&self, blob: Blob, what: &str, path: &Path) -> Result<u64, ReleaseError> {
        let mut received = 0;
        // A part that an earlier run or a crash left behind may be wrong anywhere: then once more from the start.
        for last in [false, true] {
            let had = self.have(path);
            received += self.complete(blob, what, path)?;
            self.files.sync_file(path).map_err(at(path))?;
            let found = self
                .files
                .digest(path, Algorithms::Sha256)
                .map_err(at(path))?;
            if found.size == blob.size && found.sha256 == blob.sha256 {
                return Ok(received);
            }
            self.files.remove(path).map_err(at(path))?;
            if last || had == 0 {
                break;
            }
        }
        Err(self.differs(what, "its hash is another one".into()))
    }

    fn complete(&self, blob: Blob, what: &str, path: &Path) -> Result<u64, ReleaseError> {
        let (mut received, mut fruitless, mut furthest) = (0, 0, 0);
        if self.have(path) > blob.size {
            self.files.remove(path).map_err(at(path))?;
        }
        for _ in 0..TRIES {
            let have = self.have(path);
            if have == blob.size && (blob.size > 0 || self.files.length(path).is_ok()) {
                return Ok(received);
            }
            if (self.is_cancelled)() {
                return Err(self.failed(what, "it was cancelled".into()));
            }
            let (gained, reason) = match self.remote.open(&blob_path(blob.sha256), have) {
                Ok(None) => return Err(self.failed(what, "it is not there".into())),
                Ok(Some(opened)) => self.receive(opened, have, blob, what, path)?,
                Err(error) if error.transient => (0, error.why),
                Err(error) => return Err(self.failed(what, error.why)),
            };
            received += gained;
            // A server that always starts from the beginning and always breaks off at the same place gains nothing.
            let reached = self.have(path);
            fruitless = if reached > furthest { 0 } else { fruitless + 1 };
            furthest = furthest.max(reached);
            if fruitless >= FRUITLESS {
                return Err(self.failed(what, reason));
            }
            if self.have(path) < blob.size {
                std::thread::sleep(self.pause * (1 << fruitless));
            }
        }
        Err(self.failed(what, format!("the connection broke {TRIES} times")))
    }

    /// Takes what comes; answers how many bytes, and why there were no more.
    fn receive(
        &self,
        opened: Opened,
        have: u64,
        blob: Blob,
        what: &str,
        path: &Path,
    ) -> Result<(u64, String), ReleaseError> {
        if let Some(length) = opened.length.filter(|length| *length != blob.size) {
            let size = blob.size;
            return Err(self.differs(
                what,
                format!("it is {length} bytes long where {size} were signed"),
            ));
        }
        let mut start = have;
        if opened.start != have {
            if opened.start != 0 {
                return Err(self.failed(
                    what,
                    "the server sent another part than was asked for".into(),
                ));
            }
            self.files.remove(path).map_err(at(path))?;
            start = 0;
        }
        let mut body = Body {
            // One byte more than there may be, so that a server which sends more is found out.
            inner: opened.body.take(blob.size - start + 1),
            count: start,
            error: None,
            progress: self.progress,
            is_cancelled: self.is_cancelled,
        };
        let appended = self.files.append(path, &mut body);
        let (count, broken) = (body.count, body.error.take());
        match (appended, broken) {
            (_, Some(error)) => Ok((
                count - start,
                format!(
                    "the transfer broke off after {count} of {} bytes ({error})",
                    blob.size
                ),
            )),
            (Err(error), None) => Err(StoreError::from_io(path, error).into()),
            (Ok(()), None) if count > blob.size => {
                self.files.remove(path).map_err(at(path))?;
                Err(self.differs(
                    what,
                    format!(
                        "the server sent more than the {} bytes that were signed",
                        blob.size
                    ),
                ))
            }
            (Ok(()), None) => Ok((
                count - start,
                format!("the transfer ended after {count} of {} bytes", blob.size),
            )),
        }
    }

    fn have(&self, path: &Path) -> u64 {
        self.files.length(path).unwrap_or(0)
    }

    fn failed(&self, what: &str, reason: String) -> ReleaseError {
        ReleaseError::Remote {
            what: what.to_owned(),
            from: self.remote.name().to_owned(),
            reason,
        }
    }

    fn differs(&self, what: &str, reason: String) -> ReleaseError {
        ReleaseError::Differs {
            what: what.to_owned(),
            from: self.remote.name().to_owned(),
            reason,
        }
    }
}

/// Tells a connection that broke from a disk that is full: the copy between them answers one error for both.
struct Body<'a, R> {
    inner: R,
    count: u64,
    error: Option<String>,
    progress: &'a dyn Fn(u64),
    is_cancelled: &'a dyn Fn() -> bool,
}

impl<R: Read> Read for Body<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if (self.is_cancelled)() {
            self.error = Some("cancelled".into());
            return Err(io::Error::other("cancelled"));
        }
        match self.inner.read(out) {
            Ok(count) => {
                self.count += count as u64;
                (self.progress)(self.count);
                Ok(count)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    self.error = Some(error.to_string());
                }
                Err(error)
            }
        }
    }
}
