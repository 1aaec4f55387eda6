//! Saved prefixes: a system prompt is computed once in the life of a device.
//!
//! File: magic, version, BLAKE3 of the model, description of the state's form, tokens, state, and a
//! BLAKE3 of everything before it. All integers little-endian.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use thiserror::Error;

use crate::backend::{BackendError, Decoder, SequenceId};
use crate::model_file::Model;

const MAGIC: &[u8; 8] = b"ONDPREFX";
const VERSION: u32 = 1;
const HASH_BYTES: usize = 32;
const MOST_TOKENS: u64 = 1 << 24;

/// Why a saved prefix was not written or not used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PrefixError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is not a saved prefix, or was cut or changed.
    #[error("{path}: is not a whole saved prefix; delete it, it will be made again")]
    Damaged {
        /// The file.
        path: String,
    },
    /// The prefix was saved with another model or other options.
    #[error("{path}: was saved with {what}; delete it or choose another file")]
    Foreign {
        /// The file.
        path: String,
        /// What differs.
        what: &'static str,
    },
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl PrefixError {
    pub(crate) fn other_tokens(path: &Path) -> Self {
        PrefixError::Foreign {
            path: path.display().to_string(),
            what: "another text",
        }
    }
}

pub(crate) fn save(
    path: &Path,
    model: &Model,
    decoder: &dyn Decoder,
    sequence: SequenceId,
    tokens: &[u32],
) -> Result<(), PrefixError> {
    let failed = |source| PrefixError::Io {
        path: path.display().to_string(),
        source,
    };
    // Written beside the target and renamed, so that a half-written prefix is never found.
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let written = (|| {
        let mut out = Hashed::new(BufWriter::new(File::create(&partial).map_err(failed)?));
        header(&mut out, model, decoder, tokens).map_err(failed)?;
        decoder.save(sequence, &mut out)?;
        let hash = out.hasher.finalize();
        out.inner.write_all(hash.as_bytes()).map_err(failed)?;
        let file = out.inner.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)?;
        fs::rename(&partial, path).map_err(failed)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

pub(crate) fn restore(
    path: &Path,
    model: &Model,
    decoder: &mut dyn Decoder,
) -> Result<(SequenceId, Vec<u32>), PrefixError> {
    let name = || path.display().to_string();
    let damaged = || PrefixError::Damaged { path: name() };
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => damaged(),
        _ => PrefixError::Io {
            path: name(),
            source,
        },
    };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut input = BufReader::new(file);
    verify(&mut input, length, &damaged, &failed)?;

    let mut input = BufReader::new(File::open(path).map_err(failed)?);
    let mut fixed = [0; MAGIC.len() + 4 + HASH_BYTES];
    input.read_exact(&mut fixed).map_err(failed)?;
    let (magic, rest) = fixed.split_at(MAGIC.len());
    let (version, hash) = rest.split_at(4);
    if magic != MAGIC || version != VERSION.to_le_bytes() {
        return Err(damaged());
    }
    let foreign = |what| PrefixError::Foreign { path: name(), what };
    if hash != model.hash().map_err(failed)?.as_bytes() {
        return Err(foreign("another model"));
    }
    let form = form(decoder);
    let mut saved_form = vec![0; read_u64(&mut input).map_err(failed)?.min(4096) as usize];
    input.read_exact(&mut saved_form).map_err(failed)?;
    if saved_form != form.as_bytes() {
        return Err(foreign(
            "other options (key/value type, context or version)",
        ));
    }
    let count = read_u64(&mut input).map_err(failed)?;
    if count > MOST_TOKENS || count * 4 > length {
        return Err(damaged());
    }
    let mut raw = vec![0; count as usize * 4];
    input.read_exact(&mut raw).map_err(failed)?;
    let tokens: Vec<u32> = raw
        .chunks_exact(4)
        .map(|raw| u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]))
        .collect();
    let sequence = decoder.restore(tokens.len(), &mut input)?;
    Ok((sequence, tokens))
}

/// Checks the hash at the file's end against everything before it.
fn verify(
    input: &mut impl Read,
    length: u64,
    damaged: &dyn Fn() -> PrefixError,
    failed: &dyn Fn(io::Error) -> PrefixError,
) -> Result<(), PrefixError> {
    let content = length.checked_sub(HASH_BYTES as u64).ok_or_else(damaged)?;
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut input.take(content), &mut hasher).map_err(failed)?;
    let mut stored = [0; HASH_BYTES];
    input.read_exact(&mut stored).map_err(failed)?;
    if *hasher.finalize().as_bytes() == stored {
        Ok(())
    } else {
        Err(damaged())
    }
}

fn header(
    out: &mut impl Write,
    model: &Model,
    decoder: &dyn Decoder,
    tokens: &[u32],
) -> io::Result<()> {
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(model.hash()?.as_bytes())?;
    let form = form(decoder);
    out.write_all(&(form.len() as u64).to_le_bytes())?;
    out.write_all(form.as_bytes())?;
    out.write_all(&(tokens.len() as u64).to_le_bytes())?;
    for token in tokens {
        out.write_all(&token.to_le_bytes())?;
    }
    Ok(())
}

/// Everything besides the model on which the state's bytes depend.
fn form(decoder: &dyn Decoder) -> String {
    format!(
        "{} {}; {}",
        env!("CARGO_PKG_VERSION"),
        decoder.device().backend,
        decoder.state_form()
    )
}

fn read_u64(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

struct Hashed<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Self {
        Hashed {
            inner,
            hasher: blake3::Hasher::new(),
        }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
