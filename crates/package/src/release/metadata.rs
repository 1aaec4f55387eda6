//! The metadata of The Update Framework: read with every check by `sigstore-tuf`, written here.

use super::ReleaseError;
use super::remote::{Remote, RemoteError, read_small};
use crate::digest::Digest;
use crate::signature::{Algorithm, PrivateKey, PublicKey};
use jiff::Timestamp;
use serde_json::{Value, json};
use sigstore_tuf::transport::FetchFuture;
use sigstore_tuf::{Error, Key, MetadataStore, Repository, TargetFile, Updater, UpdaterConfig};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// Version of the specification that is written.
const SPECIFICATION: &str = "1.0.34";

/// A client of one repository: what it has verified, and what it can verify next.
pub struct Client {
    updater: Updater,
    remote: Arc<dyn Remote>,
    now: Timestamp,
}

/// Files of verified metadata by name.
pub(super) type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Verified metadata in a directory of its own, under the names that other clients use.
#[derive(Clone, Debug)]
pub struct DirectoryCache(pub PathBuf);

impl Client {
    /// A client that trusts `root`, remembers what it verifies in `cache`, and believes that it is `now`.
    ///
    /// # Errors
    /// [`ReleaseError::Metadata`] when `root` is not a root signed by itself.
    pub fn new(
        remote: Arc<dyn Remote>,
        root: &[u8],
        cache: impl MetadataStore + 'static,
        now: Timestamp,
    ) -> Result<Self, ReleaseError> {
        let transport = Transport(remote.clone());
        let updater = Updater::new(transport, root)
            .map_err(|error| refused("root", &remote, &error))?
            .with_config(UpdaterConfig::default())
            .with_store(cache);
        Ok(Client {
            updater,
            remote,
            now,
        })
    }

    /// Brings the metadata up to date: root, timestamp, snapshot, targets.
    ///
    /// # Errors
    /// [`ReleaseError::Metadata`] for what breaks a rule, [`ReleaseError::Remote`] for what cannot be read.
    pub fn refresh(&mut self) -> Result<(), ReleaseError> {
        let refreshed = ready(self.updater.refresh(self.now));
        refreshed.map_err(|error| refused("metadata", &self.remote, &error))
    }

    /// The root that is trusted now.
    pub fn root(&self) -> &[u8] {
        self.updater.trusted().root_bytes()
    }

    /// Names of the targets that the top role lists.
    pub fn targets(&self) -> Vec<String> {
        let targets = self.updater.trusted().targets_role("targets");
        targets.map_or_else(Vec::new, |targets| {
            targets.targets.keys().cloned().collect()
        })
    }

    /// What is signed about a target; nothing when nobody vouches for it.
    ///
    /// # Errors
    /// As [`Client::refresh`].
    pub fn target(&mut self, path: &str) -> Result<Option<TargetFile>, ReleaseError> {
        let found = ready(self.updater.get_target_info(path, self.now));
        found.map_err(|error| refused(path, &self.remote, &error))
    }

    /// The bytes of a small target, at most `most`, checked.
    ///
    /// # Errors
    /// As [`Client::refresh`].
    pub fn fetch(
        &mut self,
        path: &str,
        target: &TargetFile,
        most: u64,
    ) -> Result<Vec<u8>, ReleaseError> {
        if target.length > most {
            return Err(ReleaseError::Metadata {
                what: path.to_owned(),
                reason: format!("it is {} bytes long, more than {most}", target.length),
            });
        }
        let bytes = ready(self.updater.download_target(target, path));
        bytes.map_err(|error| refused(path, &self.remote, &error))
    }
}

/// The error of the library as ours, with all its causes.
fn refused(what: &str, remote: &Arc<dyn Remote>, error: &Error) -> ReleaseError {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    let reason = reason.replace(['\n', '\r'], " ");
    match error {
        Error::Transport { .. } | Error::Io { .. } => ReleaseError::Remote {
            what: what.to_owned(),
            from: remote.name().to_owned(),
            reason: reason.trim_start_matches("transport error: ").to_owned(),
        },
        _ => ReleaseError::Metadata {
            what: what.to_owned(),
            reason,
        },
    }
}

/// The library is asynchronous for the sake of network clients; ours answer at once, so its futures are ready when first asked.
fn ready<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let mut future = std::pin::pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(result) => result,
        Poll::Pending => Err(Error::transport("a request was left unanswered")),
    }
}

struct Transport(Arc<dyn Remote>);

impl Transport {
    fn read(&self, path: &str, most: u64) -> Result<Option<Vec<u8>>, Error> {
        let failed = |error: RemoteError| Error::transport(format!("{path}: {error}"));
        read_small(self.0.as_ref(), path, most).map_err(failed)
    }
}

