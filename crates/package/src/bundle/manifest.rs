//! The manifest: canonical JSON, so that equal manifests are equal bytes.
//!
//! Canonical means what RFC 8785 means for the values that occur here: keys in order, no white space, integers below 2⁵³,
//! the shortest escapes. The reader accepts nothing else: it writes again what it has read and compares.

use crate::Limits;
use crate::digest::Digest;
use crate::path::{BundlePath, PathError};
use crate::text::one_line;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt;

/// The format's name and version.
const FORMAT: &str = "ondine-bundle-1";
/// Largest integer that every JSON reader keeps.
const LARGEST_INTEGER: u64 = (1 << 53) - 1;
/// Longest name of a bundle in bytes.
const NAME_BYTES: usize = 128;

/// What a bundle is. Every field has been checked; `files` are in order of path, without duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Name of the model, the same for all its versions: letters, digits, `.`, `_`, `-` and single `/`.
    pub name: String,
    /// Grows by at least one with each release.
    pub version: u64,
    /// The oldest runtime that can run it.
    pub minimum_runtime: RuntimeVersion,
    /// The files, in order of path.
    pub files: Vec<FileEntry>,
    /// Versions that a delta to this one may start from.
    pub parents: Vec<Parent>,
}

/// One file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Where it is in the bundle.
    pub path: BundlePath,
    /// What it is for.
    pub role: Role,
    /// Length in bytes.
    pub size: u64,
    /// Root of its BLAKE3 tree, checked at each load.
    pub blake3: Digest,
    /// Its SHA-256, checked when it is installed.
    pub sha256: Digest,
    /// BLAKE3 of its header when it is sealed: what its chunks are bound to when they are opened one by one.
    pub sealed_header: Option<Digest>,
}

/// An earlier version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// SHA-256 of that version's manifest.
    pub manifest: Digest,
    /// Its version, below this one's.
    pub version: u64,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Weights.
    Model,
    /// Tokenizer that is not inside the model file.
    Tokenizer,
    /// Chat template that is not inside the model file.
    ChatTemplate,
    /// Sampling defaults.
    GenerationDefaults,
    /// Hints for a kind of device.
    DeviceProfile,
    /// Licence text.
    Licence,
    /// Evaluation report.
    Evaluation,
    /// A prompt and its known answer, asked on the device before a version is used.
    SelfTest,
    /// Anything else.
    Other,
}

/// Major, minor and patch of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuntimeVersion(pub u32, pub u32, pub u32);

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is longer than the limit.
    #[error("the manifest is {0} bytes long, more than {1}; it is not a manifest")]
    TooLong(u64, u64),
    /// It is not JSON of the right shape.
    #[error("the manifest cannot be read: {0}; pack the bundle again")]
    Syntax(String),
    /// It is JSON of the right shape, but written differently.
    #[error(
        "the manifest is not in canonical form: keys, spacing or escapes differ; pack the bundle again"
    )]
    NotCanonical,
    /// A file has a path that is refused.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A field breaks a rule.
    #[error("the manifest's {field} is refused: {reason}; pack the bundle again")]
    Field {
        /// Which field.
        field: &'static str,
        /// Which rule.
        reason: String,
    },
}

