//! Executions: the table of them, and the task that follows each from launch to end.
//!
//! ```text
//!              leader ends           pipes drained
//!   RUNNING ------------> (ended) ----------------> EXITED     settled: Run and Wait answer
//!      |  timeout: kill the tree -----------------> TIMED_OUT  after nothing of it lives
//!      |  Signal(9, tree): kill the tree ---------> KILLED     likewise
//!      |  its supervisor is killed by the guest --> EXITED     with signal 9
//! ```

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::pipe::PipeFlags;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};

use crate::errors::{Code, Context, Result, fail};
use crate::limits;
use crate::memory;
use crate::output::{Awaited, Output, Reader};
use crate::pb;
use crate::pool::{Pool, Supervisor};
use crate::program::{Programs, Wanted};
use crate::sync::lock;
use crate::wire::Event;

/// A kill is answered when everything is dead, or after this long (a process stuck in the kernel).
const KILL_PATIENCE: Duration = Duration::from_secs(5);
const PIPE_BYTES: usize = 256 * 1024;

pub struct Executions {
    pool: Arc<Pool>,
    programs: Arc<Programs>,
    null: OwnedFd,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    records: HashMap<String, Arc<Record>>,
    /// Oldest first.
    order: Vec<String>,
}

pub struct Record {
    id: String,
    argv: Vec<String>,
    pid: i32,
    started: SystemTime,
    began: Instant,
    pub stdout: Arc<Output>,
    pub stderr: Arc<Output>,
    /// The first reader, until it attaches.
    awaited: Mutex<Option<Awaited>>,
    stdin: Option<tokio::sync::Mutex<Option<pipe::Sender>>>,
    pub state: watch::Sender<State>,
    control: mpsc::Sender<Control>,
}

#[derive(Clone, Debug, Default)]
pub struct State {
    ending: Ending,
    /// The leader's wait status.
    status: Option<i32>,
    ended: Option<(SystemTime, Duration)>,
    /// The leader ended and, if it was killed with its tree, so did the tree.
    pub over: bool,
    live_descendants: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ending {
    #[default]
    Own,
    TimedOut,
    Killed,
}

enum Control {
    Signal {
        signal: i32,
        tree: bool,
        done: oneshot::Sender<i32>,
    },
    Kill {
        done: oneshot::Sender<()>,
    },
}

pub fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}

impl Record {
    pub fn describe(&self) -> pb::Execution {
        let state = self.state.borrow().clone();
        let (exit_code, signal) = match state.status.filter(|_| state.over) {
            None => (None, None),
            Some(status) if libc::WIFSIGNALED(status) => {
                let signal = libc::WTERMSIG(status);
                (Some(128 + signal), Some(signal))
            }
            Some(status) => (Some(libc::WEXITSTATUS(status)), None),
        };
        let phase = match (state.over, state.ending) {
            (false, _) => pb::ExecutionState::Running,
            (true, Ending::Own) => pb::ExecutionState::Exited,
            (true, Ending::TimedOut) => pb::ExecutionState::TimedOut,
            (true, Ending::Killed) => pb::ExecutionState::Killed,
        };
        let ended = state.ended.filter(|_| state.over);
        let duration = ended.map_or_else(|| self.began.elapsed(), |(_, duration)| duration);
        pb::Execution {
            execution_id: self.id.clone(),
            state: phase.into(),
            pid: self.pid,
            exit_code,
            signal,
            started_at_unix_ms: unix_ms(self.started),
            ended_at_unix_ms: ended.map(|(time, _)| unix_ms(time)),
            duration_us: duration.as_micros() as u64,
            stdout_bytes: self.stdout.total(),
            stderr_bytes: self.stderr.total(),
            argv: self.argv.clone(),
            has_live_descendants: state.over && state.live_descendants,
        }
    }

    /// As `describe`, but short enough that all executions there can be fit one message.
    pub fn summary(&self) -> pb::Execution {
        let mut execution = self.describe();
        clip(&mut execution.argv, limits::LISTED_ARGV_BYTES);
        execution
    }

