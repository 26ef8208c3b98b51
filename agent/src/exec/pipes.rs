//! The three descriptors of a program, and what is written to its stdin at the start.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::pipe::PipeFlags;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::errors::{Context, Result};
use crate::exec::record::Record;

const PIPE_BYTES: usize = 256 * 1024;

pub fn open_null() -> std::io::Result<OwnedFd> {
    std::fs::File::open("/dev/null")
        .map(OwnedFd::from)
        .or_else(|_| {
            // A root file system without devices: the reading end of a pipe that nobody writes to.
            let (read, _) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            Ok(read)
        })
}

/// Our end, which does not block, and the program's, which does.
pub fn output_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).at("pipe")?;
    rustix::io::ioctl_fionbio(&read, true).at("pipe")?;
    // A larger pipe is only faster: at the per-user limit the default does.
    let _ = rustix::pipe::fcntl_setpipe_size(&read, PIPE_BYTES);
    Ok((read, write))
}

pub fn stdin_pipe() -> Result<(OwnedFd, pipe::Sender)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).at("pipe")?;
    rustix::io::ioctl_fionbio(&write, true).at("pipe")?;
    Ok((read, pipe::Sender::from_owned_fd(write).at("pipe")?))
}

/// Writes the request's stdin. Where the stream stays open, its lock is held until that is done, so that
/// WriteStdin comes after it.
pub fn feed(
    record: &Arc<Record>,
    data: Bytes,
    fed: Option<pipe::Sender>,
    mut ended: watch::Receiver<bool>,
) {
    if let Some(mut sender) = fed {
        tokio::spawn(async move {
            tokio::select! {
                _ = sender.write_all(&data) => {}
                _ = ended.wait_for(|ended| *ended) => {}
            }
        });
        return;
    }
    if data.is_empty() || record.stdin.is_none() {
        return;
    }
    let record = record.clone();
    tokio::spawn(async move {
        let Some(stdin) = &record.stdin else { return };
        let mut sender = stdin.lock().await;
        if let Some(pipe) = sender.as_mut() {
            tokio::select! {
                _ = pipe.write_all(&data) => {}
                _ = ended.wait_for(|ended| *ended) => {}
            }
        }
    });
}
