mod common;

use std::os::unix::fs::symlink;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::*;
use roost_agent::pb::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A daemon's end of the link.
struct Link {
    answers: mpsc::Sender<InsideAnswer>,
    requests: tonic::Streaming<InsideRequest>,
}

impl Link {
    async fn open(agent: &Agent) -> Link {
        let (answers, receiver) = mpsc::channel(8);
        let mut client = agent.client.clone();
        let requests = client.inside(ReceiverStream::new(receiver));
        Link {
            answers,
            requests: requests.await.expect("a link").into_inner(),
        }
    }

    async fn next(&mut self) -> InsideRequest {
        let next = tokio::time::timeout(Duration::from_secs(5), self.requests.message());
        next.await.expect("in time").expect("ok").expect("one")
    }

    async fn answer(&self, id: u64, status: u32, body: &str) {
        let answer = InsideAnswer {
            id,
            status,
            body: body.to_owned().into(),
        };
        self.answers.send(answer).await.expect("sent");
    }

    async fn leave(self) {
        drop(self.answers);
        let mut requests = self.requests;
        let end = tokio::time::timeout(Duration::from_secs(5), requests.message());
        assert_eq!(end.await.expect("in time").expect("ok"), None);
    }
}

async fn send(agent: &Agent, request: &str) -> String {
    let mut stream = UnixStream::connect(agent.scratch.join("inside.sock"))
        .await
        .expect("listens");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut said = String::new();
    let read = tokio::time::timeout(Duration::from_secs(15), stream.read_to_string(&mut said));
    let _ = read.await.expect("in time");
    said
}

async fn get(agent: &Agent, path: &str) -> String {
    send(
        agent,
        &format!("GET {path} HTTP/1.1\r\nhost: roost\r\n\r\n"),
    )
    .await
}

