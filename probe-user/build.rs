//! Builds plsprobe's eBPF object, or leaves an empty stub where `AYA_BUILD_SKIP` says so.
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use aya_build::{Package, Toolchain};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use object::build::elf::{Builder, SectionData};

fn main() -> anyhow::Result<()> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    // Debian's libpcap.a; `src/pcap.rs` says what of it is linked.
    println!("cargo:rustc-link-lib=static:-bundle=pcap");
    let packed = out.join("probe.zlib");
    if std::env::var("AYA_BUILD_SKIP").is_ok_and(|v| v == "1" || v == "true") {
        std::fs::write(&packed, [])?;
        return Ok(());
    }
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../probe-ebpf");
    let package = Package { name: "probe-ebpf", root_dir, ..Package::default() };
    aya_build::build_ebpf([package], Toolchain::Custom("stable"))?;
    let object = out.join("probe");
    let small = without_dwarf(&object).with_context(|| format!("failed to shrink `{}`", object.display()))?;
    // Its programs are much alike: a seventh of the bytes in the binary, a few milliseconds at the start of a trace.
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&small)?;
    Ok(std::fs::write(packed, encoder.finish()?)?)
}

/// Takes the debugger's sections out of the object, four fifths of it: the kernel reads BTF, and the binary carries the rest.
fn without_dwarf(path: &Path) -> anyhow::Result<Vec<u8>> {
    let whole = std::fs::read(path)?;
    let mut elf = Builder::read(whole.as_slice()).map_err(|error| anyhow!("{error}"))?;
    for section in &mut elf.sections {
        let name = section.name.as_slice();
        // Relocations of BTF are for linkers: what they would add is there already, and loaders do not read them.
        let unread: [&[u8]; 3] = [b".debug_", b".rel.debug_", b".rel.BTF"];
        section.delete = unread.iter().any(|start| name.starts_with(start));
    }
    // LLVM writes one table for the names of sections and symbols, which the writer wants apart.
    let names = elf.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = SectionData::SectionString;
    elf.delete_orphans();
    let mut small = Vec::new();
    elf.write(&mut small).map_err(|error| anyhow!("{error}"))?;
    Ok(small)
}
