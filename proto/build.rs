//! Generates the control plane's messages and gRPC skins from `schema/` with a compiler written in Rust: no protoc is needed.

#[cfg(feature = "control")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema");
    let files = protox::compile(["common.proto", "mgmtd.proto", "meta.proto", "kv.proto"], ["schema"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}

#[cfg(not(feature = "control"))]
fn main() {}