/// The helper, as a program of the machine.
fn helper(agent: &Agent, arguments: &[&str]) -> Command {
    let link = agent.scratch.join("roost");
    let _ = symlink(env!("CARGO_BIN_EXE_roost-agent"), &link);
    let mut command = Command::new(link);
    command
        .args(arguments)
        .env_clear()
        .env("ROOST_SOCKET", agent.scratch.join("inside.sock"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

async fn end(command: Command) -> Output {
    let mut command = command;
    tokio::task::spawn_blocking(move || command.output().expect("it runs"))
        .await
        .expect("ended")
}

#[tokio::test]
async fn a_request_gets_its_own_answer() {
    let agent = Agent::start().await;
    let mut link = Link::open(&agent).await;
    let both = async { tokio::join!(get(&agent, "/a"), get(&agent, "/b")) };
    let daemon = async {
        let (first, second) = (link.next().await, link.next().await);
        assert_ne!(first.id, second.id);
        link.answer(7777, 200, "nobody's").await;
        link.answer(second.id, 200, &second.path).await;
        link.answer(second.id, 200, "twice").await;
        link.answer(first.id, 404, &first.path).await;
    };
    let ((a, b), ()) = tokio::join!(both, daemon);
    assert!(
        a.ends_with("\r\n\r\n/a") && b.ends_with("\r\n\r\n/b"),
        "{a} {b}"
    );
    assert!(a.contains("connection: close") && a.contains("application/json"));
}

#[tokio::test]
async fn what_waits_is_told_when_the_link_ends() {
    let agent = Agent::start().await;
    let unlinked = get(&agent, "/v1/status").await; // waits a while for one
    assert!(unlinked.starts_with("HTTP/1.1 503"), "{unlinked}");
    assert!(unlinked.contains("DAEMON_UNREACHABLE"));
    let mut link = Link::open(&agent).await;
    let daemon = async {
        link.next().await;
        link.leave().await;
    };
    let (broken, ()) = tokio::join!(get(&agent, "/v1/status"), daemon);
    assert!(broken.starts_with("HTTP/1.1 503"), "{broken}");
    assert!(broken.contains("ended before the answer"));
    // A request that comes while there is none is that of the next.
    let later = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut link = Link::open(&agent).await;
        let request = link.next().await;
        link.answer(request.id, 200, "late").await;
        link
    };
    let (said, _link) = tokio::join!(get(&agent, "/v1/status"), later);
    assert!(said.ends_with("late"), "{said}");
}

#[tokio::test]
async fn the_newest_link_counts() {
    let agent = Agent::start().await;
    let mut old = Link::open(&agent).await;
    let pending = async {
        old.next().await;
        let mut new = Link::open(&agent).await;
        let end = tokio::time::timeout(Duration::from_secs(5), old.requests.message());
        assert_eq!(end.await.expect("in time").expect("ok"), None);
        let daemon = async {
            let request = new.next().await;
            new.answer(request.id, 200, "new").await;
        };
        tokio::join!(get(&agent, "/"), daemon).0
    };
    let (first, second) = tokio::join!(get(&agent, "/"), pending);
    assert!(first.starts_with("HTTP/1.1 503"), "{first}");
    assert!(second.ends_with("new"), "{second}");
}

#[tokio::test]
async fn floods_and_noise_harm_nobody() {
    let agent = Agent::start().await;
    let mut link = Link::open(&agent).await;
    let held: Vec<_> = (0..16)
        .map(|_| {
            let socket = agent.scratch.join("inside.sock");
            tokio::spawn(async move {
                let mut stream = UnixStream::connect(socket).await.expect("listens");
                let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
                let mut said = String::new();
                let _ = stream.read_to_string(&mut said).await;
                said
            })
        })
        .collect();
    let mut ids = Vec::new();
    for _ in 0..16 {
        ids.push(link.next().await.id);
    }
    let refused = get(&agent, "/").await;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    for id in ids {
        link.answer(id, 200, "done").await;
    }
    for each in held {
        assert!(each.await.expect("ended").ends_with("done"));
    }
    for noise in [
        "\0\0\0\0",
        "GET / HTTP/1.1\r\ncontent-length: 99999\r\n\r\n",
    ] {
        let said = send(&agent, noise).await;
        assert!(said.starts_with("HTTP/1.1 4"), "{said}");
    }
    let daemon = async {
        let request = link.next().await;
        link.answer(request.id, 200, "fine").await;
    };
    let (said, ()) = tokio::join!(get(&agent, "/"), daemon);
    assert!(said.ends_with("fine"), "{said}");
}

#[tokio::test]
async fn the_helper() {
    let agent = Agent::start().await;
    let mut link = Link::open(&agent).await;
    for (status, code) in [(200, 0), (201, 0), (403, 4), (429, 5), (503, 3), (409, 1)] {
        let daemon = async {
            let request = link.next().await;
            assert_eq!((request.method.as_str(), request.text), ("POST", true));
            assert_eq!(request.body, r#"{"port": 80}"#.as_bytes());
            link.answer(request.id, status, "so it is").await;
        };
        let (out, ()) = tokio::join!(end(helper(&agent, &["expose", "80"])), daemon);
        assert_eq!(out.status.code(), Some(code));
        let (shown, expected) = match code {
            0 => (out.stdout, "so it is\n"),
            _ => (out.stderr, "roost: so it is\n"),
        };
        assert_eq!(String::from_utf8_lossy(&shown), expected);
    }
    let out = end(helper(&agent, &["snore"])).await;
    assert_eq!(out.status.code(), Some(2));
    let out = end(helper(&agent, &["help"])).await;
    assert!(String::from_utf8_lossy(&out.stdout).contains("expose PORT"));
}

/// As in a machine that is captured: the link ends with the fork under way, and another daemon answers.
#[tokio::test]
async fn a_fork_outlives_its_link() {
    let agent = Agent::start().await;
    let mut link = Link::open(&agent).await;
    let daemon = async {
        let begun = link.next().await;
        let body = String::from_utf8_lossy(&begun.body).into_owned();
        assert!(body.ends_with(r#"", "count": 2}"#), "{body}");
        let key = body.split('"').nth(3).expect("a key").to_owned();
        link.answer(begun.id, 202, "").await;
        let asked = link.next().await;
        assert_eq!(asked.path, format!("/v1/forks/{key}"));
        link.leave().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut link = Link::open(&agent).await;
        let asked = link.next().await;
        assert_eq!(asked.path, format!("/v1/forks/{key}"));
        link.answer(asked.id, 202, "").await;
        let asked = link.next().await;
        link.answer(asked.id, 200, "child\n").await;
        link
    };
    let fork = end(helper(&agent, &["fork", "--count", "2"]));
    let (out, _link) = tokio::join!(fork, daemon);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "child\n");
    assert_eq!(out.status.code(), Some(0));
}
