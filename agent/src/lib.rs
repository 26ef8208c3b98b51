//! The program inside every Roost machine.
//!
//! ```text
//!   daemon == HTTP/2 over TCP, a unix socket or a byte stream ==> listen, serial, auth
//!                                                                      |
//!                                                                   service   (the contract, proto/)
//!                          +---------------------+---------------------+------------------+
//!                     exec, terminal          files, tar             watch, dial      machine, identity,
//!                          |                 (blocking pool)                          stats, clock
//!                     output, ring
//!                          |
//!                        pool ---- asks for supervisors ----> zygote (a process with one thread)
//!                          |                                    | fork, ahead of need
//!                          +---- launch, signal, kill ----> supervisor (child subreaper)
//!                                                               | clone with shared memory, exec
//!                                                            the program and all it starts
//! ```
//!
//! In a virtual machine it is the kernel's init first: see `guest`. Programs in the machine ask their daemon by a socket
//! of their own: see `inside`.
//!
//! One thread runs all of the agent's tasks; work on files runs on a few more that come and go. Everything
//! that a peer or a program can make grow is bounded: see `limits`. Everything that a program starts stays
//! below the supervisor it was started under, and can be signalled, killed and reaped there.

pub mod auth;
pub mod clock;
pub mod dial;
pub mod epoll;
pub mod errors;
pub mod exec;
pub mod files;
pub mod guest;
pub mod identity;
pub mod inside;
pub mod kill;
pub mod landlock;
pub mod launch;
pub mod limits;
pub mod listen;
pub mod machine;
pub mod memory;
pub mod output;
pub mod pool;
pub mod proctree;
pub mod program;
pub mod ring;
pub mod serial;
pub mod service;
pub mod start;
pub mod stats;
pub mod supervisor;
pub mod sync;
pub mod tar;
pub mod terminal;
pub mod upload;
pub mod users;
pub mod watch;
pub mod wire;
pub mod workspace;
pub mod zygote;

/// The contract, generated from proto/roost/agent/v1/agent.proto.
#[allow(clippy::all, missing_docs)]
pub mod pb {
    tonic::include_proto!("roost.agent.v1");
}
