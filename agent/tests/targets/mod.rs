//! What strangers can send to the agent, decoder by decoder: each takes any bytes, and panics where a promise is
//! broken. `agent/fuzz` feeds them from a coverage-guided fuzzer, `agent/tests/fuzz.rs` from seeds and from what the
//! fuzzer once found.
#![allow(dead_code)]

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use prost::Message;
use roost_agent::guest::parameters::Parameters;
use roost_agent::inside::http;
use roost_agent::pb::{self, Compression, TarInHeader};
use roost_agent::serial::Scanner;
use roost_agent::tar::decode::{Bounds, Decoder};
use roost_agent::tar::format::{Header, Kind, Reader, encode, padding};
use roost_agent::tar::unpack::unpack;
use roost_agent::users::Users;
use roost_agent::wire;

pub type Target = fn(&[u8]);

pub const ALL: [(&str, Target); 7] = [
    ("http", http),
    ("tar_entries", tar_entries),
    ("tar_unpack", tar_unpack),
    ("compressed", compressed),
    ("greeting", greeting),
    ("messages", messages),
    ("users", users),
];

/// A program's request on the inside socket: what was understood early is what is understood at the end.
pub fn http(data: &[u8]) {
    let whole = http::parse(data);
    if let Err(refusal) = &whole {
        assert!((400..500).contains(&refusal.status));
        assert!(refusal.answer(false).starts_with(b"HTTP/1.1 4"));
    }
    let early = (0..data.len())
        .step_by(1 + data.len() / 64)
        .map(|end| http::parse(&data[..end]))
        .find(|parsed| !matches!(parsed, Ok(None)));
    match (early, &whole) {
        (Some(Ok(Some(early))), Ok(Some(whole))) => assert_eq!(&early, whole),
        (Some(Ok(Some(early))), late) => panic!("{early:?}, then {late:?}"),
        (Some(Err(_)), Ok(_)) => panic!("refused, then taken"),
        _ => {}
    }
}

/// The entries of an archive; one that is written anew is read as it was.
pub fn tar_entries(data: &[u8]) {
    let data = mended(data);
    let mut reader = Reader {
        source: data.as_slice(),
    };
    while let Ok(Some(header)) = reader.next_entry() {
        assert!(header.uid != u32::MAX && header.gid != u32::MAX);
        let nul = |name: &[u8]| name.contains(&0);
        let plain = !matches!(header.kind, Kind::Other(b'L' | b'K' | b'x' | b'g'));
        if plain && !nul(&header.path) && !nul(&header.link) && header.path.len() < 4096 {
            again(&header);
        }
        let left = header.size.saturating_add(padding(header.size) as u64);
        if reader.skip(left).is_err() {
            break;
        }
    }
}

fn again(header: &Header) {
    let written = encode(header);
    let mut reader = Reader {
        source: written.as_slice(),
    };
    match reader.next_entry() {
        Ok(Some(read)) => assert_eq!(&read, header),
        other => panic!("{header:?} was written and is then {other:?}"),
    }
}

/// An archive or a layer of an image, unpacked: nothing appears or changes outside its directory.
pub fn tar_unpack(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let scratch = Scratch::new();
    let (inside, outside) = (scratch.0.join("inside"), scratch.0.join("outside"));
    std::fs::create_dir(&outside).expect("a directory");
    std::fs::write(outside.join("canary"), "canary").expect("a file");
    let header = TarInHeader {
        path: Bytes::copy_from_slice(inside.as_os_str().as_encoded_bytes()),
        layer: how & 1 != 0,
        keep_special: how & 2 != 0,
        max_entries: 100,
        max_bytes: 1 << 20,
        ..Default::default()
    };
    let _ = unpack(&header, mended(data).as_slice(), &Users::parse("", ""));
    let mut top: Vec<_> = names(&scratch.0);
    top.retain(|name| name != "inside");
    assert_eq!(top, ["outside"]);
    assert_eq!(names(&outside), ["canary"]);
    let canary = std::fs::metadata(outside.join("canary")).expect("it is there");
    assert_eq!((canary.len(), canary.nlink()), (6, 1));
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into()
        })
        .collect()
}

