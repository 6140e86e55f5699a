//! What TCP sockets do, in every network namespace: connections accepted, resets, answers sent again.
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::warn;
use probe_common::{Counter, Packet, RecordKind, SocketPoint, SocketRecord};

use crate::emit::reserve;
use crate::filter;
use crate::kernel::{self, Probed, SkBuff};
use crate::maps::{copy_packet, count, scratch, setting};
use crate::parse::{Address, IPPROTO_TCP, address_bytes, ipv4_address};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// `::ffff:0:0/96`: a socket of IPv6 that speaks IPv4.
const MAPPED: [u32; 3] = [0, 0, u32::from_be(0xffff)];

/// `trace_inet_sock_set_state(sk, oldstate, newstate)`.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub(crate) fn plsprobe_socket_state(ctx: RawTracePointContext) -> i32 {
    let states = (ctx.arg::<u32>(1) as u8, ctx.arg::<u32>(2) as u8);
    told(&ctx, look(ctx.arg(0), SocketPoint::State, states))
}

/// `trace_tcp_retransmit_skb(sk, skb)`.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub(crate) fn plsprobe_retransmit(ctx: RawTracePointContext) -> i32 {
    told(&ctx, look(ctx.arg(0), SocketPoint::Retransmit, (0, 0)))
}

/// `trace_tcp_retransmit_synack(sk, req)`: a request begins with the same `struct sock_common` as a socket.
#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub(crate) fn plsprobe_retransmit_synack(ctx: RawTracePointContext) -> i32 {
    told(&ctx, look(ctx.arg(1), SocketPoint::RetransmitSynAck, (0, 0)))
}

/// `trace_tcp_send_reset(sk, skb)`, the packet being the one that is answered; either may be null.
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub(crate) fn plsprobe_reset(ctx: RawTracePointContext) -> i32 {
    let (sock, skb) = (ctx.arg(0), SkBuff::probed(ctx.arg(1)));
    told(&ctx, if skb.is_null() { look(sock, SocketPoint::Reset, (0, 0)) } else { reset(sock, skb) })
}

#[inline(always)]
fn told(ctx: &RawTracePointContext, looked: Option<()>) -> i32 {
    if looked.is_none() {
        count(Counter::Unreadable);
        warn!(ctx, "what a socket did could not be read");
    }
    0
}

/// `None` if the kernel's memory could not be read.
#[inline(always)]
fn look(sock: u64, point: SocketPoint, states: (u8, u8)) -> Option<()> {
    count(Counter::SocketSeen);
    let family: u16 = kernel::read(sock, setting!(offsets.sock_family))?;
    if !matches!(family, AF_INET | AF_INET6) {
        return Some(());
    }
    let scratch = scratch(RecordKind::Socket)?;
    let packet = &mut scratch.packet;
    let addresses = ends(sock, family == AF_INET6, packet)?;
    filter::find_both(addresses, packet.version, &mut scratch.ends);
    if filter::wanted(packet, &scratch.ends) {
        record(point, states, true, kernel::netns::<Probed>(sock, setting!(offsets.sock_net)), packet);
    }
    Some(())
}

#[inline(always)]
fn reset(sock: u64, skb: SkBuff<Probed>) -> Option<()> {
    count(Counter::SocketSeen);
    let Some(source) = skb.network() else {
        return Some(());
    };
    let network = filter::network(&source);
    let found = network.and_then(|network| filter::find_by_ends(&source, &network, RecordKind::Socket));
    if let Some(scratch) = found {
        let (_, netns) = skb.device()?;
        record(SocketPoint::Reset, (0, 0), sock != 0, netns, &scratch.packet);
    }
    Some(())
}

#[inline(always)]
fn record(
    point: SocketPoint,
    (old_state, new_state): (u8, u8),
    has_socket: bool,
    netns: u32,
    packet: &Packet,
) {
    let counters = (Counter::SocketMatched, Counter::SocketLost);
    if let Some(mut entry) = reserve(counters, (RecordKind::Socket, point as u8), 0) {
        let record: &mut SocketRecord = entry.record();
        record.netns = netns;
        record.old_state = old_state;
        record.new_state = new_state;
        record.has_socket = has_socket.into();
        copy_packet(packet, &mut record.packet);
        entry.submit();
    }
}

/// Fills a zeroed packet with the two ends of a `struct sock_common`, its own as source, and returns their addresses.
#[inline(always)]
fn ends(sock: u64, is_ipv6: bool, packet: &mut Packet) -> Option<(Address, Address)> {
    let (version, src, dst) = if is_ipv6 {
        let src: Address = kernel::read(sock, setting!(offsets.sock_v6_saddr))?;
        let dst: Address = kernel::read(sock, setting!(offsets.sock_v6_daddr))?;
        if dst[..3] == MAPPED { (4, ipv4_address(src[3]), ipv4_address(dst[3])) } else { (6, src, dst) }
    } else {
        let src = kernel::read(sock, setting!(offsets.sock_saddr))?;
        let dst = kernel::read(sock, setting!(offsets.sock_daddr))?;
        (4, ipv4_address(src), ipv4_address(dst))
    };
    (packet.version, packet.src, packet.dst) = (version, address_bytes(src), address_bytes(dst));
    // `skc_num` is in host order, `skc_dport` in network order.
    packet.src_port = kernel::read(sock, setting!(offsets.sock_num))?;
    packet.dst_port = u16::from_be(kernel::read(sock, setting!(offsets.sock_dport))?);
    packet.proto = IPPROTO_TCP;
    Some((src, dst))
}
