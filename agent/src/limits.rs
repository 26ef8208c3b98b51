//! The bounds of the contract, told to the daemon in Hello.

use crate::errors::{Code, Result, fail};
use crate::pb;

pub const MESSAGE_BYTES: usize = 4 << 20;
/// What of a message is left for output beside the record (whose argv may be long) and the framing.
pub const RESULT_BYTES: usize = 3 << 20;
/// Of a command as it is told again.
pub const ARGV_BYTES: usize = 64 << 10;
pub const LISTED_ARGV_BYTES: usize = 1 << 10;
pub const RING_BYTES: u64 = 8 << 20;
pub const DEFAULT_RING_BYTES: u64 = 1 << 20;
/// How long an execution can be told to wait for its first reader.
pub const AWAIT_READER_MS: u64 = 60_000;
pub const FRAME_BYTES: usize = 256 << 10;
pub const SCROLLBACK_BYTES: usize = 256 << 10;
pub const EXECUTIONS: usize = 1024;
pub const TERMINALS: usize = 64;
pub const WATCHES: usize = 64;
/// Output of finished executions kept in all; the oldest records go first.
pub const REMEMBERED_BYTES: usize = 64 << 20;
pub const CONNECTIONS: usize = 128;
pub const STREAMS: u32 = 1024;

pub fn limits() -> pb::Limits {
    pb::Limits {
        message_bytes: MESSAGE_BYTES as u64,
        ring_bytes: RING_BYTES,
        scrollback_bytes: SCROLLBACK_BYTES as u64,
        executions: EXECUTIONS as u32,
        terminals: TERMINALS as u32,
        watches: WATCHES as u32,
    }
}

/// Ids are chosen by the daemon: `[a-z0-9]{1,64}`.
pub fn check_id(id: &str) -> Result<()> {
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if (1..=64).contains(&id.len()) && id.bytes().all(valid) {
        Ok(())
    } else {
        Err(fail(
            Code::InvalidArgument,
            "an id is 1 to 64 of a-z and 0-9",
        ))
    }
}
