//! The contract's service: each call checks its message, then hands over to the module that does the work.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::errors::{Code, Result, fail};
use crate::exec::{self, Executions, Record};
use crate::files::{self, blocking};
use crate::inside::Inside;
use crate::limits;
use crate::machine::{self, Machine};
use crate::memory;
use crate::pb::{self, agent_server::Agent};
use crate::program::Programs;
use crate::terminal::{Begin, Terminals};
use crate::upload::{self, Chunk, Parts};
use crate::{auth::Token, clock, dial, identity, stats, tar, watch, workspace};

pub const CONTRACT_MAJOR: u32 = 1;
pub const CONTRACT_MINOR: u32 = 7;

pub struct Service {
    pub programs: Arc<Programs>,
    pub executions: Arc<Executions>,
    pub terminals: Terminals,
    pub machine: Arc<Machine>,
    pub inside: Inside,
    pub token: Token,
    pub own_ports: Vec<u16>,
    pub landlock: u32,
    pub started: SystemTime,
}

type Reply<T> = std::result::Result<Response<T>, Status>;
type Out<T> = ReceiverStream<Result<T>>;

fn reply<T>(message: T) -> Reply<T> {
    Ok(Response::new(message))
}

fn stream<T>(receiver: mpsc::Receiver<Result<T>>) -> Reply<Out<T>> {
    Ok(Response::new(ReceiverStream::new(receiver)))
}

fn missing(what: &str) -> Status {
    fail(
        Code::InvalidArgument,
        format!("the first message must {what}"),
    )
}

/// How long a start that nobody waits for any more may still take.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// An execution on its way to who asked for it; killed where it does not arrive, if that was asked for.
struct Launched {
    record: Arc<Record>,
    kill_on_cancel: bool,
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.kill_on_cancel {
            self.record.kill_soon();
        }
    }
}

impl Service {
    /// To its end, also when the caller goes away meanwhile: it is launched and known by its id, or neither.
    async fn launch(&self, request: pb::StartRequest, kill_on_cancel: bool) -> Result<Launched> {
        let executions = self.executions.clone();
        let (mut caller, answer) = oneshot::channel();
        tokio::spawn(async move {
            let launched = tokio::select! {
                launched = executions.start(request) => launched,
                () = async { caller.closed().await; tokio::time::sleep(LEFT_ALONE).await } => return,
            };
            let launched = launched.map(|record| Launched {
                record,
                kill_on_cancel,
            });
            let _ = caller.send(launched);
        });
        let broke_off = |_| Err(fail(Code::Internal, "the start of the execution broke off"));
        answer.await.unwrap_or_else(broke_off)
    }

    /// Blocking work that answers with one message.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&crate::users::Users) -> Result<T> + Send + 'static,
    ) -> Reply<T> {
        let programs = self.programs.clone();
        blocking(move || work(&programs.users()))
            .await
            .map(Response::new)
    }

    /// Blocking work on what the caller uploads.
    async fn consume<C: Chunk, T: Send + 'static>(
        &self,
        request: Request<Streaming<C>>,
        work: impl FnOnce(&C::Header, Parts, &crate::users::Users) -> Result<T> + Send + 'static,
    ) -> Reply<T> {
        let (header, parts, bring) = upload::open(request.into_inner()).await?;
        let mut worked = std::pin::pin!(self.work(move |users| work(&header, parts, users)));
        let reply = tokio::select! {
            reply = &mut worked => reply,
            // Waited for also when the upload broke off: what was begun is cleared away first.
            () = bring => worked.await,
        };
        memory::used();
        reply
    }

    /// Blocking work that answers with a stream; its error is the stream's end.
    fn produce<T: Send + 'static>(
        &self,
        work: impl FnOnce(&crate::users::Users, &mpsc::Sender<Result<T>>) -> Result<()> + Send + 'static,
    ) -> Reply<Out<T>> {
        let programs = self.programs.clone();
        let (sender, receiver) = mpsc::channel(3);
        tokio::spawn(async move {
            let errors = sender.clone();
            if let Err(status) = blocking(move || work(&programs.users(), &sender)).await {
                let _ = errors.send(Err(status)).await;
            }
            memory::used();
        });
        stream(receiver)
    }
}