    /// The state and what is kept of the output, within one message.
    pub fn result(&self) -> pb::ExecutionResult {
        let half = limits::RESULT_BYTES / 2;
        let (out, err) = (self.stdout.memory(), self.stderr.memory());
        let budgets = match (out <= half, err <= half) {
            (true, _) => (half, limits::RESULT_BYTES - out.min(half)),
            (_, true) => (limits::RESULT_BYTES - err, half),
            _ => (half, half),
        };
        let (stdout, stdout_truncated) = self.stdout.snapshot(budgets.0);
        let (stderr, stderr_truncated) = self.stderr.snapshot(budgets.1);
        pb::ExecutionResult {
            execution: Some(self.describe()),
            stdout: stdout.into(),
            stderr: stderr.into(),
            stdout_truncated,
            stderr_truncated,
        }
    }

    pub async fn finish(&self) {
        let _ = self.state.subscribe().wait_for(|state| state.over).await;
        self.stdout.settle().await;
        self.stderr.settle().await;
    }

    pub fn is_settled(&self) -> bool {
        self.state.borrow().over && self.stdout.is_settled() && self.stderr.is_settled()
    }

    fn is_over(&self) -> bool {
        self.state.borrow().over
    }

    pub async fn signal(&self, signal: i32, tree: bool) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(fail(
                Code::InvalidArgument,
                "a signal is a number from 1 to 64",
            ));
        }
        let gone = || fail(Code::InvalidState, "the execution is over");
        if tree && signal == libc::SIGKILL {
            let (done, dead) = oneshot::channel();
            self.control
                .send(Control::Kill { done })
                .await
                .map_err(|_| gone())?;
            let _ = tokio::time::timeout(KILL_PATIENCE, dead).await;
            return Ok(());
        }
        let (done, reached) = oneshot::channel();
        self.control
            .send(Control::Signal { signal, tree, done })
            .await
            .map_err(|_| gone())?;
        match reached.await {
            Ok(1..) => Ok(()),
            _ => Err(gone()),
        }
    }

    /// Kills the tree without waiting.
    pub fn kill_soon(&self) {
        let (done, _) = oneshot::channel();
        let _ = self.control.try_send(Control::Kill { done });
    }

    /// Writes to the program's stdin, waiting while its pipe is full.
    pub async fn write_stdin(&self, data: &[u8]) -> Result<()> {
        let closed = |why: &str| fail(Code::InvalidState, why);
        let stdin = self
            .stdin
            .as_ref()
            .ok_or_else(|| closed("stdin was not opened as a stream"))?;
        let mut over = self.state.subscribe();
        let write = async {
            let mut sender = stdin.lock().await;
            let pipe = sender.as_mut().ok_or_else(|| closed("stdin is closed"))?;
            pipe.write_all(data)
                .await
                .map_err(|_| closed("the program closed its stdin"))
        };
        tokio::select! {
            biased;
            written = write => written,
            _ = over.wait_for(|state| state.over) => Err(closed("the execution is over")),
        }
    }

    pub async fn close_stdin(&self) {
        if let Some(stdin) = &self.stdin {
            stdin.lock().await.take();
        }
    }
}

impl Executions {
    pub fn new(pool: Arc<Pool>, programs: Arc<Programs>) -> std::io::Result<Executions> {
        let null = open_null()?;
        Ok(Executions {
            pool,
            programs,
            null,
            table: Mutex::default(),
        })
    }

