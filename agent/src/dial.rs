//! Dial: one TCP connection to a port of the machine's loopback, its two directions closed each on its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::errors::{Code, Result, fail};
use crate::pb::DialFrame;

const CHUNK: usize = 64 << 10;
const CONNECT: Duration = Duration::from_secs(10);

/// The loopback addresses that a host name of the request stands for.
fn addresses(host: &str) -> Result<Vec<IpAddr>> {
    let (four, six) = (
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    );
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if name.is_empty() || name == "localhost" || name.ends_with(".localhost") {
        return Ok(vec![four, six]);
    }
    let literal = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(&name);
    match literal.parse::<IpAddr>() {
        Ok(address) if address.is_loopback() => Ok(vec![address]),
        _ => Err(fail(
            Code::InvalidArgument,
            format!("{host:?} is not a loopback name"),
        )),
    }
}

pub async fn dial(
    mut frames: Streaming<DialFrame>,
    own_ports: &[u16],
) -> Result<mpsc::Receiver<Result<DialFrame>>> {
    let first = frames.message().await?;
    let first = first.ok_or_else(|| {
        fail(
            Code::InvalidArgument,
            "the first message must name the port",
        )
    })?;
    let port = u16::try_from(first.port).ok().filter(|&port| port > 0);
    let port =
        port.ok_or_else(|| fail(Code::InvalidArgument, "a port is a number from 1 to 65535"))?;
    let addresses = addresses(&first.host)?;
    if own_ports.contains(&port) {
        return Err(fail(
            Code::PermissionDenied,
            format!("port {port} is the agent's own"),
        ));
    }
    let stream = connect(&addresses, port).await?;
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    let (sender, receiver) = mpsc::channel(4);
    let _ = sender.try_send(Ok(DialFrame::default())); // it is connected
    tokio::spawn(inward(frames, first, write, sender.clone()));
    tokio::spawn(outward(read, sender));
    Ok(receiver)
}

async fn connect(addresses: &[IpAddr], port: u16) -> Result<TcpStream> {
    let mut problem = fail(Code::PortClosed, format!("nothing listens on port {port}"));
    for &address in addresses {
        match tokio::time::timeout(CONNECT, TcpStream::connect((address, port))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => match error.raw_os_error() {
                Some(libc::ECONNREFUSED | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => {}
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => {}
                _ => problem = fail(Code::PortClosed, format!("port {port}: {error}")),
            },
            Err(_) => problem = fail(Code::PortClosed, format!("port {port} does not answer")),
        }
    }
    Err(problem)
}

/// From the caller to the port. A caller who goes away resets the connection by dropping it.
async fn inward(
    mut frames: Streaming<DialFrame>,
    mut frame: DialFrame,
    mut port: OwnedWriteHalf,
    sender: mpsc::Sender<Result<DialFrame>>,
) {
    loop {
        if !frame.data.is_empty() {
            let written = tokio::select! {
                written = port.write_all(&frame.data) => written,
                () = sender.closed() => return,
            };
            if written.is_err() {
                return;
            }
        }
        if frame.eof {
            break;
        }
        let next = tokio::select! {
            next = frames.message() => next,
            () = sender.closed() => return,
        };
        match next {
            Ok(Some(next)) => frame = next,
            Ok(None) => break,
            Err(_) => return,
        }
    }
    let _ = port.shutdown().await;
}

async fn outward(mut port: OwnedReadHalf, sender: mpsc::Sender<Result<DialFrame>>) {
    loop {
        let mut data = bytes::BytesMut::with_capacity(CHUNK);
        let got = tokio::select! {
            got = port.read_buf(&mut data) => got,
            () = sender.closed() => return,
        };
        let frame = match got {
            Ok(0) => DialFrame {
                eof: true,
                ..Default::default()
            },
            Ok(_) => DialFrame {
                data: data.freeze(),
                ..Default::default()
            },
            Err(error) => {
                let status = fail(Code::PortClosed, format!("the connection broke: {error}"));
                let _ = sender.send(Err(status)).await;
                return;
            }
        };
        let last = frame.eof;
        if sender.send(Ok(frame)).await.is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::addresses;

    #[test]
    fn only_loopback_names() {
        for host in [
            "",
            "localhost",
            "LOCALHOST.",
            "app.localhost",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "[::1]",
        ] {
            assert!(addresses(host).is_ok(), "{host}");
        }
        let hosts = [
            "0.0.0.0",
            "169.254.169.254",
            "example.com",
            "::",
            "10.0.0.1",
            "localhost.evil",
            "2130706433",
        ];
        for host in hosts {
            assert!(addresses(host).is_err(), "{host}");
        }
    }
}
