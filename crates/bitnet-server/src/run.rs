//! A socket, and an orderly end.

use crate::{Server, router};
use axum::Router;
use axum::serve::Listener;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// How often a server that ends looks whether it may.
const LOOK: Duration = Duration::from_millis(20);

/// How long clients have to read what they were sent when the server has ended.
const LINGER: Duration = Duration::from_secs(2);

/// Why a server could not be started, or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Everybody could use it.
    #[error(
        "{address} can be reached from elsewhere; give a key with --api-key or --api-key-file, or bind 127.0.0.1"
    )]
    Open {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be had.
    #[error("could not bind {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The operating system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A server on a socket.
pub struct Running {
    address: SocketAddr,
    runtime: Runtime,
    end: watch::Sender<bool>,
    task: JoinHandle<std::io::Result<()>>,
    server: Arc<Server>,
}

/// Binds an address and begins to answer. A model may still be loading.
///
/// # Errors
/// The address is taken, or lies outside this machine and no key is asked for.
pub fn serve(server: Arc<Server>, address: SocketAddr) -> Result<Running, ServeError> {
    if !address.ip().is_loopback() && server.options.keys.is_open() {
        return Err(ServeError::Open { address });
    }
    let runtime = runtime()?;
    let bind = |source| ServeError::Bind { address, source };
    let listener = runtime.block_on(TcpListener::bind(address)).map_err(bind)?;
    let address = listener.local_addr()?;
    let (end, told) = watch::channel(false);
    let (closing, closed) = oneshot::channel();
    let drained = drained(Arc::clone(&server), told);
    let app = router(Arc::clone(&server));
    let ending = async move {
        drained.await;
        let _ = closing.send(());
    };
    let task = match server.options.tls.clone() {
        None => runtime.spawn(answer(listener, app, ending, closed)),
        Some(tls) => runtime.spawn(answer(tls.listener(listener), app, ending, closed)),
    };
    Ok(Running { address, runtime, end, task, server })
}

/// The threads of a server: two for what does not wait, and some for what takes a while ([`crate::aside`]). Each keeps memory of
/// its own for the allocator, so that there are not as many as clients.
pub(crate) fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
}

/// Answers until the end has come and every connection is closed.
async fn answer<L>(
    listener: L,
    app: Router,
    ending: impl Future<Output = ()> + Send + 'static,
    closed: oneshot::Receiver<()>,
) -> std::io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let served = axum::serve(listener, app).with_graceful_shutdown(ending);
    tokio::select! {
        served = served => served,
        // Connections that their clients leave hanging are closed.
        _ = async { let _ = closed.await; tokio::time::sleep(LINGER).await } => Ok(()),
    }
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its address begins with in a browser.
    pub fn scheme(&self) -> &'static str {
        if self.server.options.tls.is_some() { "https" } else { "http" }
    }

    /// Ends as on SIGTERM: refuses new requests, lets running ones finish until the drain is over, and then closes.
    pub fn end(&self) {
        self.end.send_replace(true);
    }

    /// Serves until the end.
    ///
    /// # Errors
    /// The socket failed.
    pub fn wait(self) -> Result<(), ServeError> {
        let served = self.runtime.block_on(self.task).map_err(std::io::Error::other)?;
        // Whatever a client leaves hanging does not keep the process.
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        if let Some(traces) = &self.server.traces {
            traces.flush();
        }
        Ok(served?)
    }
}

/// Ready when the server has been told to end and nobody is being answered any more. Requests are refused, not dropped, meanwhile.
async fn drained(server: Arc<Server>, mut told: watch::Receiver<bool>) {
    let told = async move {
        // A sender that is gone has nothing to say.
        if told.wait_for(|end| *end).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = asked_to_end() => {}
        () = told => {}
    }
    tracing::info!(open = server.open(), "draining");
    server.drain();
    let over = Instant::now() + server.options.drain;
    while server.open() > 0 && Instant::now() < over {
        tokio::time::sleep(LOOK).await;
    }
    if server.open() > 0 {
        tracing::warn!(open = server.open(), "the drain is over; running answers end");
        server.cancel_all();
    }
}

#[cfg(unix)]
fn asked_to_end() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    async move {
        let [Ok(mut terminate), Ok(mut interrupt)] = signals else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // A second one ends the program at once.
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(130);
        });
    }
}

#[cfg(not(unix))]
async fn asked_to_end() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
