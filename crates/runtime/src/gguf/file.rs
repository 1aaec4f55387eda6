//! Opens model files: header, tensor table, shards.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ModelFileError;
use super::cursor::{Cursor, OutOfBytes};
use super::metadata::{HeaderBytes, Metadata, Slot, read_slot};
use crate::limits::Limits;
use crate::source::{self, ByteSource};
use ondine_kernels::TensorType;

const MAGIC: &[u8; 4] = b"GGUF";

/// Where one tensor lies. `offset + bytes` is within the source: checked when the file was opened.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Name, unique in the model.
    pub name: String,
    /// Dimensions, fastest first: a matrix of R rows and C columns is `[C, R]`.
    pub shape: Vec<u64>,
    /// Element format.
    pub tensor_type: TensorType,
    /// Which of the model's sources holds it.
    pub source: usize,
    /// Byte offset in that source.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// Elements of one row (the fastest dimension).
    pub fn columns(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Number of rows, all slower dimensions together.
    pub fn rows(&self) -> u64 {
        self.shape.iter().skip(1).product()
    }
}

/// A model's metadata and where its tensors are.
pub struct ModelFile {
    /// The metadata of the (first) file.
    pub metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
    /// The files, then the views of them.
    sources: Vec<Arc<dyn ByteSource>>,
    files: usize,
    weightless: Option<Weightless>,
}

/// What a model that was described without its weights says about the tensors it would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weightless {
    /// Whether the output head is the embedding table.
    pub(crate) tied: bool,
    /// Whether feed-forward networks are mixtures of experts.
    pub(crate) experts: bool,
    /// Rows of the embedding table.
    pub(crate) vocabulary: u64,
    /// Rows of a learnt position table, where the architecture has one.
    pub(crate) positions: u64,
}

