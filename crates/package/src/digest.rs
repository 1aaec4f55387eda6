//! Hashes of files: BLAKE3, whose tree lets all cores work on one file, and SHA-256, which the signature format needs.

use crate::Limits;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A hash of 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

/// Which hashes to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithms {
    /// SHA-256 only.
    Sha256,
    /// BLAKE3 only.
    Blake3,
    /// Both, at the same time.
    Both,
}

/// Size and hashes of one file; a hash that was not asked for is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileDigest {
    /// Length in bytes.
    pub size: u64,
    /// FIPS 180-4.
    pub sha256: Digest,
    /// Root of the BLAKE3 tree.
    pub blake3: Digest,
}

/// A file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{path} could not be read: {source}")]
pub struct DigestError {
    /// The file.
    pub path: String,
    /// What the operating system said.
    pub source: io::Error,
}

impl Digest {
    /// SHA-256 of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
        Digest(out)
    }

    /// BLAKE3 of `bytes`.
    pub fn blake3(bytes: &[u8]) -> Self {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// Reads 64 lower-case hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 64 {
            return None;
        }
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Digest(out))
    }

    /// 64 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        self.0
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|n| char::from(b"0123456789abcdef"[n as usize]))
            .collect()
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.to_hex())
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::from_hex(&text).ok_or_else(|| {
            serde::de::Error::custom("a hash is not 64 lower-case hexadecimal digits")
        })
    }
}

/// Hashes one file.
///
/// # Errors
/// [`DigestError`] when the file cannot be read.
pub fn hash_file(path: &Path, algorithms: Algorithms) -> Result<FileDigest, DigestError> {
    let result = match algorithms {
        Algorithms::Sha256 => sha256_file(path).map(|(size, sha256)| FileDigest {
            size,
            sha256,
            blake3: Digest([0; 32]),
        }),
        Algorithms::Blake3 => blake3_file(path).map(|(size, blake3)| FileDigest {
            size,
            sha256: Digest([0; 32]),
            blake3,
        }),
        Algorithms::Both => both(path),
    };
    result.map_err(|source| DigestError {
        path: path.display().to_string(),
        source,
    })
}

/// Hashes many files, several at once; the answers are in the order of `paths`.
///
/// # Errors
/// The first failure in the order of `paths`.
pub fn hash_files(
    paths: &[PathBuf],
    algorithms: Algorithms,
) -> Result<Vec<FileDigest>, DigestError> {
    let threads = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(paths.len());
    if threads <= 1 {
        return paths
            .iter()
            .map(|path| hash_file(path, algorithms))
            .collect();
    }
    let next = AtomicUsize::new(0);
    let mut found: Vec<(usize, Result<FileDigest, DigestError>)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(path) = paths.get(index) else {
                            return mine;
                        };
                        mine.push((index, hash_file(path, algorithms)));
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_default())
            .collect()
    });
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, result)| result).collect()
}

/// Reads a whole small file, refusing one that is longer than `most` bytes.
///
/// # Errors
/// What the operating system says, or `InvalidData` when it is too long.
pub(crate) fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut out = Vec::new();
    file.take(most + 1).read_to_end(&mut out)?;
    if out.len() as u64 > most {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is longer than {most} bytes"),
        ));
    }
    Ok(out)
}

fn both(path: &Path) -> io::Result<FileDigest> {
    thread::scope(|scope| {
        let tree = scope.spawn(|| blake3_file(path));
        let (size, sha256) = sha256_file(path)?;
        let (tree_size, blake3) = tree
            .join()
            .map_err(|_| io::Error::other("the hashing thread ended"))??;
        if tree_size != size {
            return Err(io::Error::other("it changed while it was read"));
        }
        Ok(FileDigest {
            size,
            sha256,
            blake3,
        })
    })
}

fn sha256_file(path: &Path) -> io::Result<(u64, Digest)> {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let size = each_block(path, |block| context.update(block))?;
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    Ok((size, Digest(out)))
}

fn blake3_file(path: &Path) -> io::Result<(u64, Digest)> {
    let mut hasher = blake3::Hasher::new();
    let size = each_block(path, |block| {
        hasher.update_rayon(block);
    })?;
    Ok((size, Digest(*hasher.finalize().as_bytes())))
}

/// Blocks large enough for BLAKE3 to spread over cores, small enough to stay in a shared cache.
const BLOCK_BYTES: usize = 1 << 20;

fn each_block(path: &Path, mut take: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > Limits::default().file_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is longer than any model",
        ));
    }
    let mut block = vec![0; BLOCK_BYTES.min(length as usize + 1)];
    let mut total = 0;
    loop {
        let count = file.read(&mut block)?;
        if count == 0 {
            return Ok(total);
        }
        take(&block[..count]);
        total += count as u64;
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_hashes() {
        assert_eq!(
            Digest::sha256(b"abc").to_hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            Digest::blake3(b"").to_hex(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn files_hash_as_their_bytes_do() {
        let directory = tempfile::tempdir().unwrap();
        let contents: Vec<Vec<u8>> = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 17]
            .map(|n| (0..n).map(|i| (i * 7 + i / 251) as u8).collect())
            .into();
        let paths: Vec<_> = (0..contents.len())
            .map(|i| directory.path().join(i.to_string()))
            .collect();
        for (path, bytes) in paths.iter().zip(&contents) {
            std::fs::write(path, bytes).unwrap();
        }
        let found = hash_files(&paths, Algorithms::Both).unwrap();
        for (digest, bytes) in found.iter().zip(&contents) {
            assert_eq!(digest.size, bytes.len() as u64);
            assert_eq!(digest.sha256, Digest::sha256(bytes));
            assert_eq!(digest.blake3, Digest::blake3(bytes));
        }
        assert!(hash_files(&[directory.path().join("none")], Algorithms::Both).is_err());
    }

    #[test]
    fn hexadecimal_is_strict() {
        let digest = Digest::sha256(b"x");
        assert_eq!(Digest::from_hex(&digest.to_hex()), Some(digest));
        assert_eq!(Digest::from_hex(&digest.to_hex().to_uppercase()), None);
        assert_eq!(Digest::from_hex("ab"), None);
    }
}
