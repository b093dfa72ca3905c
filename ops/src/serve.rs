//! Serves HTTP/1.1 on a listener: a bounded number of connections, a bounded time for a request's head, small buffers, no
//! delay on small writes, upgrades to sockets, and an end that lets requests under way finish.
//!
//! A connection that was upgraded still counts towards the bound until its socket is closed.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use schemas::vital;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::exit::Failure;

/// The smallest buffer hyper takes; it holds one request's head, and grows to this only while one is read.
const BUFFER_BYTES: usize = 16 * 1024;

/// Answered to a connection past the bound, without reading a byte of it.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
connection: close\r\ncontent-length: 160\r\n\r\n\
{\"type\":\"/problems/overloaded\",\"title\":\"Too much at once: come back later\",\"status\":503,\
\"detail\":\"every connection of this node is taken\",\"retry_after_ms\":1000}";

/// What a server bounds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// Time a request's head may take, ms; also how long a connection may idle between two requests.
    pub head_ms: u64,
}

/// Opens a listener, or says in a sentence why not.
pub async fn bind(address: &str, key: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|why| {
        let hint = match why.kind() {
            io::ErrorKind::AddrInUse => {
                format!("another program listens there: stop it, or choose another address with --{key} (port 0 takes a free one)")
            }
            io::ErrorKind::PermissionDenied => format!("this user may not: choose a port above 1023 with --{key}"),
            _ => format!("choose an address of this machine with --{key}"),
        };
        Failure::unreachable(format!("cannot listen on {address} ({why}); {hint}"))
    })
}

/// A server that runs until it is told to end.
pub struct Serving {
    stop: CancellationToken,
    tracker: TaskTracker,
    address: SocketAddr,
}

impl Serving {
    /// Starts serving.
    pub fn start(listener: TcpListener, routes: Router, bounds: Bounds) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let tracker = TaskTracker::new();
        let accepting = accept(listener, routes, bounds, stop.clone(), tracker.clone());
        tracker.spawn(vital::task("a listener", accepting));
        Ok(Self { stop, tracker, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no connection any more and lets requests under way finish, for so long. Says whether all did. Sockets are not
    /// waited for: they are the gateway's.
    pub async fn stop(&self, within: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(within, self.tracker.wait()).await.is_ok()
    }
}

async fn accept(listener: TcpListener, routes: Router, bounds: Bounds, stop: CancellationToken, tracker: TaskTracker) {
    let room = Arc::new(Semaphore::new(bounds.connections.min(Semaphore::MAX_PERMITS)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(bounds.head_ms))
        .max_buf_size(BUFFER_BYTES)
        .half_close(false);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The peer went before it was met.
            Err(why) if matches!(why.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
                continue;
            }
            // Mostly out of descriptors: some come back when connections end.
            Err(why) => {
                tracing::warn!(%why, "no connection could be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            metrics::counter!("esh3ar_connections_refused_total").increment(1);
            let _ = stream.try_write(FULL);
            continue;
        };
        let _ = stream.set_nodelay(true);
        tracker.spawn(connection(http.clone(), Counted { stream, _permit: permit }, routes.clone(), stop.clone()));
    }
}

/// One connection, until it ends or is upgraded. Few locals, because every idle one keeps them.
async fn connection(http: http1::Builder, io: Counted, routes: Router, stop: CancellationToken) {
    let serving = http.serve_connection(TokioIo::new(io), TowerToHyperService::new(routes)).with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let outcome = tokio::select! {
        outcome = serving.as_mut() => outcome,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(why) = outcome {
        tracing::debug!(%why, "a connection ended early");
    }
}

/// A stream that holds its place in the bound for as long as it lives, upgraded or not.
struct Counted {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn start(bounds: Bounds) -> Serving {
        let routes = Router::new().route("/", get(|| async { "here" }));
        Serving::start(bind("127.0.0.1:0", "listen").await.unwrap(), routes, bounds).unwrap()
    }

    async fn ask(stream: &mut TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut buffer = [0; 1024];
        let n = stream.read(&mut buffer).await.unwrap();
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    #[tokio::test]
    async fn a_connection_past_the_bound_is_answered_503() {
        let serving = start(Bounds { connections: 1, head_ms: 10_000 }).await;
        let mut first = TcpStream::connect(serving.address()).await.unwrap();
        assert!(ask(&mut first).await.starts_with("HTTP/1.1 200"));
        let mut second = TcpStream::connect(serving.address()).await.unwrap();
        let mut said = Vec::new();
        second.read_to_end(&mut said).await.unwrap();
        let said = String::from_utf8(said).unwrap();
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 503") && head.contains(&format!("content-length: {}", body.len())),
            "{said}"
        );
        assert!(serde_json::from_str::<schemas::Problem>(body).is_ok());
    }

    #[tokio::test]
    async fn a_head_that_trickles_in_is_cut() {
        let serving = start(Bounds { connections: 9, head_ms: 50 }).await;
        let mut slow = TcpStream::connect(serving.address()).await.unwrap();
        slow.write_all(b"GET / HT").await.unwrap();
        let mut said = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), slow.read_to_end(&mut said)).await;
        assert!(ended.is_ok(), "the connection was still open after a hundred times its deadline");
    }

    #[tokio::test]
    async fn stopping_ends_idle_connections_and_takes_no_new_ones() {
        let serving = start(Bounds { connections: 9, head_ms: 10_000 }).await;
        let mut kept = TcpStream::connect(serving.address()).await.unwrap();
        assert!(ask(&mut kept).await.ends_with("here"));
        assert!(serving.stop(Duration::from_secs(5)).await);
        assert!(TcpStream::connect(serving.address()).await.is_err());
    }

    #[tokio::test]
    async fn a_port_in_use_is_one_sentence() {
        let taken = bind("127.0.0.1:0", "listen").await.unwrap();
        let said = bind(&taken.local_addr().unwrap().to_string(), "listen").await.unwrap_err();
        assert_eq!(said.exit, crate::exit::Exit::Unreachable);
        assert!(
            said.sentence.contains("another program listens there") && said.sentence.contains("--listen"),
            "{said}"
        );
    }
}
