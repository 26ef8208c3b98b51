//! Trees as pax archives, streamed both ways, and the layers of OCI images.

pub mod decode;
pub mod format;
pub mod layer;
pub mod pack;
pub mod unpack;
