//! Landlock: what this process and all that it starts may reach of the file system, as a list that the kernel keeps
//! and that nothing below can widen. As much as the kernel knows of it; on one without it nothing is restricted.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// Removing and making of all kinds of entries.
const CHANGE: u64 = 0x1ff0;
const REFER: u64 = 1 << 13; // ABI 2: to move and link between directories
const TRUNCATE: u64 = 1 << 14; // ABI 3
const IOCTL_DEV: u64 = 1 << 15; // ABI 5
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

/// ABI 6: abstract sockets of others cannot be connected to, and processes of others not signalled.
const SCOPES: u64 = 0b11;
const VERSION: u32 = 1;
const PATH_BENEATH: i32 = 1;

#[repr(C)]
struct Ruleset {
    files: u64,
    net: u64,
    scopes: u64,
}

#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    directory: i32,
}

/// From now on, for good: what lies at or beneath `read` can be read and executed, at or beneath `write` everything
/// done; of all else not even that. Paths that are not there are left out. The ABI that is in force; None where the
/// kernel has no Landlock, or has it switched off.
///
/// Must be called while the process has one thread.
pub fn restrict(read: &[&Path], write: &[&Path]) -> io::Result<Option<u32>> {
    let Some(abi) = abi() else {
        return Ok(None);
    };
    let mut known = EXECUTE | WRITE_FILE | READ_FILE | READ_DIR | CHANGE;
    for (since, right) in [(2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)] {
        if abi >= since {
            known |= right;
        }
    }
    let attributes = Ruleset {
        files: known,
        net: 0,
        scopes: if abi >= 6 { SCOPES } else { 0 },
    };
    // An older kernel refuses the fields that it does not know.
    let size = match abi {
        ..4 => 8,
        4..6 => 16,
        _ => size_of::<Ruleset>(),
    };
    // SAFETY: `attributes` is valid for `size` bytes.
    let ruleset = unsafe {
        let call = libc::SYS_landlock_create_ruleset;
        let descriptor = checked(libc::syscall(call, &raw const attributes, size, 0))?;
        OwnedFd::from_raw_fd(descriptor as i32)
    };
    for path in read {
        allow(&ruleset, path, EXECUTE | READ_FILE | READ_DIR)?;
    }
    for path in write {
        allow(&ruleset, path, known)?;
    }
    // SAFETY: plain system calls.
    unsafe {
        checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        let call = libc::SYS_landlock_restrict_self;
        checked(libc::syscall(call, ruleset.as_raw_fd(), 0))?;
    }
    Ok(Some(abi))
}

fn abi() -> Option<u32> {
    // SAFETY: asks for a number; no pointer is read.
    let answer = unsafe {
        let call = libc::SYS_landlock_create_ruleset;
        libc::syscall(call, std::ptr::null::<Ruleset>(), 0, VERSION)
    };
    u32::try_from(answer).ok().filter(|abi| *abi > 0)
}

fn allow(ruleset: &OwnedFd, path: &Path, rights: u64) -> io::Result<()> {
    let Ok(place) = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(());
    };
    let kind = FileType::from_raw_mode(fstat(&place)?.st_mode);
    let beneath = Beneath {
        allowed: match kind {
            FileType::Directory => rights,
            _ => rights & OF_FILES,
        },
        directory: place.as_raw_fd(),
    };
    // SAFETY: `beneath` is valid for the call.
    unsafe {
        let call = libc::SYS_landlock_add_rule;
        let rule = &raw const beneath;
        checked(libc::syscall(
            call,
            ruleset.as_raw_fd(),
            PATH_BENEATH,
            rule,
            0,
        ))?;
    }
    Ok(())
}

fn checked(result: i64) -> io::Result<i64> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
