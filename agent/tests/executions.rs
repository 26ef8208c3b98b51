mod common;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use common::*;
use roost_agent::pb::*;
use roost_agent::proctree;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it has written, as soon as that is `enough`.
async fn output_with(
    agent: &mut Agent,
    id: &str,
    enough: impl Fn(&ExecutionResult) -> bool,
) -> ExecutionResult {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let output = agent.client.output(reference(id)).await.expect("output");
        let output = output.into_inner();
        if enough(&output) {
            return output;
        }
        assert!(Instant::now() < deadline, "{id} has not written enough");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn run_returns_output_and_code() {
    let mut agent = Agent::start().await;
    let result = agent
        .client
        .run(shell("a", "echo out; echo err >&2; exit 7"))
        .await
        .expect("run")
        .into_inner();
    let execution = result.execution.expect("a record");
    assert_eq!(text(&result.stdout), "out\n");
    assert_eq!(text(&result.stderr), "err\n");
    assert_eq!(execution.exit_code, Some(7));
    assert_eq!(execution.signal, None);
    assert_eq!(execution.state(), ExecutionState::Exited);
    assert_eq!(execution.argv[..2], ["/bin/sh", "-c"]);
    assert!(!execution.has_live_descendants && !result.stdout_truncated);
    assert_eq!((execution.stdout_bytes, execution.stderr_bytes), (4, 4));
}

#[tokio::test]
async fn a_signal_is_reported_as_one() {
    let mut agent = Agent::start().await;
    let result = agent
        .client
        .run(shell("a", "kill -SEGV $$"))
        .await
        .expect("run")
        .into_inner();
    let execution = result.execution.expect("a record");
    assert_eq!(
        (execution.exit_code, execution.signal),
        (Some(139), Some(11))
    );
}

#[tokio::test]
async fn programs_get_a_clean_process() {
    let mut agent = Agent::start().await;
    let script = "ls /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status; umask; env; \
                  ps -o sid= -p $$; echo $$; cat /proc/sys/fs/nr_open >/dev/null; ulimit -n";
    let result = agent
        .client
        .run(shell("a", script))
        .await
        .expect("run")
        .into_inner();
    let out = text(&result.stdout);
    // 3 is the listing's own.
    assert!(out.starts_with("0\n1\n2\n3\n"), "{out}");
    for mask in ["SigBlk", "SigIgn"] {
        // gVisor does not tell.
        let line = out.lines().find(|line| line.starts_with(mask));
        assert!(
            line.is_none_or(|line| line.ends_with("0000000000000000")),
            "{line:?}"
        );
    }
    assert!(out.contains("\n0022\n"));
    assert!(
        out.contains("LANG=C.UTF-8\n")
            && out.contains("\nHOME=")
            && out.contains("/usr/local/sbin:")
    );
    assert!(!out.contains("ROOST_AGENT_TOKEN"));
    let environ = std::fs::read(format!("/proc/{}/environ", agent.pid())).unwrap_or_default();
    assert!(
        !text(&environ).contains(TOKEN),
        "the token can still be read in /proc"
    );
}

#[tokio::test]
async fn refusals_have_codes() {
    let mut agent = Agent::start().await;
    let client = &mut agent.client;
    assert_eq!(
        code(client.run(argv("a", &["no-such-program"])).await),
        "COMMAND_NOT_FOUND"
    );
    assert_eq!(
        code(client.run(argv("a", &["/no/such"])).await),
        "COMMAND_NOT_FOUND"
    );
    assert_eq!(
        code(client.run(argv("a", &["/etc/passwd"])).await),
        "PERMISSION_DENIED"
    );
    assert_eq!(
        code(client.run(argv("a", &["/"])).await),
        "PERMISSION_DENIED"
    );
    assert_eq!(code(client.run(argv("a", &[])).await), "INVALID_ARGUMENT");
    assert_eq!(code(client.run(argv("a", &[""])).await), "INVALID_ARGUMENT");
    assert_eq!(
        code(client.run(argv("a", &["true", "x\0y"])).await),
        "INVALID_ARGUMENT"
    );
    assert_eq!(
        code(client.run(argv("A", &["true"])).await),
        "INVALID_ARGUMENT"
    );
    assert_eq!(
        code(client.run(argv("", &["true"])).await),
        "INVALID_ARGUMENT"
    );
    let both = StartRequest {
        shell: "true".into(),
        ..argv("a", &["true"])
    };
    assert_eq!(code(client.run(both).await), "INVALID_ARGUMENT");
    let nowhere = StartRequest {
        cwd: "/no/such".into(),
        ..argv("a", &["true"])
    };
    assert_eq!(code(client.run(nowhere).await), "FILE_NOT_FOUND");
    let file = StartRequest {
        cwd: "/etc/passwd".into(),
        ..argv("a", &["true"])
    };
    assert_eq!(code(client.run(file).await), "NOT_A_DIRECTORY");
    let nobody = StartRequest {
        user: "no-such-user".into(),
        ..argv("a", &["true"])
    };
    assert_eq!(code(client.run(nobody).await), "USER_NOT_FOUND");
    let name = EnvVar {
        name: "A=B".into(),
        value: String::new(),
    };
    let env = StartRequest {
        env: vec![name],
        ..argv("a", &["true"])
    };
    assert_eq!(code(client.run(env).await), "INVALID_ARGUMENT");
    assert_eq!(
        code(client.wait(reference("nothing")).await),
        "EXECUTION_NOT_FOUND"
    );
    // A failed start holds neither the id nor the supervisor.
    client.run(argv("a", &["true"])).await.expect("run");
    assert_eq!(
        code(client.run(argv("a", &["true"])).await),
        "EXECUTION_EXISTS"
    );
    client.forget(reference("a")).await.expect("forget");
    client.run(argv("a", &["true"])).await.expect("run again");
}

#[tokio::test]
async fn stdin_is_given_whole_then_ends() {
    let mut agent = Agent::start().await;
    let data = vec![b'x'; 1_000_000];
    let request = StartRequest {
        stdin: data.into(),
        ..argv("a", &["wc", "-c"])
    };
    let result = agent.client.run(request).await.expect("run").into_inner();
    assert_eq!(text(&result.stdout).trim(), "1000000");
    let result = agent
        .client
        .run(argv("b", &["cat"]))
        .await
        .expect("run")
        .into_inner();
    assert_eq!(result.stdout.len(), 0);
}

#[tokio::test]
async fn stdin_as_a_stream() {
    let mut agent = Agent::start().await;
    let request = StartRequest {
        stdin: "first ".into(),
        stdin_stream: true,
        ..argv("a", &["cat"])
    };
    agent.client.start(request).await.expect("start");
    let chunk = |data: &str, eof| StdinChunk {
        execution_id: "a".into(),
        data: data.to_owned().into(),
        eof,
    };
    let chunks = tokio_stream::iter([chunk("second ", false), chunk("third", true)]);
    let written = agent
        .client
        .write_stdin(chunks)
        .await
        .expect("write")
        .into_inner()
        .written;
    assert_eq!(written, 12);
    let result = agent
        .client
        .wait(reference("a"))
        .await
        .expect("wait")
        .into_inner();
    assert_eq!(text(&result.stdout), "first second third");
    assert_eq!(
        code(
            agent
                .client
                .write_stdin(tokio_stream::iter([chunk("x", false)]))
                .await
        ),
        "INVALID_STATE"
    );
}

#[tokio::test]
async fn a_timeout_kills_everything_that_was_started() {
    let mut agent = Agent::start().await;
    let pids = agent.scratch.join("pids");
    // setsid, a double fork, and every polite signal ignored; also a fork loop that outruns a single pass.
    let script = format!(
        "trap '' TERM HUP INT; echo before; echo $$ >> {p}; \
         setsid sh -c 'trap \"\" TERM HUP; (echo $$ >> {p}; sh -c \"echo \\$\\$ >> {p}; exec sleep 300\" &) ; exec sleep 300' & \
         (setsid sh -c 'echo $$ >> {p}; trap \"\" TERM; while :; do sleep 0.01; done' &) ; sleep 300",
        p = pids.display()
    );
    let began = Instant::now();
    let request = StartRequest {
        timeout_ms: 500,
        ..shell("a", &script)
    };
    let result = agent.client.run(request).await.expect("run").into_inner();
    let execution = result.execution.expect("a record");
    assert_eq!(execution.state(), ExecutionState::TimedOut);
    assert_eq!(text(&result.stdout), "before\n");
    assert!(!execution.has_live_descendants);
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    let list = std::fs::read_to_string(&pids).expect("pids");
    let pids: Vec<i32> = list
        .lines()
        .map(|line| line.parse().expect("a pid"))
        .collect();
    assert!(pids.len() >= 4, "{list}");
    for pid in pids {
        assert!(!alive(pid), "{pid} lives on");
    }
}

#[tokio::test]
async fn a_background_child_survives_and_can_still_be_killed() {
    let mut agent = Agent::start().await;
    let began = Instant::now();
    let result = agent
        .client
        .run(shell("a", "sleep 300 & echo $!"))
        .await
        .expect("run")
        .into_inner();
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "waited for the child's end of the pipe"
    );
    let execution = result.execution.expect("a record");
    assert!(execution.has_live_descendants);
    assert_eq!(execution.exit_code, Some(0));
    let child: i32 = text(&result.stdout).trim().parse().expect("a pid");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(alive(child));
    let signal = SignalRequest {
        execution_id: "a".into(),
        signal: 9,
        tree: true,
    };
    let after = agent
        .client
        .signal(signal.clone())
        .await
        .expect("signal")
        .into_inner();
    assert!(!alive(child));
    assert!(!after.has_live_descendants);
    // It had ended by itself before.
    assert_eq!(after.state(), ExecutionState::Exited);
    assert_eq!(code(agent.client.signal(signal).await), "INVALID_STATE");
}

