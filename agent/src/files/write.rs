//! WriteFile. A replacement is written beside its target and renamed over it when it is whole, so a broken
//! upload changes nothing.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat};

use crate::errors::{Code, Context, Result, fail};
use crate::files::{at, directory, info, read::open_regular, show};
use crate::pb::write_file_header::Mode as WriteMode;
use crate::pb::{FileInfo, FileKind, WriteFileHeader};
use crate::upload::{Part, Parts, broke_off};
use crate::users::Users;

const MAX_LINKS: usize = 40;

pub fn write(header: &WriteFileHeader, mut parts: Parts, users: &Users) -> Result<FileInfo> {
    let path = crate::files::path(&header.path)?;
    let mut target = Target::open(header, &path, users)?;
    loop {
        match parts.blocking_recv() {
            Some(Part::Data(data)) => target.file.write_all(&data).at(show(&path))?,
            Some(Part::End) => break,
            None => return Err(broke_off()).at(show(&path)),
        }
    }
    target.commit(header.sync)?;
    info::of_path(&path, false, users)
}

struct Target {
    file: File,
    path: PathBuf,
    temporary: Option<PathBuf>,
    create_new: bool,
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = at::remove(temporary, AtFlags::empty());
        }
    }
}

impl Target {
    fn open(header: &WriteFileHeader, asked: &Path, users: &Users) -> Result<Target> {
        if header.permissions.is_some_and(|mode| mode > 0o7777) {
            return Err(fail(Code::InvalidArgument, "permissions are at most 07777"));
        }
        let (uid, gid) = users.owner(&header.owner)?;
        let path = if header.mode() == WriteMode::CreateNew {
            asked.to_owned()
        } else {
            resolve(asked)?
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        if header.make_parents {
            directory::make_all(parent, 0o755, (uid, gid))?;
        }
        if path.file_name().is_none() {
            return Err(fail(
                Code::IsADirectory,
                format!("{} is a directory", show(asked)),
            ));
        }
        let old = at::lstat(&path).ok();
        if let Some(old) = &old {
            match (header.mode(), info::kind(old)) {
                (WriteMode::CreateNew, _) => {
                    return Err(fail(Code::FileExists, format!("{} exists", show(asked))));
                }
                (_, FileKind::File) => {}
                (_, FileKind::Directory) => {
                    return Err(fail(
                        Code::IsADirectory,
                        format!("{} is a directory", show(asked)),
                    ));
                }
                _ => {
                    let message = format!("{} is not a regular file", show(asked));
                    return Err(fail(Code::FileKindRefused, message));
                }
            }
        }
        let replace = matches!(header.mode(), WriteMode::Replace | WriteMode::CreateNew);
        let mut target = if replace {
            let temporary = parent.join(format!(".roost-{:016x}", random()?));
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(at::open(&temporary, flags, Mode::from(0o600)).at(show(&path))?);
            let create_new = header.mode() == WriteMode::CreateNew;
            Target {
                file,
                path,
                temporary: Some(temporary),
                create_new,
            }
        } else {
            let mut flags = OFlags::WRONLY | OFlags::CREATE;
            if header.mode() == WriteMode::Append {
                flags |= OFlags::APPEND;
            }
            let file = open_regular(&path, flags, Mode::from(0o644))?;
            Target {
                file,
                path,
                temporary: None,
                create_new: false,
            }
        };
        if header.mode() == WriteMode::AtOffset {
            if i64::try_from(header.offset).is_err() {
                return Err(fail(Code::InvalidArgument, "the offset is too large"));
            }
            target
                .file
                .seek(SeekFrom::Start(header.offset))
                .at(show(&target.path))?;
        } else if header.offset != 0 {
            return Err(fail(
                Code::InvalidArgument,
                "an offset needs MODE_AT_OFFSET",
            ));
        }
        target.dress(old.as_ref(), header.permissions, (uid, gid))?;
        Ok(target)
    }

    /// Mode and owner: as asked, else as the old file's, else 0644 and the agent's own.
    fn dress(
        &mut self,
        old: Option<&rustix::fs::Stat>,
        permissions: Option<u32>,
        owner: (Option<u32>, Option<u32>),
    ) -> Result<()> {
        let now = fstat(&self.file).at(show(&self.path))?;
        let uid = owner
            .0
            .or(old.map(|old| old.st_uid))
            .filter(|&uid| uid != now.st_uid);
        let gid = owner
            .1
            .or(old.map(|old| old.st_gid))
            .filter(|&gid| gid != now.st_gid);
        if uid.is_some() || gid.is_some() {
            let changed = fchown(&self.file, uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            // Without root a file of another owner can be replaced but not given back to that owner.
            if owner != (None, None) || changed.is_err() && rustix::process::geteuid().is_root() {
                changed.at(show(&self.path))?;
            }
        }
        let mode = permissions.unwrap_or(old.map_or(0o644, |old| old.st_mode & 0o7777));
        if permissions.is_some() || self.temporary.is_some() || old.is_none() {
            fchmod(&self.file, Mode::from(mode)).at(show(&self.path))?;
        }
        Ok(())
    }

    fn commit(mut self, sync: bool) -> Result<()> {
        if sync {
            self.file.sync_all().at(show(&self.path))?;
        }
        if let Some(temporary) = &self.temporary {
            let moved = if self.create_new {
                move_new(temporary, &self.path)
            } else {
                at::rename(temporary, &self.path)
            };
            match moved {
                Ok(()) => self.temporary = None,
                // A mount point, as /etc/resolv.conf is in many containers, can only be written in place.
                Err(rustix::io::Errno::BUSY) if !self.create_new => {
                    let source = at::open(temporary, OFlags::RDONLY, Mode::empty());
                    let mut source = File::from(source.at(show(&self.path))?);
                    let flags = OFlags::WRONLY | OFlags::TRUNC;
                    let mut file = open_regular(&self.path, flags, Mode::empty())?;
                    std::io::copy(&mut source, &mut file).at(show(&self.path))?;
                }
                Err(error) => return Err(error).at(show(&self.path)),
            }
        }
        if sync {
            let parent = self.path.parent().unwrap_or(Path::new("/"));
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let directory = at::open(parent, flags, Mode::empty()).at(show(parent))?;
            rustix::fs::fsync(&directory).at(show(parent))?;
        }
        Ok(())
    }
}

/// A rename that refuses an existing target, also where the file system cannot do that in one step.
pub fn move_new(from: &Path, to: &Path) -> rustix::io::Result<()> {
    use rustix::io::Errno;
    match at::rename_new(from, to) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        other => return other,
    }
    match at::link(from, to) {
        Ok(()) => at::remove(from, AtFlags::empty()),
        Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP) => {
            if at::lstat(to).is_ok() {
                return Err(Errno::EXIST);
            }
            at::rename(from, to)
        }
        Err(error) => Err(error),
    }
}

/// Where a path's last component leads through symlinks: the file to be replaced, which may not exist yet.
fn resolve(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match at::lstat(&path) {
            Ok(stat) if info::kind(&stat) == FileKind::Symlink => {
                use std::os::unix::ffi::OsStrExt;
                let target = at::read_link(&path).at(show(&path))?;
                let target = Path::new(std::ffi::OsStr::from_bytes(target.as_bytes())).to_owned();
                path = path.parent().unwrap_or(Path::new("/")).join(target);
            }
            _ => return Ok(path),
        }
    }
    Err(fail(
        Code::InvalidPath,
        format!("{}: too many symbolic links", show(&path)),
    ))
}

pub fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).at("getrandom")?;
    Ok(u64::from_ne_bytes(bytes))
}
