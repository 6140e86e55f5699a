//! The kernel's types as far as aya needs them: the numbers of the functions that are probed.
use std::collections::BTreeMap;

use aya::{Btf, BtfError, Endianness};

/// Type ids of kernel functions, by name.
pub type FunctionIds = BTreeMap<&'static str, u32>;

/// `BTF_KIND_FWD`, `BTF_KIND_FUNC` and `BTF_KIND_FUNC_PROTO`, in a type's `info`.
const FORWARD: u32 = 7 << 24;
const FUNCTION: u32 = 12 << 24;
const PROTOTYPE: u32 = 13 << 24;

/// Type information in which each function has the number that it has in the kernel's, and all before it is nothing.
///
/// aya asks type information for a function's number and for nothing else. To have it read all of the kernel's takes
/// ten megabytes and tens of milliseconds, for numbers that are known.
///
/// Source: the kernel's `Documentation/bpf/btf.rst`; types are numbered from 1 on.
pub(super) fn of_functions(ids: &FunctionIds) -> Result<Btf, BtfError> {
    Btf::parse(&raw(ids), Endianness::default())
}

fn raw(ids: &FunctionIds) -> Vec<u8> {
    let by_id: BTreeMap<u32, &str> = ids.iter().map(|(name, id)| (*id, *name)).collect();
    let last = by_id.keys().next_back().copied().unwrap_or(0);
    let mut strings = vec![0];
    let mut types: Vec<u8> = Vec::with_capacity((last as usize + 1) * 12);
    // Of a type its name, its kind, and another type: a function's is its prototype, which comes last.
    let mut add = |fields: [u32; 3]| types.extend(fields.into_iter().flat_map(u32::to_ne_bytes));
    for id in 1..=last {
        if let Some(name) = by_id.get(&id) {
            add([strings.len() as u32, FUNCTION, last + 1]);
            strings.extend(name.bytes().chain([0]));
        } else {
            add([0, FORWARD, 0]);
        }
    }
    add([0, PROTOTYPE, 0]);
    let (types_len, strings_len) = (types.len() as u32, strings.len() as u32);
    let mut raw = Vec::with_capacity(24 + types.len() + strings.len());
    raw.extend(0xeb9f_u16.to_ne_bytes());
    raw.extend([1, 0]);
    // The header's length; then offset and length of the types and of the strings.
    raw.extend([24, 0, types_len, types_len, strings_len].into_iter().flat_map(u32::to_ne_bytes));
    raw.append(&mut types);
    raw.append(&mut strings);
    raw
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::btf;

    #[test]
    fn each_function_has_its_number() {
        let ids = FunctionIds::from([("ip_rcv", 81_234), ("a", 1), ("ipv6_rcv", 7)]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), raw(&ids)).unwrap();
        // By libbpf, which is not the one that it is for.
        let read = btf::Btf::from_path(file.path()).unwrap();
        for (name, id) in &ids {
            assert_eq!(read.function_id(name), Some(*id), "{name}");
        }
        assert_eq!(read.function_id("ip_forward"), None);
    }

    #[test]
    fn it_reads_what_it_is_for() {
        assert!(of_functions(&FunctionIds::from([("ip_rcv", 81_234)])).is_ok());
        assert!(of_functions(&FunctionIds::new()).is_ok());
    }
}
