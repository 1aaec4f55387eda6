//! A repository in an OCI registry (OCI distribution specification 1.1): one artifact, whose layers are the repository's files,
//! named by their paths. The tag's manifest is replaced last, so that a reader sees the old repository or the new.

use super::remote::{opened, unreachable};
use crate::error::CliError;
use ondine_hub::{Settings, Web, WebAddress, WebAnswer, WebRequest};
use ondine_package::digest::{Algorithms, Digest, hash_file};
use ondine_package::release::{Opened, Remote, RemoteError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const ARTIFACT_TYPE: &str = "application/vnd.ondine.repository.v1";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const LAYER_TYPE: &str = "application/octet-stream";
/// How the specification names a layer.
const TITLE: &str = "org.opencontainers.image.title";
/// Longest manifest that is read: the limit that registries are asked to support.
const MANIFEST_BYTES: u64 = 4 << 20;

/// The repository at one tag, as it was when it was opened.
pub struct Registry {
    name: String,
    place: Place,
    layers: BTreeMap<String, Descriptor>,
}

/// Copies the repository in `directory` to `target`; answers how many files were sent, those that were there not counted.
///
/// # Errors
/// `Usage` for an address that cannot be used, `Failed` for what cannot be read or sent.
pub fn push(directory: &Path, target: &str) -> Result<usize, CliError> {
    let place = Place::parse(target)?;
    let mut layers = Vec::new();
    let mut sent = 0;
    for (title, path) in files(directory)? {
        let failed = |error: &dyn std::fmt::Display| {
            CliError::Failed(format!("{}: {error}", path.display()))
        };
        let found = hash_file(&path, Algorithms::Sha256).map_err(|error| failed(&error))?;
        let descriptor = Descriptor::new(LAYER_TYPE, found.sha256, found.size, Some(title));
        let mut file = File::open(&path).map_err(|error| failed(&error))?;
        if place
            .upload(&descriptor, &mut file)
            .map_err(|error| failed(&error.why))?
        {
            sent += 1;
        }
        layers.push(descriptor);
    }
    let failed = |error: RemoteError| CliError::Failed(format!("{target}: {}", error.why));
    let config = Descriptor::new(EMPTY_TYPE, Digest::sha256(b"{}"), 2, None);
    place
        .upload(&config, &mut b"{}".as_slice())
        .map_err(failed)?;
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.into(),
        artifact_type: Some(ARTIFACT_TYPE.into()),
        config,
        layers,
    };
    let bytes = serde_json::to_vec(&manifest)
        .map_err(|error| CliError::Failed(format!("{target}: {error}")))?;
    if bytes.len() as u64 > MANIFEST_BYTES {
        return Err(CliError::Failed(format!(
            "{target}: the repository has more files than a registry takes in one artifact"
        )));
    }
    place.put_manifest(&bytes).map_err(failed)?;
    Ok(sent)
}

impl Registry {
    /// Reads the manifest at the tag.
    ///
    /// # Errors
    /// `Usage` for an address that cannot be used, `Failed` when it cannot be read.
    pub fn open(from: &str) -> Result<Self, CliError> {
        let place = Place::parse(from)?;
        let layers = place
            .layers()
            .map_err(|error| CliError::Failed(format!("{from}: {}", error.why)))?;
        Ok(Registry {
            name: from.to_owned(),
            place,
            layers,
        })
    }
}

impl Remote for Registry {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, path: &str, offset: u64) -> Result<Option<Opened>, RemoteError> {
        let Some(layer) = self.layers.get(path) else {
            return Ok(None);
        };
        let range = format!("bytes={offset}-");
        let mut headers = Vec::new();
        if offset > 0 {
            headers.push(("range", range));
        }
        let address = format!("blobs/{}", layer.digest);
        let answer = self.place.request(&address, "GET", &headers, None)?;
        Ok(opened(answer, offset)?.map(|opened| Opened {
            // Where the registry does not say it, its manifest does; the signed metadata has the last word.
            length: opened.length.or(Some(layer.size)),
            ..opened
        }))
    }
}

/// One tag of one repository of one registry.
struct Place {
    web: Web,
    /// `https://registry/v2/name/`
    base: WebAddress,
    repository: String,
    tag: String,
    token: Mutex<Option<String>>,
}

