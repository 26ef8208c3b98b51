//! A layer of an OCI image on top of those below it (image-spec 1.1, layer.md): whiteouts, entries in the place of what
//! was there, and names that lead through links, as if the directory were the root of all.
//!
//! What lies in directories that every machine has mounted, and our own, no image fills.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, Mode, XattrFlags, fsetxattr, linkat, mkfifoat, readlinkat, statat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;

use crate::errors::{Code, Context, Result, fail};
use crate::files::{at, beneath, info, remove, show};
use crate::pb::FileKind;
use crate::tar::format::{Header, Kind, Reader, padding};
use crate::tar::unpack::{Unpack, components};

/// Names at the top of a root that are no part of an image.
pub const ELSEWHERE: [&str; 5] = ["dev", "proc", "run", "sys", ".roost"];

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const MAX_LINKS: usize = 40; // as the kernel's own

/// What this layer has put so far: its whiteouts do not touch that.
#[derive(Default)]
pub struct Layer {
    /// Of their paths; a machine's memory would not hold a million of those.
    put: HashSet<u64>,
    key: RandomState,
    /// The last directory that names led to, by what it was called: entries come directory by directory.
    last: Option<(PathBuf, PathBuf, OwnedFd)>,
    pub left_out: u64,
    pub attributes_left_out: u64,
}

impl Layer {
    fn has(&self, path: &Path) -> bool {
        self.put.contains(&self.key.hash_one(path))
    }

    fn add(&mut self, path: &Path) {
        for each in path.ancestors() {
            if !self.put.insert(self.key.hash_one(each)) {
                return;
            }
        }
    }

    /// An extended attribute that an image may bring; others, and what the disk does not take, are counted.
    pub fn dress(&mut self, file: impl AsFd, entry: &Header) {
        for (name, value) in &entry.xattrs {
            let known = name.starts_with(b"user.")
                || matches!(
                    name.as_slice(),
                    b"security.capability"
                        | b"system.posix_acl_access"
                        | b"system.posix_acl_default"
                );
            let set = known
                && fsetxattr(
                    file.as_fd(),
                    OsStr::from_bytes(name),
                    value,
                    XattrFlags::empty(),
                )
                .is_ok();
            self.attributes_left_out += u64::from(!set);
        }
    }
}

pub fn elsewhere(path: &Path) -> bool {
    let first = path.iter().next();
    ELSEWHERE.iter().any(|name| first == Some(OsStr::new(name)))
}

impl Unpack {
    pub fn layer_entry<R: Read>(&mut self, entry: Header, reader: &mut Reader<R>) -> Result<()> {
        let path = components(below(&entry.path))?;
        let data = entry.size + padding(entry.size) as u64;
        let Some(name) = path.file_name().map(PathBuf::from) else {
            self.directories.push((PathBuf::new(), entry));
            return reader.skip(data);
        };
        let Some((real, parent)) = self.resolve(path.parent().unwrap_or(Path::new("")))? else {
            self.layer().left_out += 1;
            return reader.skip(data);
        };
        let hidden = name.as_os_str().as_bytes().strip_prefix(WHITEOUT);
        let path =
            real.join(hidden.map_or(name.as_path(), |name| Path::new(OsStr::from_bytes(name))));
        let shown = show(&self.shown.join(&path));
        if elsewhere(&path) {
            // That there is such a directory is not worth telling.
            self.layer().left_out += u64::from(entry.kind != Kind::Directory);
            return reader.skip(data);
        }
        if name.as_os_str().as_bytes() == OPAQUE {
            self.opaque(&real)?;
            return reader.skip(data);
        }
        if let Some(hidden) = hidden {
            match hidden {
                b"" | b"." | b".." => {
                    return Err(fail(
                        Code::InvalidPath,
                        format!("{shown}: no such whiteout"),
                    ));
                }
                // Of AUFS's own.
                _ if hidden.starts_with(WHITEOUT) => self.layer().left_out += 1,
                _ if self.layer().has(&path) => {}
                _ => self.clear(parent.as_fd(), Path::new(OsStr::from_bytes(hidden)), &shown)?,
            }
            return reader.skip(data);
        }
        match entry.kind {
            Kind::Directory => {
                if kind_of(parent.as_fd(), &name).at(&shown)? != Some(FileKind::Directory) {
                    self.clear(parent.as_fd(), &name, &shown)?;
                    self.make_directory(parent.as_fd(), &name).at(&shown)?;
                }
                self.directories.push((path.clone(), entry));
            }
            Kind::File => {
                self.clear(parent.as_fd(), &name, &shown)?;
                self.file(parent.as_fd(), &name, &entry, reader, &shown)?;
                reader.skip(padding(entry.size) as u64)?;
            }
            Kind::Symlink => {
                self.clear(parent.as_fd(), &name, &shown)?;
                symlinkat(OsStr::from_bytes(&entry.link), &parent, &name).at(&shown)?;
                self.dress_link(parent.as_fd(), &name, &entry).at(&shown)?;
            }
            Kind::HardLink => {
                if !self.link(&entry, &path, parent.as_fd(), &name, &shown)? {
                    self.layer().left_out += 1;
                    return Ok(());
                }
            }
            Kind::Other(b'6') => {
                self.clear(parent.as_fd(), &name, &shown)?;
                mkfifoat(&parent, &name, Mode::from(0o600)).at(&shown)?;
                self.dress_link(parent.as_fd(), &name, &entry).at(&shown)?;
                let mode = Mode::from(entry.mode & self.modes);
                at::change_mode(parent.as_fd(), &name, mode).at(&shown)?;
                reader.skip(data)?;
            }
            Kind::Other(_) => {
                self.layer().left_out += 1;
                return reader.skip(data);
            }
        }
        self.layer().add(&path);
        Ok(())
    }

