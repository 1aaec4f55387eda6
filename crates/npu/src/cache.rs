//! Models that were converted or compiled for a runtime, kept so that it is done once.
//!
//! An entry is a directory with the files and `complete.json`, which holds their lengths and BLAKE3 hashes. It is
//! written beside its place and renamed, so that a half-written one is never found; a damaged one is not used but made again, and that is said.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ondine_runtime::Model;
use ondine_runtime::backend::Unavailable;

/// Changes when an export writes other files for the same model.
const VERSION: u32 = 2;

/// Names the directory of all entries, in place of the one beside the model.
const VARIABLE: &str = "ONDINE_BACKEND_CACHE";

const COMPLETE: &str = "complete.json";

/// A kept model.
pub struct Entry {
    /// The directory with its files.
    pub path: PathBuf,
    /// What was wrong with an earlier one, which was refused and made again.
    pub note: Option<String>,
}

/// The entry `kind` of `model`, made by `make` (which is given the directory to fill) if it is not there or is not what
/// was written.
///
/// # Errors
/// [`Unavailable::CacheDamaged`] when a damaged entry cannot be taken away; what `make` says.
pub fn entry(
    model: &Model,
    chosen: Option<&Path>,
    kind: &str,
    make: impl FnOnce(&Path) -> Result<(), Unavailable>,
) -> Result<Entry, Unavailable> {
    let hash = model
        .hash()
        .map_err(|error| failed(model.path(), &error))?
        .to_hex();
    let name = format!("{kind}-{VERSION}-{}", &hash[..16]);
    let (mut last, mut note) = (None, None);
    for root in roots(model, chosen) {
        let place = root.join(&name);
        if place.is_dir() {
            let Err(damage) = check(&place) else {
                return Ok(Entry {
                    path: place,
                    note: None,
                });
            };
            fs::remove_dir_all(&place).map_err(|error| {
                Unavailable::CacheDamaged(format!(
                    "{}: {damage} and cannot be deleted ({error}); delete it, it will be made again",
                    place.display()
                ))
            })?;
            note = Some(format!(
                "{}: {damage}; it was made again (CacheDamaged)",
                place.display()
            ));
        }
        let partial = root.join(format!("{name}.partial-{}", std::process::id()));
        if let Err(error) = fs::create_dir_all(&partial) {
            last = Some(failed(&partial, &error));
            continue;
        }
        let made = make(&partial).and_then(|()| {
            seal(&partial).map_err(|error| failed(&partial, &error))?;
            match fs::rename(&partial, &place) {
                Ok(()) => Ok(()),
                // Another process was quicker.
                Err(_) if place.is_dir() => Ok(()),
                Err(error) => Err(failed(&place, &error)),
            }
        });
        if partial.exists() {
            let _ = fs::remove_dir_all(&partial);
        }
        return made.map(|()| Entry { path: place, note });
    }
    Err(last.unwrap_or_else(|| {
        Unavailable::NotPresent("no directory for converted models; give --backend-cache".into())
    }))
}

/// Where entries may lie, best first.
fn roots(model: &Model, chosen: Option<&Path>) -> Vec<PathBuf> {
    if let Some(chosen) = chosen {
        return vec![chosen.to_owned()];
    }
    if let Some(named) = std::env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        return vec![named.into()];
    }
    let path = model.path();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut beside = path.clone().into_os_string();
    beside.push(".backends");
    vec![beside.into(), std::env::temp_dir().join("ondine-backends")]
}

/// Writes what the entry consists of.
fn seal(directory: &Path) -> io::Result<()> {
    let mut files = BTreeMap::new();
    for item in fs::read_dir(directory)? {
        let item = item?;
        let name = item.file_name().to_string_lossy().into_owned();
        files.insert(name, hash(&item.path())?);
    }
    fs::write(
        directory.join(COMPLETE),
        serde_json::json!(files).to_string(),
    )
}

/// Whether an entry is what was written, or what is wrong with it.
fn check(directory: &Path) -> Result<(), String> {
    let incomplete = || "is not complete".to_owned();
    let text = fs::read_to_string(directory.join(COMPLETE)).map_err(|_| incomplete())?;
    let files: BTreeMap<String, String> = serde_json::from_str(&text).map_err(|_| incomplete())?;
    for (name, expected) in files {
        match hash(&directory.join(&name)) {
            Ok(found) if found == expected => (),
            _ => return Err(format!("`{name}` is damaged")),
        }
    }
    Ok(())
}

fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().to_hex().to_string()),
            length => hasher.update(&buffer[..length]),
        };
    }
}

fn failed(path: &Path, error: &io::Error) -> Unavailable {
    Unavailable::NotPresent(format!("{}: {error}", path.display()))
}
