//! Compiles the contract with protox, so that a host needs no protoc.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let contract = root.join("roost/agent/v1/agent.proto");
    println!("cargo:rerun-if-changed={}", contract.display());
    let descriptors = protox::compile([&contract], [&root])?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
