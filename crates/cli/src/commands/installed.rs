//! Models that were delivered: installed in a store, sealed, or both; and the test that a release must pass before it is used.

use super::delivery::identities;
use crate::error::CliError;
use ondine_hub::Settings;
use ondine_package::bundle::{MANIFEST_NAME, Manifest, Role};
use ondine_package::path::BundlePath;
use ondine_package::seal::{Identity, SealError, SealedFile, is_sealed};
use ondine_package::store::{Disk, Installed, Status, Store, StoreError};
use ondine_package::{ByteSource, Limits};
use ondine_runtime::backend::LoadOptions;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::sample::SamplingOptions;
use ondine_runtime::tokenizer::EncodeOptions;
use ondine_runtime::{GenerateOptions, Model, ModelError, Session, source};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

/// Where the store is.
#[derive(Debug, clap::Args)]
pub struct StoreArgs {
    /// Directory that holds the installed releases; `store` below ONDINE_HOME unless given
    #[arg(long, value_name = "DIR", env = "ONDINE_STORE")]
    pub store: Option<PathBuf>,
}

impl StoreArgs {
    /// The directory.
    ///
    /// # Errors
    /// When no home directory is known.
    pub fn path(&self) -> Result<PathBuf, CliError> {
        match &self.store {
            Some(path) => Ok(path.clone()),
            None => Ok(Settings::from_environment()?.home.join("store")),
        }
    }

    /// The store, which must be there already.
    ///
    /// # Errors
    /// `Failed` when it is not.
    pub fn open_existing(&self) -> Result<Store<Disk>, CliError> {
        let path = self.path()?;
        if !is_store(&path) {
            return Err(CliError::Failed(format!(
                "{}: no model is installed there; run ondine update first",
                path.display()
            )));
        }
        open_store(&path)
    }
}

/// Opens or makes a store.
///
/// # Errors
/// As the library.
pub fn open_store(path: &Path) -> Result<Store<Disk>, CliError> {
    Ok(Store::open(Disk, path, &Limits::default())?)
}

/// The store that was started, for as long as the process lives: its trial is this process.
static STARTED: OnceLock<Store<Disk>> = OnceLock::new();
/// Why a sealed file was refused while the runtime read it, which knows input and output errors only.
static REFUSAL: Mutex<Option<String>> = Mutex::new(None);

/// Opens a model that was delivered; nothing when `model` names another kind.
///
/// # Errors
/// `Refused` when it is not what it should be, `Failed` when it cannot be read.
pub fn open(model: &str, keys: &[PathBuf]) -> Result<Option<Model>, CliError> {
    if let Some(root) = store_of(model)? {
        let store = open_store(&root)?;
        let installed = store.start()?;
        let model = open_installed(&store, &installed, &identities(keys)?)?;
        let _ = STARTED.set(store);
        return Ok(Some(model));
    }
    let Some(path) = sealed_file(Path::new(model))? else {
        return Ok(None);
    };
    open_sealed(&path, Path::new(model), keys).map(Some)
}

/// The file of an installed model that is not sealed; nothing when `model` names another kind.
///
/// # Errors
/// As [`open`].
pub fn plain_path(model: &str) -> Result<Option<PathBuf>, CliError> {
    let Some(root) = store_of(model)? else {
        return Ok(None);
    };
    let store = open_store(&root)?;
    let installed = store.start()?;
    let path = store.object(only_model(&installed.manifest)?);
    let _ = STARTED.set(store);
    Ok(Some(path))
}

/// The started release has answered: it is healthy.
///
/// # Errors
/// `Failed` when the store cannot be written.
pub fn answered() -> Result<(), CliError> {
    match STARTED.get() {
        Some(store) if !matches!(store.status(), Ok(Status { healthy: true, .. })) => {
            Ok(store.mark_healthy()?)
        }
        _ => Ok(()),
    }
}

/// `error`, or the refusal of a sealed file that is behind it.
pub fn or_refusal(error: CliError) -> CliError {
    let mut refusal = REFUSAL
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    refusal.take().map_or(error, CliError::Refused)
}

