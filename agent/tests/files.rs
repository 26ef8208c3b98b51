mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use roost_agent::pb::write_file_header::Mode;
use roost_agent::pb::*;
use tonic::Status;

fn path(path: &Path) -> Bytes {
    use std::os::unix::ffi::OsStrExt;
    Bytes::copy_from_slice(path.as_os_str().as_bytes())
}

fn header(to: &Path, mode: Mode) -> WriteFileHeader {
    WriteFileHeader {
        path: path(to),
        mode: mode.into(),
        ..Default::default()
    }
}

async fn write(
    client: &mut Client,
    header: WriteFileHeader,
    data: &[u8],
) -> Result<FileInfo, Status> {
    let mut chunks = vec![WriteFileChunk {
        header: Some(header),
        ..Default::default()
    }];
    chunks.extend(data.chunks(1 << 20).map(|data| WriteFileChunk {
        data: Bytes::copy_from_slice(data),
        ..Default::default()
    }));
    chunks.push(WriteFileChunk {
        end: true,
        ..Default::default()
    });
    client
        .write_file(tokio_stream::iter(chunks))
        .await
        .map(|reply| reply.into_inner())
}

async fn read(
    client: &mut Client,
    request: ReadFileRequest,
) -> Result<(ReadFileChunk, Vec<u8>), Status> {
    let mut chunks = client.read_file(request).await?.into_inner();
    let mut first: Option<ReadFileChunk> = None;
    let mut data = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        data.extend_from_slice(&chunk.data);
        first.get_or_insert(chunk);
    }
    Ok((first.expect("a first message"), data))
}

fn whole(from: &Path) -> ReadFileRequest {
    ReadFileRequest {
        path: path(from),
        ..Default::default()
    }
}

/// What is in it, but for the agent's own sockets.
fn listing(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| !name.ends_with(".sock"))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_is_written_is_read() {
    let mut agent = Agent::start().await;
    let file = agent.scratch.join("deep/er/file");
    let data: Vec<u8> = (0..5_000_000_u32)
        .map(|index| (index % 251) as u8)
        .collect();
    let make = WriteFileHeader {
        make_parents: true,
        sync: true,
        ..header(&file, Mode::Replace)
    };
    let info = write(&mut agent.client, make, &data).await.expect("write");
    assert_eq!(
        (info.size, info.mode, info.kind()),
        (5_000_000, 0o644, FileKind::File)
    );
    let (first, got) = read(&mut agent.client, whole(&file)).await.expect("read");
    assert_eq!((first.offset, first.length), (0, 5_000_000));
    assert!(got == data);
    let part = ReadFileRequest {
        offset: 4_999_990,
        length: 100,
        ..whole(&file)
    };
    let (first, got) = read(&mut agent.client, part).await.expect("read");
    assert_eq!((first.length, got), (10, data[4_999_990..].to_vec()));
    let suffix = ReadFileRequest {
        suffix: 7,
        ..whole(&file)
    };
    let (first, got) = read(&mut agent.client, suffix.clone()).await.expect("read");
    assert_eq!((first.offset, got), (4_999_993, data[4_999_993..].to_vec()));
    let both = ReadFileRequest {
        offset: 1,
        ..suffix
    };
    assert_eq!(
        code(read(&mut agent.client, both).await),
        "INVALID_ARGUMENT"
    );
}

#[tokio::test]
async fn modes_of_writing() {
    let mut agent = Agent::start().await;
    let file = agent.scratch.join("f");
    let client = &mut agent.client;
    write(client, header(&file, Mode::CreateNew), b"one")
        .await
        .expect("new");
    assert_eq!(
        code(write(client, header(&file, Mode::CreateNew), b"x").await),
        "FILE_EXISTS"
    );
    write(client, header(&file, Mode::Append), b" two")
        .await
        .expect("append");
    let at = WriteFileHeader {
        offset: 1,
        ..header(&file, Mode::AtOffset)
    };
    write(client, at, b"NE").await.expect("at offset");
    assert_eq!(std::fs::read(&file).expect("file"), b"oNE two");
    let inode = std::fs::metadata(&file).expect("file").ino();
    write(client, header(&file, Mode::Replace), b"new")
        .await
        .expect("replace");
    assert_ne!(std::fs::metadata(&file).expect("file").ino(), inode);
    assert_eq!(std::fs::read(&file).expect("file"), b"new");
    assert_eq!(listing(&agent.scratch.0), ["f"]);
}

