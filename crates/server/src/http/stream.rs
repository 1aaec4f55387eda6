//! Answers that are sent while they are made.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use hyper::body::{Bytes, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::ask::{Running, Update};
use crate::error::ApiError;
use crate::receipt::HEADER;

/// Writes the updates of running answers in the form of one interface.
pub(crate) trait Writer: Send + 'static {
    /// Media type of the stream.
    const CONTENT_TYPE: &'static str;
    /// What says that the server is still there, without meaning anything.
    const KEEP_ALIVE: &'static str;

    /// What comes before everything else.
    fn opening(&mut self, running: &Running) -> String;
    /// What an update becomes; may be nothing.
    fn update(&mut self, update: Update) -> String;
    /// What comes at the end.
    fn closing(&mut self, running: &Running) -> String;
    /// What comes in its place when something failed.
    fn failure(&mut self, error: &ApiError) -> String;
}

/// Pieces on their way to a client at most; what is beyond waits in the engine's queue, which a whole context bounds.
const PIECES: usize = 16;

/// Silence after which something is sent, so that a client that went away is noticed.
const SILENCE: Duration = Duration::from_secs(10);

/// Responds as soon as there is something to say, so that what fails before is still an ordinary error.
pub(crate) async fn respond<W: Writer>(
    mut running: Running,
    mut writer: W,
) -> Result<Response, ApiError> {
    let mut begin = writer.opening(&running);
    match running.next().await {
        Some(first) => begin.push_str(&writer.update(first?)),
        None => begin.push_str(&writer.closing(&running)),
    }
    let (sender, receiver) = channel(PIECES);
    let mut response = Response::new(Body::new(Pieces(receiver)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(W::CONTENT_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Some(receipt) = running.receipt.header() {
        headers.insert(HEADER, receipt);
    }
    tokio::spawn(pump(running, writer, begin, sender));
    Ok(response)
}

/// Sends until the end, or until the client goes away: then the running answers are dropped and so given up.
async fn pump<W: Writer>(
    mut running: Running,
    mut writer: W,
    begin: String,
    sender: Sender<Bytes>,
) {
    let mut text = begin;
    loop {
        if !text.is_empty() && sender.send(Bytes::from(text)).await.is_err() {
            return;
        }
        let update = tokio::select! {
            update = running.next() => update,
            () = sender.closed() => return,
            () = tokio::time::sleep(SILENCE) => {
                text = W::KEEP_ALIVE.to_owned();
                continue;
            }
        };
        let is_last = !matches!(update, Some(Ok(_)));
        text = match update {
            Some(Ok(update)) => writer.update(update),
            Some(Err(error)) => writer.failure(&error),
            None => writer.closing(&running),
        };
        if is_last {
            let _ = sender.send(Bytes::from(text)).await;
            return;
        }
    }
}

struct Pieces(Receiver<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0
            .poll_recv(context)
            .map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