    pub async fn start(&self, request: pb::StartRequest) -> Result<Arc<Record>> {
        let id = request.execution_id.clone();
        limits::check_id(&id)?;
        let argv = match (request.argv.is_empty(), request.shell.is_empty()) {
            (false, true) => request.argv,
            (true, false) => vec!["/bin/sh".to_owned(), "-c".to_owned(), request.shell],
            _ => {
                return Err(fail(
                    Code::InvalidArgument,
                    "exactly one of argv and shell must be given",
                ));
            }
        };
        let ring = match request.ring_bytes {
            0 => limits::DEFAULT_RING_BYTES,
            bytes => bytes,
        };
        if ring > limits::RING_BYTES || request.head_bytes > limits::RING_BYTES {
            let message = format!(
                "ring_bytes and head_bytes may be at most {}",
                limits::RING_BYTES
            );
            return Err(fail(Code::InvalidArgument, message));
        }
        if request.await_reader_ms > limits::AWAIT_READER_MS {
            let message = format!("await_reader_ms may be at most {}", limits::AWAIT_READER_MS);
            return Err(fail(Code::InvalidArgument, message));
        }
        let account = self.programs.account(&request.user)?;
        let wanted = Wanted {
            argv: argv.clone(),
            cwd: &request.cwd,
            env: &request.env,
            account,
            term: None,
        };
        let launch = self.programs.launch(wanted)?;
        let mut argv = argv;
        clip(&mut argv, limits::ARGV_BYTES);
        let claim = self.claim(&id)?;

        let (stdout, stdout_end) = output_pipe()?;
        let (stderr, stderr_end) = output_pipe()?;
        let piped = request.stdin_stream || !request.stdin.is_empty();
        let stdin = if piped { Some(stdin_pipe()?) } else { None };
        let stdin_end = stdin
            .as_ref()
            .map_or(self.null.as_fd(), |(end, _)| end.as_fd());
        let started = SystemTime::now();
        let began = Instant::now();
        let descriptors = [stdin_end, stdout_end.as_fd(), stderr_end.as_fd()];
        let (supervisor, pid) = self.pool.launch(&launch, descriptors).await?;
        drop((stdout_end, stderr_end));

        let (head, ring) = (request.head_bytes as usize, ring as usize);
        let (control, controls) = mpsc::channel(16);
        let (ended, has_ended) = watch::channel(false);
        let sender = stdin.map(|(_, sender)| sender);
        let (kept, fed) = match (request.stdin_stream, sender) {
            (true, sender) => (Some(tokio::sync::Mutex::new(sender)), None),
            (false, sender) => (None, sender),
        };
        let (stdout_kept, stderr_kept) = (Output::new(head, ring), Output::new(head, ring));
        let awaited = (request.await_reader_ms > 0).then(|| {
            let time = Duration::from_millis(request.await_reader_ms);
            Awaited::new([&stdout_kept, &stderr_kept], time)
        });
        let record = Arc::new(Record {
            id,
            argv,
            pid,
            started,
            began,
            stdout: stdout_kept,
            stderr: stderr_kept,
            awaited: Mutex::new(awaited),
            stdin: kept,
            state: watch::Sender::new(State::default()),
            control,
        });
        tokio::spawn(record.stdout.clone().pump(stdout, has_ended.clone()));
        tokio::spawn(record.stderr.clone().pump(stderr, has_ended.clone()));
        feed(&record, request.stdin, fed, has_ended);
        let timeout = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms));
        let follow = Follow {
            record: record.clone(),
            pool: self.pool.clone(),
            controls,
            ended,
            deadline: timeout.and_then(|timeout| tokio::time::Instant::now().checked_add(timeout)),
            killed: Vec::new(),
        };
        tokio::spawn(follow.run(supervisor));
        claim.fill(record.clone());
        Ok(record)
    }

    pub fn get(&self, id: &str) -> Result<Arc<Record>> {
        let table = lock(&self.table);
        let record = table.records.get(id).cloned();
        record.ok_or_else(|| fail(Code::ExecutionNotFound, format!("no execution {id:?}")))
    }

    pub fn list(&self) -> Vec<Arc<Record>> {
        let table = lock(&self.table);
        table
            .order
            .iter()
            .filter_map(|id| table.records.get(id).cloned())
            .collect()
    }

    pub fn running(&self) -> usize {
        lock(&self.table)
            .records
            .values()
            .filter(|record| !record.is_over())
            .count()
    }

    pub fn forget(&self, id: &str) -> Result<()> {
        if !self.get(id)?.is_over() {
            return Err(fail(Code::InvalidState, "the execution is still running"));
        }
        lock(&self.table).remove(id);
        Ok(())
    }

    /// Reserves an id, so that two Starts of one id cannot both launch.
    fn claim(&self, id: &str) -> Result<Claim<'_>> {
        let mut table = lock(&self.table);
        if table.order.iter().any(|known| known == id) {
            return Err(fail(
                Code::ExecutionExists,
                format!("execution {id:?} exists"),
            ));
        }
        table.make_room()?;
        table.order.push(id.to_owned());
        Ok(Claim {
            table: &self.table,
            id: id.to_owned(),
            filled: false,
        })
    }
}

struct Claim<'a> {
    table: &'a Mutex<Table>,
    id: String,
    filled: bool,
}

impl Claim<'_> {
    fn fill(mut self, record: Arc<Record>) {
        self.filled = true;
        lock(self.table).records.insert(self.id.clone(), record);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.filled {
            lock(self.table).remove(&self.id);
        }
    }
}

