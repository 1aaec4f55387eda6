//! A connection that does not wait for ever.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// A TCP connection whose writes fail when the other side reads nothing for a while.
pub(super) struct Socket {
    stream: Arc<TcpStream>,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: Arc<TcpStream>, write_timeout: Duration) -> Self {
        Socket {
            stream,
            write_timeout,
            stalled: None,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let Poll::Ready(is_ready) = self.stream.poll_write_ready(context) else {
                let timeout = self.write_timeout;
                let stalled = self
                    .stalled
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                ready!(stalled.as_mut().poll(context));
                let message = "the client does not read";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
            };
            is_ready?;
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                result => {
                    self.stalled = None;
                    return Poll::Ready(result);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The descriptor is closed when the last owner lets go of it.
        Poll::Ready(Ok(()))
    }
}

/// How often it is looked whether the client is still there.
const LOOK: Duration = Duration::from_millis(200);

/// An interim response (RFC 9110, section 15.2.1), which clients skip.
const STILL_HERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Ends when the client went away while `is_pending`: while a request is computed and nothing of the response was sent.
///
/// A client that has said all that it has to say may close its side and still read: that must not end its answer. From here it
/// looks the same as one that went away; only writing tells. So an interim response is written, which the system of a client
/// that went away answers with a reset.
pub(super) async fn gone(stream: &TcpStream, is_pending: &AtomicBool) {
    let mut byte = [0];
    loop {
        tokio::time::sleep(LOOK).await;
        if !is_pending.load(Ordering::Relaxed) {
            continue;
        }
        let looked = tokio::time::timeout(Duration::ZERO, stream.peek(&mut byte)).await;
        match looked {
            Ok(Ok(0)) => match stream.try_write(STILL_HERE) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                _ => (),
            },
            Ok(Err(_)) => return,
            Ok(Ok(_)) | Err(_) => (),
        }
    }
}