/// Loads an installed release and asks what its self-test asks; the text says what went wrong.
///
/// # Errors
/// A sentence.
pub fn self_test(
    store: &Store<Disk>,
    installed: &Installed,
    identities: &[Identity],
) -> Result<(), String> {
    let model = open_installed(store, installed, identities).map_err(|error| error.to_string())?;
    let mut files = installed.manifest.files.iter();
    let test = match files.find(|file| file.role == Role::SelfTest) {
        None => SelfTest::default(),
        Some(file) => {
            let bytes = std::fs::read(store.object(file)).map_err(|error| error.to_string())?;
            serde_json::from_slice(&bytes)
                .map_err(|error| format!("{} cannot be read: {error}", file.path))?
        }
    };
    let (answer, speed) = ask(model, &test.prompt, test.tokens)?;
    let digest = answer_digest(&answer);
    if !test.answers.is_empty() && !test.answers.contains(&digest) {
        return Err(format!(
            "it answers {answer:?}, which is not a known answer"
        ));
    }
    match test.minimum_tokens_per_second {
        Some(floor) if speed < floor => Err(format!(
            "it writes {speed:.1} tokens per second and {floor:.1} are asked for"
        )),
        _ => Ok(()),
    }
}

/// What a bundle's `self_test.json` holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfTest {
    /// Asked as it is, without a chat template.
    pub prompt: String,
    /// Tokens of the answer, always the likeliest.
    pub tokens: usize,
    /// SHA-256 of the answers that are right; kinds of processors may round differently. None means that any will do.
    #[serde(default)]
    pub answers: Vec<String>,
    /// The speed floor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_tokens_per_second: Option<f64>,
}

impl Default for SelfTest {
    fn default() -> Self {
        SelfTest {
            prompt: "Hello".into(),
            tokens: 4,
            answers: Vec::new(),
            minimum_tokens_per_second: None,
        }
    }
}

/// How a self-test writes an answer.
pub fn answer_digest(answer: &str) -> String {
    ondine_package::digest::Digest::sha256(answer.as_bytes()).to_hex()
}

/// The likeliest answer of so many tokens, and tokens per second.
///
/// # Errors
/// A sentence.
pub fn ask(model: Model, prompt: &str, tokens: usize) -> Result<(String, f64), String> {
    let text =
        |error: &dyn std::fmt::Display| or_refusal(CliError::Failed(error.to_string())).to_string();
    let backend = CpuBackend::from_environment().map_err(|error| text(&error))?;
    let options = EncodeOptions {
        add_special: true,
        parse_special: true,
    };
    let prompt = model.tokenizer().encode(prompt, options);
    let options = LoadOptions {
        context: Some((prompt.len() + tokens + 1).max(64)),
        ..LoadOptions::default()
    };
    let decoder = model
        .load(&backend, &options)
        .map_err(|error| text(&error))?;
    let mut session = Session::new(Arc::new(model), decoder);
    let options = GenerateOptions {
        max_tokens: Some(tokens),
        sampling: SamplingOptions {
            temperature: 0.0,
            ..SamplingOptions::default()
        },
        ignore_end: true,
        ..GenerateOptions::default()
    };
    let start = Instant::now();
    let generation = session
        .generate(&prompt, options)
        .map_err(|error| text(&error))?;
    let mut answer = String::new();
    for piece in generation {
        answer.push_str(&piece.map_err(|error| text(&error))?.text);
    }
    Ok((answer, tokens as f64 / start.elapsed().as_secs_f64()))
}

/// The store that `model` names: by its directory, or by the name of the model that is installed in the default one.
fn store_of(model: &str) -> Result<Option<PathBuf>, CliError> {
    let path = Path::new(model);
    if is_store(path) {
        return Ok(Some(path.to_owned()));
    }
    let environment = std::env::var_os("ONDINE_STORE").map(PathBuf::from);
    let default = StoreArgs { store: environment }.path()?;
    if !is_store(&default) {
        return Ok(None);
    }
    let status = open_store(&default)?.status()?;
    Ok((status.name.as_deref() == Some(model)).then_some(default))
}

