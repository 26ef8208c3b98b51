//! The archive format: ustar headers with pax records where a value does not fit; GNU long names are read.

use std::io::{self, Read};

use crate::errors::{Code, Context, Result, fail};

pub const BLOCK: usize = 512;
/// Of the records before one entry. No name or link needs more; a lying size is refused here.
const MAX_RECORDS: u64 = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    /// A device, a FIFO, or something newer than this program.
    Other(u8),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: i64,
    /// Extended attributes: name, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

pub fn padding(size: u64) -> usize {
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}

/// The header as it stands in an archive, with a pax header before it where one is needed.
pub fn encode(header: &Header) -> Vec<u8> {
    let mut records = Vec::new();
    let mut note = |key: &str, value: &[u8], fits: bool| {
        if !fits {
            records.extend_from_slice(&record(key.as_bytes(), value));
        }
    };
    note("path", &header.path, header.path.len() <= 100);
    note("linkpath", &header.link, header.link.len() <= 100);
    note(
        "size",
        header.size.to_string().as_bytes(),
        header.size < 1 << 33,
    );
    note(
        "uid",
        header.uid.to_string().as_bytes(),
        header.uid < 1 << 21,
    );
    note(
        "gid",
        header.gid.to_string().as_bytes(),
        header.gid < 1 << 21,
    );
    let mtime_fits = (0..1 << 33).contains(&header.mtime);
    note("mtime", header.mtime.to_string().as_bytes(), mtime_fits);
    for (name, value) in &header.xattrs {
        let key = [XATTR, name].concat();
        records.extend_from_slice(&record(&key, value));
    }
    let mut out = Vec::with_capacity(3 * BLOCK);
    if !records.is_empty() {
        let pax = Header {
            path: b"PaxHeaders/entry".to_vec(),
            link: Vec::new(),
            size: records.len() as u64,
            mode: 0o644,
            xattrs: Vec::new(),
            ..header.clone()
        };
        out.extend_from_slice(&block(&pax, b'x'));
        out.extend_from_slice(&records);
        out.resize(out.len() + padding(records.len() as u64), 0);
    }
    let flag = match header.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::Directory => b'5',
        Kind::Other(flag) => flag,
    };
    out.extend_from_slice(&block(header, flag));
    out
}

/// `LENGTH key=value\n`, the length counting its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn block(header: &Header, flag: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8], most: usize| {
        let count = bytes.len().min(most);
        block[at..at + count].copy_from_slice(&bytes[..count]);
    };
    let octal = |value: u64, digits: usize| {
        let largest = (1 << (3 * digits)) - 1;
        format!("{:0digits$o}", value.min(largest)).into_bytes()
    };
    put(0, &header.path, 100);
    put(100, &octal(header.mode.into(), 7), 7);
    put(108, &octal(header.uid.into(), 7), 7);
    put(116, &octal(header.gid.into(), 7), 7);
    put(124, &octal(header.size, 11), 11);
    put(136, &octal(header.mtime.max(0) as u64, 11), 11);
    put(148, b"        ", 8);
    put(156, &[flag], 1);
    put(157, &header.link, 100);
    put(257, b"ustar\x0000", 8);
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Reads headers one after another; between two of them the caller takes the entry's data.
pub struct Reader<R> {
    pub source: R,
}

impl<R: Read> Reader<R> {
    /// None at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Header>> {
        let mut long_path: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        let mut pax: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        loop {
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            let (mut header, flag) = decode(&block)?;
            match flag {
                b'L' => long_path = Some(until_nul(self.records(header.size)?)),
                b'K' => long_link = Some(until_nul(self.records(header.size)?)),
                b'x' => pax = parse_records(&self.records(header.size)?)?,
                // Global records: nothing that names a place may come from them.
                b'g' => drop(self.records(header.size)?),
                _ => {
                    header.path = long_path.unwrap_or(header.path);
                    header.link = long_link.unwrap_or(header.link);
                    for (key, value) in &pax {
                        apply(&mut header, key, value)?;
                    }
                    // The way of old archives to mark a directory.
                    if header.kind == Kind::File && header.path.ends_with(b"/") {
                        header.kind = Kind::Directory;
                    }
                    if matches!(
                        header.kind,
                        Kind::Directory | Kind::Symlink | Kind::HardLink
                    ) {
                        // Some writers give a link its target's size, with no data following.
                        header.size = 0;
                    }
                    return Ok(Some(header));
                }
            }
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]).at("archive")? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(broken("the archive ends within a header")),
                count => filled += count,
            }
        }
        // The end is two blocks of zeros; the first is enough to know it.
        Ok((block != [0; BLOCK]).then_some(block))
    }

    fn records(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_RECORDS {
            return Err(broken("a name in the archive is too long"));
        }
        let mut data = vec![0; size as usize];
        self.source.read_exact(&mut data).map_err(ended)?;
        self.skip(padding(size) as u64)?;
        Ok(data)
    }

    pub fn skip(&mut self, count: u64) -> Result<()> {
        let skipped =
            io::copy(&mut (&mut self.source).take(count), &mut io::sink()).at("archive")?;
        if skipped < count {
            return Err(broken("the archive ends within an entry"));
        }
        Ok(())
    }
}

