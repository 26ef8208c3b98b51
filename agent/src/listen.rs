//! Where the daemon comes in: TCP, unix sockets, and byte streams (see `serial`). All of them end in one
//! queue of connections for one HTTP/2 server.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::transport::server::Connected;

use crate::auth::Token;
use crate::{limits, serial};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(String),
    Unix(String),
    /// A unix socket that whoever started the agent listens on already, as its standard input.
    UnixStdin,
    Serial(String),
    SerialStdio,
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        match text.split_once(':') {
            Some(("tcp", rest)) if rest.contains(':') => Ok(Address::Tcp(rest.to_owned())),
            Some(("unix", rest)) if !rest.is_empty() => Ok(Address::Unix(rest.to_owned())),
            Some(("serial", rest)) if !rest.is_empty() => Ok(Address::Serial(rest.to_owned())),
            None if text == "unix-stdin" => Ok(Address::UnixStdin),
            None if text == "serial-stdio" => Ok(Address::SerialStdio),
            _ => Err(format!(
                "{text:?} is not tcp:ADDR:PORT, unix:PATH, unix-stdin, serial:PATH or serial-stdio"
            )),
        }
    }
}

pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Serial(serial::Connection),
}

/// One connection, counted while it lives.
pub struct Connection {
    stream: Stream,
    _permit: OwnedSemaphorePermit,
}

pub type Incoming = mpsc::Receiver<io::Result<Connection>>;

/// Takes the socket of `UnixStdin`, before anything could inherit it.
pub fn take_stdin() -> io::Result<StdListener> {
    let taken = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(StdListener::from(taken))
}

/// Starts listening everywhere; returns the TCP ports, which Dial must not reach. `given`: of `take_stdin`.
pub async fn listen(
    addresses: &[Address],
    mut given: Option<StdListener>,
    token: &Token,
) -> io::Result<(Incoming, Vec<u16>)> {
    let (sender, incoming) = mpsc::channel(8);
    let room = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let mut ports = Vec::new();
    for address in addresses {
        let queue = Queue {
            sender: sender.clone(),
            room: room.clone(),
        };
        match address {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                ports.push(listener.local_addr()?.port());
                tokio::spawn(accept_tcp(listener, queue));
            }
            Address::Unix(path) => {
                tokio::spawn(accept_unix(bind_unix(path)?, queue));
            }
            Address::UnixStdin => {
                let given = given.take().ok_or(io::ErrorKind::InvalidInput)?;
                given.set_nonblocking(true)?;
                tokio::spawn(accept_unix(UnixListener::from_std(given)?, queue));
            }
            Address::Serial(path) => {
                let device = serial::Device::open(path)?;
                tokio::spawn(serial::serve(device, token.clone(), queue));
            }
            Address::SerialStdio => {
                let device = serial::Device::stdio()?;
                tokio::spawn(serial::serve(device, token.clone(), queue));
            }
        }
    }
    Ok((incoming, ports))
}

/// The way of a new connection to the server.
pub struct Queue {
    sender: mpsc::Sender<io::Result<Connection>>,
    room: Arc<Semaphore>,
}

impl Queue {
    /// False when the server is gone.
    pub async fn put(&self, stream: Stream) -> bool {
        let Ok(permit) = self.room.clone().acquire_owned().await else {
            return false;
        };
        self.sender
            .send(Ok(Connection {
                stream,
                _permit: permit,
            }))
            .await
            .is_ok()
    }
}

async fn accept_tcp(listener: TcpListener, queue: Queue) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                if !queue.put(Stream::Tcp(stream)).await {
                    return;
                }
            }
            Err(_) => pause().await,
        }
    }
}

async fn accept_unix(listener: UnixListener, queue: Queue) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if !queue.put(Stream::Unix(stream)).await {
                    return;
                }
            }
            Err(_) => pause().await,
        }
    }
}

/// After a failed accept (descriptors used up, say), instead of a busy loop.
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

/// Listens before the path is there, so that whoever finds it can connect. A socket left by an agent that was
/// killed is replaced.
fn bind_unix(path: &str) -> io::Result<UnixListener> {
    let early = format!("{path}.new");
    for old in [path, &early] {
        if std::fs::symlink_metadata(old).is_ok_and(|meta| meta.file_type().is_socket()) {
            std::fs::remove_file(old)?;
        }
    }
    let listener = UnixListener::bind(&early)?;
    std::fs::set_permissions(&early, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&early, path)?;
    Ok(listener)
}

macro_rules! each {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($inner) => $call,
            Stream::Unix($inner) => $call,
            Stream::Serial($inner) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(&mut self.stream, inner => Pin::new(inner).poll_read(context, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(&mut self.stream, inner => Pin::new(inner).poll_write(context, data))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(&mut self.stream, inner => Pin::new(inner).poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        each!(&self.stream, inner => inner.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut self.stream, inner => Pin::new(inner).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut self.stream, inner => Pin::new(inner).poll_shutdown(context))
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
