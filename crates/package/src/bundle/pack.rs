//! Files → bundle directory, and the check of a bundle directory against its manifest.

use super::MANIFEST_NAME;
use super::manifest::{FileEntry, Manifest, ManifestError, Parent, Role, RuntimeVersion};
use crate::Limits;
use crate::digest::{Algorithms, DigestError, hash_files, read_bounded};
use crate::path::BundlePath;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One file to pack.
#[derive(Clone, Debug)]
pub struct Input {
    /// Where it is now.
    pub from: PathBuf,
    /// Where it goes.
    pub path: BundlePath,
    /// What it is for.
    pub role: Role,
}

/// Why packing or checking a bundle failed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The manifest would break, or breaks, a rule.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file could not be hashed.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The directory to write already holds something.
    #[error("{0} is not empty; name a new directory")]
    NotEmpty(String),
    /// A file is not what the manifest says.
    #[error("{path} is not the file of the manifest: {reason}; fetch the bundle again")]
    Differs {
        /// The file, as the manifest names it.
        path: String,
        /// What is different.
        reason: &'static str,
    },
}

/// Writes a bundle into the new or empty directory `out`: the files, and the manifest last.
/// The same inputs give the same bytes, whatever their dates or the order in which they are named.
///
/// # Errors
/// [`PackError`]; the directory may then hold some of the files, but no manifest.
pub fn pack(
    inputs: &[Input],
    name: &str,
    version: u64,
    minimum_runtime: RuntimeVersion,
    parents: &[Parent],
    out: &Path,
    limits: &Limits,
) -> Result<Manifest, PackError> {
    let paths: Vec<PathBuf> = inputs.iter().map(|input| input.from.clone()).collect();
    let digests = hash_files(&paths, Algorithms::Both)?;
    let mut files = inputs
        .iter()
        .zip(&digests)
        .map(|(input, digest)| FileEntry {
            path: input.path.clone(),
            role: input.role,
            size: digest.size,
            blake3: digest.blake3,
            sha256: digest.sha256,
            sealed_header: None,
        })
        .collect::<Vec<_>>();
    for (file, input) in files.iter_mut().zip(inputs) {
        let header = crate::seal::header_digest(&input.from, limits);
        file.sealed_header = header.map_err(at(&input.from))?;
    }
    let manifest = Manifest {
        name: name.to_owned(),
        version,
        minimum_runtime,
        files,
        parents: parents.to_vec(),
    }
    .checked(limits)?;

    fs::create_dir_all(out).map_err(at(out))?;
    if fs::read_dir(out).map_err(at(out))?.next().is_some() {
        return Err(PackError::NotEmpty(out.display().to_string()));
    }
    for input in inputs {
        let to = input.path.under(out);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        fs::copy(&input.from, &to).map_err(at(&input.from))?;
    }
    check_files(&manifest, out, Algorithms::Blake3)?;
    let to = out.join(MANIFEST_NAME);
    fs::write(&to, manifest.to_json()).map_err(at(&to))?;
    Ok(manifest)
}

/// Reads the manifest in `directory` and checks every file it lists, and that there is no other.
/// Files named in `beside` (a signature) may be there too.
///
/// # Errors
/// [`PackError`] with the first file that is missing, different or not listed.
pub fn check(
    directory: &Path,
    algorithms: Algorithms,
    beside: &[&str],
    limits: &Limits,
) -> Result<Manifest, PackError> {
    let path = directory.join(MANIFEST_NAME);
    let bytes = read_bounded(&path, limits.manifest_bytes).map_err(at(&path))?;
    let manifest = Manifest::parse(&bytes, limits)?;
    let listed: BTreeSet<&str> = manifest
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect();
    let entries = crate::signature::walk(directory, limits).map_err(|error| PackError::File {
        path: directory.display().to_string(),
        source: io::Error::other(error.to_string()),
    })?;
    for entry in entries {
        let found = entry.as_str();
        if found != MANIFEST_NAME && !listed.contains(found) && !beside.contains(&found) {
            return Err(PackError::Differs {
                path: found.to_owned(),
                reason: "it is not listed",
            });
        }
    }
    check_files(&manifest, directory, algorithms)?;
    Ok(manifest)
}