pub fn broken(why: &str) -> tonic::Status {
    fail(Code::InvalidArgument, why)
}

fn ended(error: io::Error) -> tonic::Status {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => broken("the archive ends within an entry"),
        _ => crate::errors::io_error(&error, "archive"),
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(
        bytes
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(bytes.len()),
    );
    bytes
}

fn decode(block: &[u8; BLOCK]) -> Result<(Header, u8)> {
    let stored = number(&block[148..156])?;
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    let field: u64 = block[148..156].iter().map(|&byte| u64::from(byte)).sum();
    if stored != sum - field + 8 * u64::from(b' ') {
        return Err(broken("this is not a tar archive, or it is damaged"));
    }
    let mut path = until_nul(block[..100].to_vec());
    let prefix = until_nul(block[345..500].to_vec());
    if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
        path = [prefix.as_slice(), b"/", &path].concat();
    }
    let flag = block[156];
    let kind = match flag {
        b'0' | 0 | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'5' => Kind::Directory,
        other => Kind::Other(other),
    };
    // u32::MAX means "unchanged" to the kernel.
    let id = |bytes: &[u8]| number(bytes).map(|id| id.min(u64::from(u32::MAX - 1)) as u32);
    let header = Header {
        path,
        link: until_nul(block[157..257].to_vec()),
        kind,
        mode: (number(&block[100..108])? & 0o7777) as u32,
        uid: id(&block[108..116])?,
        gid: id(&block[116..124])?,
        size: number(&block[124..136])?,
        mtime: i64::try_from(number(&block[136..148]).unwrap_or(0)).unwrap_or(0),
        xattrs: Vec::new(),
    };
    Ok((header, flag))
}

/// Octal text, or GNU's big-endian binary where the first bit is set. Negative numbers are refused.
fn number(field: &[u8]) -> Result<u64> {
    let bad = || broken("a number in the archive is not valid");
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7f);
        for &byte in &field[1..] {
            value = value.checked_mul(256).ok_or_else(bad)? | u64::from(byte);
        }
        return i64::try_from(value)
            .map(|value| value as u64)
            .map_err(|_| bad());
    }
    let text = field
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default()
        .trim_ascii();
    text.iter().try_fold(0_u64, |value, &byte| match byte {
        b'0'..=b'7' => value
            .checked_mul(8)
            .map(|value| value + u64::from(byte - b'0'))
            .ok_or_else(bad),
        _ => Err(bad()),
    })
}

fn parse_records(mut data: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let bad = || broken("a pax record in the archive is not valid");
    let mut records = Vec::new();
    while !data.is_empty() && data[0] != 0 {
        let space = data
            .iter()
            .take(8)
            .position(|&byte| byte == b' ')
            .ok_or_else(bad)?;
        let length: usize = std::str::from_utf8(&data[..space])
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|&length| length > space + 2 && length <= data.len())
            .ok_or_else(bad)?;
        let body = data[space + 1..length]
            .strip_suffix(b"\n")
            .ok_or_else(bad)?;
        let equals = body.iter().position(|&byte| byte == b'=').ok_or_else(bad)?;
        records.push((body[..equals].to_vec(), body[equals + 1..].to_vec()));
        data = &data[length..];
    }
    Ok(records)
}