#[tonic::async_trait]
impl Agent for Service {
    async fn hello(&self, request: Request<pb::HelloRequest>) -> Reply<pb::HelloReply> {
        let major = request.into_inner().contract_major;
        if major != CONTRACT_MAJOR {
            let message = format!("this agent speaks contract {CONTRACT_MAJOR}, not {major}");
            return Err(fail(Code::Unsupported, message));
        }
        let system = rustix::system::uname();
        reply(pb::HelloReply {
            contract_major: CONTRACT_MAJOR,
            contract_minor: CONTRACT_MINOR,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid1: std::process::id() == 1,
            boot_time_unix_ms: clock::unix_ms(self.started),
            hostname: system.nodename().to_string_lossy().into_owned(),
            kernel: system.release().to_string_lossy().into_owned(),
            limits: Some(limits::limits()),
            landlock: self.landlock,
            uid: rustix::process::geteuid().as_raw(),
        })
    }

    async fn run(&self, request: Request<pb::StartRequest>) -> Reply<pb::ExecutionResult> {
        let request = request.into_inner();
        let kill_on_cancel = request.kill_on_cancel;
        let mut launched = self.launch(request, kill_on_cancel).await?;
        launched.record.finish().await;
        launched.kill_on_cancel = false;
        reply(launched.record.result())
    }

    async fn start(&self, request: Request<pb::StartRequest>) -> Reply<pb::Execution> {
        let launched = self.launch(request.into_inner(), false).await?;
        reply(launched.record.describe())
    }

    async fn wait(&self, request: Request<pb::ExecutionRef>) -> Reply<pb::ExecutionResult> {
        let record = self.executions.get(&request.into_inner().execution_id)?;
        record.finish().await;
        reply(record.result())
    }

    async fn output(&self, request: Request<pb::ExecutionRef>) -> Reply<pb::ExecutionResult> {
        reply(
            self.executions
                .get(&request.into_inner().execution_id)?
                .result(),
        )
    }

    type AttachStream = Out<pb::OutputFrame>;

    async fn attach(&self, request: Request<pb::AttachRequest>) -> Reply<Self::AttachStream> {
        let request = request.into_inner();
        let record = self.executions.get(&request.execution_id)?;
        stream(exec::attach(record, &request)?)
    }

    async fn write_stdin(
        &self,
        request: Request<Streaming<pb::StdinChunk>>,
    ) -> Reply<pb::StdinReply> {
        let mut chunks = request.into_inner();
        let mut chunk = chunks
            .message()
            .await?
            .ok_or_else(|| missing("name the execution"))?;
        let record = self.executions.get(&chunk.execution_id)?;
        let mut written = 0;
        loop {
            if !chunk.data.is_empty() {
                record.write_stdin(&chunk.data).await?;
                written += chunk.data.len() as u64;
            }
            if chunk.eof {
                record.close_stdin().await;
                break;
            }
            match chunks.message().await? {
                Some(next) => chunk = next,
                None => break,
            }
        }
        reply(pb::StdinReply { written })
    }

    async fn signal(&self, request: Request<pb::SignalRequest>) -> Reply<pb::Execution> {
        let request = request.into_inner();
        let record = self.executions.get(&request.execution_id)?;
        record.signal(request.signal, request.tree).await?;
        reply(record.describe())
    }

    async fn get_execution(&self, request: Request<pb::ExecutionRef>) -> Reply<pb::Execution> {
        reply(
            self.executions
                .get(&request.into_inner().execution_id)?
                .describe(),
        )
    }

