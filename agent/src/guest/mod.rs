//! The agent as a virtual machine's init: from the initial RAM disk to any root image, whatever is in it.
//!
//! ```text
//!   kernel -> /init -> /proc /sys /dev -> modules in order -> root disk -> its modules image -> pivot
//!          -> /dev/pts /dev/shm /run cgroups -> eth0, name -> serve the contract on the virtio port
//! ```
//!
//! Nothing is read from the image and nothing of it runs. What fails here ends the boot: init's exit makes the
//! kernel panic, its message is the console's last line, and the machine monitor ends.
//!
//! **The token.** A guest begins with `FIRST_TOKEN`, which is no secret. The port is the monitor's on one
//! side; on the other only root may open it, and only while the agent does not, and there is no listener
//! besides. A token in the kernel's command line or on a disk would be one that the guest's users can read
//! and all restored siblings share. The daemon's first call, after a boot or a restore, is RenewIdentity with
//! a token that only this machine has; from then on a stream that happens to hold the first token's preamble
//! cannot cut a connection.

mod modules;
mod mounts;
mod network;
pub mod parameters;
mod port;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::listen::Address;
use parameters::Parameters;

/// Of every guest's agent until RenewIdentity gives it its own; `roost.guest` has the same.
pub const FIRST_TOKEN: &[u8] = b"roost-guest";

/// The kernel runs the RAM disk's `/init` by that name.
const NAME: &[u8] = b"/init";

const OPEN_FILES: u64 = 65_536;

static IS_INIT: AtomicBool = AtomicBool::new(false);

/// Whether a kernel started this process as its init, not a container runtime.
pub fn started_as_init() -> bool {
    let name = std::env::args_os().next();
    std::process::id() == 1 && name.is_some_and(|name| name.as_bytes() == NAME)
}

/// Brings the machine up; returns where to listen. Must be called while the process has one thread.
pub fn boot() -> Result<Address, String> {
    IS_INIT.store(true, Ordering::Relaxed);
    allow_open_files();
    mounts::kernel().map_err(|error| format!("/proc, /sys, /dev: {error}"))?;
    end_rather_than_thrash();
    let line = fs::read_to_string("/proc/cmdline").map_err(|error| format!("cmdline: {error}"))?;
    let parameters = Parameters::parse(&line)?;
    modules::load_all()?;
    let kernel = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    mounts::switch_root(&parameters, &kernel)?;
    network::up(&parameters)?;
    // Until RenewIdentity gives it one of its own.
    let _ = rustix::system::sethostname(b"localhost");
    port::find().map(Address::Serial)
}

/// The kernel gives its init few; what runs inside gets as many as in a container.
fn allow_open_files() {
    let limit = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(OPEN_FILES),
    };
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Where memory is too small for all that runs, the kernel would go on for minutes fetching the same pages from the disk
/// again and again, and nobody, ourselves included, would get anywhere. With this it ends something as soon as what was
/// used within this time does not fit. Source: the kernel's `admin-guide/mm/multigen_lru`, "Thrashing prevention"; kernels
/// before 6.1 have none.
fn end_rather_than_thrash() {
    let _ = fs::write("/sys/kernel/mm/lru_gen/enabled", "y");
    let _ = fs::write("/sys/kernel/mm/lru_gen/min_ttl_ms", "1000");
}

/// Everything on the disk, before the power goes.
pub fn settle_disk() {
    if IS_INIT.load(Ordering::Relaxed) {
        mounts::make_read_only();
    }
}
