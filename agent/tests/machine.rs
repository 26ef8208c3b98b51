mod common;

use std::time::{Duration, Instant};

use common::*;
use roost_agent::pb::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::wrappers::ReceiverStream;

type Inputs = tokio::sync::mpsc::Sender<TerminalInput>;
type Screen = tonic::Streaming<TerminalOutput>;

async fn view(client: &mut Client, id: &str) -> (Inputs, Screen) {
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    let first = TerminalInput {
        terminal_id: id.into(),
        ..Default::default()
    };
    sender.send(first).await.expect("send");
    let screen = client
        .attach_terminal(ReceiverStream::new(receiver))
        .await
        .expect("attach");
    (sender, screen.into_inner())
}

async fn until(screen: &mut Screen, wanted: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(wanted) {
        let frame = tokio::time::timeout(Duration::from_secs(5), screen.message()).await;
        let frame = frame
            .unwrap_or_else(|_| panic!("only saw {seen:?}"))
            .expect("ok")
            .expect("a frame");
        seen.push_str(&String::from_utf8_lossy(&frame.data));
    }
    seen
}

#[tokio::test]
async fn a_viewer_that_leaves_to_come_back_misses_nothing() {
    let mut agent = Agent::start().await;
    // More than the scrollback keeps, and no pause in it.
    let shell = "stty -onlcr; read go; seq 1 200000; echo over; read end";
    let open = OpenTerminalRequest {
        terminal_id: "t".into(),
        argv: vec!["/bin/sh".into(), "-c".into(), shell.into()],
        ..Default::default()
    };
    agent.client.open_terminal(open).await.expect("open");
    let (keys, mut screen) = view(&mut agent.client, "t").await;
    keys.send(typed("\n")).await.expect("send");
    let mut keys = Some(keys);
    let (mut at, mut seen, mut times) = (0, String::new(), 0);
    while !seen.contains("over") {
        let next = tokio::time::timeout(Duration::from_secs(20), screen.message()).await;
        match next.expect("in time").expect("ok") {
            Some(frame) => {
                assert_eq!((frame.offset, frame.dropped), (at, 0));
                at += frame.data.len() as u64;
                seen.push_str(&String::from_utf8_lossy(&frame.data));
                if times < 5 && seen.len() > (times + 1) * 200_000 {
                    times += 1;
                    keys.take(); // its half
                }
            }
            None => {
                // While it is away the terminal waits.
                tokio::time::sleep(Duration::from_millis(300)).await;
                let (sender, receiver) = tokio::sync::mpsc::channel(8);
                let first = TerminalInput {
                    terminal_id: "t".into(),
                    resume_offset: Some(at),
                    ..Default::default()
                };
                sender.send(first).await.expect("send");
                let again = agent.client.attach_terminal(ReceiverStream::new(receiver));
                screen = again.await.expect("attach").into_inner();
                keys = Some(sender);
            }
        }
    }
    assert_eq!(times, 5);
    let counted: Vec<u32> = seen.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(counted, (1..=200_000).collect::<Vec<_>>());
    // One that does not come back is not waited for for ever.
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    let first = TerminalInput {
        terminal_id: "t".into(),
        resume_offset: Some(at + 1),
        ..Default::default()
    };
    sender.send(first).await.expect("send");
    let beyond = agent.client.attach_terminal(ReceiverStream::new(receiver));
    assert_eq!(code(beyond.await), "INVALID_ARGUMENT");
}

