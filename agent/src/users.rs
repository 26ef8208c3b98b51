//! /etc/passwd and /etc/group, read here and never through NSS: the agent is static and trusts only files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::{fs, io};

use std::os::unix::fs::MetadataExt;

use crate::errors::{Code, Result, fail};
use crate::sync::lock;
use crate::wire::Credentials;

/// A database larger than this is not read: no real one is, and a guest can write anything there.
const MAX_DATABASE: u64 = 4 << 20;
const MAX_GROUPS: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub shell: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Both databases as they stood at one time.
#[derive(Debug, Default)]
pub struct Users {
    users: Vec<User>,
    groups: Vec<Group>,
}

/// Who a program runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub user: User,
    pub credentials: Credentials,
}

impl Users {
    pub fn parse(passwd: &str, group: &str) -> Users {
        let users = passwd.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, _, home, shell] = fields[..] else {
                return None;
            };
            Some(User {
                name: name.to_owned(),
                uid: parse_id(uid)?,
                gid: parse_id(gid)?,
                home: home.to_owned(),
                shell: shell.to_owned(),
            })
        });
        let groups = group.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, members] = fields[..] else {
                return None;
            };
            let members = members.split(',').filter(|name| !name.is_empty());
            Some(Group {
                name: name.to_owned(),
                gid: parse_id(gid)?,
                members: members.map(str::to_owned).collect(),
            })
        });
        Users {
            users: users.collect(),
            groups: groups.collect(),
        }
    }

    pub fn by_uid(&self, uid: u32) -> Option<&User> {
        self.users.iter().find(|user| user.uid == uid)
    }

    pub fn owner_name(&self, uid: u32) -> String {
        self.by_uid(uid)
            .map_or_else(|| uid.to_string(), |user| user.name.clone())
    }

    pub fn group_name(&self, gid: u32) -> String {
        let group = self.groups.iter().find(|group| group.gid == gid);
        group.map_or_else(|| gid.to_string(), |group| group.name.clone())
    }

    fn user(&self, name: &str) -> Result<User> {
        if let Some(user) = self.users.iter().find(|user| user.name == name) {
            return Ok(user.clone());
        }
        let uid = parse_id(name).ok_or_else(|| {
            fail(
                Code::UserNotFound,
                format!("no user {name:?} in /etc/passwd"),
            )
        })?;
        Ok(self.by_uid(uid).cloned().unwrap_or_else(|| User {
            name: uid.to_string(),
            uid,
            gid: uid,
            home: "/".to_owned(),
            shell: "/bin/sh".to_owned(),
        }))
    }

    fn group(&self, name: &str) -> Result<u32> {
        let group = self.groups.iter().find(|group| group.name == name);
        group
            .map(|group| group.gid)
            .or_else(|| parse_id(name))
            .ok_or_else(|| {
                fail(
                    Code::UserNotFound,
                    format!("no group {name:?} in /etc/group"),
                )
            })
    }

    /// `name`, `uid`, `name:group` or `uid:gid`.
    pub fn account(&self, wanted: &str) -> Result<Account> {
        let (name, group) = match wanted.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (wanted, None),
        };
        let user = self.user(name)?;
        let gid = group
            .map(|group| self.group(group))
            .transpose()?
            .unwrap_or(user.gid);
        // With a group named, that group alone, as everywhere a user is given as "user:group".
        let mut groups = vec![gid];
        if group.is_none() {
            let member = |group: &&Group| group.members.contains(&user.name) && group.gid != gid;
            groups.extend(self.groups.iter().filter(member).map(|group| group.gid));
            groups.truncate(MAX_GROUPS);
        }
        Ok(Account {
            credentials: Credentials {
                uid: user.uid,
                gid,
                groups,
            },
            user,
        })
    }

    /// `user`, `user:group` or `:group` as the owner of a file; None leaves that half as it is.
    pub fn owner(&self, wanted: &str) -> Result<(Option<u32>, Option<u32>)> {
        if wanted.is_empty() {
            return Ok((None, None));
        }
        let (name, group) = match wanted.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (wanted, None),
        };
        let uid = if name.is_empty() {
            None
        } else {
            Some(self.user(name)?.uid)
        };
        let gid = match group {
            Some(group) if !group.is_empty() => Some(self.group(group)?),
            _ => None,
        };
        Ok((uid, gid))
    }
}

