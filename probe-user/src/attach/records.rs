//! The ring buffer, as records.
use std::collections::HashMap;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use probe_common::{
    DropRecord, EventRecord, PacketRecord, PayloadRecord, RecordHeader, RecordKind, SocketRecord,
};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::sys::{read_record, watch};

/// Records taken in one go, so that a flood does not keep its reader from everything else.
const BATCH_MAX: usize = 8192;

/// How often the buffer is looked at unasked. The programs call only when it fills up faster: see [`wake_bytes`].
const PERIOD: Duration = Duration::from_millis(10);
/// The same once nothing came for [`CALM`]: an agent waits for hours.
const PERIOD_CALM: Duration = Duration::from_millis(100);
/// So many looks for nothing.
const CALM: u32 = 500;

/// From how many waiting bytes on the programs wake the reader.
pub(super) const fn wake_bytes(ring_bytes: u32) -> u32 {
    ring_bytes / 4
}

/// One record of our programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A packet at a hook.
    Packet(PacketRecord),
    /// A packet that the kernel dropped.
    Drop(DropRecord),
    /// A notification of Cilium's.
    Event(Box<EventRecord>),
    /// Something that a socket did.
    Socket(SocketRecord),
    /// What an end of a connection sends first.
    Payload(Box<PayloadRecord>),
}

impl Record {
    /// Reads one record; `None` for bytes of an unknown kind or a wrong size.
    fn from_bytes(raw: &[u8]) -> Option<Self> {
        match RecordKind::from_raw(*raw.first()?)? {
            RecordKind::Packet => read_record(raw).map(Self::Packet),
            RecordKind::Drop => read_record(raw).map(Self::Drop),
            RecordKind::Event => read_record(raw).map(Box::new).map(Self::Event),
            RecordKind::Socket => read_record(raw).map(Self::Socket),
            RecordKind::Payload => read_record(raw).map(Box::new).map(Self::Payload),
        }
    }

    /// What every record begins with.
    pub fn header(&self) -> &RecordHeader {
        match self {
            Self::Packet(record) => &record.header,
            Self::Drop(record) => &record.header,
            Self::Event(record) => &record.header,
            Self::Socket(record) => &record.header,
            Self::Payload(record) => &record.header,
        }
    }
}

/// Follows the numbers of the records of each kind on each CPU.
#[derive(Clone, Debug, Default)]
struct Sequences {
    /// By CPU and kind.
    last: HashMap<(u16, u8), u64>,
    missing: u64,
    disordered: u64,
}

impl Sequences {
    fn see(&mut self, header: &RecordHeader) {
        let last = self.last.entry((header.cpu, header.kind)).or_default();
        if header.seq > *last {
            self.missing += header.seq - *last - 1;
            *last = header.seq;
        } else {
            self.disordered += 1;
        }
    }
}

/// The stream of records.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Records {
    ring: AsyncFd<RingBuf<MapData>>,
    period: Interval,
    /// Looks for nothing since the last record.
    idle_looks: u32,
    /// The last batch was full: there may be more.
    is_behind: bool,
    sequences: Sequences,
    read: u64,
    malformed: u64,
}

impl Records {
    pub(super) fn new(ring: RingBuf<MapData>) -> Result<Self> {
        let ring = watch(ring).context("failed to watch our ring buffer")?;
        let sequences = Sequences::default();
        Ok(Self {
            ring,
            period: every(PERIOD),
            idle_looks: 0,
            is_behind: false,
            sequences,
            read: 0,
            malformed: 0,
        })
    }

    /// Waits for records and appends those that are there, a bounded number. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the ring buffer cannot be polled.
    pub async fn next_batch(&mut self, batch: &mut Vec<Record>) -> io::Result<()> {
        loop {
            if !self.is_behind {
                tokio::select! {
                    ready = self.ring.readable_mut() => ready?.clear_ready(),
                    _ = self.period.tick() => {}
                }
            }
            let before = batch.len();
            self.is_behind = self.take(batch, BATCH_MAX);
            if batch.len() > before {
                if self.idle_looks >= CALM {
                    self.period = every(PERIOD);
                }
                self.idle_looks = 0;
                return Ok(());
            }
            self.idle_looks = self.idle_looks.saturating_add(1);
            if self.idle_looks == CALM {
                self.period = every(PERIOD_CALM);
            }
        }
    }

    /// Appends what is there without waiting: the last records after the programs were detached.
    pub fn drain(&mut self, batch: &mut Vec<Record>) {
        self.take(batch, usize::MAX);
    }

    /// Appends what is there without waiting, a bounded number: our programs may be faster than we are.
    pub fn drain_some(&mut self, batch: &mut Vec<Record>) {
        self.take(batch, BATCH_MAX);
    }

    /// Appends what is there, at most `max`; whether it was as many as that.
    fn take(&mut self, batch: &mut Vec<Record>, max: usize) -> bool {
        for _ in 0..max {
            let Some(item) = self.ring.get_mut().next() else { return false };
            match Record::from_bytes(&item) {
                Some(record) => {
                    self.sequences.see(record.header());
                    self.read += 1;
                    batch.push(record);
                }
                None => self.malformed += 1,
            }
        }
        true
    }

    /// Records read so far.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// Records missing between those that were read, by their numbers.
    pub fn missing(&self) -> u64 {
        self.sequences.missing
    }

    /// Records whose number was not above the one before on their CPU. None on kernels from 6.1 on.
    pub fn disordered(&self) -> u64 {
        self.sequences.disordered
    }

    /// Records of an unknown kind or size so far; none unless program and reader disagree.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}

/// Ticks from the next period on, that are not made up for when they come late.
fn every(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_another_kind_or_size_are_no_record() {
        assert_eq!(Record::from_bytes(&[]), None);
        assert_eq!(Record::from_bytes(&[9; 144]), None);
        assert_eq!(Record::from_bytes(&[RecordKind::Packet as u8; 143]), None);
        assert!(matches!(Record::from_bytes(&[RecordKind::Packet as u8; 144]), Some(Record::Packet(_))));
        assert!(matches!(Record::from_bytes(&[RecordKind::Drop as u8; 152]), Some(Record::Drop(_))));
        assert!(matches!(Record::from_bytes(&[RecordKind::Event as u8; 304]), Some(Record::Event(_))));
        assert!(matches!(Record::from_bytes(&[RecordKind::Socket as u8; 128]), Some(Record::Socket(_))));
        assert!(matches!(Record::from_bytes(&[RecordKind::Payload as u8; 384]), Some(Record::Payload(_))));
    }

    #[test]
    fn gaps_are_what_is_missing_on_each_cpu_and_of_each_kind() {
        let mut sequences = Sequences::default();
        let header = |cpu, kind, seq| RecordHeader { cpu, kind, seq, ..RecordHeader::default() };
        for (cpu, kind, seq) in [(0, 1, 1), (0, 1, 2), (1, 1, 3), (0, 2, 1), (0, 1, 6), (1, 1, 4)] {
            sequences.see(&header(cpu, kind, seq));
        }
        assert_eq!((sequences.missing, sequences.disordered), (2 + 3, 0));
        sequences.see(&header(0, 1, 6));
        assert_eq!((sequences.missing, sequences.disordered), (5, 1));
    }
}
