//! The host's programs: at the uplink and at `cilium_host`.
use aya_ebpf::{bindings::TC_ACT_OK, bindings::TC_ACT_SHOT, programs::TcContext};

use crate::{
    config,
    config::{SHAPE_AKS, SHAPE_KPR, SHAPE_KUBEPROXY},
    conntrack::{self, NODE_PORT, NewEntry, OUT, Status},
    endpoint::{self, ID_HOST, ID_UNKNOWN, ID_WORLD, Origin, is_host},
    masquerade,
    notify::{self, Labels, Point, Trace},
    packet::{self, ETH_P_IP, Packet, eth_proto, skb},
    reason, service,
};

/// `cil_from_netdev`, at the uplink's ingress: services, then delivery or the stack.
#[inline(always)]
pub fn from_netdev(ctx: &TcContext, labels: &mut Labels) -> Result<i32, i32> {
    // SAFETY: reads a field of the program's own context.
    let ifindex = unsafe { (*skb(ctx)).ifindex };
    notify::trace(ctx, &Trace::stateless(Point::FromNetwork, ID_UNKNOWN, ifindex));
    if eth_proto(ctx)? != ETH_P_IP || config!(shape) == SHAPE_KUBEPROXY {
        return Ok(TC_ACT_OK);
    }
    let mut packet = match Packet::parse(ctx) {
        Ok(packet) => packet,
        // No service, no pod of ours: the stack knows what to do with other protocols.
        Err(reason::CT_UNKNOWN_PROTO) => return Ok(TC_ACT_OK),
        Err(reason) => return Err(reason),
    };
    // The node's own address does not make a packet the host's here.
    let src_label = match endpoint::identity(packet.saddr_be) {
        ID_HOST => ID_UNKNOWN,
        identity => identity,
    };
    labels.src = src_label;
    if let Some(frontend) = service::frontend(&packet) {
        service::check_source(&packet, &frontend)?;
        service::translate(ctx, &mut packet, &frontend)?;
        service::check_routable(&frontend)?;
        if !endpoint::is_pod(packet.daddr_be) {
            // A backend on another node is beyond the stand-in; nothing was notified of it when it was recorded.
            return Ok(TC_ACT_SHOT);
        }
        track_node_port(ctx, &packet, frontend.rev_nat_index_be, ifindex as u16)?;
    } else if config!(masquerade) != 0 {
        masquerade::ingress(ctx, &mut packet)?;
    }
    match endpoint::lookup(packet.daddr_be) {
        Some(info) if !is_host(info) && config!(shape) == SHAPE_KPR => {
            endpoint::deliver(ctx, info, src_label, Origin::Ingress)
        }
        _ => Ok(TC_ACT_OK),
    }
}

/// Remembers, beside the pod's own entry, which frontend a connection came through.
#[inline(always)]
fn track_node_port(ctx: &TcContext, packet: &Packet, rev_nat_index_be: u16, ifindex: u16) -> Result<(), i32> {
    let state = conntrack::lookup(ctx, packet, OUT);
    if state.status != Status::New {
        return Ok(());
    }
    let entry = NewEntry {
        src_sec_id: ID_WORLD,
        rev_nat_index_be,
        flags: NODE_PORT,
        ifindex,
        backend_id: 0,
        related: false,
    };
    conntrack::create(ctx, packet, OUT, &entry)
}

/// `cil_to_netdev`, at the uplink's egress: masquerading.
#[inline(always)]
pub fn to_netdev(ctx: &TcContext) -> Result<i32, i32> {
    if config!(masquerade) != 0 && eth_proto(ctx)? == ETH_P_IP {
        match Packet::parse(ctx) {
            Ok(mut packet) => masquerade::egress(ctx, &mut packet)?,
            Err(reason::CT_UNKNOWN_PROTO) => {}
            Err(reason) => return Err(reason),
        }
    }
    notify::trace(ctx, &Trace::stateless(Point::ToNetwork, ID_UNKNOWN, 0));
    Ok(TC_ACT_OK)
}

/// `cil_from_host`, at `cilium_host`'s egress: what the stack routes to the pods.
#[inline(always)]
pub fn from_host(ctx: &TcContext, labels: &mut Labels) -> Result<i32, i32> {
    if eth_proto(ctx)? != ETH_P_IP {
        return Ok(TC_ACT_OK);
    }
    let packet = Packet::parse(ctx)?;
    // SAFETY: reads a field of the program's own context.
    let mark = unsafe { (*skb(ctx)).mark };
    let src_label = endpoint::identity_of_marked(mark, packet.saddr_be);
    labels.src = src_label;
    notify::trace(ctx, &Trace::stateless(Point::FromHost, src_label, 0));
    if config!(shape) == SHAPE_AKS {
        return Ok(TC_ACT_OK);
    }
    // What goes on is for the other end of the pair.
    packet::set_destination_mac(ctx, config!(cilium_net_mac))?;
    match endpoint::lookup(packet.daddr_be) {
        Some(info) if is_host(info) => Ok(TC_ACT_OK),
        Some(info) => endpoint::deliver(ctx, info, src_label, Origin::Host),
        None => match endpoint::remote(packet.daddr_be) {
            None => Err(reason::UNROUTABLE),
            Some(info) if info.sec_identity == ID_WORLD => Err(reason::UNROUTABLE),
            Some(_) => Ok(TC_ACT_OK),
        },
    }
}
