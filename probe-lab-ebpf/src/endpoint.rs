//! Endpoints and identities: `cilium_lxc`, `cilium_ipcache`, and delivery to a local pod.
use aya_ebpf::{helpers::generated::bpf_redirect, maps::lpm_trie::Key, programs::TcContext};

use crate::{
    config,
    config::SHAPE_AKS,
    maps::{CALL_POLICY, EndpointInfo, EndpointKey, IPCACHE, IpcacheKey, LXC, RemoteEndpointInfo},
    packet::{self, skb},
    reason,
};

pub const ID_UNKNOWN: u32 = 0;
pub const ID_HOST: u32 = 1;
pub const ID_WORLD: u32 = 2;

const FAMILY_IPV4: u8 = 1;
/// `ENDPOINT_F_HOST`: an address of the node.
const FLAG_HOST: u32 = 1;

pub const MARK_HOST: u32 = 0x0c00;
pub const MARK_IDENTITY: u32 = 0x0f00;
const MARK_MAGIC: u32 = 0x0f00;

/// Places in `skb->cb`, kept across a tail call: source identity, interface to deliver to, origin.
pub const CB_SRC_LABEL: usize = 0;
pub const CB_IFINDEX: usize = 1;
pub const CB_ORIGIN: usize = 3;

/// Where a packet comes from that is delivered to a pod: whether it can be put into its namespace directly.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The uplink or another pod, at whose ingress the program runs.
    Ingress = 0,
    /// The host, at the egress of `cilium_host`.
    Host = 1,
}

/// Who has this address, on this node.
#[inline(always)]
pub fn lookup(addr_be: u32) -> Option<&'static EndpointInfo> {
    let key = EndpointKey { addr_be: [addr_be, 0, 0, 0], family: FAMILY_IPV4, key: 0, cluster_id: 0, pad: 0 };
    // SAFETY: entries are written by the test alone, before traffic starts.
    unsafe { LXC.get(key) }
}

/// Whether the entry stands for the node itself.
#[inline(always)]
pub fn is_host(info: &EndpointInfo) -> bool {
    info.flags & FLAG_HOST != 0
}

/// Whether a pod of this node has the address.
#[inline(always)]
pub fn is_pod(addr_be: u32) -> bool {
    lookup(addr_be).is_some_and(|info| !is_host(info))
}

/// What the ipcache knows of an address.
#[inline(always)]
pub fn remote(addr_be: u32) -> Option<&'static RemoteEndpointInfo> {
    let data = IpcacheKey { pad: 0, cluster_id: 0, family: FAMILY_IPV4, addr_be: [addr_be, 0, 0, 0] };
    IPCACHE.get(Key::new(64, data))
}

/// The identity of an address; the world's where the ipcache is empty.
#[inline(always)]
pub fn identity(addr_be: u32) -> u32 {
    remote(addr_be).map_or(ID_WORLD, |info| info.sec_identity)
}

/// The identity that a packet's mark carries, and where that is only a reserved one, the ipcache's.
///
/// An address of the node does not make a packet the host's: only the mark does.
#[inline(always)]
pub fn identity_of_marked(mark: u32, saddr_be: u32) -> u32 {
    let marked = match mark & MARK_MAGIC {
        MARK_HOST => ID_HOST,
        MARK_IDENTITY => (mark & 0xff) << 16 | mark >> 16,
        _ => ID_WORLD,
    };
    if marked == ID_HOST || marked >= 256 {
        return marked;
    }
    match identity(saddr_be) {
        ID_UNKNOWN | ID_HOST => marked,
        identity => identity,
    }
}

/// Delivers a packet to a pod of this node; comes back only with an action or a drop reason.
#[inline(always)]
pub fn deliver(ctx: &TcContext, info: &EndpointInfo, src_label: u32, origin: Origin) -> Result<i32, i32> {
    packet::decrement_ttl(ctx)?;
    packet::set_macs(ctx, &info.mac, &info.node_mac)?;
    let skb = skb(ctx);
    if config!(shape) == SHAPE_AKS {
        // Policy runs at the egress of the pod's veth: the mark tells it who sent this.
        // SAFETY: writes a field of the program's own context.
        unsafe { (*skb).mark = (src_label & 0xffff) << 16 | MARK_IDENTITY | (src_label >> 16) & 0xff };
        // SAFETY: plain helper call.
        return Ok(unsafe { bpf_redirect(info.ifindex, 0) } as i32);
    }
    // SAFETY: writes fields of the program's own context.
    unsafe {
        (*skb).cb[CB_SRC_LABEL] = src_label;
        (*skb).cb[CB_IFINDEX] = info.ifindex;
        (*skb).cb[CB_ORIGIN] = origin as u32;
    }
    // SAFETY: nothing here has to be dropped when control does not come back.
    unsafe { CALL_POLICY.tail_call(ctx, u32::from(info.lxc_id)) };
    Err(reason::MISSED_TAIL_CALL)
}
