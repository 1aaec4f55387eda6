//! The list of models known by name.

use crate::digest::Sha256Digest;
use crate::error::HubError;
use crate::source::{Source, WebAddress, is_plain_file_name};
use serde::Deserialize;
use std::path::Path;

const BUILT_IN: &str = include_str!("../registry.toml");
/// What an entry writes where nobody states the hash.
const UNKNOWN: &str = "unknown";

/// Models by name, in the order of the file.
#[derive(Debug, Clone)]
pub struct Registry {
    endpoint: WebAddress,
    models: Vec<ModelEntry>,
}

/// One model: what it is and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelEntry {
    /// What the user types.
    pub name: String,
    /// One line.
    pub description: String,
    /// File name in the cache.
    pub file: String,
    /// Hash of the whole file; without it the first download is trusted and remembered.
    pub sha256: Option<Sha256Digest>,
    /// Bytes.
    pub size: Option<u64>,
    /// SPDX identifier or the name of the terms.
    pub licence: String,
    /// What a user should know before use, where the licence is no open-source one.
    pub terms: Option<String>,
    /// Weights.
    pub parameters: Option<u64>,
    /// Tried in order.
    pub sources: Vec<Source>,
}

impl Registry {
    /// The registry that is part of this crate.
    ///
    /// # Errors
    /// None in a tested build: a test parses the file.
    pub fn built_in() -> Result<Self, HubError> {
        Self::parse(BUILT_IN, None, "built in")
    }

    /// Adds the entries of another registry file; one of a known name replaces the known one.
    ///
    /// # Errors
    /// [`HubError::Io`] or [`HubError::InvalidRegistry`], naming the file.
    pub fn extend_from_file(&mut self, path: &Path, limit: u64) -> Result<(), HubError> {
        let text = read_bounded(path, limit).map_err(HubError::io("read", path))?;
        let further = Self::parse(
            &text,
            Some(&self.endpoint),
            &format!("'{}'", path.display()),
        )?;
        self.endpoint = further.endpoint;
        for entry in further.models {
            match self
                .models
                .iter_mut()
                .find(|known| known.name == entry.name)
            {
                Some(known) => *known = entry,
                None => self.models.push(entry),
            }
        }
        Ok(())
    }

    /// Reads a registry from TOML text; `origin` names it in errors.
    ///
    /// # Errors
    /// [`HubError::InvalidRegistry`]: not TOML, an unknown key, a name or hash of the wrong shape, a name given twice, no source.
    pub fn parse(
        text: &str,
        endpoint: Option<&WebAddress>,
        origin: &str,
    ) -> Result<Self, HubError> {
        let invalid = |why: String| HubError::InvalidRegistry {
            origin: origin.to_string(),
            why,
        };
        let raw: RawRegistry =
            toml::from_str(text).map_err(|error| invalid(one_line(&error, text)))?;
        let endpoint = match (raw.hugging_face, endpoint) {
            (Some(section), _) => section
                .endpoint
                .trim_end_matches('/')
                .parse()
                .map_err(invalid)?,
            (None, Some(inherited)) => inherited.clone(),
            (None, None) => return Err(invalid("it has no [hugging_face] endpoint".to_string())),
        };
        let mut models: Vec<ModelEntry> = Vec::with_capacity(raw.model.len());
        for entry in raw.model {
            let entry = ModelEntry::check(entry).map_err(invalid)?;
            if models.iter().any(|known| known.name == entry.name) {
                return Err(invalid(format!("'{}' is listed twice", entry.name)));
            }
            models.push(entry);
        }
        Ok(Self { endpoint, models })
    }

    /// Where `hf:` sources are, unless the settings name a mirror.
    pub fn hugging_face_endpoint(&self) -> &WebAddress {
        &self.endpoint
    }

    /// Every entry, in the order of the file.
    pub fn models(&self) -> &[ModelEntry] {
        &self.models
    }

    /// The entry of that name; letter case does not matter.
    pub fn find(&self, name: &str) -> Option<&ModelEntry> {
        self.models
            .iter()
            .find(|entry| entry.name.eq_ignore_ascii_case(name))
    }

    /// The name that was probably meant.
    pub fn suggest(&self, name: &str) -> Option<&str> {
        let typed = name.to_ascii_lowercase();
        if typed.is_empty() || typed.len() > 100 {
            return None;
        }
        let distance = |entry: &&ModelEntry| strsim::damerau_levenshtein(&typed, &entry.name);
        let nearest = self.models.iter().min_by_key(distance)?;
        if distance(&nearest) <= (nearest.name.len() / 3).max(1) {
            return Some(&nearest.name);
        }
        // A part of a name, such as "smollm2", is nearer in meaning than in letters.
        let squeeze = |text: &str| text.replace(['-', '_', '.', ':', ' '], "");
        let typed = squeeze(&typed);
        let holds = |entry: &&ModelEntry| typed.len() >= 3 && squeeze(&entry.name).contains(&typed);
        self.models
            .iter()
            .find(holds)
            .map(|entry| entry.name.as_str())
    }
}

