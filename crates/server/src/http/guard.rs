//! Who may use the server: holders of the token, and pages of the server itself.
//!
//! Without a token the server listens on loopback only, and any page in the user's browser could reach it there. So a request
//! that names another origin is refused, and one that names another host, too: its page came from a name that was pointed here
//! (DNS rebinding).

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    AUTHORIZATION, HOST, HeaderValue, ORIGIN, VARY,
};
use hyper::{HeaderMap, Method, StatusCode};

use crate::app::{App, ServerOptions};
use crate::error::ApiError;

/// Paths that anybody may see: they tell nothing about anybody.
const OPEN: [&str; 5] = ["/", "/page.css", "/page.js", "/health", "/favicon.ico"];

pub(super) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(ORIGIN).cloned();
    let is_foreign = match check(&app.options, request.headers(), origin.as_ref()) {
        Ok(is_foreign) => is_foreign,
        Err(error) => return error.into_response(),
    };
    let is_preflight = is_foreign && request.method() == Method::OPTIONS;
    let is_open = OPEN.contains(&request.uri().path()) || is_preflight;
    let mut response = match (is_open, may_use(&app.options, request.headers())) {
        (_, _) if is_preflight => StatusCode::NO_CONTENT.into_response(),
        (false, Err(error)) => error.into_response(),
        _ => next.run(request).await,
    };
    if let (true, Some(origin)) = (is_foreign, origin) {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(VARY, HeaderValue::from_static("origin"));
        headers.insert(
            ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("GET, POST"),
        );
        headers.insert(
            ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static(
                "authorization, content-type, x-ondine-deadline-ms, x-ondine-priority",
            ),
        );
    }
    response
}

/// Whether the request comes from a page of another, allowed origin.
fn check(
    options: &ServerOptions,
    headers: &HeaderMap,
    origin: Option<&HeaderValue>,
) -> Result<bool, ApiError> {
    let refused = |what: &str| Err(ApiError::new(StatusCode::FORBIDDEN, what));
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    if options.token.is_none() && !host.is_empty() && !is_loopback(host) {
        return refused(
            "this server answers to localhost only; start it with --token to use it under another name",
        );
    }
    let Some(origin) = origin.map(|origin| origin.to_str().unwrap_or("null")) else {
        return Ok(false);
    };
    let own = origin
        .strip_prefix("http://")
        .or(origin.strip_prefix("https://"));
    if !host.is_empty() && own == Some(host) {
        return Ok(false);
    }
    match options.origins.iter().any(|allowed| allowed == origin) {
        true => Ok(true),
        false => {
            refused("pages of other origins may not use this server; allow one with --allow-origin")
        }
    }
}

/// Whether the request carries the token, if one is needed.
fn may_use(options: &ServerOptions, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(token) = &options.token else {
        return Ok(());
    };
    let given = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let given = given
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    match is_same(given.trim().as_bytes(), token.as_bytes()) {
        true => Ok(()),
        false => Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "a valid token is needed: send it as Authorization: Bearer TOKEN",
        )
        .with_code("invalid_api_key")),
    }
}

/// Compares in a time that does not depend on where the first difference is.
fn is_same(given: &[u8], token: &[u8]) -> bool {
    let differences = given.iter().zip(token).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(differences) == 0 && given.len() == token.len()
}

/// Whether `host`, a name or an address with or without a port, is this machine for itself.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            (
                hyper::header::HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        });
        pairs.collect()
    }

    #[test]
    fn only_the_own_origin_and_allowed_ones() {
        let mut options = ServerOptions {
            origins: vec!["https://a.example".into()],
            ..ServerOptions::default()
        };
        let judge = |options: &ServerOptions, pairs: &[(&'static str, &str)]| {
            let headers = headers(pairs);
            check(options, &headers, headers.get(ORIGIN)).ok()
        };
        for host in ["localhost:1", "127.0.0.1:8080", "[::1]:80", "LOCALHOST"] {
            assert_eq!(judge(&options, &[("host", host)]), Some(false), "{host}");
        }
        for host in [
            "evil.example",
            "192.168.0.1:80",
            "localhost.evil.example:80",
            "[fe80::1]",
        ] {
            assert_eq!(judge(&options, &[("host", host)]), None, "{host}");
        }
        let local = ("host", "localhost:1");
        assert_eq!(
            judge(&options, &[local, ("origin", "http://localhost:1")]),
            Some(false)
        );
        assert_eq!(
            judge(&options, &[local, ("origin", "https://a.example")]),
            Some(true)
        );
        for origin in [
            "https://b.example",
            "null",
            "http://localhost:2",
            "https://a.example.evil",
        ] {
            assert_eq!(
                judge(&options, &[local, ("origin", origin)]),
                None,
                "{origin}"
            );
        }
        options.token = Some("secret".into());
        assert_eq!(judge(&options, &[("host", "box.example")]), Some(false));
        assert_eq!(
            judge(
                &options,
                &[("host", "box.example"), ("origin", "https://b.example")]
            ),
            None
        );
    }

    #[test]
    fn only_the_whole_token_opens() {
        let options = ServerOptions {
            token: Some("secret".into()),
            ..ServerOptions::default()
        };
        let opens = |value: &str| may_use(&options, &headers(&[("authorization", value)])).is_ok();
        assert!(opens("Bearer secret"));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer secre",
            "Bearer secrets",
            "secret",
            "Basic secret",
            "Bearer Secret",
        ] {
            assert!(!opens(wrong), "{wrong}");
        }
        assert!(may_use(&options, &HeaderMap::new()).is_err());
        assert!(may_use(&ServerOptions::default(), &HeaderMap::new()).is_ok());
    }
}
