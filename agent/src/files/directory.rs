//! Directories: listing, making, moving, and the attributes of what is in them.

use std::collections::BinaryHeap;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat,
    openat, statat, utimensat,
};
use rustix::io::Errno;

use crate::errors::{Code, Context, Result, fail};
use crate::files::{at, beneath, info, show, write::move_new};
use crate::pb::{
    FileInfo, FileKind, ListDirReply, ListDirRequest, MakeDirRequest, MoveRequest,
    SetAttributesRequest,
};
use crate::users::Users;
use crate::workspace;

const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 10_000;
/// Of names and paths in one reply, so that it stays within a message.
const MAX_REPLY: usize = 3 << 20;

pub fn list(request: &ListDirRequest, users: &Users) -> Result<ListDirReply> {
    let path = crate::files::path(&request.path)?;
    let limit = match request.limit as usize {
        0 => DEFAULT_LIMIT,
        limit => limit.min(MAX_LIMIT),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let directory = at::open(&path, flags, Mode::empty()).at(show(&path))?;
    // The smallest names after `after`: a directory of a million entries costs no more memory than a page.
    let mut names: BinaryHeap<Vec<u8>> = BinaryHeap::new();
    let mut more = false;
    for entry in Dir::read_from(&directory).at(show(&path))? {
        let entry = entry.at(show(&path))?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." || name <= &request.after[..] {
            continue;
        }
        names.push(name.to_vec());
        if names.len() > limit {
            names.pop();
            more = true;
        }
    }
    let mut entries = Vec::new();
    let mut size = 0;
    for name in names.into_sorted_vec() {
        let name = Path::new(std::ffi::OsStr::from_bytes(&name));
        let full = path.join(name);
        let entry = match info::of_entry(directory.as_fd(), name, &full, users) {
            Ok(entry) => entry,
            // Gone since.
            Err(status) if status.code() == tonic::Code::NotFound => continue,
            Err(status) => return Err(status),
        };
        size += 128 + entry.path.len() + entry.name.len() + entry.link_target.len();
        if size > MAX_REPLY && !entries.is_empty() {
            more = true;
            break;
        }
        entries.push(entry);
    }
    Ok(ListDirReply { entries, more })
}

pub fn make(request: &MakeDirRequest, users: &Users) -> Result<FileInfo> {
    let path = crate::files::path(&request.path)?;
    let mode = request.permissions.unwrap_or(0o755);
    if mode > 0o7777 {
        return Err(fail(Code::InvalidArgument, "permissions are at most 07777"));
    }
    let owner = users.owner(&request.owner)?;
    if request.parents {
        if let Some(parent) = path.parent() {
            make_all(parent, 0o755, owner)?;
        }
        match make_one(&path, mode, owner) {
            Err(status) if status.code() == tonic::Code::AlreadyExists => {
                let stat = at::stat(&path).at(show(&path))?;
                if info::kind(&stat) != FileKind::Directory {
                    return Err(status);
                }
            }
            other => other?,
        }
    } else {
        make_one(&path, mode, owner)?;
    }
    info::of_path(&path, false, users)
}

fn make_one(path: &Path, mode: u32, owner: (Option<u32>, Option<u32>)) -> Result<()> {
    let made = at::make_directory(path, Mode::from(mode & 0o777)).at(show(path))?;
    let name = at::held(&made);
    if owner != (None, None) {
        let (uid, gid) = (owner.0.map(Uid::from_raw), owner.1.map(Gid::from_raw));
        chownat(CWD, &name, uid, gid, AtFlags::empty()).at(show(path))?;
    }
    // The umask does not count here.
    chmodat(CWD, &name, Mode::from(mode), AtFlags::empty()).at(show(path))
}

