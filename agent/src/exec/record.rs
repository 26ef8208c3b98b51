//! One execution as the table keeps it: what is known of it, and the way to its process.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::unix_ms;
use crate::errors::{Code, Result, fail};
use crate::limits;
use crate::output::{Awaited, Output};
use crate::pb;

/// A kill is answered when everything is dead, or after this long (a process stuck in the kernel).
const KILL_PATIENCE: Duration = Duration::from_secs(5);

pub struct Record {
    pub(super) id: String,
    pub(super) argv: Vec<String>,
    pub(super) pid: i32,
    pub(super) supervisor_pid: i32,
    pub(super) started: SystemTime,
    pub(super) began: Instant,
    pub stdout: Arc<Output>,
    pub stderr: Arc<Output>,
    /// The first reader, until it attaches.
    pub(super) awaited: Mutex<Option<Awaited>>,
    pub(super) stdin: Option<tokio::sync::Mutex<Option<pipe::Sender>>>,
    pub state: watch::Sender<State>,
    pub(super) control: mpsc::Sender<Control>,
}

#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) ending: Ending,
    /// The leader's wait status.
    pub(super) status: Option<i32>,
    pub(super) ended: Option<(SystemTime, Duration)>,
    /// The leader ended and, if it was killed with its tree, so did the tree.
    pub over: bool,
    pub(super) live_descendants: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    #[default]
    Own,
    TimedOut,
    Killed,
}

pub(super) enum Control {
    Signal {
        signal: i32,
        tree: bool,
        done: oneshot::Sender<i32>,
    },
    Kill {
        done: oneshot::Sender<()>,
    },
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
            supervisor_pid: self.supervisor_pid,
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

    pub(super) fn is_over(&self) -> bool {
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

/// Cuts a command down to what is worth telling of it.
pub(super) fn clip(argv: &mut Vec<String>, mut budget: usize) {
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
