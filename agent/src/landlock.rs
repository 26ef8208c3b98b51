//! Landlock: the agent gives up, for itself and all it will ever start, to write anywhere but where it says.
//!
//! As far as the kernel has it: older ones restrict less, some nothing at all.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, LandlockStatus, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    path_beneath_rules,
};

/// What is handled; later kernels could restrict more (ioctls of devices, which terminals need).
const FILES: ABI = ABI::V3;
const SCOPES: ABI = ABI::V6;

/// From now on the calling thread, and what it starts, reads only below `read` and `write`, writes only below `write`,
/// gains no privilege by executing anything, and, from ABI 6 on, signals nobody and reaches no abstract socket outside.
/// The kernel's ABI, of which that much is in force; None: nothing is. Paths that are not there are nobody's to use.
///
/// To be called while the process has one thread.
pub fn restrict(read: &[&Path], write: &[&Path]) -> io::Result<Option<u32>> {
    let status = enforce(read, write).map_err(io::Error::other)?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => None,
        (_, LandlockStatus::Available { effective_abi, .. }) => Some(effective_abi as u32),
        _ => None,
    })
}

/// As `restrict`, for whom it is a guardrail: the ABI as a number that is told, 0 where nothing is in force.
pub fn held(read: &[&Path], write: &[&Path]) -> u32 {
    let held = restrict(read, write).unwrap_or_else(|error| {
        eprintln!("roost-agent: Landlock: {error}");
        None
    });
    held.unwrap_or(0)
}

fn enforce(read: &[&Path], write: &[&Path]) -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        // Without it (ABI 1) nothing could be renamed from one directory to another, by nobody: then rather nothing.
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(FILES))?
        .scope(Scope::from_all(SCOPES))?
        .create()?
        .add_rules(path_beneath_rules(read, AccessFs::from_read(FILES)))?
        .add_rules(path_beneath_rules(write, writing()))?
        .restrict_self()
}

/// All there is to do below a directory but making devices.
fn writing() -> BitFlags<AccessFs> {
    AccessFs::from_all(FILES) & !(AccessFs::MakeChar | AccessFs::MakeBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;

    /// In a child: it holds for good.
    #[test]
    fn writes_only_where_it_said() {
        let place = std::env::temp_dir().join(format!("roost-landlock-{}", std::process::id()));
        let (inside, outside) = (place.join("in"), place.join("out"));
        fs::create_dir_all(inside.join("deep")).expect("a directory");
        fs::create_dir_all(&outside).expect("a directory");
        fs::write(outside.join("known"), "x").expect("a file");
        // SAFETY: the child does its work on its one thread and leaves without destructors.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let held = std::panic::catch_unwind(|| {
                let paths = [inside.as_path(), &place.join("missing")];
                if restrict(&[Path::new("/")], &paths)
                    .expect("a ruleset")
                    .is_none()
                {
                    return true;
                }
                let moved = fs::write(inside.join("a"), "1").is_ok()
                    && fs::rename(inside.join("a"), inside.join("deep/a")).is_ok();
                let read = fs::read(outside.join("known")).is_ok();
                let wrote = fs::write(outside.join("new"), "").is_ok()
                    || fs::write(outside.join("known"), "y").is_ok()
                    || fs::rename(inside.join("deep/a"), outside.join("a")).is_ok()
                    || fs::remove_file(outside.join("known")).is_ok();
                moved && read && !wrote
            });
            // SAFETY: ends the copy at once.
            unsafe { libc::_exit(i32::from(!held.unwrap_or(false))) };
        }
        let mut status = 0;
        // SAFETY: waits for the child above.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        fs::remove_dir_all(&place).expect("removed");
        assert_eq!(status, 0);
    }
}
