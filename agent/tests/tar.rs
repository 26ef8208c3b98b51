mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use common::*;
use roost_agent::pb::*;
use roost_agent::tar::format::{Header, Kind, encode, padding};
use tonic::Status;

fn path(path: &Path) -> Bytes {
    use std::os::unix::ffi::OsStrExt;
    Bytes::copy_from_slice(path.as_os_str().as_bytes())
}

fn entry(name: &str, kind: Kind, link: &str, data: &[u8]) -> Vec<u8> {
    let header = Header {
        path: name.as_bytes().to_vec(),
        link: link.as_bytes().to_vec(),
        kind,
        mode: 0o6755,
        uid: 0,
        gid: 0,
        size: data.len() as u64,
        mtime: 1_600_000_000,
        xattrs: Vec::new(),
    };
    let mut bytes = encode(&header);
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len() + padding(data.len() as u64), 0);
    bytes
}

fn header(to: &Path) -> TarInHeader {
    TarInHeader {
        path: path(to),
        ..Default::default()
    }
}

async fn unpack(
    client: &mut Client,
    header: TarInHeader,
    archive: &[u8],
) -> Result<TarInReply, Status> {
    let mut chunks = vec![TarInChunk {
        header: Some(header),
        ..Default::default()
    }];
    // An odd size, so that headers and data fall across the messages.
    chunks.extend(archive.chunks(99_991).map(|data| TarInChunk {
        data: Bytes::copy_from_slice(data),
        ..Default::default()
    }));
    chunks.push(TarInChunk {
        end: true,
        ..Default::default()
    });
    client
        .tar_in(tokio_stream::iter(chunks))
        .await
        .map(|reply| reply.into_inner())
}

async fn pack(client: &mut Client, from: &Path) -> Result<Vec<u8>, Status> {
    let mut chunks = client
        .tar_out(TarOutRequest {
            path: path(from),
            layer: false,
        })
        .await?
        .into_inner();
    let mut archive = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        archive.extend_from_slice(&chunk.data);
    }
    Ok(archive)
}

#[tokio::test]
async fn a_tree_comes_back_as_it_was() {
    let mut agent = Agent::start().await;
    let (from, to) = (agent.scratch.join("from"), agent.scratch.join("to"));
    let long = "n".repeat(200);
    std::fs::create_dir_all(from.join("a").join(&long).join(&long)).expect("mkdir");
    std::fs::write(from.join("a/big"), vec![7; 1_000_001]).expect("write");
    std::fs::write(from.join("a").join(&long).join(&long).join("f"), "deep").expect("write");
    std::fs::write(from.join("empty"), "").expect("write");
    std::fs::hard_link(from.join("a/big"), from.join("linked")).expect("link");
    symlink("a/big", from.join("soft")).expect("link");
    std::fs::set_permissions(from.join("a"), std::fs::Permissions::from_mode(0o500))
        .expect("chmod");
    let archive = pack(&mut agent.client, &from).await.expect("pack");
    let reply = unpack(&mut agent.client, header(&to), &archive)
        .await
        .expect("unpack");
    assert_eq!(reply.entries, 8);
    let differ = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(&from)
        .arg(&to)
        .output();
    assert!(differ.expect("diff").status.success());
    let (big, linked) = (to.join("a/big"), to.join("linked"));
    assert_eq!(
        std::fs::metadata(big).expect("meta").ino(),
        std::fs::metadata(linked).expect("meta").ino()
    );
    assert_eq!(
        std::fs::metadata(to.join("a")).expect("meta").mode() & 0o7777,
        0o500
    );
    // What the other tools make of it, and we of theirs.
    let file = agent.scratch.join("archive.tar");
    std::fs::write(&file, &archive).expect("write");
    let list = Command::new("tar")
        .arg("tf")
        .arg(&file)
        .output()
        .expect("tar");
    assert!(list.status.success() && list.stderr.is_empty(), "{list:?}");
    assert_eq!(list.stdout.iter().filter(|&&byte| byte == b'\n').count(), 8);
    for format in ["gnu", "pax", "ustar"] {
        let to = agent.scratch.join(format);
        let from_dir = if format == "ustar" {
            from.join("a/big")
        } else {
            from.clone()
        };
        let (parent, name) = (
            from_dir.parent().expect("parent"),
            from_dir.file_name().expect("name"),
        );
        let made = Command::new("tar")
            .arg("-C")
            .arg(parent)
            .arg(format!("--format={format}"))
            .arg("-cf")
            .arg(&file)
            .arg(name)
            .status();
        assert!(made.expect("tar").success());
        let archive = std::fs::read(&file).expect("read");
        unpack(&mut agent.client, header(&to), &archive)
            .await
            .expect(format);
        let differ = Command::new("diff")
            .args(["-r", "--no-dereference"])
            .arg(&from_dir)
            .arg(to.join(name))
            .output();
        assert!(differ.expect("diff").status.success(), "{format}");
    }
    let one = pack(&mut agent.client, &from.join("a/big"))
        .await
        .expect("pack one");
    let reply = unpack(&mut agent.client, header(&agent.scratch.join("one")), &one)
        .await
        .expect("unpack");
    assert_eq!((reply.entries, reply.bytes), (1, 1_000_001));
    std::fs::set_permissions(from.join("a"), std::fs::Permissions::from_mode(0o700))
        .expect("chmod");
}

