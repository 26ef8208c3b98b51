//! What a reader of an execution's output gets.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::errors::{Code, Result, fail};
use crate::exec::record::Record;
use crate::limits;
use crate::output::Reader;
use crate::pb;
use crate::sync::lock;

/// Replays from the offsets, then follows, then the frame with `exit`.
pub fn attach(
    record: Arc<Record>,
    request: &pb::AttachRequest,
) -> Result<mpsc::Receiver<Result<pb::OutputFrame>>> {
    use pb::output_frame::Stream;
    let offsets = [
        (&record.stdout, request.stdout_offset, Stream::Stdout),
        (&record.stderr, request.stderr_offset, Stream::Stderr),
    ];
    if offsets
        .iter()
        .any(|(output, offset, _)| *offset > output.total())
    {
        return Err(fail(
            Code::InvalidArgument,
            "the offset lies beyond the output so far",
        ));
    }
    let mut readers = offsets
        .map(|(output, offset, stream)| (Reader::new(output, offset, request.lossless), stream));
    if request.lossless {
        lock(&record.awaited).take();
    }
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        let mut state = record.state.subscribe();
        loop {
            let (out, err) = (record.stdout.clone(), record.stderr.clone());
            let mut grown = (
                std::pin::pin!(out.notified()),
                std::pin::pin!(err.notified()),
            );
            grown.0.as_mut().enable();
            grown.1.as_mut().enable();
            state.mark_unchanged();
            // Looked at before the rings: then the frames below are all there will be.
            let settled = record.is_settled();
            let mut idle = true;
            for (reader, stream) in &mut readers {
                if let Some(frame) = reader.next(limits::FRAME_BYTES) {
                    idle = false;
                    let frame = pb::OutputFrame {
                        stream: (*stream).into(),
                        offset: frame.offset,
                        data: frame.data,
                        dropped: frame.dropped,
                        exit: None,
                    };
                    if sender.send(Ok(frame)).await.is_err() {
                        return;
                    }
                }
            }
            if !idle {
                continue;
            }
            if settled {
                let exit = Some(record.describe());
                let _ = sender
                    .send(Ok(pb::OutputFrame {
                        exit,
                        ..Default::default()
                    }))
                    .await;
                return;
            }
            tokio::select! {
                () = grown.0 => {}
                () = grown.1 => {}
                _ = state.changed() => {}
                () = sender.closed() => return,
            }
        }
    });
    Ok(receiver)
}