impl Table {
    fn remove(&mut self, id: &str) {
        self.records.remove(id);
        self.order.retain(|known| known != id);
    }

    /// Lets the oldest finished records go while there are too many or they hold too much.
    fn make_room(&mut self) -> Result<()> {
        let finished = |record: &Record| record.is_settled();
        let memory = |record: &Record| record.stdout.memory() + record.stderr.memory();
        let mut held: usize = self
            .records
            .values()
            .filter(|record| finished(record))
            .map(|record| memory(record))
            .sum();
        let mut count = self.order.len();
        let mut gone = Vec::new();
        for id in &self.order {
            if count < limits::EXECUTIONS && held <= limits::REMEMBERED_BYTES {
                break;
            }
            if let Some(record) = self.records.get(id).filter(|record| finished(record)) {
                held -= memory(record).min(held);
                count -= 1;
                gone.push(id.clone());
            }
        }
        for id in gone {
            self.remove(&id);
        }
        if self.order.len() >= limits::EXECUTIONS {
            let message = format!("{} executions are running already", limits::EXECUTIONS);
            return Err(fail(Code::LimitExceeded, message));
        }
        Ok(())
    }
}

/// Cuts a command down to what is worth telling of it.
fn clip(argv: &mut Vec<String>, mut budget: usize) {
    for (index, argument) in argv.iter_mut().enumerate() {
        if argument.len() >= budget {
            let mut end = budget;
            while !argument.is_char_boundary(end) {
                end -= 1;
            }
            argument.truncate(end);
            argument.push_str("...");
            argv.truncate(index + 1);
            return;
        }
        // An empty argument takes room as well.
        budget -= argument.len() + usize::from(argument.len() < budget);
    }
}

/// The task that follows one execution.
struct Follow {
    record: Arc<Record>,
    pool: Arc<Pool>,
    controls: mpsc::Receiver<Control>,
    ended: watch::Sender<bool>,
    deadline: Option<tokio::time::Instant>,
    killed: Vec<oneshot::Sender<()>>,
}

impl Follow {
    async fn run(mut self, mut supervisor: Supervisor) {
        let mut waiting: std::collections::VecDeque<oneshot::Sender<i32>> = Default::default();
        loop {
            let deadline = self.deadline.filter(|_| !self.record.is_over());
            tokio::select! {
                event = supervisor.event() => match event {
                    Ok(Event::Exited { status, empty }) => {
                        if self.leader_ended(status, empty) {
                            break;
                        }
                    }
                    Ok(Event::Empty) => {
                        self.tree_ended();
                        break;
                    }
                    Ok(Event::Signalled { count }) => {
                        if let Some(done) = waiting.pop_front() {
                            let _ = done.send(count);
                        }
                    }
                    _ => {
                        // The guest killed the supervisor; the zygote kills what it leaves behind.
                        self.leader_ended(libc::SIGKILL, true);
                        return;
                    }
                },
                Some(control) = self.controls.recv() => match control {
                    Control::Signal { signal, tree, done } => {
                        waiting.push_back(done);
                        let _ = supervisor.signal(signal, tree).await;
                    }
                    Control::Kill { done } => {
                        self.killed.push(done);
                        self.mark(Ending::Killed);
                        lock(&self.record.awaited).take();
                        let _ = supervisor.kill_tree().await;
                    }
                },
                () = until(deadline) => {
                    self.deadline = None;
                    self.mark(Ending::TimedOut);
                    let _ = supervisor.kill_tree().await;
                }
            }
        }
        self.pool.give_back(supervisor);
        memory::used();
    }

    fn mark(&self, ending: Ending) {
        self.record.state.send_if_modified(|state| {
            let first = state.status.is_none() && state.ending == Ending::Own;
            if first {
                state.ending = ending;
            }
            first
        });
    }

    /// True when nothing lives any more.
    fn leader_ended(&mut self, status: i32, empty: bool) -> bool {
        let ended = (SystemTime::now(), self.record.began.elapsed());
        self.record.state.send_modify(|state| {
            if state.status.is_none() {
                state.status = Some(status);
                state.ended = Some(ended);
            }
            state.live_descendants = !empty;
            state.over |= empty || state.ending == Ending::Own;
        });
        if self.record.is_over() {
            self.ended.send_replace(true);
        }
        if empty {
            self.dead();
        }
        empty
    }