impl ModelFile {
    /// Opens the GGUF file at `path`, and its other shards when it is split (`-00001-of-0000N`).
    ///
    /// # Errors
    /// [`ModelFileError`] says what is wrong with which file.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, ModelFileError> {
        let first = Self::from_source(open_source(path)?, limits)?;
        let count = first.metadata.unsigned("split.count")?.unwrap_or(1);
        if count <= 1 {
            return Ok(first);
        }
        if count > limits.shards.into() {
            return Err(ModelFileError::Invalid {
                file: path.display().to_string(),
                what: format!(
                    "declares {count} shards, more than the {} allowed",
                    limits.shards
                ),
            });
        }
        let number = first.metadata.unsigned("split.no")?.unwrap_or(0);
        if number != 0 {
            return Err(ModelFileError::Invalid {
                file: path.display().to_string(),
                what: format!(
                    "is shard {} of {count}; open the first one",
                    number.saturating_add(1)
                ),
            });
        }
        let mut whole = first;
        for number in 1..count {
            let path = shard_path(path, number, count)?;
            whole.append(Self::from_source(open_source(&path)?, limits)?, limits)?;
        }
        if let Some(expected) = whole.metadata.unsigned("split.tensors.count")?
            && expected != whole.tensors.len() as u64
        {
            return Err(ModelFileError::Invalid {
                file: path.display().to_string(),
                what: format!(
                    "its shards hold {} tensors instead of {expected}; fetch the missing ones",
                    whole.tensors.len()
                ),
            });
        }
        Ok(whole)
    }

    /// Reads one GGUF file from any source.
    ///
    /// # Errors
    /// [`ModelFileError`] says what is wrong.
    pub fn from_source(
        source: Arc<dyn ByteSource>,
        limits: &Limits,
    ) -> Result<Self, ModelFileError> {
        let header = if source.as_slice().is_some() {
            HeaderBytes::Shared(source.clone())
        } else {
            return Self::from_reader(source, limits);
        };
        match Parser::parse(&header, &source, limits) {
            Ok(file) => Ok(file),
            Err(ParseError::Ended { what }) => Err(ModelFileError::Truncated {
                file: source.name().to_owned(),
                what,
            }),
            Err(ParseError::Refused(error)) => Err(error),
        }
    }

    /// A model whose header was made in memory. Its tensors lie in `files`, or in `views` that are
    /// made of the files' bytes; `TensorInfo::source` counts the files first, then the views.
    ///
    /// # Errors
    /// When the header is malformed, a tensor passes the end of its source, or a name comes twice.
    pub fn from_parts(
        header: Vec<u8>,
        tensors: Vec<TensorInfo>,
        files: Vec<Arc<dyn ByteSource>>,
        views: Vec<Arc<dyn ByteSource>>,
        limits: &Limits,
    ) -> Result<Self, ModelFileError> {
        let memory: Arc<dyn ByteSource> = Arc::new(source::Memory::new("metadata", header));
        let mut file = Self::from_source(memory, limits)?;
        file.files = files.len();
        file.sources = files;
        file.sources.extend(views);
        for tensor in tensors {
            let end = tensor.offset.checked_add(tensor.bytes);
            let within = file
                .sources
                .get(tensor.source)
                .is_some_and(|source| end.is_some_and(|end| end <= source.len()));
            if !within {
                return Err(ModelFileError::Tensor {
                    tensor: tensor.name,
                    what: "lies past the end of its file; fetch the file again".into(),
                });
            }
            file.insert(tensor)?;
        }
        Ok(file)
    }

    /// The same with the promise of tensors that nobody has yet: enough to describe, not to load.
    pub(crate) fn with_promise(mut self, promise: Weightless) -> Self {
        self.weightless = Some(promise);
        self
    }

    /// Set when this file only describes a model.
    pub(crate) fn weightless(&self) -> Option<Weightless> {
        self.weightless
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&index| &self.tensors[index])
    }

    /// The source that holds `tensor`.
    pub fn source(&self, tensor: &TensorInfo) -> &Arc<dyn ByteSource> {
        &self.sources[tensor.source]
    }

    /// All files or buffers that the model consists of, without views of them.
    pub fn sources(&self) -> &[Arc<dyn ByteSource>] {
        &self.sources[..self.files]
    }

    /// Total bytes of all sources.
    pub fn bytes(&self) -> u64 {
        self.sources().iter().map(|source| source.len()).sum()
    }

    fn from_reader(source: Arc<dyn ByteSource>, limits: &Limits) -> Result<Self, ModelFileError> {
        let mut length = source.len().min(1 << 20);
        loop {
            let mut bytes = vec![0; length as usize];
            source
                .read_at(0, &mut bytes)
                .map_err(|error| ModelFileError::Io {
                    file: source.name().to_owned(),
                    source: error,
                })?;
            let header = HeaderBytes::Owned(bytes.into());
            match Parser::parse(&header, &source, limits) {
                Ok(file) => return Ok(file),
                Err(ParseError::Refused(error)) => return Err(error),
                Err(ParseError::Ended { what }) => {
                    if length == source.len() || length >= limits.header_bytes {
                        return Err(ModelFileError::Truncated {
                            file: source.name().to_owned(),
                            what,
                        });
                    }
                    length = (length * 2).min(source.len()).min(limits.header_bytes);
                }
            }
        }
    }

    fn append(&mut self, shard: ModelFile, limits: &Limits) -> Result<(), ModelFileError> {
        let base = self.sources.len();
        self.sources.extend(shard.sources);
        self.files = self.sources.len();
        if self.tensors.len() + shard.tensors.len() > limits.tensors as usize {
            return Err(ModelFileError::Invalid {
                file: self.sources[base].name().to_owned(),
                what: format!("brings the model over {} tensors", limits.tensors),
            });
        }
        for mut tensor in shard.tensors {
            tensor.source += base;
            self.insert(tensor)?;
        }
        Ok(())
    }

    fn insert(&mut self, tensor: TensorInfo) -> Result<(), ModelFileError> {
        let index = self.tensors.len();
        if self.index.insert(tensor.name.clone(), index).is_some() {
            return Err(ModelFileError::Tensor {
                tensor: tensor.name,
                what: "is declared twice".into(),
            });
        }
        self.tensors.push(tensor);
        Ok(())
    }
}

