//! A bundle → a repository that devices update from.

use super::index::{Blob, DeltaEntry, Index, Release};
use super::metadata::{key_json, newest_root, pin, sign_role};
use super::policy::Trust;
use super::{ReleaseError, blob_path};
use crate::Limits;
use crate::bundle::{self, FileEntry, MANIFEST_NAME, Manifest, Role};
use crate::delta;
use crate::digest::{Algorithms, Digest, hash_file, read_bounded};
use crate::signature::{PrivateKey, PublicKey};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use sigstore_tuf::TrustedMetadataSet;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Ends the target that is a model's index.
pub(super) const INDEX_SUFFIX: &str = ".index.json";
/// The target that is the trust policy.
pub(super) const TRUST_TARGET: &str = "trust.json";

/// Keys of the repository's roles. One key may have several roles, but the root's should be kept apart and offline.
#[derive(Default)]
pub struct Keys<'a> {
    /// Says who may do what. Needed for a new repository, and to change keys.
    pub root: &'a [PrivateKey],
    /// Says what the releases are. Needed for every change of them.
    pub release: &'a [PrivateKey],
    /// Says what is newest; the first release key when there is none.
    pub online: Option<&'a PrivateKey>,
    /// How many of the root's keys must sign; 0 means all that are given.
    pub root_threshold: usize,
    /// How many of the release keys must sign; 0 means all that are given.
    pub release_threshold: usize,
}

/// What to publish.
pub struct Publication<'a> {
    /// Directory of the repository; made if need be.
    pub to: &'a Path,
    /// The keys that the repository has now.
    pub keys: Keys<'a>,
    /// Other keys from now on: signed by the old root's keys and the new.
    pub rotate: Option<Keys<'a>>,
    /// A new release: directory of the bundle, and its signatures.
    pub bundle: Option<(&'a Path, &'a [PathBuf])>,
    /// Bundles of earlier releases to make deltas from.
    pub delta_from: &'a [PathBuf],
    /// Which model, where there is no bundle and the repository has several.
    pub name: Option<&'a str>,
    /// Release and its share of devices, in hundredths of a percent; 0 is the newest release.
    pub rollout: Option<(u64, u64)>,
    /// A release that devices go back from.
    pub withdraw: Option<u64>,
    /// Stops all installations, or lets them go on.
    pub halt: Option<bool>,
    /// Who may sign bundles from now on.
    pub trust: Option<Trust>,
    /// Days until the root, the releases, and what is newest expire.
    pub expires_days: [u32; 3],
    /// Now.
    pub now: Timestamp,
    /// Bounds.
    pub limits: &'a Limits,
}

/// What was published.
#[derive(Clone, Debug)]
pub struct Published {
    /// The model, when its index was changed.
    pub name: Option<String>,
    /// The release, when there is a new one.
    pub version: Option<u64>,
    /// Version of the root.
    pub root_version: u64,
    /// When a device will want newer metadata.
    pub expires: Timestamp,
    /// Deltas that were made: path in the bundle, bytes of the delta, bytes of the file.
    pub deltas: Vec<(String, u64, u64)>,
}

