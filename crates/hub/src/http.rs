//! HTTP downloads that go on where they stopped (RFC 9110: Range, If-Range, Content-Range).

use crate::digest::Sha256Digest;
use crate::error::{HubError, SourceError};
use crate::progress::{Event, Phase, Progress};
use crate::settings::Settings;
use crate::source::WebAddress;
use crate::transfer::{PartialFile, Validator};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// What to fetch and what is known about it.
pub(crate) struct Request<'a> {
    pub address: WebAddress,
    /// Sent to the address's origin and to no other, whatever redirects say.
    pub token: Option<&'a str>,
    /// Length of the whole file, if it is known beforehand.
    pub size: Option<u64>,
    /// True if a hash will tell whether two halves fit together.
    pub hash_is_known: bool,
    /// Most bytes to accept.
    pub limit: u64,
}

/// What a server said about the file besides its bytes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Announced {
    /// Hash of the whole file (`X-Linked-Etag` of a Hugging Face repository).
    pub sha256: Option<Sha256Digest>,
}

/// Brings `partial` to its full length, with retries.
pub(crate) fn download(
    request: &Request<'_>,
    partial: &mut PartialFile,
    settings: &Settings,
    progress: &dyn Progress,
) -> Result<Announced, SourceError> {
    let mut fetcher = Fetcher {
        agent: agent(settings),
        request,
        settings,
        progress,
        announced: Announced::default(),
    };
    let mut fruitless = 0;
    for _ in 0..settings.retry.total {
        let before = partial.written();
        let error = match fetcher.attempt(partial) {
            Ok(()) => return Ok(fetcher.announced),
            Err(error) if error.is_transient() => error,
            Err(error) => return Err(error),
        };
        fruitless = if partial.written() > before {
            0
        } else {
            fruitless + 1
        };
        if fruitless >= settings.retry.fruitless {
            return Err(error);
        }
        let asked = if let SourceError::Status { retry_after, .. } = &error {
            *retry_after
        } else {
            None
        };
        let doubled = settings
            .retry
            .first_pause
            .saturating_mul(1 << fruitless.min(16));
        let pause = asked.unwrap_or(doubled).min(settings.retry.longest_pause);
        progress.event(Event::Retrying {
            reason: &error.to_string(),
            after: pause,
        });
        sleep(pause, progress)?;
    }
    Err(SourceError::Connection {
        why: format!("the connection broke {} times", settings.retry.total),
    })
}

struct Fetcher<'a> {
    agent: Agent,
    request: &'a Request<'a>,
    settings: &'a Settings,
    progress: &'a dyn Progress,
    announced: Announced,
}

