//! Compiles our `.proto` files with protox, so that no `protoc` is needed on the machine.

use prost::Message;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let published = ["order/Proxy.proto", "fanwire/v1/publisher.proto"];
    let between_machines = ["fanwire/v1/relay.proto", "etcd/rpc.proto"];
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // For gRPC reflection, which is the publishers'.
    std::fs::write(out.join("descriptors.bin"), protox::compile(published, ["proto"])?.encode_to_vec())?;
    let files = protox::compile(published.iter().chain(&between_machines), ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