#[tokio::test]
async fn a_broken_upload_leaves_the_old_file() {
    let mut agent = Agent::start().await;
    let file = agent.scratch.join("f");
    std::fs::write(&file, "old").expect("write");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o751)).expect("chmod");
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let first = WriteFileChunk {
        header: Some(header(&file, Mode::Replace)),
        data: Bytes::from("half"),
        end: false,
    };
    sender.send(first).await.expect("send");
    let mut client = agent.client.clone();
    let upload = tokio::spawn(async move {
        client
            .write_file(tokio_stream::wrappers::ReceiverStream::new(receiver))
            .await
    });
    eventually("the upload has begun", || {
        listing(&agent.scratch.0).len() == 2
    })
    .await;
    upload.abort();
    eventually("the temporary file is gone", || {
        listing(&agent.scratch.0).len() == 1
    })
    .await;
    assert_eq!(std::fs::read(&file).expect("file"), b"old");
    let endless = WriteFileChunk {
        header: Some(header(&file, Mode::Replace)),
        data: Bytes::from("half"),
        end: false,
    };
    let upload = agent.client.write_file(tokio_stream::iter([endless]));
    assert_eq!(code(upload.await), "INVALID_STATE");
    assert_eq!(std::fs::read(&file).expect("file"), b"old");
    assert_eq!(listing(&agent.scratch.0).len(), 1);
    write(&mut agent.client, header(&file, Mode::Replace), b"new")
        .await
        .expect("replace");
    let meta = std::fs::metadata(&file).expect("file");
    assert_eq!(
        (meta.mode() & 0o7777, std::fs::read(&file).expect("file")),
        (0o751, b"new".to_vec())
    );
}

#[tokio::test]
async fn a_replaced_link_keeps_leading_there() {
    let mut agent = Agent::start().await;
    let (link, target) = (agent.scratch.join("link"), agent.scratch.join("target"));
    std::fs::write(&target, "old").expect("write");
    symlink("target", &link).expect("link");
    let info = write(&mut agent.client, header(&link, Mode::Replace), b"new")
        .await
        .expect("replace");
    assert_eq!(info.kind(), FileKind::Symlink);
    assert_eq!(std::fs::read(&target).expect("file"), b"new");
    symlink("loop", agent.scratch.join("loop")).expect("link");
    let looped = header(&agent.scratch.join("loop"), Mode::Replace);
    assert_eq!(
        code(write(&mut agent.client, looped, b"x").await),
        "INVALID_PATH"
    );
}

#[tokio::test]
async fn other_kinds_are_refused_at_once() {
    let mut agent = Agent::start().await;
    let fifo = agent.scratch.join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .expect("fifo");
    let client = &mut agent.client;
    let work = async {
        for other in [
            &fifo,
            Path::new("/dev/null"),
            &agent.scratch.join("agent.sock"),
        ] {
            assert_eq!(code(read(client, whole(other)).await), "FILE_KIND_REFUSED");
            for mode in [Mode::Replace, Mode::Append, Mode::AtOffset] {
                assert_eq!(
                    code(write(client, header(other, mode), b"x").await),
                    "FILE_KIND_REFUSED"
                );
            }
        }
        assert_eq!(
            code(read(client, whole(&agent.scratch.0)).await),
            "IS_A_DIRECTORY"
        );
        assert_eq!(
            code(read(client, whole(Path::new("/no/such"))).await),
            "FILE_NOT_FOUND"
        );
        assert_eq!(
            code(read(client, whole(Path::new("relative"))).await),
            "INVALID_PATH"
        );
        let nul = ReadFileRequest {
            path: Bytes::from_static(b"/a\0b"),
            ..Default::default()
        };
        assert_eq!(code(read(client, nul).await), "INVALID_PATH");
        let (first, data) = read(client, whole(Path::new("/proc/self/status")))
            .await
            .expect("proc");
        assert!(data.starts_with(b"Name:") && first.length == data.len() as u64);
    };
    tokio::time::timeout(Duration::from_secs(5), work)
        .await
        .expect("nothing hangs");
}

