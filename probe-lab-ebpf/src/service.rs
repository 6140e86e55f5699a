//! Services: from a frontend to a backend and back.
use aya_ebpf::{helpers::generated::bpf_get_prandom_u32, maps::lpm_trie::Key, programs::TcContext};

use crate::{
    conntrack::{self, NewEntry, SERVICE, Status},
    maps::{BACKENDS, Lb4Backend, Lb4Key, Lb4Service, REVERSE_NAT, SERVICES, SOURCE_RANGE, SourceRangeKey},
    packet::{Packet, TCP, UDP},
    reason,
};

const ROUTABLE: u8 = 0x40;
const CHECK_SOURCE_RANGE: u8 = 0x80;

#[inline(always)]
fn key(packet: &Packet, backend_slot: u16) -> Lb4Key {
    // Up to 1.16 a frontend serves every protocol: `proto` is 0. Scope 0 is the external one.
    Lb4Key {
        address_be: packet.daddr_be,
        dport_be: packet.dport_be,
        backend_slot,
        proto: 0,
        scope: 0,
        pad: 0,
    }
}

/// The frontend that the packet is for.
#[inline(always)]
pub fn frontend(packet: &Packet) -> Option<Lb4Service> {
    if packet.proto != TCP && packet.proto != UDP {
        return None;
    }
    // SAFETY: the value is copied at once; a torn read would show only while the test changes the map.
    unsafe { SERVICES.get(key(packet, 0)) }.copied()
}

/// Whether loadBalancerSourceRanges let the client in.
#[inline(always)]
pub fn check_source(packet: &Packet, service: &Lb4Service) -> Result<(), i32> {
    if service.flags & CHECK_SOURCE_RANGE == 0 {
        return Ok(());
    }
    let data = SourceRangeKey { rev_nat_id_be: service.rev_nat_index_be, pad: 0, addr_be: packet.saddr_be };
    SOURCE_RANGE.get(Key::new(64, data)).map(|_| ()).ok_or(reason::NOT_IN_SRC_RANGE)
}

/// Whether the frontend takes packets from outside the node.
#[inline(always)]
pub fn check_routable(service: &Lb4Service) -> Result<(), i32> {
    if service.flags & ROUTABLE == 0 { Err(reason::IS_CLUSTER_IP) } else { Ok(()) }
}

/// Sends the packet to a backend of the frontend: the one it already has, or any.
#[inline(always)]
pub fn translate(ctx: &TcContext, packet: &mut Packet, service: &Lb4Service) -> Result<(), i32> {
    let known = conntrack::lookup_service(ctx, packet);
    if known.status != Status::New
        && known.rev_nat_index_be == service.rev_nat_index_be
        && let Some(backend) = backend(known.backend_id)
    {
        return packet.set_destination(ctx, backend.address_be, backend.port_be);
    }
    if service.count == 0 {
        return Err(reason::NO_SERVICE);
    }
    // SAFETY: no argument, no side effect.
    let slot = (unsafe { bpf_get_prandom_u32() } % u32::from(service.count)) as u16 + 1;
    // SAFETY: the value is copied at once.
    let slot = unsafe { SERVICES.get(key(packet, slot)) }.copied().ok_or(reason::NO_SERVICE)?;
    let backend = backend(slot.backend_id).ok_or(reason::NO_SERVICE)?;
    let entry = NewEntry {
        src_sec_id: 0,
        rev_nat_index_be: service.rev_nat_index_be,
        flags: 0,
        ifindex: 0,
        backend_id: slot.backend_id,
        related: false,
    };
    conntrack::create(ctx, packet, SERVICE, &entry)?;
    packet.set_destination(ctx, backend.address_be, backend.port_be)
}

/// Makes a backend's answer come from the frontend.
#[inline(always)]
pub fn reverse(ctx: &TcContext, packet: &mut Packet, rev_nat_index_be: u16) -> Result<(), i32> {
    // SAFETY: the value is copied at once.
    match unsafe { REVERSE_NAT.get(rev_nat_index_be) }.copied() {
        Some(frontend) => packet.set_source(ctx, frontend.address_be, frontend.port_be),
        None => Ok(()),
    }
}

#[inline(always)]
fn backend(id: u32) -> Option<Lb4Backend> {
    // SAFETY: the value is copied at once.
    unsafe { BACKENDS.get(id) }.copied()
}
