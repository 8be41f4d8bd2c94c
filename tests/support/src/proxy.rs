//! A TCP proxy that loses, or keeps back, what goes through it.

use std::{net::SocketAddr, path::PathBuf};

use tokio::{
    io::{self, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
};

/// What a [`Proxy`] stands before.
#[derive(Debug, Clone)]
pub enum Target {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Open,
    AnswersHeld,
    Cut,
}

/// A port that leads to a server until a test wants otherwise.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    line: watch::Sender<Line>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A port that leads to `target`.
    pub async fn to(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its number");
        let (line, watched) = watch::channel(Line::Open);
        let task = tokio::spawn(accept(listener, address, target, watched));
        Self { address, line, task }
    }

    /// The port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients send still arrives; the answers wait until [`Proxy::open`].
    pub fn hold_answers(&self) {
        self.line.send_replace(Line::AnswersHeld);
    }

    /// Ends all connections and refuses new ones, until [`Proxy::open`].
    pub fn cut(&self) {
        self.line.send_replace(Line::Cut);
    }

    /// Lets everything through again.
    pub fn open(&self) {
        self.line.send_replace(Line::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    address: SocketAddr,
    target: Target,
    mut line: watch::Receiver<Line>,
) {
    let mut listener = Some(listener);
    loop {
        let Some(open) = &listener else {
            if line.wait_for(|line| *line != Line::Cut).await.is_err() {
                return;
            }
            listener = Some(TcpListener::bind(address).await.expect("the port of before"));
            continue;
        };
        tokio::select! {
            accepted = open.accept() => {
                let (client, _) = accepted.expect("a connection");
                tokio::spawn(connect(client, target.clone(), line.clone()));
            }
            cut = async { line.wait_for(|line| *line == Line::Cut).await.is_ok() } => {
                if !cut {
                    return;
                }
                listener = None;
            }
        }
    }
}

/// A connection that fails at either end just ends, as it does without a proxy.
async fn connect(client: TcpStream, target: Target, line: watch::Receiver<Line>) {
    let _ = client.set_nodelay(true);
    match target {
        Target::Tcp(address) => {
            if let Ok(server) = TcpStream::connect(address).await {
                let _ = server.set_nodelay(true);
                relay(client, server, line).await;
            }
        }
        Target::Unix(path) => {
            if let Ok(server) = UnixStream::connect(path).await {
                relay(client, server, line).await;
            }
        }
    }
}

async fn relay(
    client: TcpStream,
    server: impl AsyncRead + AsyncWrite,
    mut line: watch::Receiver<Line>,
) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = io::split(server);
    let held = line.clone();
    tokio::select! {
        _ = copy(from_client, to_server, None) => {}
        _ = copy(from_server, to_client, Some(held)) => {}
        _ = line.wait_for(|line| *line == Line::Cut) => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut held: Option<watch::Receiver<Line>>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return to.shutdown().await;
        }
        if let Some(held) = &mut held {
            let open = held.wait_for(|line| *line != Line::AnswersHeld).await;
            open.map_err(io::Error::other)?;
        }
        to.write_all(&buffer[..len]).await?;
    }
}
