//! Builds the eBPF objects, or leaves empty stubs where `AYA_BUILD_SKIP` says so.
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    if std::env::var("AYA_BUILD_SKIP").is_ok_and(|v| v == "1" || v == "true") {
        for object in ["standin", "lookups"] {
            std::fs::write(out.join(object), [])?;
        }
        return Ok(());
    }
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../probe-lab-ebpf");
    let package = Package { name: "probe-lab-ebpf", root_dir, ..Package::default() };
    aya_build::build_ebpf([package], Toolchain::Custom("stable"))
}
