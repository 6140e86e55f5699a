//! The ring buffer, as records.
use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result};
use probe_common::{
    DropRecord, EventRecord, PacketRecord, PayloadRecord, RecordHeader, RecordKind, SocketRecord,
};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::ring::Ring;
use crate::sys::{record, watch};

/// Records taken in one go, so that a flood does not keep its reader from everything else.
const BATCH_MAX: usize = 8192;

/// After so many records their room is given back. To do so after each takes the word that says so from the CPUs that
/// write.
const RELEASED: usize = 64;

/// How often the buffer is looked at unasked while much comes. The programs call only when it fills up faster: see
/// [`wake_bytes`].
const PERIOD_BUSY: Duration = Duration::from_millis(10);
/// The same while little comes. Flows are not looked at more often either.
const PERIOD: Duration = Duration::from_millis(50);
/// The same once nothing came for [`CALM`]: an agent waits for hours.
const PERIOD_CALM: Duration = Duration::from_millis(100);
/// So many looks for nothing.
const CALM: u32 = 100;
/// From so many records a second on, much comes.
const BUSY_PER_SECOND: usize = 5000;

/// From how many waiting bytes on the programs wake the reader.
pub(super) const fn wake_bytes(ring_bytes: u32) -> u32 {
    ring_bytes / 4
}

