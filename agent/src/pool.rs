//! The agent's side of supervisors: a few idle ones at hand, each talked to over its own socket.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::errors::{Code, Result, code_of_errno, fail};
use crate::proctree;
use crate::sync::lock;
use crate::wire::{self, Event, Launch, Step};
use crate::zygote;

/// Idle supervisors kept for the next executions; more than these are let go.
const KEEP_IDLE: usize = 4;
const READY: usize = 1;
/// Until one is made for the next execution: the one just started has the processor to itself, and if it is
/// short its own supervisor is back by then.
const REFILL_AFTER: Duration = Duration::from_millis(100);
const STALLED: Duration = Duration::from_secs(2);
const RESUME_EVERY: Duration = Duration::from_millis(50);

pub struct Pool {
    zygote: tokio::sync::Mutex<Zygote>,
    zygote_pid: AtomicI32,
    idle: Mutex<Vec<Supervisor>>,
    /// Every supervisor's pid, which a shutdown must spare until its end.
    pids: Arc<Mutex<HashSet<i32>>>,
    refilling: AtomicBool,
}

struct Zygote {
    stream: UnixStream,
    /// A supervisor was asked for and has not been received.
    asked: bool,
}

pub struct Supervisor {
    stream: UnixStream,
    pid: i32,
    pids: Arc<Mutex<HashSet<i32>>>,
    partial: [u8; wire::EVENT],
    filled: usize,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        lock(&self.pids).remove(&self.pid);
    }
}

impl Pool {
    pub fn new(zygote: StdStream, zygote_pid: i32) -> io::Result<Arc<Pool>> {
        let pool = Arc::new(Pool {
            zygote: tokio::sync::Mutex::new(Zygote::new(zygote)?),
            zygote_pid: zygote_pid.into(),
            idle: Mutex::default(),
            pids: Arc::default(),
            refilling: false.into(),
        });
        pool.refill(Duration::ZERO);
        Ok(pool)
    }

    /// The processes that are the agent's own.
    pub fn helpers(&self) -> HashSet<i32> {
        let mut pids = lock(&self.pids).clone();
        pids.insert(self.zygote_pid.load(Ordering::Relaxed));
        pids
    }

    /// Starts a program. The supervisor is back in the pool if that fails.
    pub async fn launch(
        self: &Arc<Self>,
        request: &Launch,
        descriptors: [BorrowedFd<'_>; 3],
    ) -> Result<(Supervisor, i32)> {
        let payload = request.encode_to_vec();
        loop {
            let (mut supervisor, reused) = self.take().await?;
            let event = match supervisor.launch(&payload, descriptors).await {
                Ok(event) => event,
                // Someone killed it while it was idle; the next one will do.
                Err(_) if reused => continue,
                Err(error) => {
                    return Err(fail(Code::Internal, format!("supervisor lost: {error}")));
                }
            };
            self.refill(REFILL_AFTER);
            return match event {
                Event::Launched { pid } => Ok((supervisor, pid)),
                Event::Failed { step, errno } => {
                    self.give_back(supervisor);
                    Err(launch_error(request, step, errno))
                }
                other => Err(fail(Code::Internal, format!("unexpected answer {other:?}"))),
            };
        }
    }

    /// For a supervisor below which nothing lives.
    pub fn give_back(&self, supervisor: Supervisor) {
        let mut idle = lock(&self.idle);
        if idle.len() < KEEP_IDLE {
            idle.push(supervisor);
        }
    }

    async fn take(&self) -> Result<(Supervisor, bool)> {
        if let Some(supervisor) = lock(&self.idle).pop() {
            return Ok((supervisor, true));
        }
        let made = self
            .make()
            .await
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOMEM) => fail(
                    Code::LimitExceeded,
                    "the machine has no room for another process",
                ),
                _ => fail(Code::Internal, format!("cannot make a supervisor: {error}")),
            })?;
        Ok((made, false))
    }

    fn refill(self: &Arc<Self>, after: Duration) {
        if !self.short() || self.refilling.swap(true, Ordering::Relaxed) {
            return;
        }
        let pool = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if pool.short()
                && let Ok(supervisor) = pool.make().await
            {
                pool.give_back(supervisor);
            }
            pool.refilling.store(false, Ordering::Relaxed);
        });
    }

    fn short(&self) -> bool {
        lock(&self.idle).len() < READY
    }

    async fn make(&self) -> io::Result<Supervisor> {
        let mut zygote = self.zygote.lock().await;
        let pid = self.zygote_pid.load(Ordering::Relaxed);
        let (socket, pid) = match awoken(pid, zygote.supervisor()).await {
            Err(error) if error.raw_os_error().is_none() || broken(&error) => {
                let (fresh, pid) = zygote::respawn()?;
                self.zygote_pid.store(pid, Ordering::Relaxed);
                *zygote = Zygote::new(fresh)?;
                awoken(pid, zygote.supervisor()).await
            }
            other => other,
        }?;
        lock(&self.pids).insert(pid);
        Ok(Supervisor {
            stream: socket,
            pid,
            pids: self.pids.clone(),
            partial: [0; wire::EVENT],
            filled: 0,
        })
    }
}

