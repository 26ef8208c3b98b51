//! Survey: a tree's entries in an order that two trees share; Digest: what is in its files.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat, fstat, readlinkat, statat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::Sender;

use crate::errors::{Code, Context, Result, fail};
use crate::files::{at, beneath, info, read::open_regular, show};
use crate::pb::{DigestReply, DigestRequest, FileKind, SurveyReply, SurveyRequest, TreeEntry};

const MAX_ENTRIES: u64 = 1_000_000;
const MAX_EXCLUDED: usize = 256;
const MAX_DIGESTS: usize = 1000;
const MAX_DIGESTED: u64 = 1 << 30;
/// Longer ones no call could name.
const MAX_PATH: usize = 4096;
const REPLY_ENTRIES: usize = 1000;
const REPLY_BYTES: usize = 512 << 10;
const CHUNK: usize = 1 << 20;

pub fn survey(request: &SurveyRequest, sender: &Sender<Result<SurveyReply>>) -> Result<()> {
    let top = crate::files::path(&request.path)?;
    if request.exclude.len() > MAX_EXCLUDED {
        let message = format!("at most {MAX_EXCLUDED} paths can be excluded");
        return Err(fail(Code::InvalidArgument, message));
    }
    let mut excluded = Vec::new();
    for each in &request.exclude {
        if let Ok(below) = crate::files::path(each)?.strip_prefix(&top) {
            excluded.push(below.to_path_buf());
        }
    }
    let limit = match request.max_entries {
        0 => MAX_ENTRIES,
        asked => asked.min(MAX_ENTRIES),
    };
    let stat = at::lstat(&top).at(show(&top))?;
    let directory = info::kind(&stat) == FileKind::Directory;
    let mut reply = Replies::new(sender);
    let mut first = entry(Path::new(""), &stat);
    if info::kind(&stat) == FileKind::Symlink
        && let Ok(target) = at::read_link(&top)
    {
        first.link_target = Bytes::copy_from_slice(target.as_bytes());
    }
    reply.put(first);
    if !directory || excluded.iter().any(|each| each.as_os_str().is_empty()) {
        reply.flush(false);
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = match at::open(&top, flags, Mode::empty()) {
        // gVisor, see `beneath`.
        Err(Errno::LOOP | Errno::NOTDIR) => at::directory(&top).at(show(&top))?,
        other => other.at(show(&top))?,
    };
    let walk = Walk {
        root: root.as_fd(),
        device: stat.st_dev,
        excluded,
    };
    // The next one last; of a directory its entries come before whatever was to come after it.
    let mut pending = walk.list(Path::new("")).at(show(&top))?;
    let mut sent = 1;
    while let Some((path, entry)) = pending.pop() {
        if reply.gone {
            return Ok(());
        }
        if sent >= limit {
            reply.flush(true);
            return Ok(());
        }
        sent += 1;
        let directory = entry.kind == FileKind::Directory as i32;
        reply.put(entry);
        if directory {
            match walk.list(&path) {
                Ok(below) => pending.extend(below),
                // Gone or replaced since it was listed, or not to be read.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS | Errno::PERM) => {}
                Err(error) => return Err(error).at(show(&top.join(&path))),
            }
        }
    }
    reply.flush(false);
    Ok(())
}

struct Walk<'a> {
    root: std::os::fd::BorrowedFd<'a>,
    device: u64,
    excluded: Vec<PathBuf>,
}

impl Walk<'_> {
    /// A directory's entries, the first one last.
    fn list(&self, relative: &Path) -> rustix::io::Result<Vec<(PathBuf, TreeEntry)>> {
        let directory = beneath::open_directory(self.root, relative)?;
        let mut names = Vec::new();
        for each in Dir::read_from(&directory)? {
            let name = each?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let path = relative.join(&name);
            if path.as_os_str().len() > MAX_PATH || self.excluded.contains(&path) {
                continue;
            }
            let name = Path::new(&name);
            let Ok(stat) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if stat.st_dev != self.device {
                continue;
            }
            let mut entry = entry(&path, &stat);
            if info::kind(&stat) == FileKind::Symlink {
                match readlinkat(&directory, name, Vec::new()) {
                    Ok(to) => entry.link_target = Bytes::copy_from_slice(to.as_bytes()),
                    Err(_) => continue,
                }
            }
            found.push((path, entry));
        }
        Ok(found)
    }
}

fn entry(path: &Path, stat: &Stat) -> TreeEntry {
    let kind = info::kind(stat);
    TreeEntry {
        path: Bytes::copy_from_slice(path.as_os_str().as_bytes()),
        kind: kind.into(),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_unix_ns: info::mtime_ns(stat),
        ctime_unix_ns: stat
            .st_ctime
            .saturating_mul(1_000_000_000)
            .saturating_add(stat.st_ctime_nsec as i64),
        link_target: Bytes::new(),
        device: if kind == FileKind::Other {
            stat.st_rdev
        } else {
            0
        },
    }
}

