//! From what a user typed to a file on this machine.

use crate::cache::{Record, Slot};
use crate::error::HubError;
use crate::progress::Progress;
use crate::registry::{ModelEntry, Registry};
use crate::settings::Settings;
use crate::source::Source;
use std::path::{Path, PathBuf};

/// A registry on this machine.
#[derive(Debug, Clone)]
pub struct Hub {
    pub(crate) registry: Registry,
    pub(crate) settings: Settings,
}

/// A model that is on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// A GGUF file, or a directory with a checkpoint.
    pub path: PathBuf,
    /// The registry's entry, if it was found by name.
    pub entry: Option<ModelEntry>,
    /// Provenance, if the file is in the cache.
    pub record: Option<Record>,
    /// True if nothing had to be fetched.
    pub was_here: bool,
}

/// A registry entry and whether it is here.
#[derive(Debug, Clone)]
pub struct ModelStatus<'a> {
    /// What the registry says.
    pub entry: &'a ModelEntry,
    /// The cached file, if it is here and right.
    pub cached: Option<PathBuf>,
    /// Its provenance.
    pub record: Option<Record>,
}

impl Hub {
    /// The built-in registry, the user's own entries and the settings of the environment.
    ///
    /// # Errors
    /// [`HubError::InvalidSetting`], [`HubError::InvalidRegistry`], or [`HubError::Io`] for a registry file that cannot be read.
    pub fn from_environment() -> Result<Self, HubError> {
        Self::new(Settings::from_environment()?)
    }

    /// The built-in registry with these settings; their registry file is read as well.
    ///
    /// # Errors
    /// [`HubError::InvalidRegistry`] or [`HubError::Io`], both about the registry file.
    pub fn new(settings: Settings) -> Result<Self, HubError> {
        let mut registry = Registry::built_in()?;
        if let Some(path) = &settings.registry_file {
            registry.extend_from_file(path, settings.limits.registry_bytes)?;
        }
        Ok(Self { registry, settings })
    }

    /// The entries.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Every registered model with its state in the cache.
    ///
    /// # Errors
    /// [`HubError::Io`] if a cached file cannot be read.
    pub fn models(&self) -> Result<Vec<ModelStatus<'_>>, HubError> {
        let status = |entry| {
            let slot = Slot::of_entry(&self.settings, entry);
            let record = slot.cached(self.settings.limits.registry_bytes)?;
            Ok(ModelStatus {
                entry,
                cached: record.is_some().then(|| slot.path()),
                record,
            })
        };
        self.registry.models().iter().map(status).collect()
    }

    /// Finds the file of a model. `wanted` is a registered name, the path of a file or directory, or a source (`hf:`, `https:`,
    /// `pypi:`, `file:`). What is not here is downloaded, where the build and the settings allow it.
    ///
    /// # Errors
    /// [`HubError::UnknownModel`] with a suggestion, [`HubError::NoSuchPath`], or what the download answers.
    pub fn resolve(&self, wanted: &str, progress: &dyn Progress) -> Result<Resolved, HubError> {
        if Source::has_scheme(wanted) {
            return match wanted.parse()? {
                Source::File(path) => existing(&path),
                source => self.bring(&self.slot_of_source(&source), None, &[source], progress),
            };
        }
        if let Some(entry) = self.registry.find(wanted) {
            return self.bring(
                &Slot::of_entry(&self.settings, entry),
                Some(entry),
                &entry.sources,
                progress,
            );
        }
        let path = Path::new(wanted);
        if path.exists() {
            return existing(path);
        }
        let looks_like_a_path =
            wanted.contains(['/', '\\']) || wanted.to_ascii_lowercase().ends_with(".gguf");
        if looks_like_a_path {
            Err(HubError::NoSuchPath {
                path: path.to_path_buf(),
            })
        } else {
            Err(self.unknown(wanted))
        }
    }

    /// The error for a name that is not registered.
    pub(crate) fn unknown(&self, name: &str) -> HubError {
        let hint = match self.registry.suggest(name) {
            Some(suggestion) => format!("did you mean '{suggestion}'?"),
            None => "'ondine models' lists the names; a file or directory is given by its path"
                .to_string(),
        };
        let name = name
            .chars()
            .filter(|character| !character.is_control())
            .take(120)
            .collect();
        HubError::UnknownModel { name, hint }
    }

    /// A place for a model that no registry names; the source's text is the key.
    fn slot_of_source(&self, source: &Source) -> Slot {
        let spec = match source {
            Source::Web(address) => address.as_str().to_string(),
            other => other.to_string(),
        };
        let mut hasher = crate::digest::Hasher::new();
        hasher.update(spec.as_bytes());
        let key = hasher.finish().to_string();
        Slot {
            name: source.to_string(),
            directory: self
                .settings
                .home
                .join("models")
                .join("@by-source")
                .join(&key[..16]),
            file: source.file_name().to_string(),
            sha256: None,
            size: None,
        }
    }

    fn bring(
        &self,
        slot: &Slot,
        entry: Option<&ModelEntry>,
        sources: &[Source],
        progress: &dyn Progress,
    ) -> Result<Resolved, HubError> {
        if let Some(record) = slot.cached(self.settings.limits.registry_bytes)? {
            return Ok(Resolved {
                path: slot.path(),
                entry: entry.cloned(),
                record: Some(record),
                was_here: true,
            });
        }
        self.fetch(slot, entry, sources, progress)
    }

    #[cfg(feature = "download")]
    fn fetch(
        &self,
        slot: &Slot,
        entry: Option<&ModelEntry>,
        sources: &[Source],
        progress: &dyn Progress,
    ) -> Result<Resolved, HubError> {
        crate::pull::Pull {
            hub: self,
            slot,
            entry,
            sources,
            progress,
        }
        .run(false)
    }

    #[cfg(not(feature = "download"))]
    fn fetch(
        &self,
        slot: &Slot,
        _: Option<&ModelEntry>,
        _: &[Source],
        _: &dyn Progress,
    ) -> Result<Resolved, HubError> {
        Err(HubError::NotCached {
            name: slot.name.clone(),
            why: format!(
                "this build cannot download; put the file at '{}' or give its path",
                slot.path().display()
            ),
        })
    }
}

fn existing(path: &Path) -> Result<Resolved, HubError> {
    if !path.exists() {
        return Err(HubError::NoSuchPath {
            path: path.to_path_buf(),
        });
    }
    Ok(Resolved {
        path: path.to_path_buf(),
        entry: None,
        record: None,
        was_here: true,
    })
}