impl Manifest {
    /// Reads canonical JSON.
    ///
    /// # Errors
    /// [`ManifestError`] for anything that [`Manifest::to_json`] would not have written.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > limits.manifest_bytes {
            return Err(ManifestError::TooLong(
                bytes.len() as u64,
                limits.manifest_bytes,
            ));
        }
        let wire: Wire = serde_json::from_slice(bytes)
            .map_err(|error| ManifestError::Syntax(one_line(&error)))?;
        let manifest = wire.check(limits)?;
        if manifest.to_json() != bytes {
            return Err(ManifestError::NotCanonical);
        }
        Ok(manifest)
    }

    /// Puts `files` in order and checks every rule.
    ///
    /// # Errors
    /// [`ManifestError`] with the rule that is broken.
    pub fn checked(mut self, limits: &Limits) -> Result<Self, ManifestError> {
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        self.parents.sort_by_key(|parent| parent.version);
        check_rules(&self, limits)?;
        Ok(self)
    }

    /// Canonical JSON, without a line end.
    pub fn to_json(&self) -> Vec<u8> {
        let wire = Wire {
            files: self
                .files
                .iter()
                .map(|file| WireFile {
                    blake3: file.blake3,
                    path: file.path.as_str().to_owned(),
                    role: file.role,
                    sealed_header: file.sealed_header,
                    sha256: file.sha256,
                    size: file.size,
                })
                .collect(),
            format: FORMAT.to_owned(),
            minimum_runtime: self.minimum_runtime.to_string(),
            name: self.name.clone(),
            parents: self.parents.clone(),
            version: self.version,
        };
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    /// SHA-256 of the canonical JSON: the identity of this version.
    pub fn identity(&self) -> Digest {
        Digest::sha256(&self.to_json())
    }

    /// Sum of the sizes of the files.
    pub fn total_size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl fmt::Display for RuntimeVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl std::str::FromStr for RuntimeVersion {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let parsed = (|| {
            let mut parts = text.split('.').map(|part| part.parse::<u32>().ok());
            let version = RuntimeVersion(parts.next()??, parts.next()??, parts.next()??);
            (parts.next().is_none() && version.to_string() == text).then_some(version)
        })();
        parsed.ok_or_else(|| {
            field(
                "minimum_runtime",
                "it is not three numbers with dots between them",
            )
        })
    }
}

/// The JSON; fields in the order of their names, which makes the output canonical.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    files: Vec<WireFile>,
    format: String,
    minimum_runtime: String,
    name: String,
    parents: Vec<Parent>,
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireFile {
    blake3: Digest,
    path: String,
    role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed_header: Option<Digest>,
    sha256: Digest,
    size: u64,
}

impl Wire {
    fn check(self, limits: &Limits) -> Result<Manifest, ManifestError> {
        if self.format != FORMAT {
            return Err(field(
                "format",
                "this version reads \"ondine-bundle-1\" only",
            ));
        }
        let files = self
            .files
            .into_iter()
            .map(|file| {
                Ok(FileEntry {
                    path: BundlePath::parse(&file.path)?,
                    role: file.role,
                    size: file.size,
                    blake3: file.blake3,
                    sha256: file.sha256,
                    sealed_header: file.sealed_header,
                })
            })
            .collect::<Result<Vec<_>, PathError>>()?;
        let manifest = Manifest {
            name: self.name,
            version: self.version,
            minimum_runtime: self.minimum_runtime.parse()?,
            files,
            parents: self.parents,
        };
        check_rules(&manifest, limits)?;
        Ok(manifest)
    }
}

fn check_rules(manifest: &Manifest, limits: &Limits) -> Result<(), ManifestError> {
    if !is_name(&manifest.name) {
        return Err(field(
            "name",
            "it is empty, too long, or holds more than letters, digits, '.', '_', '-' and single '/'",
        ));
    }
    if manifest.version == 0 || manifest.version > LARGEST_INTEGER {
        return Err(field("version", "it must be from 1 to 2^53 - 1"));
    }
    if manifest.files.is_empty() || manifest.files.len() > limits.files {
        return Err(field(
            "files",
            format!("there must be from 1 to {}", limits.files),
        ));
    }
    if !manifest
        .files
        .windows(2)
        .all(|pair| pair[0].path < pair[1].path)
    {
        return Err(field(
            "files",
            "they are not in order of path, or one is there twice",
        ));
    }
    let mut seen = HashSet::new();
    for file in &manifest.files {
        if file.size > limits.file_bytes {
            return Err(field("files", format!("{} is too large", file.path)));
        }
        if file.path.as_str() == super::MANIFEST_NAME {
            return Err(field("files", "the manifest cannot list itself"));
        }
        if !seen.insert(file.path.folded()) {
            return Err(field(
                "files",
                format!("{} differs from another path only by case", file.path),
            ));
        }
    }
    for file in &manifest.files {
        let folded = file.path.folded();
        let mut ancestors = folded.match_indices('/').map(|(at, _)| &folded[..at]);
        if ancestors.any(|ancestor| seen.contains(ancestor)) {
            return Err(field(
                "files",
                format!("{} lies below another file", file.path),
            ));
        }
    }
    if !manifest
        .parents
        .windows(2)
        .all(|pair| pair[0].version < pair[1].version)
        || manifest
            .parents
            .iter()
            .any(|parent| parent.version == 0 || parent.version >= manifest.version)
        || manifest.parents.len() > limits.files
    {
        return Err(field(
            "parents",
            "versions must grow and stay below this version",
        ));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES
        && name.split('/').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        })
}

