//! What an archive is compressed with, undone while it is read: RFC 1952 (any number of members) or RFC 8878 (any
//! number of frames, skippable ones among them), and no more of it than was allowed.

use std::io::{self, BufRead, BufReader, Read};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::pb::Compression;

/// What may come out of anything, however little went in.
const FREE: u64 = 64 << 20;
const BUFFER: usize = 64 << 10;

/// Bounds of what comes out.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub bytes: u64,
    /// So many times what came in; 0: as many as it likes.
    pub ratio: u64,
}

pub struct Decoder<R: Read> {
    inner: Inner<R>,
    bounds: Bounds,
    given: u64,
}

enum Inner<R: Read> {
    Plain(Counted<R>),
    Gzip(Box<MultiGzDecoder<Counted<R>>>),
    Zstd(Box<Frames<R>>),
}

impl<R: Read> Decoder<R> {
    pub fn new(source: R, compression: Compression, bounds: Bounds) -> Decoder<R> {
        let source = Counted {
            source,
            taken: 0,
            failed: None,
        };
        let inner = match compression {
            Compression::None => Inner::Plain(source),
            Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => Inner::Zstd(Box::new(Frames::new(source))),
        };
        Decoder {
            inner,
            bounds,
            given: 0,
        }
    }

    fn taken(&self) -> u64 {
        match &self.inner {
            Inner::Plain(source) => source.taken,
            Inner::Gzip(decoder) => decoder.get_ref().taken,
            Inner::Zstd(frames) => frames.source.get_ref().taken,
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.inner {
            Inner::Plain(source) => source.read(buffer),
            Inner::Gzip(decoder) => decoder
                .read(buffer)
                .map_err(|error| decoder.get_ref().told(error)),
            Inner::Zstd(frames) => frames
                .read(buffer)
                .map_err(|error| frames.source.get_ref().told(error)),
        }?;
        self.given += count as u64;
        if self.given > self.bounds.bytes {
            let bytes = self.bounds.bytes;
            return Err(bomb(format!("it unpacks to more than {bytes} bytes")));
        }
        let ratio = self.bounds.ratio;
        if ratio > 0 && self.given > FREE && self.given > self.taken().saturating_mul(ratio) {
            return Err(bomb(format!(
                "it unpacks to more than {ratio} times its size"
            )));
        }
        Ok(count)
    }
}

fn bomb(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, why)
}

/// Counts what is taken, and remembers a failure that decoders make one of their own of.
struct Counted<R> {
    source: R,
    taken: u64,
    failed: Option<io::ErrorKind>,
}

impl<R> Counted<R> {
    /// A decoder's failure: the source's own where that was first, else that of the data.
    fn told(&self, error: io::Error) -> io::Error {
        let kind = self.failed.unwrap_or(io::ErrorKind::InvalidData);
        io::Error::new(kind, error.to_string())
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let done = self.source.read(buffer);
        match &done {
            Ok(count) => self.taken += *count as u64,
            Err(error) => self.failed = Some(error.kind()),
        }
        done
    }
}

/// Zstandard frames one after another.
struct Frames<R: Read> {
    source: BufReader<Counted<R>>,
    decoder: FrameDecoder,
    within: bool,
}

impl<R: Read> Frames<R> {
    fn new(source: Counted<R>) -> Frames<R> {
        Frames {
            source: BufReader::with_capacity(BUFFER, source),
            decoder: FrameDecoder::new(),
            within: false,
        }
    }

    /// Whether a frame follows; skippable ones are skipped.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
                    if skipped < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.within {
                self.within = self.begin()?;
                if !self.within {
                    return Ok(0);
                }
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(io::Error::other)?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.within = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression as Level, write::GzEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    const ALL: Bounds = Bounds {
        bytes: u64::MAX,
        ratio: 0,
    };

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
        encoder.write_all(data).expect("encode");
        encoder.finish().expect("encode")
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        compress_to_vec(data, CompressionLevel::Fastest)
    }

    fn decode(data: &[u8], compression: Compression, bounds: Bounds) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(data, compression, bounds).read_to_end(&mut out)?;
        Ok(out)
    }

    fn words(count: usize) -> Vec<u8> {
        (0..count)
            .flat_map(|n| format!("{n} ").into_bytes())
            .collect()
    }

    #[test]
    fn what_was_compressed_comes_out() {
        let data = words(300_000);
        let (one, two) = data.split_at(1_000_003);
        let skippable = [&b"\x50\x2a\x4d\x18\x03\0\0\0abc"[..]].concat();
        let cases = [
            (Compression::None, data.clone()),
            (Compression::Gzip, gzip(&data)),
            (Compression::Gzip, [gzip(one), gzip(two)].concat()),
            (Compression::Zstd, zstd(&data)),
            (
                Compression::Zstd,
                [skippable.clone(), zstd(one), skippable, zstd(two)].concat(),
            ),
        ];
        for (compression, encoded) in cases {
            assert!(decode(&encoded, compression, ALL).expect("valid") == data);
        }
    }

    #[test]
    fn damage_is_the_datas() {
        let data = words(10_000);
        for (compression, encoded) in [
            (Compression::Gzip, gzip(&data)),
            (Compression::Zstd, zstd(&data)),
        ] {
            let cut = decode(&encoded[..encoded.len() / 2], compression, ALL);
            assert_eq!(cut.expect_err("cut").kind(), io::ErrorKind::InvalidData);
            let other = decode(b"no such thing at all", compression, ALL);
            assert_eq!(other.expect_err("other").kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_failure_of_the_source_stays_its_own() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionAborted.into())
            }
        }
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mut decoder = Decoder::new(Broken, compression, ALL);
            let failure = decoder.read(&mut [0; 10]).expect_err("broken");
            assert_eq!(failure.kind(), io::ErrorKind::ConnectionAborted);
        }
    }

    #[test]
    fn bombs_do_not_go_off() {
        let zeros = vec![0; 80 << 20];
        for (compression, encoded) in [
            (Compression::Gzip, gzip(&zeros)),
            (Compression::Zstd, zstd(&zeros)),
        ] {
            let ratio = Bounds { ratio: 100, ..ALL };
            let bytes = Bounds {
                bytes: 1 << 20,
                ..ALL
            };
            for bounds in [ratio, bytes] {
                let failure = decode(&encoded, compression, bounds).expect_err("a bomb");
                assert_eq!(failure.kind(), io::ErrorKind::QuotaExceeded);
            }
            assert_eq!(
                decode(&encoded, compression, ALL).expect("allowed").len(),
                zeros.len()
            );
        }
    }
}
