//! From the command line to the running server.

use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use crate::auth::Token;
use crate::exec::Executions;
use crate::inside::{self, Inside};
use crate::launch::{INHERITED, Inherited};
use crate::listen::{self, Address};
use crate::machine::{self, Machine};
use crate::pb::agent_server::AgentServer;
use crate::pool::Pool;
use crate::program::Programs;
use crate::service::Service;
use crate::terminal::Terminals;
use crate::workspace::{self, Limit};
use crate::{guest, landlock, limits, memory, zygote};

const USAGE: &str =
    "usage: roost-agent --listen ADDRESS... [--token-file PATH] [--workdir DIR] [--inside PATH]
                   [--readable PATH]... [--writable PATH]...
                   [--workspace DIR] [--unguarded] [--limit NAME=NUMBER]...

  --listen ADDRESS   tcp:ADDR:PORT, unix:PATH, unix-stdin, serial:PATH or serial-stdio; may be given again
  --token-file PATH  read the token there and remove the file; otherwise from ROOST_AGENT_TOKEN
  --workdir DIR      home of the agent's own user, in place of the one in /etc/passwd
  --inside PATH      where programs ask the daemon; of a machine's first process /run/roost/socket
  --writable PATH    it and all it starts write there and below alone, where the kernel has Landlock; may be given again
  --readable PATH    with --writable: they read there, and where they write, alone; may be given again, else everywhere
  --workspace DIR    the machine is this directory of the host: files are named beneath it, programs begin in it
  --unguarded        without Landlock, which is else laid on the workspace's agent and all it starts
  --limit NAME=NUMBER of every process: as, core, data, fsize, nofile, nproc; may be given again
  --version
";
const TOKEN_VARIABLE: &std::ffi::CStr = c"ROOST_AGENT_TOKEN";

#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    listen: Vec<Address>,
    token_file: Option<String>,
    workdir: Option<String>,
    inside: Option<String>,
    readable: Vec<String>,
    writable: Vec<String>,
    workspace: Option<String>,
    unguarded: bool,
    limits: Vec<Limit>,
}

pub fn main() {
    if inside::helper::called() {
        inside::helper::main();
    }
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| String::from_utf8_lossy(&argument.into_vec()).into_owned())
        .collect();
    if arguments == ["--version"] {
        println!("roost-agent {}", env!("CARGO_PKG_VERSION"));
        return;
    }
    if arguments == ["--zygote"] {
        zygote::run_on_stdin();
    }
    if guest::started_as_init() {
        let problem = guest::boot().and_then(|port| {
            run(Arguments {
                listen: vec![port],
                ..Default::default()
            })
        });
        let _ = writeln!(
            std::io::stderr(),
            "roost-agent: the guest failed: {problem:?}"
        );
        std::process::exit(1);
    }
    let arguments = match parse(arguments) {
        Ok(arguments) => arguments,
        Err(problem) => {
            let _ = write!(std::io::stderr(), "roost-agent: {problem}\n{USAGE}");
            std::process::exit(2);
        }
    };
    if let Err(problem) = run(arguments) {
        let _ = writeln!(std::io::stderr(), "roost-agent: {problem}");
        std::process::exit(1);
    }
}

fn parse(arguments: Vec<String>) -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let mut value = || {
            value
                .clone()
                .or_else(|| rest.next())
                .ok_or(format!("{name} needs a value"))
        };
        match name.as_str() {
            "--listen" => parsed.listen.push(value()?.parse()?),
            "--token-file" => parsed.token_file = Some(value()?),
            "--workdir" => parsed.workdir = Some(value()?),
            "--inside" => parsed.inside = Some(value()?),
            "--readable" => parsed.readable.push(value()?),
            "--writable" => parsed.writable.push(value()?),
            "--workspace" => parsed.workspace = Some(value()?),
            "--unguarded" => parsed.unguarded = true,
            "--limit" => parsed.limits.push(value()?.parse()?),
            _ => return Err(format!("unknown argument {name:?}")),
        }
    }
    if parsed.listen.is_empty() {
        return Err("nothing to listen on".to_owned());
    }
    Ok(parsed)
}

