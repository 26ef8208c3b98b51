//! `roost-agent-fuzz DIRECTORY`: writes what each target is begun with to DIRECTORY/TARGET/.

#[path = "../../tests/targets/mod.rs"]
mod targets;

fn main() -> std::io::Result<()> {
    let directory = std::env::args_os().nth(1).expect("a directory");
    let directory = std::path::Path::new(&directory);
    for (name, _) in targets::ALL {
        std::fs::create_dir_all(directory.join(name))?;
        for (number, seed) in targets::seeds(name).iter().enumerate() {
            std::fs::write(directory.join(name).join(format!("{number:03}")), seed)?;
        }
    }
    Ok(())
}
