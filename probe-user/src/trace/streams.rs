//! Streams of which no more is wanted than that they go on: the programs are told to only count their packets.
//!
//! Nearly every packet of a loaded pod is one of a flow that was decided long ago. A record of each would be made, read and
//! forgotten.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;
use probe_common::{PacketRecord, Stream};
use probe_model::path::{LegKey, Need, TcpFlags};
use probe_model::tuple::Protocol;

/// From when on packets of a TCP connection are only counted, in nanoseconds after it was said: records that were made
/// before must have been read by then, or another connection on the same ports could begin unknown.
const READ_NS: u64 = 250_000_000;
/// So long after it was said, the programs know of it.
const KNOWN_NS: u64 = 50_000_000;
/// A stream of which no record came for so long has ended.
const OVER_NS: u64 = 10_000_000_000;

/// What the programs are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Only count the stream's packets from then on, by the records' clock.
    Count { stream: Stream, since_ns: u64 },
    /// Make a record of each again.
    Record { stream: Stream },
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    stream: Stream,
    since_ns: u64,
    /// Time of the last record.
    last_ns: u64,
}

/// The streams that are only counted.
#[derive(Debug, Default)]
pub(super) struct Streams {
    counted: HashMap<LegKey, Vec<Counted>, RandomState>,
    /// Their slots in the programs' table.
    slots: HashSet<u32, RandomState>,
    orders: Vec<Order>,
    was_late: bool,
}

impl Streams {
    /// Takes note of a packet's record, and of what its flow needs. `now_ns` is asked for where it matters.
    pub(super) fn note(&mut self, record: &PacketRecord, need: Need, now_ns: impl FnOnce() -> u64) {
        if need == Need::Records && self.counted.is_empty() {
            return;
        }
        // A fragment is never only counted.
        let Some(leg) = LegKey::of_record(&record.packet) else { return };
        match need {
            Need::Records => self.record_again(&leg, record, now_ns),
            Need::Count => self.count(leg, Stream::of(record), record.header.ktime_ns, now_ns),
        }
    }

    fn count(&mut self, leg: LegKey, stream: Stream, ktime_ns: u64, now_ns: impl FnOnce() -> u64) {
        let delay_ns = match Protocol(stream.proto) {
            Protocol::TCP => READ_NS,
            Protocol::UDP => 0,
            _ => return,
        };
        let of_flow = self.counted.entry(leg).or_default();
        if let Some(known) = of_flow.iter_mut().find(|counted| counted.stream == stream) {
            known.last_ns = known.last_ns.max(ktime_ns);
        } else if self.slots.insert(slot(&stream)) {
            let since_ns = now_ns() + delay_ns;
            of_flow.push(Counted { stream, since_ns, last_ns: ktime_ns });
            self.orders.push(Order::Count { stream, since_ns });
        }
    }

    /// Something new happens between these ends: every packet of theirs may matter.
    fn record_again(&mut self, leg: &LegKey, record: &PacketRecord, now_ns: impl FnOnce() -> u64) {
        let Some(of_flow) = self.counted.remove(leg) else { return };
        // The programs themselves heed what opens a connection, once they know of the stream.
        if TcpFlags(record.packet.tcp_flags).contains(TcpFlags::SYN) {
            let (ktime_ns, now_ns) = (record.header.ktime_ns, now_ns());
            let is_late = |counted: &Counted| {
                let known_ns = counted.since_ns - READ_NS + KNOWN_NS;
                ktime_ns < known_ns && counted.since_ns <= now_ns
            };
            self.was_late |= of_flow.iter().any(is_late);
        }
        for Counted { stream, .. } in of_flow {
            self.slots.remove(&slot(&stream));
            self.orders.push(Order::Record { stream });
        }
    }

    /// Makes room: streams that have ended are not to be counted any more.
    pub(super) fn forget(&mut self, now_ns: u64) {
        let Self { counted, slots, orders, .. } = self;
        counted.retain(|_, of_flow| {
            let is_over = |counted: &mut Counted| counted.last_ns + OVER_NS < now_ns;
            for Counted { stream, .. } in of_flow.extract_if(.., is_over) {
                slots.remove(&slot(&stream));
                orders.push(Order::Record { stream });
            }
            !of_flow.is_empty()
        });
    }

    /// What the programs are to be told, in this order.
    pub(super) fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// Other programs took over, which make a record of each.
    pub(super) fn begin_anew(&mut self) {
        let Self { was_late, .. } = *self;
        *self = Self { was_late, ..Self::default() };
    }

    /// Whether packets may have been only counted that were of a new connection, since records were read too late.
    pub(super) fn was_late(&self) -> bool {
        self.was_late
    }
}

fn slot(stream: &Stream) -> u32 {
    Stream::slot(stream.words())
}

#[cfg(test)]
mod tests;
