//! Measures an agent: `probe SOCKET [SECONDS-OF-EACH]`, the token in ROOST_AGENT_TOKEN.
//!
//! Prints the latency of Run of /bin/true beside that of a plain spawn here, and the throughput of files.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use roost_agent::pb::agent_client::AgentClient;
use roost_agent::pb::*;
use tonic::Request;
use tonic::transport::{Endpoint, Uri};

fn summary(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "{what:28} n={:5} min {:7.3} median {:7.3} p95 {:7.3} ms",
        times.len(),
        at(0.0),
        at(0.5),
        at(0.95)
    );
}

/// Processor seconds of the agent whose pid is in PROBE_PID, to tell its cost on a busy host.
fn cpu() -> f64 {
    let Ok(pid) = std::env::var("PROBE_PID") else {
        return 0.0;
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|tick| tick.parse().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / 100.0
}

fn bearer<T>(message: T) -> Request<T> {
    let token = std::env::var("ROOST_AGENT_TOKEN").expect("ROOST_AGENT_TOKEN");
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "authorization",
        format!("Bearer {token}").parse().expect("ASCII"),
    );
    request
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().expect("a socket");
    let each: f64 = arguments
        .next()
        .map_or(2.0, |text| text.parse().expect("seconds"));
    let each = Duration::from_secs_f64(each);
    for _ in 0..500 {
        if std::path::Path::new(&socket).exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
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
    let mut client = AgentClient::new(channel);

    let mut times = Vec::new();
    let end = Instant::now() + each;
    while Instant::now() < end {
        let began = Instant::now();
        client
            .list_executions(bearer(Empty {}))
            .await
            .expect("list");
        times.push(began.elapsed());
    }
    summary("an empty call", times);

    let mut times = Vec::new();
    let end = Instant::now() + each;
    while Instant::now() < end {
        let began = Instant::now();
        // Does what the agent must: pipes for the output, and waiting.
        std::process::Command::new("/bin/true")
            .output()
            .expect("spawn");
        times.push(began.elapsed());
    }
    summary("plain spawn of /bin/true", times);

    for (what, pause) in [
        ("Run /bin/true, back to back", 0),
        ("Run /bin/true, every 20 ms", 20),
    ] {
        let mut times = Vec::new();
        let end = Instant::now() + each;
        let mut number = 0;
        while Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            number += 1;
            let request = StartRequest {
                execution_id: format!("p{pause}x{number}"),
                argv: vec!["/bin/true".into()],
                ..Default::default()
            };
            let began = Instant::now();
            let result = client.run(bearer(request)).await.expect("run").into_inner();
            times.push(began.elapsed());
            assert_eq!(result.execution.expect("a record").exit_code, Some(0));
            client
                .forget(bearer(ExecutionRef {
                    execution_id: format!("p{pause}x{number}"),
                }))
                .await
                .expect("forget");
        }
        summary(what, times);
    }

    let path = Bytes::from_static(b"/tmp/roost-probe");
    let data = Bytes::from(vec![7; 1 << 20]);
    for _ in 0..3 {
        let header = WriteFileHeader {
            path: path.clone(),
            ..Default::default()
        };
        let mut chunks = vec![WriteFileChunk {
            header: Some(header),
            ..Default::default()
        }];
        chunks.extend((1..=100).map(|number| WriteFileChunk {
            header: None,
            data: data.clone(),
            end: number == 100,
        }));
        let (began, used) = (Instant::now(), cpu());
        client
            .write_file(bearer(tokio_stream::iter(chunks)))
            .await
            .expect("write");
        let rate = 104.8576 / began.elapsed().as_secs_f64();
        print!(
            "WriteFile 100 MiB {rate:6.0} MB/s (cpu {:.2} s)   ",
            cpu() - used
        );
        let used = cpu();
        let began = Instant::now();
        let request = ReadFileRequest {
            path: path.clone(),
            ..Default::default()
        };
        let mut chunks = client
            .read_file(bearer(request))
            .await
            .expect("read")
            .into_inner();
        let mut total = 0;
        while let Some(chunk) = chunks.message().await.expect("chunk") {
            total += chunk.data.len();
        }
        let rate = total as f64 / 1e6 / began.elapsed().as_secs_f64();
        println!("ReadFile {rate:6.0} MB/s (cpu {:.2} s)", cpu() - used);
    }
    client
        .remove(bearer(RemoveRequest {
            path,
            recursive: false,
        }))
        .await
        .expect("remove");

    let request = StartRequest {
        execution_id: "flood".into(),
        shell: "yes | head -c 4000000000".into(),
        ..Default::default()
    };
    let (began, used) = (Instant::now(), cpu());
    client.run(bearer(request)).await.expect("run");
    let rate = 4000.0 / began.elapsed().as_secs_f64();
    println!("4 GB of output {rate:6.0} MB/s (cpu {:.2} s)", cpu() - used);
}
