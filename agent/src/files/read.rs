//! ReadFile: a regular file, or a part of one, in chunks. The length is settled when it is opened.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, fstat};
use tokio::sync::mpsc::Sender;

use crate::errors::{Code, Context, Result, fail};
use crate::files::{at, info, show};
use crate::pb::{FileKind, ReadFileChunk, ReadFileRequest};
use crate::users::Users;

const CHUNK: usize = 1 << 20;
/// Files of /proc and /sys do not tell their size: small ones are read before the length is promised.
const READ_FIRST: u64 = 64 << 10;
const MAX_UNSIZED: u64 = 16 << 20;

/// Opens a regular file without waiting on, or waking, anything else that a path can lead to.
pub fn open_regular(path: &Path, flags: OFlags, mode: Mode) -> Result<File> {
    // Looked at first as well, because to open a device can be to act on it.
    if let Ok(stat) = at::stat(path) {
        refuse_other_kinds(path, &stat)?;
    }
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(at::open(path, flags, mode).at(show(path))?);
    refuse_other_kinds(path, &fstat(&file).at(show(path))?)?;
    Ok(file)
}

fn refuse_other_kinds(path: &Path, stat: &rustix::fs::Stat) -> Result<()> {
    match info::kind(stat) {
        FileKind::File => Ok(()),
        FileKind::Directory => Err(fail(
            Code::IsADirectory,
            format!("{} is a directory", show(path)),
        )),
        _ => Err(fail(
            Code::FileKindRefused,
            format!("{} is not a regular file", show(path)),
        )),
    }
}

/// Sends the chunks; a caller who has gone away ends it.
pub fn read(
    request: &ReadFileRequest,
    users: &Users,
    sender: &Sender<Result<ReadFileChunk>>,
) -> Result<()> {
    let path = crate::files::path(&request.path)?;
    if request.suffix < 0 || (request.suffix > 0 && (request.offset > 0 || request.length > 0)) {
        return Err(fail(
            Code::InvalidArgument,
            "suffix excludes offset and length, and is not negative",
        ));
    }
    let mut file = open_regular(&path, OFlags::RDONLY, Mode::empty())?;
    let stat = fstat(&file).at(show(&path))?;
    let mut size = u64::try_from(stat.st_size).unwrap_or(0);
    let mut whole = None;
    if size <= READ_FIRST {
        let mut data = Vec::with_capacity(size as usize + 1);
        (&mut file)
            .take(MAX_UNSIZED + 1)
            .read_to_end(&mut data)
            .at(show(&path))?;
        if data.len() as u64 > MAX_UNSIZED {
            return Err(fail(
                Code::FileTooLarge,
                format!("{} does not end within 16 MiB", show(&path)),
            ));
        }
        size = data.len() as u64;
        whole = Some(Bytes::from(data));
    }
    let (offset, length) = match request.suffix {
        0 => {
            let offset = request.offset.min(size);
            let rest = size - offset;
            (
                offset,
                if request.length == 0 {
                    rest
                } else {
                    request.length.min(rest)
                },
            )
        }
        suffix => {
            let length = (suffix as u64).min(size);
            (size - length, length)
        }
    };
    let mut facts = info::of_stat(&path, &stat, users);
    facts.size = size;
    let mut chunk = ReadFileChunk {
        info: Some(facts),
        offset,
        length,
        data: Bytes::new(),
    };
    if let Some(whole) = whole {
        let part = whole.slice(offset as usize..(offset + length) as usize);
        let mut parts = part.chunks(CHUNK).map(Bytes::copy_from_slice);
        chunk.data = parts.next().unwrap_or_default();
        for data in parts {
            let full = std::mem::replace(
                &mut chunk,
                ReadFileChunk {
                    data,
                    ..Default::default()
                },
            );
            if sender.blocking_send(Ok(full)).is_err() {
                return Ok(());
            }
        }
        let _ = sender.blocking_send(Ok(chunk));
        return Ok(());
    }
    file.seek(SeekFrom::Start(offset)).at(show(&path))?;
    let mut left = length;
    loop {
        let wanted = left.min(CHUNK as u64);
        let mut data = Vec::with_capacity(wanted as usize);
        (&mut file)
            .take(wanted)
            .read_to_end(&mut data)
            .at(show(&path))?;
        let short = (data.len() as u64) < wanted;
        left -= data.len() as u64;
        chunk.data = data.into();
        if sender
            .blocking_send(Ok(std::mem::take(&mut chunk)))
            .is_err()
        {
            return Ok(());
        }
        if short {
            return Err(fail(
                Code::InvalidState,
                format!("{} shrank while it was read", show(&path)),
            ));
        }
        if left == 0 {
            return Ok(());
        }
    }
}
