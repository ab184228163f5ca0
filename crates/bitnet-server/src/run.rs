//! A socket, and an orderly end.

use crate::origin::Bound;
use crate::tls::listener;
use crate::{Server, router};
use axum::body::Body;
use axum::serve::Listener;
use axum::{BoxError, Extension, Router};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1::{self, UpgradeableConnection};
use hyper::service::HttpService;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// How often a server that ends looks whether it may.
const LOOK: Duration = Duration::from_millis(20);

/// How long answers that are ended have for saying so: the step that is being run has to end first.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How long clients have at least to read what they were sent when the server has ended.
const LINGER: Duration = Duration::from_secs(2);

/// Bytes of a connection that wait to be read, and so of a request's head, at most: clients that send large bodies take no more.
const BUFFER: usize = 64 << 10;

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
    ending: Ending,
    task: JoinHandle<()>,
    server: Arc<Server>,
}

/// What ends a server from any thread.
#[derive(Clone)]
pub struct Ending(watch::Sender<bool>);

impl Ending {
    /// Ends as on SIGTERM: refuses new requests, lets running ones finish until the drain is over, and then closes.
    pub fn end(&self) {
        self.0.send_replace(true);
    }
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
    let tcp = runtime.block_on(TcpListener::bind(address)).map_err(bind)?;
    let address = tcp.local_addr()?;
    let (end, mut told) = watch::channel(false);
    // From here on a signal ends it in order, whatever has been begun meanwhile.
    let asked = {
        let _context = runtime.enter();
        asked_to_end()?
    };
    let drained = {
        let server = Arc::clone(&server);
        async move {
            tokio::select! {
                () = asked => {}
                // A sender that is gone has nothing to say.
                Ok(_) = told.wait_for(|end| *end) => {}
            }
            drain(&server).await
        }
    };
    let app = router(Arc::clone(&server)).layer(Extension(Bound(address.ip())));
    let patience = server.options.patience;
    let task = match server.options.tls.clone() {
        None => runtime.spawn(answer(listener(tcp), app, patience, drained)),
        Some(tls) => runtime.spawn(answer(tls.listener(tcp), app, patience, drained)),
    };
    Ok(Running { address, runtime, ending: Ending(end), task, server })
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

/// Answers until the end has come and every connection is closed. `drained` tells until when clients may read what they were sent.
async fn answer<L: Listener>(
    mut listener: L,
    app: Router,
    patience: Duration,
    drained: impl Future<Output = Instant>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(BUFFER);
    // Every connection listens, so that there are no listeners when all are closed.
    let (close, _) = watch::channel(());
    let mut drained = std::pin::pin!(drained);
    let over = loop {
        tokio::select! {
            (stream, _) = listener.accept() => {
                let service = TowerToHyperService::new(app.clone());
                let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
                tokio::spawn(attend(connection, close.subscribe()));
            }
            over = &mut drained => break over,
        }
    };
    drop(listener);
    close.send_replace(());
    tokio::select! {
        () = close.closed() => {}
        // Those that their clients leave hanging are closed.
        () = sleep_until(over) => {}
    }
}

/// Answers the requests of a connection, and closes it behind the one that is being answered when it is told to.
async fn attend<I, S>(connection: UpgradeableConnection<I, S>, mut close: watch::Receiver<()>)
where
    I: Read + Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Body>,
    S::Error: Into<BoxError>,
{
    let mut connection = std::pin::pin!(connection);
    // How a connection ends is its client's affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = close.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
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

    /// What ends it.
    pub fn ending(&self) -> Ending {
        self.ending.clone()
    }

    /// Serves until the end.
    ///
    /// # Errors
    /// The server panicked.
    pub fn wait(self) -> Result<(), ServeError> {
        let served = self.runtime.block_on(self.task).map_err(std::io::Error::other);
        // Whatever a client leaves hanging does not keep the process.
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        if let Some(traces) = &self.server.traces {
            traces.flush();
        }
        Ok(served?)
    }
}

/// Until nobody is being answered any more. Requests are refused, not dropped, meanwhile. Gives the time until which clients may
/// read: as long as the drain may take, but some while at least.
async fn drain(server: &Server) -> Instant {
    let over = Instant::now() + server.options.drain;
    server.drain();
    if server.open() > 0 {
        tracing::info!(open = server.open(), "draining");
    }
    wait_for_answers(server, over).await;
    if server.open() > 0 {
        tracing::warn!(open = server.open(), "the drain is over; running answers end");
        server.cancel_all();
        wait_for_answers(server, Instant::now() + LAST_WORDS).await;
    }
    over.max(Instant::now() + LINGER)
}

/// Until nobody is being answered, or the time has come.
async fn wait_for_answers(server: &Server, over: Instant) {
    while server.open() > 0 && Instant::now() < over {
        sleep(LOOK).await;
    }
}

/// Ready at the first signal that asks the program to end. A second one ends it at once.
#[cfg(unix)]
fn asked_to_end() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut either = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(async move {
        either().await;
        tokio::spawn(async move {
            either().await;
            std::process::exit(130);
        });
    })
}

#[cfg(not(unix))]
fn asked_to_end() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

#[cfg(test)]
mod tests;
