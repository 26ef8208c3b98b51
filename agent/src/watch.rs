//! Watch: inotify on a file, a directory, or a tree that grows while it is watched.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::errors::{Code, Context, Result, fail};
use crate::files::{at, info, show};
use crate::limits;
use crate::pb::{FileKind, WatchEvent, WatchRequest, watch_event::Kind};
use crate::sync::async_fd;
use crate::workspace;

/// Directories below one watch. Past it, and past the kernel's own limit, OVERFLOW says that not all is seen.
const MAX_DIRECTORIES: usize = 65_536;
/// How long the second half of a move may be in coming.
const MOVE_PAUSE: Duration = Duration::from_millis(20);

static ACTIVE: AtomicUsize = AtomicUsize::new(0);

struct Counted;

impl Counted {
    fn new() -> Result<Counted> {
        let counted = Counted;
        if ACTIVE.fetch_add(1, Ordering::Relaxed) >= limits::WATCHES {
            return Err(fail(
                Code::LimitExceeded,
                format!("{} watches stand already", limits::WATCHES),
            ));
        }
        Ok(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ACTIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Watch {
    notifier: Arc<AsyncFd<OwnedFd>>,
    root: PathBuf,
    recursive: bool,
    directories: HashMap<i32, PathBuf>,
    ready: Vec<WatchEvent>,
    /// A move whose second half has not come: cookie, path, whether it is a directory.
    moving: Option<(u32, PathBuf, bool)>,
    _counted: Counted,
}

pub async fn watch(request: WatchRequest) -> Result<mpsc::Receiver<Result<WatchEvent>>> {
    let path = crate::files::path(&request.path)?;
    let counted = Counted::new()?;
    let notifier = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).at("inotify")?;
    let notifier = Arc::new(async_fd(notifier).at("inotify")?);
    // Through a link to what it leads to; what is found below is never followed.
    let root = at::real(&path).at(show(&path))?;
    let mut watch = Watch {
        notifier: notifier.clone(),
        root: root.clone(),
        recursive: request.recursive,
        directories: HashMap::new(),
        ready: Vec::new(),
        moving: None,
        _counted: counted,
    };
    let mut watch = crate::files::blocking(move || {
        watch.add(&root.clone(), false).at(show(&root))?;
        watch.ready.clear();
        watch.event(Kind::Ready, &root, false);
        Ok(watch)
    })
    .await?;
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let mut buffer = vec![MaybeUninit::uninit(); 16 << 10];
        loop {
            for event in std::mem::take(&mut watch.ready) {
                // A slow caller makes the kernel's queue overflow, of which it is told.
                if sender.send(Ok(watch.shown(event, &path))).await.is_err() {
                    return;
                }
            }
            if watch.directories.is_empty() {
                return;
            }
            let pause = if watch.moving.is_some() {
                MOVE_PAUSE
            } else {
                Duration::MAX
            };
            let ready = tokio::select! {
                // What is there comes before the end of patience: the other half of a move may have waited with us.
                biased;
                ready = notifier.readable() => ready,
                () = tokio::time::sleep(pause) => {
                    watch.settle_move();
                    continue;
                }
                () = sender.closed() => return,
            };
            let Ok(mut ready) = ready else { return };
            ready.clear_ready();
            drop(ready);
            let taken = crate::files::blocking(move || {
                watch.take(&mut buffer);
                Ok((watch, buffer))
            });
            match taken.await {
                Ok(back) => (watch, buffer) = back,
                Err(status) => return drop(sender.send(Err(status)).await),
            }
        }
    });
    Ok(receiver)
}

fn bytes(path: &Path) -> Bytes {
    Bytes::copy_from_slice(path.as_os_str().as_bytes())
}

impl Watch {
    /// Paths as the caller named them, not as links resolved.
    fn shown(&self, mut event: WatchEvent, asked: &Path) -> WatchEvent {
        let rename = |path: &Bytes| {
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            match path.strip_prefix(&self.root) {
                Ok(rest) if rest.as_os_str().is_empty() => bytes(asked),
                Ok(rest) => bytes(&asked.join(rest)),
                Err(_) => bytes(path),
            }
        };
        event.path = rename(&event.path);
        if !event.new_path.is_empty() {
            event.new_path = rename(&event.new_path);
        }
        event
    }

    fn event(&mut self, kind: Kind, path: &Path, directory: bool) {
        let event = WatchEvent {
            kind: kind.into(),
            path: bytes(path),
            new_path: Bytes::new(),
            directory,
        };
        // A long write is a flood of equal events.
        if kind != Kind::Modified || self.ready.last() != Some(&event) {
            self.ready.push(event);
        }
    }

