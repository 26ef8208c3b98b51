//! The contract's service: each call checks its message, then hands over to the module that does the work.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::errors::{Code, Result, fail};
use crate::exec::{self, Executions, Record, unix_ms};
use crate::files::{self, blocking, write::Part};
use crate::limits;
use crate::machine::Machine;
use crate::pb::{self, agent_server::Agent};
use crate::program::Programs;

pub const CONTRACT_MAJOR: u32 = 1;
pub const CONTRACT_MINOR: u32 = 0;

pub struct Service {
    pub programs: Arc<Programs>,
    pub executions: Executions,
    pub machine: Machine,
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

/// Kills an execution whose caller has gone away, where that was asked for.
struct KillOnCancel(Option<Arc<Record>>);

impl Drop for KillOnCancel {
    fn drop(&mut self) {
        if let Some(record) = &self.0 {
            record.kill_soon();
        }
    }
}

impl Service {
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
            boot_time_unix_ms: unix_ms(self.started),
            hostname: system.nodename().to_string_lossy().into_owned(),
            kernel: system.release().to_string_lossy().into_owned(),
            limits: Some(limits::limits()),
        })
    }

    async fn run(&self, request: Request<pb::StartRequest>) -> Reply<pb::ExecutionResult> {
        let request = request.into_inner();
        let kill_on_cancel = request.kill_on_cancel;
        let record = self.executions.start(request).await?;
        let mut guard = KillOnCancel(kill_on_cancel.then(|| record.clone()));
        record.finish().await;
        guard.0 = None;
        reply(record.result())
    }

    async fn start(&self, request: Request<pb::StartRequest>) -> Reply<pb::Execution> {
        reply(
            self.executions
                .start(request.into_inner())
                .await?
                .describe(),
        )
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
            .map(|record| record.describe())
            .collect();
        reply(pb::ExecutionList { executions })
    }

    async fn forget(&self, request: Request<pb::ExecutionRef>) -> Reply<pb::Empty> {
        self.executions.forget(&request.into_inner().execution_id)?;
        reply(pb::Empty {})
    }

    async fn open_terminal(&self, _: Request<pb::OpenTerminalRequest>) -> Reply<pb::Terminal> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    type AttachTerminalStream = Out<pb::TerminalOutput>;

    async fn attach_terminal(
        &self,
        _: Request<Streaming<pb::TerminalInput>>,
    ) -> Reply<Self::AttachTerminalStream> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    async fn resize_terminal(&self, _: Request<pb::ResizeRequest>) -> Reply<pb::Terminal> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    async fn close_terminal(&self, _: Request<pb::TerminalRef>) -> Reply<pb::Empty> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    async fn list_terminals(&self, _: Request<pb::Empty>) -> Reply<pb::TerminalList> {
        Err(fail(Code::Unsupported, "not yet"))
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
        let mut chunks = request.into_inner();
        let first = chunks
            .message()
            .await?
            .ok_or_else(|| missing("have the header"))?;
        let header = first.header.ok_or_else(|| missing("have the header"))?;
        let (sender, parts) = files::write::channel();
        let feed = async move {
            let mut data = first.data;
            loop {
                if !data.is_empty() && sender.send(Part::Data(data)).await.is_err() {
                    return Ok(()); // The writer has failed, and says why.
                }
                match chunks.message().await? {
                    Some(chunk) => data = chunk.data,
                    None => break,
                }
            }
            let _ = sender.send(Part::End).await;
            Ok::<(), Status>(())
        };
        let write = self.work(move |users| files::write::write(&header, parts, users));
        let (fed, written) = tokio::join!(feed, write);
        fed?;
        written
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

    async fn tar_out(&self, _: Request<pb::TarOutRequest>) -> Reply<Self::TarOutStream> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    async fn tar_in(&self, _: Request<Streaming<pb::TarInChunk>>) -> Reply<pb::TarInReply> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    type WatchStream = Out<pb::WatchEvent>;

    async fn watch(&self, _: Request<pb::WatchRequest>) -> Reply<Self::WatchStream> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    type DialStream = Out<pb::DialFrame>;

    async fn dial(&self, _: Request<Streaming<pb::DialFrame>>) -> Reply<Self::DialStream> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    async fn stats(&self, _: Request<pb::Empty>) -> Reply<pb::StatsReply> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    async fn set_clock(&self, _: Request<pb::SetClockRequest>) -> Reply<pb::SetClockReply> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    async fn reseed(&self, _: Request<pb::ReseedRequest>) -> Reply<pb::ReseedReply> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    async fn renew_identity(
        &self,
        _: Request<pb::RenewIdentityRequest>,
    ) -> Reply<pb::RenewIdentityReply> {
        Err(fail(Code::Unsupported, "not yet"))
    }

    async fn shutdown(&self, request: Request<pb::ShutdownRequest>) -> Reply<pb::Empty> {
        let request = request.into_inner();
        self.machine.shutdown(request.grace_ms, request.exit).await;
        reply(pb::Empty {})
    }
}