    async fn list_executions(&self, _: Request<pb::Empty>) -> Reply<pb::ExecutionList> {
        let executions = self
            .executions
            .list()
            .iter()
            .map(|record| record.summary())
            .collect();
        reply(pb::ExecutionList { executions })
    }

    async fn forget(&self, request: Request<pb::ExecutionRef>) -> Reply<pb::Empty> {
        self.executions.forget(&request.into_inner().execution_id)?;
        reply(pb::Empty {})
    }

    async fn open_terminal(
        &self,
        request: Request<pb::OpenTerminalRequest>,
    ) -> Reply<pb::Terminal> {
        reply(self.terminals.open(request.into_inner()).await?.describe())
    }

    type AttachTerminalStream = Out<pb::TerminalOutput>;

    async fn attach_terminal(
        &self,
        request: Request<Streaming<pb::TerminalInput>>,
    ) -> Reply<Self::AttachTerminalStream> {
        let mut inputs = request.into_inner();
        let first = inputs
            .message()
            .await?
            .ok_or_else(|| missing("name the terminal"))?;
        let terminal = self.terminals.get(&first.terminal_id)?;
        let begin = match first.resume_offset {
            Some(offset) => Begin::Offset(offset),
            None if first.no_scrollback => Begin::Now,
            None => Begin::Scrollback,
        };
        let (left, leaving) = tokio::sync::oneshot::channel();
        let frames = terminal.view(begin, leaving)?;
        tokio::spawn(async move {
            let mut input = first;
            loop {
                if let Some(size) = &input.resize {
                    let _ = terminal.resize(size.cols, size.rows);
                }
                if !input.data.is_empty() && terminal.write(&input.data).await.is_err() {
                    return;
                }
                match inputs.message().await {
                    Ok(Some(next)) => input = next,
                    Ok(None) => {
                        let _ = left.send(());
                        return;
                    }
                    Err(_) => return,
                }
            }
        });
        stream(frames)
    }

    async fn resize_terminal(&self, request: Request<pb::ResizeRequest>) -> Reply<pb::Terminal> {
        let request = request.into_inner();
        let terminal = self.terminals.get(&request.terminal_id)?;
        terminal.resize(request.cols, request.rows)?;
        reply(terminal.describe())
    }

    async fn close_terminal(&self, request: Request<pb::TerminalRef>) -> Reply<pb::Empty> {
        self.terminals
            .close(&request.into_inner().terminal_id)
            .await?;
        reply(pb::Empty {})
    }

    async fn list_terminals(&self, _: Request<pb::Empty>) -> Reply<pb::TerminalList> {
        let terminals = self
            .terminals
            .list()
            .iter()
            .map(|terminal| terminal.describe())
            .collect();
        reply(pb::TerminalList { terminals })
    }

    type ReadFileStream = Out<pb::ReadFileChunk>;

    async fn read_file(
        &self,
        request: Request<pb::ReadFileRequest>,
    ) -> Reply<Self::ReadFileStream> {
        let request = request.into_inner();
        self.produce(move |users, sender| files::read::read(&request, users, sender))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<pb::WriteFileChunk>>,
    ) -> Reply<pb::FileInfo> {
        self.consume(request, files::write::write).await
    }

    async fn stat(&self, request: Request<pb::PathRequest>) -> Reply<pb::FileInfo> {
        let request = request.into_inner();
        self.work(move |users| {
            files::info::of_path(&files::path(&request.path)?, request.follow, users)
        })
        .await
    }

    async fn list_dir(&self, request: Request<pb::ListDirRequest>) -> Reply<pb::ListDirReply> {
        let request = request.into_inner();
        self.work(move |users| files::directory::list(&request, users))
            .await
    }

    async fn make_dir(&self, request: Request<pb::MakeDirRequest>) -> Reply<pb::FileInfo> {
        let request = request.into_inner();
        self.work(move |users| files::directory::make(&request, users))
            .await
    }