impl Fetcher<'_> {
    /// One request, with its redirects, and as much of the body as comes.
    fn attempt(&mut self, partial: &mut PartialFile) -> Result<(), SourceError> {
        if partial.written() > 0 && self.is_complete(partial) {
            return Ok(());
        }
        let range = self.range_headers(partial);
        let response = self.send(&range)?;
        let headers = response.headers().clone();
        match response.status().as_u16() {
            200 => {
                // Without ranges, or because the file changed: from the start.
                partial.restart()?;
                self.receive(partial, response, content_length(&headers))
            }
            206 if !range.is_empty() => match content_range(&headers) {
                Some((start, total))
                    if start == partial.written() && self.same_file(partial, &headers, total) =>
                {
                    self.receive(partial, response, total)
                }
                _ => {
                    partial.restart()?;
                    Err(SourceError::Connection {
                        why: "the server continued another file than the one begun".to_string(),
                    })
                }
            },
            416 if !range.is_empty() => {
                // Nothing after what is here: either it is whole, or it belongs to another version.
                let total = header(&headers, "content-range")
                    .and_then(|text| text.strip_prefix("bytes */")?.parse::<u64>().ok());
                if total == Some(partial.written())
                    && self.request.size.is_none_or(|size| Some(size) == total)
                {
                    return Ok(());
                }
                partial.restart()?;
                Err(SourceError::Connection {
                    why: "the server has nothing after the bytes that are here".to_string(),
                })
            }
            status => Err(status_error(status, &headers, self.request.token.is_some())),
        }
    }

    fn receive(
        &self,
        partial: &mut PartialFile,
        response: Response<Body>,
        total: Option<u64>,
    ) -> Result<(), SourceError> {
        let headers = response.headers();
        if header(headers, "content-encoding")
            .is_some_and(|coding| !coding.eq_ignore_ascii_case("identity"))
        {
            return Err(SourceError::Protocol {
                why: "it compressed a file that was asked for as it is".to_string(),
            });
        }
        if let (Some(size), Some(total)) = (self.request.size, total)
            && size != total
        {
            return Err(SourceError::WrongLength {
                expected: size,
                found: total,
            });
        }
        let total = total.or(self.request.size);
        if total.is_some_and(|total| total > self.request.limit) {
            return Err(SourceError::TooLarge {
                limit: self.request.limit,
            });
        }
        if partial.written() == 0 {
            partial.set_validator(Validator {
                source: partial.validator().source.clone(),
                etag: strong_etag(headers),
                last_modified: header(headers, "last-modified").map(str::to_string),
                total,
            })?;
        }
        self.progress.event(Event::Started {
            phase: Phase::Download,
            total,
            done: partial.written(),
        });
        let limit = total.unwrap_or(self.request.limit);
        let mut reader = response.into_body().into_reader();
        match partial.append(&mut reader, limit, self.progress) {
            // More bytes than the server itself announced.
            Err(SourceError::TooLarge { .. }) if total.is_some() => Err(SourceError::WrongLength {
                expected: limit,
                found: limit + 1,
            }),
            Err(error) => Err(error),
            Ok(()) => match total {
                Some(total) if partial.written() < total => Err(SourceError::Connection {
                    why: format!(
                        "the transfer ended after {} of {total} bytes",
                        partial.written()
                    ),
                }),
                _ => Ok(()),
            },
        }
    }

    fn is_complete(&self, partial: &PartialFile) -> bool {
        self.request.hash_is_known && self.request.size == Some(partial.written())
    }

    fn range_headers(&self, partial: &PartialFile) -> Vec<(&'static str, String)> {
        if partial.written() == 0 {
            return Vec::new();
        }
        let validator = partial.validator();
        let condition = validator.etag.as_ref().or(validator.last_modified.as_ref());
        match condition {
            Some(condition) => vec![
                ("range", format!("bytes={}-", partial.written())),
                ("if-range", condition.clone()),
            ],
            None if self.request.hash_is_known => {
                vec![("range", format!("bytes={}-", partial.written()))]
            }
            None => Vec::new(),
        }
    }

    /// A careless server may ignore If-Range; its own headers still give it away.
    fn same_file(&self, partial: &PartialFile, headers: &HeaderMap, total: Option<u64>) -> bool {
        let known = partial.validator();
        let agrees = |ours: &Option<String>, theirs: Option<String>| {
            ours.is_none() || theirs.is_none() || *ours == theirs
        };
        agrees(&known.etag, strong_etag(headers))
            && (known.total.is_none() || total.is_none() || known.total == total)
    }

    /// Sends the request and follows redirects by hand: each hop is checked, and the token stays at its origin.
    fn send(&mut self, extra: &[(&'static str, String)]) -> Result<Response<Body>, SourceError> {
        let mut address = self.request.address.clone();
        for _ in 0..=self.settings.limits.redirects {
            if self.progress.is_cancelled() {
                return Err(HubError::Cancelled.into());
            }
            let mut call = self
                .agent
                .get(address.as_str())
                .header("accept-encoding", "identity");
            for (name, value) in extra {
                call = call.header(*name, value);
            }
            if let Some(token) = self.request.token
                && address.origin() == self.request.address.origin()
            {
                call = call.header("authorization", format!("Bearer {token}"));
            }
            let response = call
                .call()
                .map_err(|error| connection_error(&address, &error))?;
            self.listen(&address, response.headers());
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location =
                header(response.headers(), "location").ok_or_else(|| SourceError::BadRedirect {
                    why: "it names no target".to_string(),
                })?;
            address = address
                .join(location)
                .map_err(|why| SourceError::BadRedirect { why })?;
        }
        Err(SourceError::BadRedirect {
            why: format!(
                "more than {} redirects in a row",
                self.settings.limits.redirects
            ),
        })
    }

    fn listen(&mut self, address: &WebAddress, headers: &HeaderMap) {
        if address.origin() != self.request.address.origin() {
            return;
        }
        let tag = header(headers, "x-linked-etag").map(|tag| tag.trim_matches('"'));
        if let Some(digest) = tag.and_then(|tag| tag.parse().ok()) {
            self.announced.sha256 = Some(digest);
        }
    }
}

pub(crate) fn agent(settings: &Settings) -> Agent {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("ondine/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(settings.timeouts.connect))
        .timeout_connect(Some(settings.timeouts.connect))
        .timeout_recv_response(Some(settings.timeouts.response))
        .timeout_per_read(Some(settings.timeouts.idle))
        .build()
        .new_agent()
}

pub(crate) fn connection_error(address: &WebAddress, error: &ureq::Error) -> SourceError {
    let why = match error {
        ureq::Error::Timeout(_) => format!("{} did not answer in time", address.origin()),
        ureq::Error::HostNotFound => {
            format!("{} is not known to the name server", address.origin())
        }
        other => format!("the connection to {} failed ({other})", address.origin()),
    };
    match error {
        ureq::Error::Timeout(_) | ureq::Error::Io(_) | ureq::Error::ConnectionFailed => {
            SourceError::Connection { why }
        }
        _ => SourceError::Protocol { why },
    }
}

fn status_error(status: u16, headers: &HeaderMap, has_token: bool) -> SourceError {
    let hint = match status {
        401 | 403 if has_token => {
            "; the token has no access, so accept the model's terms on its page or use another token"
        }
        401 | 403 => "; it asks for a login, so set HF_TOKEN for Hugging Face",
        404 | 410 => "; the file is not there",
        _ => "",
    };
    let seconds = header(headers, "retry-after").and_then(|text| text.trim().parse::<u64>().ok());
    SourceError::Status {
        status,
        hint,
        retry_after: seconds.map(Duration::from_secs),
    }
}

pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    header(headers, "content-length").and_then(|text| text.trim().parse().ok())
}

/// A tag that may be used in If-Range: weak ones may not (RFC 9110, section 13.1.5).
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    header(headers, "etag")
        .filter(|tag| tag.starts_with('"') && tag.len() < 1024)
        .map(str::to_string)
}

/// `bytes start-end/total` → start and total.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) = header(headers, "content-range")?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let start = range.split_once('-')?.0.parse().ok()?;
    Some((start, total.parse().ok()))
}

fn sleep(pause: Duration, progress: &dyn Progress) -> Result<(), SourceError> {
    let end = Instant::now() + pause;
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        if progress.is_cancelled() {
            return Err(HubError::Cancelled.into());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
    Ok(())
}
