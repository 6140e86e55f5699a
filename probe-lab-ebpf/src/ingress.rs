//! Into a pod: conntrack, policy and delivery, tail-called (`handle_policy`) or at the veth (`cil_to_container`).
use aya_ebpf::{
    bindings::TC_ACT_OK,
    helpers::generated::{bpf_redirect, bpf_redirect_peer},
    programs::TcContext,
};

use crate::{
    config,
    config::SHAPE_KPR,
    conntrack::{self, IN, NODE_PORT, NewEntry, Status},
    endpoint::{self, CB_IFINDEX, CB_ORIGIN, CB_SRC_LABEL, Origin},
    notify::{self, Labels, Point, Trace},
    packet::{ETH_P_IP, Packet, eth_proto, skb},
    policy, service,
};

/// `handle_policy`: the caller has put identity and interface into `skb->cb`.
#[inline(always)]
pub fn handle_policy(ctx: &TcContext, labels: &mut Labels) -> Result<i32, i32> {
    // SAFETY: reads fields of the program's own context.
    let (src_label, ifindex, origin) = unsafe {
        let cb = &(*skb(ctx)).cb;
        (cb[CB_SRC_LABEL], cb[CB_IFINDEX], cb[CB_ORIGIN])
    };
    let mut packet = Packet::parse(ctx)?;
    admit(ctx, &mut packet, src_label, ifindex, labels)?;
    // A packet that leaves through `cilium_host` cannot be put into the pod's namespace directly.
    let action = if config!(shape) == SHAPE_KPR && origin == Origin::Ingress as u32 {
        // SAFETY: plain helper call.
        unsafe { bpf_redirect_peer(ifindex, 0) }
    } else {
        // SAFETY: plain helper call.
        unsafe { bpf_redirect(ifindex, 0) }
    };
    Ok(action as i32)
}

/// `cil_to_container`: the stack has routed the packet here; its mark may tell who sent it.
#[inline(always)]
pub fn to_container(ctx: &TcContext, labels: &mut Labels) -> Result<i32, i32> {
    if eth_proto(ctx)? != ETH_P_IP {
        return Ok(TC_ACT_OK);
    }
    let skb = skb(ctx);
    // SAFETY: reads and writes fields of the program's own context.
    let (mark, ifindex) = unsafe {
        let mark = (*skb).mark;
        (*skb).mark = 0;
        (mark, (*skb).ifindex)
    };
    let mut packet = Packet::parse(ctx)?;
    let src_label = endpoint::identity_of_marked(mark, packet.saddr_be);
    notify::trace(
        ctx,
        &Trace {
            dst_label: config!(identity),
            dst_id: config!(endpoint_id) as u16,
            ..Trace::stateless(Point::FromStack, src_label, ifindex)
        },
    );
    admit(ctx, &mut packet, src_label, 0, labels)?;
    Ok(TC_ACT_OK)
}

/// Decides on a packet for this object's endpoint.
#[inline(always)]
fn admit(
    ctx: &TcContext,
    packet: &mut Packet,
    src_label: u32,
    ifindex: u32,
    labels: &mut Labels,
) -> Result<(), i32> {
    *labels = Labels { src: src_label, dst: config!(identity), dst_id: config!(endpoint_id), auth_type: 0 };
    let orig_ip_be = packet.saddr_be;
    let state = conntrack::lookup(ctx, packet, IN);
    match state.status {
        Status::Reply | Status::Related => {
            if state.rev_nat_index_be != 0 && state.flags & NODE_PORT == 0 {
                service::reverse(ctx, packet, state.rev_nat_index_be)?;
            }
        }
        status => {
            let decision = policy::judge(ctx, packet, IN, src_label);
            notify::verdict(ctx, packet, IN, src_label, status, decision);
            labels.auth_type = decision.auth_type;
            if decision.verdict < 0 {
                return Err(decision.verdict);
            }
            if status == Status::New {
                let flags = if conntrack::has_node_port_entry(packet) { NODE_PORT } else { 0 };
                let entry = NewEntry {
                    src_sec_id: src_label,
                    rev_nat_index_be: 0,
                    flags,
                    ifindex: 0,
                    backend_id: 0,
                    related: true,
                };
                conntrack::create(ctx, packet, IN, &entry)?;
            }
        }
    }
    notify::trace(
        ctx,
        &Trace {
            point: Point::ToEndpoint,
            src_label,
            dst_label: config!(identity),
            dst_id: config!(endpoint_id) as u16,
            reason: state.status as u8,
            ifindex,
            orig_ip_be,
            monitor: state.monitor,
        },
    );
    Ok(())
}