fn field(field: &'static str, reason: impl Into<String>) -> ManifestError {
    ManifestError::Field {
        field,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(path: &str) -> FileEntry {
        FileEntry {
            path: BundlePath::parse(path).unwrap(),
            role: Role::Model,
            size: 3,
            blake3: Digest::blake3(b"abc"),
            sha256: Digest::sha256(b"abc"),
            sealed_header: None,
        }
    }

    fn sample(paths: &[&str]) -> Result<Manifest, ManifestError> {
        Manifest {
            name: "smollm2/q4".into(),
            version: 7,
            minimum_runtime: RuntimeVersion(0, 1, 0),
            files: paths.iter().map(|path| entry(path)).collect(),
            parents: vec![Parent {
                manifest: Digest::sha256(b"parent"),
                version: 6,
            }],
        }
        .checked(&Limits::default())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let manifest = sample(&["b/c", "model.gguf", "a"]).unwrap();
        let json = manifest.to_json();
        assert!(json.starts_with(br#"{"files":[{"blake3":"6437b3ac"#));
        assert_eq!(
            Manifest::parse(&json, &Limits::default()).unwrap(),
            manifest
        );
    }

    #[test]
    fn keys_are_in_order_whatever_the_map_type_does() {
        fn ordered(value: &serde_json::Value) -> bool {
            match value {
                serde_json::Value::Object(map) => {
                    map.keys()
                        .collect::<Vec<_>>()
                        .windows(2)
                        .all(|pair| pair[0] < pair[1])
                        && map.values().all(ordered)
                }
                serde_json::Value::Array(items) => items.iter().all(ordered),
                _ => true,
            }
        }
        let json = sample(&["a"]).unwrap().to_json();
        assert!(ordered(&serde_json::from_slice(&json).unwrap()));
    }

    #[test]
    fn other_spellings_of_the_same_manifest_are_refused() {
        let text = String::from_utf8(sample(&["a", "b"]).unwrap().to_json()).unwrap();
        let parse = |text: &str| Manifest::parse(text.as_bytes(), &Limits::default());
        assert!(parse(&text).is_ok());
        assert!(matches!(
            parse(&format!("{text}\n")),
            Err(ManifestError::NotCanonical)
        ));
        assert!(matches!(
            parse(&text.replace("\"version\":7", "\"version\": 7")),
            Err(ManifestError::NotCanonical)
        ));
        assert!(matches!(
            parse(&text.replace("smollm2", "smo\\u006clm2")),
            Err(ManifestError::NotCanonical)
        ));
        assert!(parse(&text.replace("\"version\":7", "\"version\":7,\"version\":8")).is_err());
        assert!(parse(&text.replace("\"version\":7", "\"version\":7,\"x\":8")).is_err());
        assert!(parse(&text.replace("\"version\":7", "\"version\":7.0")).is_err());
        assert!(parse(&text.replace("\"a\"", "\"../a\"")).is_err());
        assert!(parse(&text.replace("\"a\"", "\"b\"")).is_err());
        assert!(parse(&text.replace("\"a\"", "\"c\"")).is_err());
    }

    #[test]
    fn colliding_paths_are_refused() {
        assert!(sample(&["a", "A"]).is_err());
        assert!(sample(&["a", "a/b"]).is_err());
        assert!(sample(&["A", "a/b"]).is_err());
        assert!(sample(&["manifest.json"]).is_err());
        assert!(sample(&[]).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_goes_unnoticed(at in 0usize..600, bit in 0u8..8) {
            let manifest = sample(&["a", "b/c"]).unwrap();
            let mut json = manifest.to_json();
            let at = at % json.len();
            json[at] ^= 1 << bit;
            if let Ok(parsed) = Manifest::parse(&json, &Limits::default()) {
                prop_assert_ne!(parsed, manifest);
            }
        }

        #[test]
        fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&bytes, &Limits::default());
        }
    }
}