/// Writes what is new; the file that makes it visible comes last, so that a reader sees the old state or the new.
///
/// # Errors
/// [`ReleaseError`]; the repository then offers what it offered before.
pub fn publish(publication: &Publication<'_>) -> Result<Published, ReleaseError> {
    let metadata = publication.to.join("metadata");
    for directory in ["metadata", "targets", "blobs"] {
        let path = publication.to.join(directory);
        fs::create_dir_all(&path).map_err(file(&path))?;
    }
    let (root_version, root, root_is_new) = root(publication, &metadata)?;
    let before = Before::read(publication.to, publication.limits)?;
    let keys = publication.rotate.as_ref().unwrap_or(&publication.keys);

    let mut targets = before.targets.clone();
    let mut out = Published {
        name: None,
        version: None,
        root_version,
        expires: publication.now,
        deltas: Vec::new(),
    };
    let trust = trust(publication, &before, keys)?;
    let trust_json = trust.to_json();
    targets.insert(TRUST_TARGET.into(), trust_json.clone());
    if let Some(mut index) = index(publication, &before)? {
        change(publication, &mut index, &trust, &mut out)?;
        Index::parse(&index.to_json(), publication.limits)?;
        targets.insert(format!("{}{INDEX_SUFFIX}", index.name), index.to_json());
        out.name = Some(index.name);
    }

    let rotated = publication.rotate.is_some();
    let mut new_files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    if root_is_new {
        new_files.push((
            metadata.join(format!("{root_version}.root.json")),
            root.clone(),
        ));
    }
    let expires = |role: usize| {
        let days = i64::from(publication.expires_days[role]);
        publication
            .now
            .checked_add(SignedDuration::from_hours(24 * days))
            .map_err(|_| ReleaseError::Keys("the expiry is too far away".into()))
    };
    // Targets are signed again only when they change, so that the release keys can stay offline.
    let (targets_version, targets_bytes) = match before.targets_metadata {
        Some((version, ref bytes)) if targets == before.targets && !rotated => {
            (version, bytes.clone())
        }
        _ => {
            let version = before.targets_version() + 1;
            let mut listed = Map::new();
            for (path, bytes) in &targets {
                listed.insert(path.clone(), pin(bytes));
                new_files.push((target_file(publication.to, path, bytes), bytes.clone()));
            }
            let release: Vec<&PrivateKey> = keys.release.iter().collect();
            if release.is_empty() {
                return Err(ReleaseError::Keys(
                    "a change of releases needs the release key".into(),
                ));
            }
            let bytes = sign_role(
                "targets",
                version,
                expires(1)?,
                json!({ "targets": listed }),
                &release,
            )?;
            new_files.push((
                metadata.join(format!("{version}.targets.json")),
                bytes.clone(),
            ));
            (version, bytes)
        }
    };
    let online = keys
        .online
        .or(keys.release.first())
        .ok_or_else(|| ReleaseError::Keys("give the online key, or the release key".into()))?;
    let mut pinned = pin(&targets_bytes);
    pinned["version"] = targets_version.into();
    let snapshot_version = before.snapshot_version + 1;
    let body = json!({ "meta": { "targets.json": pinned } });
    let snapshot = sign_role("snapshot", snapshot_version, expires(2)?, body, &[online])?;
    let mut pinned = pin(&snapshot);
    pinned["version"] = snapshot_version.into();
    let body = json!({ "meta": { "snapshot.json": pinned } });
    out.expires = expires(2)?;
    let timestamp = sign_role(
        "timestamp",
        before.timestamp_version + 1,
        out.expires,
        body,
        &[online],
    )?;

    check(
        &root,
        &timestamp,
        &snapshot,
        &targets_bytes,
        publication.now,
    )?;
    new_files.push((
        metadata.join(format!("{snapshot_version}.snapshot.json")),
        snapshot,
    ));
    new_files.push((metadata.join("timestamp.json"), timestamp));
    for (path, bytes) in new_files {
        write(&path, &bytes)?;
    }
    Ok(out)
}

/// What the repository held before, as its publisher: signatures are not checked, expiry does not matter.
struct Before {
    timestamp_version: u64,
    snapshot_version: u64,
    targets_metadata: Option<(u64, Vec<u8>)>,
    /// Every target by its path.
    targets: BTreeMap<String, Vec<u8>>,
}

impl Before {
    fn read(repository: &Path, limits: &Limits) -> Result<Self, ReleaseError> {
        let metadata = repository.join("metadata");
        let mut before = Before {
            timestamp_version: 0,
            snapshot_version: 0,
            targets_metadata: None,
            targets: BTreeMap::new(),
        };
        let path = metadata.join("timestamp.json");
        if !path.exists() {
            return Ok(before);
        }
        let timestamp = read_json(&path)?;
        before.timestamp_version = number(&timestamp, "/signed/version", &path)?;
        before.snapshot_version = number(&timestamp, "/signed/meta/snapshot.json/version", &path)?;
        let path = metadata.join(format!("{}.snapshot.json", before.snapshot_version));
        let version = number(
            &read_json(&path)?,
            "/signed/meta/targets.json/version",
            &path,
        )?;
        let path = metadata.join(format!("{version}.targets.json"));
        let bytes = read_bounded(&path, limits.index_bytes).map_err(file(&path))?;
        let targets = parse(&bytes, &path)?;
        before.targets_metadata = Some((version, bytes));
        let listed = targets
            .pointer("/signed/targets")
            .and_then(Value::as_object);
        for (name, target) in listed.into_iter().flatten() {
            let hash = target.pointer("/hashes/sha256").and_then(Value::as_str);
            let path = named(repository, name, hash.unwrap_or_default());
            let bytes = read_bounded(&path, limits.index_bytes).map_err(file(&path))?;
            before.targets.insert(name.clone(), bytes);
        }
        Ok(before)
    }

    fn targets_version(&self) -> u64 {
        self.targets_metadata
            .as_ref()
            .map_or(0, |(version, _)| *version)
    }
}

