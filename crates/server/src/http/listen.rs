//! Accepting connections, and ending well.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::Version;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

use super::socket::{Socket, gone};
use crate::app::App;

/// Threads for connections; computing has its own.
const THREADS: usize = 2;

/// Threads for rendering, encoding and compiling at most.
const BLOCKING_THREADS: usize = 8;

/// How often it is looked whether the server is to end.
const LOOK: Duration = Duration::from_millis(50);

/// A server that is bound to its address.
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
}

impl Server {
    /// Binds to `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address is taken or not this machine's. Without a token only loopback addresses are accepted.
    pub fn bind(address: SocketAddr, app: App) -> io::Result<Self> {
        if app.options.token.is_none() && !address.ip().is_loopback() {
            let message = "an address that others can reach needs a token";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Server {
            listener,
            app: Arc::new(app),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` says so or the process is asked to terminate; then takes no more requests, gives running ones time to
    /// finish, and ends.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn run(self, stop: &(dyn Fn() -> bool + Sync)) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("http")
            .enable_io()
            .enable_time()
            .build()?;
        let app = self.app;
        let served = runtime.block_on(serve(self.listener, app.clone(), stop));
        // What is still connected now had its time.
        app.models.shut_down(Duration::ZERO);
        runtime.shutdown_timeout(Duration::from_secs(1));
        served
    }
}

async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    stop: &(dyn Fn() -> bool + Sync),
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = super::router(&app);
    let places = Arc::new(Semaphore::new(app.options.connections));
    let (ending, _) = watch::channel(false);
    let stopped = async {
        while !stop() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let accept = async {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let serving =
                        connection(stream, router.clone(), app.clone(), ending.subscribe());
                    tokio::spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                // Out of descriptors, as a rule: others will close.
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    };
    tokio::select! {
        () = stopped => (),
        () = terminated() => (),
        () = accept => (),
    }
    drop(listener);
    ending.send_replace(true);
    let all = u32::try_from(app.options.connections).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(app.options.grace, places.acquire_many(all)).await;
    Ok(())
}

/// Ends when the system asks the process to terminate.
async fn terminated() {
    #[cfg(unix)]
    if let Ok(mut signal) =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
    {
        signal.recv().await;
        return;
    }
    std::future::pending().await
}

/// Serves one connection until either side has enough.
async fn connection(
    stream: TcpStream,
    router: axum::Router,
    app: Arc<App>,
    mut ending: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let stream = Arc::new(stream);
    let is_pending = Arc::new(AtomicBool::new(false));
    let flag = is_pending.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let (router, flag) = (router.clone(), flag.clone());
        async move {
            flag.store(request.version() == Version::HTTP_11, Ordering::Relaxed);
            let response = router.oneshot(request.map(axum::body::Body::new)).await;
            flag.store(false, Ordering::Relaxed);
            response
        }
    });
    let socket = Socket::new(stream.clone(), app.options.write_timeout);
    let mut serving = pin!(
        http1::Builder::new()
            .half_close(true)
            .timer(TokioTimer::new())
            .header_read_timeout(app.options.read_timeout)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(socket), service)
    );
    let mut gone = pin!(gone(&stream, &is_pending));
    loop {
        tokio::select! {
            _ = serving.as_mut() => return,
            () = gone.as_mut() => return,
            changed = ending.changed() => {
                serving.as_mut().graceful_shutdown();
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}
