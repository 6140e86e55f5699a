//! Packs the catalogue's pages, and builds plsprobe's eBPF object, or leaves an empty stub where `AYA_BUILD_SKIP` says so.
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, ensure};
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
    // Its own sources aya-build watches, not those of what it depends on.
    println!("cargo:rerun-if-changed={}", concat!(env!("CARGO_MANIFEST_DIR"), "/../probe-common/src"));
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
        if name == b".BTF.ext"
            && let SectionData::Data(data) = &mut section.data
        {
            *data = without_lines(data)?.into();
        }
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

/// Takes the lines of source out of `.BTF.ext`, which only a verifier's log shows; the functions' types stay, and with
/// them their names. aya keeps a copy of a section's lines for each program in it: ten megabytes.
///
/// Source: `struct btf_ext_header`, the kernel's `Documentation/bpf/btf.rst`.
fn without_lines(ext: &[u8]) -> anyhow::Result<Vec<u8>> {
    // Where the header has its own length, and offset and length of each part, the offsets from the header's end on.
    const HEADER_LEN: usize = 4;
    const FUNCTIONS: (usize, usize) = (8, 12);
    const LINES: (usize, usize) = (16, 20);
    const RELOCATIONS: (usize, usize) = (24, 28);
    let field = |at: usize| {
        let bytes = ext.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map(|bytes| u32::from_le_bytes(*bytes) as usize).context("`.BTF.ext` is cut short")
    };
    let header_len = field(HEADER_LEN)?;
    let has_relocations = header_len > RELOCATIONS.0;
    let others = if has_relocations { field(RELOCATIONS.1)? } else { 0 };
    ensure!(field(FUNCTIONS.0)? == 0 && others == 0, "`.BTF.ext` is not laid out as LLVM lays it out");
    let functions_len = field(FUNCTIONS.1)?;
    let mut small = ext.get(..header_len + functions_len).context("`.BTF.ext` is cut short")?.to_vec();
    let mut set = |at: usize, value: usize| small[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
    for (offset, len) in std::iter::once(LINES).chain(has_relocations.then_some(RELOCATIONS)) {
        set(offset, functions_len);
        set(len, 0);
    }
    Ok(small)
}
