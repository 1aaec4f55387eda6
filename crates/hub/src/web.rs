//! Plain requests to a web server: what an update or a registry client builds on. Redirects are followed by hand, as downloads do.

use crate::error::SourceError;
use crate::http::{agent, connection_error, header};
use crate::settings::Settings;
use crate::source::WebAddress;
use std::io::Read;
use ureq::http::{HeaderMap, Request};
use ureq::{Agent, SendBody};

/// A client with the machine's settings: trusted certificates, timeouts, and whether the network may be used at all.
pub struct Web {
    agent: Agent,
    redirects: u32,
}

/// The head of an answer, and its body as it comes.
pub struct WebAnswer {
    /// HTTP status code.
    pub status: u16,
    headers: HeaderMap,
    /// The bytes; a silence longer than the idle timeout is an error.
    pub body: Box<dyn Read + Send>,
}

/// What is sent besides the address.
#[derive(Default)]
pub struct WebRequest<'a> {
    /// GET unless given.
    pub method: Option<&'a str>,
    /// Names and values. `authorization` goes to the address's own origin only, whatever redirects say.
    pub headers: &'a [(&'a str, String)],
    /// A body and its length in bytes; requests with a body are not redirected.
    pub body: Option<(&'a mut dyn Read, u64)>,
}

impl Web {
    /// A client.
    ///
    /// # Errors
    /// [`SourceError::Offline`].
    pub fn new(settings: &Settings) -> Result<Self, SourceError> {
        if settings.offline {
            return Err(SourceError::Offline {
                why: "the network may not be used (ONDINE_OFFLINE is set)",
            });
        }
        Ok(Web {
            agent: agent(settings),
            redirects: settings.limits.redirects,
        })
    }

    /// Sends a request; any status is an answer.
    ///
    /// # Errors
    /// [`SourceError`] when there is no answer, or a redirect leads nowhere.
    pub fn send(
        &self,
        address: &WebAddress,
        mut request: WebRequest<'_>,
    ) -> Result<WebAnswer, SourceError> {
        let method = request.method.unwrap_or("GET");
        let mut at = address.clone();
        for _ in 0..=self.redirects {
            let mut builder = Request::builder()
                .method(method)
                .uri(at.as_str())
                .header("accept-encoding", "identity");
            for (name, value) in request.headers {
                if !name.eq_ignore_ascii_case("authorization") || at.origin() == address.origin() {
                    builder = builder.header(*name, value);
                }
            }
            let nonsense = |error: ureq::http::Error| SourceError::Protocol {
                why: format!("the request cannot be sent ({error})"),
            };
            let has_body = request.body.is_some();
            let answer = match request.body.take() {
                None => {
                    let call = builder.body(()).map_err(nonsense)?;
                    self.agent.run(call)
                }
                Some((body, length)) => {
                    let mut body = body.take(length);
                    let builder = builder.header("content-length", length.to_string());
                    let call = builder
                        .body(SendBody::from_reader(&mut body))
                        .map_err(nonsense)?;
                    self.agent.run(call)
                }
            };
            let answer = answer.map_err(|error| connection_error(&at, &error))?;
            let status = answer.status().as_u16();
            if has_body || !matches!(status, 301 | 302 | 303 | 307 | 308) {
                let (head, body) = answer.into_parts();
                return Ok(WebAnswer {
                    status,
                    headers: head.headers,
                    body: Box::new(body.into_reader()),
                });
            }
            let location =
                header(answer.headers(), "location").ok_or_else(|| SourceError::BadRedirect {
                    why: "it names no target".to_string(),
                })?;
            at = at
                .join(location)
                .map_err(|why| SourceError::BadRedirect { why })?;
        }
        Err(SourceError::BadRedirect {
            why: format!("more than {} redirects in a row", self.redirects),
        })
    }
}

impl WebAnswer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// Length of the body in bytes, if it was said.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")
            .and_then(|text| text.trim().parse().ok())
    }
}
