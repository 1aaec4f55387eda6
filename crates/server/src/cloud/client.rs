//! One request to a provider with OpenAI's interface; its answer is read while it is written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use ondine_hybrid::cloud::{Event, Fault};
use ondine_hybrid::egress::Cleared;
use ondine_hybrid::policy::{Policy, Provider};
use ondine_runtime::StopReason;
use rustls_platform_verifier::BuilderVerifierExt;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use super::events::{Events, Said};
use crate::engine::Stopped;

/// Time for a connection, and again for its encryption.
const CONNECT: Duration = Duration::from_secs(5);

/// Bytes of an answer at most, with everything around it.
const MOST_BYTES: usize = 16 << 20;

/// Why providers cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CloudError {
    /// A key is missing or cannot be one.
    #[error("provider {provider} needs a key in the environment variable {variable}: {reason}")]
    Key {
        /// The provider.
        provider: String,
        /// Where its key should be.
        variable: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The address of a provider is none.
    #[error("the endpoint of provider {0} is no address; write it as https://host/v1")]
    Endpoint(String),
    /// The encryption cannot be set up.
    #[error("connections cannot be encrypted: {0}")]
    Encryption(String),
    /// The scanner or the router cannot be made.
    #[error("{0}")]
    Parts(String),
}

/// What asks providers.
pub(super) struct Client {
    encryption: TlsConnector,
    routes: BTreeMap<String, Route>,
}

/// How a provider is reached.
#[derive(Clone)]
struct Route {
    host: String,
    port: u16,
    is_encrypted: bool,
    path: String,
    key: Option<HeaderValue>,
}

impl Client {
    /// For the providers of a policy; their keys come from `variable`, the environment as a rule. Their certificates are vouched
    /// for by `authorities` (X.509 in DER), or by those that the system trusts where there are none.
    pub(super) fn new(
        policy: &Policy,
        variable: &dyn Fn(&str) -> Option<String>,
        authorities: &[Vec<u8>],
    ) -> Result<Self, CloudError> {
        let failed = |error: &dyn std::fmt::Display| CloudError::Encryption(error.to_string());
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?;
        let config = match authorities.is_empty() {
            true => config
                .with_platform_verifier()
                .map_err(|error| failed(&error))?,
            false => {
                let mut roots = RootCertStore::empty();
                for certificate in authorities {
                    let added = roots.add(certificate.clone().into());
                    added.map_err(|error| failed(&error))?;
                }
                config.with_root_certificates(roots)
            }
        };
        let config = config.with_no_client_auth();
        let routes = policy.providers().iter().map(|provider| {
            let route = Route::new(provider, variable)?;
            Ok((provider.name.clone(), route))
        });
        Ok(Client {
            encryption: TlsConnector::from(Arc::new(config)),
            routes: routes.collect::<Result<_, CloudError>>()?,
        })
    }

    /// A call that sends what the gate cleared.
    pub(super) fn call(&self, request: &Cleared<'_>) -> Option<Call> {
        Some(Call {
            route: self.routes.get(&request.provider().name)?.clone(),
            encryption: self.encryption.clone(),
            body: Bytes::copy_from_slice(request.bytes()),
        })
    }
}

impl Route {
    fn new(
        provider: &Provider,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, CloudError> {
        let wrong = || CloudError::Endpoint(provider.name.clone());
        let address: Uri = provider.endpoint.parse().map_err(|_| wrong())?;
        let is_encrypted = address.scheme_str() == Some("https");
        let usual = if is_encrypted { 443 } else { 80 };
        let key = provider.key_env.as_ref().map(|name| {
            let error = |reason| CloudError::Key {
                provider: provider.name.clone(),
                variable: name.clone(),
                reason,
            };
            let key = variable(name).ok_or_else(|| error("it is not set"))?;
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.trim()))
                .map_err(|_| error("it holds what no header can"))?;
            value.set_sensitive(true);
            Ok(value)
        });
        Ok(Route {
            host: address.host().ok_or_else(wrong)?.to_owned(),
            port: address.port_u16().unwrap_or(usual),
            is_encrypted,
            path: format!("{}/chat/completions", address.path().trim_end_matches('/')),
            key: key.transpose()?,
        })
    }
}

/// How a provider's answer ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ended {
    pub(super) stopped: Stopped,
    /// Tokens that the provider counted.
    pub(super) tokens: Option<usize>,
}

