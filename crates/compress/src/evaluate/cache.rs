//! Results that are known already, one file for each.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::CompressError;
use crate::quantize::write_atomically;

/// Changes whenever results are measured otherwise.
const VERSION: u32 = 1;

/// A directory of results by what they depend on: the models' hashes, the tokens, and how they are measured.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: Option<PathBuf>,
}

impl Cache {
    /// Keeps results in `directory`, which is made when it is needed; nowhere without one.
    pub fn new(directory: Option<&Path>) -> Self {
        Cache {
            directory: directory.map(Path::to_owned),
        }
    }

    /// What is known under `key`, or what `measure` finds, which is kept.
    pub(crate) fn get<T: Serialize + DeserializeOwned>(
        &self,
        key: &impl Serialize,
        measure: impl FnOnce() -> Result<T, CompressError>,
    ) -> Result<T, CompressError> {
        let Some(directory) = &self.directory else {
            return measure();
        };
        let key = serde_json::to_vec(&(VERSION, key))
            .map_err(|error| CompressError::Invalid(error.to_string()))?;
        let path = directory.join(format!("{}.json", blake3::hash(&key).to_hex()));
        if let Ok(bytes) = std::fs::read(&path)
            && let Ok(known) = serde_json::from_slice(&bytes)
        {
            return Ok(known);
        }
        let found = measure()?;
        let failed = |source| CompressError::Io {
            path: path.display().to_string(),
            source,
        };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let bytes = serde_json::to_vec(&found)
            .map_err(|error| CompressError::Invalid(error.to_string()))?;
        write_atomically(&path, |out| out.write_all(&bytes).map_err(failed))?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_not_measured_again() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(directory.path()));
        assert_eq!(cache.get(&"a", || Ok(0.1f64)).unwrap(), 0.1);
        let known: f64 = cache.get(&"a", || panic!("measured again")).unwrap();
        assert_eq!(known, 0.1);
        assert_eq!(cache.get(&"b", || Ok(2.0f64)).unwrap(), 2.0);
    }
}
