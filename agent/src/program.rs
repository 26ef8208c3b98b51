//! From a request (command, user, environment, directory) to what a supervisor launches.

use crate::errors::{Code, Result, fail};
use crate::pb::EnvVar;
use crate::users::{self, Account, Cached, User, Users};
use crate::wire::{Credentials, Launch};
use crate::workspace;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub struct Programs {
    users: Cached<Users>,
    environment: Cached<Vec<(String, String)>>,
    /// Where the agent's own user lives, if that is not what /etc/passwd says.
    workdir: Option<String>,
    uid: u32,
    gid: u32,
}

pub struct Wanted<'a> {
    pub argv: Vec<String>,
    pub cwd: &'a str,
    pub env: &'a [EnvVar],
    pub account: Account,
    pub term: Option<&'a str>,
}

impl Programs {
    pub fn new(workdir: Option<String>) -> Programs {
        Programs {
            users: users::database(),
            environment: Cached::new(&["/etc/environment"], |texts| parse_environment(&texts[0])),
            workdir,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    pub fn users(&self) -> std::sync::Arc<Users> {
        self.users.get()
    }

    /// Who is meant by the `user` of a request. Without root nobody but the agent's own user.
    pub fn account(&self, wanted: &str) -> Result<Account> {
        let users = self.users.get();
        if wanted.is_empty() || self.uid != 0 {
            let own = self.own_account(&users);
            if !wanted.is_empty() {
                let other = users.account(wanted)?;
                if (other.credentials.uid, other.credentials.gid) != (self.uid, self.gid) {
                    let message = "this machine runs programs as its own user only";
                    return Err(fail(Code::PermissionDenied, message));
                }
            }
            return Ok(own);
        }
        let mut account = users.account(wanted)?;
        if account.user.uid == self.uid {
            self.rehome(&mut account.user);
        }
        Ok(account)
    }

    fn own_account(&self, users: &Users) -> Account {
        let known = users.by_uid(self.uid).cloned();
        let mut user = known.unwrap_or_else(|| User {
            name: if self.uid == 0 {
                "root".to_owned()
            } else {
                self.uid.to_string()
            },
            uid: self.uid,
            gid: self.gid,
            home: if self.uid == 0 {
                "/root".to_owned()
            } else {
                "/".to_owned()
            },
            shell: "/bin/sh".to_owned(),
        });
        if workspace::here().is_some() && !user.shell.ends_with("sh") {
            user.shell = "/bin/sh".to_owned(); // accounts that nobody logs in to
        }
        let groups = match self.uid {
            0 => users
                .account("0")
                .map_or(vec![self.gid], |account| account.credentials.groups),
            _ => vec![self.gid],
        };
        self.rehome(&mut user);
        Account {
            user,
            credentials: Credentials {
                uid: self.uid,
                gid: self.gid,
                groups,
            },
        }
    }

    fn rehome(&self, user: &mut User) {
        if let Some(workdir) = &self.workdir {
            user.home.clone_from(workdir);
        }
    }

    pub fn launch(&self, wanted: Wanted<'_>) -> Result<Launch> {
        let Wanted {
            argv,
            cwd,
            env,
            account,
            term,
        } = wanted;
        if argv.first().is_none_or(|program| program.is_empty()) {
            return Err(fail(Code::InvalidArgument, "the command is empty"));
        }
        if argv.iter().any(|argument| argument.contains('\0')) {
            return Err(fail(Code::InvalidArgument, "an argument holds a NUL byte"));
        }
        if cwd.contains('\0') || cwd.len() > 4096 || !(cwd.is_empty() || cwd.starts_with('/')) {
            return Err(fail(
                Code::InvalidPath,
                "the working directory must be an absolute path",
            ));
        }
        let user = &account.user;
        let shell = if user.shell.is_empty() {
            "/bin/sh"
        } else {
            &user.shell
        };
        let mut pairs: Vec<(&str, &str)> = vec![("PATH", DEFAULT_PATH), ("LANG", "C.UTF-8")];
        let from_file = self.environment.get();
        for (name, value) in from_file.iter() {
            set(&mut pairs, name, value);
        }
        set(&mut pairs, "HOME", &user.home);
        set(&mut pairs, "USER", &user.name);
        set(&mut pairs, "LOGNAME", &user.name);
        set(&mut pairs, "SHELL", shell);
        if let Some(here) = workspace::here().and_then(|here| here.path.to_str()) {
            set(&mut pairs, "ROOST_WORKSPACE", here);
        }
        if let Some(term) = term {
            set(&mut pairs, "TERM", term);
        }
        for var in env {
            let bad_name = var.name.is_empty() || var.name.contains(['=', '\0']);
            if bad_name || var.value.contains('\0') {
                let message = format!("environment variable {:?} is not valid", var.name);
                return Err(fail(Code::InvalidArgument, message));
            }
        }
        // Many variables must not cost the square of their number.
        let mut given = std::collections::HashMap::new();
        for var in env {
            given.insert(var.name.as_str(), var.value.as_str());
        }
        pairs.retain(|(name, _)| !given.contains_key(name));
        pairs.extend(given);
        let path = pairs
            .iter()
            .find(|(name, _)| *name == "PATH")
            .map_or("", |(_, value)| value);
        let files = candidates(&argv[0], path);
        let env = pairs
            .iter()
            .map(|(name, value)| format!("{name}={value}").into_bytes());
        Ok(Launch {
            files,
            env: env.collect(),
            argv: argv.into_iter().map(String::into_bytes).collect(),
            cwd: if cwd.is_empty() {
                user.home.as_bytes().to_vec()
            } else {
                cwd.as_bytes().to_vec()
            },
            cwd_optional: cwd.is_empty(),
            credentials: Some(account.credentials),
            terminal: term.is_some(),
        })
    }
}

fn set<'a>(pairs: &mut Vec<(&'a str, &'a str)>, name: &'a str, value: &'a str) {
    match pairs.iter_mut().find(|(known, _)| *known == name) {
        Some(pair) => pair.1 = value,
        None => pairs.push((name, value)),
    }
}

fn candidates(program: &str, path: &str) -> Vec<Vec<u8>> {
    if program.contains('/') {
        return vec![program.as_bytes().to_vec()];
    }
    let directories = path
        .split(':')
        .filter(|directory| directory.starts_with('/'));
    directories
        .map(|directory| format!("{directory}/{program}").into_bytes())
        .take(64)
        .collect()
}

/// `NAME=value`, the value perhaps in quotes, perhaps after `export`; as pam_env reads it, without its
/// expansions.
fn parse_environment(text: &str) -> Vec<(String, String)> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .take(1000);
    let pairs = lines.filter_map(|line| {
        let (name, value) = line
            .strip_prefix("export ")
            .unwrap_or(line)
            .split_once('=')?;
        let name = name.trim();
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || !name.bytes().all(valid) {
            return None;
        }
        let value = value.trim();
        let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        (!value.contains('\0')).then(|| (name.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_files() {
        let text = "# c\nPATH=\"/a:/b\"\nexport X='1 2'\nbad name=3\n=4\nY = 5\nnothing\n";
        let pairs = [("PATH", "/a:/b"), ("X", "1 2"), ("Y", "5")];
        assert_eq!(
            parse_environment(text),
            pairs.map(|(name, value)| (name.into(), value.into()))
        );
    }

    #[test]
    fn searches_absolute_directories_only() {
        assert_eq!(
            candidates("x", "/a::b:/c"),
            [b"/a/x".to_vec(), b"/c/x".to_vec()]
        );
        assert_eq!(candidates("./x", "/a"), [b"./x".to_vec()]);
    }
}