fn parse_id(text: &str) -> Option<u32> {
    // u32::MAX means "unchanged" to the kernel.
    text.parse()
        .ok()
        .filter(|&id| id != u32::MAX && !text.starts_with('+'))
}

/// A parsed file, parsed again when the file changes.
pub struct Cached<T> {
    paths: Vec<PathBuf>,
    parse: fn(&[String]) -> T,
    seen: Mutex<Option<(Vec<Stamp>, Arc<T>)>>,
}

type Stamp = Option<(u64, u64, u64, i64, i64)>;

impl<T> Cached<T> {
    pub fn new(paths: &[&str], parse: fn(&[String]) -> T) -> Cached<T> {
        let paths = paths.iter().map(PathBuf::from).collect();
        Cached {
            paths,
            parse,
            seen: Mutex::new(None),
        }
    }

    pub fn get(&self) -> Arc<T> {
        let stamps: Vec<Stamp> = self.paths.iter().map(|path| stamp(path)).collect();
        let mut seen = lock(&self.seen);
        if let Some((then, parsed)) = &*seen
            && *then == stamps
        {
            return parsed.clone();
        }
        let texts: Vec<String> = self
            .paths
            .iter()
            .map(|path| read(path).unwrap_or_default())
            .collect();
        let parsed = Arc::new((self.parse)(&texts));
        *seen = Some((stamps, parsed.clone()));
        parsed
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
    ))
}

fn read(path: &Path) -> io::Result<String> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() || meta.len() > MAX_DATABASE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

pub fn database() -> Cached<Users> {
    Cached::new(&["/etc/passwd", "/etc/group"], |texts| {
        Users::parse(&texts[0], &texts[1])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken line\nann:x:1000:1000:Ann,,,:/home/ann:/bin/zsh\n\
                          bad:x:notanumber:1::/:/bin/sh\n+::::::\n\
                          all:x:4294967295:1::/:/bin/sh\n";
    const GROUP: &str =
        "root:x:0:\nann:x:1000:\nsudo:x:27:ann,bob\ndocker:x:99:ann\nstaff:x:50:bob\n";

    fn users() -> Users {
        Users::parse(PASSWD, GROUP)
    }

    fn code<T: std::fmt::Debug>(result: Result<T>) -> String {
        let status = result.expect_err("an error");
        let code = status.metadata().get("roost-code").expect("roost-code");
        code.to_str().expect("text").to_owned()
    }

    #[test]
    fn names_and_numbers() {
        let ann = users().account("ann").expect("ann");
        assert_eq!(ann.user.home, "/home/ann");
        assert_eq!(
            ann.credentials,
            Credentials {
                uid: 1000,
                gid: 1000,
                groups: vec![1000, 27, 99]
            }
        );
        assert_eq!(users().account("1000").expect("by number"), ann);
        let grouped = users().account("ann:staff").expect("a group");
        assert_eq!(
            grouped.credentials,
            Credentials {
                uid: 1000,
                gid: 50,
                groups: vec![50]
            }
        );
        let numbers = users().account("4242:7").expect("numbers");
        assert_eq!(
            numbers.credentials,
            Credentials {
                uid: 4242,
                gid: 7,
                groups: vec![7]
            }
        );
        assert_eq!(
            users()
                .account("4242")
                .expect("unknown number")
                .credentials
                .gid,
            4242
        );
    }

    #[test]
    fn refusals() {
        for unknown in [
            "bob",
            "bad",
            "all",
            "-1",
            "4294967295",
            "ann:nogroup",
            "ann:",
            "",
            "+1",
            "1000:+1",
        ] {
            assert_eq!(
                code(users().account(unknown)),
                "USER_NOT_FOUND",
                "{unknown}"
            );
        }
    }

    #[test]
    fn owners() {
        assert_eq!(users().owner("").expect("none"), (None, None));
        assert_eq!(users().owner("ann").expect("user"), (Some(1000), None));
        assert_eq!(
            users().owner("ann:sudo").expect("both"),
            (Some(1000), Some(27))
        );
        assert_eq!(users().owner(":sudo").expect("group"), (None, Some(27)));
        assert_eq!(users().owner_name(0), "root");
        assert_eq!(users().group_name(12345), "12345");
    }
}