    async fn r#move(&self, request: Request<pb::MoveRequest>) -> Reply<pb::FileInfo> {
        let request = request.into_inner();
        self.work(move |users| files::directory::move_entry(&request, users))
            .await
    }

    async fn remove(&self, request: Request<pb::RemoveRequest>) -> Reply<pb::Empty> {
        let request = request.into_inner();
        self.work(move |_| files::remove::remove(&request).map(|()| pb::Empty {}))
            .await
    }

    async fn set_attributes(
        &self,
        request: Request<pb::SetAttributesRequest>,
    ) -> Reply<pb::FileInfo> {
        let request = request.into_inner();
        self.work(move |users| files::directory::set_attributes(&request, users))
            .await
    }

    type TarOutStream = Out<pb::Data>;

    async fn tar_out(&self, request: Request<pb::TarOutRequest>) -> Reply<Self::TarOutStream> {
        let request = request.into_inner();
        self.produce(move |_, sender| tar::pack::pack(&request, sender))
    }

    async fn tar_in(&self, request: Request<Streaming<pb::TarInChunk>>) -> Reply<pb::TarInReply> {
        self.consume(request, |header, parts, users| {
            tar::unpack::unpack(header, tar::unpack::Source::new(parts), users)
        })
        .await
    }

    type WatchStream = Out<pb::WatchEvent>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Reply<Self::WatchStream> {
        stream(watch::watch(request.into_inner()).await?)
    }

    type SurveyStream = Out<pb::SurveyReply>;

    async fn survey(&self, request: Request<pb::SurveyRequest>) -> Reply<Self::SurveyStream> {
        let request = request.into_inner();
        self.produce(move |_, sender| files::survey::survey(&request, sender))
    }

    async fn digest(&self, request: Request<pb::DigestRequest>) -> Reply<pb::DigestReply> {
        let request = request.into_inner();
        self.work(move |_| files::survey::digest(&request)).await
    }

    type DialStream = Out<pb::DialFrame>;

    async fn dial(&self, request: Request<Streaming<pb::DialFrame>>) -> Reply<Self::DialStream> {
        if workspace::here().is_some() {
            let message = "this machine has the host's network: its ports are the host's own";
            return Err(fail(Code::Unsupported, message));
        }
        stream(dial::dial(request.into_inner(), &self.own_ports).await?)
    }

    async fn stats(&self, _: Request<pb::Empty>) -> Reply<pb::StatsReply> {
        let (executions, terminals) = (self.executions.running(), self.terminals.alive());
        let mut stats = blocking(|| Ok(stats::stats())).await?;
        stats.executions_running = executions as u32;
        stats.terminals_open = terminals as u32;
        reply(stats)
    }

    async fn set_clock(&self, request: Request<pb::SetClockRequest>) -> Reply<pb::SetClockReply> {
        reply(clock::set(&request.into_inner())?)
    }

    async fn reseed(&self, request: Request<pb::ReseedRequest>) -> Reply<pb::ReseedReply> {
        reply(clock::reseed(&request.into_inner())?)
    }

    async fn renew_identity(
        &self,
        request: Request<pb::RenewIdentityRequest>,
    ) -> Reply<pb::RenewIdentityReply> {
        let request = request.into_inner();
        reply(identity::renew(request, &self.token, &self.machine.pool, &self.programs).await?)
    }

    async fn shutdown(&self, request: Request<pb::ShutdownRequest>) -> Reply<pb::Empty> {
        let request = request.into_inner();
        self.machine.shutdown(request.grace_ms, request.exit).await;
        reply(pb::Empty {})
    }

    async fn sync(&self, _: Request<pb::Empty>) -> Reply<pb::Empty> {
        blocking(|| {
            machine::sync();
            Ok(())
        })
        .await?;
        reply(pb::Empty {})
    }

    type InsideStream = Out<pb::InsideRequest>;

    async fn inside(
        &self,
        request: Request<Streaming<pb::InsideAnswer>>,
    ) -> Reply<Self::InsideStream> {
        stream(self.inside.attach(request.into_inner()))
    }
}
