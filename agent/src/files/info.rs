//! What is told about one entry of a directory.

use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, Stat, readlinkat, statat};

use crate::errors::{Context, Result};
use crate::files::{at, show};
use crate::pb::{FileInfo, FileKind};
use crate::users::Users;

pub fn kind(stat: &Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

pub fn of_stat(path: &Path, stat: &Stat, users: &Users) -> FileInfo {
    let name = path.file_name().map_or(&b"/"[..], |name| name.as_bytes());
    FileInfo {
        path: Bytes::copy_from_slice(path.as_os_str().as_bytes()),
        name: Bytes::copy_from_slice(name),
        kind: kind(stat).into(),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        owner: users.owner_name(stat.st_uid),
        group: users.group_name(stat.st_gid),
        mtime_unix_ns: mtime_ns(stat),
        link_target: Bytes::new(),
        target_kind: FileKind::Unspecified.into(),
    }
}

pub fn mtime_ns(stat: &Stat) -> i64 {
    stat.st_mtime
        .saturating_mul(1_000_000_000)
        .saturating_add(stat.st_mtime_nsec as i64)
}

/// The entry `name` of a directory; `path` is how the reply calls it.
pub fn of_entry(
    directory: BorrowedFd<'_>,
    name: &Path,
    path: &Path,
    users: &Users,
) -> Result<FileInfo> {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).at(show(path))?;
    let mut info = of_stat(path, &stat, users);
    if kind(&stat) == FileKind::Symlink {
        if let Ok(target) = readlinkat(directory, name, Vec::new()) {
            info.link_target = Bytes::copy_from_slice(target.as_bytes());
        }
        if let Ok(target) = at::follow(directory, name) {
            info.target_kind = kind(&target).into();
        }
    }
    Ok(info)
}

pub fn of_path(path: &Path, follow: bool, users: &Users) -> Result<FileInfo> {
    if follow {
        let stat = at::stat(path).at(show(path))?;
        return Ok(of_stat(path, &stat, users));
    }
    let place = at::place(path).at(show(path))?;
    of_entry(place.directory(), place.name(), path, users)
}