fn run(arguments: Arguments) -> Result<(), String> {
    let text = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let pid1 = std::process::id() == 1;
    settle_process(pid1);
    let mut token = match guest::started_as_init() {
        true => guest::FIRST_TOKEN.to_vec(),
        false => take_token(arguments.token_file.as_deref())?,
    };
    let mut given = None;
    if arguments.listen.contains(&Address::UnixStdin) {
        given = Some(listen::take_stdin().map_err(text("cannot take the socket"))?);
    }
    workspace::limit(&arguments.limits)?;
    let mut landlock = confine(&arguments.readable, &arguments.writable);
    if let Some(directory) = &arguments.workspace {
        let held = workspace::enter(Path::new(directory), !arguments.unguarded)?;
        landlock = landlock.max(held);
    }
    let forget = || {
        token.fill(0);
        drop(given.take()); // a second holder would hide the agent's death
    };
    let (zygote, zygote_pid) = zygote::fork(forget).map_err(text("cannot fork"))?;
    // SAFETY: prctl with constant arguments. The agent's memory holds the token: programs of the same user
    // must not read it.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    let token = Token::new(token);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_stack_size(512 << 10)
        .thread_keep_alive(Duration::from_secs(10))
        .build()
        .map_err(text("cannot start"))?;
    runtime.block_on(async {
        tokio::spawn(machine::reap_orphans());
        tokio::spawn(memory::give_back());
        let pool = Pool::new(zygote, zygote_pid).map_err(text("cannot start"))?;
        let (incoming, own_ports) = listen::listen(&arguments.listen, given, &token)
            .await
            .map_err(text("cannot listen"))?;
        let programs = Arc::new(Programs::new(arguments.workdir.or(arguments.workspace)));
        let executions =
            Executions::new(pool.clone(), programs.clone()).map_err(text("cannot start"))?;
        let executions = Arc::new(executions);
        let terminals = Terminals::new(pool.clone(), programs.clone());
        let machine = Arc::new(Machine { pool });
        tokio::spawn(machine::end_on_signal(machine.clone()));
        let inside = Inside::default();
        let path = arguments.inside.as_deref();
        if let Some(path) = path.or(pid1.then_some(inside::SOCKET)) {
            inside::serve(path, inside.clone());
        }
        let service = Service {
            programs,
            executions,
            terminals,
            token: token.clone(),
            own_ports,
            machine,
            inside,
            landlock,
            started: SystemTime::now(),
        };
        let server = AgentServer::new(service).max_decoding_message_size(limits::MESSAGE_BYTES);
        Server::builder()
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .max_frame_size(1 << 20)
            .max_concurrent_streams(limits::STREAMS)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .add_service(InterceptedService::new(server, token))
            .serve_with_incoming(ReceiverStream::new(incoming))
            .await
            .map_err(|error| format!("the server ended: {error}"))
    })
}

/// A guardrail beside what confines the machine from outside: without it the machine is as good. What holds is told to
/// the daemon (Hello).
fn confine(readable: &[String], writable: &[String]) -> u32 {
    if writable.is_empty() {
        return 0;
    }
    let mut read: Vec<&Path> = readable.iter().map(Path::new).collect();
    let write: Vec<&Path> = writable.iter().map(Path::new).collect();
    if read.is_empty() {
        read.push(Path::new("/"));
    }
    landlock::held(&read, &write)
}

/// Signals, descriptors, limits and the kernel's out-of-memory choice, before anything else is started.
/// The kernel that gVisor says it is. It takes scores for whoever is to be killed first and kills nobody by them,
/// and keeps something of every ended process that wrote its own.
const GVISOR: &std::ffi::CStr = c"4.4.0";

fn settle_process(pid1: bool) {
    // SAFETY: plain system calls while the process has one thread.
    unsafe {
        // Whatever the starter left open is not for the programs of this machine.
        if libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) != 0 {
            for descriptor in open_descriptors() {
                libc::close(descriptor);
            }
        }
        // A memory arena per thread would be most of an idle agent.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // Chunks of a megabyte come and go with every transfer: taken from the heap they are not faulted in
        // anew each time, and what a transfer leaves behind stays small.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 << 20);
        libc::umask(0o022);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        for polite in [libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2] {
            if pid1 {
                libc::signal(polite, libc::SIG_IGN);
            }
        }
        if !pid1 {
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        }
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        let reset_oom_score = pid1
            && rustix::system::uname().release() != GVISOR
            && std::fs::write("/proc/self/oom_score_adj", "-900").is_ok();
        let _ = INHERITED.set(Inherited {
            open_files: limit,
            reset_oom_score,
        });
        limit.rlim_cur = limit.rlim_max.min(65_536);
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

/// Above the standard three, as /proc has them (gVisor knows no close_range); the listing's own is among them,
/// closed by then. Without /proc, all that a process usually may have.
fn open_descriptors() -> Vec<i32> {
    match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|descriptor| *descriptor > 2)
            .collect(),
        Err(_) => (3..1024).collect(),
    }
}

/// The token, after which neither the environment, as /proc shows it, nor the file has it.
fn take_token(file: Option<&str>) -> Result<Vec<u8>, String> {
    let mut token = Vec::new();
    // SAFETY: one thread, and nothing else holds the pointer. Overwritten in place because /proc/PID/environ
    // shows the memory that the process began with.
    unsafe {
        let value = libc::getenv(TOKEN_VARIABLE.as_ptr());
        if !value.is_null() {
            token = std::ffi::CStr::from_ptr(value).to_bytes().to_vec();
            std::ptr::write_bytes(value, b'x', token.len());
            libc::unsetenv(TOKEN_VARIABLE.as_ptr());
        }
    }
    if let Some(path) = file {
        token = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        std::fs::remove_file(path).map_err(|error| format!("{path}: {error}"))?;
        token.truncate(token.trim_ascii_end().len());
    }
    match token.len() {
        0 => Err("no token: set ROOST_AGENT_TOKEN or give --token-file".to_owned()),
        _ => Ok(token),
    }
}
