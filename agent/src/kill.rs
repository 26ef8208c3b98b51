//! Ending everything below this process, against programs that fork as fast as they are killed.
//!
//! The caller is a child subreaper with one thread: whoever dies leaves its own children to it. So what
//! forks, calls setsid and exits, over and over, is always the caller's child, and one short read finds all
//! of these; a walk of /proc takes so long that they are elsewhere by the time they are reached. Only when
//! all of them are killed is it looked below them, for a tree that would else come up one generation after
//! the other. A killed process forks no more, so what is below it can be read at leisure.
//!
//! The dead are not waited for while anything lives: each holds one of the machine's processes, so that
//! what outruns every pass uses them up and cannot fork any more.

use std::collections::HashSet;
use std::fs;
use std::mem::MaybeUninit;

use crate::proctree;

/// More than the processes of a machine. A kernel that counts them elsewhere, as gVisor does, would collect
/// the dead without end.
const MOST_KILLED: usize = 2048;

/// One killing: `pass` until there are no children left to wait for.
#[derive(Default)]
pub struct Killing {
    /// Since the dead were last waited for: their numbers are not used again until then.
    killed: HashSet<i32>,
}

impl Killing {
    /// SIGKILL to what is found alive, but for what is in `except` and below. True when the dead are to be
    /// waited for before the next pass.
    pub fn pass(&mut self, except: &HashSet<i32>) -> bool {
        let children = self::children();
        let ours = children.iter().filter(|pid| !except.contains(pid));
        let fresh = ours.clone().filter(|pid| self.kill(**pid)).count();
        if fresh == 0 {
            let mut living: Vec<i32> = ours.copied().filter(|pid| !has_ended(*pid)).collect();
            if living.is_empty() {
                self.killed.clear();
                return true;
            }
            while let Some(parent) = living.pop() {
                let path = format!("/proc/{parent}/task/{parent}/children");
                let below = fs::read_to_string(path).unwrap_or_default();
                living.extend(numbers(&below).filter(|pid| self.kill(*pid)));
            }
        }
        if self.killed.len() > MOST_KILLED {
            self.killed.clear();
            return true;
        }
        false
    }

    /// False where it was killed before.
    fn kill(&mut self, pid: i32) -> bool {
        self.killed.insert(pid) && proctree::kill(pid, libc::SIGKILL)
    }
}

pub fn children() -> Vec<i32> {
    match fs::read_to_string("/proc/thread-self/children") {
        Ok(text) => numbers(&text).collect(),
        // A kernel built without it.
        Err(_) => {
            let own = std::process::id() as i32;
            let all = proctree::scan().into_iter();
            all.filter(|process| process.parent == own)
                .map(|process| process.pid)
                .collect()
        }
    }
}

fn numbers(text: &str) -> impl Iterator<Item = i32> {
    text.split_ascii_whitespace()
        .filter_map(|number| number.parse().ok())
}

/// Of a child of ours, which stays to be waited for.
fn has_ended(pid: i32) -> bool {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: `info` is valid for the call, and zeroed is a value of it.
    unsafe {
        libc::waitid(libc::P_PID, pid as libc::id_t, info.as_mut_ptr(), flags) == 0
            && info.assume_init().si_pid() != 0
    }
}
