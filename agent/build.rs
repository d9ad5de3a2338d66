//! Compiles `proto/*.proto` to Rust with protox, so that this crate's own protocols need no `protoc`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut protos = Vec::new();
    for entry in std::fs::read_dir("proto")? {
        let path: PathBuf = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            protos.push(path);
        }
    }
    protos.sort();
    tonic_prost_build::configure().compile_fds(protox::compile(&protos, ["proto"])?)?;
    Ok(())
}
