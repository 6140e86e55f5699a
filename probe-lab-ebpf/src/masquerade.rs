//! BPF masquerading at the uplink: pods' packets leave the cluster with the node's address.
//!
//! TCP and UDP only; the real one also keeps the node's own ports apart, which no recording needs.
use aya_ebpf::{helpers::generated::bpf_get_prandom_u32, programs::TcContext};

use crate::{
    config, conntrack, endpoint,
    maps::{CtTuple, NatEntry, SNAT},
    packet::{ICMP, ICMP_DEST_UNREACH, ICMP_ECHO, ICMP_ECHO_REPLY, ICMP_FRAG_NEEDED, Packet, TCP, UDP},
    reason,
};

const FORWARD: u8 = 0;
const REVERSE: u8 = 1;

/// Lowest port handed out, and how many there are.
const PORT_BASE: u16 = 32_768;
const PORT_MASK: u16 = 0x7fff;

#[inline(always)]
fn key(packet: &Packet, flags: u8) -> CtTuple {
    CtTuple {
        daddr_be: packet.daddr_be,
        saddr_be: packet.saddr_be,
        dport_be: packet.dport_be,
        sport_be: packet.sport_be,
        nexthdr: packet.proto,
        flags,
    }
}

/// Gives a leaving packet of a pod the node's address and a port of its own.
#[inline(always)]
pub fn egress(ctx: &TcContext, packet: &mut Packet) -> Result<(), i32> {
    if packet.saddr_be == config!(node_ip_be) {
        return check_node_icmp(packet);
    }
    let native = config!(native_net_be);
    if packet.proto != TCP && packet.proto != UDP
        || packet.daddr_be & config!(native_mask_be) == native
        || !endpoint::is_pod(packet.saddr_be)
        || conntrack::is_reply(packet, conntrack::OUT)
    {
        return Ok(());
    }
    // SAFETY: the value is copied at once.
    let port_be = match unsafe { SNAT.get(key(packet, FORWARD)) }.copied() {
        Some(entry) => entry.to_port_be,
        None => new_mapping(packet)?,
    };
    packet.set_source(ctx, config!(node_ip_be), port_be)
}

/// The node's own ICMP passes the translation too, which knows only some types.
#[inline(always)]
fn check_node_icmp(packet: &Packet) -> Result<(), i32> {
    if packet.proto != ICMP {
        return Ok(());
    }
    match packet.icmp_type {
        ICMP_ECHO | ICMP_ECHO_REPLY => Ok(()),
        ICMP_DEST_UNREACH if packet.icmp_code == ICMP_FRAG_NEEDED => Ok(()),
        ICMP_DEST_UNREACH => Err(reason::UNKNOWN_ICMP_CODE),
        _ => Err(reason::NAT_UNSUPP_PROTO),
    }
}

#[inline(always)]
fn new_mapping(packet: &Packet) -> Result<u16, i32> {
    // SAFETY: no argument, no side effect.
    let start = unsafe { bpf_get_prandom_u32() } as u16;
    for attempt in 0..4_u16 {
        let port_be = (PORT_BASE | (start.wrapping_add(attempt) & PORT_MASK)).to_be();
        let reverse = CtTuple {
            daddr_be: config!(node_ip_be),
            saddr_be: packet.daddr_be,
            dport_be: port_be,
            sport_be: packet.dport_be,
            nexthdr: packet.proto,
            flags: REVERSE,
        };
        let mut entry = NatEntry {
            created: u64::from(conntrack::now()),
            needs_ct: 0,
            pad: [0; 2],
            to_addr_be: packet.saddr_be,
            to_port_be: packet.sport_be,
            pad2: 0,
        };
        // BPF_NOEXIST: a port that is taken for this peer is not taken twice.
        if SNAT.insert(reverse, entry, 1).is_ok() {
            (entry.to_addr_be, entry.to_port_be) = (config!(node_ip_be), port_be);
            SNAT.insert(key(packet, FORWARD), entry, 0).map_err(|_| reason::NAT_NO_MAPPING)?;
            return Ok(port_be);
        }
    }
    Err(reason::NAT_NO_MAPPING)
}

/// Gives an answer back to the pod that asked.
#[inline(always)]
pub fn ingress(ctx: &TcContext, packet: &mut Packet) -> Result<(), i32> {
    if packet.proto != TCP && packet.proto != UDP || packet.daddr_be != config!(node_ip_be) {
        return Ok(());
    }
    // SAFETY: the value is copied at once.
    match unsafe { SNAT.get(key(packet, REVERSE)) }.copied() {
        Some(entry) => packet.set_destination(ctx, entry.to_addr_be, entry.to_port_be),
        None => Ok(()),
    }
}
