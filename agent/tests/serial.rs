//! The handshake on a byte stream, against stale bytes, a dialler that died, and one after another.

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bearer, Scratch, TOKEN, shell};
use hyper_util::rt::TokioIo;
use roost_agent::auth::Token;
use roost_agent::pb::agent_client::AgentClient;
use roost_agent::pb::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tonic::transport::{Endpoint, Uri};

struct Line {
    process: std::process::Child,
    scratch: Scratch,
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An agent whose stdin and stdout are FIFOs that stay open whoever dials.
fn line() -> Line {
    let scratch = Scratch::new();
    let mut ends = Vec::new();
    for name in ["in", "out"] {
        let path = scratch.join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .expect("fifo");
        ends.push(
            std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .expect("open"),
        );
    }
    let (output, input) = (ends.pop().expect("out"), ends.pop().expect("in"));
    let process = Command::new(env!("CARGO_BIN_EXE_roost-agent"))
        .args(["--listen", "serial-stdio"])
        .env("ROOST_AGENT_TOKEN", TOKEN)
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .spawn()
        .expect("the agent starts");
    Line { process, scratch }
}

type Io = tokio::io::Join<pipe::Receiver, pipe::Sender>;

fn open(line: &Line) -> Io {
    let open = || {
        let mut options = pipe::OpenOptions::new();
        options.read_write(true);
        options
    };
    let receiver = open()
        .open_receiver(line.scratch.join("out"))
        .expect("open");
    let sender = open().open_sender(line.scratch.join("in")).expect("open");
    tokio::io::join(receiver, sender)
}

/// Dials as the contract says; everything before the echo is thrown away.
async fn dial(line: &Line, nonce: [u8; 16]) -> Io {
    let token = Token::new(TOKEN.into());
    let mut io = open(line);
    io.write_all(&token.preamble()).await.expect("write");
    io.write_all(&nonce).await.expect("write");
    let echo = token.echo(&nonce);
    let mut seen = Vec::new();
    while !seen.ends_with(&echo) {
        let byte = tokio::time::timeout(Duration::from_secs(5), io.read_u8()).await;
        seen.push(byte.expect("an echo").expect("a byte"));
    }
    io
}

type Client =
    AgentClient<tonic::service::interceptor::InterceptedService<tonic::transport::Channel, Bearer>>;

async fn speak(io: Io) -> Client {
    let mut io = Some(io);
    let connector = tower::service_fn(move |_: Uri| {
        let io = io.take();
        async move {
            io.map(TokioIo::new)
                .ok_or_else(|| std::io::Error::other("dialled once"))
        }
    });
    let channel = Endpoint::from_static("http://agent")
        .connect_with_connector(connector)
        .await
        .expect("h2");
    AgentClient::with_interceptor(channel, Bearer(TOKEN.into()))
}

async fn works(client: &mut Client, id: &str) {
    let run = tokio::time::timeout(Duration::from_secs(5), client.run(shell(id, "echo hello")));
    let result = run.await.expect("in time").expect("run").into_inner();
    assert_eq!(&result.stdout[..], b"hello\n");
}

#[tokio::test]
async fn stale_bytes_on_both_sides_are_no_matter() {
    let line = line();
    let mut io = open(&line);
    // Towards the agent: noise, half a preamble, and the start of an HTTP/2 connection.
    let preamble = Token::new(TOKEN.into()).preamble();
    io.write_all(&[0xff; 1000]).await.expect("write");
    io.write_all(&preamble[..20]).await.expect("write");
    io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .expect("write");
    drop(io);
    // From it: what a dead dialler did not read.
    let stale = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(line.scratch.join("out"));
    std::io::Write::write_all(&mut stale.expect("open"), &[0xaa; 3000]).expect("write");
    let mut client = speak(dial(&line, [1; 16]).await).await;
    works(&mut client, "a").await;
}

#[tokio::test]
async fn a_second_dial_cuts_the_first() {
    let line = line();
    let mut first = speak(dial(&line, [1; 16]).await).await;
    works(&mut first, "a").await;
    first
        .start(shell("long", "sleep 0.3; echo kept; sleep 300"))
        .await
        .expect("start");
    // Its dialler dies in the middle of a big answer, which fills the pipe.
    let request = ReadFileRequest {
        path: "/proc/self/exe".into(),
        ..Default::default()
    };
    let reading = first.read_file(request).await.expect("read").into_inner();
    drop(reading);
    drop(first);
    let mut second = speak(dial(&line, [2; 16]).await).await;
    works(&mut second, "b").await;
    let deadline = Instant::now() + Duration::from_secs(10);
    let kept = loop {
        let long = ExecutionRef {
            execution_id: "long".into(),
        };
        let kept = second.output(long).await.expect("output").into_inner();
        if !kept.stdout.is_empty() || Instant::now() > deadline {
            break kept;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(&kept.stdout[..], b"kept\n");
    drop(second);
    // A dialler that dies right after its preamble, and then one that does not.
    let mut io = open(&line);
    io.write_all(&Token::new(TOKEN.into()).preamble())
        .await
        .expect("write");
    io.write_all(&[3; 5]).await.expect("write");
    drop(io);
    // The next preamble begins within what the agent takes for the nonce of the last.
    let mut third = speak(dial(&line, [4; 16]).await).await;
    works(&mut third, "c").await;
}

#[tokio::test]
async fn payloads_that_look_like_anything_pass() {
    let line = line();
    let mut client = speak(dial(&line, [1; 16]).await).await;
    let preamble = Token::new(TOKEN.into()).preamble();
    // Parts of the preamble over and over, never the whole.
    let data: Vec<u8> = preamble[..31]
        .iter()
        .copied()
        .cycle()
        .take(3_000_000)
        .collect();
    let request = StartRequest {
        stdin: data.into(),
        ..shell("a", "wc -c")
    };
    let result = client.run(request).await.expect("run").into_inner();
    assert_eq!(String::from_utf8_lossy(&result.stdout).trim(), "3000000");
}

#[tokio::test]
async fn a_wrong_token_gets_no_answer() {
    let line = line();
    let wrong = Token::new(b"wrong".to_vec());
    let mut io = open(&line);
    io.write_all(&wrong.preamble()).await.expect("write");
    io.write_all(&[9; 16]).await.expect("write");
    let answer = tokio::time::timeout(Duration::from_millis(300), io.read_u8()).await;
    assert!(answer.is_err(), "{answer:?}");
}