#[tokio::test]
async fn background_output_is_kept_after_the_end() {
    let mut agent = Agent::start().await;
    let script = "(sleep 0.3; echo late; head -c 300000 /dev/zero) & echo early";
    let result = agent
        .client
        .run(shell("a", script))
        .await
        .expect("run")
        .into_inner();
    assert_eq!(text(&result.stdout), "early\n");
    let over = |result: &ExecutionResult| {
        let execution = result.execution.as_ref().expect("a record");
        !execution.has_live_descendants && result.stdout.len() > 300_000
    };
    let result = output_with(&mut agent, "a", over).await;
    assert!(result.stdout.starts_with(b"early\nlate\n"));
    assert_eq!(result.stdout.len(), 11 + 300_000);
    assert!(!result.execution.expect("a record").has_live_descendants);
}

#[tokio::test]
async fn signals_reach_the_group_or_the_tree() {
    let mut agent = Agent::start().await;
    let script = "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.01; done";
    agent.client.start(shell("a", script)).await.expect("start");
    let mut stdout = 0;
    while stdout == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        stdout = agent
            .client
            .get_execution(reference("a"))
            .await
            .expect("get")
            .into_inner()
            .stdout_bytes;
    }
    let signal = SignalRequest {
        execution_id: "a".into(),
        signal: 10,
        tree: false,
    };
    agent.client.signal(signal).await.expect("signal");
    let result = agent
        .client
        .wait(reference("a"))
        .await
        .expect("wait")
        .into_inner();
    assert_eq!(text(&result.stdout), "ready\ngot\n");
    agent
        .client
        .start(shell("b", "setsid sleep 300 & sleep 300"))
        .await
        .expect("start");
    let kill = SignalRequest {
        execution_id: "b".into(),
        signal: 9,
        tree: true,
    };
    let killed = agent.client.signal(kill).await.expect("kill").into_inner();
    assert_eq!(killed.state(), ExecutionState::Killed);
    assert_eq!(killed.signal, Some(9));
}