impl Place {
    fn parse(text: &str) -> Result<Self, CliError> {
        let usage =
            |why: &str| CliError::Usage(format!("{text} is not oci://registry/name:tag: {why}"));
        let rest = text
            .strip_prefix("oci://")
            .ok_or_else(|| usage("it starts with oci://"))?;
        let (host, path) = rest
            .split_once('/')
            .ok_or_else(|| usage("it has no name"))?;
        let (repository, tag) = path.rsplit_once(':').unwrap_or((path, "latest"));
        let plain = |text: &str, more: &str| {
            !text.is_empty()
                && text.len() <= 255
                && !text
                    .split('/')
                    .any(|part| part.is_empty() || part.starts_with('.'))
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if !plain(repository, "._-/") || repository.contains(char::is_uppercase) {
            return Err(usage(
                "a name has small letters, digits, '.', '_', '-' and '/'",
            ));
        }
        if !plain(tag, "._-") || tag.len() > 128 {
            return Err(usage("a tag has letters, digits, '.', '_' and '-'"));
        }
        // Plain HTTP is read for this machine itself only; the address type says so again.
        let local =
            host.starts_with("localhost") || host.starts_with("127.") || host.starts_with("[::1]");
        let scheme = if local { "http" } else { "https" };
        let base = format!("{scheme}://{host}/v2/{repository}/");
        let settings = Settings::from_environment()?;
        Ok(Place {
            web: Web::new(&settings).map_err(|error| CliError::Failed(error.to_string()))?,
            base: base.parse().map_err(|why: String| usage(&why))?,
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            token: Mutex::new(std::env::var("ONDINE_OCI_TOKEN").ok()),
        })
    }

    fn layers(&self) -> Result<BTreeMap<String, Descriptor>, RemoteError> {
        let fatal = |why: String| RemoteError {
            why,
            transient: false,
        };
        let accept = [("accept", MANIFEST_TYPE.to_owned())];
        let answer = self.request(&format!("manifests/{}", self.tag), "GET", &accept, None)?;
        let answer = expect(answer, &[200])?;
        let mut bytes = Vec::new();
        answer
            .body
            .take(MANIFEST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| fatal(format!("the transfer broke off ({error})")))?;
        if bytes.len() as u64 > MANIFEST_BYTES {
            return Err(fatal("its manifest is longer than 4 MiB".into()));
        }
        let manifest: ImageManifest = serde_json::from_slice(&bytes)
            .map_err(|error| fatal(format!("its manifest cannot be read: {error}")))?;
        if manifest.artifact_type.as_deref() != Some(ARTIFACT_TYPE) {
            return Err(fatal("it is another kind of artifact".into()));
        }
        let named = manifest.layers.into_iter().filter_map(|layer| {
            let title = layer.annotations.as_ref()?.get(TITLE)?.clone();
            Some((title, layer))
        });
        let layers: BTreeMap<String, Descriptor> = named.collect();
        for layer in layers.values() {
            let hex = layer.digest.strip_prefix("sha256:");
            if hex.and_then(Digest::from_hex).is_none() {
                return Err(fatal("a layer's digest is not SHA-256".into()));
            }
        }
        Ok(layers)
    }

    /// Sends a blob unless it is there; answers whether it was sent.
    fn upload(&self, blob: &Descriptor, body: &mut dyn Read) -> Result<bool, RemoteError> {
        let there = self.request(&format!("blobs/{}", blob.digest), "HEAD", &[], None)?;
        if there.status == 200 {
            return Ok(false);
        }
        let begun = self.request(
            "blobs/uploads/",
            "POST",
            &[("content-length", "0".into())],
            None,
        )?;
        let begun = expect(begun, &[202])?;
        let location = begun.header("location").unwrap_or_default();
        let joint = if location.contains('?') { '&' } else { '?' };
        let location = format!("{location}{joint}digest={}", blob.digest);
        let address = self.base.join(&location).map_err(|why| RemoteError {
            why,
            transient: false,
        })?;
        let headers = [("content-type", LAYER_TYPE.to_owned())];
        let answer = self.send(&address, "PUT", &headers, Some((body, blob.size)))?;
        expect(answer, &[201]).map(|_| true)
    }

    fn put_manifest(&self, bytes: &[u8]) -> Result<(), RemoteError> {
        let headers = [("content-type", MANIFEST_TYPE.to_owned())];
        let path = format!("manifests/{}", self.tag);
        let answer = self.request(
            &path,
            "PUT",
            &headers,
            Some((&mut { bytes }, bytes.len() as u64)),
        )?;
        expect(answer, &[201]).map(|_| ())
    }

    /// Asks; when the registry wants a token first, gets one as anybody can and asks again.
    fn request(
        &self,
        path: &str,
        method: &str,
        headers: &[(&str, String)],
        body: Option<(&mut dyn Read, u64)>,
    ) -> Result<WebAnswer, RemoteError> {
        let address = self.base.join(path).map_err(|why| RemoteError {
            why,
            transient: false,
        })?;
        let has_body = body.is_some();
        let answer = self.send(&address, method, headers, body)?;
        if answer.status != 401 || has_body {
            return Ok(answer);
        }
        match self.fetch_token(answer.header("www-authenticate").unwrap_or_default()) {
            Some(token) => {
                *self
                    .token
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(token);
                self.send(&address, method, headers, None)
            }
            None => Ok(answer),
        }
    }

    fn send(
        &self,
        address: &WebAddress,
        method: &str,
        headers: &[(&str, String)],
        body: Option<(&mut dyn Read, u64)>,
    ) -> Result<WebAnswer, RemoteError> {
        let mut headers = headers.to_vec();
        let token = self
            .token
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone();
        // The token is the registry's: an upload may be sent elsewhere.
        if let Some(token) = token.filter(|_| address.origin() == self.base.origin()) {
            headers.push(("authorization", format!("Bearer {token}")));
        }
        // Borrowed anew, so that the body need not live as long as the headers' other borrowers.
        let body: Option<(&mut dyn Read, u64)> = match body {
            Some((reader, length)) => Some((&mut *reader, length)),
            None => None,
        };
        let request = WebRequest {
            method: Some(method),
            headers: &headers,
            body,
        };
        self.web.send(address, request).map_err(unreachable)
    }

    /// `Bearer realm="…",service="…"` → a token for this repository.
    fn fetch_token(&self, challenge: &str) -> Option<String> {
        let fields = challenge.strip_prefix("Bearer ")?;
        let field = |name: &str| {
            let start = fields.find(&format!("{name}=\""))? + name.len() + 2;
            fields[start..].split('"').next()
        };
        let (realm, service) = (field("realm")?, field("service").unwrap_or_default());
        let joint = if realm.contains('?') { '&' } else { '?' };
        let scope = format!("repository:{}:pull,push", self.repository);
        let address: WebAddress = format!("{realm}{joint}service={service}&scope={scope}")
            .parse()
            .ok()?;
        let answer = self.web.send(&address, WebRequest::default()).ok()?;
        let token: serde_json::Value =
            serde_json::from_reader(answer.body.take(MANIFEST_BYTES)).ok()?;
        let text = token
            .get("token")
            .or_else(|| token.get("access_token"))?
            .as_str()?;
        Some(text.to_owned())
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    fn new(media_type: &str, sha256: Digest, size: u64, title: Option<String>) -> Self {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: format!("sha256:{}", sha256.to_hex()),
            size,
            annotations: title.map(|title| [(TITLE.to_owned(), title)].into()),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageManifest {
    schema_version: u32,
    media_type: String,
    #[serde(default)]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

fn expect(answer: WebAnswer, statuses: &[u16]) -> Result<WebAnswer, RemoteError> {
    if statuses.contains(&answer.status) {
        return Ok(answer);
    }
    let hint = match answer.status {
        401 | 403 => "; set ONDINE_OCI_TOKEN to a token that may do this",
        404 => "; there is no such name or tag",
        _ => "",
    };
    Err(RemoteError {
        why: format!("the registry answered {}{hint}", answer.status),
        transient: matches!(answer.status, 408 | 429 | 500..=599),
    })
}

/// Path in the repository and on the disk of each file, in order.
fn files(directory: &Path) -> Result<Vec<(String, std::path::PathBuf)>, CliError> {
    let mut found = Vec::new();
    let mut stack = vec![(String::new(), directory.to_owned())];
    while let Some((prefix, at)) = stack.pop() {
        let failed = |error: std::io::Error| CliError::Failed(format!("{}: {error}", at.display()));
        for entry in std::fs::read_dir(&at).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let title = format!("{prefix}{name}");
            if entry.path().is_dir() {
                stack.push((format!("{title}/"), entry.path()));
            } else if !name.ends_with(".part") {
                found.push((title, entry.path()));
            }
        }
    }
    found.sort();
    Ok(found)
}