fn typed(data: &str) -> TerminalInput {
    TerminalInput {
        data: data.to_owned().into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_terminal_echoes_resizes_and_ends() {
    let mut agent = Agent::start().await;
    let open = OpenTerminalRequest {
        terminal_id: "t".into(),
        cols: 91,
        rows: 17,
        argv: vec!["/bin/sh".into()],
        ..Default::default()
    };
    let terminal = agent
        .client
        .open_terminal(open.clone())
        .await
        .expect("open")
        .into_inner();
    assert!(terminal.alive && terminal.pid > 0);
    assert_eq!(
        code(agent.client.open_terminal(open).await),
        "INVALID_STATE"
    );
    let (keys, mut screen) = view(&mut agent.client, "t").await;
    let (_keys2, mut second) = view(&mut agent.client, "t").await;
    keys.send(typed("stty size; echo $TERM; tty; ps -o tpgid= -p $$\n"))
        .await
        .expect("send");
    let seen = until(&mut screen, "/dev/pts").await;
    assert!(
        seen.contains("17 91") && seen.contains("xterm-256color"),
        "{seen}"
    );
    until(&mut second, "17 91").await;
    keys.send(typed("trap 'echo re''sized' WINCH\n"))
        .await
        .expect("send");
    let size = ResizeRequest {
        terminal_id: "t".into(),
        cols: 120,
        rows: 40,
    };
    until(&mut screen, "WINCH").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let resized = agent
        .client
        .resize_terminal(size)
        .await
        .expect("resize")
        .into_inner();
    assert_eq!((resized.cols, resized.rows, resized.viewers), (120, 40, 2));
    keys.send(typed("stty size\n")).await.expect("send");
    until(&mut screen, "40 120").await;
    // Job control: an interrupt reaches the foreground program, not the shell.
    keys.send(typed("sleep 300\n")).await.expect("send");
    tokio::time::sleep(Duration::from_millis(200)).await;
    keys.send(typed("\u{3}")).await.expect("send");
    // gVisor leaves the character in the input as well.
    keys.send(typed("\n")).await.expect("send");
    keys.send(typed("echo still he''re; exit 5\n"))
        .await
        .expect("send");
    until(&mut screen, "still here").await;
    let mut closed = None;
    while let Some(frame) = screen.message().await.expect("ok") {
        closed = frame.closed;
    }
    let closed = closed.expect("a last frame");
    assert_eq!((closed.alive, closed.exit_code), (false, Some(5)));
    let list = agent
        .client
        .list_terminals(Empty {})
        .await
        .expect("list")
        .into_inner()
        .terminals;
    assert_eq!(list.len(), 1);
    // Late viewers see what was there, and its end.
    let (_keys3, mut late) = view(&mut agent.client, "t").await;
    assert!(until(&mut late, "still here").await.contains("17 91"));
    agent
        .client
        .close_terminal(TerminalRef {
            terminal_id: "t".into(),
        })
        .await
        .expect("close");
    assert_eq!(
        code(
            agent
                .client
                .close_terminal(TerminalRef {
                    terminal_id: "t".into()
                })
                .await
        ),
        "TERMINAL_NOT_FOUND"
    );
}

#[tokio::test]
async fn closing_a_terminal_ends_everything_in_it() {
    let mut agent = Agent::start().await;
    let open = OpenTerminalRequest {
        terminal_id: "t".into(),
        ..Default::default()
    };
    agent.client.open_terminal(open).await.expect("open");
    let (keys, mut screen) = view(&mut agent.client, "t").await;
    keys.send(typed(
        "(trap '' HUP TERM; setsid sleep 300 & echo pid=$!; wait) & sleep 300\n",
    ))
    .await
    .expect("send");
    until(&mut screen, "pid=").await;
    let mut shells = Vec::new();
    // The shell, the one in the background, and their two sleeps.
    eventually("all have started", || {
        let below =
            roost_agent::proctree::descendants(agent.process.id() as i32, &Default::default());
        let pids = below.iter().map(|process| process.pid);
        let ours = |pid: &i32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            !name.starts_with("roost")
        };
        shells = pids.filter(ours).collect();
        shells.len() >= 4
    })
    .await;
    agent
        .client
        .close_terminal(TerminalRef {
            terminal_id: "t".into(),
        })
        .await
        .expect("close");
    assert!(shells.iter().all(|&pid| !alive(pid)));
}

#[tokio::test]
async fn a_supervisor_that_was_signalled_at_its_end_serves_the_next_program() {
    let mut agent = Agent::start().await;
    for round in 0..40 {
        let terminal_id = format!("t{round}");
        let open = OpenTerminalRequest {
            terminal_id: terminal_id.clone(),
            ..Default::default()
        };
        agent.client.open_terminal(open).await.expect("open");
        let close = TerminalRef { terminal_id };
        agent.client.close_terminal(close).await.expect("closed");
        let request = StartRequest {
            execution_id: format!("e{round}"),
            argv: vec!["/bin/true".into()],
            ..Default::default()
        };
        agent.client.run(request).await.expect("it runs");
    }
}

#[tokio::test]
async fn a_terminal_survives_a_flood_and_a_dead_viewer() {
    let mut agent = Agent::start().await;
    let open = OpenTerminalRequest {
        terminal_id: "t".into(),
        argv: vec![
            "/bin/sh".into(),
            "-c".into(),
            "seq 1 3000000; echo do''ne; sleep 300".into(),
        ],
        ..Default::default()
    };
    // It is attached to and never read: dropped, while the other gets everything.
    agent.client.open_terminal(open).await.expect("open");
    let (_stalled_keys, _stalled) = view(&mut agent.client, "t").await;
    let (_keys, mut screen) = view(&mut agent.client, "t").await;
    let flood = async {
        let mut tail = String::new();
        loop {
            let frame = screen.message().await.expect("ok").expect("a frame");
            tail.push_str(&String::from_utf8_lossy(&frame.data));
            if tail.contains("done") {
                break;
            }
            let keep = tail.len().saturating_sub(100);
            tail = tail.chars().skip(keep).collect();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), flood)
        .await
        .expect("the flood ends");
    let list = agent
        .client
        .list_terminals(Empty {})
        .await
        .expect("list")
        .into_inner()
        .terminals;
    assert!(list[0].alive);
}

#[tokio::test]
async fn dial_carries_both_ways_and_half_closes() {
    let mut agent = Agent::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("listen");
    let port = u32::from(listener.local_addr().expect("address").port());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut all = Vec::new();
        // Answers only after the caller's half is closed.
        stream.read_to_end(&mut all).await.expect("read");
        all.reverse();
        stream.write_all(&all).await.expect("write");
    });
    let data: Vec<u8> = (0..300_000_u32).map(|index| (index % 251) as u8).collect();
    let mut frames = vec![DialFrame {
        port,
        ..Default::default()
    }];
    frames.extend(data.chunks(50_000).map(|data| DialFrame {
        data: data.to_vec().into(),
        ..Default::default()
    }));
    frames.push(DialFrame {
        eof: true,
        ..Default::default()
    });
    let mut replies = agent
        .client
        .dial(tokio_stream::iter(frames))
        .await
        .expect("dial")
        .into_inner();
    let (mut got, mut eof) = (Vec::new(), false);
    while let Some(frame) = replies.message().await.expect("ok") {
        got.extend_from_slice(&frame.data);
        eof |= frame.eof;
    }
    got.reverse();
    assert!(eof && got == data);
    let dial = |port, host: &str| {
        tokio_stream::iter([DialFrame {
            port,
            host: host.into(),
            ..Default::default()
        }])
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("bind")
        .local_addr()
        .expect("address")
        .port();
    assert_eq!(
        code(agent.client.dial(dial(closed.into(), "")).await),
        "PORT_CLOSED"
    );
    assert_eq!(
        code(agent.client.dial(dial(0, "")).await),
        "INVALID_ARGUMENT"
    );
    assert_eq!(
        code(agent.client.dial(dial(80, "169.254.169.254")).await),
        "INVALID_ARGUMENT"
    );
}

