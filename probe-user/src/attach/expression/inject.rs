//! A translated expression into our eBPF object, before it is loaded.
use anyhow::{Context as _, Result, ensure};
use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{ElfFile64, ElfSymbol64, FileHeader as _};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

use super::Expression;

/// Where the stand-in is, alone.
const SECTION: &str = ".text.expression";

/// Puts the expression in the place of the stand-in: its section becomes these bytes, at the end of the file.
pub(in crate::attach) fn inject(elf: &[u8], expression: &Expression) -> Result<Vec<u8>> {
    replace(elf, &expression.code).context("failed to put the filter expression into our eBPF object")
}

fn replace(elf: &[u8], code: &[u8]) -> Result<Vec<u8>> {
    let file = ElfFile64::<LittleEndian>::parse(elf)?;
    let section = file.section_by_name(SECTION).with_context(|| format!("no section `{SECTION}`"))?;
    let is_function = |symbol: &ElfSymbol64<'_, '_, LittleEndian>| {
        symbol.section_index() == Some(section.index()) && symbol.kind() == SymbolKind::Text
    };
    let symbol = file.symbols().find(is_function).with_context(|| format!("no function in `{SECTION}`"))?;
    ensure!(
        symbol.address() == 0 && symbol.size() == section.size() && section.relocations().next().is_none(),
        "`{SECTION}` is more than one function without relocations"
    );
    let header = FileHeader64::<LittleEndian>::parse(elf)?;
    let section_header = header.e_shoff.get(LittleEndian) as usize
        + section.index().0 * usize::from(header.e_shentsize.get(LittleEndian));
    let table = file.elf_symbol_table();
    let symbols = file.section_by_index(table.section())?.file_range().context("no symbol table")?.0 as usize;
    let entry = symbols + symbol.index().0 * 24;

    let mut patched = elf.to_vec();
    patched.resize(elf.len().next_multiple_of(8), 0);
    let offset = patched.len() as u64;
    patched.extend_from_slice(code);
    // Elf64_Shdr: sh_offset at 24, sh_size at 32. Elf64_Sym: st_size at 16.
    for (at, value) in [
        (section_header + 24, offset),
        (section_header + 32, code.len() as u64),
        (entry + 16, code.len() as u64),
    ] {
        patched[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    Ok(patched)
}
