//! The tensors of a checkpoint directory: one safetensors file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::json;
use super::safetensors::{Element, read_header};
use crate::Limits;
use crate::gguf::ModelFileError;
use crate::source::{self, ByteSource, Piece};

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// All tensors of a checkpoint and the files they lie in.
pub(super) struct Checkpoint {
    pub(super) files: Vec<Arc<dyn ByteSource>>,
    /// In file order.
    pub(super) tensors: Vec<Stored>,
}

/// One tensor as the checkpoint stores it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) element: Element,
    /// Dimensions, slowest first.
    pub(super) shape: Vec<u64>,
    /// Which of the files.
    pub(super) file: usize,
    /// Byte offset in that file; `bytes` from there are within it.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Checkpoint {
    pub(super) fn open(directory: &Path, limits: &Limits) -> Result<Self, ModelFileError> {
        let whole = directory.join(WHOLE);
        let mut checkpoint = Checkpoint {
            files: Vec::new(),
            tensors: Vec::new(),
        };
        if whole.is_file() {
            checkpoint.add(&whole, limits)?;
            return Ok(checkpoint);
        }
        let path = directory.join(INDEX);
        let Some(index) = json::read::<Index>(&path, limits)? else {
            return Err(json::invalid(
                directory,
                format!(
                    "holds neither {WHOLE} nor {INDEX}; fetch them, or convert the weights to safetensors"
                ),
            ));
        };
        for shard in shard_paths(&index, &path, directory, limits)? {
            checkpoint.add(&shard, limits)?;
        }
        checkpoint.check_against(&index, &path)?;
        Ok(checkpoint)
    }

    /// The bytes of `tensor`, from `skip` on.
    pub(super) fn piece(&self, tensor: &Stored, skip: u64, bytes: u64) -> Piece {
        Piece {
            source: self.files[tensor.file].clone(),
            offset: tensor.offset + skip,
            bytes,
        }
    }

    fn add(&mut self, path: &Path, limits: &Limits) -> Result<(), ModelFileError> {
        let source = source::open(path).map_err(|error| ModelFileError::Io {
            file: path.display().to_string(),
            source: error,
        })?;
        let most = limits.tensors.saturating_sub(self.tensors.len() as u64);
        let entries = read_header(source.as_ref(), most, limits)?;
        let file = self.files.len();
        self.files.push(source);
        let before = self.tensors.len();
        self.tensors
            .extend(entries.into_iter().map(|(name, entry)| Stored {
                name,
                element: entry.element,
                shape: entry.shape,
                file,
                offset: entry.bytes.start,
                bytes: entry.bytes.end - entry.bytes.start,
            }));
        self.tensors[before..].sort_by_key(|tensor| tensor.offset);
        Ok(())
    }

    /// That the shards hold what the index says, each tensor once and where it says.
    fn check_against(&self, index: &Index, path: &Path) -> Result<(), ModelFileError> {
        let mut seen = BTreeSet::new();
        for tensor in &self.tensors {
            let name = &tensor.name;
            if !seen.insert(name) {
                let what = format!("lists shards that both hold `{name}`; fetch them again");
                return Err(json::invalid(path, what));
            }
            let file = Path::new(self.files[tensor.file].name());
            let listed = index.weight_map.get(name).map(Path::new);
            if listed.map(Path::as_os_str) != file.file_name() {
                let what = format!(
                    "does not list `{name}` where it is, in {}; fetch the files of one revision",
                    file.display()
                );
                return Err(json::invalid(path, what));
            }
        }
        match index.weight_map.keys().find(|name| !seen.contains(name)) {
            Some(name) => Err(json::invalid(
                path,
                format!("lists `{name}`, which no shard holds; fetch the shards again"),
            )),
            None => Ok(()),
        }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn shard_paths(
    index: &Index,
    path: &Path,
    directory: &Path,
    limits: &Limits,
) -> Result<Vec<PathBuf>, ModelFileError> {
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    if names.is_empty() || names.len() as u64 > limits.shards.into() {
        let what = format!(
            "names {} shards where 1 to {} are allowed",
            names.len(),
            limits.shards
        );
        return Err(json::invalid(path, what));
    }
    names
        .into_iter()
        .map(|name| {
            let shard = json::beside(directory, name);
            shard
                .filter(|_| name.ends_with(".safetensors"))
                .ok_or_else(|| {
                    let what = "names a shard that is not a plain .safetensors file name; fetch it from a trusted place";
                    json::invalid(path, what)
                })
        })
        .collect()
}
