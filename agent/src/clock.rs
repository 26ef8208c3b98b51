//! The machine's clock and its random numbers, set right after a restore.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::errors::{Code, Context, Result, fail};
use crate::pb::{ReseedReply, ReseedRequest, SetClockReply, SetClockRequest};

const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
const MAX_ENTROPY: usize = 512;

pub fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}

pub fn now() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec as i64)
}

/// Only the first process of a machine tries: an agent started as an ordinary process shares its host's
/// clock, which is not its to set.
pub fn set(request: &SetClockRequest) -> Result<SetClockReply> {
    if request.unix_ns <= 0 {
        return Err(fail(Code::InvalidArgument, "a time before 1970"));
    }
    let before = now();
    let time = Timespec {
        tv_sec: request.unix_ns / 1_000_000_000,
        tv_nsec: (request.unix_ns % 1_000_000_000) as _,
    };
    let own_clock = std::process::id() == 1;
    let changed = own_clock && clock_settime(ClockId::Realtime, time).is_ok();
    Ok(SetClockReply {
        before_unix_ns: before,
        changed,
    })
}

#[repr(C)]
struct Entropy {
    bits: i32,
    size: i32,
    bytes: [u8; MAX_ENTROPY],
}

pub fn reseed(request: &ReseedRequest) -> Result<ReseedReply> {
    let given = &request.entropy;
    if !(32..=MAX_ENTROPY).contains(&given.len()) {
        return Err(fail(Code::InvalidArgument, "entropy is 32 to 512 bytes"));
    }
    let mut pool = OpenOptions::new()
        .write(true)
        .open("/dev/urandom")
        .at("/dev/urandom")?;
    let mut entropy = Entropy {
        bits: given.len() as i32 * 8,
        size: given.len() as i32,
        bytes: [0; MAX_ENTROPY],
    };
    entropy.bytes[..given.len()].copy_from_slice(given);
    // SAFETY: RNDADDENTROPY reads a rand_pool_info, which `Entropy` is; RNDRESEEDCRNG takes no argument.
    let kernel_reseeded = unsafe {
        libc::ioctl(pool.as_raw_fd(), RNDADDENTROPY as _, &raw const entropy) == 0
            && libc::ioctl(pool.as_raw_fd(), RNDRESEEDCRNG as _, 0) == 0
    };
    if !kernel_reseeded {
        pool.write_all(given).at("/dev/urandom")?;
    }
    Ok(ReseedReply { kernel_reseeded })
}