/// One record of our programs, where it lies in the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'r> {
    /// A packet at a hook.
    Packet(&'r PacketRecord),
    /// A packet that the kernel dropped.
    Drop(&'r DropRecord),
    /// A notification of Cilium's.
    Event(&'r EventRecord),
    /// Something that a socket did.
    Socket(&'r SocketRecord),
    /// What an end of a connection sends first.
    Payload(&'r PayloadRecord),
}

impl<'r> Record<'r> {
    /// `None` for bytes of an unknown kind or a wrong size.
    fn from_bytes(raw: &'r [u8]) -> Option<Self> {
        match RecordKind::from_raw(*raw.first()?)? {
            RecordKind::Packet => record(raw).map(Self::Packet),
            RecordKind::Drop => record(raw).map(Self::Drop),
            RecordKind::Event => record(raw).map(Self::Event),
            RecordKind::Socket => record(raw).map(Self::Socket),
            RecordKind::Payload => record(raw).map(Self::Payload),
        }
    }

    /// Its kind.
    fn kind(self) -> RecordKind {
        match self {
            Self::Packet(_) => RecordKind::Packet,
            Self::Drop(_) => RecordKind::Drop,
            Self::Event(_) => RecordKind::Event,
            Self::Socket(_) => RecordKind::Socket,
            Self::Payload(_) => RecordKind::Payload,
        }
    }

    /// What every record begins with.
    pub fn header(self) -> &'r RecordHeader {
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
    /// By CPU, of each kind in turn.
    last: Vec<u64>,
    missing: u64,
    disordered: u64,
}

impl Sequences {
    fn see(&mut self, kind: RecordKind, header: &RecordHeader) {
        let at = usize::from(header.cpu) * RecordKind::COUNT + kind as usize - 1;
        if at >= self.last.len() {
            self.last.resize(at + 1, 0);
        }
        let last = &mut self.last[at];
        if header.seq > *last {
            self.missing += header.seq - *last - 1;
            *last = header.seq;
        } else {
            self.disordered += 1;
        }
    }
}

/// The stream of records.
#[expect(missing_debug_implementations, reason = "pages of the kernel's")]
pub struct Records {
    ring: AsyncFd<Ring>,
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
    pub(super) fn new(ring: Ring) -> Result<Self> {
        let ring = watch(ring).context("failed to watch our ring buffer")?;
        let sequences = Sequences::default();
        Ok(Self {
            ring,
            period: every(PERIOD_BUSY),
            idle_looks: 0,
            is_behind: false,
            sequences,
            read: 0,
            malformed: 0,
        })
    }

    /// Waits until it is time to take records; there may be none. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the ring buffer cannot be polled.
    pub async fn ready(&mut self) -> io::Result<()> {
        if !self.is_behind {
            tokio::select! {
                ready = self.ring.readable_mut() => ready?.clear_ready(),
                _ = self.period.tick() => {}
            }
        }
        Ok(())
    }

    /// Gives what is there, a bounded number: our programs may be faster than we are. How many that were.
    pub fn take(&mut self, each: impl FnMut(Record<'_>)) -> usize {
        let taken = self.take_at_most(BATCH_MAX, each);
        self.is_behind = taken == BATCH_MAX;
        self.idle_looks = if taken > 0 { 0 } else { self.idle_looks.saturating_add(1) };
        let busy = BUSY_PER_SECOND * self.period.period().as_millis() as usize / 1000;
        let period = match taken {
            0 if self.idle_looks >= CALM => PERIOD_CALM,
            _ if taken < busy => PERIOD,
            _ => PERIOD_BUSY,
        };
        if period != self.period.period() {
            self.period = every(period);
        }
        taken
    }

    /// Gives all that is there: the last records after the programs were detached.
    pub fn drain(&mut self, each: impl FnMut(Record<'_>)) {
        self.take_at_most(usize::MAX, each);
    }

    fn take_at_most(&mut self, max: usize, mut each: impl FnMut(Record<'_>)) -> usize {
        let pages = self.ring.get_mut().pages();
        let mut taken = 0;
        while taken < max
            && let Some(raw) = pages.next()
        {
            taken += 1;
            match Record::from_bytes(raw) {
                Some(record) => {
                    self.sequences.see(record.kind(), record.header());
                    self.read += 1;
                    each(record);
                }
                None => self.malformed += 1,
            }
            if taken % RELEASED == 0 {
                pages.release();
            }
        }
        pages.release();
        taken
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

    /// Bytes that lie where a record may.
    #[repr(align(8))]
    struct Aligned<const N: usize>([u8; N]);

    #[test]
    fn bytes_of_another_kind_or_size_are_no_record() {
        fn of<const N: usize>(kind: u8) -> Option<RecordKind> {
            Record::from_bytes(&Aligned([kind; N]).0).map(Record::kind)
        }
        assert_eq!(of::<0>(0), None);
        assert_eq!(of::<144>(9), None);
        assert_eq!(of::<143>(RecordKind::Packet as u8), None);
        assert_eq!(Record::from_bytes(&Aligned([RecordKind::Packet as u8; 145]).0[1..]), None);
        assert_eq!(of::<144>(RecordKind::Packet as u8), Some(RecordKind::Packet));
        assert_eq!(of::<152>(RecordKind::Drop as u8), Some(RecordKind::Drop));
        assert_eq!(of::<304>(RecordKind::Event as u8), Some(RecordKind::Event));
        assert_eq!(of::<128>(RecordKind::Socket as u8), Some(RecordKind::Socket));
        assert_eq!(of::<384>(RecordKind::Payload as u8), Some(RecordKind::Payload));
    }

    #[test]
    fn gaps_are_what_is_missing_on_each_cpu_and_of_each_kind() {
        let mut sequences = Sequences::default();
        let mut see =
            |cpu, kind, seq| sequences.see(kind, &RecordHeader { cpu, seq, ..RecordHeader::default() });
        let (packet, dropped, payload) = (RecordKind::Packet, RecordKind::Drop, RecordKind::Payload);
        see(0, packet, 1);
        see(0, packet, 2);
        see(1, packet, 3);
        see(0, dropped, 1);
        see(0, payload, 1);
        see(0, packet, 6);
        see(1, packet, 4);
        assert_eq!((sequences.missing, sequences.disordered), (2 + 3, 0));
        sequences.see(packet, &RecordHeader { seq: 6, ..RecordHeader::default() });
        assert_eq!((sequences.missing, sequences.disordered), (5, 1));
    }
}