struct Replies<'a> {
    sender: &'a Sender<Result<SurveyReply>>,
    entries: Vec<TreeEntry>,
    bytes: usize,
    gone: bool,
}

impl<'a> Replies<'a> {
    fn new(sender: &'a Sender<Result<SurveyReply>>) -> Self {
        Replies {
            sender,
            entries: Vec::new(),
            bytes: 0,
            gone: false,
        }
    }

    fn put(&mut self, entry: TreeEntry) {
        self.bytes += 64 + entry.path.len() + entry.link_target.len();
        self.entries.push(entry);
        if self.entries.len() >= REPLY_ENTRIES || self.bytes >= REPLY_BYTES {
            self.flush(false);
        }
    }

    fn flush(&mut self, cut: bool) {
        self.bytes = 0;
        let entries = std::mem::take(&mut self.entries);
        let reply = SurveyReply { entries, cut };
        self.gone |= self.sender.blocking_send(Ok(reply)).is_err();
    }
}

pub fn digest(request: &DigestRequest) -> Result<DigestReply> {
    if request.paths.len() > MAX_DIGESTS {
        let message = format!("at most {MAX_DIGESTS} files can be read at once");
        return Err(fail(Code::InvalidArgument, message));
    }
    let mut left = match request.max_bytes {
        0 => MAX_DIGESTED,
        asked => asked.min(MAX_DIGESTED),
    };
    let mut sha256 = Vec::with_capacity(request.paths.len());
    for each in &request.paths {
        let path = crate::files::path(each)?;
        sha256.push(of_file(&path, &mut left).unwrap_or_default());
    }
    Ok(DigestReply { sha256 })
}

/// None for what is no regular file, cannot be read, or is longer than what is left.
fn of_file(path: &Path, left: &mut u64) -> Option<Bytes> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
    let mut file: File = open_regular(path, flags, Mode::empty()).ok()?;
    let size = u64::try_from(fstat(&file).ok()?.st_size).ok()?;
    if size > *left {
        return None;
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK.min(size as usize + 1)];
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(Bytes::copy_from_slice(&hash.finalize())),
            read if read as u64 > *left => return None,
            read => {
                *left -= read as u64;
                hash.update(&buffer[..read]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn surveyed(request: &SurveyRequest) -> (Vec<TreeEntry>, bool) {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(100);
        survey(request, &sender).unwrap();
        drop(sender);
        let mut found = (Vec::new(), false);
        while let Some(reply) = receiver.blocking_recv() {
            let reply = reply.unwrap();
            found.0.extend(reply.entries);
            found.1 |= reply.cut;
        }
        found
    }

    fn bytes(path: &Path) -> Bytes {
        Bytes::copy_from_slice(path.as_os_str().as_bytes())
    }

    #[test]
    fn a_tree_in_order_and_what_is_in_it() {
        let top = std::env::temp_dir().join(format!("roost-survey-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::create_dir_all(top.join("left-out/b")).unwrap();
        for name in ["a.txt", "a/b/c", "a/z", "a-b"] {
            std::fs::write(top.join(name), name).unwrap();
        }
        symlink("nowhere", top.join("z")).unwrap();
        let mut request = SurveyRequest {
            path: bytes(&top),
            exclude: vec![bytes(&top.join("left-out")), Bytes::from_static(b"/other")],
            max_entries: 0,
        };
        let (entries, cut) = surveyed(&request);
        let paths: Vec<_> = entries.iter().map(|each| &each.path[..]).collect();
        let expected: [&[u8]; 8] = [b"", b"a", b"a/b", b"a/b/c", b"a/z", b"a-b", b"a.txt", b"z"];
        assert_eq!(paths, expected);
        assert!(!cut);
        assert_eq!(&entries[7].link_target[..], b"nowhere");
        request.max_entries = 3;
        let (entries, cut) = surveyed(&request);
        assert_eq!((entries.len(), cut), (3, true));
        let mut request = DigestRequest {
            paths: vec![
                bytes(&top.join("a.txt")),
                bytes(&top.join("z")),
                bytes(&top),
            ],
            max_bytes: 0,
        };
        let found = digest(&request).unwrap().sha256;
        assert_eq!(&found[0][..], &Sha256::digest(b"a.txt")[..]);
        assert!(found[1].is_empty() && found[2].is_empty());
        request.max_bytes = 2;
        assert!(digest(&request).unwrap().sha256[0].is_empty());
        std::fs::remove_dir_all(&top).unwrap();
    }
}