fn check_files(
    manifest: &Manifest,
    directory: &Path,
    algorithms: Algorithms,
) -> Result<(), PackError> {
    let differs = |file: &FileEntry, reason| PackError::Differs {
        path: file.path.to_string(),
        reason,
    };
    let paths: Vec<PathBuf> = manifest
        .files
        .iter()
        .map(|file| file.path.under(directory))
        .collect();
    for (file, path) in manifest.files.iter().zip(&paths) {
        let length = fs::symlink_metadata(path).map_err(|_| differs(file, "it is missing"))?;
        if !length.is_file() {
            return Err(differs(file, "it is not a regular file"));
        }
        if length.len() != file.size {
            return Err(differs(file, "its size differs"));
        }
    }
    for (file, digest) in manifest.files.iter().zip(hash_files(&paths, algorithms)?) {
        let wrong = (algorithms != Algorithms::Sha256 && digest.blake3 != file.blake3)
            || (algorithms != Algorithms::Blake3 && digest.sha256 != file.sha256);
        if wrong || digest.size != file.size {
            return Err(differs(file, "its hash differs"));
        }
    }
    Ok(())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PackError + use<> {
    let path = path.display().to_string();
    move |source| PackError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(directory: &Path) -> Vec<Input> {
        [
            ("model.gguf", Role::Model, b"weights".as_slice()),
            ("docs/LICENCE", Role::Licence, b"free"),
        ]
        .map(|(name, role, bytes)| {
            let from = directory.join(name.replace('/', "_"));
            fs::write(&from, bytes).unwrap();
            Input {
                from,
                path: BundlePath::parse(name).unwrap(),
                role,
            }
        })
        .to_vec()
    }

    fn packed(inputs: &[Input], out: &Path) -> Manifest {
        pack(
            inputs,
            "m",
            1,
            RuntimeVersion(0, 1, 0),
            &[],
            out,
            &Limits::default(),
        )
        .unwrap()
    }

    #[test]
    fn packing_is_deterministic() {
        let directory = tempfile::tempdir().unwrap();
        let mut inputs = inputs(directory.path());
        packed(&inputs, &directory.path().join("one"));
        inputs.reverse();
        packed(&inputs, &directory.path().join("two"));
        let read =
            |which: &str| fs::read(directory.path().join(which).join(MANIFEST_NAME)).unwrap();
        assert_eq!(read("one"), read("two"));
        assert!(
            pack(
                &inputs,
                "m",
                1,
                RuntimeVersion(0, 1, 0),
                &[],
                &directory.path().join("one"),
                &Limits::default()
            )
            .is_err()
        );
    }

    #[test]
    fn every_change_of_a_bundle_is_found() {
        let check_all =
            |out: &Path| check(out, Algorithms::Both, &["model.sig"], &Limits::default());
        type Change = fn(&Path);
        let changes: [(&str, Change); 6] = [
            ("flipped", |out| {
                fs::write(out.join("model.gguf"), b"weighty").unwrap()
            }),
            ("longer", |out| {
                fs::write(out.join("model.gguf"), b"weights!").unwrap()
            }),
            ("removed", |out| {
                fs::remove_file(out.join("docs/LICENCE")).unwrap()
            }),
            ("added", |out| {
                fs::write(out.join("docs/more"), b"").unwrap()
            }),
            ("renamed", |out| {
                fs::rename(out.join("model.gguf"), out.join("model2.gguf")).unwrap()
            }),
            ("manifest", |out| {
                fs::write(out.join(MANIFEST_NAME), b"{}").unwrap()
            }),
        ];
        for (name, change) in changes {
            let directory = tempfile::tempdir().unwrap();
            let out = directory.path().join("out");
            packed(&inputs(directory.path()), &out);
            fs::write(out.join("model.sig"), b"signature").unwrap();
            assert!(check_all(&out).is_ok());
            change(&out);
            assert!(check_all(&out).is_err(), "{name}");
        }
    }
}
