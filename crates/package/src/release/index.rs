//! The index of one model: its releases, who gets them, and the deltas between their files.

use super::ReleaseError;
use crate::Limits;
use crate::bundle::RuntimeVersion;
use crate::digest::Digest;
use crate::text::one_line;
use serde::{Deserialize, Serialize};

const FORMAT: &str = "ondine-index-1";
/// A rollout is counted in hundredths of a percent.
const BUCKETS: u64 = 10_000;

/// What a repository says about one model. It is a target of the signed metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    format: String,
    /// Name of the model.
    pub name: String,
    /// The kill switch: no device installs anything while it is set.
    #[serde(default)]
    pub halted: bool,
    /// Releases, oldest first.
    pub releases: Vec<Release>,
    /// Deltas between files.
    #[serde(default)]
    pub deltas: Vec<DeltaEntry>,
}

/// One release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Its number.
    pub version: u64,
    /// Its manifest; its SHA-256 is the release's identity.
    pub manifest: Blob,
    /// Signatures over the bundle, each in the OpenSSF Model Signing format.
    pub signatures: Vec<Blob>,
    /// The oldest runtime that can run it.
    pub minimum_runtime: String,
    /// Share of devices that get it, in hundredths of a percent: 10,000 is every one.
    pub rollout: u64,
    /// Devices that have it go back to the release before.
    #[serde(default)]
    pub withdrawn: bool,
}

/// A file of the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// Its hash, and its name below `blobs/`.
    pub sha256: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// What turns one file into another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaEntry {
    /// BLAKE3 of the file it starts from.
    pub from: Digest,
    /// BLAKE3 of the file it makes.
    pub to: Digest,
    /// Length of the file it makes, in bytes.
    pub to_size: u64,
    /// The delta itself.
    pub delta: Blob,
}

impl Index {
    /// An index without releases.
    pub fn new(name: &str) -> Self {
        Index {
            format: FORMAT.to_owned(),
            name: name.to_owned(),
            halted: false,
            releases: Vec::new(),
            deltas: Vec::new(),
        }
    }

    /// Reads an index and checks every number in it.
    ///
    /// # Errors
    /// [`ReleaseError::Metadata`].
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, ReleaseError> {
        let refused = |reason: String| ReleaseError::Metadata {
            what: "index".into(),
            reason,
        };
        let index: Index =
            serde_json::from_slice(bytes).map_err(|error| refused(one_line(&error)))?;
        if index.format != FORMAT {
            return Err(refused(format!("its format is not {FORMAT:?}")));
        }
        if index.releases.len() > limits.releases || index.deltas.len() > limits.releases {
            return Err(refused("it lists too many releases or deltas".into()));
        }
        let grows = index
            .releases
            .windows(2)
            .all(|pair| pair[0].version < pair[1].version);
        if !grows {
            return Err(refused("its releases are not in order".into()));
        }
        for release in &index.releases {
            let fault = if release.rollout > BUCKETS {
                Some("rolled out to more than everyone")
            } else if release.manifest.size > limits.manifest_bytes {
                Some("said to have a manifest that is too long")
            } else if release.signatures.len() > limits.signatures
                || release
                    .signatures
                    .iter()
                    .any(|blob| blob.size > limits.signature_bytes)
            {
                Some("said to have too many signatures, or too long ones")
            } else if release.minimum_runtime.parse::<RuntimeVersion>().is_err() {
                Some("for a runtime that is no version")
            } else {
                None
            };
            if let Some(fault) = fault {
                return Err(refused(format!("release {} is {fault}", release.version)));
            }
        }
        let within = |size: u64| size <= limits.file_bytes;
        if !index
            .deltas
            .iter()
            .all(|delta| within(delta.to_size) && within(delta.delta.size))
        {
            return Err(refused("a delta is longer than any file".into()));
        }
        Ok(index)
    }

    /// The index as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The release of that number.
    pub fn release(&self, version: u64) -> Option<&Release> {
        self.releases
            .iter()
            .find(|release| release.version == version)
    }
}

impl Release {
    /// Whether the device with this bucket gets it.
    pub fn reaches(&self, bucket: u64) -> bool {
        bucket < self.rollout
    }
}

/// Which of 10,000 buckets a device is in for one release: the same every time, and another one for each release, so that it is
/// not always the same devices that go first. A device that a rollout has reached stays reached when the share grows.
pub fn bucket(device: &str, name: &str, version: u64) -> u64 {
    let text = format!("ondine rollout 1\n{name}\n{version}\n{device}");
    let digest = Digest::blake3(text.as_bytes()).0;
    let (start, _) = digest.split_at(8);
    // The bias of the remainder is below 2⁻⁵⁰.
    start
        .iter()
        .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        % BUCKETS
}