    /// False where its target belongs to what no image fills.
    fn link(
        &mut self,
        entry: &Header,
        path: &Path,
        at: BorrowedFd<'_>,
        name: &Path,
        shown: &str,
    ) -> Result<bool> {
        let target = components(below(&entry.link))?;
        let Some((real, from)) = self.resolve(target.parent().unwrap_or(Path::new("")))? else {
            return Ok(false);
        };
        let file = target.file_name().unwrap_or_default();
        let target = real.join(file);
        if elsewhere(&target) {
            return Ok(false);
        }
        if !matches!(
            kind_of(from.as_fd(), Path::new(file)).at(shown)?,
            Some(FileKind::File | FileKind::Symlink)
        ) {
            let message = format!("{shown} is a hard link to something that is not a file");
            return Err(fail(Code::InvalidPath, message));
        }
        if target != path {
            self.clear(at, name, shown)?;
            linkat(&from, file, at, name, AtFlags::empty()).at(shown)?;
        }
        Ok(true)
    }

    /// Where a directory's name leads, links on the way followed below the root alone, and that directory, made where
    /// it is missing. None: to what no image fills.
    fn resolve(&mut self, path: &Path) -> Result<Option<(PathBuf, OwnedFd)>> {
        if let Some((last, real, directory)) = &self.layer().last
            && last == path
        {
            let directory = directory.try_clone().at(show(path))?;
            return Ok(Some((real.clone(), directory)));
        }
        let shown = show(&self.shown.join(path));
        let refuse = |why: &str| Err(fail(Code::InvalidPath, format!("{shown} {why}")));
        let mut todo: Vec<OsString> = path.iter().rev().map(OsString::from).collect();
        let mut real = PathBuf::new();
        let mut links = 0;
        let mut directory = self.open(&real).at(&shown)?;
        while let Some(name) = todo.pop() {
            match name.as_bytes() {
                b"" | b"." => continue,
                b".." => {
                    real.pop();
                    directory = self.open(&real).at(&shown)?;
                    continue;
                }
                _ => {}
            }
            let next = real.join(&name);
            if elsewhere(&next) {
                return Ok(None);
            }
            let name = Path::new(&name);
            let opened = match beneath::open_directory(directory.as_fd(), name) {
                Err(Errno::NOENT) => {
                    self.make_directory(directory.as_fd(), name).at(&shown)?;
                    beneath::open_directory(directory.as_fd(), name)
                }
                other => other,
            };
            match opened {
                Ok(opened) => (real, directory) = (next, opened),
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return refuse("leads through too many links");
                    }
                    let Ok(target) = readlinkat(&directory, name, Vec::new()) else {
                        return refuse("leads through something that is not a directory");
                    };
                    let target = target.as_bytes();
                    if target.first() == Some(&b'/') {
                        real = PathBuf::new();
                        directory = self.open(&real).at(&shown)?;
                    }
                    let parts = target.split(|&byte| byte == b'/').rev();
                    todo.extend(parts.map(|part| OsString::from_vec(part.to_vec())));
                }
                Err(error) => return Err(error).at(&shown),
            }
        }
        let kept = directory.try_clone().at(&shown)?;
        self.layer().last = Some((path.to_owned(), real.clone(), kept));
        Ok(Some((real, directory)))
    }

    fn open(&self, real: &Path) -> rustix::io::Result<OwnedFd> {
        beneath::open_directory(self.root.as_fd(), real)
    }

    /// Makes place for an entry, whatever is in it.
    fn clear(&mut self, at: BorrowedFd<'_>, name: &Path, shown: &str) -> Result<()> {
        match kind_of(at, name).at(shown)? {
            None => return Ok(()),
            Some(FileKind::File) => return unlinkat(at, name, AtFlags::empty()).at(shown),
            Some(FileKind::Directory) => remove::tree(at, name).at(shown)?,
            Some(_) => unlinkat(at, name, AtFlags::empty()).at(shown)?,
        }
        self.layer().last = None; // names may lead elsewhere now
        Ok(())
    }

    /// Takes away what layers below put into a directory.
    fn opaque(&mut self, real: &Path) -> Result<()> {
        let mut pending = vec![real.to_owned()];
        while let Some(path) = pending.pop() {
            let shown = show(&self.shown.join(&path));
            let directory = self.open(&path).at(&shown)?;
            let mut names = Vec::new();
            for entry in Dir::read_from(&directory).at(&shown)? {
                let name = entry.at(&shown)?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.push(OsString::from_vec(name));
                }
            }
            for name in names {
                let child = path.join(&name);
                if elsewhere(&child) {
                    continue;
                }
                let name = Path::new(&name);
                if !self.layer().has(&child) {
                    self.clear(directory.as_fd(), name, &shown)?;
                } else if kind_of(directory.as_fd(), name).at(&shown)? == Some(FileKind::Directory)
                {
                    pending.push(child);
                }
            }
        }
        Ok(())
    }
}

/// An absolute name is one below the root, as all of them are.
fn below(name: &[u8]) -> &[u8] {
    let slashes = name.iter().take_while(|&&byte| byte == b'/').count();
    &name[slashes..]
}

fn kind_of(at: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<Option<FileKind>> {
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(info::kind(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