#[tokio::test]
async fn a_growing_file_is_read_to_where_it_ended() {
    let mut agent = Agent::start().await;
    let file = agent.scratch.join("f");
    std::fs::write(&file, vec![b'a'; 8 << 20]).expect("write");
    let mut chunks = agent
        .client
        .read_file(whole(&file))
        .await
        .expect("read")
        .into_inner();
    let first = chunks.message().await.expect("ok").expect("first");
    use std::io::Write;
    let mut grown = std::fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .expect("open");
    grown.write_all(&vec![b'b'; 8 << 20]).expect("grow");
    let mut total = first.data.len();
    while let Some(chunk) = chunks.message().await.expect("ok") {
        assert!(!chunk.data.contains(&b'b'));
        total += chunk.data.len();
    }
    assert_eq!(total, 8 << 20);
}

#[tokio::test]
async fn directories() {
    let mut agent = Agent::start().await;
    let base = agent.scratch.join("d");
    let client = &mut agent.client;
    let make = |to: &Path, parents| MakeDirRequest {
        path: path(to),
        parents,
        ..Default::default()
    };
    assert_eq!(
        code(client.make_dir(make(&base.join("x"), false)).await),
        "FILE_NOT_FOUND"
    );
    client
        .make_dir(make(&base.join("x"), true))
        .await
        .expect("make");
    client
        .make_dir(make(&base.join("x"), true))
        .await
        .expect("again");
    assert_eq!(
        code(client.make_dir(make(&base.join("x"), false)).await),
        "FILE_EXISTS"
    );
    for number in 0..25 {
        std::fs::write(base.join(format!("f{number:02}")), "").expect("write");
    }
    symlink("f00", base.join("link")).expect("link");
    symlink("nowhere", base.join("dangling")).expect("link");
    let (mut names, mut after) = (Vec::new(), Bytes::new());
    loop {
        let request = ListDirRequest {
            path: path(&base),
            limit: 10,
            after,
        };
        let page = client.list_dir(request).await.expect("list").into_inner();
        names.extend(
            page.entries
                .iter()
                .map(|entry| String::from_utf8_lossy(&entry.name).into_owned()),
        );
        after = page.entries.last().expect("an entry").name.clone();
        if !page.more {
            break;
        }
        assert_eq!(page.entries.len(), 10);
    }
    assert_eq!(names, listing(&base));
    let stat = |of: &Path, follow| PathRequest {
        path: path(of),
        follow,
    };
    let link = client
        .stat(stat(&base.join("link"), false))
        .await
        .expect("stat")
        .into_inner();
    assert_eq!(
        (link.kind(), link.target_kind()),
        (FileKind::Symlink, FileKind::File)
    );
    assert_eq!(&link.link_target[..], b"f00");
    let dangling = client
        .stat(stat(&base.join("dangling"), false))
        .await
        .expect("stat")
        .into_inner();
    assert_eq!(dangling.target_kind(), FileKind::Unspecified);
    assert_eq!(
        code(client.stat(stat(&base.join("dangling"), true)).await),
        "FILE_NOT_FOUND"
    );
    let root = client
        .stat(stat(Path::new("/"), false))
        .await
        .expect("stat")
        .into_inner();
    assert_eq!((&root.name[..], root.owner.as_str()), (&b"/"[..], "root"));
    assert_eq!(
        code(
            client
                .list_dir(ListDirRequest {
                    path: path(&base.join("f00")),
                    ..Default::default()
                })
                .await
        ),
        "NOT_A_DIRECTORY"
    );
}

