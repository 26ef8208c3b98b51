//! Byte streams that outlive their peer: a virtio-serial port, a pair of FIFOs.
//!
//! Such a stream can hold bytes of a dialler that is gone, and no end of file tells of that. So a dial starts
//! with a preamble that only a holder of the token can make (`auth`), looked for in everything that comes in:
//!
//! ```text
//!   hunting --preamble+nonce--> echo sent, connected --preamble+nonce--> (old connection cut) echo, connected
//! ```
//!
//! Bytes are passed on to the connection while the search goes on, never held back for it: what leaks of a
//! preamble into a connection that is about to be cut does no harm.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat, open};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

use crate::auth::Token;
use crate::listen::{Queue, Stream};
use crate::sync::{async_fd, lock};

/// More than HTTP/2's flow control lets a live peer have in flight: past it the connection is stuck, and only
/// the search for the next preamble matters.
const BACKLOG: usize = 20 << 20;
const CHUNK: usize = 64 << 10;
/// A stream whose other side is closed is tried again after this even if nothing told of its opening.
const HANGUP_PAUSE: Duration = Duration::from_secs(2);

/// Tells of changes in a descriptor's state, as an epoll instance of its own that tokio waits on.
///
/// Not by tokio directly: a virtio port whose other side is closed is reported as closed, tokio takes that as
/// final, and every wait on it from then on would end at once.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    fn of(descriptor: &OwnedFd, flags: EventFlags) -> io::Result<Changes> {
        let changes = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &changes,
            descriptor,
            EventData::new_u64(0),
            flags | EventFlags::ET,
        )?;
        Ok(Changes(async_fd(changes)?))
    }

    /// Whoever is told tries again: the change may be one that was seen already.
    fn poll(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut ready = ready!(self.0.poll_read_ready(context))?;
        ready.clear_ready();
        let mut events = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }];
        epoll::wait(&self.0, &mut events, Some(&Timespec::default()))?;
        Poll::Ready(Ok(()))
    }
}

/// Tries, waits for a change, tries again. A peer that is always ready does not keep other tasks waiting.
fn poll_io(
    context: &mut Context<'_>,
    changes: &Changes,
    mut attempt: impl FnMut() -> rustix::io::Result<usize>,
) -> Poll<io::Result<usize>> {
    let turn = ready!(coop::poll_proceed(context));
    loop {
        match attempt() {
            Err(Errno::AGAIN) => ready!(changes.poll(context))?,
            Err(Errno::INTR) => {}
            result => {
                turn.made_progress();
                return Poll::Ready(result.map_err(Into::into));
            }
        }
    }
}

pub struct Device {
    input: OwnedFd,
    output: OwnedFd,
    readable: Changes,
    writable: Changes,
}

impl Device {
    pub fn open(path: &str) -> io::Result<Device> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let input = open(path, flags, Mode::empty())?;
        let output = input.try_clone()?;
        Device::new(input, output)
    }

    /// Descriptors 0 and 1, which no program started from here gets.
    pub fn stdio() -> io::Result<Device> {
        let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        Device::new(input, output)
    }

    pub fn new(input: OwnedFd, output: OwnedFd) -> io::Result<Device> {
        for end in [&input, &output] {
            fcntl_setfl(end, fcntl_getfl(end)? | OFlags::NONBLOCK)?;
            let device = FileType::from_raw_mode(fstat(end)?.st_mode) == FileType::CharacterDevice;
            if device && isatty(end) {
                let mut settings = tcgetattr(end)?;
                settings.make_raw();
                tcsetattr(end, OptionalActions::Now, &settings)?;
            }
        }
        Ok(Device {
            readable: Changes::of(&input, EventFlags::IN)?,
            writable: Changes::of(&output, EventFlags::OUT)?,
            input,
            output,
        })
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|context| {
            poll_io(context, &self.readable, || {
                rustix::io::read(&self.input, &mut *buffer)
            })
        })
        .await
    }

    /// Waits, on a stream that reads as ended, until that may have changed.
    async fn reopened(&self) {
        let change = poll_fn(|context| self.readable.poll(context));
        let _ = tokio::time::timeout(HANGUP_PAUSE, change).await;
    }

    fn poll_write(&self, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        poll_io(context, &self.writable, || {
            rustix::io::write(&self.output, data)
        })
    }

    async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let count = poll_fn(|context| self.poll_write(context, data)).await?;
            data = &data[count..];
        }
        Ok(())
    }
}

/// Looks for a preamble in a stream that comes in pieces.
pub struct Scanner {
    preamble: [u8; 32],
    /// For each length of a partial match, the longest shorter one that is also one (Knuth-Morris-Pratt).
    shorter: [usize; 32],
    matched: usize,
}

