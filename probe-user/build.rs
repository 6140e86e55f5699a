//! Builds plsprobe's eBPF object, or leaves an empty stub where `AYA_BUILD_SKIP` says so.
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    let stub = out.join("probe");
    if std::env::var("AYA_BUILD_SKIP").is_ok_and(|v| v == "1" || v == "true") {
        std::fs::write(&stub, [])?;
        return Ok(());
    }
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../probe-ebpf");
    let package = Package { name: "probe-ebpf", root_dir, ..Package::default() };
    aya_build::build_ebpf([package], Toolchain::Custom("stable"))
}
