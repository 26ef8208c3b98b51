//! A real agent on a unix socket of its own, and a client of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use roost_agent::pb::agent_client::AgentClient;
use roost_agent::pb::*;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

pub const TOKEN: &str = "test-token";

pub type Client = AgentClient<InterceptedService<Channel, Bearer>>;

#[derive(Clone)]
pub struct Bearer(pub String);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value: MetadataValue<_> = format!("Bearer {}", self.0).parse().expect("a header");
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// A directory that goes away with the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        let mut bytes = [0; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).expect("random");
        let path =
            std::env::temp_dir().join(format!("roost-test-{:016x}", u64::from_ne_bytes(bytes)));
        std::fs::create_dir(&path).expect("a directory");
        Scratch(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Agent {
    pub process: Child,
    pub scratch: Scratch,
    pub client: Client,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Agent {
    pub async fn start() -> Agent {
        Agent::start_with(Scratch::new(), &[]).await
    }

    pub async fn start_with(scratch: Scratch, arguments: &[&str]) -> Agent {
        let socket = scratch.join("agent.sock");
        let process = Command::new(env!("CARGO_BIN_EXE_roost-agent"))
            .args(["--listen", &format!("unix:{}", socket.display())])
            .arg("--inside")
            .arg(scratch.join("inside.sock"))
            .args(arguments)
            .env("ROOST_AGENT_TOKEN", TOKEN)
            .stdin(Stdio::null())
            .spawn()
            .expect("the agent starts");
        let client = connect(&socket, TOKEN).await;
        Agent {
            process,
            scratch,
            client,
        }
    }

    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }
}

pub async fn connect(socket: &Path, token: &str) -> Client {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "the agent does not listen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let socket = socket.to_owned();
    let channel = Endpoint::from_static("http://agent")
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(TokioIo::new)
            }
        }))
        .await
        .expect("a connection");
    AgentClient::with_interceptor(channel, Bearer(token.to_owned()))
        .max_decoding_message_size(4 << 20)
}

pub fn shell(id: &str, command: &str) -> StartRequest {
    StartRequest {
        execution_id: id.to_owned(),
        shell: command.to_owned(),
        ..Default::default()
    }
}

pub fn argv(id: &str, argv: &[&str]) -> StartRequest {
    StartRequest {
        execution_id: id.to_owned(),
        argv: argv.iter().map(|text| (*text).to_owned()).collect(),
        ..Default::default()
    }
}

pub fn reference(id: &str) -> ExecutionRef {
    ExecutionRef {
        execution_id: id.to_owned(),
    }
}

#[track_caller]
pub fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    let status = result.expect_err("an error");
    match status.metadata().get("roost-code") {
        Some(code) => code.to_str().expect("text").to_owned(),
        None => panic!("no roost-code in {status:?}"),
    }
}

pub fn alive(pid: i32) -> bool {
    // A zombie is not alive.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'))
    })
}

/// Polls until `done`, at most ten seconds.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
