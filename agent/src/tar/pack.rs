//! TarOut: a directory's contents, or one file, as an archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, fstat, openat, readlinkat,
    statat,
};
use rustix::io::Errno;
use tokio::sync::mpsc::Sender;

use crate::errors::{Context, Result};
use crate::files::{at, beneath, info, read::open_regular, show};
use crate::pb::{Data, FileKind, TarOutRequest};
use crate::tar::format::{BLOCK, Header, Kind, encode, padding};
use crate::tar::layer::elsewhere;

/// What every machine is given of its own before it starts, and no image brings.
const OWN: [&str; 5] = [
    "etc/hostname",
    "etc/hosts",
    "etc/machine-id",
    "etc/resolv.conf",
    "tmp/.roost-keep",
];

const CHUNK: usize = 256 << 10;
/// Past it a hard link is packed as a file of its own.
const MAX_LINKS: usize = 100_000;
/// Of all extended attributes of a file, names and values: what the kernel itself takes.
const MAX_ATTRIBUTES: usize = 64 << 10;

struct Pack<'a> {
    sender: &'a Sender<Result<Data>>,
    pending: Vec<u8>,
    links: HashMap<(u64, u64), Vec<u8>>,
    layer: bool,
    gone: bool,
}

pub fn pack(request: &TarOutRequest, sender: &Sender<Result<Data>>) -> Result<()> {
    let path = crate::files::path(&request.path)?;
    let stat = at::stat(&path).at(show(&path))?;
    let mut pack = Pack {
        sender,
        pending: Vec::new(),
        links: HashMap::new(),
        layer: request.layer,
        gone: false,
    };
    if info::kind(&stat) == FileKind::Directory {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = at::open(&path, flags, Mode::empty()).at(show(&path))?;
        pack.tree(root.as_fd(), &path)?;
    } else {
        let file = open_regular(&path, OFlags::RDONLY, Mode::empty())?;
        let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
        let stat = fstat(&file).at(show(&path))?;
        pack.file(file, header(name, &stat, Kind::File), &path)?;
    }
    pack.pending.extend_from_slice(&[0; 2 * BLOCK]);
    pack.flush();
    Ok(())
}

fn header(path: Vec<u8>, stat: &Stat, kind: Kind) -> Header {
    Header {
        path,
        link: Vec::new(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: 0,
        mtime: stat.st_mtime,
        xattrs: Vec::new(),
    }
}

/// Those that a layer may bring; a file without any, or on a disk that has none, has none.
fn attributes(file: &File) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = Vec::with_capacity(MAX_ATTRIBUTES);
    if flistxattr(file, spare_capacity(&mut names)).is_err() {
        return Vec::new();
    }
    names
        .split(|&byte| byte == 0)
        .filter(|name| *name == b"security.capability" || name.starts_with(b"user."))
        .filter_map(|name| {
            let mut value = Vec::with_capacity(MAX_ATTRIBUTES);
            fgetxattr(file, name, spare_capacity(&mut value)).ok()?;
            Some((name.to_vec(), value))
        })
        .collect()
}

fn is_fifo(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Fifo
}

impl Pack<'_> {
    fn tree(&mut self, root: BorrowedFd<'_>, shown: &Path) -> Result<()> {
        let mut pending = vec![PathBuf::new()];
        while let Some(relative) = pending.pop() {
            let directory = match beneath::open_directory(root, &relative) {
                Ok(directory) => directory,
                // Gone or replaced since it was listed.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(error).at(show(&shown.join(&relative))),
            };
            let mut names = Vec::new();
            for entry in Dir::read_from(&directory).at(show(shown))? {
                let name = entry.at(show(shown))?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.push(std::ffi::OsString::from_vec(name));
                }
            }
            // The same tree is the same archive.
            names.sort_unstable();
            let mut below = Vec::new();
            for name in names {
                if self.gone {
                    return Ok(());
                }
                let path = relative.join(&name);
                if self.entry(directory.as_fd(), Path::new(&name), &path, shown)? {
                    below.push(path);
                }
            }
            pending.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// True for a directory, whose entries are to follow.
    fn entry(
        &mut self,
        at: BorrowedFd<'_>,
        name: &Path,
        path: &Path,
        shown: &Path,
    ) -> Result<bool> {
        let full = || show(&shown.join(path));
        let stat = match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            other => other.at(full())?,
        };
        if self.layer && OWN.iter().any(|own| path == Path::new(own)) {
            return Ok(false);
        }
        let mut bytes = path.as_os_str().as_bytes().to_vec();
        match info::kind(&stat) {
            FileKind::Directory => {
                let left_out = self.layer && elsewhere(path);
                if left_out && path.as_os_str().as_bytes().starts_with(b".") {
                    return Ok(false);
                }
                bytes.push(b'/');
                self.put(&encode(&header(bytes, &stat, Kind::Directory)));
                return Ok(!left_out);
            }
            FileKind::Symlink => {
                let link = readlinkat(at, name, Vec::new()).at(full())?.into_bytes();
                self.put(&encode(&Header {
                    link,
                    ..header(bytes, &stat, Kind::Symlink)
                }));
            }
            FileKind::File => {
                let key = (stat.st_dev, stat.st_ino);
                if let Some(first) = self.links.get(&key) {
                    let link = first.clone();
                    self.put(&encode(&Header {
                        link,
                        ..header(bytes, &stat, Kind::HardLink)
                    }));
                    return Ok(false);
                }
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = match openat(at, name, flags, Mode::empty()) {
                    Err(Errno::NOENT | Errno::LOOP) => return Ok(false),
                    other => File::from(other.at(full())?),
                };
                let now = fstat(&file).at(full())?;
                if info::kind(&now) != FileKind::File {
                    return Ok(false);
                }
                if now.st_nlink > 1 && self.links.len() < MAX_LINKS {
                    self.links.insert((now.st_dev, now.st_ino), bytes.clone());
                }
                let mut head = header(bytes, &now, Kind::File);
                if self.layer {
                    head.xattrs = attributes(&file);
                }
                self.file(file, head, &shown.join(path))?;
            }
            FileKind::Other if self.layer && is_fifo(&stat) => {
                self.put(&encode(&header(bytes, &stat, Kind::Other(b'6'))));
            }
            // Sockets, FIFOs and devices mean nothing in another machine.
            _ => {}
        }
        Ok(false)
    }

    /// As many bytes as the header promises: a file that grows is cut, one that shrinks is filled with zeros.
    fn file(&mut self, file: File, mut header: Header, shown: &Path) -> Result<()> {
        header.size = u64::try_from(fstat(&file).at(show(shown))?.st_size).unwrap_or(0);
        self.put(&encode(&header));
        let mut left = header.size;
        let mut file = file;
        while left > 0 && !self.gone {
            let wanted = left.min((CHUNK - self.pending.len().min(CHUNK - 1)) as u64);
            let before = self.pending.len();
            (&mut file)
                .take(wanted)
                .read_to_end(&mut self.pending)
                .at(show(shown))?;
            if self.pending.len() == before {
                self.pending.resize(before + wanted as usize, 0);
            }
            left -= (self.pending.len() - before) as u64;
            if self.pending.len() >= CHUNK {
                self.flush();
            }
        }
        self.put(&[0; BLOCK][..padding(header.size)]);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let data = std::mem::replace(&mut self.pending, Vec::with_capacity(CHUNK)).into();
        self.gone |= self.sender.blocking_send(Ok(Data { data })).is_err();
    }
}
