//! What the machine's programs ask of their daemon, and the way there.
//!
//! ```text
//!   program, or the helper `roost` -- HTTP/1.1 + JSON --> /run/roost/socket  (socket, http)
//!                                                              |
//!                                                            Inside   (hub: one link, the requests that wait)
//!                                                              |
//!   daemon == a stream of the contract that it opened ==> InsideRequest, InsideAnswer
//! ```
//!
//! The agent understands nothing of what is asked: it passes on and counts. What a machine may do the daemon decides,
//! by the stream that a request came on.

pub mod helper;
pub mod http;
mod hub;
mod socket;

pub use hub::{Inside, Outcome};
pub use socket::serve;

/// Everything of ours that programs use is here; `/run` is a tmpfs on every rung.
pub const PLACE: &str = "/run/roost";
pub const SOCKET: &str = "/run/roost/socket";

/// Of one request, both told to the daemon in the contract.
pub const PATH_BYTES: usize = 1 << 10;
pub const BODY_BYTES: usize = 16 << 10;
