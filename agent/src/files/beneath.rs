//! Opening directories below a root that never lead out of it.
//!
//! Each component is opened without following links, so neither a link that was there nor one swapped in
//! meanwhile can lead elsewhere. One way for every kernel: gVisor has no openat2, and its O_NOFOLLOW does not
//! hold together with O_DIRECTORY unless O_PATH is there too.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, Result};

const STEP: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const READ: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// The directory `relative` (normal components only) below `root`. A link on the way is ELOOP or ENOTDIR.
pub fn open_directory(root: BorrowedFd<'_>, relative: &Path) -> Result<OwnedFd> {
    let mut directory: Option<OwnedFd> = None;
    for component in relative.components() {
        let at = directory
            .as_ref()
            .map_or(root, |directory| directory.as_fd());
        match component {
            Component::Normal(name) => directory = Some(openat(at, name, STEP, Mode::empty())?),
            Component::CurDir => {}
            _ => return Err(Errno::INVAL),
        }
    }
    let at = directory
        .as_ref()
        .map_or(root, |directory| directory.as_fd());
    openat(at, ".", READ, Mode::empty())
}
