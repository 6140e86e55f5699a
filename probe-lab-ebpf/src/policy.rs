//! The policy decision: the lookup procedure of Cilium 1.14.0 to 1.16.3.
use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};

use crate::{
    conntrack::IN,
    maps::{POLICY, PolicyEntry, PolicyKey},
    packet::{ICMP, ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED, Packet},
    reason,
};

const DENY: u8 = 1;
const ANY_PROTOCOL: u8 = 2;
const ANY_PORT: u8 = 4;

/// How an entry matched, as notifications number it.
#[repr(u8)]
#[derive(Clone, Copy)]
pub enum MatchType {
    None = 0,
    L3Only = 1,
    L3L4 = 2,
    L4Only = 3,
    All = 4,
    L3Proto = 5,
    ProtoOnly = 6,
}

/// What policy says of one packet.
#[derive(Clone, Copy)]
pub struct Decision {
    /// 0, a drop reason, or the port of the proxy, in network order.
    pub verdict: i32,
    pub match_type: MatchType,
    pub auth_type: u8,
}

/// Judges a packet that passes in conntrack direction `dir` from or to `identity`.
#[inline(always)]
pub fn judge(ctx: &TcContext, packet: &Packet, dir: u8, identity: u32) -> Decision {
    let mut port_be = packet.dport_be;
    if packet.proto == ICMP {
        if packet.icmp_type == ICMP_DEST_UNREACH && packet.icmp_code == ICMP_FRAG_NEEDED {
            return Decision { verdict: 0, match_type: MatchType::None, auth_type: 0 };
        }
        port_be = u16::from(packet.icmp_type).to_be();
    }
    let key = |sec_label| {
        let egress = u8::from(dir != IN);
        Key::new(64, PolicyKey { sec_label, egress, protocol: packet.proto, dport_be: port_be })
    };
    let Some((entry, match_type)) = choose(POLICY.get(key(identity)), || POLICY.get(key(0))) else {
        return Decision { verdict: reason::POLICY, match_type: MatchType::None, auth_type: 0 };
    };
    count(entry, u64::from(ctx.len()));
    let verdict = if entry.flags & DENY != 0 {
        reason::POLICY_DENY
    } else if entry.auth_type != 0 {
        reason::POLICY_AUTH_REQUIRED
    } else {
        i32::from(entry.proxy_port_be)
    };
    Decision { verdict, match_type, auth_type: entry.auth_type }
}

/// Between the entry of the identity and the one of any identity; a deny has no precedence of its own.
#[inline(always)]
fn choose(
    l3: Option<&'static PolicyEntry>,
    l4: impl Fn() -> Option<&'static PolicyEntry>,
) -> Option<(&'static PolicyEntry, MatchType)> {
    if let Some(entry) = l3
        && entry.flags & ANY_PORT == 0
    {
        return Some((entry, MatchType::L3L4));
    }
    let l4 = l4();
    if let Some(entry) = l4
        && entry.flags & ANY_PORT == 0
    {
        return Some((entry, MatchType::L4Only));
    }
    if let Some(entry) = l3
        && entry.flags & ANY_PROTOCOL == 0
    {
        return Some((entry, MatchType::L3Proto));
    }
    if let Some(entry) = l4
        && entry.flags & ANY_PROTOCOL == 0
    {
        return Some((entry, MatchType::ProtoOnly));
    }
    if let Some(entry) = l3 {
        return Some((entry, MatchType::L3Only));
    }
    l4.map(|entry| (entry, MatchType::All))
}

/// Counts the packet in the entry. Not atomic: two CPUs may lose a count, which Cilium's own addition would not.
#[inline(always)]
fn count(entry: &PolicyEntry, bytes: u64) {
    let entry = (&raw const *entry).cast_mut();
    // SAFETY: a live map value, which the program may write.
    unsafe {
        (*entry).packets += 1;
        (*entry).bytes += bytes;
    }
}
