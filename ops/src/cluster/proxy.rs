//! A way through loopback that spreads connections over several places, and can be made slow, thin, silent or cut: what a load
//! balancer is to clients, and what a bad network is to everybody.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

/// Bytes that are carried at once.
const PIECE: usize = 16 * 1024;
/// How long a place may take to take a connection before the next one is tried.
const CONNECT: Duration = Duration::from_millis(500);

/// How the way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As if it were not there.
    Open,
    /// Every piece is late by so much.
    Slow(Duration),
    /// So many bytes a second each way.
    Thin(u64),
    /// Connections stand, and nothing comes through: a cable that was pulled.
    Silent,
    /// Connections break, and none is made: a port that was closed.
    Cut,
}

/// A running proxy.
pub struct Proxy {
    /// Where it listens, `host:port`.
    pub address: String,
    mode: watch::Sender<Mode>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Listens there (port 0: a free one) and carries to these places, one connection after the other.
    pub async fn start(at: (Ipv4Addr, u16), places: Vec<String>) -> Result<Self> {
        let listener = TcpListener::bind(at).await?;
        let address = listener.local_addr()?.to_string();
        let (mode, watched) = watch::channel(Mode::Open);
        let task = tokio::spawn(accept(listener, places.into(), watched));
        Ok(Self { address, mode, _task: AbortOnDropHandle::new(task) })
    }

    /// Changes how the way is, for connections that stand too.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn accept(listener: TcpListener, places: Arc<[String]>, mode: watch::Receiver<Mode>) {
    let turn = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((near, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (places, mode, turn) = (places.clone(), mode.clone(), turn.clone());
        tokio::spawn(async move {
            let _ = near.set_nodelay(true);
            if *mode.borrow() == Mode::Cut {
                return;
            }
            let first = turn.fetch_add(1, Ordering::Relaxed);
            for n in 0..places.len() {
                let place = &places[(first + n) % places.len()];
                if let Ok(Ok(far)) = tokio::time::timeout(CONNECT, TcpStream::connect(place)).await {
                    let _ = far.set_nodelay(true);
                    carry(near, far, mode).await;
                    return;
                }
            }
        });
    }
}

/// Carries both ways until one end closes or the way is cut.
async fn carry(near: TcpStream, far: TcpStream, mode: watch::Receiver<Mode>) {
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let out = tokio::spawn(one_way(near_read, far_write, mode.clone()));
    let back = tokio::spawn(one_way(far_read, near_write, mode.clone()));
    let (out, back) = (AbortOnDropHandle::new(out), AbortOnDropHandle::new(back));
    let mut cut = mode;
    tokio::select! {
        // A side that has said everything may still listen.
        _ = async { tokio::join!(out, back) } => {}
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        // Held while nothing comes through; what was read goes on when the way is open again.
        if mode.wait_for(|mode| *mode != Mode::Silent).await.is_err() {
            return;
        }
        let mode = *mode.borrow();
        match mode {
            Mode::Slow(by) => tokio::time::sleep(by).await,
            Mode::Thin(rate) => {
                tokio::time::sleep(Duration::from_micros(count as u64 * 1_000_000 / rate.max(1))).await;
            }
            Mode::Cut => return,
            Mode::Open | Mode::Silent => {}
        }
        if to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place that says its name to everyone and then repeats what it hears.
    async fn place(name: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = stream.write_all(name.as_bytes()).await;
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    async fn hear(stream: &mut TcpStream) -> Option<u8> {
        tokio::time::timeout(Duration::from_secs(5), stream.read_u8()).await.ok()?.ok()
    }

    #[tokio::test]
    async fn connections_are_spread_and_a_place_that_is_gone_is_passed_over() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let proxy =
            Proxy::start((Ipv4Addr::LOCALHOST, 0), vec![place("a").await, gone, place("b").await]).await.unwrap();
        let mut heard = Vec::new();
        for _ in 0..6 {
            let mut stream = TcpStream::connect(&proxy.address).await.unwrap();
            heard.push(hear(&mut stream).await.unwrap());
        }
        heard.sort_unstable();
        assert_eq!(heard, *b"aabbbb");
    }

    #[tokio::test]
    async fn a_way_can_fall_silent_and_be_cut() {
        let proxy = Proxy::start((Ipv4Addr::LOCALHOST, 0), vec![place("a").await]).await.unwrap();
        let mut stream = TcpStream::connect(&proxy.address).await.unwrap();
        assert_eq!(hear(&mut stream).await, Some(b'a'));
        proxy.set(Mode::Silent);
        stream.write_all(b"x").await.unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(100), stream.read_u8()).await;
        assert!(silent.is_err(), "nothing comes through");
        proxy.set(Mode::Open);
        assert_eq!(hear(&mut stream).await, Some(b'x'), "and nothing is lost");
        proxy.set(Mode::Cut);
        assert_eq!(hear(&mut stream).await, None);
        let mut late = TcpStream::connect(&proxy.address).await.unwrap();
        assert_eq!(hear(&mut late).await, None);
    }
}
