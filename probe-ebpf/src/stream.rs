//! Packets that user space has no need of: of a stream that it knows enough of, they are only counted.
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use probe_common::{Counter, HookPoint, Stream, StreamSlot};

use crate::maps::{count, setting, stream_slot};
use crate::parse::{self, FIN, Network, RST, SYN, Source};

/// Whether a packet is only counted; then it has been.
///
/// What opens, ends or resets a connection never is, and one packet a second is not. User space names only streams that the
/// filter matches, which need not be asked again here; an expression may match one packet of a stream and not the next.
#[inline(always)]
pub(crate) fn is_only_counted(
    source: &impl Source,
    network: &Network,
    (point, ifindex, netns): (HookPoint, u32, u32),
) -> bool {
    if setting!(has_expression) != 0 {
        return false;
    }
    let Some((src_port, dst_port, tcp_flags)) = parse::ports(source, network) else { return false };
    let Network { src, dst, version, proto, .. } = *network;
    let point = point as u8;
    let words = Stream { src, dst, src_port, dst_port, proto, version, point, ifindex, netns }.words();
    let Some(since) = stream_slot(Stream::slot(words)).and_then(|slot| since(slot, &words)) else {
        return false;
    };
    if tcp_flags & SYN != 0 {
        // At once: before user space has heard of it, what it told was of the connection before.
        // SAFETY: a word of the map's; of two that write to it at once, one stays.
        unsafe { since.write_volatile(0) };
        return false;
    }
    if tcp_flags & (FIN | RST) != 0 {
        return false;
    }
    // SAFETY: the helper takes no argument and returns a number; the word as above.
    let (now_ns, since_ns) = unsafe { (bpf_ktime_get_ns(), since.read_volatile()) };
    if since_ns == 0 || now_ns < since_ns {
        return false;
    }
    if now_ns - since_ns >= Stream::COUNTED_NS {
        // SAFETY: as above.
        unsafe { since.write_volatile(now_ns) };
        return false;
    }
    count(Counter::PacketCounted);
    true
}

/// Since when the packets of the stream of these words are only counted, if the slot is that stream's.
#[inline(always)]
fn since(slot: *mut StreamSlot, words: &[u64; 6]) -> Option<*mut u64> {
    // SAFETY: a slot of the map's. User space may be writing to it: it takes zeros out, or puts them in, so that what is
    // seen half is nobody's, or never.
    unsafe {
        let known = (&raw const (*slot).words).cast::<u64>();
        let mut word = 0;
        while word < words.len() {
            if known.add(word).read_volatile() != words[word] {
                return None;
            }
            word += 1;
        }
        Some(&raw mut (*slot).since_ns)
    }
}