impl Repository for Transport {
    fn fetch_metadata<'a>(&'a self, name: &'a str, max_length: u64) -> FetchFuture<'a> {
        let answer = self.read(&format!("metadata/{name}"), max_length);
        Box::pin(std::future::ready(answer))
    }

    fn fetch_target<'a>(&'a self, path: &'a str, max_length: u64) -> FetchFuture<'a> {
        let answer = self.read(&format!("targets/{path}"), max_length);
        Box::pin(std::future::ready(answer))
    }
}

/// Metadata that is held in memory; the store writes it where it belongs.
pub(super) struct MemoryCache(pub Files);

impl MetadataStore for MemoryCache {
    fn load(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let files = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        Ok(files.get(name).cloned())
    }

    fn store(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        // Versioned copies and targets are not read again.
        let kept = !name.starts_with("targets/") && !name.starts_with(|c: char| c.is_ascii_digit());
        if kept {
            let mut files = self
                .0
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            files.insert(name.to_owned(), bytes.to_vec());
        }
        Ok(())
    }
}

impl MetadataStore for DirectoryCache {
    fn load(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        match fs::read(self.0.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(name.to_owned(), error)),
        }
    }

    fn store(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        // What lies in a folder of its own (old roots, targets) or is named by a version is not part of what is trusted now.
        if name.contains('/') || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(());
        }
        let part = self.0.join(format!("{name}.part"));
        let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, self.0.join(name)));
        written.map_err(|error| Error::io(name.to_owned(), error))
    }
}

/// A key as metadata writes it: its id and its JSON.
///
/// # Errors
/// [`ReleaseError::Keys`] for a curve that the framework does not know.
pub(super) fn key_json(public: &PublicKey) -> Result<(String, Value), ReleaseError> {
    let (kind, scheme) = match public.algorithm() {
        Algorithm::EcdsaP256 => ("ecdsa", "ecdsa-sha2-nistp256"),
        Algorithm::EcdsaP384 => ("ecdsa", "ecdsa-sha2-nistp384"),
        Algorithm::Ed25519 => ("ed25519", "ed25519"),
        Algorithm::EcdsaP521 => {
            return Err(ReleaseError::Keys(
                "metadata is signed with ECDSA on P-256 or P-384, or Ed25519; give such a key"
                    .into(),
            ));
        }
    };
    let public = match public.algorithm() {
        Algorithm::Ed25519 => public
            .raw()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        _ => public.to_pem(),
    };
    let value = json!({ "keytype": kind, "scheme": scheme, "keyval": { "public": public } });
    let key: Key = serde_json::from_value(value.clone())
        .map_err(|error| ReleaseError::Keys(error.to_string()))?;
    let id = key
        .key_id()
        .map_err(|error| ReleaseError::Keys(error.to_string()))?;
    Ok((id, value))
}

/// `role` with the fields of `body`, signed by `keys`.
///
/// # Errors
/// [`ReleaseError::Keys`] when a key cannot sign.
pub(super) fn sign_role(
    role: &str,
    version: u64,
    expires: Timestamp,
    body: Value,
    keys: &[&PrivateKey],
) -> Result<Vec<u8>, ReleaseError> {
    let failed = |error: &dyn std::fmt::Display| ReleaseError::Keys(error.to_string());
    let mut signed = json!({
        "_type": role,
        "spec_version": SPECIFICATION,
        "version": version,
        "expires": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    if let (Some(signed), Value::Object(body)) = (signed.as_object_mut(), body) {
        signed.extend(body);
    }
    let bytes = sigstore_tuf::canonical_json::to_canonical_bytes(&signed)
        .map_err(|error| failed(&error))?;
    let mut signatures = Vec::new();
    for key in keys {
        let (id, _) = key_json(key.public())?;
        let signature = key.sign(&bytes).map_err(|error| failed(&error))?;
        let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        signatures.push(json!({ "keyid": id, "sig": hex }));
    }
    let whole = json!({ "signatures": signatures, "signed": signed });
    serde_json::to_vec(&whole).map_err(|error| failed(&error))
}

/// Length and hash of `bytes` as metadata writes them.
pub(super) fn pin(bytes: &[u8]) -> Value {
    json!({ "length": bytes.len(), "hashes": { "sha256": Digest::sha256(bytes).to_hex() } })
}

/// Reads the highest `N.root.json` in `directory`.
pub(super) fn newest_root(directory: &Path) -> io::Result<Option<(u64, Vec<u8>)>> {
    let mut found = None;
    let mut version = 1;
    loop {
        match fs::read(directory.join(format!("{version}.root.json"))) {
            Ok(bytes) => found = Some((version, bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error),
        }
        version += 1;
    }
}
