//! Files by their path: as the machine's kernel resolves it, or, in a workspace, beneath its directory and nowhere else.
//!
//! There each path is resolved by one openat2 that no link and no `..` leads out of (RESOLVE_BENEATH), its last component
//! only where the call follows it; otherwise that is named in the directory found so. What leads out is EXDEV, whose
//! message says it (`errors`).

use std::ffi::CString;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, chmodat, fstat, linkat,
    mkdirat, openat, openat2, readlinkat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::{Errno, Result};

use crate::workspace::{self, Workspace};

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// A name in a directory: what calls that follow no link, or must not, work on.
pub struct Place {
    directory: Option<OwnedFd>,
    name: PathBuf,
}

impl Place {
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory
            .as_ref()
            .map_or(CWD, |directory| directory.as_fd())
    }

    pub fn name(&self) -> &Path {
        &self.name
    }
}

pub fn place(path: &Path) -> Result<Place> {
    let Some(here) = workspace::here() else {
        return Ok(Place {
            directory: None,
            name: path.to_owned(),
        });
    };
    let below = beneath(here, path)?;
    let (parent, name) = match below.file_name() {
        Some(name) => (below.parent().unwrap_or(Path::new("")), name),
        None => (below, OsStr::new(".")), // the directory itself, or one that ends in ..
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let directory = resolve(here.root(), parent, flags, Mode::empty())?;
    Ok(Place {
        directory: Some(directory),
        name: name.into(),
    })
}

/// The path from the workspace's directory on.
fn beneath<'a>(here: &Workspace, path: &'a Path) -> Result<&'a Path> {
    path.strip_prefix(&here.path).map_err(|_| Errno::XDEV)
}

fn resolve(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    // The kernel asks for another try where something was moved meanwhile.
    for _ in 0..64 {
        match openat2(root, path, flags | OFlags::CLOEXEC, mode, RESOLVE) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

pub fn open(path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    match workspace::here() {
        None => rustix::fs::open(path, flags | OFlags::CLOEXEC, mode),
        Some(here) => resolve(here.root(), beneath(here, path)?, flags, mode),
    }
}

pub fn stat(path: &Path) -> Result<Stat> {
    match workspace::here() {
        None => statat(CWD, path, AtFlags::empty()),
        Some(_) => fstat(open(path, OFlags::PATH, Mode::empty())?),
    }
}

/// Of the entry itself.
pub fn lstat(path: &Path) -> Result<Stat> {
    let place = place(path)?;
    statat(place.directory(), place.name(), AtFlags::SYMLINK_NOFOLLOW)
}

/// What `name` in `directory` leads to; in a workspace only from there downwards.
pub fn follow(directory: BorrowedFd<'_>, name: &Path) -> Result<Stat> {
    if workspace::here().is_none() || name.is_absolute() {
        return statat(directory, name, AtFlags::empty());
    }
    fstat(resolve(directory, name, OFlags::PATH, Mode::empty())?)
}

/// The directory that it made; a link that took its name meanwhile is an error.
pub fn make_directory(path: &Path, mode: Mode) -> Result<OwnedFd> {
    let path: PathBuf = path.components().collect(); // a slash at the end follows links
    let place = place(&path)?;
    mkdirat(place.directory(), place.name(), mode)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(place.directory(), place.name(), flags, Mode::empty())
}

pub fn remove(path: &Path, flags: AtFlags) -> Result<()> {
    let place = place(path)?;
    unlinkat(place.directory(), place.name(), flags)
}

pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (place(from)?, place(to)?);
    renameat(from.directory(), from.name(), to.directory(), to.name())
}

pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (place(from)?, place(to)?);
    let flags = RenameFlags::NOREPLACE;
    renameat_with(
        from.directory(),
        from.name(),
        to.directory(),
        to.name(),
        flags,
    )
}

pub fn link(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (place(from)?, place(to)?);
    linkat(
        from.directory(),
        from.name(),
        to.directory(),
        to.name(),
        AtFlags::empty(),
    )
}

pub fn read_link(path: &Path) -> Result<CString> {
    let place = place(path)?;
    readlinkat(place.directory(), place.name(), Vec::new())
}

/// What a path leads to, as a path that calls may follow; while the descriptor is held.
pub fn target(path: &Path) -> Result<(Option<OwnedFd>, PathBuf)> {
    match workspace::here() {
        None => Ok((None, path.to_owned())),
        Some(_) => {
            let found = open(path, OFlags::PATH, Mode::empty())?;
            let name = held(&found);
            Ok((Some(found), name))
        }
    }
}

/// A path to what is open, that calls may follow; while the descriptor is held.
pub fn held(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Of the entry itself, whatever takes its name meanwhile. Links have no mode of their own: nothing is changed.
pub fn change_mode(directory: BorrowedFd<'_>, name: &Path, mode: Mode) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entry = openat(directory, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&entry)?.st_mode) == FileType::Symlink {
        return Ok(());
    }
    chmodat(CWD, held(&entry), mode, AtFlags::empty())
}

/// The directory `path` itself, for reading.
pub fn directory(path: &Path) -> Result<OwnedFd> {
    let place = place(path)?;
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(place.directory(), place.name(), step, Mode::empty())?;
    let read = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(found, ".", read, Mode::empty())
}

/// Where a path leads, without links in it.
pub fn real(path: &Path) -> std::io::Result<PathBuf> {
    match workspace::here() {
        None => path.canonicalize(),
        Some(_) => {
            let found = open(path, OFlags::PATH, Mode::empty())?;
            std::fs::read_link(held(&found))
        }
    }
}
