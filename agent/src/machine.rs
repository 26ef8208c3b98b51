//! The machine as a whole: reaping as its first process, and shutting it down.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::pool::Pool;
use crate::{guest, proctree, workspace};

const MAX_GRACE: Duration = Duration::from_secs(60);
/// After SIGKILL nothing should live; a process stuck in the kernel is not waited for longer.
const DEATH: Duration = Duration::from_secs(3);

const SIGNAL_GRACE_MS: u32 = 2000;

pub struct Machine {
    pub pool: Arc<Pool>,
}

impl Machine {
    /// SIGHUP and SIGTERM to everything, SIGKILL after the grace, then what is dirty goes to the disk.
    pub async fn shutdown(&self, grace_ms: u32, exit: bool) {
        let grace = Duration::from_millis(grace_ms.into()).min(MAX_GRACE);
        // Shells save their history on SIGHUP; a stopped process hears nothing until it goes on.
        for signal in [libc::SIGHUP, libc::SIGTERM, libc::SIGCONT] {
            self.signal_all(signal);
        }
        if !self.wait_until_empty(grace).await {
            let deadline = Instant::now() + DEATH;
            while !self.everything().is_empty() && Instant::now() < deadline {
                self.signal_all(libc::SIGKILL);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let _ = tokio::task::spawn_blocking(sync).await;
        if exit {
            // After the reply is on its way.
            tokio::spawn(async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                end();
            });
        }
    }

    async fn wait_until_empty(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut pause = Duration::from_millis(5);
        loop {
            if self.everything().is_empty() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    fn signal_all(&self, signal: i32) {
        for pid in self.everything() {
            proctree::kill(pid, signal);
        }
    }

    /// Every process of the machine but the agent's own: all there are for the first process, otherwise what
    /// descends from the agent.
    fn everything(&self) -> Vec<i32> {
        let own = std::process::id() as i32;
        let mut spared: HashSet<i32> = self.pool.helpers();
        spared.insert(own);
        let all = match own {
            1 => proctree::scan(),
            _ => proctree::descendants(own, &HashSet::new()),
        };
        let ours = |process: &&proctree::Process| {
            !process.kernel && !process.zombie && !spared.contains(&process.pid)
        };
        all.iter().filter(ours).map(|process| process.pid).collect()
    }
}

/// What is dirty goes to the disk; of a host that is not ours alone only to the workspace's.
pub fn sync() {
    match workspace::here() {
        Some(here) => drop(rustix::fs::syncfs(here.root())),
        None => rustix::fs::sync(),
    }
}

/// A polite signal is a shutdown: a container is stopped with one.
pub async fn end_on_signal(machine: Arc<Machine>) {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = signal(SignalKind::terminate());
    let interrupt = signal(SignalKind::interrupt());
    let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    machine.shutdown(SIGNAL_GRACE_MS, true).await;
}

/// Ends the agent, and with the first process the machine.
pub fn end() -> ! {
    if std::process::id() == 1 {
        guest::settle_disk();
        // In a container this is refused or ends the container; in a virtual machine it powers off.
        let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    }
    std::process::exit(0)
}

/// Waits for every orphan that the kernel gives to the agent.
pub async fn reap_orphans() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut children) = signal(SignalKind::child()) else {
        return;
    };
    loop {
        // SAFETY: no status is asked for.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) } > 0 {
        }
        if children.recv().await.is_none() {
            return;
        }
    }
}