enum ParseError {
    /// The bytes at hand ended while reading `what`.
    Ended {
        what: String,
    },
    Refused(ModelFileError),
}

struct Parser<'a> {
    file: &'a str,
    limits: &'a Limits,
    cursor: Cursor<'a>,
}

impl Parser<'_> {
    fn parse(
        header: &HeaderBytes,
        source: &Arc<dyn ByteSource>,
        limits: &Limits,
    ) -> Result<ModelFile, ParseError> {
        let bytes = header.as_slice();
        let within = bytes.len().min(limits.header_bytes as usize);
        let mut parser = Parser {
            file: source.name(),
            limits,
            cursor: Cursor::new(&bytes[..within]),
        };
        let (tensor_count, entry_count) = parser.preamble()?;
        let (entries, index) = parser.metadata(entry_count)?;
        let metadata = Metadata {
            header: header.clone(),
            entries,
            index,
        };
        let alignment = parser.alignment(&metadata)?;
        let mut tensors = Vec::new();
        for number in 0..tensor_count {
            tensors.push(parser.tensor(number)?);
        }
        let data_start = (parser.cursor.position() as u64).next_multiple_of(alignment);
        let mut file = ModelFile {
            metadata,
            tensors: Vec::with_capacity(tensors.len()),
            index: HashMap::with_capacity(tensors.len()),
            sources: vec![source.clone()],
            files: 1,
            weightless: None,
        };
        for mut tensor in tensors {
            let placed = data_start.checked_add(tensor.offset).filter(|start| {
                start
                    .checked_add(tensor.bytes)
                    .is_some_and(|end| end <= source.len())
            });
            let Some(start) = placed else {
                return Err(ParseError::Refused(ModelFileError::Tensor {
                    tensor: tensor.name,
                    what: format!(
                        "lies past the end of {}; the download may be incomplete, fetch it again",
                        source.name()
                    ),
                }));
            };
            if tensor.offset % alignment != 0 {
                return Err(ParseError::Refused(ModelFileError::Tensor {
                    tensor: tensor.name,
                    what: format!("starts at an offset that is not a multiple of {alignment}"),
                }));
            }
            tensor.offset = start;
            file.insert(tensor).map_err(ParseError::Refused)?;
        }
        Ok(file)
    }

    fn preamble(&mut self) -> Result<(u64, u64), ParseError> {
        let magic = self.read("the magic bytes", |cursor| cursor.take(4))?;
        if magic != MAGIC {
            return Err(self.refuse("is not a GGUF file (wrong magic bytes)"));
        }
        let version = self.read("the version", Cursor::u32)?;
        if !(2..=3).contains(&version) {
            let what = if version.swap_bytes() <= 3 {
                "is a big-endian GGUF file; convert it to little-endian".to_owned()
            } else {
                format!(
                    "is GGUF version {version}; versions 2 and 3 are supported, convert it again"
                )
            };
            return Err(self.refuse(what));
        }
        let tensors = self.read("the tensor count", Cursor::u64)?;
        let entries = self.read("the metadata count", Cursor::u64)?;
        if tensors > self.limits.tensors {
            return Err(self.refuse(format!(
                "declares {tensors} tensors, more than the {} allowed",
                self.limits.tensors
            )));
        }
        if entries > self.limits.metadata_entries {
            return Err(self.refuse(format!(
                "declares {entries} metadata entries, more than the {} allowed",
                self.limits.metadata_entries
            )));
        }
        Ok((tensors, entries))
    }

    #[expect(clippy::type_complexity)]
    fn metadata(
        &mut self,
        count: u64,
    ) -> Result<(Vec<(String, Slot)>, HashMap<String, usize>), ParseError> {
        let mut entries: Vec<(String, Slot)> = Vec::new();
        let mut index = HashMap::new();
        for number in 0..count {
            let what = || format!("metadata entry {number} of {count}");
            let key = self.read_named(what, Cursor::string)?;
            if key.len() as u64 > self.limits.key_bytes {
                return Err(self.refuse(format!("{} has a key of {} bytes", what(), key.len())));
            }
            let Ok(key) = std::str::from_utf8(key) else {
                return Err(self.refuse(format!("{} has a key that is not UTF-8", what())));
            };
            let Some(slot) = self.read_named(what, read_slot)? else {
                return Err(self.refuse(format!("metadata `{key}` has an unknown type")));
            };
            if index.insert(key.to_owned(), entries.len()).is_some() {
                return Err(self.refuse(format!("metadata `{key}` is declared twice")));
            }
            entries.push((key.to_owned(), slot));
        }
        Ok((entries, index))
    }

    fn alignment(&self, metadata: &Metadata) -> Result<u64, ParseError> {
        let alignment = metadata
            .unsigned("general.alignment")
            .map_err(ParseError::Refused)?
            .unwrap_or(32);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(self.refuse(format!(
                "has an alignment of {alignment}, which is not a power of two up to 1 MiB"
            )));
        }
        Ok(alignment)
    }

    fn tensor(&mut self, number: u64) -> Result<TensorInfo, ParseError> {
        let what = || format!("entry {number} of the tensor table");
        let name = self.read_named(what, Cursor::string)?;
        let name = match std::str::from_utf8(name) {
            Ok(name) if name.len() <= 512 => name.to_owned(),
            _ => return Err(self.refuse(format!("{} has no proper name", what()))),
        };
        let refuse = |what: String| {
            ParseError::Refused(ModelFileError::Tensor {
                tensor: name.clone(),
                what,
            })
        };
        let dimensions = self.read_named(what, Cursor::u32)?;
        if dimensions == 0 || dimensions > self.limits.dimensions {
            return Err(refuse(format!("has {dimensions} dimensions")));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            shape.push(self.read_named(what, Cursor::u64)?);
        }
        let type_id = self.read_named(what, Cursor::u32)?;
        let offset = self.read_named(what, Cursor::u64)?;
        let Some(tensor_type) = TensorType::from_ggml(type_id) else {
            return Err(refuse(format!(
                "has element type {type_id}, which is not supported; convert the model to another type"
            )));
        };
        let rows = shape[1..]
            .iter()
            .try_fold(1u64, |product, &dimension| product.checked_mul(dimension));
        let bytes = usize::try_from(shape[0])
            .ok()
            .filter(|_| !shape.contains(&0))
            .and_then(|columns| tensor_type.row_bytes(columns))
            .and_then(|row| (row as u64).checked_mul(rows?));
        let Some(bytes) = bytes else {
            return Err(refuse(format!(
                "has the shape {shape:?}, which {tensor_type} cannot hold"
            )));
        };
        Ok(TensorInfo {
            name,
            shape,
            tensor_type,
            source: 0,
            offset,
            bytes,
        })
    }
}

