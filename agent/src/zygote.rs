//! The zygote: a single-threaded copy of the agent, forked before any thread starts, that forks supervisors.
//!
//! The agent cannot fork cheaply or safely once it has a runtime; this small process can. One byte asks for
//! a supervisor; the answer is its pid and the agent's end of its socket. Supervisors are used again, so a
//! machine that runs one command after another forks none at all. A new zygote finds the first byte already
//! there: it works while the agent is still coming up.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::time::{Duration, Instant};

use crate::kill::{self, Killing};
use crate::supervisor;
use crate::wire;

/// Nothing else is made meanwhile; what is left then is looked for when the next supervisor ends.
const STRAYS: Duration = Duration::from_secs(5);

/// Forks the zygote. The returned socket is the agent's end, on which one supervisor has been asked for.
/// `forget` clears secrets in the copy.
///
/// Must be called while the process has one thread.
pub fn fork(forget: impl FnOnce()) -> io::Result<(UnixStream, i32)> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.write_all(&[1])?;
    // SAFETY: one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(ours);
            forget();
            run(theirs)
        }
        pid => Ok((ours, pid)),
    }
}

/// As `fork` for an agent that has threads, after its zygote was killed: executes this program again.
pub fn respawn() -> io::Result<(UnixStream, i32)> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.write_all(&[1])?;
    let child = std::process::Command::new("/proc/self/exe")
        .arg("--zygote")
        .env_clear()
        .stdin(OwnedFd::from(theirs))
        .spawn()?;
    Ok((ours, child.id() as i32))
}

/// The entry of a respawned zygote, whose socket is descriptor 0.
pub fn run_on_stdin() -> ! {
    // SAFETY: the parent gave the socket as descriptor 0, and nothing else here uses that number.
    let socket = unsafe {
        let copy: RawFd = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if copy < 0 || null < 0 {
            libc::_exit(1);
        }
        libc::dup2(null, 0);
        UnixStream::from_raw_fd(copy)
    };
    run(socket)
}

fn run(control: UnixStream) -> ! {
    // SAFETY: prctl with constant arguments, in a process with one thread.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"roost-zygote".as_ptr());
    }
    supervisor::quiet_signals();
    let mut supervisors = HashSet::new();
    loop {
        if reap(&mut supervisors) {
            end_strays(&mut supervisors);
        }
        if !supervisor::wait(Some(&control), -1) {
            continue;
        }
        let mut byte = [0];
        match (&control).read(&mut byte) {
            Ok(1) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The agent is gone. The supervisors see the same, end what they started, and exit.
            // SAFETY: no destructors of the agent may run in its copy.
            _ => unsafe { libc::_exit(0) },
        }
        if let Err(error) = make_supervisor(&control, &mut supervisors) {
            eprintln!("roost-agent: cannot make a supervisor: {error}");
            let failed = wire::Event::Failed {
                step: wire::Step::Clone,
                errno: error.raw_os_error().unwrap_or(libc::EIO),
            };
            let _ = wire::send(control.as_fd(), &failed.encode(), &[]);
        }
    }
}

fn make_supervisor(control: &UnixStream, supervisors: &mut HashSet<i32>) -> io::Result<()> {
    let (agents, theirs) = UnixStream::pair()?;
    // SAFETY: one thread. The child drops what only the zygote and the agent may hold: a second holder of
    // the agent's end would hide the agent's death.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(agents);
            // SAFETY: closes the zygote's socket in this copy; `control` is never used here again.
            unsafe { libc::close(std::os::fd::AsRawFd::as_raw_fd(control)) };
            supervisor::run(theirs)
        }
        pid => {
            supervisors.insert(pid);
            let record = wire::Event::Supervisor { pid }.encode();
            wire::send(control.as_fd(), &record, &[agents.as_fd()])?;
            Ok(())
        }
    }
}

/// True when a supervisor has ended: what it watched over may be ours now.
fn reap(supervisors: &mut HashSet<i32>) -> bool {
    let mut lost = false;
    loop {
        // SAFETY: no status is asked for.
        match unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG | libc::__WALL) } {
            pid if pid > 0 => lost |= supervisors.remove(&pid),
            _ => return lost,
        }
    }
}

/// Someone killed a supervisor; its processes came to us and nobody could name them any more.
fn end_strays(supervisors: &mut HashSet<i32>) {
    let mut killing = Killing::default();
    let deadline = Instant::now() + STRAYS;
    while Instant::now() < deadline {
        if killing.pass(supervisors) {
            reap(supervisors);
            if kill::children().iter().all(|pid| supervisors.contains(pid)) {
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    reap(supervisors);
}
