//! Compiles `proto/` with a pure-Rust compiler, so that no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "proto/keypool/v1/error_reason.proto",
        "proto/keypool/v1/key_package_service.proto",
        "proto/keypool/v1/pool_event.proto",
        "proto/keypool/v1/pool_status.proto",
    ];
    // Source info carries the comments, so that reflection shows the documentation too.
    let descriptors = protox::Compiler::new(["proto"])?
        .include_source_info(true)
        .include_imports(true)
        .open_files(files.map(|file| file.trim_start_matches("proto/")))?
        .file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("keypool.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".keypool.v1")
        .codec_path("crate::codec::MessageCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
