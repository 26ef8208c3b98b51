//! TarIn: unpacks an archive below a directory, and nowhere else.
//!
//! Names are taken apart and each component is opened without following links, so no entry, whatever came
//! before it, can lead out. Files are made anew (an old one is unlinked first), so none is written through a
//! link either.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod, fchown,
    futimens, linkat, mkdirat, openat, statat, symlinkat, syncfs, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::errors::{Code, Context, Result, fail};
use crate::files::{at, beneath, directory, info, show};
use crate::pb::{FileKind, TarInHeader, TarInReply};
use crate::tar::decode::{Bounds, Decoder};
use crate::tar::format::{BLOCK, Header, Kind, Reader, broken, padding};
use crate::tar::layer::Layer;
use crate::upload::{Part, Parts, broke_off};
use crate::users::Users;

const DEFAULT_ENTRIES: u64 = 1_000_000;
const DEFAULT_BYTES: u64 = 64 << 30;
const MAX_DEPTH: usize = 1000;
const BUFFER: usize = 128 << 10;

/// The messages of the call as one stream of bytes.
pub struct Source {
    parts: Parts,
    current: Bytes,
    ended: bool,
}

impl Source {
    pub fn new(parts: Parts) -> Source {
        Source {
            parts,
            current: Bytes::new(),
            ended: false,
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.parts.blocking_recv() {
                Some(Part::Data(data)) => self.current = data,
                Some(Part::End) => self.ended = true,
                None => return Err(broke_off()),
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

pub struct Unpack {
    pub root: OwnedFd,
    pub shown: PathBuf,
    owner: (Option<u32>, Option<u32>),
    pub modes: u32,
    may_chown: bool,
    layer: Option<Layer>,
    /// The directory of the last entry, since entries come directory by directory.
    last: Option<(PathBuf, OwnedFd)>,
    /// Set at the end: a directory may forbid writing, and writing into it changes its time.
    pub directories: Vec<(PathBuf, Header)>,
}

pub fn unpack(header: &TarInHeader, source: impl Read, users: &Users) -> Result<TarInReply> {
    let path = crate::files::path(&header.path)?;
    let owner = users.owner(&header.owner)?;
    directory::make_all(&path, 0o755, owner)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut unpack = Unpack {
        root: at::open(&path, flags, Mode::empty()).at(show(&path))?,
        shown: path,
        owner,
        modes: if header.keep_special { 0o7777 } else { 0o1777 },
        may_chown: rustix::process::geteuid().is_root(),
        layer: header.layer.then(Layer::default),
        last: None,
        directories: Vec::new(),
    };
    let most = |asked: u64, default: u64| if asked == 0 { default } else { asked };
    let (max_entries, max_bytes) = (
        most(header.max_entries, DEFAULT_ENTRIES),
        most(header.max_bytes, DEFAULT_BYTES),
    );
    // Beside what is in them, entries have their headers and names.
    let bounds = Bounds {
        bytes: max_bytes.saturating_add(max_entries.saturating_mul(16 * BLOCK as u64)),
        ratio: header.max_ratio.into(),
    };
    let mut reader = Reader {
        source: Decoder::new(source, header.compression(), bounds),
    };
    let mut done = TarInReply::default();
    while let Some(entry) = reader.next_entry()? {
        done.entries += 1;
        done.bytes = done.bytes.saturating_add(entry.size);
        if done.entries > max_entries {
            return Err(fail(
                Code::LimitExceeded,
                format!("the archive has more than {max_entries} entries"),
            ));
        }
        if done.bytes > max_bytes {
            return Err(fail(
                Code::LimitExceeded,
                format!("the archive holds more than {max_bytes} bytes"),
            ));
        }
        match unpack.layer {
            Some(_) => unpack.layer_entry(entry, &mut reader)?,
            None => unpack.entry(entry, &mut reader)?,
        }
    }
    unpack.finish()?;
    // What follows the end is padding; taken so that the sender is not cut off.
    io::copy(&mut reader.source, &mut io::sink()).at("archive")?;
    if let Some(layer) = &unpack.layer {
        done.left_out = layer.left_out;
        done.attributes_left_out = layer.attributes_left_out;
        syncfs(&unpack.root).at(show(&unpack.shown))?;
    }
    Ok(done)
}

/// The components of a name. None is "..", none leads to the root; INVALID_PATH otherwise.
pub fn components(name: &[u8]) -> Result<PathBuf> {
    let refuse = |why: &str| {
        let name = String::from_utf8_lossy(name);
        Err(fail(
            Code::InvalidPath,
            format!("the archive's entry {name:?} {why}"),
        ))
    };
    if name.first() == Some(&b'/') {
        return refuse("is absolute");
    }
    if name.contains(&0) {
        return refuse("holds a NUL byte");
    }
    let mut path = PathBuf::new();
    let mut depth = 0;
    for component in name.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return refuse("leads upwards"),
            _ if component.len() > 255 => return refuse("has a component longer than 255 bytes"),
            _ => {
                path.push(std::ffi::OsStr::from_bytes(component));
                depth += 1;
            }
        }
    }
    if depth > MAX_DEPTH {
        return refuse("is too deep");
    }
    Ok(path)
}

impl Unpack {
    /// Of an archive that is one.
    pub fn layer(&mut self) -> &mut Layer {
        self.layer.get_or_insert_default()
    }

    fn entry<R: Read>(&mut self, entry: Header, reader: &mut Reader<R>) -> Result<()> {
        let path = components(&entry.path)?;
        let Some(name) = path.file_name().map(PathBuf::from) else {
            // The directory itself, which is the caller's.
            return reader.skip(entry.size + padding(entry.size) as u64);
        };
        let parent = self.parent(path.parent().unwrap_or(Path::new("")))?;
        let shown = show(&self.shown.join(&path));
        match entry.kind {
            Kind::Directory => {
                self.make_directory(parent.as_fd(), &name).at(&shown)?;
                self.directories.push((path, entry));
                Ok(())
            }
            Kind::File => {
                clear(parent.as_fd(), &name, &shown)?;
                self.file(parent.as_fd(), &name, &entry, reader, &shown)?;
                reader.skip(padding(entry.size) as u64)
            }
            Kind::Symlink => {
                clear(parent.as_fd(), &name, &shown)?;
                let target = Path::new(std::ffi::OsStr::from_bytes(&entry.link));
                symlinkat(target, &parent, &name).at(&shown)?;
                self.dress_link(parent.as_fd(), &name, &entry).at(&shown)
            }
            Kind::HardLink => {
                let target = components(&entry.link)?;
                let from = self.parent(target.parent().unwrap_or(Path::new("")))?;
                let file = target.file_name().unwrap_or_default();
                let stat = statat(&from, file, AtFlags::SYMLINK_NOFOLLOW).at(&shown)?;
                if info::kind(&stat) != FileKind::File {
                    let message = format!("{shown} is a hard link to something that is not a file");
                    return Err(fail(Code::InvalidPath, message));
                }
                if target == path {
                    return Ok(());
                }
                clear(parent.as_fd(), &name, &shown)?;
                linkat(&from, file, &parent, &name, AtFlags::empty()).at(&shown)
            }
            Kind::Other(flag) => {
                let message = format!(
                    "{shown} is of a kind ({:?}) that is not unpacked",
                    flag as char
                );
                Err(fail(Code::FileKindRefused, message))
            }
        }
    }

    /// The directory of an entry, made where it is missing, without following a link.
    fn parent(&mut self, path: &Path) -> Result<OwnedFd> {
        if let Some((last, directory)) = &self.last
            && last == path
        {
            return directory.try_clone().at(show(path));
        }
        let shown = show(&self.shown.join(path));
        let mut directory = beneath::open_directory(self.root.as_fd(), Path::new("")).at(&shown)?;
        for component in path.components() {
            let name = Path::new(component.as_os_str());
            let next = match beneath::open_directory(directory.as_fd(), name) {
                Err(Errno::NOENT) => {
                    self.make_directory(directory.as_fd(), name).at(&shown)?;
                    beneath::open_directory(directory.as_fd(), name)
                }
                other => other,
            };
            directory = match next {
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    let message =
                        format!("{shown} leads through something that is not a directory");
                    return Err(fail(Code::InvalidPath, message));
                }
                other => other.at(&shown)?,
            };
        }
        self.last = Some((path.to_owned(), directory.try_clone().at(&shown)?));
        Ok(directory)
    }

    pub fn make_directory(&self, at: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<()> {
        match mkdirat(at, name, Mode::from(0o755)) {
            Err(Errno::EXIST) => {
                let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
                match info::kind(&stat) {
                    FileKind::Directory => Ok(()),
                    _ => Err(Errno::NOTDIR),
                }
            }
            Ok(()) if self.may_chown && self.owner != (None, None) => {
                let (uid, gid) = (
                    self.owner.0.map(Uid::from_raw),
                    self.owner.1.map(Gid::from_raw),
                );
                chownat(at, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
            other => other,
        }
    }

    fn ids(&self, entry: &Header) -> (Option<Uid>, Option<Gid>) {
        let (uid, gid) = match self.owner {
            (None, None) => (Some(entry.uid), Some(entry.gid)),
            owner => owner,
        };
        (uid.map(Uid::from_raw), gid.map(Gid::from_raw))
    }

    pub fn file<R: Read>(
        &mut self,
        at: BorrowedFd<'_>,
        name: &Path,
        entry: &Header,
        reader: &mut Reader<R>,
        shown: &str,
    ) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(at, name, flags, Mode::from(0o600)).at(shown)?);
        let filled = copy(&mut reader.source, &mut file, entry.size, shown).and_then(|()| {
            if self.may_chown {
                let (uid, gid) = self.ids(entry);
                fchown(&file, uid, gid).at(shown)?;
            }
            fchmod(&file, Mode::from(entry.mode & self.modes)).at(shown)?;
            // After its owner: a new one takes capabilities away.
            if let Some(layer) = &mut self.layer {
                layer.dress(&file, entry);
            }
            futimens(&file, &times(entry.mtime)).at(shown)
        });
        if filled.is_err() {
            let _ = unlinkat(at, name, AtFlags::empty());
        }
        filled
    }

    pub fn dress_link(
        &self,
        at: BorrowedFd<'_>,
        name: &Path,
        entry: &Header,
    ) -> rustix::io::Result<()> {
        if self.may_chown {
            let (uid, gid) = self.ids(entry);
            chownat(at, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let _ = utimensat(at, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW);
        Ok(())
    }

    /// The directories' own attributes, the deepest first.
    fn finish(&mut self) -> Result<()> {
        for (path, entry) in std::mem::take(&mut self.directories).into_iter().rev() {
            let shown = show(&self.shown.join(&path));
            // A later entry may have taken its place.
            let Ok(directory) = beneath::open_directory(self.root.as_fd(), &path) else {
                continue;
            };
            if self.may_chown {
                let (uid, gid) = self.ids(&entry);
                fchown(&directory, uid, gid).at(&shown)?;
            }
            fchmod(&directory, Mode::from(entry.mode & self.modes)).at(&shown)?;
            if let Some(layer) = &mut self.layer {
                layer.dress(&directory, &entry);
            }
            futimens(&directory, &times(entry.mtime)).at(&shown)?;
        }
        Ok(())
    }
}

fn times(mtime: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        },
        last_modification: Timespec {
            tv_sec: mtime,
            tv_nsec: 0,
        },
    }
}

/// Makes place for an entry. A directory in its place stays, and is an error.
fn clear(at: BorrowedFd<'_>, name: &Path, shown: &str) -> Result<()> {
    match unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => Err(fail(
            Code::IsADirectory,
            format!("{shown} is a directory already"),
        )),
        Err(error) => Err(error).at(shown),
    }
}

fn copy(source: &mut impl Read, file: &mut File, size: u64, shown: &str) -> Result<()> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER))];
    let mut left = size;
    while left > 0 {
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = source.read(&mut buffer[..wanted]).at("archive")?;
        if count == 0 {
            return Err(broken("the archive ends within an entry"));
        }
        file.write_all(&buffer[..count]).at(shown)?;
        left -= count as u64;
    }
    Ok(())
}
