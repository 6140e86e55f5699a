//! What user space knows enough of: the programs count it, and make no record of each packet.
use core::mem::{offset_of, size_of};

use crate::packet::{FIBONACCI, address_words, halves};
use crate::record::PacketRecord;

/// A stream: the packets of one tuple, in one direction, at one hook of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// Source address by its words: [`address_words`].
    pub src: [u32; 4],
    /// Destination address.
    pub dst: [u32; 4],
    /// Layer-4 source port.
    pub src_port: u16,
    /// Layer-4 destination port.
    pub dst_port: u16,
    /// IP protocol number: TCP or UDP.
    pub proto: u8,
    /// 4 or 6.
    pub version: u8,
    /// A [`crate::HookPoint`].
    pub point: u8,
    /// As in [`crate::RecordHeader::ifindex`].
    pub ifindex: u32,
    /// As in [`PacketRecord::netns`].
    pub netns: u32,
}

/// A value of the programs' table of streams whose packets are only counted; its index is [`Stream::slot`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamSlot {
    /// Whose it is: [`Stream::words`]; zeros are nobody's.
    pub words: [u64; 6],
    /// Since when its packets are only counted, in nanoseconds of `CLOCK_MONOTONIC`; may lie ahead. 0 is never.
    pub since_ns: u64,
}

impl StreamSlot {
    /// Number of slots, a power of two.
    pub const COUNT: u32 = 1 << Self::BITS;
    const BITS: u32 = 13;
}

impl Stream {
    /// For so long after a record, in nanoseconds, packets are only counted. One record a second tells that the stream
    /// goes on, and when it stopped.
    pub const COUNTED_NS: u64 = 1_000_000_000;

    /// The stream that a packet's record is of.
    pub const fn of(record: &PacketRecord) -> Self {
        let PacketRecord { header, packet, netns, .. } = record;
        Self {
            src: address_words(&packet.src),
            dst: address_words(&packet.dst),
            src_port: packet.src_port,
            dst_port: packet.dst_port,
            proto: packet.proto,
            version: packet.version,
            point: header.point,
            ifindex: header.ifindex,
            netns: *netns,
        }
    }

    /// All of it, in words that are not all zeros.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "an eBPF program has no room for calls")]
    pub const fn words(&self) -> [u64; 6] {
        let Self { src, dst, src_port, dst_port, proto, version, point, ifindex, netns } = *self;
        let [src, dst] = [halves(src), halves(dst)];
        let ports = (src_port as u64) << 16 | dst_port as u64;
        let kind = (proto as u64) << 16 | (version as u64) << 8 | point as u64;
        [src[0], src[1], dst[0], dst[1], kind << 32 | ports, (netns as u64) << 32 | ifindex as u64]
    }

    /// The slot that is a stream's, by its words. Of two that have the same one only one can be in the table.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "an eBPF program has no room for calls")]
    pub const fn slot([src, src_rest, dst, dst_rest, kind, place]: [u64; 6]) -> u32 {
        let rest = src_rest ^ dst_rest.rotate_left(31) ^ place.rotate_left(13);
        let hash = (src ^ dst.rotate_left(29)).wrapping_mul(FIBONACCI) ^ rest;
        let hash = (hash ^ hash >> 32 ^ kind).wrapping_mul(FIBONACCI);
        (hash >> (u64::BITS - StreamSlot::BITS)) as u32
    }
}

const _: () = {
    assert!(size_of::<StreamSlot>() == 56);
    assert!(offset_of!(StreamSlot, since_ns) == 48);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(client: u32, src_port: u16, point: u8) -> Stream {
        Stream {
            src: [client.to_be(), 0, 0, 0],
            dst: [0x0ae0_0007_u32.to_be(), 0, 0, 0],
            src_port,
            dst_port: 80,
            proto: 6,
            version: 4,
            point,
            ifindex: 2,
            netns: 0,
        }
    }

    #[test]
    fn streams_that_differ_have_other_words() {
        let one = stream(1, 2, 3);
        let others = [
            Stream { src: [1, 0, 0, 1], ..one },
            Stream { dst: [1, 1, 0, 0], ..one },
            Stream { src: one.dst, dst: one.src, ..one },
            Stream { src_port: one.dst_port, dst_port: one.src_port, ..one },
            Stream { src_port: 3, ..one },
            Stream { dst_port: 81, ..one },
            Stream { proto: 17, ..one },
            Stream { version: 6, ..one },
            Stream { point: 4, ..one },
            Stream { ifindex: 3, ..one },
            Stream { netns: 1, ..one },
        ];
        for (at, other) in others.iter().enumerate() {
            assert!(one.words() != other.words(), "{other:?}");
            assert!(others[..at].iter().all(|before| before.words() != other.words()), "{other:?}");
        }
    }

    #[test]
    fn few_of_many_streams_share_a_slot() {
        let mut taken = [false; StreamSlot::COUNT as usize];
        let mut shared = 0;
        for client in 0..10 {
            for port in 0..16 {
                for point in 1..=5 {
                    let slot = Stream::slot(stream(0xc0a8_0a01 + client, 32_768 + port * 2, point).words());
                    shared += u32::from(core::mem::replace(&mut taken[slot as usize], true));
                }
            }
        }
        // Of 800 in 8192, by chance 39.
        assert!(shared < 60, "{shared}");
    }
}
