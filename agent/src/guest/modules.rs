//! The kernel's modules without which there is no disk: `/modules/NN-NAME.ko`, loaded in order of name.

use std::fs;
use std::path::Path;

const DIRECTORY: &str = "/modules";

/// Loads all there are and takes them off the RAM disk. One that the kernel has already is no error.
pub fn load_all() -> Result<(), String> {
    let directory = Path::new(DIRECTORY);
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(());
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        load(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let _ = fs::remove_dir_all(directory);
    Ok(())
}

fn load(path: &Path) -> std::io::Result<()> {
    let file = fs::File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
