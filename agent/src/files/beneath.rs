//! Opening directories below a root that never lead out of it.
//!
//! Each component is opened without following links, so neither a link that was there nor one swapped in
//! meanwhile can lead elsewhere. One path for every kernel, where openat2 is missing on some.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, Result};

const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The directory `relative` (normal components only) below `root`. A link on the way is ELOOP or ENOTDIR.
pub fn open_directory(root: BorrowedFd<'_>, relative: &Path) -> Result<OwnedFd> {
    let mut directory = openat(root, ".", FLAGS, Mode::empty())?;
    for component in relative.components() {
        match component {
            Component::Normal(name) => directory = openat(&directory, name, FLAGS, Mode::empty())?,
            Component::CurDir => {}
            _ => return Err(Errno::INVAL),
        }
    }
    Ok(directory)
}
