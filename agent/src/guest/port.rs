//! The virtio port that leads to the daemon, by its name: device numbers follow what else is plugged in.

use std::fs;
use std::time::{Duration, Instant};

const PORT: &str = "roost.agent";
const CLASS: &str = "/sys/class/virtio-ports";
const WAIT: Duration = Duration::from_secs(5);

/// Its device, once the host has told the kernel of it.
pub fn find() -> Result<String, String> {
    let deadline = Instant::now() + WAIT;
    loop {
        if let Some(device) = named() {
            return Ok(device);
        }
        if Instant::now() > deadline {
            return Err(format!("no virtio port {PORT:?} appeared"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn named() -> Option<String> {
    fs::read_dir(CLASS).ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        let device = format!("/dev/{}", entry.file_name().to_str()?);
        (name.trim_end() == PORT).then_some(device)
    })
}