#[tokio::test]
async fn moving_and_removing() {
    let mut agent = Agent::start().await;
    let base = agent.scratch.0.clone();
    let client = &mut agent.client;
    std::fs::write(base.join("a"), "a").expect("write");
    std::fs::write(base.join("b"), "b").expect("write");
    let step = |overwrite| MoveRequest {
        source: path(&base.join("a")),
        destination: path(&base.join("b")),
        overwrite,
    };
    assert_eq!(code(client.r#move(step(false)).await), "FILE_EXISTS");
    client.r#move(step(true)).await.expect("move");
    assert_eq!(std::fs::read(base.join("b")).expect("b"), b"a");
    let remove = |of: &Path, recursive| RemoveRequest {
        path: path(of),
        recursive,
    };
    for root in ["/", "//", "/..", "/./"] {
        assert!(client.remove(remove(Path::new(root), true)).await.is_err());
    }
    // Deeper than any path can be, and with a link out of it.
    let deep = base.join("deep");
    std::fs::create_dir(&deep).expect("mkdir");
    symlink(base.join("b"), deep.join("out")).expect("link");
    symlink(&base, deep.join("up")).expect("link");
    let script =
        "i=0; while [ $i -lt 1500 ]; do mkdir dddddddd && cd dddddddd && : > f; i=$((i+1)); done";
    let request = StartRequest {
        cwd: deep.to_string_lossy().into_owned(),
        ..shell("a", script)
    };
    client.run(request).await.expect("run");
    assert_eq!(
        code(client.remove(remove(&deep, false)).await),
        "DIRECTORY_NOT_EMPTY"
    );
    client.remove(remove(&deep, true)).await.expect("remove");
    assert_eq!(listing(&base), ["b"]);
}

#[tokio::test]
async fn attributes() {
    let mut agent = Agent::start().await;
    let base = agent.scratch.join("d");
    std::fs::create_dir_all(base.join("x/y")).expect("mkdir");
    let outside = agent.scratch.join("outside");
    std::fs::write(&outside, "").expect("write");
    std::fs::write(base.join("x/y/f"), "").expect("write");
    symlink(&outside, base.join("x/link")).expect("link");
    let before = std::fs::metadata(&outside).expect("meta").mode();
    let request = SetAttributesRequest {
        path: path(&base),
        mode: Some(0o700),
        mtime_unix_ns: Some(1_500_000_000_123_456_789),
        recursive: true,
        ..Default::default()
    };
    let info = agent
        .client
        .set_attributes(request.clone())
        .await
        .expect("set")
        .into_inner();
    assert_eq!(
        (info.mode, info.mtime_unix_ns),
        (0o700, 1_500_000_000_123_456_789)
    );
    let inner = std::fs::metadata(base.join("x/y/f")).expect("meta");
    assert_eq!(
        (inner.mode() & 0o7777, inner.mtime()),
        (0o700, 1_500_000_000)
    );
    assert_eq!(std::fs::metadata(&outside).expect("meta").mode(), before);
    let unknown = SetAttributesRequest {
        owner: "no-such-user".into(),
        ..request
    };
    assert_eq!(
        code(agent.client.set_attributes(unknown).await),
        "USER_NOT_FOUND"
    );
}

/// What a hostile program turns a name into while the agent works on it: back and forth, as fast as it can.
fn swapping(one: &Path, other: &Path) -> impl FnOnce() + use<> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let (one, other, stop) = (
        one.to_owned(),
        other.to_owned(),
        Arc::new(AtomicBool::new(false)),
    );
    let seen = stop.clone();
    let thread = std::thread::spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            let _ = renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE);
        }
    });
    move || {
        stop.store(true, Ordering::Relaxed);
        thread.join().expect("a thread");
    }
}

#[tokio::test]
async fn no_mode_is_changed_through_a_link_that_was_swapped_in() {
    let mut agent = Agent::start().await;
    let canary = agent.scratch.join("canary");
    std::fs::write(&canary, "").expect("write");
    std::fs::set_permissions(&canary, std::fs::Permissions::from_mode(0o600)).expect("mode");
    let (base, aside) = (agent.scratch.join("d"), agent.scratch.join("aside"));
    std::fs::create_dir(&base).expect("mkdir");
    std::fs::write(base.join("file"), "").expect("write");
    symlink(&canary, &aside).expect("link");
    let stop = swapping(&base.join("file"), &aside);
    for _ in 0..1000 {
        let request = SetAttributesRequest {
            path: path(&base),
            mode: Some(0o777),
            recursive: true,
            ..Default::default()
        };
        agent.client.set_attributes(request).await.expect("set");
    }
    stop();
    let after = std::fs::metadata(&canary).expect("meta").mode();
    assert_eq!(after & 0o777, 0o600);
}

