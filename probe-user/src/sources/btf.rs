//! Facts from the kernel's own type information: member offsets and enumerators, which move between kernels.
//!
//! aya-ebpf has no CO-RE: offsets are resolved here and handed to the programs as globals.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, anyhow, bail};
use libbpf_rs::btf::{
    self, BtfType, TypeId,
    types::{Composite, Enum, Func, MemberAttr, Typedef},
};
use probe_model::cilium::layout;

/// Where the kernel shows its type information.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel's type information.
#[derive(Debug)]
pub struct Btf(btf::Btf<'static>);

impl Btf {
    /// Loads the running kernel's.
    ///
    /// # Errors
    ///
    /// When the kernel shows none (it needs `CONFIG_DEBUG_INFO_BTF`) or it cannot be read.
    pub fn load() -> Result<Self> {
        Self::from_path(Path::new(VMLINUX))
    }

    /// Loads a file of raw type information or an ELF file that holds it.
    ///
    /// # Errors
    ///
    /// When the file is missing, cannot be read or holds none.
    pub fn from_path(path: &Path) -> Result<Self> {
        if !path.exists() {
            bail!(
                "no type information at `{}`; plsprobe needs a kernel built with CONFIG_DEBUG_INFO_BTF",
                path.display()
            );
        }
        let btf = btf::Btf::from_path(path)
            .with_context(|| format!("failed to read type information from `{}`", path.display()))?;
        Ok(Self(btf))
    }

    /// That of a loaded program.
    ///
    /// # Errors
    ///
    /// When the program is gone, has none, or may not be asked.
    pub fn of_program(id: u32) -> Result<Self> {
        let btf = btf::Btf::from_prog_id(id);
        Ok(Self(btf.with_context(|| format!("failed to read type information of program {id}"))?))
    }

    /// The members of a struct, if there is one of that name; those of anonymous structs and unions count as its own.
    pub fn members(&self, name: &str) -> Option<Vec<layout::Member>> {
        let mut members = Vec::new();
        self.flatten(self.composite(name)?, 0, &mut members);
        Some(members)
    }

    fn flatten(&self, composite: Composite<'_>, base: u32, members: &mut Vec<layout::Member>) {
        for member in (0..composite.len()).filter_map(|i| composite.get(i)) {
            let (offset, bits) = match member.attr {
                MemberAttr::Normal { offset } => (offset, None),
                MemberAttr::BitField { offset, size } => (offset, Some(size)),
            };
            let bit_offset = base + offset;
            if let Some(name) = member.name.filter(|name| !name.is_empty()) {
                members.push(layout::Member { name: name.to_string_lossy().into_owned(), bit_offset, bits });
            } else if let Some(inner) =
                self.resolve(member.ty).and_then(|inner| Composite::try_from(inner).ok())
            {
                self.flatten(inner, bit_offset, members);
            }
        }
    }

    /// The byte offset of a member, by its path from the struct: `offset_of("sk_buff", "dev")`,
    /// `offset_of("net_device", "nd_net.net")`. Members of anonymous structs and unions count as the struct's own, as in C.
    ///
    /// # Errors
    ///
    /// When this kernel has no such struct or member, or the member is a bit field, which has no offset in bytes.
    pub fn offset_of(&self, name: &str, path: &str) -> Result<u32> {
        let root = self.composite(name).ok_or_else(|| anyhow!("this kernel's BTF has no struct `{name}`"))?;
        let (mut composite, mut bits) = (root, 0);
        let mut steps = path.split('.').peekable();
        while let Some(step) = steps.next() {
            let member = self
                .member(composite, step)
                .ok_or_else(|| anyhow!("this kernel's BTF has no member `{path}` in struct `{name}`"))?;
            bits += member.bits;
            if steps.peek().is_some() {
                composite = self
                    .resolve(member.type_id)
                    .and_then(|member| Composite::try_from(member).ok())
                    .ok_or_else(|| {
                        anyhow!("`{step}` in `{path}` of struct `{name}` is no struct or union")
                    })?;
            } else if member.is_bit_field {
                bail!("member `{path}` of struct `{name}` is a bit field, which has no byte offset");
            }
        }
        Ok(bits / 8)
    }

    /// Whether this kernel has the struct and the member: the same path as [`Self::offset_of`].
    pub fn has_member(&self, name: &str, path: &str) -> bool {
        self.offset_of(name, path).is_ok()
    }

    /// The enumerators of an enumeration, by value: `enum_names("skb_drop_reason")`.
    /// Of several names for a value the first is kept.
    ///
    /// # Errors
    ///
    /// When this kernel has no such enumeration; `skb_drop_reason` came with 5.17.
    pub fn enum_names(&self, name: &str) -> Result<BTreeMap<u32, String>> {
        let found: Enum<'_> =
            self.named(name).ok_or_else(|| anyhow!("this kernel's BTF has no enum `{name}`"))?;
        let mut names = BTreeMap::new();
        for member in (0..found.len()).filter_map(|i| found.get(i)) {
            let (Some(name), Ok(value)) = (member.name, u32::try_from(member.value)) else { continue };
            names.entry(value).or_insert_with(|| name.to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// The type id of a kernel function, as fentry programs are loaded for it.
    pub fn function_id(&self, name: &str) -> Option<u32> {
        self.named::<Func<'_>>(name).map(|function| function.type_id().into())
    }

    /// The type id of a tracepoint, as typed programs are loaded for it: `kfree_skb` has the typedef `btf_trace_kfree_skb`.
    pub fn tracepoint_id(&self, name: &str) -> Option<u32> {
        let typedef = self.named::<Typedef<'_>>(&format!("btf_trace_{name}"));
        typedef.map(|typedef| typedef.type_id().into())
    }

    fn composite(&self, name: &str) -> Option<Composite<'_>> {
        self.named(name)
    }

    /// A type by name and kind. A typedef or function may have the same name: then every type is looked at.
    fn named<'a, K: TryFrom<BtfType<'a>>>(&'a self, name: &str) -> Option<K> {
        self.0.type_by_name(name).or_else(|| {
            self.0
                .type_by_kind::<BtfType<'a>>()
                .filter(|found| found.name().is_some_and(|found| found == name))
                .find_map(|found| K::try_from(found).ok())
        })
    }

    /// The type behind typedefs, `const` and the like.
    fn resolve(&self, type_id: TypeId) -> Option<BtfType<'_>> {
        Some(self.0.type_by_id::<BtfType<'_>>(type_id)?.skip_mods_and_typedefs())
    }

    fn member(&self, composite: Composite<'_>, name: &str) -> Option<Member> {
        for member in (0..composite.len()).filter_map(|i| composite.get(i)) {
            let (bits, is_bit_field) = match member.attr {
                MemberAttr::Normal { offset } => (offset, false),
                MemberAttr::BitField { offset, .. } => (offset, true),
            };
            match member.name {
                Some(found) if found == name => {
                    return Some(Member { bits, is_bit_field, type_id: member.ty });
                }
                Some(_) => {}
                None => {
                    let inner = self.resolve(member.ty).and_then(|ty| Composite::try_from(ty).ok());
                    if let Some(found) = inner.and_then(|inner| self.member(inner, name)) {
                        return Some(Member { bits: bits + found.bits, ..found });
                    }
                }
            }
        }
        None
    }
}

/// Where a member lies in its struct.
struct Member {
    bits: u32,
    is_bit_field: bool,
    type_id: TypeId,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The running kernel's, or nothing on a machine that has none.
    fn kernel() -> Option<Btf> {
        let btf = Path::new(VMLINUX).exists().then(|| Btf::load().unwrap());
        if btf.is_none() {
            fixtures::skip!("no {VMLINUX}");
        }
        btf
    }

    #[test]
    fn members_of_the_running_kernel() {
        let Some(btf) = kernel() else { return };
        // `struct sk_buff` begins with a union of structs that begin with next and prev, since 3.15 at least.
        assert_eq!(btf.offset_of("sk_buff", "next").unwrap(), 0);
        assert_eq!(btf.offset_of("sk_buff", "prev").unwrap(), 8);
        assert_eq!(btf.offset_of("sk_buff", "dev").unwrap(), 16);
        // ABI: both are in the uapi headers.
        assert_eq!(btf.offset_of("iphdr", "daddr").unwrap(), 16);
        assert_eq!(btf.offset_of("tcphdr", "window").unwrap(), 14);
        // A named struct inside: the sum of both.
        let list = btf.offset_of("net_device", "dev_list").unwrap();
        assert_eq!(btf.offset_of("net_device", "dev_list.prev").unwrap(), list + 8);
        assert!(btf.offset_of("bpf_map", "name").unwrap() > 0);
    }

    #[test]
    fn members_with_their_bits() {
        let Some(btf) = kernel() else { return };
        // ABI: `struct tcphdr` of the uapi headers.
        let members = btf.members("tcphdr").unwrap();
        let find = |name: &str| members.iter().find(|member| member.name == name).unwrap();
        assert_eq!((find("seq").bit_offset, find("seq").bits), (32, None));
        assert_eq!((find("syn").bit_offset, find("syn").bits), (105, Some(1)));
        // Inside anonymous structs and unions.
        let buffer = btf.members("sk_buff").unwrap();
        assert!(buffer.iter().any(|member| member.name == "dev" && member.bit_offset == 128));
        assert_eq!(btf.members("no_such_struct"), None);
    }

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let Some(btf) = kernel() else { return };
        let error = |name, path| format!("{:#}", btf.offset_of(name, path).unwrap_err());
        assert_eq!(error("no_such_struct", "x"), "this kernel's BTF has no struct `no_such_struct`");
        assert_eq!(
            error("sk_buff", "no_such"),
            "this kernel's BTF has no member `no_such` in struct `sk_buff`"
        );
        assert_eq!(error("sk_buff", "len.x"), "`len` in `len.x` of struct `sk_buff` is no struct or union");
        assert_eq!(
            error("tcphdr", "syn"),
            "member `syn` of struct `tcphdr` is a bit field, which has no byte offset"
        );
        assert!(btf.enum_names("no_such_enum").is_err());
        assert!(!btf.has_member("sk_buff", "no_such") && btf.has_member("sk_buff", "len"));
    }

    #[test]
    fn drop_reasons_have_names() {
        let Some(btf) = kernel() else { return };
        let names = btf.enum_names("skb_drop_reason").unwrap();
        assert!(names.len() > 50, "{names:?}");
        assert!(names.values().any(|name| name == "SKB_DROP_REASON_NO_SOCKET"), "{names:?}");
    }

    #[test]
    fn functions_and_tracepoints_have_ids() {
        let Some(btf) = kernel() else { return };
        assert!(btf.tracepoint_id("kfree_skb").unwrap() > 0);
        assert_eq!(btf.tracepoint_id("no_such"), None);
        assert_eq!(btf.function_id("no_such_function"), None);
        assert!(btf.function_id("tcp_v4_rcv").unwrap() > 0);
    }

    #[test]
    fn a_file_that_is_missing() {
        let error = Btf::from_path(Path::new("/nonexistent/vmlinux")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no type information at `/nonexistent/vmlinux`; plsprobe needs a kernel built with CONFIG_DEBUG_INFO_BTF"
        );
    }
}