#[tokio::test]
async fn stats_clock_seed_and_identity() {
    let mut agent = Agent::start().await;
    let client = &mut agent.client;
    client.start(shell("a", "sleep 300")).await.expect("start");
    let stats = client.stats(Empty {}).await.expect("stats").into_inner();
    assert_eq!(stats.executions_running, 1);
    assert!(stats.memory_total_bytes > 0 && stats.disk_total_bytes > 0 && stats.processes > 2);
    // Not the first process: it must leave its host's clock and names alone.
    let clock = client
        .set_clock(SetClockRequest {
            unix_ns: 1_000_000_000_000_000_000,
        })
        .await
        .expect("clock")
        .into_inner();
    assert!(!clock.changed && clock.before_unix_ns > 1_700_000_000_000_000_000);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("now");
    assert!(now.as_secs() > 1_700_000_000);
    client
        .reseed(ReseedRequest {
            entropy: vec![7; 64].into(),
        })
        .await
        .expect("reseed");
    assert_eq!(
        code(
            client
                .reseed(ReseedRequest {
                    entropy: vec![7; 8].into()
                })
                .await
        ),
        "INVALID_ARGUMENT"
    );
    let host = std::fs::read("/etc/hostname").unwrap_or_default();
    let renew = RenewIdentityRequest {
        hostname: "other".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        new_token: "new-token".into(),
        renew_ssh_host_keys: true,
    };
    let bad = RenewIdentityRequest {
        machine_id: "short".into(),
        ..renew.clone()
    };
    assert_eq!(code(client.renew_identity(bad).await), "INVALID_ARGUMENT");
    let renewed = client
        .renew_identity(renew)
        .await
        .expect("renew")
        .into_inner()
        .renewed;
    assert_eq!(renewed, ["token"]);
    assert_eq!(std::fs::read("/etc/hostname").unwrap_or_default(), host);
    let refused = client.stats(Empty {}).await.expect_err("the old token");
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    let mut fresh = connect(&agent.scratch.join("agent.sock"), "new-token").await;
    fresh.stats(Empty {}).await.expect("the new token");
}

