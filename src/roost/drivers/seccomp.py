"""The system calls that machines on the host's kernel may make: denied unless listed.

Left out on purpose: loading code into the kernel or watching it (modules, bpf, perf, kexec), new mounts
and namespaces, the clock, swap, quotas, accounting, keyrings, io_uring, userfaultfd, handles to files by
number, and sockets other than unix, IP, and netlink for routes and sockets: its other protocols tell of
the host's devices (uevent, connector) or write to its audit log. Pairs of sockets are unix's alone: of any
other family the kernel loads the module and makes the sockets before it asks whether that has pairs.
Arguments that lie in memory no filter sees: so there is no socketcall, which 64-bit systems do without.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

_EPERM = 1
_ENOSYS = 38
_CLONE_NEW = 0x7E020000  # every CLONE_NEW* flag of clone(2)
_EPROTONOSUPPORT = 93
_AF_UNIX = 1
_FAMILIES = (_AF_UNIX, 2, 10)  # and AF_INET, AF_INET6
_AF_NETLINK = 16
_NETLINK = (0, 4)  # NETLINK_ROUTE, NETLINK_SOCK_DIAG
_NETLINK_AUDIT = 9
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

_ARCHES = {
    "x86_64": ["SCMP_ARCH_X86_64"],
    "aarch64": ["SCMP_ARCH_AARCH64"],
}

_ALLOWED = """
accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown
chown32 chroot clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range
creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl
fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64
fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
futex_waitv futex_wake futimesat get_mempolicy get_robust_list get_thread_area getcpu getcwd
getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32
getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid
getuid32 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel
io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get
ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown
lchown32 lgetxattr link linkat listen listxattr llistxattr _llseek lremovexattr lseek lsetxattr
lstat lstat64 madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore mkdir
mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect mq_getsetattr mq_notify
mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap
msgctl msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep newfstatat _newselect open
openat openat2 pause pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_madvise
process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64
pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64
recvmsg remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64
send sendfile sendfile64 sendmmsg sendmsg sendto set_mempolicy set_robust_list set_thread_area
set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
sethostname setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr shmat shmctl
shmdt shmget shutdown sigaltstack signalfd signalfd4 sigpending sigprocmask sigreturn splice stat
stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range sync_file_range2 syncfs
sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat utime
utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
"""
ALLOWED = _ALLOWED.split()

# What only root of a machine has a use for, and what reads or steers other processes: debuggers do without.
_OF_ROOT = """
adjtimex chroot clock_adjtime clock_adjtime64 memfd_secret modify_ldt pidfd_getfd process_madvise
process_mrelease process_vm_readv process_vm_writev ptrace sethostname setgroups setgroups32
"""
ALLOWED_WITHOUT_ROOT = [name for name in ALLOWED if name not in _OF_ROOT.split()]


def profile(allowed: Sequence[str] = ALLOWED) -> dict[str, Any]:
    """For ``linux.seccomp`` of an OCI bundle."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": _ARCHES.get(platform.machine(), []),
        "syscalls": [
            {"names": list(allowed), "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ALLOW",
                "args": [
                    {"index": 0, "value": _CLONE_NEW, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
                ],
            },
            # Its flags lie in memory, where no filter sees them; libc falls back to clone.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
            *(
                {
                    "names": ["socket"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": family, "op": "SCMP_CMP_EQ"}],
                }
                for family in _FAMILIES
            ),
            {
                "names": ["socketpair"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": _AF_UNIX, "op": "SCMP_CMP_EQ"}],
            },
            *(_netlink(protocol, "SCMP_ACT_ALLOW") for protocol in _NETLINK),
            # useradd and their like give up on any other error than that of a kernel without auditing.
            _netlink(_NETLINK_AUDIT, "SCMP_ACT_ERRNO") | {"errnoRet": _EPROTONOSUPPORT},
            *(
                {
                    "names": ["personality"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}],
                }
                for value in _PERSONALITIES
            ),
        ],
    }


def _netlink(protocol: int, action: str) -> dict[str, Any]:
    return {
        "names": ["socket"],
        "action": action,
        "args": [
            {"index": 0, "value": _AF_NETLINK, "op": "SCMP_CMP_EQ"},
            {"index": 2, "value": protocol, "op": "SCMP_CMP_EQ"},
        ],
    }
