//! Two small things that everything shares.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};

use tokio::io::unix::AsyncFd;

/// Locks; a panic elsewhere must not make a table unusable.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A descriptor in non-blocking mode, with its readiness.
pub fn async_fd(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd has one descriptor for as long as it lives and closes it only when it is dropped,
    // after AsyncFd has deregistered it.
    unsafe { AsyncFd::register(descriptor) }.map_err(Into::into)
}