/// The root to sign under: the one that is there, or a new one.
fn root(
    publication: &Publication<'_>,
    metadata: &Path,
) -> Result<(u64, Vec<u8>, bool), ReleaseError> {
    let old = newest_root(metadata).map_err(file(metadata))?;
    let keys = match (&old, &publication.rotate) {
        (Some((version, bytes)), None) => return Ok((*version, bytes.clone(), false)),
        (_, Some(new)) => new,
        (None, None) => &publication.keys,
    };
    if keys.root.is_empty() || keys.release.is_empty() {
        return Err(ReleaseError::Keys(
            "a new repository needs a root key and a release key".into(),
        ));
    }
    let version = old.as_ref().map_or(1, |(version, _)| version + 1);
    let online = keys.online.unwrap_or(&keys.release[0]);
    let mut all = Map::new();
    let mut role = |keys: &[&PublicKey], threshold: usize| -> Result<Value, ReleaseError> {
        let mut ids = Vec::new();
        for key in keys {
            let (id, value) = key_json(key)?;
            all.insert(id.clone(), value);
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let threshold = if threshold == 0 { ids.len() } else { threshold };
        if threshold > ids.len() {
            return Err(ReleaseError::Keys(format!(
                "{threshold} signatures are asked for and there are {} keys",
                ids.len()
            )));
        }
        Ok(json!({ "keyids": ids, "threshold": threshold }))
    };
    let public = |keys: &'_ [PrivateKey]| {
        keys.iter()
            .map(|key| key.public().clone())
            .collect::<Vec<_>>()
    };
    let (root_keys, release_keys) = (public(keys.root), public(keys.release));
    let roles = json!({
        "root": role(&root_keys.iter().collect::<Vec<_>>(), keys.root_threshold)?,
        "targets": role(&release_keys.iter().collect::<Vec<_>>(), keys.release_threshold)?,
        "snapshot": role(&[online.public()], 1)?,
        "timestamp": role(&[online.public()], 1)?,
    });
    let body = json!({ "consistent_snapshot": true, "keys": all, "roles": roles });
    let days = i64::from(publication.expires_days[0]);
    let expires = publication
        .now
        .checked_add(SignedDuration::from_hours(24 * days))
        .map_err(|_| ReleaseError::Keys("the expiry is too far away".into()))?;
    let mut signers: Vec<&PrivateKey> = Vec::new();
    let old_keys: &[PrivateKey] = if old.is_some() {
        publication.keys.root
    } else {
        &[]
    };
    for key in keys.root.iter().chain(old_keys) {
        if !signers.iter().any(|known| known.public() == key.public()) {
            signers.push(key);
        }
    }
    let bytes = sign_role("root", version, expires, body, &signers)?;
    let checked = match &old {
        Some((_, old)) => {
            TrustedMetadataSet::from_root(old).and_then(|mut trusted| trusted.update_root(&bytes))
        }
        None => TrustedMetadataSet::from_root(&bytes).map(|_| ()),
    };
    checked.map_err(|error| {
        ReleaseError::Keys(format!(
            "these keys do not make a root that devices accept ({error})"
        ))
    })?;
    Ok((version, bytes, true))
}

/// The policy that is given, else the one that is there, else: the release keys may sign this model.
fn trust(
    publication: &Publication<'_>,
    before: &Before,
    keys: &Keys<'_>,
) -> Result<Trust, ReleaseError> {
    if let Some(trust) = &publication.trust {
        return Trust::parse(&trust.to_json());
    }
    if let Some(bytes) = before.targets.get(TRUST_TARGET) {
        return Trust::parse(bytes);
    }
    match keys.release.first() {
        Some(key) => Ok(Trust::one("*", key.public())),
        None => Err(ReleaseError::Keys(
            "a new repository needs a release key".into(),
        )),
    }
}

/// The index that is to change.
fn index(publication: &Publication<'_>, before: &Before) -> Result<Option<Index>, ReleaseError> {
    let changes = publication.bundle.is_some()
        || publication.rollout.is_some()
        || publication.withdraw.is_some()
        || publication.halt.is_some();
    if !changes {
        return Ok(None);
    }
    let names: Vec<&str> = before
        .targets
        .keys()
        .filter_map(|target| target.strip_suffix(INDEX_SUFFIX))
        .collect();
    let name = match publication.bundle {
        Some((directory, _)) => read_manifest(directory, publication.limits)?.1.name,
        None => match (publication.name, names.as_slice()) {
            (Some(name), _) => name.to_owned(),
            (None, [only]) => (*only).to_owned(),
            (None, _) => return Err(ReleaseError::Keys("say which model with its name".into())),
        },
    };
    match before.targets.get(&format!("{name}{INDEX_SUFFIX}")) {
        Some(bytes) => Index::parse(bytes, publication.limits).map(Some),
        None if publication.bundle.is_some() => Ok(Some(Index::new(&name))),
        None => Err(ReleaseError::NotOffered(name, names.join(", "))),
    }
}

