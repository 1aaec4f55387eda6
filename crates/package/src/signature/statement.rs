//! What is signed: an in-toto statement whose predicate lists the files.

use super::tree::SINGLE_FILE;
use super::{SignatureError, Verified};
use crate::Limits;
use crate::digest::Digest;
use crate::path::{BundlePath, is_invisible};
use crate::text::one_line;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
const METHOD: &str = "files";
/// Bytes of a subject's name.
const MOST_NAME: usize = 1024;

/// A checked statement: resources in order, each once, their digests summing up to `root`.
pub(super) struct Statement {
    pub name: String,
    pub root: Digest,
    pub hash_type: HashType,
    /// Name and digest of each file; a model of one file has the name `.`.
    pub resources: Vec<(String, Digest)>,
    pub ignored: Vec<BundlePath>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum HashType {
    Sha256,
    Blake3,
}

impl Statement {
    /// `resources` must be in order.
    pub fn new(name: String, resources: Vec<(String, Digest)>, ignored: &[BundlePath]) -> Self {
        let root = root_of(&resources);
        Statement {
            name,
            root,
            hash_type: HashType::Sha256,
            resources,
            ignored: ignored.to_vec(),
        }
    }

    pub fn to_json(&self) -> String {
        let wire = Wire {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject: vec![Subject {
                name: self.name.clone(),
                digest: SubjectDigest { sha256: self.root },
            }],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                serialization: Serialization {
                    method: METHOD.to_owned(),
                    hash_type: self.hash_type,
                    allow_symlinks: false,
                    ignore_paths: self
                        .ignored
                        .iter()
                        .map(|path| path.as_str().to_owned())
                        .collect(),
                },
                resources: self
                    .resources
                    .iter()
                    .map(|(name, digest)| Resource {
                        name: name.clone(),
                        algorithm: self.hash_type,
                        digest: *digest,
                    })
                    .collect(),
            },
        };
        serde_json::to_string(&wire).unwrap_or_default()
    }

    /// Whether the payload says that it is about a model's files, in any version of the format.
    pub fn is_of_model(bytes: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(rename = "predicateType")]
            predicate_type: String,
        }
        serde_json::from_slice::<Kind>(bytes)
            .is_ok_and(|kind| kind.predicate_type.starts_with("https://model_signing/"))
    }

    /// What it says, once its signature and its files are checked.
    pub fn verified(self, key: Option<Digest>) -> Verified {
        Verified {
            name: self.name,
            root: self.root,
            key,
            files: self
                .resources
                .into_iter()
                .filter_map(|(name, digest)| Some((BundlePath::parse(&name).ok()?, digest)))
                .collect(),
            ignored: self.ignored,
        }
    }

    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, SignatureError> {
        let wire: Wire = serde_json::from_slice(bytes).map_err(|error| {
            refused(format!(
                "it is not of the right shape ({})",
                one_line(&error)
            ))
        })?;
        if wire.statement_type != STATEMENT_TYPE || wire.predicate_type != PREDICATE_TYPE {
            return Err(refused(format!(
                "its type is {:?}, {:?}",
                wire.statement_type, wire.predicate_type
            )));
        }
        let [subject] = <[Subject; 1]>::try_from(wire.subject)
            .map_err(|_| refused("it does not have exactly one subject"))?;
        check_subject_name(&subject.name)?;
        let serialization = wire.predicate.serialization;
        if serialization.method != METHOD {
            return Err(refused(format!(
                "files are serialised by {:?}, only \"files\" is read",
                serialization.method
            )));
        }
        if serialization.allow_symlinks {
            return Err(refused(
                "it lets symbolic links lead out of the model; sign without them",
            ));
        }
        let hash_type = serialization.hash_type;
        let resources = wire.predicate.resources;
        if resources.is_empty() || resources.len() > limits.files {
            return Err(refused("it lists no files, or too many"));
        }
        if resources
            .iter()
            .any(|resource| resource.algorithm != hash_type)
        {
            return Err(refused(
                "a file's hash is of another kind than the statement says",
            ));
        }
        let ignored = serialization
            .ignore_paths
            .iter()
            .map(|path| BundlePath::parse(path))
            .collect::<Result<Vec<_>, _>>()?;
        check_names(&resources, &ignored)?;
        let resources: Vec<_> = resources
            .into_iter()
            .map(|resource| (resource.name, resource.digest))
            .collect();
        if root_of(&resources) != subject.digest.sha256 {
            return Err(refused(
                "the subject's digest is not that of the listed files",
            ));
        }
        Ok(Statement {
            name: subject.name,
            root: subject.digest.sha256,
            hash_type,
            resources,
            ignored,
        })
    }
}

/// The name is for people only; it must not move a terminal's cursor or look like a place. Some writers leave it empty.
fn check_subject_name(name: &str) -> Result<(), SignatureError> {
    let odd = |c: char| c.is_control() || is_invisible(c) || matches!(c, '/' | '\\');
    if name.len() > MOST_NAME || matches!(name, "." | "..") || name.chars().any(odd) {
        return Err(refused(
            "its subject's name is too long, a path, or holds invisible characters",
        ));
    }
    Ok(())
}

fn check_names(resources: &[Resource], ignored: &[BundlePath]) -> Result<(), SignatureError> {
    if let [only] = resources
        && only.name == SINGLE_FILE
    {
        return Ok(());
    }
    let names = resources
        .iter()
        .map(|resource| BundlePath::parse(&resource.name))
        .collect::<Result<Vec<_>, _>>()?;
    if !names.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err(refused(
            "its files are not in order, or one is listed twice",
        ));
    }
    let mut seen = HashSet::new();
    if let Some(name) = names.iter().find(|name| !seen.insert(name.folded())) {
        return Err(refused(format!(
            "some systems take {name} and another of its files for the same"
        )));
    }
    match names
        .iter()
        .find(|name| ignored.iter().any(|ignored| name.is_within(ignored)))
    {
        Some(name) => Err(refused(format!("it lists {name} and ignores it"))),
        None => Ok(()),
    }
}

fn root_of(resources: &[(String, Digest)]) -> Digest {
    let all: Vec<u8> = resources.iter().flat_map(|(_, digest)| digest.0).collect();
    Digest::sha256(&all)
}

fn refused(reason: impl Into<String>) -> SignatureError {
    SignatureError::Statement(reason.into())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(rename = "_type")]
    statement_type: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDigest {
    sha256: Digest,
}

/// The specification lets later versions add properties here. They are refused, since nobody knows yet what they would change.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Serialization {
    method: String,
    hash_type: HashType,
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    name: String,
    algorithm: HashType,
    digest: Digest,
}