fn is_store(path: &Path) -> bool {
    path.join("objects").is_dir() && path.join("manifests").is_dir()
}

fn only_model(manifest: &Manifest) -> Result<&ondine_package::bundle::FileEntry, CliError> {
    let mut models = manifest
        .files
        .iter()
        .filter(|file| file.role == Role::Model);
    match (models.next(), models.next()) {
        (Some(only), None) => Ok(only),
        _ => Err(CliError::Failed(format!(
            "{} release {} has several model files or none; pack one .gguf file",
            manifest.name, manifest.version
        ))),
    }
}

fn open_installed(
    store: &Store<Disk>,
    installed: &Installed,
    identities: &[Identity],
) -> Result<Model, CliError> {
    let file = only_model(&installed.manifest)?;
    let path = store.object(file);
    let Some(header) = file.sealed_header else {
        return Ok(Model::open(&path, &ondine_runtime::Limits::default())?);
    };
    let sealed = SealedFile::open(&path, identities, &Limits::default())?;
    if sealed.header_digest() != header {
        return Err(StoreError::Damaged(format!("{} was changed", file.path)).into());
    }
    from_sealed(&path, sealed)
}

/// The sealed model file at `path`: itself, or the only one in that directory.
fn sealed_file(path: &Path) -> Result<Option<PathBuf>, CliError> {
    let is_sealed = |path: &Path| {
        is_sealed(path).map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
    };
    if path.is_file() {
        return Ok(is_sealed(path)?.then(|| path.to_owned()));
    }
    if !path.is_dir() {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path)
        .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?;
    let mut found = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if (name.ends_with(".gguf") || name.ends_with(".gguf.sealed"))
            && path.is_file()
            && is_sealed(&path)?
        {
            found.push(path);
        }
    }
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.pop()),
        _ => Err(CliError::Failed(format!(
            "{} holds several sealed models; name one of them",
            path.display()
        ))),
    }
}

fn open_sealed(file: &Path, given: &Path, keys: &[PathBuf]) -> Result<Model, CliError> {
    if keys.is_empty() {
        return Err(CliError::Usage(format!(
            "{} is sealed; give the identity that opens it with --identity",
            file.display()
        )));
    }
    let limits = Limits::default();
    let mut sealed = SealedFile::open(file, &identities(keys)?, &limits)?;
    if given.is_dir() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let manifest = std::fs::read(given.join(MANIFEST_NAME)).unwrap_or_default();
        match Manifest::parse(&manifest, &limits) {
            // A bundle of sealed files: the manifest, which may be signed, says which header is right.
            Ok(manifest) => {
                let mut files = manifest.files.iter();
                let listed = files.find(|entry| entry.path.as_str() == name);
                if listed.and_then(|entry| entry.sealed_header) != Some(sealed.header_digest()) {
                    return Err(CliError::Refused(format!(
                        "{} is not the file of the manifest; fetch the bundle again",
                        file.display()
                    )));
                }
            }
            // A sealed bundle: a file must be where it was when it was sealed.
            Err(_) => {
                let name = BundlePath::parse(&name)
                    .map_err(|error| CliError::Refused(error.to_string()))?;
                sealed = sealed.expect_name(&name)?;
            }
        }
    }
    from_sealed(file, sealed)
}

fn from_sealed(path: &Path, sealed: SealedFile) -> Result<Model, CliError> {
    let limits = ondine_runtime::Limits::default();
    let file = ModelFile::from_source(Arc::new(SealedSource(sealed)), &limits);
    let model = file
        .map_err(ModelError::from)
        .and_then(|file| Model::from_file(path, file, &limits));
    model.map_err(|error| or_refusal(error.into()))
}

/// A sealed file as the runtime reads it: what is opened is in memory only.
struct SealedSource(SealedFile);

impl source::ByteSource for SealedSource {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_plain(offset, out).map_err(|error| match error {
            SealError::File { source, .. } => source,
            refused => {
                let text = refused.to_string();
                let mut refusal = REFUSAL
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                *refusal = Some(text.clone());
                io::Error::new(io::ErrorKind::InvalidData, text)
            }
        })
    }
}