/// One attempt. Dropping the future of [`Call::run`] closes the connection.
pub(super) struct Call {
    route: Route,
    encryption: TlsConnector,
    body: Bytes,
}

impl Call {
    /// Sends, and tells the text of the answer piece by piece. Redirections are not followed: their target was not cleared.
    pub(super) async fn run(self, tell: &(dyn Fn(Event) + Sync)) -> Result<Ended, Fault> {
        let name = self.route.host.trim_matches(['[', ']']).to_owned();
        let connecting = TcpStream::connect((name.as_str(), self.route.port));
        let stream = timeout(CONNECT, connecting).await;
        let stream = stream
            .map_err(|_| Fault::Unreachable)?
            .map_err(|_| Fault::Unreachable)?;
        let _ = stream.set_nodelay(true);
        if !self.route.is_encrypted {
            return self.exchange(TokioIo::new(stream), tell).await;
        }
        let name = ServerName::try_from(name).map_err(|_| Fault::Unreachable)?;
        let encrypting = timeout(CONNECT, self.encryption.connect(name, stream)).await;
        let stream = encrypting
            .map_err(|_| Fault::Unreachable)?
            .map_err(|_| Fault::Unreachable)?;
        self.exchange(TokioIo::new(stream), tell).await
    }

    async fn exchange<I>(self, io: I, tell: &(dyn Fn(Event) + Sync)) -> Result<Ended, Fault>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let mut request = Request::post(self.route.path.as_str())
            .header(
                HOST,
                match self.route.port {
                    443 | 80 => self.route.host.clone(),
                    port => format!("{}:{port}", self.route.host),
                },
            )
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream, application/json");
        if let Some(key) = &self.route.key {
            request = request.header(AUTHORIZATION, key.clone());
        }
        let request = request
            .body(Full::new(self.body.clone()))
            .map_err(|_| Fault::Garbled("its address".into()))?;
        let handshake = hyper::client::conn::http1::Builder::new()
            .max_buf_size(64 << 10)
            .handshake(io)
            .await;
        let (mut sender, connection) = handshake.map_err(|_| Fault::Unreachable)?;
        let answer = async {
            let response = sender.send_request(request).await;
            read(response.map_err(|_| Fault::Broken)?, tell).await
        };
        tokio::pin!(answer, connection);
        let mut is_open = true;
        loop {
            tokio::select! {
                result = &mut answer => return result,
                _ = &mut connection, if is_open => is_open = false,
            }
        }
    }
}

async fn read(
    mut response: Response<Incoming>,
    tell: &(dyn Fn(Event) + Sync),
) -> Result<Ended, Fault> {
    if response.status() != StatusCode::OK {
        let seconds = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
        return Err(Fault::Refused {
            status: response.status().as_u16(),
            retry_after: seconds.map(|seconds| Duration::from_secs(seconds.min(3600))),
        });
    }
    let is_stream = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| kind.starts_with("text/event-stream"));
    let mut events = Events::new(is_stream);
    let mut total = 0;
    let mut stopped = None;
    let mut tokens = None;
    loop {
        let frame = response.body_mut().frame().await;
        let said = match frame {
            Some(Ok(frame)) => {
                let Some(data) = frame.data_ref() else {
                    continue;
                };
                total += data.len();
                if total > MOST_BYTES {
                    return Err(Fault::Garbled("it is too long".into()));
                }
                events.push(data)?
            }
            Some(Err(_)) => return Err(Fault::Broken),
            None => {
                let mut said = events.finish()?;
                // Some servers say why it ended and leave the last line out.
                said.push(match stopped {
                    Some(_) => Said::Done,
                    None => return Err(Fault::Broken),
                });
                said
            }
        };
        for said in said {
            match said {
                Said::Text(text) => tell(Event::Text(text)),
                Said::Stopped(is_cut) => {
                    stopped = Some(match is_cut {
                        true => StopReason::Length,
                        false => StopReason::EndOfTurn,
                    });
                }
                Said::Tokens(count) => tokens = Some(count),
                Said::Done => {
                    // An answer that nobody said was at its end has broken off.
                    let reason = stopped.ok_or(Fault::Broken)?;
                    return Ok(Ended {
                        stopped: Stopped::By(reason),
                        tokens,
                    });
                }
            }
        }
    }
}
