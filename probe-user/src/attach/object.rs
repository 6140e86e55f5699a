//! The embedded eBPF object: checked before it is loaded.
use std::collections::BTreeSet;
use std::io::Read as _;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{Ebpf, EbpfLoader};
use flate2::read::ZlibDecoder;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use probe_common::{Config, NamespaceSet, WIRE_VERSION};

use super::filter::Compiled;
use super::{Settings, expression, records};
use crate::sys::Wire;

/// The object as `build.rs` packs it; empty where it was left out.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe.zlib"));

/// The symbol that an object exports [`WIRE_VERSION`] under.
const WIRE_VERSION_SYMBOL: &str = "PLSPROBE_WIRE_VERSION";

/// Whether this binary was built with its eBPF object (`AYA_BUILD_SKIP=1` leaves it out).
pub fn is_built_in() -> bool {
    !PACKED.is_empty()
}

/// The object's ELF bytes.
pub(super) fn unpack() -> Result<Vec<u8>> {
    ensure!(is_built_in(), "built without its eBPF object; run `cargo xtask setup` and build with it");
    let mut elf = Vec::new();
    ZlibDecoder::new(PACKED).read_to_end(&mut elf).context("failed to unpack our eBPF object")?;
    Ok(elf)
}

/// Loads the maps, fills the filter's, and parses the programs; the programs themselves are loaded when they are attached.
pub(super) fn load(settings: &Settings) -> Result<Ebpf> {
    let mut object = unpack()?;
    check_wire_version(&object)?;
    let filter = Compiled::new(&settings.filter);
    let config = Wire(Config {
        has_prefixes: filter.has_prefixes().into(),
        filter_sources: (!settings.filter.sources.is_empty()).into(),
        wake_bytes: records::wake_bytes(settings.ring_bytes),
        addresses: filter.addresses(),
        namespaces: namespaces(&settings.namespaces),
        has_expression: settings.filter.expression.is_some().into(),
        ..settings.config
    });
    let mut loader = EbpfLoader::new();
    // Our programs have no relocations against the kernel's types; parsing those takes longest of all.
    loader.btf(None).override_global("CONFIG", &config, true).map_max_entries("RECORDS", settings.ring_bytes);
    for (map, entries) in filter.sizes() {
        loader.map_max_entries(map, entries);
    }
    if let Some(expression) = &settings.filter.expression {
        object = expression::inject(&object, expression)?;
    }
    let mut ebpf = loader.load(&object).context("failed to load our eBPF object; CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed, and Linux 5.10 or later")?;
    filter.fill(&mut ebpf)?;
    Ok(ebpf)
}

fn namespaces(wanted: &BTreeSet<u32>) -> NamespaceSet {
    if wanted.is_empty() {
        return NamespaceSet::ALL;
    }
    let mut set = NamespaceSet::default();
    for inum in wanted {
        set.insert(*inum);
    }
    set
}

fn check_wire_version(elf: &[u8]) -> Result<()> {
    let found = exported_wire_version(elf).context("failed to read our eBPF object")?;
    if found != WIRE_VERSION {
        bail!("our eBPF object has wire version {found}, expected {WIRE_VERSION}; rebuild plsprobe");
    }
    Ok(())
}

fn exported_wire_version(elf: &[u8]) -> Result<u32> {
    let file = object::File::parse(elf)?;
    let symbol = file
        .symbol_by_name(WIRE_VERSION_SYMBOL)
        .ok_or_else(|| anyhow!("no symbol `{WIRE_VERSION_SYMBOL}`"))?;
    let section = symbol
        .section_index()
        .ok_or_else(|| anyhow!("`{WIRE_VERSION_SYMBOL}` is in no section"))
        .and_then(|index| Ok(file.section_by_index(index)?))?;
    let at = usize::try_from(symbol.address())?;
    let bytes = section
        .data()?
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .ok_or_else(|| anyhow!("`{WIRE_VERSION_SYMBOL}` lies outside its section"))?;
    Ok(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_exports_our_wire_version() {
        if !is_built_in() {
            fixtures::skip!("built without its eBPF object");
            return;
        }
        assert_eq!(exported_wire_version(&unpack().unwrap()).unwrap(), WIRE_VERSION);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(check_wire_version(b"not an object").is_err());
    }
}
