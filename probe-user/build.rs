//! Packs the catalogue's pages, and builds plsprobe's eBPF object, or leaves an empty stub where `AYA_BUILD_SKIP` says so.
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
    std::fs::write(out.join("causes.zlib"), packed(pages()?.as_bytes())?)?;
    let object_path = out.join("probe.zlib");
    if std::env::var("AYA_BUILD_SKIP").is_ok_and(|v| v == "1" || v == "true") {
        std::fs::write(&object_path, [])?;
        return Ok(());
    }
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../probe-ebpf");
    let package = Package { name: "probe-ebpf", root_dir, ..Package::default() };
    aya_build::build_ebpf([package], Toolchain::Custom("stable"))?;
    let object = out.join("probe");
    let small = without_dwarf(&object).with_context(|| format!("failed to shrink `{}`", object.display()))?;
    // Its programs are much alike: a seventh of the bytes in the binary, a few milliseconds at the start of a trace.
    Ok(std::fs::write(object_path, packed(&small)?)?)
}

fn packed(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Every page of `docs/causes` but the index, each behind a NUL, its file's name and a line feed.
fn pages() -> anyhow::Result<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/causes");
    println!("cargo:rerun-if-changed={folder}");
    let listed = std::fs::read_dir(folder).with_context(|| format!("failed to list `{folder}`"))?;
    let mut paths = listed.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    let mut all = String::new();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name == "README.md" {
            continue;
        }
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
        all.extend(["\0", name, "\n", text.as_str()]);
    }
    Ok(all)
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
