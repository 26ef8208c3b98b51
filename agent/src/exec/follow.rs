//! The task that follows one execution from its launch to the end of all it started.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot, watch};

use crate::exec::record::{Control, Ending, Record};
use crate::memory;
use crate::pool::{self, Pool, Supervisor};
use crate::sync::lock;
use crate::wire::Event;

pub struct Follow {
    pub(super) record: Arc<Record>,
    pub(super) pool: Arc<Pool>,
    pub(super) controls: mpsc::Receiver<Control>,
    pub(super) ended: watch::Sender<bool>,
    pub(super) deadline: Option<tokio::time::Instant>,
    pub(super) killed: Vec<oneshot::Sender<()>>,
}

impl Follow {
    pub async fn run(mut self, mut supervisor: Supervisor) {
        let mut waiting: VecDeque<oneshot::Sender<i32>> = Default::default();
        let mut killing = false;
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
                        killing = true;
                    }
                },
                () = until(deadline) => {
                    self.deadline = None;
                    self.mark(Ending::TimedOut);
                    let _ = supervisor.kill_tree().await;
                    killing = true;
                }
                () = pool::stopped_again(), if killing => supervisor.resume(),
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