impl ModelEntry {
    fn check(raw: RawModel) -> Result<Self, String> {
        let name = raw.name;
        let lower = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
        };
        if !is_plain_file_name(&name) || !name.bytes().all(lower) {
            return Err(format!(
                "'{}' is not a model name: use lower-case letters, digits, '.', '_', '-'",
                name.escape_debug()
            ));
        }
        if !is_plain_file_name(&raw.file) || raw.file.starts_with("record.") {
            return Err(format!(
                "'{}' of '{name}' is not a plain file name",
                raw.file.escape_debug()
            ));
        }
        if raw.sources.is_empty() {
            return Err(format!("'{name}' has no source"));
        }
        let sha256 = raw
            .sha256
            .filter(|text| text != UNKNOWN)
            .map(|text| text.parse())
            .transpose()
            .map_err(|why| format!("'{name}': {why}"))?;
        let sources: Result<Vec<Source>, HubError> =
            raw.sources.iter().map(|spec| spec.parse()).collect();
        Ok(Self {
            sha256,
            sources: sources.map_err(|error| format!("'{name}': {error}"))?,
            description: raw.description,
            file: raw.file,
            size: raw.size,
            licence: raw.licence,
            terms: raw.terms,
            parameters: raw.parameters,
            name,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegistry {
    hugging_face: Option<RawHuggingFace>,
    #[serde(default)]
    model: Vec<RawModel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHuggingFace {
    endpoint: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    name: String,
    #[serde(default)]
    description: String,
    file: String,
    sha256: Option<String>,
    size: Option<u64>,
    licence: String,
    terms: Option<String>,
    parameters: Option<u64>,
    sources: Vec<String>,
}

/// Reads a text file that may not be longer than `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(limit + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(std::io::Error::other(format!(
            "it is longer than {limit} bytes"
        )));
    }
    Ok(text)
}

fn one_line(error: &toml::de::Error, text: &str) -> String {
    let line = error
        .span()
        .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message().replace('\n', " ");
    line.map_or(message.clone(), |line| format!("line {line}: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_built_in_registry_is_whole() {
        let registry = Registry::built_in().unwrap();
        for name in [
            "smollm2-135m-instruct",
            "gemma-3-270m",
            "qwen3-0.6b",
            "llama-3.2-1b-instruct",
            "gemma-3-1b-it",
            "smollm3-3b",
        ] {
            let entry = registry
                .find(name)
                .unwrap_or_else(|| panic!("{name} is missing"));
            assert!(
                entry.sha256.is_some() && entry.size.is_some() && !entry.description.is_empty(),
                "{name}"
            );
        }
        let joined = &registry.find("gemma-3-270m").unwrap().sources[0];
        assert!(matches!(joined, Source::Wheel(parts) if parts.len() == 4));
    }

    #[test]
    fn a_users_file_adds_and_replaces() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registry.toml");
        let text = "[[model]]\nname='own'\nfile='own.gguf'\nlicence='MIT'\nsources=['file:own.gguf']\n\
                    [[model]]\nname='gemma-3-270m'\nfile='g.gguf'\nlicence='x'\nsources=['https://mirror.example/g.gguf']\n";
        std::fs::write(&path, text).unwrap();
        let mut registry = Registry::built_in().unwrap();
        let before = registry.models().len();
        registry.extend_from_file(&path, 1 << 20).unwrap();
        assert_eq!(registry.models().len(), before + 1);
        assert_eq!(registry.find("gemma-3-270m").unwrap().file, "g.gguf");
        assert!(
            registry
                .extend_from_file(&path, 10)
                .unwrap_err()
                .to_string()
                .contains("longer than 10 bytes")
        );
    }

    #[test]
    fn refuses_entries_that_would_leave_the_cache_or_mean_nothing() {
        let parse = |model: &str| {
            Registry::parse(
                &format!("hugging_face.endpoint='https://h.example'\n{model}"),
                None,
                "test",
            )
        };
        let good = "[[model]]\nname='a'\nfile='a'\nlicence='MIT'\nsources=['file:a']\n";
        assert!(parse(good).is_ok());
        let spoiled = [
            good.replace("name='a'", "name='../a'"),
            good.replace("name='a'", "name='A'"),
            good.replace("file='a'", "file='../a'"),
            good.replace("file='a'", "file='record.json'"),
            good.replace("file='a'", "file='a/b'"),
            good.replace("sources=['file:a']", "sources=[]"),
            good.replace("sources=['file:a']", "sources=['gopher:a']"),
            good.replace("licence", "sha256='12'\nlicence"),
            good.replace("licence", "size=-1\nlicence"),
            good.replace("licence='MIT'\n", ""),
            good.replace("licence", "colour='red'\nlicence"),
            good.repeat(2),
            "[[model]".to_string(),
        ];
        for text in spoiled {
            let error = parse(&text).unwrap_err().to_string();
            assert!(
                !error.contains('\n') && error.starts_with("registry test is not usable"),
                "{error}"
            );
        }
    }

    #[test]
    fn suggests_the_name_that_was_meant() {
        let registry = Registry::built_in().unwrap();
        assert_eq!(
            registry.suggest("smollm2-135m-instrct"),
            Some("smollm2-135m-instruct")
        );
        assert_eq!(registry.suggest("smollm2"), Some("smollm2-135m-instruct"));
        assert_eq!(registry.suggest("Gemma3-270M"), Some("gemma-3-270m"));
        assert_eq!(registry.suggest("qwen3_0.6b"), Some("qwen3-0.6b"));
        assert_eq!(registry.suggest("gpt-oss-120b-something-else"), None);
        assert_eq!(registry.suggest(""), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(\\[\\[model\\]\\]\n|name=|'a'|\n|sources=|\\[|\\]|\\PC){0,40}") {
            let _ = Registry::parse(&text, None, "test");
        }
    }
}