/// Compressed data: it ends, with no more than was allowed.
pub fn compressed(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let compression = [Compression::None, Compression::Gzip, Compression::Zstd][how as usize % 3];
    let bounds = Bounds {
        bytes: 1 << 20,
        ratio: 100,
    };
    let mut decoder = Decoder::new(data, compression, bounds);
    let mut buffer = [0; 8192];
    let mut given = 0;
    while let Ok(count @ 1..) = decoder.read(&mut buffer) {
        given += count as u64;
        assert!(given <= bounds.bytes);
    }
}

/// The preamble of a dial, in a stream that comes in pieces: found where a search through all of it finds it.
pub fn greeting(data: &[u8]) {
    let Some((&size, data)) = data.split_first() else {
        return;
    };
    // Repetitive, so that a part of it is again its beginning.
    let preamble: [u8; 32] = std::array::from_fn(|index| b"aabaaabaaabaaaac"[index % 16]);
    let mut scanner = Scanner::new(preamble);
    let mut at = 0;
    let mut found = None;
    for piece in data.chunks(usize::from(size) + 1) {
        if let Some(end) = scanner.scan(piece) {
            found = Some(at + end);
            break;
        }
        at += piece.len();
    }
    let expected = data
        .windows(32)
        .position(|window| window == preamble)
        .map(|start| start + 32);
    assert_eq!(found, expected);
}

/// Messages of the contract and of the agent's own processes; and the kernel's command line.
pub fn messages(data: &[u8]) {
    fn whole<M: Message + Default + PartialEq>(data: &[u8]) {
        if let Ok(message) = M::decode(data) {
            let written = message.encode_to_vec();
            let again = M::decode(written.as_slice()).expect("what was written can be read");
            assert!(again.encode_to_vec() == written);
        }
    }
    let Some((&kind, data)) = data.split_first() else {
        return;
    };
    match kind % 8 {
        0 => whole::<wire::Launch>(data),
        1 => whole::<pb::StartRequest>(data),
        2 => whole::<pb::TarInChunk>(data),
        3 => whole::<pb::WriteFileChunk>(data),
        4 => whole::<pb::OpenTerminalRequest>(data),
        5 => whole::<pb::RenewIdentityRequest>(data),
        6 => {
            if let Ok(record) = <[u8; wire::EVENT]>::try_from(data)
                && let Ok(event) = wire::Event::decode(&record)
            {
                let again = wire::Event::decode(&event.encode()).expect("an event of ours");
                assert_eq!(again, event);
            }
        }
        _ => {
            let line = String::from_utf8_lossy(data);
            if let Ok(parsed) = Parameters::parse(&line) {
                assert!(parsed.root.starts_with("/dev/"));
            }
        }
    }
}

/// A machine's own passwd and group, which its root writes, and who a call names.
pub fn users(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().unwrap_or_default();
    let (wanted, passwd, group) = (part(), part(), part());
    let users = Users::parse(passwd, group);
    if let Ok(account) = users.account(wanted) {
        assert_ne!(account.credentials.uid, u32::MAX);
        assert_ne!(account.credentials.gid, u32::MAX);
        assert!(!account.credentials.groups.contains(&u32::MAX));
    }
    if let Ok((uid, gid)) = users.owner(wanted) {
        assert!(uid != Some(u32::MAX) && gid != Some(u32::MAX));
    }
    users.owner_name(0);
}

/// With right sums in what could be headers, which chance does not find.
fn mended(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for block in data.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    data
}

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("roost-fuzz-{}-{number}", std::process::id());
        // In memory, where there is room for it: a layer is synced at its end.
        let memory = Path::new("/dev/shm");
        let path = match memory.is_dir() {
            true => memory.join(name),
            false => std::env::temp_dir().join(name),
        };
        std::fs::create_dir(&path).expect("a directory");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn entry(path: &str, link: &str, kind: Kind, data: &[u8]) -> Vec<u8> {
    let header = Header {
        path: path.into(),
        link: link.into(),
        kind,
        mode: 0o6755,
        uid: 1,
        gid: 1,
        size: data.len() as u64,
        mtime: 1_600_000_000,
        xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
    };
    let mut bytes = encode(&header);
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len() + padding(data.len() as u64), 0);
    bytes
}

