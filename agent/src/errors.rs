//! The stable error codes of the contract, and how an `errno` becomes one.

use std::io;

use tonic::{Code as Grpc, Status, metadata::MetadataValue};

use crate::workspace;

pub type Result<T> = std::result::Result<T, Status>;

macro_rules! codes {
    ($($variant:ident $name:literal $grpc:ident,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($variant),* }

        impl Code {
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name),* }
            }

            fn grpc(self) -> Grpc {
                match self { $(Code::$variant => Grpc::$grpc),* }
            }
        }
    };
}

codes! {
    FileNotFound "FILE_NOT_FOUND" NotFound,
    FileExists "FILE_EXISTS" AlreadyExists,
    NotADirectory "NOT_A_DIRECTORY" FailedPrecondition,
    IsADirectory "IS_A_DIRECTORY" FailedPrecondition,
    DirectoryNotEmpty "DIRECTORY_NOT_EMPTY" FailedPrecondition,
    FileKindRefused "FILE_KIND_REFUSED" FailedPrecondition,
    FileTooLarge "FILE_TOO_LARGE" ResourceExhausted,
    PermissionDenied "PERMISSION_DENIED" PermissionDenied,
    InvalidPath "INVALID_PATH" InvalidArgument,
    NoSpace "NO_SPACE" ResourceExhausted,
    UserNotFound "USER_NOT_FOUND" NotFound,
    CommandNotFound "COMMAND_NOT_FOUND" NotFound,
    ExecutionNotFound "EXECUTION_NOT_FOUND" NotFound,
    ExecutionExists "EXECUTION_EXISTS" AlreadyExists,
    TerminalNotFound "TERMINAL_NOT_FOUND" NotFound,
    InvalidState "INVALID_STATE" FailedPrecondition,
    LimitExceeded "LIMIT_EXCEEDED" ResourceExhausted,
    InvalidArgument "INVALID_ARGUMENT" InvalidArgument,
    PortClosed "PORT_CLOSED" FailedPrecondition,
    Unsupported "UNSUPPORTED" Unimplemented,
    Internal "INTERNAL" Internal,
}

/// A status with its stable code in `roost-code`. Messages are kept short: they travel in a header.
pub fn fail(code: Code, message: impl Into<String>) -> Status {
    let mut message: String = message.into();
    if message.len() > 1024 {
        let mut end = 1021;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...");
    }
    let mut status = Status::new(code.grpc(), message);
    status
        .metadata_mut()
        .insert("roost-code", MetadataValue::from_static(code.name()));
    status
}

pub fn code_of_errno(errno: i32) -> Code {
    match errno {
        libc::ENOENT => Code::FileNotFound,
        libc::EEXIST => Code::FileExists,
        libc::ENOTDIR => Code::NotADirectory,
        libc::EISDIR => Code::IsADirectory,
        libc::ENOTEMPTY => Code::DirectoryNotEmpty,
        libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY => Code::PermissionDenied,
        libc::ENOSPC | libc::EDQUOT => Code::NoSpace,
        libc::EFBIG | libc::EOVERFLOW => Code::FileTooLarge,
        libc::ENAMETOOLONG | libc::ELOOP | libc::EILSEQ => Code::InvalidPath,
        libc::ENXIO | libc::ENODEV => Code::FileKindRefused,
        libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM => Code::LimitExceeded,
        libc::EINVAL => Code::InvalidArgument,
        libc::ENOSYS | libc::EOPNOTSUPP => Code::Unsupported,
        libc::EBUSY | libc::EXDEV => Code::InvalidState,
        _ => Code::Internal,
    }
}

pub fn errno(number: i32, what: impl AsRef<str>) -> Status {
    if number == libc::EXDEV && workspace::here().is_some() {
        let message = format!(
            "{}: it leads out of this machine's directory",
            what.as_ref()
        );
        return fail(Code::InvalidPath, message);
    }
    let cause = io::Error::from_raw_os_error(number);
    fail(code_of_errno(number), format!("{}: {cause}", what.as_ref()))
}

pub fn io_error(error: &io::Error, what: impl AsRef<str>) -> Status {
    let code = match (error.raw_os_error(), error.kind()) {
        (Some(number), _) => code_of_errno(number),
        (None, io::ErrorKind::ConnectionAborted) => Code::InvalidState,
        (None, io::ErrorKind::InvalidData) => Code::InvalidArgument,
        (None, io::ErrorKind::QuotaExceeded) => Code::LimitExceeded,
        _ => Code::Internal,
    };
    fail(code, format!("{}: {error}", what.as_ref()))
}

/// Names the thing an I/O error happened to.
pub trait Context<T> {
    fn at(self, what: impl AsRef<str>) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn at(self, what: impl AsRef<str>) -> Result<T> {
        self.map_err(|error| io_error(&error, what))
    }
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn at(self, what: impl AsRef<str>) -> Result<T> {
        self.map_err(|error| errno(error.raw_os_error(), what))
    }
}