#[tokio::test]
async fn what_takes_a_new_directorys_name_keeps_its_mode() {
    let mut agent = Agent::start().await;
    let canary = agent.scratch.join("canary");
    std::fs::create_dir(&canary).expect("mkdir");
    std::fs::set_permissions(&canary, std::fs::Permissions::from_mode(0o700)).expect("mode");
    for index in 0..1000 {
        let (new, aside) = (
            agent.scratch.join(&format!("new{index}")),
            agent.scratch.join(&format!("aside{index}")),
        );
        symlink(&canary, &aside).expect("link");
        let stop = swapping(&new, &aside);
        let request = MakeDirRequest {
            path: path(&new),
            permissions: Some(0o777),
            ..Default::default()
        };
        let _ = agent.client.make_dir(request).await; // told where it was swapped
        stop();
    }
    let after = std::fs::metadata(&canary).expect("meta").mode();
    assert_eq!(after & 0o777, 0o700);
}

#[tokio::test]
async fn a_full_disk_is_named() {
    // /dev/full refuses every write, but is a device; a file size limit would be a signal. So: the mapping.
    let status = roost_agent::errors::errno(libc::ENOSPC, "/x");
    assert_eq!(code::<()>(Err(status)), "NO_SPACE");
}

#[tokio::test]
async fn watching_a_tree() {
    use watch_event::Kind;
    let mut agent = Agent::start().await;
    let base = agent.scratch.join("w");
    std::fs::create_dir(&base).expect("mkdir");
    let request = WatchRequest {
        path: path(&base),
        recursive: true,
    };
    let mut events = agent
        .client
        .watch(request)
        .await
        .expect("watch")
        .into_inner();
    let mut next = async || {
        let event = tokio::time::timeout(Duration::from_secs(5), events.message()).await;
        event.expect("in time").expect("ok").expect("an event")
    };
    let ready = next().await;
    assert_eq!((ready.kind(), &ready.path), (Kind::Ready, &path(&base)));
    // Made faster than a watch can be set: what is inside is told all the same.
    std::fs::create_dir_all(base.join("a/b")).expect("mkdir");
    std::fs::write(base.join("a/b/f"), "1").expect("write");
    let mut seen = std::collections::HashSet::new();
    while !seen.contains(&path(&base.join("a/b/f"))) {
        let event = next().await;
        seen.insert(event.path);
    }
    assert!(seen.contains(&path(&base.join("a"))) && seen.contains(&path(&base.join("a/b"))));
    tokio::time::sleep(Duration::from_millis(50)).await;
    std::fs::rename(base.join("a/b"), base.join("c")).expect("rename");
    let moved = loop {
        let event = next().await;
        if event.kind() == Kind::Moved {
            break event;
        }
    };
    assert_eq!(
        (&moved.path, &moved.new_path),
        (&path(&base.join("a/b")), &path(&base.join("c")))
    );
    assert!(moved.directory);
    // Known by its new name.
    std::fs::write(base.join("c/f"), "22").expect("write");
    loop {
        let event = next().await;
        if event.kind() == Kind::Modified {
            assert_eq!(event.path, path(&base.join("c/f")));
            break;
        }
    }
    std::fs::rename(base.join("c"), agent.scratch.join("elsewhere")).expect("rename");
    loop {
        let event = next().await;
        if event.kind() == Kind::Removed {
            assert_eq!(event.path, path(&base.join("c")));
            break;
        }
    }
    let missing = WatchRequest {
        path: path(&base.join("none")),
        recursive: false,
    };
    assert_eq!(code(agent.client.watch(missing).await), "FILE_NOT_FOUND");
}