fn apply(header: &mut Header, key: &[u8], value: &[u8]) -> Result<()> {
    let bad = || broken("a pax record in the archive is not valid");
    let text = || std::str::from_utf8(value).map_err(|_| bad());
    let id = || -> Result<u32> {
        let id: u32 = text()?.parse().map_err(|_| bad())?;
        Ok(id.min(u32::MAX - 1))
    };
    match key {
        b"path" => header.path = value.to_vec(),
        b"linkpath" => header.link = value.to_vec(),
        b"size" => {
            header.size = text()?
                .parse::<i64>()
                .ok()
                .and_then(|n| n.try_into().ok())
                .ok_or_else(bad)?
        }
        b"uid" => header.uid = id()?,
        b"gid" => header.gid = id()?,
        b"mtime" => {
            let whole = text()?.split('.').next().unwrap_or_default();
            header.mtime = whole.parse().map_err(|_| bad())?;
        }
        _ if key.starts_with(XATTR) => {
            let name = &key[XATTR.len()..];
            if name.is_empty() || name.len() > 255 || name.contains(&0) {
                return Err(bad());
            }
            header.xattrs.push((name.to_vec(), value.to_vec()));
        }
        _ if key.starts_with(b"GNU.sparse.") => {
            return Err(fail(Code::Unsupported, "sparse archives are not supported"));
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(path: &[u8]) -> Header {
        Header {
            path: path.to_vec(),
            link: Vec::new(),
            kind: Kind::File,
            mode: 0o644,
            uid: 1,
            gid: 2,
            size: 3,
            mtime: 4,
            xattrs: Vec::new(),
        }
    }

    fn back(bytes: &[u8]) -> Result<Option<Header>> {
        Reader { source: bytes }.next_entry()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut cases = vec![
            header(b"a"),
            header(&[b'x'; 100]),
            header(&b"long/".repeat(500)[..2499]),
        ];
        let big = Header {
            size: 1 << 40,
            uid: 3_000_000,
            gid: u32::MAX - 1,
            mtime: -5,
            ..header(b"big")
        };
        let link = Header {
            kind: Kind::Symlink,
            link: vec![b'y'; 300],
            size: 0,
            ..header(b"\xff\n=")
        };
        let dressed = Header {
            xattrs: vec![
                (b"security.capability".to_vec(), b"\x01\0\n=\xff".to_vec()),
                (b"user.empty".to_vec(), Vec::new()),
            ],
            ..header(b"dressed")
        };
        cases.extend([big, link, dressed]);
        for case in cases {
            let encoded = encode(&case);
            assert_eq!(encoded.len() % BLOCK, 0);
            assert_eq!(back(&encoded).expect("valid"), Some(case));
        }
    }

    #[test]
    fn damage_is_noticed() {
        let good = encode(&header(b"a"));
        for index in [0, 100, 130, 156, 300] {
            let mut bad = good.clone();
            bad[index] ^= 1;
            assert!(back(&bad).is_err(), "{index}");
        }
        assert!(back(&good[..511]).is_err());
        assert_eq!(back(&[0; 1024]).expect("the end"), None);
        assert_eq!(back(b"").expect("the end"), None);
        assert!(back(&[b'z'; 1024]).is_err());
    }

    #[test]
    fn lying_sizes_allocate_nothing() {
        for flag in [b'x', b'L', b'K', b'g'] {
            let huge = Header {
                size: 1 << 32,
                kind: Kind::Other(flag),
                ..header(b"x")
            };
            assert!(back(&encode(&huge)).is_err());
        }
        for records in [
            "99 path=a\n",
            "5 a\n",
            "x path=a\n",
            "12 patha\n",
            "999999999999 path=x\n",
        ] {
            assert!(parse_records(records.as_bytes()).is_err(), "{records}");
        }
        assert_eq!(parse_records(b"11 path=ab\n").expect("valid").len(), 1);
    }

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0").expect("octal"), 0o644);
        assert_eq!(number(b"   12 \0\0").expect("octal"), 0o12);
        assert_eq!(
            number(b"\x80\0\0\0\0\0\0\0\0\0\x01\x02").expect("binary"),
            258
        );
        for bad in [
            b"8".as_slice(),
            b"-1",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"0x1",
        ] {
            assert!(number(bad).is_err());
        }
    }
}
