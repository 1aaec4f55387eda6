//! Hugging Face repositories: the address of a file, and the cache that other tools on this machine share.
//!
//! Layout of that cache: `models--<organisation>--<repository>/refs/<revision>` holds a commit, and
//! `snapshots/<commit>/<file>` is the file (often a link into `blobs/`).

use crate::error::SourceError;
use crate::registry::read_bounded;
use crate::settings::Settings;
use crate::source::{Source, WebAddress};
use std::path::PathBuf;

/// One file of one repository at one revision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HubFile<'a> {
    pub organisation: &'a str,
    pub repository: &'a str,
    pub file: &'a str,
    pub revision: &'a str,
}

impl<'a> HubFile<'a> {
    /// The file that a source means, if it is of this kind.
    pub(crate) fn of(source: &'a Source) -> Option<Self> {
        match source {
            Source::HuggingFace {
                organisation,
                repository,
                file,
                revision,
            } => Some(Self {
                organisation,
                repository,
                file,
                revision,
            }),
            _ => None,
        }
    }

    /// Where it is downloaded from.
    pub(crate) fn address(&self, endpoint: &WebAddress) -> Result<WebAddress, SourceError> {
        let Self {
            organisation,
            repository,
            file,
            revision,
        } = self;
        let revision = revision.replace('/', "%2F");
        let text = format!("{endpoint}/{organisation}/{repository}/resolve/{revision}/{file}");
        text.parse().map_err(|why| SourceError::Protocol { why })
    }

    /// The file in the shared cache, if it is there.
    pub(crate) fn in_shared_cache(&self, settings: &Settings) -> Option<PathBuf> {
        let folder = format!("models--{}--{}", self.organisation, self.repository);
        let repository = settings.hugging_face.cache.as_ref()?.join(folder);
        let named = read_bounded(&repository.join("refs").join(self.revision), 1024).ok();
        let commit = named
            .as_deref()
            .map(str::trim)
            .filter(|commit| is_commit(commit))
            .unwrap_or(self.revision);
        let path = repository.join("snapshots").join(commit).join(self.file);
        path.is_file().then_some(path)
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_address_under_any_endpoint() {
        let file = HubFile {
            organisation: "o",
            repository: "r",
            file: "sub/f.gguf",
            revision: "refs/pr/1",
        };
        let endpoint: WebAddress = "https://mirror.example/hf".parse().unwrap();
        let address = file.address(&endpoint).unwrap();
        assert_eq!(
            address.as_str(),
            "https://mirror.example/hf/o/r/resolve/refs%2Fpr%2F1/sub/f.gguf"
        );
    }

    #[test]
    fn finds_a_file_by_branch_and_by_commit() {
        let directory = tempfile::tempdir().unwrap();
        let commit = "0123456789012345678901234567890123456789";
        let repository = directory.path().join("models--o--r");
        std::fs::create_dir_all(repository.join("snapshots").join(commit)).unwrap();
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), commit).unwrap();
        std::fs::write(repository.join("snapshots").join(commit).join("f"), "x").unwrap();
        let variables = [
            ("HOME", "/nowhere".into()),
            ("HF_HUB_CACHE", directory.path().as_os_str().to_os_string()),
        ];
        let settings = Settings::from_variables(|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value): &(_, std::ffi::OsString)| value.clone())
        })
        .unwrap();
        let at = |revision| {
            HubFile {
                organisation: "o",
                repository: "r",
                file: "f",
                revision,
            }
            .in_shared_cache(&settings)
        };
        assert!(at("main").is_some() && at(commit).is_some());
        assert!(at("other").is_none());
        std::fs::write(repository.join("refs/main"), "../../../..").unwrap();
        assert!(at("main").is_none());
    }
}
