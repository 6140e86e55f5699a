//! The policy verdict notification: what the policy program decided.

use super::header::{self, CaptureHeader, put};
use super::{Misfit, POLICY_VERDICT, is_framed, unknown_version};
use crate::cilium::drop_reason::DropReason;
use crate::cilium::identity::Identity;
use crate::cilium::policy::MatchType;
use crate::cilium::{DecodeError, Direction, u16_le, u32_le};

pub(super) const WHAT: &str = "policy_verdict_notify";
pub(super) const KNOWN: &str = "32 bytes (Cilium 1.13 to 1.18) and 40 (1.19 and later)";
/// Bytes before the packet, up to 1.18.
pub(super) const SHORT: usize = 32;
/// Bytes before the packet, from 1.19 on.
pub(super) const LONG: usize = 40;
/// In every release: the notification does not say which layout it has.
const VERSION: u8 = 1;

const IPV6: u8 = 1 << 2;
const AUDITED: u8 = 1 << 6;
const L3_DEVICE: u8 = 1 << 7;

/// A decision of the policy program.
///
/// Source: `struct policy_verdict_notify`, Cilium 1.13 to 1.20 `bpf/lib/policy_log.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyVerdictNotify {
    /// Common header; `source` is the endpoint whose policy decided.
    pub header: CaptureHeader,
    /// The peer's identity.
    pub remote_label: Identity,
    /// 0 allow, negative a drop reason, positive the proxy's port as [`Self::proxy_port`] reads it.
    pub verdict: i32,
    /// Destination port after DNAT, host order.
    pub dst_port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Direction as the endpoint sees it.
    pub direction: Direction,
    /// IPv6.
    pub ipv6: bool,
    /// How much of the packet the deciding entry named.
    pub match_type: MatchType,
    /// Whether audit mode turned a drop into an allow.
    pub audited: bool,
    /// Whether the packet has no Ethernet header. Never set before 1.17.12 and 1.18.6, on any device.
    pub l3_device: bool,
    /// Authentication type; 0 in 1.13.
    pub auth_type: u8,
    /// The deciding entry's cookie, which stands for the log strings of its policies, 0 if none; `None` before 1.19.
    pub cookie: Option<u32>,
}

impl PolicyVerdictNotify {
    /// The drop reason, if it was a drop.
    pub fn drop_reason(&self) -> Option<DropReason> {
        DropReason::from_return_code(self.verdict)
    }

    /// The L7 proxy's port in host order, if the packet was redirected. It travels in network order inside the `s32`.
    pub fn proxy_port(&self) -> Option<u16> {
        u16::try_from(self.verdict)
            .ok()
            .filter(|port| *port != 0)
            .map(|port| u16::from_be_bytes(port.to_le_bytes()))
    }

    /// Refuses another version than the one that every release writes.
    pub(super) fn check_version(raw: &[u8]) -> Result<(), DecodeError> {
        let found = header::version(raw, WHAT)?;
        if found & 0xff == u16::from(VERSION) {
            return Ok(());
        }
        Err(unknown_version(WHAT, "1 (Cilium 1.13 and later)", found))
    }

    /// Why the bytes of a sample, the packet among them, cannot be a verdict of `size` bytes.
    ///
    /// Only what is true of every genuine verdict is asked: the right layout is never turned away.
    pub(super) fn misfit(raw: &[u8], size: usize) -> Option<Misfit> {
        if raw.len() < size || !is_framed(raw, size) {
            return Some(Misfit::Length);
        }
        if size == LONG && raw[36..LONG] != [0; 4] {
            return Some(Misfit::Padding);
        }
        let (proto, bits) = (raw[26], raw[27]);
        let packet = &raw[size..][..header::len_cap(raw).into()];
        // Older programs write verdicts of devices without layer 2 too, and have no flag for them.
        let fits = is_ip(packet, bits & IPV6 != 0, proto)
            || bits & L3_DEVICE == 0 && is_ethernet(packet, bits & IPV6 != 0, proto);
        (!fits).then_some(Misfit::Packet)
    }

    /// Reads a notification of exactly 32 or 40 bytes.
    pub(super) fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let bits = raw[27];
        let refuse = |field, expected, found: u8| DecodeError::Field {
            what: WHAT,
            field,
            expected,
            found: found.into(),
        };
        let direction = match bits & 3 {
            1 => Direction::Ingress,
            2 => Direction::Egress,
            found => return Err(refuse("dir", "1 (ingress) or 2 (egress)", found)),
        };
        let number = bits >> 3 & 7;
        let match_type =
            MatchType::from_number(number).ok_or_else(|| refuse("match_type", "0 to 6", number))?;
        Ok(Self {
            header: CaptureHeader::decode(raw),
            remote_label: Identity(u32_le(raw, 16)),
            verdict: u32_le(raw, 20).cast_signed(),
            dst_port: u16_le(raw, 24),
            proto: raw[26],
            direction,
            ipv6: bits & IPV6 != 0,
            match_type,
            audited: bits & AUDITED != 0,
            l3_device: bits & L3_DEVICE != 0,
            auth_type: raw[28],
            cookie: (raw.len() >= LONG).then(|| u32_le(raw, 32)),
        })
    }

    /// The notification without a packet: 40 bytes with a cookie, else 32.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = vec![0; if self.cookie.is_some() { LONG } else { SHORT }];
        self.header.encode(&mut raw, POLICY_VERDICT, 0, VERSION);
        put(&mut raw, 16, self.remote_label.0.to_le_bytes());
        put(&mut raw, 20, self.verdict.to_le_bytes());
        put(&mut raw, 24, self.dst_port.to_le_bytes());
        let flag = |bit: u8, set: bool| if set { bit } else { 0 };
        let direction = match self.direction {
            Direction::Ingress => 1,
            Direction::Egress => 2,
        };
        raw[26] = self.proto;
        raw[27] = direction
            | (self.match_type as u8) << 3
            | flag(IPV6, self.ipv6)
            | flag(AUDITED, self.audited)
            | flag(L3_DEVICE, self.l3_device);
        raw[28] = self.auth_type;
        if let Some(cookie) = self.cookie {
            put(&mut raw, 32, cookie.to_le_bytes());
        }
        raw
    }
}

/// Whether captured bytes may be an Ethernet frame with a packet of this family and protocol.
fn is_ethernet(frame: &[u8], ipv6: bool, proto: u8) -> bool {
    let ethertype: [u8; 2] = if ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] };
    match frame.split_at_checked(14) {
        Some((ethernet, packet)) => ethernet[12..] == ethertype && is_ip(packet, ipv6, proto),
        // Cut short before anything could tell.
        None => true,
    }
}

/// Whether captured bytes may be a packet of this family and protocol, as far as they go.
fn is_ip(packet: &[u8], ipv6: bool, proto: u8) -> bool {
    let version = if ipv6 { 6 } else { 4 };
    let is_version = packet.first().is_none_or(|byte| byte >> 4 == version);
    // The protocol of an IPv6 packet may stand behind extension headers.
    is_version && (ipv6 || packet.get(9).is_none_or(|byte| *byte == proto))
}
