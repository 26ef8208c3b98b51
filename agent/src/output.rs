//! One output stream of an execution: a pipe pumped into a ring, and the readers attached to it.
//!
//! The pump reads whatever comes, unless a lossless reader would lose bytes by it: then it leaves them in the
//! pipe, and the process waits, for as long as that reader is there. One that is still to come is stood in for.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::ring::Ring;
use crate::sync::{async_fd, lock};

/// How long a background process that keeps writing can hold up the result of a command that has ended.
const DRAIN: Duration = Duration::from_millis(50);

pub struct Output {
    kept: Mutex<Kept>,
    /// Bytes came.
    grown: Notify,
    /// A lossless reader moved on or left.
    moved: Notify,
    /// All that the command itself wrote is in the ring.
    settled: watch::Sender<bool>,
}

struct Kept {
    ring: Ring,
    lossless: HashMap<u64, u64>,
    next_reader: u64,
}

pub struct Frame {
    pub dropped: u64,
    pub offset: u64,
    pub data: Bytes,
}

impl Output {
    pub fn new(head: usize, tail: usize) -> Arc<Output> {
        let ring = Ring::new(head, tail);
        Arc::new(Output {
            kept: Mutex::new(Kept {
                ring,
                lossless: HashMap::new(),
                next_reader: 0,
            }),
            grown: Notify::new(),
            moved: Notify::new(),
            settled: watch::Sender::new(false),
        })
    }

    pub fn total(&self) -> u64 {
        lock(&self.kept).ring.total()
    }

    pub fn memory(&self) -> usize {
        lock(&self.kept).ring.memory()
    }

    pub fn snapshot(&self, budget: usize) -> (Vec<u8>, bool) {
        lock(&self.kept).ring.snapshot(budget)
    }

    pub fn is_settled(&self) -> bool {
        *self.settled.borrow()
    }

    pub async fn settle(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// Completes when bytes come or the stream settles.
    pub fn notified(&self) -> Notified<'_> {
        self.grown.notified()
    }

    /// Reads the pipe to its end. `ended` turns true when the command itself has ended.
    pub async fn pump(self: Arc<Self>, pipe: OwnedFd, mut ended: watch::Receiver<bool>) {
        if let Ok(pipe) = async_fd(pipe) {
            self.pump_pipe(&pipe, &mut ended).await;
        }
        lock(&self.kept).ring.shrink();
        self.settled.send_replace(true);
        self.grown.notify_waiters();
    }

    async fn pump_pipe(&self, pipe: &AsyncFd<OwnedFd>, ended: &mut watch::Receiver<bool>) {
        let mut deadline: Option<Instant> = None;
        loop {
            if deadline.is_none() && *ended.borrow_and_update() {
                deadline = Some(Instant::now() + DRAIN);
            }
            let settling = deadline.filter(|_| !self.is_settled());
            let mut moved = pin!(self.moved.notified());
            moved.as_mut().enable();
            match self.read(pipe) {
                Ok(Some(0)) => return,
                // What is still in the pipe will come when the lossless reader moves: not settled yet.
                Ok(None) => {
                    tokio::select! {
                        () = moved => {}
                        result = ended.changed(), if deadline.is_none() => if result.is_err() { return },
                    }
                }
                Ok(Some(_)) => {
                    self.grown.notify_waiters();
                    if settling.is_some_and(|deadline| Instant::now() >= deadline) {
                        self.settled.send_replace(true);
                    }
                    tokio::task::consume_budget().await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if settling.is_some() {
                        self.settled.send_replace(true);
                        self.grown.notify_waiters();
                    }
                    tokio::select! {
                        ready = pipe.readable() => match ready {
                            Ok(mut ready) => {
                                // Edge-triggered: forget the readiness first, or a byte that comes
                                // between the read and the forgetting would be slept through.
                                ready.clear_ready();
                                drop(ready);
                            }
                            Err(_) => return,
                        },
                        result = ended.changed(), if deadline.is_none() => if result.is_err() { return },
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Some(0) at the end of the pipe, None when a lossless reader leaves no room.
    fn read(&self, pipe: &AsyncFd<OwnedFd>) -> io::Result<Option<usize>> {
        let mut kept = lock(&self.kept);
        let keep_from = kept.lossless.values().copied().min();
        let room = keep_from.map_or(u64::MAX, |offset| kept.ring.room(offset));
        if room == 0 {
            return Ok(None);
        }
        loop {
            match kept.ring.fill(room, |space| rustix::io::read(pipe, space)) {
                Ok(count) => return Ok(Some(count)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A place in one stream. A lossless one holds the pump back until it is dropped.
pub struct Reader {
    output: Arc<Output>,
    offset: u64,
    lossless: Option<u64>,
}

impl Reader {
    pub fn new(output: &Arc<Output>, offset: u64, lossless: bool) -> Reader {
        let mut kept = lock(&output.kept);
        let lossless = lossless.then(|| {
            kept.next_reader += 1;
            let number = kept.next_reader;
            kept.lossless.insert(number, offset);
            number
        });
        drop(kept);
        Reader {
            output: output.clone(),
            offset,
            lossless,
        }
    }

    /// The next bytes, if there are any; the reader moves on.
    pub fn next(&mut self, limit: usize) -> Option<Frame> {
        let mut kept = lock(&self.output.kept);
        let piece = kept.ring.piece(self.offset, limit)?;
        let frame = Frame {
            dropped: piece.dropped,
            offset: piece.offset,
            data: Bytes::copy_from_slice(piece.data),
        };
        self.offset = frame.offset + frame.data.len() as u64;
        if let Some(number) = self.lossless {
            kept.lossless.insert(number, self.offset);
            self.output.moved.notify_waiters();
        }
        Some(frame)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(number) = self.lossless {
            lock(&self.output.kept).lossless.remove(&number);
            self.output.moved.notify_waiters();
        }
    }
}

/// Stands in for a lossless reader of these outputs that is still to come, until it is dropped or `time` is over.
pub struct Awaited {
    _until_dropped: oneshot::Sender<()>,
}

impl Awaited {
    pub fn new(outputs: [&Arc<Output>; 2], time: Duration) -> Awaited {
        let readers = outputs.map(|output| Reader::new(output, 0, true));
        let (sender, dropped) = oneshot::channel();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(time, dropped).await;
            drop(readers);
        });
        Awaited {
            _until_dropped: sender,
        }
    }
}
