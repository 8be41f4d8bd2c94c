//! A TCP proxy that loses, keeps back or slows down what goes through it.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

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
    Silent,
    Slow(Duration),
    Cut,
}

/// A port that leads to a server until a test wants otherwise.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    line: watch::Sender<Line>,
    target: watch::Sender<Target>,
    /// How often connections were stranded.
    strandings: watch::Sender<u32>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A port that leads to `target`.
    pub async fn to(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its number");
        let (line, watched) = watch::channel(Line::Open);
        let (target, targets) = watch::channel(target);
        let (strandings, stranded) = watch::channel(0);
        let task = tokio::spawn(accept(listener, address, targets, watched, stranded));
        Self { address, line, target, strandings, task }
    }

    /// The port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients send still arrives; the answers wait until [`Proxy::open`].
    pub fn hold_answers(&self) {
        self.line.send_replace(Line::AnswersHeld);
    }

    /// Nothing arrives any more, either way, and nobody is told: connections stay, and new ones
    /// are accepted. What was sent meanwhile arrives after [`Proxy::open`].
    pub fn silence(&self) {
        self.line.send_replace(Line::Silent);
    }

    /// Everything arrives later by this much, each way.
    pub fn slow_down(&self, delay: Duration) {
        self.line.send_replace(Line::Slow(delay));
    }

    /// Nothing arrives any more on the connections that there are, as when a firewall forgot them;
    /// new ones are as good as ever. A [`Proxy::cut`] ends them.
    pub fn strand(&self) {
        self.strandings.send_modify(|times| *times += 1);
    }

    /// New connections lead to another server.
    pub fn lead_to(&self, target: Target) {
        self.target.send_replace(target);
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
    target: watch::Receiver<Target>,
    mut line: watch::Receiver<Line>,
    strandings: watch::Receiver<u32>,
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
                let target = target.borrow().clone();
                tokio::spawn(connect(client, target, line.clone(), strandings.clone()));
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
async fn connect(
    client: TcpStream,
    target: Target,
    line: watch::Receiver<Line>,
    strandings: watch::Receiver<u32>,
) {
    let _ = client.set_nodelay(true);
    match target {
        Target::Tcp(address) => {
            if let Ok(server) = TcpStream::connect(address).await {
                let _ = server.set_nodelay(true);
                relay(client, server, line, strandings).await;
            }
        }
        Target::Unix(path) => {
            if let Ok(server) = UnixStream::connect(path).await {
                relay(client, server, line, strandings).await;
            }
        }
    }
}

async fn relay(
    client: TcpStream,
    server: impl AsyncRead + AsyncWrite,
    mut line: watch::Receiver<Line>,
    mut strandings: watch::Receiver<u32>,
) {
    strandings.mark_unchanged();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = io::split(server);
    let (asked, answered) = (line.clone(), line.clone());
    let answers_held = |line: &Line| matches!(line, Line::AnswersHeld | Line::Silent);
    let relaying = async {
        tokio::select! {
            _ = copy(from_client, to_server, asked, |line| *line == Line::Silent) => {}
            _ = copy(from_server, to_client, answered, answers_held) => {}
        }
    };
    let relaying = async {
        tokio::select! {
            () = relaying => {}
            Ok(()) = strandings.changed() => std::future::pending().await,
        }
    };
    tokio::select! {
        () = relaying => {}
        _ = line.wait_for(|line| *line == Line::Cut) => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut line: watch::Receiver<Line>,
    held: impl Fn(&Line) -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let len = from.read(&mut buffer).await?;
        let state = *line.wait_for(|line| !held(line)).await.map_err(io::Error::other)?;
        if let Line::Slow(delay) = state {
            tokio::time::sleep(delay).await;
        }
        if len == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..len]).await?;
    }
}