impl<'a> Parser<'a> {
    fn read<T>(
        &mut self,
        what: &str,
        read: impl FnOnce(&mut Cursor<'a>) -> Result<T, OutOfBytes>,
    ) -> Result<T, ParseError> {
        self.read_named(|| what.to_owned(), read)
    }

    fn read_named<T>(
        &mut self,
        what: impl Fn() -> String,
        read: impl FnOnce(&mut Cursor<'a>) -> Result<T, OutOfBytes>,
    ) -> Result<T, ParseError> {
        read(&mut self.cursor).map_err(|OutOfBytes| ParseError::Ended { what: what() })
    }

    fn refuse(&self, what: impl Into<String>) -> ParseError {
        ParseError::Refused(ModelFileError::Invalid {
            file: self.file.to_owned(),
            what: what.into(),
        })
    }
}

fn open_source(path: &Path) -> Result<Arc<dyn ByteSource>, ModelFileError> {
    source::open(path).map_err(|error| ModelFileError::Io {
        file: path.display().to_string(),
        source: error,
    })
}

fn shard_path(first: &Path, number: u64, count: u64) -> Result<PathBuf, ModelFileError> {
    let refuse = || ModelFileError::Invalid {
        file: first.display().to_string(),
        what: format!("is split, but its name does not end in -00001-of-{count:05}.gguf"),
    };
    let name = first
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(refuse)?;
    let stem = name
        .strip_suffix(&format!("-00001-of-{count:05}.gguf"))
        .ok_or_else(refuse)?;
    Ok(first.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", number + 1)))
}

#[cfg(test)]
mod tests {
    use super::super::HeaderWriter;
    use super::*;
    use crate::source::Memory;

    fn open(bytes: Vec<u8>) -> Result<ModelFile, ModelFileError> {
        ModelFile::from_source(Arc::new(Memory::new("memory", bytes)), &Limits::default())
    }

    fn small() -> Vec<u8> {
        let mut header = HeaderWriter::new();
        header
            .string("general.architecture", "llama")
            .u32("llama.block_count", 2)
            .i32_array("numbers", &[1, -2, 3])
            .string_array("words", &["a", "", "long"]);
        header.tensor("first", &[4, 2], 0, 32);
        header.tensor("second", &[32], 8, 34);
        let mut bytes = header.finish();
        bytes.resize(bytes.len() + 32 + 34, 7);
        bytes
    }

    #[test]
    fn reads_what_the_writer_wrote() {
        let file = open(small()).unwrap();
        let metadata = &file.metadata;
        assert_eq!(
            metadata.string("general.architecture").unwrap(),
            Some("llama")
        );
        assert_eq!(metadata.unsigned("llama.block_count").unwrap(), Some(2));
        let numbers = metadata.array("numbers").unwrap().unwrap();
        assert_eq!(numbers.integers().unwrap().collect::<Vec<_>>(), [1, -2, 3]);
        let words = metadata.array("words").unwrap().unwrap();
        assert_eq!(
            words.strings().unwrap().collect::<Vec<_>>(),
            [&b"a"[..], b"", b"long"]
        );
        let second = file.tensor("second").unwrap();
        assert_eq!((second.bytes, second.rows(), second.columns()), (34, 1, 32));
    }

    #[test]
    fn every_truncation_is_refused_in_words() {
        let whole = small();
        for length in 0..whole.len() {
            let error = open(whole[..length].to_vec())
                .err()
                .expect("must be refused");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn no_flipped_byte_panics() {
        let whole = small();
        for position in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[position] ^= flip;
                if let Ok(file) = open(damaged) {
                    for tensor in file.tensors() {
                        assert!(tensor.offset + tensor.bytes <= whole.len() as u64);
                    }
                }
            }
        }
    }

    #[test]
    fn absurd_counts_cost_nothing() {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend_from_slice(&3u32.to_le_bytes());
        bytes.extend_from_slice(&1u64.to_le_bytes());
        bytes.extend_from_slice(&1_000_000_000u64.to_le_bytes());
        let error = open(bytes).err().unwrap().to_string();
        assert!(error.contains("1000000000 metadata entries"), "{error}");
    }

    #[test]
    fn a_reader_without_a_slice_gives_the_same() {
        struct Slow(Vec<u8>);
        impl ByteSource for Slow {
            fn name(&self) -> &str {
                "slow"
            }
            fn len(&self) -> u64 {
                self.0.len() as u64
            }
            fn read_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
                Memory::new("slow", self.0.clone()).read_at(offset, out)
            }
        }
        let slow = ModelFile::from_source(Arc::new(Slow(small())), &Limits::default()).unwrap();
        let whole = open(small()).unwrap();
        assert_eq!(slow.tensors().len(), whole.tensors().len());
        assert_eq!(slow.tensors()[1].offset, whole.tensors()[1].offset);
    }
}
