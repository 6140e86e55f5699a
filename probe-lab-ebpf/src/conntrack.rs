//! Connection tracking as Cilium 1.14 does it.
//!
//! The stored tuple swaps the addresses against the ports: `daddr` and `saddr` hold for the reply, `dport` and
//! `sport` for the original direction. The reverse direction is looked up first. Times are seconds since boot.
use aya_ebpf::{helpers::bpf_ktime_get_ns, maps::LruHashMap, programs::TcContext};

use crate::{
    config,
    maps::{CT_ANY, CT_TCP, CtEntry, CtTuple},
    packet::{ICMP, Packet, TCP, TCP_FIN, TCP_RST, TCP_SYN},
    reason,
};

pub const OUT: u8 = 0;
pub const IN: u8 = 1;
pub const RELATED: u8 = 2;
pub const SERVICE: u8 = 4;

const RX_CLOSING: u16 = 1;
const TX_CLOSING: u16 = 2;
const SEEN_NON_SYN: u16 = 1 << 4;
pub const NODE_PORT: u16 = 1 << 5;

const LIFETIME_TCP: u32 = 21_600;
const LIFETIME_OTHER: u32 = 60;
const LIFETIME_CLOSING: u32 = 10;
const REPORT_INTERVAL: u32 = 5;

/// What a lookup says; the numbers are those of trace notifications.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Status {
    New = 0,
    Established = 1,
    Reply = 2,
    Related = 3,
    Reopened = 4,
}

/// The state of a packet's connection.
#[derive(Clone, Copy)]
pub struct State {
    pub status: Status,
    /// Whether this packet is worth a trace under aggregation.
    pub monitor: bool,
    pub rev_nat_index_be: u16,
    pub flags: u16,
    /// Backend id, in service entries.
    pub backend_id: u32,
}

const NEW: State = State { status: Status::New, monitor: true, rev_nat_index_be: 0, flags: 0, backend_id: 0 };

/// What a new entry holds beside its counters.
#[derive(Clone, Copy)]
pub struct NewEntry {
    pub src_sec_id: u32,
    pub rev_nat_index_be: u16,
    pub flags: u16,
    pub ifindex: u16,
    pub backend_id: u32,
    /// Whether ICMP errors about the connection get an entry too.
    pub related: bool,
}

#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: no argument, no side effect.
    (unsafe { bpf_ktime_get_ns() } / 1_000_000_000) as u32
}

#[inline(always)]
fn map_of(proto: u8) -> &'static LruHashMap<CtTuple, CtEntry> {
    if proto == TCP { &CT_TCP } else { &CT_ANY }
}

/// The key under which a connection that this packet opens in `dir` is stored.
#[inline(always)]
fn forward_key(packet: &Packet, dir: u8) -> CtTuple {
    CtTuple {
        daddr_be: packet.saddr_be,
        saddr_be: packet.daddr_be,
        dport_be: packet.dport_be,
        sport_be: packet.sport_be,
        nexthdr: packet.proto,
        flags: dir | related_flag(packet),
    }
}

/// The key of the connection that this packet, going in `dir`, answers.
#[inline(always)]
fn reverse_key(packet: &Packet, dir: u8) -> CtTuple {
    CtTuple {
        daddr_be: packet.daddr_be,
        saddr_be: packet.saddr_be,
        dport_be: packet.sport_be,
        sport_be: packet.dport_be,
        nexthdr: packet.proto,
        flags: (dir ^ IN) | related_flag(packet),
    }
}

#[inline(always)]
fn service_key(packet: &Packet) -> CtTuple {
    CtTuple { flags: SERVICE, ..reverse_key(packet, IN) }
}

#[inline(always)]
fn related_flag(packet: &Packet) -> u8 {
    if packet.related { RELATED } else { 0 }
}

/// Looks a packet up that passes in direction `dir` and updates the entry it hits.
#[inline(always)]
pub fn lookup(ctx: &TcContext, packet: &Packet, dir: u8) -> State {
    let map = map_of(packet.proto);
    if let Some(entry) = map.get_ptr_mut(reverse_key(packet, dir)) {
        let status = if packet.related { Status::Related } else { Status::Reply };
        return touch(ctx, entry, packet, dir, status);
    }
    if let Some(entry) = map.get_ptr_mut(forward_key(packet, dir)) {
        let status = if packet.related { Status::Related } else { Status::Established };
        return touch(ctx, entry, packet, dir, status);
    }
    NEW
}

/// Looks up which backend a client's connection to a frontend already has.
#[inline(always)]
pub fn lookup_service(ctx: &TcContext, packet: &Packet) -> State {
    match map_of(packet.proto).get_ptr_mut(service_key(packet)) {
        Some(entry) => touch(ctx, entry, packet, SERVICE, Status::Established),
        None => NEW,
    }
}

/// Whether this packet answers a connection, leaving its entry alone.
#[inline(always)]
pub fn is_reply(packet: &Packet, dir: u8) -> bool {
    map_of(packet.proto).get_ptr(reverse_key(packet, dir)).is_some()
}