#[tokio::test]
async fn what_it_may_write_is_all_that_is_written_below_it() {
    let scratch = Scratch::new();
    let (inside, outside) = (scratch.join("in"), Scratch::new());
    std::fs::create_dir(&inside).expect("a directory");
    let place = scratch.0.to_str().expect("text").to_owned();
    let mut agent = Agent::start_with(scratch, &["--writable", &place, "--writable=/dev"]).await;
    let hello = HelloRequest {
        contract_major: 1,
        ..Default::default()
    };
    let hello = agent.client.hello(hello).await.expect("hello").into_inner();
    assert_eq!(hello.uid, rustix::process::geteuid().as_raw());
    if hello.landlock == 0 {
        return; // a kernel without it
    }
    let inside = inside.display();
    let outside = outside.0.display();
    let command = format!(
        "echo 1 >{inside}/f && mv {inside}/f {inside}/../g && cat {inside}/../g && : >/dev/null; \
         (echo 2 >{outside}/f) 2>/dev/null || echo refused; kill -0 {} 2>/dev/null || echo unseen",
        std::process::id()
    );
    let done = agent.client.run(shell("1", &command)).await.expect("run");
    let said = String::from_utf8_lossy(&done.into_inner().stdout).into_owned();
    let unseen = if hello.landlock >= 6 { "unseen\n" } else { "" };
    assert_eq!(said, format!("1\nrefused\n{unseen}"));
    // Its own files API is no way around it.
    let header = WriteFileHeader {
        path: format!("{outside}/f").into_bytes().into(),
        ..Default::default()
    };
    let chunk = WriteFileChunk {
        header: Some(header),
        end: true,
        ..Default::default()
    };
    let written = agent.client.write_file(tokio_stream::once(chunk)).await;
    assert_eq!(code(written), "PERMISSION_DENIED");
}

#[tokio::test]
async fn shutdown_ends_what_was_started_and_nothing_else() {
    let mut agent = Agent::start().await;
    let bystander = std::process::Command::new("sleep")
        .arg("300")
        .spawn()
        .expect("sleep");
    let note = agent.scratch.join("note");
    let polite = format!(
        "trap 'echo term > {}; exit' TERM; trap '' HUP; while :; do sleep 0.05; done",
        note.display()
    );
    agent
        .client
        .start(shell("polite", &polite))
        .await
        .expect("start");
    agent
        .client
        .start(shell(
            "deaf",
            "trap '' TERM HUP; echo; setsid sleep 300 & while :; do sleep 1; done",
        ))
        .await
        .expect("start");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let shutdown = ShutdownRequest {
        grace_ms: 500,
        exit: false,
    };
    agent.client.shutdown(shutdown).await.expect("shutdown");
    assert_eq!(std::fs::read_to_string(&note).unwrap_or_default(), "term\n");
    // Their supervisors tell it a moment after they are gone.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let stats = agent.client.stats(Empty {}).await.expect("stats");
        let running = stats.into_inner().executions_running;
        if running == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{running} still run");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(alive(bystander.id() as i32));
    // It still works, until it is told to exit.
    agent.client.run(shell("again", "true")).await.expect("run");
    agent
        .client
        .shutdown(ShutdownRequest {
            grace_ms: 0,
            exit: true,
        })
        .await
        .expect("shutdown");
    let pid = agent.pid();
    eventually("the agent exits", || !alive(pid)).await;
    let mut bystander = bystander;
    let _ = bystander.kill();
    let _ = bystander.wait();
}
