//! The kernel's types as far as aya needs them: the numbers of the functions and tracepoints that are hooked.
use std::collections::BTreeMap;

use aya::{Btf, BtfError, Endianness};

/// Type ids of what is hooked in the running kernel, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeIds {
    /// Of functions.
    pub functions: BTreeMap<&'static str, u32>,
    /// Of tracepoints: `kfree_skb` has that of the type `btf_trace_kfree_skb`.
    pub tracepoints: BTreeMap<&'static str, u32>,
}

/// `BTF_KIND_FWD`, `BTF_KIND_TYPEDEF`, `BTF_KIND_FUNC` and `BTF_KIND_FUNC_PROTO`, in a type's `info`.
const FORWARD: u32 = 7 << 24;
const TYPEDEF: u32 = 8 << 24;
const FUNCTION: u32 = 12 << 24;
const PROTOTYPE: u32 = 13 << 24;

/// Type information in which each of them has the number that it has in the kernel's, and all before it is nothing.
///
/// aya asks type information for these numbers and for nothing else. To have it read all of the kernel's takes
/// ten megabytes and tens of milliseconds, for numbers that are known.
///
/// Source: the kernel's `Documentation/bpf/btf.rst`; types are numbered from 1 on.
pub(super) fn of_hooks(ids: &TypeIds) -> Result<Btf, BtfError> {
    Btf::parse(&raw(ids), Endianness::default())
}

fn raw(ids: &TypeIds) -> Vec<u8> {
    let functions = ids.functions.iter().map(|(name, id)| (*id, (FUNCTION, (*name).to_owned())));
    let tracepoints = ids.tracepoints.iter().map(|(name, id)| (*id, (TYPEDEF, format!("btf_trace_{name}"))));
    let by_id: BTreeMap<u32, (u32, String)> = functions.chain(tracepoints).collect();
    let last = by_id.keys().next_back().copied().unwrap_or(0);
    let mut strings = vec![0];
    let mut types: Vec<u8> = Vec::with_capacity((last as usize + 1) * 12);
    // Of a type its name, its kind, and another type: here the prototype, which comes last.
    let mut add = |fields: [u32; 3]| types.extend(fields.into_iter().flat_map(u32::to_ne_bytes));
    for id in 1..=last {
        if let Some((kind, name)) = by_id.get(&id) {
            add([strings.len() as u32, *kind, last + 1]);
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

    fn some() -> TypeIds {
        TypeIds {
            functions: BTreeMap::from([("ip_rcv", 81_234), ("a", 1), ("ipv6_rcv", 7)]),
            tracepoints: BTreeMap::from([("kfree_skb", 8), ("ip_rcv", 2)]),
        }
    }

    #[test]
    fn each_has_its_number() {
        let ids = some();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), raw(&ids)).unwrap();
        // By libbpf, which is not the one that it is for.
        let read = btf::Btf::from_path(file.path()).unwrap();
        for (name, id) in &ids.functions {
            assert_eq!(read.function_id(name), Some(*id), "{name}");
        }
        for (name, id) in &ids.tracepoints {
            assert_eq!(read.tracepoint_id(name), Some(*id), "{name}");
        }
        assert_eq!(read.function_id("ip_forward"), None);
    }

    #[test]
    fn it_reads_what_it_is_for() {
        assert!(of_hooks(&some()).is_ok());
        assert!(of_hooks(&TypeIds::default()).is_ok());
    }
}
