//! The last steps before a program runs: clone, become the user, execute.
//!
//! The child shares the supervisor's memory until it executes (CLONE_VM | CLONE_VFORK), because copying an
//! address space is what makes a fork dear, under gVisor above all. So between clone and exec there is no
//! allocation, no lock, nothing but system calls, and a failure is reported through that shared memory.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;

use libc::{c_char, c_int, c_void};

use crate::wire::{Launch, Step};

const STACK: usize = 64 * 1024;

/// Settings of this process that a program must not inherit.
#[derive(Clone, Copy)]
pub struct Inherited {
    pub open_files: libc::rlimit,
    pub reset_oom_score: bool,
}

pub static INHERITED: OnceLock<Inherited> = OnceLock::new();

struct Child {
    descriptors: [RawFd; 3],
    terminal: bool,
    credentials: Option<(u32, u32)>,
    groups: Vec<u32>,
    cwd: CString,
    cwd_optional: bool,
    files: Vec<CString>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// `/bin/sh FILE ARGS...` for a script without an interpreter line; slot 1 is filled in.
    script_argv: Vec<*const c_char>,
    inherited: Option<Inherited>,
    failed: Option<(Step, i32)>,
}

/// Starts the program; the reply is its pid, or the step that failed and its errno.
pub fn launch(request: Launch, descriptors: &[OwnedFd]) -> Result<i32, (Step, i32)> {
    let [stdin, stdout, stderr] = descriptors else {
        return Err((Step::Clone, libc::EBADF));
    };
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| (Step::Execute, libc::EINVAL));
    let texts = |list: Vec<Vec<u8>>| list.into_iter().map(text).collect::<Result<Vec<_>, _>>();
    let argv = texts(request.argv)?;
    let env = texts(request.env)?;
    let pointers = |list: &[CString]| {
        let ends = std::iter::once(ptr::null());
        list.iter()
            .map(|text| text.as_ptr())
            .chain(ends)
            .collect::<Vec<_>>()
    };
    let argv_pointers = pointers(&argv);
    let mut script_argv = vec![c"/bin/sh".as_ptr(), ptr::null()];
    script_argv.extend_from_slice(&argv_pointers[1.min(argv.len())..]);
    let credentials = request.credentials.unwrap_or_default();
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    let mut child = Child {
        descriptors: [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()],
        terminal: request.terminal,
        credentials: root.then_some((credentials.uid, credentials.gid)),
        groups: credentials.groups,
        cwd: text(request.cwd)?,
        cwd_optional: request.cwd_optional,
        files: texts(request.files)?,
        argv: argv_pointers,
        env: pointers(&env),
        script_argv,
        inherited: INHERITED.get().copied(),
        failed: None,
    };
    let mut stack = vec![0u128; STACK / 16];
    // SAFETY: the stack and `child` outlive the clone: CLONE_VFORK holds this thread until the child has
    // executed or exited. `run` only makes system calls.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.len()).cast::<c_void>();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        libc::clone(run, top, flags, (&raw mut child).cast::<c_void>())
    };
    if pid < 0 {
        return Err((Step::Clone, last_errno()));
    }
    // SAFETY: a plain read of what the child may have written; the compiler cannot know of that write.
    match unsafe { ptr::read_volatile(&raw const child.failed) } {
        None => Ok(pid),
        Some(failed) => {
            // SAFETY: reaps the child that has just exited.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
            Err(failed)
        }
    }
}

fn last_errno() -> c_int {
    std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

extern "C" fn run(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the `Child` of `launch`, whose thread is held until this one is done with it.
    unsafe {
        let child = argument.cast::<Child>();
        let failed = prepare(&*child)
            .err()
            .unwrap_or_else(|| execute(&mut *child));
        ptr::write_volatile(&raw mut (*child).failed, Some(failed));
        libc::_exit(127)
    }
}

unsafe fn prepare(child: &Child) -> Result<(), (Step, i32)> {
    let check = |result: i64, step: Step| match result {
        0.. => Ok(()),
        _ => Err((step, last_errno())),
    };
    unsafe {
        libc::setsid();
        for (target, &source) in child.descriptors.iter().enumerate() {
            check(libc::dup2(source, target as c_int).into(), Step::Clone)?;
        }
        if child.terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0).into(), Step::Terminal)?;
        }
        // Everything is close-on-exec already; this also covers what a future mistake leaves open.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
        if let Some(inherited) = child.inherited {
            libc::setrlimit(libc::RLIMIT_NOFILE, &inherited.open_files);
            if inherited.reset_oom_score {
                let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY);
                if file >= 0 {
                    libc::write(file, c"0".as_ptr().cast(), 1);
                    libc::close(file);
                }
            }
        }
        libc::umask(0o022);
        if let Some((uid, gid)) = child.credentials {
            // Raw calls: the C library's would try to carry the change to every thread it knows of.
            let (uid, gid) = (uid as i64, gid as i64);
            let (count, list) = (child.groups.len(), child.groups.as_ptr());
            check(
                libc::syscall(libc::SYS_setgroups, count, list),
                Step::Credentials,
            )?;
            check(
                libc::syscall(libc::SYS_setresgid, gid, gid, gid),
                Step::Credentials,
            )?;
            check(
                libc::syscall(libc::SYS_setresuid, uid, uid, uid),
                Step::Credentials,
            )?;
        }
        if libc::chdir(child.cwd.as_ptr()) != 0 {
            if !child.cwd_optional {
                return Err((Step::Directory, last_errno()));
            }
            check(libc::chdir(c"/".as_ptr()).into(), Step::Directory)?;
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
    Ok(())
}

/// Tries the files in turn, as execvp does; returns only on failure.
unsafe fn execute(child: &mut Child) -> (Step, i32) {
    let mut errno = libc::ENOENT;
    for file in &child.files {
        unsafe { libc::execve(file.as_ptr(), child.argv.as_ptr(), child.env.as_ptr()) };
        match last_errno() {
            libc::ENOEXEC => {
                child.script_argv[1] = file.as_ptr();
                let shell = child.script_argv[0];
                unsafe { libc::execve(shell, child.script_argv.as_ptr(), child.env.as_ptr()) };
                return (Step::Execute, libc::ENOEXEC);
            }
            libc::EACCES => errno = libc::EACCES,
            libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG => {}
            other => return (Step::Execute, other),
        }
    }
    (Step::Execute, errno)
}
