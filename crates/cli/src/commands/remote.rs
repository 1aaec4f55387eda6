//! The repository that a user named: a directory, a web server, or a registry.

use crate::error::CliError;
use ondine_package::release::{Directory, Remote};
use std::path::Path;
use std::sync::Arc;

/// Opens the repository `from`.
///
/// # Errors
/// `Usage` for an address that cannot be used, `Failed` when it cannot be reached.
pub fn open(from: &str) -> Result<Arc<dyn Remote>, CliError> {
    #[cfg(feature = "pull")]
    {
        if from.starts_with("oci://") {
            return Ok(Arc::new(super::registry::Registry::open(from)?));
        }
        if from.starts_with("http://") || from.starts_with("https://") {
            return Ok(Arc::new(web::WebRemote::new(from)?));
        }
    }
    if from.contains("://") {
        return Err(CliError::Usage(format!(
            "{from} is neither a directory nor an address that this build can read"
        )));
    }
    let path = Path::new(from);
    if !path.is_dir() {
        return Err(CliError::Failed(format!(
            "{from}: there is no such directory"
        )));
    }
    Ok(Arc::new(Directory::new(path)))
}

#[cfg(feature = "pull")]
pub use web::unreachable;

#[cfg(feature = "pull")]
mod web {
    use super::CliError;
    use ondine_hub::{Settings, SourceError, Web, WebAddress, WebRequest};
    use ondine_package::release::{Opened, Remote, RemoteError};

    /// A repository on a web server.
    pub struct WebRemote {
        web: Web,
        base: String,
    }

    impl WebRemote {
        pub fn new(from: &str) -> Result<Self, CliError> {
            let settings = Settings::from_environment()?;
            let base = format!("{}/", from.trim_end_matches('/'));
            base.parse::<WebAddress>()
                .map_err(|why| CliError::Usage(format!("{from}: {why}")))?;
            let web = Web::new(&settings).map_err(|error| CliError::Failed(error.to_string()))?;
            Ok(WebRemote { web, base })
        }
    }

    impl Remote for WebRemote {
        fn name(&self) -> &str {
            self.base.trim_end_matches('/')
        }

        fn open(&self, path: &str, offset: u64) -> Result<Option<Opened>, RemoteError> {
            let address: WebAddress =
                format!("{}{path}", self.base)
                    .parse()
                    .map_err(|why| RemoteError {
                        why,
                        transient: false,
                    })?;
            let range = [("range", format!("bytes={offset}-"))];
            let request = WebRequest {
                headers: if offset > 0 { &range } else { &[] },
                ..WebRequest::default()
            };
            let answer = self.web.send(&address, request).map_err(unreachable)?;
            opened(answer, offset)
        }
    }

    /// An answer to a request for the bytes from `offset`.
    pub fn opened(
        answer: ondine_hub::WebAnswer,
        offset: u64,
    ) -> Result<Option<Opened>, RemoteError> {
        let nonsense = |why: &str| RemoteError {
            why: why.to_owned(),
            transient: false,
        };
        match answer.status {
            404 | 410 => Ok(None),
            200 => Ok(Some(Opened {
                start: 0,
                length: answer.length(),
                body: answer.body,
            })),
            206 => {
                let range = answer.header("content-range").unwrap_or_default();
                let (start, total) = content_range(range)
                    .ok_or_else(|| nonsense("the server sent a part without saying which"))?;
                if start != offset {
                    return Err(nonsense("the server sent another part than was asked for"));
                }
                Ok(Some(Opened {
                    start,
                    length: total,
                    body: answer.body,
                }))
            }
            status => Err(RemoteError {
                why: format!("the server answered {status}"),
                transient: matches!(status, 408 | 425 | 429 | 500..=599),
            }),
        }
    }

    /// An error of the hub as one of a repository.
    pub fn unreachable(error: SourceError) -> RemoteError {
        RemoteError {
            transient: error.is_transient(),
            why: error.to_string(),
        }
    }

    /// `bytes start-end/total` → start and total.
    fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
        let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
        let start = range.split_once('-')?.0.parse().ok()?;
        Some((start, total.parse().ok()))
    }
}

#[cfg(feature = "pull")]
pub use web::opened;