fn change(
    publication: &Publication<'_>,
    index: &mut Index,
    trust: &Trust,
    out: &mut Published,
) -> Result<(), ReleaseError> {
    if let Some((directory, signatures)) = publication.bundle {
        let release = add_bundle(publication, directory, signatures, trust)?;
        out.version = Some(release.version);
        if index
            .releases
            .last()
            .is_some_and(|last| last.version >= release.version)
        {
            return Err(ReleaseError::Keys(format!(
                "release {} is not above those that are published",
                release.version
            )));
        }
        index.releases.push(release);
        for old in publication.delta_from {
            add_deltas(publication, old, directory, index, &mut out.deltas)?;
        }
    }
    let missing = |version: u64| ReleaseError::Keys(format!("there is no release {version}"));
    if let Some((version, share)) = publication.rollout {
        let newest = index.releases.last().map_or(0, |release| release.version);
        let version = if version == 0 { newest } else { version };
        let release = index
            .releases
            .iter_mut()
            .find(|release| release.version == version);
        release.ok_or_else(|| missing(version))?.rollout = share;
    }
    if let Some(version) = publication.withdraw {
        let release = index
            .releases
            .iter_mut()
            .find(|release| release.version == version);
        release.ok_or_else(|| missing(version))?.withdrawn = true;
    }
    if let Some(halt) = publication.halt {
        index.halted = halt;
    }
    Ok(())
}

/// Checks a bundle as a device will, and copies what is not there yet.
fn add_bundle(
    publication: &Publication<'_>,
    directory: &Path,
    signatures: &[PathBuf],
    trust: &Trust,
) -> Result<Release, ReleaseError> {
    let limits = publication.limits;
    let (bytes, manifest) = read_manifest(directory, limits)?;
    let mut texts = Vec::new();
    for path in signatures {
        texts.push(read_bounded(path, limits.signature_bytes).map_err(file(path))?);
    }
    trust.check(&texts, &bytes, &manifest, publication.now, limits)?;
    for entry in &manifest.files {
        copy_blob(publication.to, entry, &entry.path.under(directory))?;
    }
    let mut blobs = Vec::new();
    for text in &texts {
        blobs.push(write_blob(publication.to, text)?);
    }
    Ok(Release {
        version: manifest.version,
        manifest: write_blob(publication.to, &bytes)?,
        signatures: blobs,
        minimum_runtime: manifest.minimum_runtime.to_string(),
        rollout: 10_000,
        withdrawn: false,
    })
}

/// Deltas from the files of an earlier bundle to those of the new one, where they are smaller than the file.
fn add_deltas(
    publication: &Publication<'_>,
    old_directory: &Path,
    new_directory: &Path,
    index: &mut Index,
    made: &mut Vec<(String, u64, u64)>,
) -> Result<(), ReleaseError> {
    let (_, old) = read_manifest(old_directory, publication.limits)?;
    let (_, new) = read_manifest(new_directory, publication.limits)?;
    for file_new in &new.files {
        let same_path = old.files.iter().find(|file| file.path == file_new.path);
        let same_role = || {
            let mut models = old.files.iter().filter(|file| file.role == Role::Model);
            let only = models.next().filter(|_| models.next().is_none());
            only.filter(|_| file_new.role == Role::Model)
        };
        let Some(file_old) = same_path.or_else(same_role) else {
            continue;
        };
        let known =
            |delta: &DeltaEntry| delta.from == file_old.blake3 && delta.to == file_new.blake3;
        // Two sealed files share nothing.
        if file_old.blake3 == file_new.blake3
            || file_new.sealed_header.is_some()
            || index.deltas.iter().any(known)
        {
            continue;
        }
        let part = publication.to.join("blobs").join("delta.part");
        delta::diff(
            &file_old.path.under(old_directory),
            &file_new.path.under(new_directory),
            &part,
            publication.limits,
        )?;
        let found = hash_file(&part, Algorithms::Sha256).map_err(|error| ReleaseError::File {
            path: error.path,
            source: error.source,
        })?;
        if found.size >= file_new.size {
            fs::remove_file(&part).map_err(file(&part))?;
            continue;
        }
        let path = publication.to.join(blob_path(found.sha256));
        fs::rename(&part, &path).map_err(file(&path))?;
        index.deltas.push(DeltaEntry {
            from: file_old.blake3,
            to: file_new.blake3,
            to_size: file_new.size,
            delta: Blob {
                sha256: found.sha256,
                size: found.size,
            },
        });
        made.push((file_new.path.to_string(), found.size, file_new.size));
    }
    Ok(())
}

