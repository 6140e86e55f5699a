//! Cilium 1.14's maps: names, types, sizes and layouts, pinned by name.
//!
//! Source: the recorded `bpftool map show` of a 1.14 node; layouts from `bpf/lib/common.h` @1.14. Those that no
//! program of ours touches are declared too, so that the pin directory looks as on a node.
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuHashMap, PerfEventByteArray, ProgramArray},
};

/// `struct policy_key` after `prefixlen`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PolicyKey {
    pub sec_label: u32,
    pub egress: u8,
    pub protocol: u8,
    pub dport_be: u16,
}

/// `struct policy_entry`.
#[repr(C)]
pub struct PolicyEntry {
    pub proxy_port_be: u16,
    /// Bit 0 deny, bit 1 any protocol, bit 2 any port.
    pub flags: u8,
    pub auth_type: u8,
    pub pad: u32,
    pub packets: u64,
    pub bytes: u64,
}

/// `struct ipcache_key` after `prefixlen`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IpcacheKey {
    pub pad: u16,
    pub cluster_id: u8,
    pub family: u8,
    pub addr_be: [u32; 4],
}

/// `struct remote_endpoint_info`.
#[repr(C)]
pub struct RemoteEndpointInfo {
    pub sec_identity: u32,
    pub tunnel_endpoint_be: u32,
    pub pad: u16,
    pub key: u8,
    pub flags: u8,
}

/// `struct endpoint_key`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EndpointKey {
    pub addr_be: [u32; 4],
    pub family: u8,
    pub key: u8,
    pub cluster_id: u8,
    pub pad: u8,
}

/// `struct endpoint_info`.
#[repr(C)]
pub struct EndpointInfo {
    pub ifindex: u32,
    pub unused: u16,
    pub lxc_id: u16,
    /// 1: an address of the node itself.
    pub flags: u32,
    pub hole: u32,
    pub mac: [u8; 8],
    pub node_mac: [u8; 8],
    pub sec_id: u32,
    pub pad: [u32; 3],
}

/// `struct lb4_key`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Lb4Key {
    pub address_be: u32,
    pub dport_be: u16,
    pub backend_slot: u16,
    pub proto: u8,
    pub scope: u8,
    pub pad: u16,
}

/// `struct lb4_service`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Lb4Service {
    pub backend_id: u32,
    pub count: u16,
    pub rev_nat_index_be: u16,
    pub flags: u8,
    pub flags2: u8,
    pub pad: u16,
}

/// `struct lb4_backend`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Lb4Backend {
    pub address_be: u32,
    pub port_be: u16,
    pub proto: u8,
    pub flags: u8,
    pub cluster_id: u8,
    pub pad: [u8; 3],
}

/// `struct lb4_reverse_nat`, 6 bytes.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Lb4ReverseNat {
    pub address_be: u32,
    pub port_be: u16,
}

/// `struct lb4_src_range_key` after `prefixlen`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SourceRangeKey {
    pub rev_nat_id_be: u16,
    pub pad: u16,
    pub addr_be: u32,
}

/// `struct ipv4_ct_tuple`, 14 bytes; also the key of the NAT map.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct CtTuple {
    pub daddr_be: u32,
    pub saddr_be: u32,
    pub dport_be: u16,
    pub sport_be: u16,
    pub nexthdr: u8,
    pub flags: u8,
}

/// `struct ct_entry` @1.14.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CtEntry {
    pub rx_packets: u64,
    /// Holds the backend's id in service entries.
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub lifetime: u32,
    pub flags: u16,
    pub rev_nat_index_be: u16,
    pub ifindex: u16,
    pub tx_flags_seen: u8,
    pub rx_flags_seen: u8,
    pub src_sec_id: u32,
    pub last_tx_report: u32,
    pub last_rx_report: u32,
}

/// `struct ipv4_nat_entry`, 40 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NatEntry {
    pub created: u64,
    pub needs_ct: u64,
    pub pad: [u64; 2],
    pub to_addr_be: u32,
    pub to_port_be: u16,
    pub pad2: u16,
}

/// `struct metrics_key`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MetricsKey {
    pub reason: u8,
    pub dir: u8,
    pub pad: [u8; 6],
}

/// `struct metrics_value`.
#[repr(C)]
pub struct MetricsValue {
    pub count: u64,
    pub bytes: u64,
}

/// Declares maps that only have to be there, of the named sizes in bytes.
macro_rules! unused_maps {
    ($($id:ident: $map:ident<$key:literal, $value:literal>, $name:literal, $max:literal, $flags:expr;)*) => {
        $(
            #[map(name = $name)]
            static $id: $map<[u8; $key], [u8; $value]> = $map::pinned($max, $flags);
        )*
    };
}