/// `path` and what is missing above it.
pub fn make_all(path: &Path, mode: u32, owner: (Option<u32>, Option<u32>)) -> Result<()> {
    let mut missing: Vec<&Path> = Vec::new();
    for ancestor in path.ancestors() {
        match at::stat(ancestor) {
            Ok(stat) if info::kind(&stat) == FileKind::Directory => break,
            Ok(_) => {
                let message = format!("{} is not a directory", show(ancestor));
                return Err(fail(Code::NotADirectory, message));
            }
            Err(Errno::NOENT) => missing.push(ancestor),
            Err(error) => return Err(error).at(show(ancestor)),
        }
    }
    for directory in missing.into_iter().rev() {
        match make_one(directory, mode, owner) {
            Err(status) if status.code() == tonic::Code::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(())
}

pub fn move_entry(request: &MoveRequest, users: &Users) -> Result<FileInfo> {
    let source = crate::files::path(&request.source)?;
    let destination = crate::files::path(&request.destination)?;
    let moved = if request.overwrite {
        at::rename(&source, &destination)
    } else {
        move_new(&source, &destination)
    };
    match moved {
        Ok(()) => {}
        Err(Errno::XDEV) if workspace::here().is_none() => {
            let message = format!(
                "{} and {} are on different file systems",
                show(&source),
                show(&destination)
            );
            return Err(fail(Code::Unsupported, message));
        }
        Err(Errno::INVAL) => {
            return Err(fail(
                Code::InvalidArgument,
                "a directory cannot move into itself",
            ));
        }
        Err(error) => return Err(error).at(format!("{} to {}", show(&source), show(&destination))),
    }
    info::of_path(&destination, false, users)
}

pub fn set_attributes(request: &SetAttributesRequest, users: &Users) -> Result<FileInfo> {
    let path = crate::files::path(&request.path)?;
    if request.mode.is_some_and(|mode| mode > 0o7777) {
        return Err(fail(Code::InvalidArgument, "a mode is at most 07777"));
    }
    let owner = users.owner(&request.owner)?;
    let mtime = request.mtime_unix_ns.map(|ns| Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        },
        last_modification: Timespec {
            tv_sec: ns.div_euclid(1_000_000_000),
            tv_nsec: ns.rem_euclid(1_000_000_000) as _,
        },
    });
    let change =
        |within: std::os::fd::BorrowedFd<'_>, name: &Path, shown: &Path, top: bool| -> Result<()> {
            // The entry that was named is followed; what a recursion meets is not.
            let follow = if top {
                AtFlags::empty()
            } else {
                AtFlags::SYMLINK_NOFOLLOW
            };
            // The owner first: a change of owner clears setuid.
            if owner != (None, None) {
                let (uid, gid) = (owner.0.map(Uid::from_raw), owner.1.map(Gid::from_raw));
                chownat(within, name, uid, gid, follow).at(show(shown))?;
            }
            match request.mode.map(Mode::from) {
                Some(mode) if top => chmodat(within, name, mode, follow).at(show(shown))?,
                Some(mode) => at::change_mode(within, name, mode).at(show(shown))?,
                None => {}
            }
            if let Some(mtime) = &mtime {
                utimensat(within, name, mtime, follow).at(show(shown))?;
            }
            Ok(())
        };
    let (_held, target) = at::target(&path).at(show(&path))?;
    change(CWD.as_fd(), &target, &path, true)?;
    let stat = at::stat(&path).at(show(&path))?;
    if request.recursive && info::kind(&stat) == FileKind::Directory {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = at::open(&path, flags, Mode::empty()).at(show(&path))?;
        let mut pending = vec![PathBuf::new()];
        while let Some(relative) = pending.pop() {
            let parent = match beneath::open_directory(root.as_fd(), &relative) {
                Ok(parent) => parent,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error).at(show(&path.join(&relative))),
            };
            let listing =
                openat(&parent, ".", flags, Mode::empty()).at(show(&path.join(&relative)))?;
            for entry in Dir::read_from(&listing).at(show(&path))? {
                let entry = entry.at(show(&path))?;
                let bytes = entry.file_name().to_bytes();
                if bytes == b"." || bytes == b".." {
                    continue;
                }
                let name = Path::new(std::ffi::OsStr::from_bytes(bytes));
                let below = relative.join(name);
                let shown = path.join(&below);
                let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
                if stat.is_ok_and(|stat| info::kind(&stat) == FileKind::Directory) {
                    pending.push(below);
                }
                match change(parent.as_fd(), name, &shown, false) {
                    Err(status) if status.code() == tonic::Code::NotFound => {}
                    other => other?,
                }
            }
        }
    }
    info::of_path(&path, false, users)
}