#[tokio::test]
async fn no_entry_leaves_the_destination() {
    let mut agent = Agent::start().await;
    let (victim, secret) = (agent.scratch.join("victim"), agent.scratch.join("secret"));
    std::fs::create_dir(&victim).expect("mkdir");
    std::fs::write(&secret, "secret").expect("write");
    let out = victim.to_string_lossy().into_owned();
    let secret_text = secret.to_string_lossy().into_owned();
    let file = |name: &str| entry(name, Kind::File, "", b"evil");
    let link = |name: &str, to: &str| entry(name, Kind::Symlink, to, b"");
    let hard = |name: &str, to: &str| entry(name, Kind::HardLink, to, b"");
    let attacks = [
        ("dotdot", file("../victim/x")),
        ("inner dotdot", file("a/../../victim/x")),
        ("absolute", file(&format!("{out}/x"))),
        ("through a link", [link("l", &out), file("l/x")].concat()),
        (
            "through a relative link",
            [link("l", "../victim"), file("l/x")].concat(),
        ),
        (
            "through two links",
            [link("a", "."), link("a2", "a/../../victim"), file("a2/x")].concat(),
        ),
        (
            "making a directory through a link",
            [link("l", &out), entry("l/d/", Kind::Directory, "", b"")].concat(),
        ),
        (
            "a directory over a link",
            [
                link("l", &out),
                entry("l/", Kind::Directory, "", b""),
                file("l/x"),
            ]
            .concat(),
        ),
        ("hard link upwards", hard("h", "../secret")),
        ("hard link to an absolute path", hard("h", &secret_text)),
        (
            "hard link to a link",
            [link("l", &secret_text), hard("h", "l"), file("h")].concat(),
        ),
        (
            "hard link through a link",
            [link("l", ".."), hard("h", "l/secret")].concat(),
        ),
        ("device", entry("d", Kind::Other(b'3'), "", b"")),
        ("fifo", entry("p", Kind::Other(b'6'), "", b"")),
    ];
    for (number, (what, archive)) in attacks.iter().enumerate() {
        let to = agent.scratch.join(&format!("to{number}"));
        let refused = unpack(&mut agent.client, header(&to), archive).await;
        assert!(refused.is_err(), "{what}");
        let code = code(refused);
        assert!(
            [
                "INVALID_PATH",
                "FILE_KIND_REFUSED",
                "NOT_A_DIRECTORY",
                "FILE_NOT_FOUND"
            ]
            .contains(&code.as_str()),
            "{what}: {code}"
        );
        assert_eq!(
            std::fs::read_dir(&victim).expect("victim").count(),
            0,
            "{what}"
        );
        assert_eq!(std::fs::read(&secret).expect("secret"), b"secret", "{what}");
    }
    // Not an attack: writing to the name of a link replaces the link.
    let archive = [link("l", &secret_text), file("l")].concat();
    let to = agent.scratch.join("replaced");
    unpack(&mut agent.client, header(&to), &archive)
        .await
        .expect("unpack");
    assert_eq!(std::fs::read(&secret).expect("secret"), b"secret");
    assert_eq!(std::fs::read(to.join("l")).expect("file"), b"evil");
}

#[tokio::test]
async fn caps_and_special_bits() {
    let mut agent = Agent::start().await;
    let to = agent.scratch.join("to");
    let archive = [
        entry("a", Kind::File, "", b"123"),
        entry("b", Kind::File, "", b"456"),
    ]
    .concat();
    let few = TarInHeader {
        max_entries: 1,
        ..header(&to)
    };
    assert_eq!(
        code(unpack(&mut agent.client, few, &archive).await),
        "LIMIT_EXCEEDED"
    );
    let small = TarInHeader {
        max_bytes: 5,
        ..header(&to)
    };
    assert_eq!(
        code(unpack(&mut agent.client, small, &archive).await),
        "LIMIT_EXCEEDED"
    );
    unpack(&mut agent.client, header(&to), &archive)
        .await
        .expect("unpack");
    let mode = |name: &str| std::fs::metadata(to.join(name)).expect("meta").mode() & 0o7777;
    assert_eq!(mode("a"), 0o755);
    assert_eq!(
        std::fs::metadata(to.join("a")).expect("meta").mtime(),
        1_600_000_000
    );
    unpack(
        &mut agent.client,
        TarInHeader {
            keep_special: true,
            ..header(&to)
        },
        &archive,
    )
    .await
    .expect("unpack");
    assert_eq!(mode("a"), 0o6755);
    for cut in [100, 512, 514, archive.len() - 600] {
        let broken = unpack(&mut agent.client, header(&to), &archive[..cut]).await;
        assert_eq!(broken.is_err(), cut != 1024, "{cut}");
    }
    let endless = TarInChunk {
        header: Some(header(&to)),
        data: archive.clone().into(),
        end: false,
    };
    let broken_off = agent.client.tar_in(tokio_stream::iter([endless])).await;
    assert_eq!(code(broken_off), "INVALID_STATE");
    assert_eq!(
        code(unpack(&mut agent.client, header(&to), &[b'x'; 5000]).await),
        "INVALID_ARGUMENT"
    );
}