impl Scanner {
    pub fn new(preamble: [u8; 32]) -> Scanner {
        let mut shorter = [0; 32];
        let mut length = 0;
        for index in 1..32 {
            while length > 0 && preamble[index] != preamble[length] {
                length = shorter[length - 1];
            }
            length += usize::from(preamble[index] == preamble[length]);
            shorter[index] = length;
        }
        Scanner {
            preamble,
            shorter,
            matched: 0,
        }
    }

    /// Where in `data` a preamble ends, if one does.
    pub fn scan(&mut self, data: &[u8]) -> Option<usize> {
        for (index, &byte) in data.iter().enumerate() {
            while self.matched > 0 && byte != self.preamble[self.matched] {
                self.matched = self.shorter[self.matched - 1];
            }
            self.matched += usize::from(byte == self.preamble[self.matched]);
            if self.matched == 32 {
                self.matched = 0;
                return Some(index + 1);
            }
        }
        None
    }
}

/// What a connection has in common with the reader of its device.
#[derive(Default)]
struct Shared {
    inbound: VecDeque<u8>,
    cut: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Shared {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
}

/// One dial of a device, from its echo to the next preamble.
pub struct Connection {
    device: Arc<Device>,
    shared: Arc<Mutex<Shared>>,
}

pub async fn serve(device: Device, token: Token, queue: Queue) {
    let device = Arc::new(device);
    let mut current: Option<Arc<Mutex<Shared>>> = None;
    let mut scanner = Scanner::new(token.preamble());
    // The 16 bytes that follow a preamble, as far as they are here.
    let mut nonce: Option<Vec<u8>> = None;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match device.read(&mut buffer).await {
            Ok(count @ 1..) => count,
            // The other side is closed; a virtio port then reads as ended until it is opened again.
            _ => {
                device.reopened().await;
                continue;
            }
        };
        let preamble = token.preamble();
        if scanner.preamble != preamble {
            scanner = Scanner::new(preamble);
        }
        let mut data = &buffer[..count];
        while !data.is_empty() {
            if let Some(mut partial) = nonce.take() {
                let wanted = (16 - partial.len()).min(data.len());
                partial.extend_from_slice(&data[..wanted]);
                // A dialler can die here, and the next one's preamble begin where its nonce broke off.
                let _ = scanner.scan(&data[..wanted]);
                data = &data[wanted..];
                let Ok(whole) = <[u8; 16]>::try_from(partial.as_slice()) else {
                    nonce = Some(partial);
                    continue;
                };
                if device.write_all(&token.echo(&whole)).await.is_err() {
                    continue;
                }
                let shared = Arc::new(Mutex::new(Shared::default()));
                let connection = Connection {
                    device: device.clone(),
                    shared: shared.clone(),
                };
                current = Some(shared);
                if !queue.put(Stream::Serial(connection)).await {
                    return;
                }
                continue;
            }
            match scanner.scan(data) {
                Some(end) => {
                    if let Some(old) = current.take() {
                        cut(&old);
                    }
                    nonce = Some(Vec::with_capacity(16));
                    data = &data[end..];
                }
                None => {
                    if current.as_ref().is_some_and(|shared| !pass(shared, data)) {
                        current = None;
                    }
                    data = &[];
                }
            }
        }
    }
}

fn cut(shared: &Mutex<Shared>) {
    let mut shared = lock(shared);
    shared.cut = true;
    shared.inbound = VecDeque::new();
    shared.wake();
}

/// False when the connection is gone or hopelessly stuck.
fn pass(shared: &Arc<Mutex<Shared>>, data: &[u8]) -> bool {
    // The connection holds the other reference.
    if Arc::strong_count(shared) < 2 {
        return false;
    }
    let mut state = lock(shared);
    if state.inbound.len() + data.len() > BACKLOG {
        drop(state);
        cut(shared);
        return false;
    }
    state.inbound.extend(data);
    if let Some(waker) = state.reader.take() {
        waker.wake();
    }
    true
}

fn cut_off() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "the stream was dialled anew",
    )
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.shared);
        if shared.cut {
            return Poll::Ready(Err(cut_off()));
        }
        if shared.inbound.is_empty() {
            shared.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let (first, _) = shared.inbound.as_slices();
        let count = first.len().min(buffer.remaining());
        buffer.put_slice(&first[..count]);
        shared.inbound.drain(..count);
        // A burst must not leave its memory behind.
        if shared.inbound.is_empty() && shared.inbound.capacity() > 4 * CHUNK {
            shared.inbound = VecDeque::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = lock(&self.shared);
        if shared.cut {
            return Poll::Ready(Err(cut_off()));
        }
        // Under the lock: once `cut` is set nothing of this connection reaches the device.
        let written = self.device.poll_write(context, data);
        if written.is_pending() {
            shared.writer = Some(context.waker().clone());
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
