//! What the machine's own kernel says of its use. The daemon adds what only the outside knows.

use std::collections::HashMap;
use std::fs;

use crate::clock;
use crate::pb::StatsReply;
use crate::workspace;

pub fn stats() -> StatsReply {
    let memory = fs::read_to_string("/proc/meminfo")
        .map(|text| meminfo(&text))
        .unwrap_or_default();
    let field = |name: &str| memory.get(name).copied().unwrap_or(0);
    let cache = field("Cached") + field("Buffers") + field("SReclaimable");
    let total = field("MemTotal");
    let available = match memory.get("MemAvailable") {
        Some(&available) => available,
        None => field("MemFree") + cache,
    };
    let disk = match workspace::here() {
        Some(here) => rustix::fs::fstatvfs(here.root()),
        None => rustix::fs::statvfs("/"),
    };
    let disk = disk.ok();
    let blocks = |count: Option<u64>| match &disk {
        Some(disk) => count.unwrap_or(0).saturating_mul(disk.f_frsize),
        None => 0,
    };
    StatsReply {
        cpu_usage_us: fs::read_to_string("/proc/stat").map_or(0, |text| cpu_us(&text)),
        memory_total_bytes: total,
        memory_used_bytes: total.saturating_sub(available),
        memory_cache_bytes: cache,
        disk_total_bytes: blocks(disk.as_ref().map(|disk| disk.f_blocks)),
        disk_used_bytes: blocks(
            disk.as_ref()
                .map(|disk| disk.f_blocks.saturating_sub(disk.f_bfree)),
        ),
        processes: processes(),
        load1: first_number("/proc/loadavg"),
        uptime_ms: (first_number("/proc/uptime") * 1000.0) as u64,
        clock_unix_ns: clock::now(),
        executions_running: 0,
        terminals_open: 0,
    }
}

fn processes() -> u32 {
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    let number = |name: &std::ffi::OsStr| {
        name.to_str()
            .is_some_and(|name| name.parse::<i32>().is_ok())
    };
    entries
        .flatten()
        .filter(|entry| number(&entry.file_name()))
        .count() as u32
}

fn first_number(path: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0.0)
}

/// In bytes.
fn meminfo(text: &str) -> HashMap<String, u64> {
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let kib: u64 = value.split_whitespace().next()?.parse().ok()?;
        Some((name.to_owned(), kib * 1024))
    };
    text.lines().filter_map(field).collect()
}

/// user, nice, system, irq, softirq and steal of all processors; ticks are 10 ms on every Linux we meet.
fn cpu_us(text: &str) -> u64 {
    let line = text
        .lines()
        .find(|line| line.starts_with("cpu "))
        .unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(|tick| tick.parse().unwrap_or(0))
        .collect();
    let busy = |index: usize| ticks.get(index).copied().unwrap_or(0);
    [0, 1, 2, 5, 6].into_iter().map(busy).sum::<u64>() * 10_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_proc() {
        assert_eq!(
            cpu_us("cpu  1 2 3 1000 500 4 5 0 9 9\ncpu0 1 1 1\n"),
            150_000
        );
        assert_eq!(cpu_us(""), 0);
        assert_eq!(
            meminfo("MemTotal:  10 kB\nbroken\nFree:\n")["MemTotal"],
            10_240
        );
        let stats = stats();
        assert!(stats.memory_total_bytes > stats.memory_used_bytes && stats.disk_total_bytes > 0);
        assert!(stats.processes > 1 && stats.uptime_ms > 0);
    }
}