    fn tree_ended(&mut self) {
        self.record.state.send_modify(|state| {
            state.live_descendants = false;
            state.over = true;
        });
        self.ended.send_replace(true);
        self.dead();
    }

    fn dead(&mut self) {
        for done in self.killed.drain(..) {
            let _ = done.send(());
        }
    }
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Writes the request's stdin. Where the stream stays open, its lock is held until that is done, so that
/// WriteStdin comes after it.
fn feed(
    record: &Arc<Record>,
    data: Bytes,
    fed: Option<pipe::Sender>,
    mut ended: watch::Receiver<bool>,
) {
    if let Some(mut sender) = fed {
        tokio::spawn(async move {
            tokio::select! {
                _ = sender.write_all(&data) => {}
                _ = ended.wait_for(|ended| *ended) => {}
            }
        });
        return;
    }
    if data.is_empty() || record.stdin.is_none() {
        return;
    }
    let record = record.clone();
    tokio::spawn(async move {
        let Some(stdin) = &record.stdin else { return };
        let mut sender = stdin.lock().await;
        if let Some(pipe) = sender.as_mut() {
            tokio::select! {
                _ = pipe.write_all(&data) => {}
                _ = ended.wait_for(|ended| *ended) => {}
            }
        }
    });
}

fn open_null() -> std::io::Result<OwnedFd> {
    std::fs::File::open("/dev/null")
        .map(OwnedFd::from)
        .or_else(|_| {
            // A root file system without devices: the reading end of a pipe that nobody writes to.
            let (read, _) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            Ok(read)
        })
}

/// Our end, which does not block, and the program's, which does.
fn output_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).at("pipe")?;
    rustix::io::ioctl_fionbio(&read, true).at("pipe")?;
    // A larger pipe is only faster: at the per-user limit the default does.
    let _ = rustix::pipe::fcntl_setpipe_size(&read, PIPE_BYTES);
    Ok((read, write))
}

fn stdin_pipe() -> Result<(OwnedFd, pipe::Sender)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).at("pipe")?;
    rustix::io::ioctl_fionbio(&write, true).at("pipe")?;
    Ok((read, pipe::Sender::from_owned_fd(write).at("pipe")?))
}

/// Attach: replays from the offsets, then follows, then the frame with `exit`.
pub fn attach(
    record: Arc<Record>,
    request: &pb::AttachRequest,
) -> Result<mpsc::Receiver<Result<pb::OutputFrame>>> {
    use pb::output_frame::Stream;
    let offsets = [
        (&record.stdout, request.stdout_offset, Stream::Stdout),
        (&record.stderr, request.stderr_offset, Stream::Stderr),
    ];
    if offsets
        .iter()
        .any(|(output, offset, _)| *offset > output.total())
    {
        return Err(fail(
            Code::InvalidArgument,
            "the offset lies beyond the output so far",
        ));
    }
    let mut readers = offsets
        .map(|(output, offset, stream)| (Reader::new(output, offset, request.lossless), stream));
    if request.lossless {
        lock(&record.awaited).take();
    }
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        let mut state = record.state.subscribe();
        loop {
            let (out, err) = (record.stdout.clone(), record.stderr.clone());
            let mut grown = (
                std::pin::pin!(out.notified()),
                std::pin::pin!(err.notified()),
            );
            grown.0.as_mut().enable();
            grown.1.as_mut().enable();
            state.mark_unchanged();
            // Looked at before the rings: then the frames below are all there will be.
            let settled = record.is_settled();
            let mut idle = true;
            for (reader, stream) in &mut readers {
                if let Some(frame) = reader.next(limits::FRAME_BYTES) {
                    idle = false;
                    let frame = pb::OutputFrame {
                        stream: (*stream).into(),
                        offset: frame.offset,
                        data: frame.data,
                        dropped: frame.dropped,
                        exit: None,
                    };
                    if sender.send(Ok(frame)).await.is_err() {
                        return;
                    }
                }
            }
            if !idle {
                continue;
            }
            if settled {
                let exit = Some(record.describe());
                let _ = sender
                    .send(Ok(pb::OutputFrame {
                        exit,
                        ..Default::default()
                    }))
                    .await;
                return;
            }
            tokio::select! {
                () = grown.0 => {}
                () = grown.1 => {}
                _ = state.changed() => {}
                () = sender.closed() => return,
            }
        }
    });
    Ok(receiver)
}
