//! The client that the official `tuf-conformance` suite drives, over the same code as `ondine update`.
//!
//! ```text
//! tuf_conformance_client --metadata-dir DIR init ROOT
//! tuf_conformance_client --metadata-dir DIR --metadata-url URL refresh
//! tuf_conformance_client … --target-name NAME --target-base-url URL --target-dir DIR download
//! ```

use ondine_hub::{Settings, Web, WebAddress, WebRequest};
use ondine_package::release::{Client, DirectoryCache, Opened, Remote, RemoteError, now};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let (mut options, mut words, mut targets) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix("--") {
            Some("target-name") => targets.push(arguments.next().ok_or("no target")?),
            Some(name) => {
                options.insert(name.to_owned(), arguments.next().ok_or("no value")?);
            }
            None => words.push(argument),
        }
    }
    let option = |name: &str| options.get(name).ok_or(format!("--{name} is missing"));
    let directory = PathBuf::from(option("metadata-dir")?);
    let root = directory.join("root.json");
    if words.first().is_some_and(|word| word == "init") {
        std::fs::create_dir_all(&directory)?;
        std::fs::copy(words.get(1).ok_or("no root")?, root)?;
        return Ok(());
    }
    let server = Server {
        web: Web::new(&Settings::from_environment()?)?,
        metadata: option("metadata-url")?.clone(),
        targets: options.get("target-base-url").cloned().unwrap_or_default(),
    };
    let bytes = std::fs::read(root)?;
    let mut client = Client::new(Arc::new(server), &bytes, DirectoryCache(directory), now())?;
    client.refresh()?;
    for name in &targets {
        let target = client.target(name)?.ok_or("no role lists the target")?;
        let file = option("target-dir")?;
        let file = Path::new(file).join(name.replace('/', "%2F"));
        // What is here already and right is not fetched again.
        let here = std::fs::read(&file).unwrap_or_default();
        let digest = ondine_package::digest::Digest::sha256(&here).to_hex();
        if here.len() as u64 == target.length && target.hashes.get("sha256") == Some(&digest) {
            continue;
        }
        std::fs::write(file, client.fetch(name, &target, 50_000_000)?)?;
    }
    Ok(())
}

/// A server whose metadata and targets have an address each.
struct Server {
    web: Web,
    metadata: String,
    targets: String,
}

impl Remote for Server {
    fn name(&self) -> &str {
        &self.metadata
    }

    fn open(&self, path: &str, _: u64) -> Result<Option<Opened>, RemoteError> {
        let fatal = |why: String| RemoteError {
            why,
            transient: false,
        };
        let (base, name) = match path.strip_prefix("metadata/") {
            Some(name) => (&self.metadata, name),
            None => (&self.targets, path.trim_start_matches("targets/")),
        };
        let address = format!("{}/{name}", base.trim_end_matches('/'));
        let address: WebAddress = address.parse().map_err(fatal)?;
        let answer = self.web.send(&address, WebRequest::default());
        let answer = answer.map_err(|error| fatal(error.to_string()))?;
        match answer.status {
            200 => Ok(Some(Opened {
                start: 0,
                length: answer.length(),
                body: answer.body,
            })),
            404 => Ok(None),
            status => Err(fatal(format!("the server answered {status}"))),
        }
    }
}
