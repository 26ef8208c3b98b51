//! The guest's mounts: the kernel's own file systems, the root disk in place of the RAM disk, the rest.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};

use super::parameters::Parameters;
use crate::inside;

const NEW_ROOT: &str = "/root-disk";
/// A disk is there as soon as its driver is; this is for a host that hardly runs.
const DISK_WAIT: Duration = Duration::from_secs(10);
const CGROUPS: &str = "/sys/fs/cgroup";

const PLAIN: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

fn make(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    fs::create_dir_all(target)?;
    mount(source, target, kind, flags, options.as_c_str()).map_err(|error| {
        io::Error::new(io::Error::from(error).kind(), format!("{target}: {error}"))
    })
}

/// What init itself reads.
pub fn kernel() -> io::Result<()> {
    make("proc", "/proc", "proc", PLAIN, "")?;
    make("sysfs", "/sys", "sysfs", PLAIN, "")?;
    match make(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MountFlags::NOSUID,
        "mode=0755",
    ) {
        // The kernel may have mounted it for us.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        result => result,
    }
}

/// Makes the root disk the root, with the kernel's file systems moved onto it and the rest mounted.
pub fn switch_root(parameters: &Parameters, kernel: &str) -> Result<(), String> {
    wait_for(&parameters.root)?;
    // No background writes to a disk that is to stay as small as what was put on it.
    make(
        &parameters.root,
        NEW_ROOT,
        "ext4",
        MountFlags::empty(),
        "noinit_itable",
    )
    .map_err(|error| format!("the root disk {}: {error}", parameters.root))?;
    pivot().map_err(|error| format!("cannot change to the root disk: {error}"))?;
    rest().map_err(|error| error.to_string())?;
    if !parameters.modules.is_empty() {
        wait_for(&parameters.modules)?;
        let target = format!("/lib/modules/{kernel}");
        make(
            &parameters.modules,
            &target,
            "ext4",
            PLAIN | MountFlags::RDONLY,
            "",
        )
        .map_err(|error| format!("the modules' disk {}: {error}", parameters.modules))?;
    }
    for volume in &parameters.volumes {
        wait_for(&volume.device)?;
        let (flags, options) = match volume.read_only {
            true => (MountFlags::NODEV | MountFlags::RDONLY, ""),
            false => (MountFlags::NODEV, "noinit_itable"),
        };
        make(&volume.device, &volume.path, "ext4", flags, options)
            .map_err(|error| format!("the volume at {}: {error}", volume.path))?;
    }
    Ok(())
}

fn wait_for(device: &str) -> Result<(), String> {
    let deadline = Instant::now() + DISK_WAIT;
    while !Path::new(device).exists() {
        if Instant::now() > deadline {
            return Err(format!("{device} did not appear"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn pivot() -> io::Result<()> {
    for name in ["dev", "proc", "sys"] {
        let target = format!("{NEW_ROOT}/{name}");
        fs::create_dir_all(&target)?;
        mount_move(format!("/{name}"), target)?;
    }
    // The RAM disk cannot be unmounted: the new root is moved over it.
    std::env::set_current_dir(NEW_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}

fn rest() -> io::Result<()> {
    let shared = MountFlags::NOSUID | MountFlags::NODEV;
    make(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "gid=5,mode=0620,ptmxmode=0666",
    )?;
    make("tmpfs", "/dev/shm", "tmpfs", shared, "mode=1777")?;
    make("tmpfs", "/run", "tmpfs", shared, "mode=0755")?;
    // No machine fails without it.
    let _ = helper();
    // Not on every kernel, and no machine fails without it.
    let _ = make("mqueue", "/dev/mqueue", "mqueue", PLAIN, "");
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(target, format!("/dev/{link}"));
    }
    make("cgroup2", CGROUPS, "cgroup2", PLAIN, "nsdelegate")?;
    give_controllers();
    Ok(())
}

/// This program, which is on the RAM disk alone, where the machine's programs find it by its other name.
fn helper() -> io::Result<()> {
    fs::create_dir_all(inside::PLACE)?;
    let path = format!("{}/roost", inside::PLACE);
    fs::File::create(&path)?;
    Ok(mount_bind("/proc/self/exe", path)?)
}

/// Container runtimes inside find every controller that the kernel has.
fn give_controllers() {
    let names = fs::read_to_string(format!("{CGROUPS}/cgroup.controllers")).unwrap_or_default();
    for name in names.split_ascii_whitespace() {
        // One that refuses must not take the others with it.
        let _ = fs::write(
            format!("{CGROUPS}/cgroup.subtree_control"),
            format!("+{name}"),
        );
    }
}

/// Where disks are mounted: the root, volumes, and what else was mounted inside.
fn disks() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut paths: Vec<_> = table
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_, path, kind, options) =
                (words.next()?, words.next()?, words.next()?, words.next()?);
            let writable = options.split(',').any(|option| option == "rw");
            (kind == "ext4" && writable && !path.contains('\\')).then(|| path.to_owned())
        })
        .collect();
    if paths.is_empty() {
        paths.push("/".to_owned());
    }
    paths
}

/// After this no disk needs recovery. Where something still writes the kernel is told to stop it.
pub fn make_read_only() {
    let mut busy = false;
    for path in disks() {
        busy |= mount_remount(path, MountFlags::RDONLY, c"") == Err(Errno::BUSY);
    }
    if busy {
        let _ = fs::write("/proc/sysrq-trigger", "u");
        std::thread::sleep(Duration::from_millis(200));
    }
    rustix::fs::sync();
}
