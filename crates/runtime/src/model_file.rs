//! A model as it lies on disk: metadata, description, tokenizer and chat template, without weights.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use thiserror::Error;

use crate::Limits;
use crate::backend::{Backend, BackendError, Decoder, LoadOptions};
use crate::chat_template::{ChatTemplate, SpecialTokens, TemplateError, fallback_for};
use crate::constraint::{ConstraintError, ConstraintFactory};
use crate::gguf::{ModelFile, ModelFileError};
use crate::hf;
use crate::model::{ModelSpec, model_spec};
use crate::tokenizer::{EncodeOptions, Tokenizer, TokenizerError};

/// Why a model could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file or directory is at fault.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// Its vocabulary is at fault.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// Its chat template is at fault.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The backend refused it.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// A model whose file was read and checked. Weights are loaded by a [`Backend`].
pub struct Model {
    path: PathBuf,
    file: ModelFile,
    spec: Arc<ModelSpec>,
    tokenizer: Arc<Tokenizer>,
    template: OnceLock<Result<ChatTemplate, TemplateError>>,
    constraints: OnceLock<Result<ConstraintFactory, ConstraintError>>,
    hash: OnceLock<blake3::Hash>,
}

impl Model {
    /// Opens a GGUF file, the first shard of a split one, or a Hugging Face directory
    /// (`config.json`, safetensors, `tokenizer.json`); of a directory with one GGUF file, that one.
    ///
    /// # Errors
    /// [`ModelError`] says what is wrong.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, ModelError> {
        if path.is_dir() && path.join("config.json").is_file() {
            let opened = hf::open(path, limits)?;
            let tokenizer = Tokenizer::from_hf_dir(path, limits)?;
            return Self::assemble(path, opened, tokenizer, limits);
        }
        let path = gguf_path(path)?;
        Self::from_file(&path, ModelFile::open(&path, limits)?, limits)
    }

    /// A model from a file that is already open; `path` is for reports.
    ///
    /// # Errors
    /// [`ModelError`] says what is wrong.
    pub fn from_file(path: &Path, file: ModelFile, limits: &Limits) -> Result<Self, ModelError> {
        let tokenizer = Tokenizer::from_gguf(&file.metadata, limits)?;
        Self::assemble(path, file, tokenizer, limits)
    }

    fn assemble(
        path: &Path,
        file: ModelFile,
        tokenizer: Tokenizer,
        limits: &Limits,
    ) -> Result<Self, ModelError> {
        let spec = model_spec(&file, limits)?;
        if tokenizer.vocab_len() > spec.vocabulary {
            return Err(ModelFileError::Tensor {
                tensor: spec.token_embedding.weight.clone(),
                what: format!(
                    "has {} rows for a vocabulary of {} tokens",
                    spec.vocabulary,
                    tokenizer.vocab_len()
                ),
            }
            .into());
        }
        Ok(Model {
            path: path.to_owned(),
            file,
            spec: Arc::new(spec),
            tokenizer: Arc::new(tokenizer),
            template: OnceLock::new(),
            constraints: OnceLock::new(),
            hash: OnceLock::new(),
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Metadata and tensor table.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// The checked description.
    pub fn spec(&self) -> &Arc<ModelSpec> {
        &self.spec
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The chat template: the model's own, else its family's documented form
    /// ([`ChatTemplate::origin`] tells).
    ///
    /// # Errors
    /// When the model's own template cannot be read.
    pub fn chat_template(&self) -> Result<&ChatTemplate, TemplateError> {
        self.template
            .get_or_init(|| self.read_template())
            .as_ref()
            .map_err(Clone::clone)
    }

    /// Tokens of a conversation that the chat template rendered. Special tokens in it are parsed; the
    /// beginning-of-text token is added only where the model wants one and the template wrote none.
    pub fn encode_rendered(&self, rendered: &str) -> Vec<u32> {
        let mut tokens = self.tokenizer.encode(
            rendered,
            EncodeOptions {
                add_special: true,
                parse_special: true,
            },
        );
        if let Some(begin) = self.tokenizer.bos()
            && tokens.starts_with(&[begin, begin])
        {
            tokens.remove(0);
        }
        tokens
    }

    /// What makes constraints for this model's vocabulary; built when first asked for.
    ///
    /// # Errors
    /// When the vocabulary cannot be used for constraints.
    pub fn constraints(&self) -> Result<&ConstraintFactory, ConstraintError> {
        self.constraints
            .get_or_init(|| ConstraintFactory::new(&self.tokenizer))
            .as_ref()
            .map_err(Clone::clone)
    }

    /// BLAKE3 of the model's files, computed when first asked for.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn hash(&self) -> io::Result<blake3::Hash> {
        if let Some(hash) = self.hash.get() {
            return Ok(*hash);
        }
        const SLAB: u64 = 4 << 20;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = Vec::new();
        for source in self.file.sources() {
            let mut start = 0;
            while start < source.len() {
                let end = source.len().min(start + SLAB);
                match source.as_slice() {
                    Some(all) => {
                        hasher.update(&all[start as usize..end as usize]);
                        source.release(start..end);
                    }
                    None => {
                        buffer.resize((end - start) as usize, 0);
                        source.read_at(start, &mut buffer)?;
                        hasher.update(&buffer);
                    }
                }
                start = end;
            }
        }
        Ok(*self.hash.get_or_init(|| hasher.finalize()))
    }

    /// Loads the weights on `backend`.
    ///
    /// # Errors
    /// What the backend says.
    pub fn load(
        &self,
        backend: &dyn Backend,
        options: &LoadOptions,
    ) -> Result<Box<dyn Decoder>, BackendError> {
        backend.load(&self.file, &self.spec, options)
    }

    fn read_template(&self) -> Result<ChatTemplate, TemplateError> {
        let tokenizer = &self.tokenizer;
        let text = |id: Option<u32>| {
            id.and_then(|id| tokenizer.token_text(id))
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default()
        };
        let tokens = SpecialTokens::new(&text(tokenizer.bos()), &text(tokenizer.eos()));
        let own = self.file.metadata.string("tokenizer.chat_template");
        match own.ok().flatten().filter(|source| !source.is_empty()) {
            Some(source) => ChatTemplate::from_source(source, tokens),
            None => {
                let has = |text: &str| tokenizer.id_of(text).is_some();
                ChatTemplate::fallback(fallback_for(&self.spec.architecture, &has), tokens)
            }
        }
    }
}

/// Opens metadata and tensor table alone, of anything that [`Model::open`] opens.
///
/// # Errors
/// [`ModelFileError`] says what is wrong.
pub fn open_model_file(path: &Path, limits: &Limits) -> Result<ModelFile, ModelFileError> {
    if path.is_dir() && path.join("config.json").is_file() {
        hf::open(path, limits)
    } else {
        ModelFile::open(&gguf_path(path)?, limits)
    }
}

/// `path` itself, or the one GGUF file in the directory `path`.
fn gguf_path(path: &Path) -> Result<PathBuf, ModelFileError> {
    if path.is_dir() {
        only_gguf(path)
    } else {
        Ok(path.to_owned())
    }
}

fn only_gguf(directory: &Path) -> Result<PathBuf, ModelFileError> {
    let refuse = |what: &str| ModelFileError::Invalid {
        file: directory.display().to_string(),
        what: what.to_owned(),
    };
    let entries = fs::read_dir(directory).map_err(|source| ModelFileError::Io {
        file: directory.display().to_string(),
        source,
    })?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "gguf")
        })
        .collect();
    found.sort();
    let first_shard = |path: &PathBuf| path.to_string_lossy().contains("-00001-of-");
    match found.as_slice() {
        [] => Err(refuse("holds neither config.json nor a .gguf file")),
        [one] => Ok(one.clone()),
        several => match several.iter().find(|path| first_shard(path)) {
            Some(first) => Ok(first.clone()),
            None => Err(refuse("holds several .gguf files; name one of them")),
        },
    }
}
