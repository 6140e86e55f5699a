//! The first bytes that each end of a TCP connection sends.
//!
//! They are where its initial sequence number says, which a SYN tells. It is kept in a table that a lookup costs next to
//! nothing in, so that a packet in the middle of a connection pays no more.
use probe_common::{
    Counter, FIBONACCI, HookPoint, PAYLOAD_MAX, Packet, PayloadRecord, RecordKind, address_words, halves,
};

use crate::emit::reserve;
use crate::maps::{Scratch, copy_packet, opening};
use crate::parse::{IPPROTO_TCP, Network, SYN, Source};

/// Where first bytes are kept: where a packet enters and leaves the node, and at the pod.
const fn is_wanted_at(point: HookPoint) -> bool {
    matches!(
        point,
        HookPoint::UplinkIn
            | HookPoint::UplinkOut
            | HookPoint::PodIn
            | HookPoint::PodOut
            | HookPoint::OverlayIn
            | HookPoint::Received
            | HookPoint::Queued
            | HookPoint::IpDeliver
    )
}

/// Keeps where the payload begins in memory that the verifier knows nothing of: what it knew of the header's length, it
/// would else follow once more for each length through all that comes.
#[inline(always)]
pub(crate) fn keep_offset(at: &mut u32, network: &Network, packet: &Packet) {
    // SAFETY: a valid reference.
    unsafe { core::ptr::write_volatile(at, network.payload_offset(packet)) };
}

/// Keeps what a packet that matched carries, if that is what its end of the connection sends first.
#[inline(always)]
pub(crate) fn look(source: &impl Source, scratch: &Scratch, (point, ifindex, netns): (HookPoint, u32, u32)) {
    // The compiler, too, is to forget what it knew of the packet, and read it again: see `keep_offset`.
    let scratch: *const Scratch = scratch;
    // SAFETY: a local that was just set from a valid reference.
    let scratch = unsafe { &*core::ptr::read_volatile(&raw const scratch) };
    let packet = &scratch.packet;
    let is_opening = packet.tcp_flags & SYN != 0;
    if !is_wanted_at(point) || packet.proto != IPPROTO_TCP || (packet.payload_len == 0 && !is_opening) {
        return;
    }
    let key = key(packet);
    let Some(slot) = opening(key) else {
        return; // every index has a slot
    };
    let tag = key & TAG;
    if is_opening {
        // SAFETY: the slot is a `u64` of the map's; two that write to it at once leave one of their two values.
        unsafe { core::ptr::write_volatile(slot, tag | u64::from(packet.seq)) };
        return;
    }
    // SAFETY: as above.
    let known = unsafe { core::ptr::read_volatile(slot) };
    // The SYN takes up one number itself.
    let offset = packet.seq.wrapping_sub(known as u32).wrapping_sub(1);
    if known & TAG != tag || offset >= PAYLOAD_MAX as u32 {
        return;
    }
    let counters = (Counter::PayloadMatched, Counter::PayloadLost);
    if let Some(mut entry) = reserve(counters, (RecordKind::Payload, point as u8), ifindex) {
        let record: &mut PayloadRecord = entry.record();
        record.netns = netns;
        let len = packet.payload_len.min(PAYLOAD_MAX as u32);
        record.captured = source.copy(scratch.payload_at, len, &mut record.bytes).unwrap_or(0);
        copy_packet(packet, &mut record.packet);
        entry.submit();
    }
}

/// The half of a slot that says whose it is; the other is the initial sequence number.
const TAG: u64 = !(u32::MAX as u64);

/// A hash of the packet's two ends in its own direction: its high half tags a slot, its low half says which.
///
/// Of two connections that share a slot the one that was opened first is not known any more; that two share a tag as
/// well, and are near each other in their numbers, does not happen in practice.
#[inline(always)]
fn key(packet: &Packet) -> u64 {
    let [a, b] = halves(address_words(&packet.src));
    let [c, d] = halves(address_words(&packet.dst));
    let ports = u64::from(packet.src_port) << 16 | u64::from(packet.dst_port);
    let mixed = (a ^ b.rotate_left(17)).wrapping_mul(FIBONACCI) ^ c ^ d.rotate_left(31);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(FIBONACCI) ^ ports;
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(FIBONACCI);
    // A slot that was never written is nobody's.
    (mixed ^ mixed >> 32) | 1 << 63
}
