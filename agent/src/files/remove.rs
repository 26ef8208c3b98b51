//! Remove: one entry, or a tree of any depth, never through a link.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, fstat, renameat, unlinkat};
use rustix::io::Errno;

use crate::errors::{Code, Context, Result, fail};
use crate::files::write::random;
use crate::files::{at, beneath, info, show};
use crate::pb::{FileKind, RemoveRequest};
use crate::workspace;

/// Open directories while descending; a deeper one is first moved up beside the root of the removal.
const MAX_DEPTH: usize = 64;

pub fn remove(request: &RemoveRequest) -> Result<()> {
    let path = crate::files::path(&request.path)?;
    let stat = at::lstat(&path).at(show(&path))?;
    let root = match workspace::here() {
        Some(here) => fstat(here.root()),
        None => at::stat(Path::new("/")),
    };
    let root = root.at("/")?;
    if (stat.st_dev, stat.st_ino) == (root.st_dev, root.st_ino) {
        return Err(fail(
            Code::InvalidArgument,
            "the root directory cannot be removed",
        ));
    }
    if info::kind(&stat) != FileKind::Directory {
        return at::remove(&path, AtFlags::empty()).at(show(&path));
    }
    if request.recursive {
        let directory = at::directory(&path).at(show(&path))?;
        empty(directory.as_fd()).at(show(&path))?;
    }
    at::remove(&path, AtFlags::REMOVEDIR).at(show(&path))
}

/// A directory and everything below it.
pub fn tree(at: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<()> {
    let directory = beneath::open_directory(at, name)?;
    empty(directory.as_fd())?;
    unlinkat(at, name, AtFlags::REMOVEDIR)
}

/// Removes everything below `root`, with a stack of open directories instead of recursion.
fn empty(root: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let top = beneath::open_directory(root, Path::new(""))?;
    let mut stack: Vec<(OsString, OwnedFd)> = vec![(OsString::new(), top)];
    while let Some((_, directory)) = stack.last() {
        match clear(directory.as_fd())? {
            None => {
                let Some((name, _)) = stack.pop() else {
                    return Ok(());
                };
                if let Some((_, parent)) = stack.last() {
                    match unlinkat(parent, Path::new(&name), AtFlags::REMOVEDIR) {
                        // Someone is adding to it: it is looked at again from its parent.
                        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Some(child) if stack.len() >= MAX_DEPTH => {
                let moved = format!(".roost-{:016x}", random().map_err(|_| Errno::IO)?);
                renameat(directory, Path::new(&child), root, &moved)?;
            }
            Some(child) => {
                let opened = beneath::open_directory(directory.as_fd(), Path::new(&child))?;
                stack.push((child, opened));
            }
        }
    }
    Ok(())
}

/// Removes the entries of one directory up to the first subdirectory that is not empty, and names that one.
fn clear(directory: BorrowedFd<'_>) -> rustix::io::Result<Option<OsString>> {
    for _ in 0..1000 {
        let listing = beneath::open_directory(directory, Path::new(""))?;
        let mut seen = false;
        for entry in Dir::read_from(&listing)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            seen = true;
            let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
            match unlinkat(directory, path, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(error) => return Err(error),
            }
            match unlinkat(directory, path, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    return Ok(Some(OsString::from_vec(name.to_bytes().to_vec())));
                }
                Err(Errno::NOTDIR) => return Err(Errno::PERM),
                Err(error) => return Err(error),
            }
        }
        if !seen {
            return Ok(None);
        }
    }
    Err(Errno::NOTEMPTY)
}
