//! The socket that the machine's programs connect to, and what else of ours they find beside it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::http::{self, HEAD_BYTES, Refusal};
use super::{BODY_BYTES, Inside, Outcome, PLACE, SOCKET};
use crate::pb::InsideRequest;

const CONNECTIONS: usize = 32;
/// To send a request, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where a machine's programs find the helper by its name.
const ON_PATH: &str = "/usr/local/bin/roost";
const SCRIPT: &[u8] = b"#!/bin/sh\nexec /run/roost/roost \"$@\"\n";
/// On the container rungs, which have the agent on their disk.
const AGENT: &str = "/.roost/agent";

/// Listens from now on; a machine where that cannot be has no such socket, and else nothing is amiss.
pub fn serve(path: &str, inside: Inside) {
    if path == SOCKET {
        make_place();
    }
    match bind(Path::new(path)) {
        Ok(listener) => drop(tokio::spawn(accept(listener, inside))),
        Err(error) => eprintln!("roost-agent: {path}: {error}"),
    }
}

/// The helper in `PLACE`, and a script where programs look, if nothing else has that name. A virtual machine's
/// init has put the helper there itself.
fn make_place() {
    let _ = fs::DirBuilder::new().mode(0o755).create(PLACE);
    let helper = format!("{PLACE}/roost");
    if Path::new(AGENT).exists() {
        open_home();
        let _ = symlink(AGENT, &helper);
    }
    // No link: what is copied over one would be written into the agent, which in gVisor ends the machine.
    let script = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(ON_PATH);
    if let Ok(mut script) = script {
        let _ = script.write_all(SCRIPT);
    }
}

/// Releases before this one made the agent's directory for root alone.
fn open_home() {
    let everybodys = |mode: u32| mode & 0o055 == 0o055;
    if let Some(home) = Path::new(AGENT).parent()
        && let Ok(meta) = fs::symlink_metadata(home)
        && !everybodys(meta.permissions().mode())
    {
        let _ = fs::set_permissions(home, fs::Permissions::from_mode(0o755));
    }
}

/// For every user of the machine: what may be asked is the machine's right, not a user's.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, inside: Inside) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let inside = inside.clone();
                tokio::spawn(async move {
                    converse(stream, &inside).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn converse(mut stream: UnixStream, inside: &Inside) {
    let asked = match tokio::time::timeout(PATIENCE, read(&mut stream)).await {
        Ok(Ok(Some(request))) => Ok(request),
        Ok(Err(refusal)) => Err(refusal),
        Ok(Ok(None)) | Err(_) => return,
    };
    let said = match asked {
        Ok(request) => ask(request, inside).await,
        Err(refusal) => refusal.answer(false),
    };
    let _ = tokio::time::timeout(PATIENCE, async {
        stream.write_all(&said).await?;
        stream.shutdown().await
    })
    .await;
}

/// None where it went away.
async fn read(stream: &mut UnixStream) -> Result<Option<http::Request>, Refusal> {
    let mut data = Vec::with_capacity(1 << 10);
    loop {
        if let Some(request) = http::parse(&data)? {
            return Ok(Some(request));
        }
        let room = HEAD_BYTES + BODY_BYTES - data.len();
        let mut chunk = [0; 2 << 10];
        let wanted = room.min(chunk.len());
        match stream.read(&mut chunk[..wanted]).await {
            Ok(count @ 1..) => data.extend_from_slice(&chunk[..count]),
            _ => return Ok(None),
        }
    }
}

async fn ask(request: http::Request, inside: &Inside) -> Vec<u8> {
    let text = request.text;
    let asked = InsideRequest {
        id: 0,
        method: request.method,
        path: request.path,
        body: request.body.into(),
        text,
    };
    let (status, code, message) = match inside.ask(asked).await {
        Outcome::Answered(answer) => {
            let status = u16::try_from(answer.status).ok();
            let status = status.filter(|status| (200..600).contains(status));
            return http::answer(status.unwrap_or(502), text, &answer.body);
        }
        Outcome::Unlinked => (
            503,
            "DAEMON_UNREACHABLE",
            "This machine's daemon is not connected: it may be stopped, starting anew, or of a release that \
             machines cannot ask. Try again.",
        ),
        Outcome::Broken => (
            503,
            "DAEMON_UNREACHABLE",
            "The connection to this machine's daemon ended before the answer came, as it does when the machine \
             sleeps, is captured or was restored: see what holds now, and ask again.",
        ),
        Outcome::Busy => (
            429,
            "LIMIT_EXCEEDED",
            "Too many requests of this machine wait already: try again.",
        ),
        Outcome::Late => (
            504,
            "TIMEOUT",
            "This machine's daemon did not answer in time.",
        ),
    };
    Refusal {
        status,
        code,
        message,
    }
    .answer(text)
}
