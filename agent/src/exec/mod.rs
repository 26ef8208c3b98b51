//! Executions: how they start, the table of them, and the task that follows each from launch to end.
//!
//! ```text
//!              leader ends           pipes drained
//!   RUNNING ------------> (ended) ----------------> EXITED     settled: Run and Wait answer
//!      |  timeout: kill the tree -----------------> TIMED_OUT  after nothing of it lives
//!      |  Signal(9, tree): kill the tree ---------> KILLED     likewise
//!      |  its supervisor is killed by the guest --> EXITED     with signal 9
//! ```

mod attach;
mod follow;
mod pipes;
mod record;
mod table;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};

pub use attach::attach;
pub use record::Record;

use crate::errors::{Code, Result, fail};
use crate::exec::follow::Follow;
use crate::exec::record::{State, clip};
use crate::exec::table::Table;
use crate::limits;
use crate::output::{Awaited, Output};
use crate::pb;
use crate::pool::Pool;
use crate::program::{Programs, Wanted};

pub struct Executions {
    pool: Arc<Pool>,
    programs: Arc<Programs>,
    null: OwnedFd,
    table: Table,
}

impl Executions {
    pub fn new(pool: Arc<Pool>, programs: Arc<Programs>) -> std::io::Result<Executions> {
        let null = pipes::open_null()?;
        Ok(Executions {
            pool,
            programs,
            null,
            table: Table::default(),
        })
    }

    pub async fn start(&self, request: pb::StartRequest) -> Result<Arc<Record>> {
        let id = request.execution_id.clone();
        limits::check_id(&id)?;
        let (head, ring) = kept_bytes(&request)?;
        let awaited = reader_awaited(&request)?;
        let mut argv = command(request.argv, request.shell)?;
        let account = self.programs.account(&request.user)?;
        let wanted = Wanted {
            argv: argv.clone(),
            cwd: &request.cwd,
            env: &request.env,
            account,
            term: None,
        };
        let launch = self.programs.launch(wanted)?;
        clip(&mut argv, limits::ARGV_BYTES);
        let claim = self.table.claim(&id)?;

        let (stdout, stdout_end) = pipes::output_pipe()?;
        let (stderr, stderr_end) = pipes::output_pipe()?;
        let piped = request.stdin_stream || !request.stdin.is_empty();
        let stdin = if piped {
            Some(pipes::stdin_pipe()?)
        } else {
            None
        };
        let stdin_end = stdin
            .as_ref()
            .map_or(self.null.as_fd(), |(end, _)| end.as_fd());
        let started = SystemTime::now();
        let began = Instant::now();
        let descriptors = [stdin_end, stdout_end.as_fd(), stderr_end.as_fd()];
        let (supervisor, pid) = self.pool.launch(&launch, descriptors).await?;
        drop((stdout_end, stderr_end));

        let (control, controls) = mpsc::channel(16);
        let (ended, has_ended) = watch::channel(false);
        let sender = stdin.map(|(_, sender)| sender);
        let (kept, fed) = match (request.stdin_stream, sender) {
            (true, sender) => (Some(tokio::sync::Mutex::new(sender)), None),
            (false, sender) => (None, sender),
        };
        let (stdout_kept, stderr_kept) = (Output::new(head, ring), Output::new(head, ring));
        let awaited = awaited.map(|time| Awaited::new([&stdout_kept, &stderr_kept], time));
        let record = Arc::new(Record {
            id,
            argv,
            pid,
            supervisor_pid: supervisor.pid(),
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
        pipes::feed(&record, request.stdin, fed, has_ended);
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
        self.table.get(id)
    }

    pub fn list(&self) -> Vec<Arc<Record>> {
        self.table.list()
    }

    pub fn running(&self) -> usize {
        self.table.running()
    }

    pub fn forget(&self, id: &str) -> Result<()> {
        self.table.forget(id)
    }
}

fn command(argv: Vec<String>, shell: String) -> Result<Vec<String>> {
    match (argv.is_empty(), shell.is_empty()) {
        (false, true) => Ok(argv),
        (true, false) => Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), shell]),
        _ => Err(fail(
            Code::InvalidArgument,
            "exactly one of argv and shell must be given",
        )),
    }
}

/// Of each stream: its first bytes, and its last.
fn kept_bytes(request: &pb::StartRequest) -> Result<(usize, usize)> {
    let ring = match request.ring_bytes {
        0 => limits::DEFAULT_RING_BYTES,
        bytes => bytes,
    };
    if ring.max(request.head_bytes) > limits::RING_BYTES {
        let most = limits::RING_BYTES;
        let message = format!("ring_bytes and head_bytes may be at most {most}");
        return Err(fail(Code::InvalidArgument, message));
    }
    Ok((request.head_bytes as usize, ring as usize))
}

/// How long the first reader is awaited, if it is.
fn reader_awaited(request: &pb::StartRequest) -> Result<Option<Duration>> {
    match request.await_reader_ms {
        0 => Ok(None),
        1..=limits::AWAIT_READER_MS => Ok(Some(Duration::from_millis(request.await_reader_ms))),
        _ => {
            let most = limits::AWAIT_READER_MS;
            let message = format!("await_reader_ms may be at most {most}");
            Err(fail(Code::InvalidArgument, message))
        }
    }
}
