//! Files, as the machine's own kernel resolves them. Every operation here blocks, and runs on the bounded
//! pool of blocking threads.

pub mod at;
pub mod beneath;
pub mod directory;
pub mod info;
pub mod read;
pub mod remove;
pub mod survey;
pub mod write;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::errors::{Code, Result, fail};

/// An absolute path of the request, or INVALID_PATH.
pub fn path(bytes: &[u8]) -> Result<PathBuf> {
    let refuse = |why: &str| Err(fail(Code::InvalidPath, format!("the path {why}")));
    if bytes.first() != Some(&b'/') {
        return refuse("is not absolute");
    }
    if bytes.contains(&0) {
        return refuse("holds a NUL byte");
    }
    if bytes.len() > 4096 {
        return refuse("is longer than 4096 bytes");
    }
    if bytes
        .split(|&byte| byte == b'/')
        .any(|name| name.len() > 255)
    {
        return refuse("has a component longer than 255 bytes");
    }
    Ok(PathBuf::from(OsStr::from_bytes(bytes)))
}

pub fn show(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs blocking work on the bounded pool; a panic in it is an error, not an end.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(fail(
            Code::Internal,
            format!("the operation failed: {error}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert!(path(b"/a/b").is_ok());
        assert!(path(b"/\xff\xfe/..").is_ok());
        let long = [b"/".as_slice(), &[b'a'; 256]].concat();
        let longer = b"/a".repeat(2049);
        for bad in [b"".as_slice(), b"a", b"./a", b"/a\0b", &long, &longer] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        assert!(path(&b"/a".repeat(2048)).is_ok());
    }
}
