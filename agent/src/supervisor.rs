//! A supervisor: the small process above each running execution and terminal.
//!
//! ```text
//!          LAUNCH            leader ended, nothing lives
//!   idle ----------> running ---------------------------> idle (used again)
//!     |                 | leader ended, children live
//!     |                 v
//!     |              lingering -- last child gone --> idle
//!     | the agent is gone (end of the stream): kill the tree, exit
//! ```
//!
//! It is a child subreaper, so that whatever an execution starts, through setsid and double forks, stays
//! below it and can be found, killed and reaped. It does nothing else.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use prost::Message;

use crate::kill::Killing;
use crate::wire::{self, Event, Launch, Step};
use crate::{launch, proctree};

/// Longer than any gRPC message, so only a broken peer can pass it.
const MAX_PAYLOAD: usize = 16 << 20;
const KILL_PAUSE_MS: i64 = 3;

struct Supervisor {
    control: UnixStream,
    pid: i32,
    leader: Option<i32>,
    leader_status: Option<i32>,
    has_children: bool,
    killing: Option<Killing>,
    orphaned: bool,
}

/// Never returns.
pub fn run(control: UnixStream) -> ! {
    // SAFETY: prctl with constant arguments, in a process with one thread.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"roost-super".as_ptr());
    }
    let mut supervisor = Supervisor {
        control,
        pid: std::process::id() as i32,
        leader: None,
        leader_status: None,
        has_children: false,
        killing: None,
        orphaned: false,
    };
    supervisor.serve();
    // SAFETY: no destructors of the agent, whose copy this process is, may run here.
    unsafe { libc::_exit(0) }
}

impl Supervisor {
    fn serve(&mut self) {
        loop {
            let reap = match &mut self.killing {
                Some(killing) => killing.pass(&HashSet::new()),
                None => true,
            };
            if reap {
                self.reap();
            }
            if self.orphaned && !self.has_children {
                return;
            }
            let pause = self.killing.as_ref().map_or(-1, |_| KILL_PAUSE_MS);
            let readable = wait(
                if self.orphaned {
                    None
                } else {
                    Some(&self.control)
                },
                pause,
            );
            if readable && self.command().is_err() {
                self.orphaned = true;
                self.kill();
            }
        }
    }

    /// Waits for every child that has ended and reports the leader's status and the last child's end.
    fn reap(&mut self) {
        let mut leader_ended = false;
        let had_children = self.has_children;
        loop {
            let mut status = 0;
            // SAFETY: `status` is valid for the call. __WALL also sees children made by odd clones.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
            if pid > 0 {
                if self.leader == Some(pid) {
                    self.leader = None;
                    self.leader_status = Some(status);
                    leader_ended = true;
                }
                continue;
            }
            self.has_children = pid == 0;
            break;
        }
        if leader_ended {
            let status = self.leader_status.unwrap_or(0);
            self.tell(Event::Exited {
                status,
                empty: !self.has_children,
            });
        } else if had_children && !self.has_children {
            self.tell(Event::Empty);
        }
        if !self.has_children {
            self.killing = None;
        }
    }

    fn tell(&mut self, event: Event) {
        let bytes = event.encode();
        let mut sent = 0;
        while sent < bytes.len() && !self.orphaned {
            match wire::send(self.control.as_fd(), &bytes[sent..], &[]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.orphaned = true;
                    self.kill();
                }
            }
        }
    }

    fn command(&mut self) -> io::Result<()> {
        let mut header = [0; wire::HEADER];
        let mut descriptors = Vec::new();
        if !wire::receive_exact(self.control.as_fd(), &mut header, &mut descriptors)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = u32::from_ne_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > MAX_PAYLOAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; length];
        if length > 0 && !wire::receive_exact(self.control.as_fd(), &mut payload, &mut descriptors)?
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match header[0] {
            wire::LAUNCH => {
                let event = self.launch(&payload, &descriptors);
                self.tell(event);
            }
            wire::SIGNAL if length == 8 => {
                let number = i32::from_ne_bytes([payload[0], payload[1], payload[2], payload[3]]);
                let count = self.signal(number, payload[4] != 0);
                self.tell(Event::Signalled { count });
            }
            wire::KILL_TREE => self.kill(),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(())
    }

    /// Not where there is nothing to look for: of whoever read its own /proc and ended, gVisor keeps something.
    fn kill(&mut self) {
        if self.has_children {
            self.killing.get_or_insert_default();
        }
    }

    fn launch(&mut self, payload: &[u8], descriptors: &[OwnedFd]) -> Event {
        let Ok(request) = Launch::decode(payload) else {
            return Event::Failed {
                step: Step::Clone,
                errno: libc::EINVAL,
            };
        };
        match launch::launch(request, descriptors) {
            Ok(pid) => {
                self.leader = Some(pid);
                self.leader_status = None;
                self.has_children = true;
                Event::Launched { pid }
            }
            Err((step, errno)) => Event::Failed { step, errno },
        }
    }

    /// To the whole tree, or to the leader's group while the leader, not yet reaped, holds its number.
    fn signal(&self, number: i32, tree: bool) -> i32 {
        match (tree, self.leader) {
            (true, _) => proctree::signal(self.pid, number, |_| true),
            (false, Some(leader)) => proctree::kill(-leader, number).into(),
            (false, None) => 0,
        }
    }
}

/// Sleeps until the socket is readable, a child ends or the time is over. True when it is readable.
pub fn wait(control: Option<&UnixStream>, milliseconds: i64) -> bool {
    let descriptor = control.map_or(-1, |control| control.as_raw_fd());
    let mut poll = libc::pollfd {
        fd: descriptor,
        events: libc::POLLIN,
        revents: 0,
    };
    let time = libc::timespec {
        tv_sec: milliseconds / 1000,
        tv_nsec: (milliseconds % 1000) * 1_000_000,
    };
    // SAFETY: all pointers are to locals. SIGCHLD is blocked except in here, so no end of a child is missed.
    unsafe {
        let mut open: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut open);
        let time = if milliseconds < 0 {
            ptr::null()
        } else {
            &raw const time
        };
        libc::ppoll(&mut poll, 1, time, &open) > 0
    }
}

/// A process with one thread that hears of its children only in `wait`, and that no polite signal ends:
/// a machine's shutdown says goodbye to every process, and supervisors are needed until the last.
pub fn quiet_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing; handlers, unlike ignored signals, are not inherited over exec.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut every: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut every);
        action.sa_mask = every;
        // The C library's call refuses two numbers that it keeps for itself, which a starter can have ignored.
        let default = [0_u64; 4];
        for number in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), 0, 8);
        }
        let handler: extern "C" fn(libc::c_int) = nothing;
        action.sa_sigaction = handler as libc::sighandler_t;
        let polite = [
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGPIPE,
            libc::SIGALRM,
        ];
        let others = [libc::SIGTERM, libc::SIGCHLD, libc::SIGUSR1, libc::SIGUSR2];
        for number in polite.into_iter().chain(others) {
            libc::sigaction(number, &action, ptr::null_mut());
            libc::sigaddset(&mut every, number);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &every, ptr::null_mut());
    }
}
