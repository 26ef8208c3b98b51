//! Uploads: a stream of messages of which the first has the header and the last says that it is the end.
//!
//! A stream that ends without that was broken off: to the HTTP library a caller that cancels looks like one that
//! is done.

use std::io;

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::errors::{Code, Result, fail};
use crate::pb;

/// Messages that wait for the work; beyond them the caller waits.
const AHEAD: usize = 4;

pub enum Part {
    Data(Bytes),
    /// The upload is whole. Without it the end of the channel means that it broke off.
    End,
}

pub type Parts = mpsc::Receiver<Part>;

/// What an upload without its end is to who reads it: INVALID_STATE.
pub fn broke_off() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the upload broke off")
}

/// A message of an upload.
pub trait Chunk: Send + 'static {
    type Header: Send + 'static;

    fn into_parts(self) -> (Option<Self::Header>, Bytes, bool);
}

impl Chunk for pb::WriteFileChunk {
    type Header = pb::WriteFileHeader;

    fn into_parts(self) -> (Option<Self::Header>, Bytes, bool) {
        (self.header, self.data, self.end)
    }
}

impl Chunk for pb::TarInChunk {
    type Header = pb::TarInHeader;

    fn into_parts(self) -> (Option<Self::Header>, Bytes, bool) {
        (self.header, self.data, self.end)
    }
}

/// The header, the parts that follow it, and what brings them while it is polled.
pub async fn open<C: Chunk>(
    mut messages: Streaming<C>,
) -> Result<(C::Header, Parts, impl Future<Output = ()>)> {
    let first = messages.message().await?.map(C::into_parts);
    let Some((Some(header), mut data, mut end)) = first else {
        let message = "the first message must have the header";
        return Err(fail(Code::InvalidArgument, message));
    };
    let (sender, parts) = mpsc::channel(AHEAD);
    let bring = async move {
        loop {
            if !data.is_empty() && sender.send(Part::Data(data)).await.is_err() {
                return; // The work has failed, and says why.
            }
            if end {
                break;
            }
            match messages.message().await {
                Ok(Some(message)) => (_, data, end) = message.into_parts(),
                _ => return,
            }
        }
        let _ = sender.send(Part::End).await;
        // The caller ends its side as well; until then it must not be cut off.
        while let Ok(Some(_)) = messages.message().await {}
    };
    Ok((header, parts, bring))
}