// One per endpoint: the loader pins them under the endpoint's number.
#[map(name = "cilium_policy_00000")]
pub static POLICY: LpmTrie<PolicyKey, PolicyEntry> = LpmTrie::pinned(16384, 0);
#[map(name = "cilium_calls_00000")]
pub static CALLS: ProgramArray = ProgramArray::pinned(47, 0);

#[map(name = "cilium_call_policy")]
pub static CALL_POLICY: ProgramArray = ProgramArray::pinned(65535, 0);
#[map(name = "cilium_events")]
pub static EVENTS: PerfEventByteArray = PerfEventByteArray::pinned(0);
#[map(name = "cilium_signals")]
static SIGNALS: PerfEventByteArray = PerfEventByteArray::pinned(0);
#[map(name = "cilium_ipcache")]
pub static IPCACHE: LpmTrie<IpcacheKey, RemoteEndpointInfo> = LpmTrie::pinned(512_000, 0);
#[map(name = "cilium_lxc")]
pub static LXC: HashMap<EndpointKey, EndpointInfo> = HashMap::pinned(65535, BPF_F_NO_PREALLOC);
#[map(name = "cilium_metrics")]
pub static METRICS: PerCpuHashMap<MetricsKey, MetricsValue> = PerCpuHashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map(name = "cilium_lb4_services_v2")]
pub static SERVICES: HashMap<Lb4Key, Lb4Service> = HashMap::pinned(65536, BPF_F_NO_PREALLOC);
#[map(name = "cilium_lb4_backends_v3")]
pub static BACKENDS: HashMap<u32, Lb4Backend> = HashMap::pinned(65536, BPF_F_NO_PREALLOC);
#[map(name = "cilium_lb4_reverse_nat")]
pub static REVERSE_NAT: HashMap<u16, Lb4ReverseNat> = HashMap::pinned(65536, BPF_F_NO_PREALLOC);
#[map(name = "cilium_lb4_source_range")]
pub static SOURCE_RANGE: LpmTrie<SourceRangeKey, u8> = LpmTrie::pinned(65536, 0);
#[map(name = "cilium_ct4_global")]
pub static CT_TCP: LruHashMap<CtTuple, CtEntry> = LruHashMap::pinned(65536, 0);
#[map(name = "cilium_ct_any4_global")]
pub static CT_ANY: LruHashMap<CtTuple, CtEntry> = LruHashMap::pinned(32768, 0);
#[map(name = "cilium_snat_v4_external")]
pub static SNAT: LruHashMap<CtTuple, NatEntry> = LruHashMap::pinned(65536, 0);

#[map(name = "cilium_encrypt_state")]
static ENCRYPT_STATE: Array<u8> = Array::pinned(1, 0);
#[map(name = "cilium_runtime_config")]
static RUNTIME_CONFIG: Array<u64> = Array::pinned(256, 0);
unused_maps! {
    AUTH: HashMap<12, 8>, "cilium_auth_map", 524_288, BPF_F_NO_PREALLOC;
    FRAG_DATAGRAMS: LruHashMap<12, 4>, "cilium_ipv4_frag_datagrams", 8192, 0;
    L2_RESPONDER: HashMap<8, 8>, "cilium_l2_responder_v4", 4096, BPF_F_NO_PREALLOC;
    AFFINITY: LruHashMap<16, 16>, "cilium_lb4_affinity", 65536, 0;
    AFFINITY_MATCH: HashMap<8, 1>, "cilium_lb_affinity_match", 65536, BPF_F_NO_PREALLOC;
    REVERSE_SK: LruHashMap<16, 8>, "cilium_lb4_reverse_sk", 110_861, 0;
    TUNNEL: HashMap<20, 20>, "cilium_tunnel_map", 65536, BPF_F_NO_PREALLOC;
    NODE: HashMap<20, 2>, "cilium_node_map", 16384, BPF_F_NO_PREALLOC;
    NODEPORT_NEIGH: LruHashMap<4, 8>, "cilium_nodeport_neigh4", 65536, 0;
}

const _: () = {
    use core::mem::size_of;
    assert!(size_of::<PolicyKey>() == 8 && size_of::<PolicyEntry>() == 24);
    assert!(size_of::<IpcacheKey>() == 20 && size_of::<RemoteEndpointInfo>() == 12);
    assert!(size_of::<EndpointKey>() == 20 && size_of::<EndpointInfo>() == 48);
    assert!(size_of::<Lb4Key>() == 12 && size_of::<Lb4Service>() == 12 && size_of::<Lb4Backend>() == 12);
    assert!(size_of::<Lb4ReverseNat>() == 6 && size_of::<SourceRangeKey>() == 8);
    assert!(size_of::<CtTuple>() == 14 && size_of::<CtEntry>() == 56 && size_of::<NatEntry>() == 40);
    assert!(size_of::<MetricsKey>() == 8 && size_of::<MetricsValue>() == 16);
};
