//! A machine that is a directory of this host: its programs are the host's and run as the user the agent runs as.
//!
//! No boundary. What is here keeps honest programs from mistakes: files are named beneath the directory and nowhere
//! else (`files::at`), programs begin in it, with limits, without a way to more privileges and, where the kernel has
//! Landlock, without the rest of the host's files.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, open};

use crate::landlock;

/// What programs need of the host, to read and to execute; never somebody's home.
const READ: [&str; 14] = [
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/usr",
    "/etc",
    "/opt",
    "/nix",
    "/snap",
    "/proc",
    "/sys",
    "/run/systemd/resolve",
];
const WRITE: [&str; 3] = ["/dev", "/tmp", "/var/tmp"];

pub struct Workspace {
    pub path: PathBuf,
    root: OwnedFd,
}

static WORKSPACE: OnceLock<Workspace> = OnceLock::new();

/// None in a machine that has a root of its own.
pub fn here() -> Option<&'static Workspace> {
    WORKSPACE.get()
}

impl Workspace {
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// A limit of every process of the machine, `NAME=VALUE`: bytes, or how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    resource: u32,
    value: u64,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Limit, String> {
        let wrong =
            || format!("{text:?} is no limit: as, core, data, fsize, nofile or nproc=NUMBER");
        let (name, value) = text.split_once('=').ok_or_else(wrong)?;
        let resource = match name {
            "as" => libc::RLIMIT_AS,
            "core" => libc::RLIMIT_CORE,
            "data" => libc::RLIMIT_DATA,
            "fsize" => libc::RLIMIT_FSIZE,
            "nofile" => libc::RLIMIT_NOFILE,
            "nproc" => libc::RLIMIT_NPROC,
            _ => return Err(wrong()),
        };
        let value = value.parse().map_err(|_| wrong())?;
        Ok(Limit { resource, value })
    }
}

/// Before anything else is started, while the process has one thread.
pub fn limit(limits: &[Limit]) -> Result<(), String> {
    for each in limits {
        // SAFETY: `limit` is valid for the calls. What stands lower already stays: only root could raise it.
        unsafe {
            let mut limit: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(each.resource, &mut limit);
            limit.rlim_max = limit.rlim_max.min(each.value);
            limit.rlim_cur = limit.rlim_max;
            if libc::setrlimit(each.resource, &limit) != 0 {
                return Err(format!("a limit: {}", std::io::Error::last_os_error()));
            }
        }
    }
    Ok(())
}

/// The process is the agent of `path` from now on; the same conditions. Without `guarded` nothing but paths of files
/// is held to it. The ABI of Landlock that holds, 0 where none does.
pub fn enter(path: &Path, guarded: bool) -> Result<u32, String> {
    let text = |error: std::io::Error| format!("{}: {error}", path.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(path, flags, Mode::empty()).map_err(|error| text(error.into()))?;
    std::env::set_current_dir(path).map_err(text)?;
    // SAFETY: plain system calls. A write beyond the largest file is an error of the call, not the agent's end.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    let own = std::env::current_exe().map_err(text)?; // started anew where its zygote is killed
    let read = READ
        .iter()
        .map(Path::new)
        .chain([own.as_path()])
        .collect::<Vec<_>>();
    let write = WRITE
        .iter()
        .map(Path::new)
        .chain([path])
        .collect::<Vec<_>>();
    let held = if guarded {
        landlock::held(&read, &write)
    } else {
        0
    };
    let workspace = Workspace {
        path: path.to_owned(),
        root,
    };
    WORKSPACE
        .set(workspace)
        .map_err(|_| "there is a workspace already".to_owned())?;
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let limit: Limit = "nofile=4096".parse().unwrap();
        assert_eq!(
            limit,
            Limit {
                resource: libc::RLIMIT_NOFILE,
                value: 4096
            }
        );
        for wrong in ["nofile", "nofile=", "nofile=-1", "stack=1", "=1"] {
            assert!(wrong.parse::<Limit>().is_err(), "{wrong}");
        }
    }
}
