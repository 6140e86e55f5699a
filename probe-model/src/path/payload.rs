//! What each end of a connection sends first, put together of the segments that brought it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::flow::Oriented;
use super::sighting::{Place, Seen};
use crate::proxy_protocol::{FirstBytes, Header, Proxy};

/// Bytes that are put together at most: a PROXY header and what follows it.
const BEGINNING_MAX: usize = 512;

/// What one end sends first, as one hook saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// Where it was seen.
    pub place: Place,
    /// Whether the end that was asked sends it: an answer.
    pub reply: bool,
    /// When the first byte was seen.
    pub ktime_ns: u64,
    /// What it is.
    pub first: FirstBytes,
    /// Segments that it took to see that: a PROXY header may be split.
    pub segments: u32,
    /// What comes behind a PROXY header, if any of it was seen.
    pub then: Option<FirstBytes>,
}

impl Beginning {
    /// The PROXY header, as far as it is there.
    pub fn header(&self) -> Option<&Header> {
        self.first.header()
    }
}

/// A segment's place among what its end sends.
struct Chunk<'a> {
    offset: u32,
    ktime_ns: u64,
    bytes: &'a Arc<[u8]>,
}

/// Every beginning that was seen, that of the opener first, each in the order of the way. `isns` are the initial
/// sequence numbers of the opener and of its peer.
pub(super) fn beginnings(oriented: &[Oriented<'_>], isns: [Option<u32>; 2]) -> Vec<Beginning> {
    let mut ends: BTreeMap<(bool, u8, Place), Vec<Chunk<'_>>> = BTreeMap::new();
    for Oriented { sighting, reply } in oriented {
        let (Seen::Payload { place, bytes }, Some(isn)) = (&sighting.seen, isns[usize::from(*reply)]) else {
            continue;
        };
        let offset = sighting.packet.seq.wrapping_sub(isn).wrapping_sub(1);
        let chunk = Chunk { offset, ktime_ns: sighting.ktime_ns, bytes };
        ends.entry((*reply, place.stage(), *place)).or_default().push(chunk);
    }
    ends.into_iter()
        .filter_map(|((reply, _, place), mut chunks)| {
            chunks.sort_by_key(|chunk| (chunk.offset, chunk.ktime_ns));
            beginning(place, reply, &chunks)
        })
        .collect()
}

/// Joins what is there without a hole, from the first byte on.
fn beginning(place: Place, reply: bool, chunks: &[Chunk<'_>]) -> Option<Beginning> {
    let mut joined: Vec<u8> = Vec::new();
    let mut segments = 0;
    for chunk in chunks {
        let Some(known) = joined.len().checked_sub(chunk.offset as usize) else { break };
        let Some(more) = chunk.bytes.get(known..).filter(|more| !more.is_empty()) else { continue };
        if segments == 0 || is_cut(&joined) {
            segments += 1;
        }
        joined.extend(&more[..more.len().min(BEGINNING_MAX - joined.len())]);
    }
    let first = FirstBytes::of(&joined)?;
    let then = match first {
        FirstBytes::ProxyV2(Proxy::Whole(header)) => FirstBytes::of(&joined[header.len..]),
        _ => None,
    };
    Some(Beginning { place, reply, ktime_ns: chunks.first()?.ktime_ns, first, segments, then })
}

fn is_cut(joined: &[u8]) -> bool {
    matches!(FirstBytes::of(joined), Some(FirstBytes::ProxyV2(Proxy::Cut { .. })))
}
