//! Out of a pod: `cil_from_container`, at the ingress of the veth's host side.
use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    helpers::generated::bpf_redirect_neigh,
    programs::TcContext,
};

use crate::{
    config,
    config::{SHAPE_AKS, SHAPE_KPR, SHAPE_KUBEPROXY},
    conntrack::{self, IN, NODE_PORT, NewEntry, OUT, State, Status},
    endpoint::{self, Origin, is_host},
    notify::{self, Labels, Point, Trace},
    packet::{self, ETH_P_ARP, ETH_P_IP, Packet, eth_proto},
    policy, reason, service,
};

#[inline(always)]
pub fn from_container(ctx: &TcContext, labels: &mut Labels) -> Result<i32, i32> {
    labels.src = config!(identity);
    notify::trace(ctx, &Trace::stateless(Point::FromEndpoint, config!(identity), 0));
    match eth_proto(ctx)? {
        ETH_P_IP => {}
        ETH_P_ARP => return Ok(TC_ACT_OK),
        _ => return Err(reason::UNKNOWN_L3),
    }
    let mut packet = Packet::parse(ctx)?;
    if packet.saddr_be != config!(endpoint_ip_be) {
        return Err(reason::INVALID_SIP);
    }
    let mut rev_nat_index_be = 0;
    if let Some(service) = service::frontend(&packet) {
        service::translate(ctx, &mut packet, &service)?;
        rev_nat_index_be = service.rev_nat_index_be;
    }
    let dst_label = endpoint::identity(packet.daddr_be);
    labels.dst = dst_label;
    let state = conntrack::lookup(ctx, &packet, OUT);
    if state.status != Status::Reply && state.status != Status::Related {
        judge(ctx, &packet, &state, rev_nat_index_be, labels)?;
    } else if state.flags & NODE_PORT != 0 {
        return answer_node_port(ctx, &mut packet, &state, dst_label);
    }
    labels.dst = endpoint::ID_UNKNOWN;
    forward(ctx, &packet, &state, dst_label)
}

/// Egress policy, and the connection's entry if it is a new one.
#[inline(always)]
fn judge(
    ctx: &TcContext,
    packet: &Packet,
    state: &State,
    rev_nat_index_be: u16,
    labels: &mut Labels,
) -> Result<(), i32> {
    let decision = policy::judge(ctx, packet, OUT, labels.dst);
    notify::verdict(ctx, packet, OUT, labels.dst, state.status, decision);
    labels.auth_type = decision.auth_type;
    if decision.verdict < 0 {
        return Err(decision.verdict);
    }
    if state.status != Status::New {
        return Ok(());
    }
    let entry = NewEntry {
        src_sec_id: config!(identity),
        rev_nat_index_be,
        flags: 0,
        ifindex: 0,
        backend_id: 0,
        related: true,
    };
    conntrack::create(ctx, packet, OUT, &entry)
}

/// The answer to a connection that the uplink's program sent here from a frontend.
#[inline(always)]
fn answer_node_port(ctx: &TcContext, packet: &mut Packet, state: &State, dst_label: u32) -> Result<i32, i32> {
    trace(ctx, Point::ToNetwork, state, dst_label, 0);
    // The uplink's own entry of the connection knows the frontend.
    let uplink = conntrack::lookup(ctx, packet, IN);
    if uplink.status == Status::Reply && uplink.rev_nat_index_be != 0 {
        service::reverse(ctx, packet, uplink.rev_nat_index_be)?;
    }
    if config!(shape) == SHAPE_KPR {
        packet::decrement_ttl(ctx)?;
        return Ok(to_uplink());
    }
    Ok(TC_ACT_OK)
}

/// To a pod of this node, to the node, or out.
#[inline(always)]
fn forward(ctx: &TcContext, packet: &Packet, state: &State, dst_label: u32) -> Result<i32, i32> {
    let mut to_host = false;
    if let Some(info) = endpoint::lookup(packet.daddr_be) {
        if !is_host(info) {
            return endpoint::deliver(ctx, info, config!(identity), Origin::Ingress);
        }
        to_host = true;
    }
    if config!(shape) == SHAPE_KPR && !to_host {
        packet::decrement_ttl(ctx)?;
        trace(ctx, Point::ToNetwork, state, dst_label, config!(uplink_ifindex));
        return Ok(to_uplink());
    }
    if config!(shape) == SHAPE_KUBEPROXY
        && endpoint::remote(packet.daddr_be).is_some_and(|info| info.tunnel_endpoint_be != 0)
    {
        // A pod of another node, which the stand-in has none of: the tunnel ends here.
        trace(ctx, Point::ToOverlay, state, dst_label, 0);
        return Ok(TC_ACT_SHOT);
    }
    // With endpoint routes the stack alone routes, so the hop is its own.
    if config!(shape) != SHAPE_AKS {
        packet::decrement_ttl(ctx)?;
    }
    trace(ctx, Point::ToStack, state, dst_label, 0);
    Ok(TC_ACT_OK)
}

#[inline(always)]
fn trace(ctx: &TcContext, point: Point, state: &State, dst_label: u32, ifindex: u32) {
    notify::trace(
        ctx,
        &Trace {
            point,
            src_label: config!(identity),
            dst_label,
            dst_id: 0,
            reason: state.status as u8,
            ifindex,
            orig_ip_be: 0,
            monitor: state.monitor,
        },
    );
}

/// Out through the uplink, with the next hop's MAC address from the kernel's neighbour table.
#[inline(always)]
fn to_uplink() -> i32 {
    let uplink = config!(uplink_ifindex);
    // SAFETY: plain helper call; without parameters the kernel finds the next hop by a route lookup.
    unsafe { bpf_redirect_neigh(uplink, core::ptr::null_mut(), 0, 0) as i32 }
}