impl Zygote {
    fn new(stream: StdStream) -> io::Result<Zygote> {
        stream.set_nonblocking(true)?;
        Ok(Zygote {
            stream: UnixStream::from_std(stream)?,
            asked: true,
        })
    }

    async fn supervisor(&mut self) -> io::Result<(UnixStream, i32)> {
        let stream = &self.stream;
        if !self.asked {
            send_all(stream, &[1], &[]).await?;
            self.asked = true;
        }
        let mut record = [0; wire::EVENT];
        let mut filled = 0;
        let mut rights: Vec<OwnedFd> = Vec::new();
        while filled < record.len() {
            let got = stream
                .async_io(Interest::READABLE, || {
                    wire::receive(stream.as_fd(), &mut record[filled..], &mut rights)
                })
                .await?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += got;
        }
        self.asked = false;
        match (Event::decode(&record)?, rights.pop()) {
            (Event::Supervisor { pid }, Some(socket)) => {
                let socket = StdStream::from(socket);
                socket.set_nonblocking(true)?;
                Ok((UnixStream::from_std(socket)?, pid))
            }
            (Event::Failed { errno, .. }, _) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// What a helper is to answer, who is woken should that take long: a program can stop who starts it before its start is
/// told.
async fn awoken<T>(pid: i32, answer: impl Future<Output = T>) -> T {
    tokio::pin!(answer);
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            () = tokio::time::sleep(STALLED) => drop(proctree::kill(pid, libc::SIGCONT)),
        }
    }
}

/// When a supervisor that is to kill is woken once more, should somebody have stopped it again.
pub async fn stopped_again() {
    tokio::time::sleep(RESUME_EVERY).await;
}

fn broken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET))
}

async fn send_all(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        let rights = if sent == 0 { fds } else { &[] };
        let part = &bytes[sent..];
        sent += stream
            .async_io(Interest::WRITABLE, || {
                wire::send(stream.as_fd(), part, rights)
            })
            .await?;
    }
    Ok(())
}

impl Supervisor {
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whoever is root in the machine may have stopped it, and it must hear what it is asked.
    pub fn resume(&self) {
        proctree::kill(self.pid, libc::SIGCONT);
    }

    async fn launch(&mut self, payload: &[u8], fds: [BorrowedFd<'_>; 3]) -> io::Result<Event> {
        let mut message = Vec::with_capacity(wire::HEADER + payload.len());
        message.extend_from_slice(&wire::header(wire::LAUNCH, payload.len()));
        message.extend_from_slice(payload);
        // Requests are answered in order: what comes before our answer answers one that was made while the
        // supervisor's last program was ending, a hang-up sent to a closing terminal for one.
        awoken(self.pid, async {
            send_all(&self.stream, &message, &fds).await?;
            loop {
                if let event @ (Event::Launched { .. } | Event::Failed { .. }) =
                    self.event().await?
                {
                    return Ok(event);
                }
            }
        })
        .await
    }

    /// The next event. Cancelling it loses nothing.
    pub async fn event(&mut self) -> io::Result<Event> {
        loop {
            if self.filled == wire::EVENT {
                self.filled = 0;
                return Event::decode(&self.partial);
            }
            match self.stream.try_read(&mut self.partial[self.filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.readable().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks for a signal; `Event::Signalled` answers.
    pub async fn signal(&self, signal: i32, tree: bool) -> io::Result<()> {
        let mut message = wire::header(wire::SIGNAL, 8).to_vec();
        message.extend_from_slice(&wire::signal_payload(signal, tree));
        self.resume();
        send_all(&self.stream, &message, &[]).await
    }

    /// Asks for the death of everything below; `empty` in an event says it is done.
    pub async fn kill_tree(&self) -> io::Result<()> {
        self.resume();
        send_all(&self.stream, &wire::header(wire::KILL_TREE, 0), &[]).await
    }
}

fn launch_error(request: &Launch, step: Step, errno: i32) -> tonic::Status {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let cause = io::Error::from_raw_os_error(errno);
    let program = request
        .argv
        .first()
        .map(|name| text(name))
        .unwrap_or_default();
    match (step, errno) {
        (Step::Execute, libc::ENOENT | libc::ENOTDIR) => fail(
            Code::CommandNotFound,
            format!("{program}: command not found"),
        ),
        (Step::Execute, libc::E2BIG) => fail(
            Code::InvalidArgument,
            format!("{program}: arguments and environment too long"),
        ),
        (Step::Execute, libc::ENOEXEC) => fail(
            Code::InvalidArgument,
            format!("{program}: not a program for this machine"),
        ),
        (Step::Execute, _) => fail(code_of_errno(errno), format!("{program}: {cause}")),
        (Step::Directory, _) => {
            let code = code_of_errno(errno);
            fail(
                code,
                format!("working directory {}: {cause}", text(&request.cwd)),
            )
        }
        (Step::Credentials, _) => fail(
            Code::PermissionDenied,
            format!("cannot become the user: {cause}"),
        ),
        (Step::Terminal, _) => fail(Code::Internal, format!("no controlling terminal: {cause}")),
        (Step::Clone, libc::EAGAIN | libc::ENOMEM) => fail(
            Code::LimitExceeded,
            "the machine has no room for another process",
        ),
        (Step::Clone, _) => fail(Code::Internal, format!("cannot start {program}: {cause}")),
    }
}