/// Whether the uplink's program translated this packet's connection.
#[inline(always)]
pub fn has_node_port_entry(packet: &Packet) -> bool {
    match map_of(packet.proto).get_ptr(forward_key(packet, OUT)) {
        // SAFETY: the verifier knows this as a live map value; it is null-checked by the match.
        Some(entry) => unsafe { (*entry).flags & NODE_PORT != 0 },
        None => false,
    }
}

#[inline(always)]
fn touch(ctx: &TcContext, entry: *mut CtEntry, packet: &Packet, dir: u8, status: Status) -> State {
    // SAFETY: a live value of the conntrack map, null-checked by the caller. Other CPUs may write it at the same
    // time, as they do in Cilium; the fields are plain counters and flags.
    let entry = unsafe { &mut *entry };
    let tcp = packet.proto == TCP;
    let mut state = State {
        status,
        monitor: false,
        rev_nat_index_be: entry.rev_nat_index_be,
        flags: entry.flags,
        backend_id: entry.rx_bytes as u32,
    };
    if entry.flags & (RX_CLOSING | TX_CLOSING) != (RX_CLOSING | TX_CLOSING) {
        state.monitor = update_timeout(entry, tcp, dir, packet.tcp_flags);
    }
    account(entry, dir, u64::from(ctx.len()));
    if tcp && packet.tcp_flags & (TCP_FIN | TCP_RST) != 0 {
        entry.flags |= if dir == IN { RX_CLOSING } else { TX_CLOSING };
        state.monitor = true;
        if entry.flags & (RX_CLOSING | TX_CLOSING) == (RX_CLOSING | TX_CLOSING) {
            report(entry, LIFETIME_CLOSING, dir, packet.tcp_flags);
        }
    } else if tcp && packet.tcp_flags & TCP_SYN != 0 && entry.flags & (RX_CLOSING | TX_CLOSING) != 0 {
        entry.flags &= !(RX_CLOSING | TX_CLOSING | SEEN_NON_SYN);
        update_timeout(entry, tcp, dir, packet.tcp_flags);
        state.monitor = true;
        if status == Status::Established {
            state.status = Status::Reopened;
        }
    }
    state
}

/// Sets the deadline, and says whether this packet is to be reported.
#[inline(always)]
fn update_timeout(entry: &mut CtEntry, tcp: bool, dir: u8, tcp_flags: u8) -> bool {
    let mut lifetime = LIFETIME_OTHER;
    if tcp {
        if tcp_flags & TCP_SYN == 0 {
            entry.flags |= SEEN_NON_SYN;
        }
        if entry.flags & SEEN_NON_SYN != 0 {
            lifetime = LIFETIME_TCP;
        }
    }
    report(entry, lifetime, dir, tcp_flags)
}

#[inline(always)]
fn report(entry: &mut CtEntry, lifetime: u32, dir: u8, tcp_flags: u8) -> bool {
    let now = now();
    entry.lifetime = now + lifetime;
    let (seen, last) = if dir == IN {
        (entry.rx_flags_seen, entry.last_rx_report)
    } else {
        (entry.tx_flags_seen, entry.last_tx_report)
    };
    let flags = seen | (tcp_flags & config!(report_flags) as u8);
    if flags == seen && last + REPORT_INTERVAL >= now {
        return false;
    }
    if dir == IN {
        (entry.rx_flags_seen, entry.last_rx_report) = (flags, now);
    } else {
        (entry.tx_flags_seen, entry.last_tx_report) = (flags, now);
    }
    true
}

#[inline(always)]
fn account(entry: &mut CtEntry, dir: u8, bytes: u64) {
    match dir {
        IN => {
            entry.rx_packets += 1;
            entry.rx_bytes += bytes;
        }
        OUT => {
            entry.tx_packets += 1;
            entry.tx_bytes += bytes;
        }
        _ => {}
    }
}

/// Stores the connection that this packet opens.
#[inline(always)]
pub fn create(ctx: &TcContext, packet: &Packet, dir: u8, new: &NewEntry) -> Result<(), i32> {
    let tcp = packet.proto == TCP;
    let mut entry = CtEntry {
        rx_packets: 0,
        rx_bytes: u64::from(new.backend_id),
        tx_packets: 0,
        tx_bytes: 0,
        lifetime: 0,
        flags: new.flags,
        rev_nat_index_be: new.rev_nat_index_be,
        ifindex: new.ifindex,
        tx_flags_seen: 0,
        rx_flags_seen: 0,
        src_sec_id: new.src_sec_id,
        last_tx_report: 0,
        last_rx_report: 0,
    };
    // A connection counts as opened by a SYN, whatever the packet was: so its first deadline is short.
    update_timeout(&mut entry, tcp, dir, if tcp { TCP_SYN } else { 0 });
    account(&mut entry, dir, u64::from(ctx.len()));
    let key = if dir == SERVICE { service_key(packet) } else { forward_key(packet, dir) };
    map_of(packet.proto).insert(key, entry, 0).map_err(|_| reason::CT_CREATE_FAILED)?;
    if new.related {
        entry.flags |= SEEN_NON_SYN;
        let key = CtTuple {
            dport_be: 0,
            sport_be: 0,
            nexthdr: ICMP,
            flags: dir | RELATED,
            ..forward_key(packet, dir)
        };
        CT_ANY.insert(key, entry, 0).map_err(|_| reason::CT_CREATE_FAILED)?;
    }
    Ok(())
}