    /// Watches `path` and, where asked for, what is below it. With `tell`, what is found is told as created.
    fn add(&mut self, path: &Path, tell: bool) -> rustix::io::Result<()> {
        let flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::DONT_FOLLOW
            | WatchFlags::EXCL_UNLINK;
        let mut pending = vec![path.to_owned()];
        while let Some(directory) = pending.pop() {
            let top = directory == path;
            if self.directories.len() >= MAX_DIRECTORIES {
                self.event(Kind::Overflow, &directory, true);
                return Ok(());
            }
            match self.see(&directory, flags) {
                Ok(number) => drop(self.directories.insert(number, directory.clone())),
                Err(error) if top && !tell => return Err(error),
                Err(Errno::NOSPC) => {
                    self.event(Kind::Overflow, &directory, true);
                    return Ok(());
                }
                Err(_) => continue,
            }
            if !self.recursive && !tell {
                return Ok(());
            }
            let Ok(opened) = at::directory(&directory) else {
                continue;
            };
            let Ok(entries) = Dir::read_from(&opened) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let below = directory.join(std::ffi::OsStr::from_bytes(name));
                let stat = at::lstat(&below);
                let is_directory = stat.is_ok_and(|stat| info::kind(&stat) == FileKind::Directory);
                if tell {
                    self.event(Kind::Created, &below, is_directory);
                }
                if is_directory && self.recursive {
                    pending.push(below);
                }
            }
        }
        Ok(())
    }

    /// In a workspace by descriptor: inotify knows only paths.
    fn see(&self, directory: &Path, flags: WatchFlags) -> rustix::io::Result<i32> {
        if workspace::here().is_none() {
            return inotify::add_watch(self.notifier.as_ref(), directory, flags);
        }
        let found = at::open(directory, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        let path = format!("/proc/self/fd/{}", found.as_raw_fd());
        inotify::add_watch(
            self.notifier.as_ref(),
            path,
            flags - WatchFlags::DONT_FOLLOW,
        )
    }

    /// Takes what the kernel has.
    fn take(&mut self, buffer: &mut [MaybeUninit<u8>]) {
        let notifier = self.notifier.clone();
        let mut reader = inotify::Reader::new(notifier.as_ref(), buffer);
        // Bounded, so that a flood is sent on in parts.
        for _ in 0..4096 {
            let Ok(event) = reader.next() else { return };
            let name = event.file_name().map(|name| name.to_bytes().to_vec());
            self.one(event.wd(), event.events(), event.cookie(), name.as_deref());
        }
        // More may be there, and its readiness has been forgotten: an overflow would follow otherwise.
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_bytes().to_vec());
            self.one(event.wd(), event.events(), event.cookie(), name.as_deref());
            if self.ready.len() > 65_536 {
                self.ready.clear();
                let root = self.root.clone();
                self.event(Kind::Overflow, &root, true);
            }
        }
    }

    fn one(&mut self, number: i32, flags: ReadFlags, cookie: u32, name: Option<&[u8]>) {
        let root = self.root.clone();
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.settle_move();
            self.event(Kind::Overflow, &root, true);
            // Directories made meanwhile are not watched yet.
            let _ = self.add(&root, false);
            return;
        }
        if flags.contains(ReadFlags::IGNORED) {
            self.directories.remove(&number);
            return;
        }
        let Some(base) = self.directories.get(&number).cloned() else {
            return;
        };
        let directory = flags.contains(ReadFlags::ISDIR);
        let path = match name {
            Some(name) => base.join(std::ffi::OsStr::from_bytes(name)),
            None => base,
        };
        if flags.contains(ReadFlags::MOVED_TO) {
            return self.moved_to(cookie, path, directory);
        }
        self.settle_move();
        if flags.contains(ReadFlags::MOVED_FROM) {
            self.moving = Some((cookie, path, directory));
        } else if flags.contains(ReadFlags::CREATE) {
            self.created(&path, directory);
        } else if flags.contains(ReadFlags::MODIFY) {
            self.event(Kind::Modified, &path, directory);
        } else if flags.contains(ReadFlags::DELETE) {
            self.event(Kind::Removed, &path, directory);
        } else if flags.contains(ReadFlags::ATTRIB) {
            // A directory below is seen twice, from its parent and from itself; a file that is unlinked
            // changes its count of links first.
            if name.is_some() || path == root && at::lstat(&path).is_ok() {
                self.event(Kind::Attributes, &path, directory);
            }
        } else if path == root && flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) {
            self.event(Kind::Removed, &path, directory);
            self.directories.clear();
        }
    }

    fn created(&mut self, path: &Path, directory: bool) {
        self.event(Kind::Created, path, directory);
        if directory && self.recursive {
            let _ = self.add(path, true);
        }
    }

    fn moved_to(&mut self, cookie: u32, path: PathBuf, directory: bool) {
        match self.moving.take() {
            Some((pending, from, _)) if pending == cookie => {
                for watched in self.directories.values_mut() {
                    if let Ok(rest) = watched.strip_prefix(&from) {
                        *watched = if rest.as_os_str().is_empty() {
                            path.clone()
                        } else {
                            path.join(rest)
                        };
                    }
                }
                self.ready.push(WatchEvent {
                    kind: Kind::Moved.into(),
                    path: bytes(&from),
                    new_path: bytes(&path),
                    directory,
                });
            }
            other => {
                self.moving = other;
                self.settle_move();
                self.created(&path, directory);
            }
        }
    }

    /// The other half did not come: it moved out of what is watched.
    fn settle_move(&mut self) {
        if let Some((_, path, directory)) = self.moving.take() {
            self.event(Kind::Removed, &path, directory);
            let gone: Vec<i32> = self
                .directories
                .iter()
                .filter(|(_, watched)| watched.starts_with(&path))
                .map(|(number, _)| *number)
                .collect();
            for number in gone {
                let _ = inotify::remove_watch(self.notifier.as_ref(), number);
                self.directories.remove(&number);
            }
        }
    }
}
