//! Gives memory back to the kernel after work that took much of it, once things are quiet: an idle machine
//! should cost little, and a busy one should not pay for that.

use std::time::Duration;

use tokio::sync::Notify;

const QUIET: Duration = Duration::from_secs(3);

static USED: Notify = Notify::const_new();

/// Called where much memory may just have been let go.
pub fn used() {
    USED.notify_one();
}

/// Does nothing, and wakes nobody, on an idle machine.
pub async fn give_back() {
    loop {
        USED.notified().await;
        tokio::time::sleep(QUIET).await;
        // SAFETY: a call into the allocator without pointers.
        unsafe { libc::malloc_trim(0) };
    }
}
