//! A registration is emptied before it is taken out of an epoll instance.
//!
//! gVisor (20240729) saves registrations that were taken out along with those that were not, and an instance
//! that is restored reports them once more. What the runtime registers with are addresses, freed by then: the
//! agent of about every sixth restored machine hung on a lock it found in such memory, its listener open and
//! deaf. What is reported of an empty registration is what the runtime's own wake-up says: nothing.
//!
//! The runtime deregisters deep in its drop code, so this stands in for the C library's function, which is
//! linked statically and so is replaced for the whole program.

use libc::{c_int, epoll_event};

/// What the runtime registers its own waker with, and looks no further at.
const NOBODY: u64 = 0;

/// As epoll_ctl(2).
///
/// # Safety
///
/// As for the system call: `event` is null or points to an `epoll_event`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_ctl(
    instance: c_int,
    operation: c_int,
    descriptor: c_int,
    event: *mut epoll_event,
) -> c_int {
    if operation == libc::EPOLL_CTL_DEL {
        // Errors and hang-ups are reported unasked: edge-triggered and once, or nothing would ever take them.
        let mut empty = epoll_event {
            events: (libc::EPOLLET | libc::EPOLLONESHOT) as u32,
            u64: NOBODY,
        };
        // Where nothing is registered this fails as the removal will, which tells of it.
        // SAFETY: the event is ours.
        unsafe { control(instance, libc::EPOLL_CTL_MOD, descriptor, &raw mut empty) };
    }
    // SAFETY: the caller's promise.
    unsafe { control(instance, operation, descriptor, event) }
}

unsafe fn control(
    instance: c_int,
    operation: c_int,
    descriptor: c_int,
    event: *mut epoll_event,
) -> c_int {
    // SAFETY: the caller's promise. Failures are -1 and errno, as the C library's function has them.
    unsafe { libc::syscall(libc::SYS_epoll_ctl, instance, operation, descriptor, event) as c_int }
}

#[cfg(test)]
mod tests {
    type Control = unsafe extern "C" fn(i32, i32, i32, *mut libc::epoll_event) -> i32;

    /// What was registered between the two calls of a removal nobody can see on Linux. The restores of
    /// tests/system/host/test_captures.py do; here it is only whether the runtime calls this function.
    #[test]
    fn it_stands_in_for_the_c_librarys() {
        let called: Control = libc::epoll_ctl;
        let ours: Control = super::epoll_ctl;
        assert!(std::ptr::fn_addr_eq(called, ours));
    }
}