/// Writes what a target is begun with to the directory that `ROOST_FUZZ_SEEDS` names.
pub fn lay_out(name: &str) {
    let Some(directory) = std::env::var_os("ROOST_FUZZ_SEEDS") else {
        return;
    };
    for (number, seed) in seeds(name).iter().enumerate() {
        let file = Path::new(&directory).join(format!("{number:03}"));
        std::fs::write(file, seed).expect("a file");
    }
}

fn nobodys() -> Header {
    Header {
        path: b"x".to_vec(),
        link: Vec::new(),
        kind: Kind::Directory,
        mode: 0o755,
        uid: u32::MAX,
        gid: u32::MAX,
        size: 0,
        mtime: -1,
        xattrs: Vec::new(),
    }
}

/// What each is begun with.
pub fn seeds(name: &str) -> Vec<Vec<u8>> {
    let long = "n/".repeat(100);
    let tar = [
        entry("d/", "", Kind::Directory, b""),
        entry("d/f", "", Kind::File, b"content"),
        entry("out", "../outside", Kind::Symlink, b""),
        entry("out/canary", "", Kind::File, b"overwritten"),
        entry("h", "out/canary", Kind::HardLink, b""),
        entry("d/.wh.f", "", Kind::File, b""),
        entry("d/.wh..wh..opq", "", Kind::File, b""),
        entry(&format!("{long}x"), "", Kind::File, b"deep"),
        entry("../x", "", Kind::File, b"up"),
        entry("p", "", Kind::Other(b'6'), b""),
    ];
    let texts: &[&[u8]] = match name {
        "http" => &[
            b"GET /v1/status HTTP/1.1\r\nHost: roost\r\nAccept: text/plain\r\n\r\n",
            b"POST /v1/ports HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
        ],
        "tar_entries" | "tar_unpack" => {
            let how = |how: u8, tar: &[u8]| match name {
                "tar_unpack" => [&[how], tar].concat(),
                _ => tar.to_vec(),
            };
            let mut found = vec![how(0, &tar.concat()), how(3, &tar.concat())];
            found.extend(tar.iter().map(|one| how(1, one)));
            // To the kernel these mean "unchanged".
            found.push(how(0, &encode(&nobodys())));
            // One by one over a link that was there before.
            found.extend(tar.iter().map(|one| how(1, &[&tar[2][..], one].concat())));
            return found;
        }
        "compressed" => &[
            b"\x00plain",
            b"\x01\x1f\x8b\x08\0\0\0\0\0\0\xff\x4b\x4c\x4a\x06\0\xc2\x41\x24\x35\x03\0\0\0",
            b"\x02\x28\xb5\x2f\xfd\x04\x00\x19\x00\x00abc\x52\x52\x5b\x33",
            b"\x02\x50\x2a\x4d\x18\x03\0\0\0abc",
        ],
        "greeting" => &[
            b"\x05staleaabaaabaaabaaaacaabaaabaaabaaaacrest",
            b"\x00aabaaabaaabaaaacaabaaabaaabaaabaaaacaabaaabaaabaaaac",
        ],
        "messages" => &[
            b"\x00\x0a\x02ls\x12\x03A=b\x32\x06\x08\x01\x10\x02\x1a\x01\x05",
            b"\x01\x0a\x01a",
            b"\x06\x01\0\0\0\x05\0\0\0\0\0\0\0",
            b"\x07root=/dev/vda roost.address=10.0.0.2/30 roost.volume=/dev/vdc:rw:/data",
        ],
        _ => &[
            b"a:b\0root:x:0:0::/root:/bin/sh\na:x:1:2::/a:\n\0b:x:5:a,root\n",
            b"4294967295\0a:x:4294967295:1::/:\n",
        ],
    };
    texts.iter().map(|text| text.to_vec()).collect()
}
