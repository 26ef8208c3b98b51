//! Trees as uncompressed pax archives, streamed both ways.

pub mod format;
pub mod pack;
pub mod unpack;