fn copy_blob(repository: &Path, entry: &FileEntry, from: &Path) -> Result<(), ReleaseError> {
    let to = repository.join(blob_path(entry.sha256));
    if to.exists() {
        return Ok(());
    }
    let part = to.with_extension("part");
    fs::copy(from, &part).map_err(file(from))?;
    let found = hash_file(&part, Algorithms::Both).map_err(|error| ReleaseError::File {
        path: error.path,
        source: error.source,
    })?;
    if found.size != entry.size || found.sha256 != entry.sha256 || found.blake3 != entry.blake3 {
        fs::remove_file(&part).map_err(file(&part))?;
        return Err(ReleaseError::Differs {
            what: entry.path.to_string(),
            from: "the bundle".into(),
            reason: "it was changed since it was packed".into(),
        });
    }
    fs::rename(&part, &to).map_err(file(&to))
}

fn write_blob(repository: &Path, bytes: &[u8]) -> Result<Blob, ReleaseError> {
    let blob = Blob {
        sha256: Digest::sha256(bytes),
        size: bytes.len() as u64,
    };
    write(&repository.join(blob_path(blob.sha256)), bytes)?;
    Ok(blob)
}

/// Takes the new metadata in as a device does, before anybody sees it.
fn check(
    root: &[u8],
    timestamp: &[u8],
    snapshot: &[u8],
    targets: &[u8],
    now: Timestamp,
) -> Result<(), ReleaseError> {
    let check = || -> Result<(), sigstore_tuf::Error> {
        let mut trusted = TrustedMetadataSet::from_root(root)?;
        trusted.check_root_expired(now)?;
        trusted.update_timestamp(timestamp, now)?;
        trusted.update_snapshot(snapshot, now)?;
        trusted.update_targets(targets, now).map(|_| ())
    };
    check().map_err(|error| {
        ReleaseError::Keys(format!(
            "devices would refuse what these keys sign ({error})"
        ))
    })
}

fn read_manifest(directory: &Path, limits: &Limits) -> Result<(Vec<u8>, Manifest), ReleaseError> {
    let path = directory.join(MANIFEST_NAME);
    let bytes = read_bounded(&path, limits.manifest_bytes).map_err(file(&path))?;
    let manifest = bundle::Manifest::parse(&bytes, limits)?;
    Ok((bytes, manifest))
}

/// `a/b.json` → `targets/a/HASH.b.json`, so that old and new lie side by side.
fn target_file(repository: &Path, path: &str, bytes: &[u8]) -> PathBuf {
    named(repository, path, &Digest::sha256(bytes).to_hex())
}

fn named(repository: &Path, path: &str, hash: &str) -> PathBuf {
    let targets = repository.join("targets");
    match path.rsplit_once('/') {
        Some((directory, name)) => targets.join(directory).join(format!("{hash}.{name}")),
        None => targets.join(format!("{hash}.{path}")),
    }
}

fn read_json(path: &Path) -> Result<Value, ReleaseError> {
    let bytes = read_bounded(path, Limits::default().index_bytes).map_err(file(path))?;
    parse(&bytes, path)
}

fn parse(bytes: &[u8], path: &Path) -> Result<Value, ReleaseError> {
    serde_json::from_slice(bytes).map_err(|error| ReleaseError::Metadata {
        what: path.display().to_string(),
        reason: error.to_string(),
    })
}

fn number(value: &Value, pointer: &str, path: &Path) -> Result<u64, ReleaseError> {
    let found = value.pointer(pointer).and_then(Value::as_u64);
    found.ok_or_else(|| ReleaseError::Metadata {
        what: path.display().to_string(),
        reason: format!("it has no {pointer}"),
    })
}

/// Writes beside and renames, so that a reader sees the old file or the new one.
fn write(path: &Path, bytes: &[u8]) -> Result<(), ReleaseError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(file(parent))?;
    }
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = File::create(&part).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written
        .and_then(|()| fs::rename(&part, path))
        .map_err(file(path))
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> ReleaseError + use<> {
    let path = path.display().to_string();
    move |source| ReleaseError::File { path, source }
}
