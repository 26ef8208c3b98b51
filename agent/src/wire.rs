//! What the agent, the zygote and the supervisors say to each other over their socket pairs.
//!
//! Agent to supervisor: a kind byte, a length, a payload; the three descriptors of a launch ride on the
//! first byte. Supervisor and zygote to agent: fixed records of 16 bytes.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

pub const LAUNCH: u8 = 1;
pub const SIGNAL: u8 = 2;
pub const KILL_TREE: u8 = 3;
pub const HEADER: usize = 5;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Launch {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value`.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub env: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "3")]
    pub cwd: Vec<u8>,
    /// Where `cwd` cannot be entered, `/` will do.
    #[prost(bool, tag = "4")]
    pub cwd_optional: bool,
    /// The files to try in turn, as a search along PATH.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub files: Vec<Vec<u8>>,
    #[prost(message, optional, tag = "6")]
    pub credentials: Option<Credentials>,
    /// Descriptor 0 is a terminal to become the controlling one.
    #[prost(bool, tag = "7")]
    pub terminal: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Credentials {
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    #[prost(uint32, tag = "2")]
    pub gid: u32,
    #[prost(uint32, repeated, tag = "3")]
    pub groups: Vec<u32>,
}

/// The step at which a launch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Clone = 1,
    Terminal = 2,
    Credentials = 3,
    Directory = 4,
    Execute = 5,
}

impl Step {
    fn from(number: i32) -> Step {
        match number {
            2 => Step::Terminal,
            3 => Step::Credentials,
            4 => Step::Directory,
            5 => Step::Execute,
            _ => Step::Clone,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Launched {
        pid: i32,
    },
    Failed {
        step: Step,
        errno: i32,
    },
    /// The leader's wait status; `empty` when nothing it started lives.
    Exited {
        status: i32,
        empty: bool,
    },
    Empty,
    Signalled {
        count: i32,
    },
    /// From the zygote: the supervisor whose socket rides on this record.
    Supervisor {
        pid: i32,
    },
}

pub const EVENT: usize = 16;

impl Event {
    pub fn encode(self) -> [u8; EVENT] {
        let fields = match self {
            Event::Launched { pid } => [1, pid, 0],
            Event::Failed { step, errno } => [2, step as i32, errno],
            Event::Exited { status, empty } => [3, status, empty as i32],
            Event::Empty => [4, 0, 0],
            Event::Signalled { count } => [5, count, 0],
            Event::Supervisor { pid } => [6, pid, 0],
        };
        let mut bytes = [0; EVENT];
        for (slot, field) in bytes.chunks_exact_mut(4).zip(fields) {
            slot.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }

    pub fn decode(bytes: &[u8; EVENT]) -> io::Result<Event> {
        let field = |index: usize| {
            i32::from_ne_bytes([
                bytes[index * 4],
                bytes[index * 4 + 1],
                bytes[index * 4 + 2],
                bytes[index * 4 + 3],
            ])
        };
        Ok(match field(0) {
            1 => Event::Launched { pid: field(1) },
            2 => Event::Failed {
                step: Step::from(field(1)),
                errno: field(2),
            },
            3 => Event::Exited {
                status: field(1),
                empty: field(2) != 0,
            },
            4 => Event::Empty,
            5 => Event::Signalled { count: field(1) },
            6 => Event::Supervisor { pid: field(1) },
            _ => return Err(io::ErrorKind::InvalidData.into()),
        })
    }
}

pub fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let length = (length as u32).to_ne_bytes();
    [kind, length[0], length[1], length[2], length[3]]
}

pub fn signal_payload(signal: i32, tree: bool) -> [u8; 8] {
    let mut payload = [0; 8];
    payload[..4].copy_from_slice(&signal.to_ne_bytes());
    payload[4] = tree as u8;
    payload
}

pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL;
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        flags,
    )?)
}

/// Reads some bytes and whatever descriptors come with them. 0 is the end of the stream.
pub fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(bytes)];
    let got = recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok(got.bytes)
}

/// `receive` until the buffer is full; `false` at a clean end of the stream.
pub fn receive_exact(
    socket: impl AsFd,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<bool> {
    let mut filled = 0;
    while filled < bytes.len() {
        match receive(socket.as_fd(), &mut bytes[filled..], descriptors) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
