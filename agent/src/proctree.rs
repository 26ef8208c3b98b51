//! The process table as read from /proc, and who descends from whom.

use std::collections::{HashMap, HashSet};
use std::fs;

const PF_KTHREAD: u64 = 0x0020_0000;

#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
    pub zombie: bool,
    pub kernel: bool,
}

/// Every process to be seen. A process that goes away meanwhile is left out.
pub fn scan() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(read)
        .collect()
}

fn read(pid: i32) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and brackets; the fields begin after the last bracket.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let text = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let flags: u64 = fields
        .nth(3)
        .and_then(|flags| flags.parse().ok())
        .unwrap_or(0);
    Some(Process {
        pid,
        parent,
        group,
        zombie: state == "Z" || state == "X",
        kernel: flags & PF_KTHREAD != 0,
    })
}

/// Everything below `root`, without it, and without what lies below a process in `except`.
pub fn descendants(root: i32, except: &HashSet<i32>) -> Vec<Process> {
    let all = scan();
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut queue = vec![root];
    while let Some(parent) = queue.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            if !except.contains(&child.pid) {
                queue.push(child.pid);
                found.push(child);
            }
        }
    }
    found
}

pub fn kill(pid: i32, signal: i32) -> bool {
    // SAFETY: kill takes no pointers.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// Sends a signal once to each descendant that `wanted` picks, those forked meanwhile included.
pub fn signal(root: i32, signal: i32, wanted: impl Fn(&Process) -> bool) -> i32 {
    let mut reached = HashSet::new();
    for _ in 0..4 {
        let mut fresh = false;
        for process in descendants(root, &HashSet::new()) {
            if !process.zombie && wanted(&process) && reached.insert(process.pid) {
                fresh |= kill(process.pid, signal);
            }
        }
        if !fresh || signal == libc::SIGCONT {
            break;
        }
    }
    reached.len() as i32
}
