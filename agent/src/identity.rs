//! RenewIdentity: what two machines made from one snapshot must not share.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use crate::auth::Token;
use crate::errors::{Code, Context, Result, fail};
use crate::pb::{RenewIdentityReply, RenewIdentityRequest};
use crate::pool::Pool;
use crate::program::{Programs, Wanted};
use crate::wire::Event;

const KEYGEN: Duration = Duration::from_secs(60);

pub async fn renew(
    request: RenewIdentityRequest,
    token: &Token,
    pool: &std::sync::Arc<Pool>,
    programs: &Programs,
) -> Result<RenewIdentityReply> {
    check(&request)?;
    let mut renewed = Vec::new();
    // An agent that is not the machine's first process lives on its host's identity, and one without root on what it was
    // started with: only the token is its own.
    if std::process::id() == 1 && rustix::process::geteuid().is_root() {
        if !request.machine_id.is_empty() {
            renew_machine_id(&request.machine_id).at("/etc/machine-id")?;
            renewed.push("machine_id".to_owned());
        }
        if !request.hostname.is_empty() && renew_hostname(&request.hostname)? {
            renewed.push("hostname".to_owned());
        }
        if request.renew_ssh_host_keys && renew_ssh_keys(pool, programs).await? {
            renewed.push("ssh_host_keys".to_owned());
        }
    }
    if !renewed.is_empty() {
        // Beside what comes next, not before it: an end that nobody expects must not bring the old ones back.
        tokio::task::spawn_blocking(|| fs::File::open("/").map(rustix::fs::syncfs));
    }
    if !request.new_token.is_empty() {
        token.replace(request.new_token.into_bytes());
        renewed.push("token".to_owned());
    }
    Ok(RenewIdentityReply { renewed })
}

fn check(request: &RenewIdentityRequest) -> Result<()> {
    let refuse = |why: &str| Err(fail(Code::InvalidArgument, why));
    let label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let name = &request.hostname;
    if name.len() > 64 || !name.bytes().all(label) || name.starts_with(['-', '.']) {
        return refuse("a host name is at most 64 letters, digits, dashes and dots");
    }
    let id = &request.machine_id;
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !id.is_empty() && (id.len() != 32 || !id.bytes().all(hex)) {
        return refuse("a machine id is 32 lower-case hex digits");
    }
    let token = &request.new_token;
    if token.len() > 1024 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse("a token is at most 1024 visible ASCII characters");
    }
    Ok(())
}

/// Beside it and renamed; in place where it is mounted, or where as many bytes take the others' place, which under
/// an emulated CPU is several times quicker.
fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    if let Some(file) = of_length(path, text.len())
        && file.write_all_at(text.as_bytes(), 0).is_ok()
    {
        return Ok(());
    }
    let temporary = path.with_extension("roost-new");
    fs::write(&temporary, text)?;
    fs::set_permissions(&temporary, Permissions::from_mode(mode))?;
    fs::rename(&temporary, path).or_else(|_| {
        let _ = fs::remove_file(&temporary);
        fs::write(path, text)
    })
}

/// A regular file that is just so long, to be written.
fn of_length(path: &Path, length: usize) -> Option<fs::File> {
    let file = fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let found = file.metadata().ok()?;
    (found.is_file() && found.len() == length as u64).then_some(file)
}

fn renew_machine_id(id: &str) -> io::Result<()> {
    let text = format!("{id}\n");
    replace(Path::new("/etc/machine-id"), &text, 0o444)?;
    let second = Path::new("/var/lib/dbus/machine-id");
    if fs::symlink_metadata(second).is_ok_and(|meta| meta.is_file()) {
        replace(second, &text, 0o444)?;
    }
    Ok(())
}

/// False where the kernel does not let the machine name itself.
fn renew_hostname(name: &str) -> Result<bool> {
    let old = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let set = rustix::system::sethostname(name.as_bytes()).is_ok();
    replace(Path::new("/etc/hostname"), &format!("{name}\n"), 0o644).at("/etc/hostname")?;
    // sudo and others look their own name up.
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let stale = |line: &&str| {
        let mut words = line.split_whitespace();
        words.next() == Some("127.0.1.1")
            || words.any(|word| word == old) && line.starts_with("127.0.1.")
    };
    let mut lines: Vec<&str> = hosts.lines().filter(|line| !stale(line)).collect();
    let own = format!("127.0.1.1 {name}");
    lines.push(&own);
    replace(Path::new("/etc/hosts"), &(lines.join("\n") + "\n"), 0o644).at("/etc/hosts")?;
    Ok(set)
}

/// False where there are none, or nothing to make new ones with.
async fn renew_ssh_keys(pool: &std::sync::Arc<Pool>, programs: &Programs) -> Result<bool> {
    let Ok(entries) = fs::read_dir("/etc/ssh") else {
        return Ok(false);
    };
    let is_key = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("ssh_host_") && (name.ends_with("_key") || name.ends_with("_key.pub"))
    };
    let keys: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_key(path))
        .collect();
    if keys.is_empty() {
        return Ok(false);
    }
    for key in keys {
        fs::remove_file(&key).at(key.to_string_lossy())?;
    }
    let script = "ssh-keygen -A && { pkill -HUP -x sshd || :; }";
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let account = programs.account("")?;
    let launch = programs.launch(Wanted {
        argv,
        cwd: "/",
        env: &[],
        account,
        term: None,
    })?;
    let null: OwnedFd = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .at("/dev/null")?
        .into();
    let ends = [null.as_fd(), null.as_fd(), null.as_fd()];
    let (mut supervisor, _) = pool.launch(&launch, ends).await?;
    let status = tokio::time::timeout(KEYGEN, async {
        loop {
            match supervisor.event().await {
                Ok(Event::Exited { status, empty }) => return Some((status, empty)),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    })
    .await;
    match status {
        Ok(Some((0, empty))) => {
            if empty {
                pool.give_back(supervisor);
            }
            Ok(true)
        }
        _ => Err(fail(
            Code::Internal,
            "the old SSH host keys are gone and new ones could not be made",
        )),
    }
}