#[tokio::test]
async fn orphans_are_reaped() {
    let mut agent = Agent::start().await;
    let script = "i=0; while [ $i -lt 500 ]; do (true &) ; i=$((i+1)); done; sleep 0.2; \
                  ps -eo stat=,ppid= | grep -c \"^Z.* $PPID$\"";
    let result = agent
        .client
        .run(shell("a", script))
        .await
        .expect("run")
        .into_inner();
    assert_eq!(text(&result.stdout).trim(), "0");
}

#[tokio::test]
async fn much_output_is_bounded_in_memory() {
    let mut agent = Agent::start().await;
    let request = StartRequest {
        head_bytes: 1000,
        ring_bytes: 100_000,
        ..shell("a", "echo start; yes | head -c 200000000; echo end")
    };
    let result = agent.client.run(request).await.expect("run").into_inner();
    assert!(result.stdout_truncated);
    assert_eq!(result.stdout.len(), 101_000);
    assert!(result.stdout.starts_with(b"start\ny\n") && result.stdout.ends_with(b"y\nend\n"));
    assert_eq!(
        result.execution.expect("a record").stdout_bytes,
        200_000_010
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("status");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"))
        .expect("a peak");
    let peak: u64 = line
        .split_whitespace()
        .nth(1)
        .expect("kB")
        .parse()
        .expect("a number");
    assert!(peak < 40_000, "{line}");
}

#[tokio::test]
async fn results_fit_one_message() {
    let mut agent = Agent::start().await;
    let command = "head -c 8000000 /dev/zero; head -c 8000000 /dev/zero >&2";
    let request = StartRequest {
        ring_bytes: 8 << 20,
        ..shell("a", command)
    };
    let result = agent.client.run(request).await.expect("run").into_inner();
    assert!(result.stdout_truncated && result.stderr_truncated);
    assert_eq!(result.stdout.len() + result.stderr.len(), 3 << 20);
}

#[tokio::test]
async fn a_lossless_reader_gets_every_byte() {
    let mut agent = Agent::start().await;
    // The reader stalls on and off; the ring is much smaller than the output.
    let command = "sleep 0.2; seq 1 2000000";
    let request = StartRequest {
        ring_bytes: 50_000,
        ..shell("a", command)
    };
    agent.client.start(request).await.expect("start");
    let attach = AttachRequest {
        execution_id: "a".into(),
        lossless: true,
        ..Default::default()
    };
    let mut frames = agent
        .client
        .attach(attach)
        .await
        .expect("attach")
        .into_inner();
    let (mut got, mut count, mut exit) = (Vec::new(), 0, None);
    while let Some(frame) = frames.message().await.expect("a frame") {
        assert_eq!(frame.dropped, 0);
        if frame.exit.is_some() {
            exit = frame.exit;
            continue;
        }
        assert_eq!(frame.offset, got.len() as u64);
        got.extend_from_slice(&frame.data);
        count += 1;
        if count % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let expected: String = (1..=2_000_000)
        .map(|number| format!("{number}\n"))
        .collect();
    assert_eq!(got.len(), expected.len());
    assert!(got == expected.as_bytes(), "bytes differ");
    assert_eq!(exit.expect("an exit").exit_code, Some(0));
}

#[tokio::test]
async fn a_stalled_lossless_reader_holds_the_program_until_it_leaves() {
    let mut agent = Agent::start().await;
    let request = StartRequest {
        ring_bytes: 10_000,
        ..shell("a", "sleep 0.2; head -c 90000000 /dev/zero")
    };
    agent.client.start(request).await.expect("start");
    let attach = AttachRequest {
        execution_id: "a".into(),
        lossless: true,
        ..Default::default()
    };
    let frames = agent
        .client
        .attach(attach)
        .await
        .expect("attach")
        .into_inner();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let held = agent
        .client
        .get_execution(reference("a"))
        .await
        .expect("get")
        .into_inner();
    assert_eq!(held.state(), ExecutionState::Running);
    assert!(held.stdout_bytes < 20_000_000, "{}", held.stdout_bytes);
    drop(frames);
    let result = agent
        .client
        .wait(reference("a"))
        .await
        .expect("wait")
        .into_inner();
    assert_eq!(result.execution.expect("a record").stdout_bytes, 90_000_000);
}

#[tokio::test]
async fn a_reader_that_is_awaited_misses_nothing() {
    let mut agent = Agent::start().await;
    let request = StartRequest {
        ring_bytes: 10_000,
        await_reader_ms: 30_000,
        ..shell("a", "seq 1 500000; seq 1 500000 >&2")
    };
    agent.client.start(request).await.expect("start");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let attach = AttachRequest {
        execution_id: "a".into(),
        lossless: true,
        ..Default::default()
    };
    let mut frames = agent
        .client
        .attach(attach)
        .await
        .expect("attach")
        .into_inner();
    let mut count = 0;
    while let Some(frame) = frames.message().await.expect("a frame") {
        assert_eq!(frame.dropped, 0);
        count += frame.data.len();
    }
    let once: usize = (1..=500_000)
        .map(|number: u32| number.to_string().len() + 1)
        .sum();
    assert_eq!(count, 2 * once);
}

#[tokio::test]
async fn a_reader_that_never_comes_is_awaited_as_long_as_asked_or_until_a_kill() {
    let mut agent = Agent::start().await;
    let request = |id: &str, await_reader_ms| StartRequest {
        ring_bytes: 10_000,
        await_reader_ms,
        ..shell(id, "head -c 9000000 /dev/zero; exec sleep 0.01")
    };
    let began = Instant::now();
    let result = agent.client.run(request("a", 500)).await.expect("run");
    let record = result.into_inner().execution.expect("a record");
    assert!(began.elapsed() >= Duration::from_millis(500));
    assert_eq!(record.stdout_bytes, 9_000_000);

    agent
        .client
        .start(request("b", 60_000))
        .await
        .expect("start");
    let kill = SignalRequest {
        execution_id: "b".into(),
        signal: 9,
        tree: true,
    };
    agent.client.signal(kill).await.expect("signal");
    let ended = tokio::time::timeout(Duration::from_secs(20), agent.client.wait(reference("b")));
    let result = ended.await.expect("an end").expect("wait").into_inner();
    let record = result.execution.expect("a record");
    assert_eq!(record.state(), ExecutionState::Killed);

    let refused = agent.client.start(request("c", 60_001)).await;
    assert_eq!(code(refused), "INVALID_ARGUMENT");
}

#[tokio::test]
async fn attach_tells_what_it_dropped() {
    let mut agent = Agent::start().await;
    let request = StartRequest {
        ring_bytes: 1000,
        head_bytes: 10,
        ..shell("a", "seq 1 10000")
    };
    let result = agent.client.run(request).await.expect("run").into_inner();
    let total = result.execution.expect("a record").stdout_bytes;
    let attach = AttachRequest {
        execution_id: "a".into(),
        stdout_offset: 4,
        ..Default::default()
    };
    let mut frames = agent
        .client
        .attach(attach.clone())
        .await
        .expect("attach")
        .into_inner();
    let head = frames.message().await.expect("ok").expect("head");
    assert_eq!((head.offset, head.data.len(), head.dropped), (4, 6, 0));
    let tail = frames.message().await.expect("ok").expect("tail");
    assert_eq!((tail.offset, tail.dropped), (total - 1000, total - 1010));
    assert!(tail.data.ends_with(b"\n10000\n") || tail.data.len() < 1000);
    let beyond = AttachRequest {
        stdout_offset: total + 1,
        ..attach
    };
    assert_eq!(code(agent.client.attach(beyond).await), "INVALID_ARGUMENT");
}

#[tokio::test]
async fn a_cancelled_run_kills_only_where_asked() {
    let mut agent = Agent::start().await;
    for (id, kill_on_cancel) in [("kept", false), ("killed", true)] {
        let request = StartRequest {
            kill_on_cancel,
            ..shell(id, "echo ran; sleep 300")
        };
        let run = tokio::time::timeout(Duration::from_millis(300), agent.client.run(request)).await;
        assert!(run.is_err());
    }
    assert_eq!(came_to(&mut agent, "killed").await, ExecutionState::Killed);
    assert_eq!(came_to(&mut agent, "kept").await, ExecutionState::Running);
}

/// Its state: of "kept" when it wrote, of "killed" at its end.
async fn came_to(agent: &mut Agent, id: &str) -> ExecutionState {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match agent.client.get_execution(reference(id)).await {
            Ok(found) if id == "kept" && found.get_ref().stdout_bytes == 0 => {}
            Ok(found) if id == "killed" && found.get_ref().exit_code.is_none() => {}
            Ok(found) => return found.into_inner().state(),
            Err(_) => {}
        }
        assert!(Instant::now() < deadline, "{id} is not known");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// All below this process stand still while it lives.
struct Stopped(i32);

impl Stopped {
    fn below(pid: i32) -> Stopped {
        proctree::signal(pid, libc::SIGSTOP, |_| true);
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        proctree::signal(self.0, libc::SIGCONT, |_| true);
    }
}

#[tokio::test]
async fn what_stops_its_supervisor_is_ended_all_the_same() {
    let mut agent = Agent::start().await;
    let stop = "kill -STOP $PPID";
    let again = format!("(while {stop}; do sleep 0.1; done) &");
    for (id, stop) in [("once", stop), ("again", &again)] {
        let script = format!("{stop}\n(setsid sleep 300 &)\nsleep 300");
        let request = StartRequest {
            timeout_ms: 500,
            ..shell(id, &script)
        };
        let run = tokio::time::timeout(Duration::from_secs(20), agent.client.run(request));
        let result = run.await.expect("an end").expect("run").into_inner();
        let execution = result.execution.expect("a record");
        assert_eq!(execution.state(), ExecutionState::TimedOut, "{id}");
        assert!(!execution.has_live_descendants, "{id}");
    }
    agent
        .client
        .start(shell("killed", "kill -STOP $PPID; sleep 300"))
        .await
        .expect("start");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let kill = agent.client.signal(SignalRequest {
        execution_id: "killed".into(),
        signal: libc::SIGKILL,
        tree: true,
    });
    tokio::time::timeout(Duration::from_secs(20), kill)
        .await
        .expect("an end")
        .expect("killed");
    assert_eq!(came_to(&mut agent, "killed").await, ExecutionState::Killed);
}

#[tokio::test]
async fn helpers_that_were_stopped_are_woken() {
    let mut agent = Agent::start().await;
    let pid = agent.pid();
    let helpers = || proctree::descendants(pid, &HashSet::new()).len();
    eventually("a supervisor at hand", || helpers() >= 2).await;
    let stopped = Stopped::below(pid);
    for id in ["idle", "made"] {
        // More than its socket takes before it reads.
        let large = (0..8).map(|n| EnvVar {
            name: format!("LARGE{n}"),
            value: "x".repeat(100_000),
        });
        let run = agent.client.run(StartRequest {
            env: large.collect(),
            ..shell(id, "echo on")
        });
        let run = tokio::time::timeout(Duration::from_secs(20), run).await;
        let result = run.expect("an end").expect("run").into_inner();
        assert_eq!(text(&result.stdout), "on\n", "{id}");
        // The next has a supervisor made by a zygote that stands still.
        proctree::signal(pid, libc::SIGSTOP, |each| each.parent == pid);
        proctree::signal(pid, libc::SIGKILL, |each| each.parent != pid);
    }
    drop(stopped);
}

#[tokio::test]
async fn a_caller_that_goes_away_while_it_is_launched_loses_nothing() {
    let mut agent = Agent::start().await;
    let pid = agent.pid();
    for (id, kill_on_cancel) in [("kept", false), ("killed", true)] {
        let helpers = || proctree::descendants(pid, &HashSet::new());
        eventually("a supervisor at hand", || helpers().len() >= 2).await;
        let stopped = Stopped::below(pid);
        let request = StartRequest {
            kill_on_cancel,
            ..shell(id, "echo ran; sleep 300")
        };
        let run = tokio::time::timeout(Duration::from_millis(300), agent.client.run(request)).await;
        assert!(run.is_err(), "nothing launches it yet");
        let early = agent.client.get_execution(reference(id)).await;
        assert_eq!(code(early), "EXECUTION_NOT_FOUND");
        let twice = agent.client.start(shell(id, "echo twice"));
        let twice = tokio::time::timeout(Duration::from_secs(5), twice).await;
        assert_eq!(code(twice.expect("an answer")), "EXECUTION_EXISTS");
        drop(stopped);
    }
    assert_eq!(came_to(&mut agent, "kept").await, ExecutionState::Running);
    assert_eq!(came_to(&mut agent, "killed").await, ExecutionState::Killed);
}

#[tokio::test]
async fn the_token_is_needed() {
    let agent = Agent::start().await;
    let socket = agent.scratch.join("agent.sock");
    for token in ["", "wrong", "test-toke", "test-token1"] {
        let mut client = connect(&socket, token).await;
        let refused = client
            .hello(HelloRequest {
                contract_major: 1,
                ..Default::default()
            })
            .await;
        assert_eq!(
            refused.expect_err("refused").code(),
            tonic::Code::Unauthenticated
        );
    }
    let mut client = connect(&socket, TOKEN).await;
    let hello = client
        .hello(HelloRequest {
            contract_major: 1,
            ..Default::default()
        })
        .await;
    let hello = hello.expect("hello").into_inner();
    assert_eq!(hello.contract_major, 1);
    assert!(
        !hello.kernel.is_empty() && hello.limits.is_some_and(|limits| limits.executions == 1024)
    );
    let other = HelloRequest {
        contract_major: 2,
        ..Default::default()
    };
    assert_eq!(code(client.hello(other).await), "UNSUPPORTED");
}

#[tokio::test]
async fn killing_the_agents_helpers_is_survived() {
    let mut agent = Agent::start().await;
    agent
        .client
        .start(shell("a", "echo $PPID; exec sleep 300"))
        .await
        .expect("start");
    let output = output_with(&mut agent, "a", |so_far| so_far.stdout.ends_with(b"\n")).await;
    let sleeper = output.execution.expect("a record").pid;
    let supervisor: i32 = text(&output.stdout).trim().parse().expect("a pid");
    roost_agent::proctree::kill(supervisor, 9);
    let result = agent
        .client
        .wait(reference("a"))
        .await
        .expect("wait")
        .into_inner();
    assert_eq!(result.execution.expect("a record").signal, Some(9));
    eventually("the sleeper is dead", || !alive(sleeper)).await;
    // The zygote, and every idle supervisor with it.
    let helpers = || roost_agent::proctree::descendants(agent.pid(), &Default::default()).len();
    eventually("a supervisor at hand", || helpers() >= 2).await;
    let children = roost_agent::proctree::descendants(agent.pid(), &Default::default());
    for child in &children {
        roost_agent::proctree::kill(child.pid, 9);
    }
    for id in ["b", "c"] {
        let result = agent
            .client
            .run(shell(id, "echo hi"))
            .await
            .expect("run")
            .into_inner();
        assert_eq!(text(&result.stdout), "hi\n");
    }
}

#[tokio::test]
async fn nothing_outlives_a_killed_agent() {
    let mut agent = Agent::start().await;
    agent
        .client
        .start(shell("a", "setsid sleep 300 & sleep 300"))
        .await
        .expect("start");
    let pid = agent.pid();
    let descendants = || roost_agent::proctree::descendants(pid, &Default::default());
    eventually("all have started", || descendants().len() >= 4).await;
    let below = descendants();
    agent.process.kill().expect("kill");
    agent.process.wait().expect("wait");
    eventually("all are dead", || {
        below.iter().all(|process| !alive(process.pid))
    })
    .await;
}
