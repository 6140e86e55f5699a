//! The ring buffer, as records.
use std::io;

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use probe_common::{DropRecord, EventRecord, PacketRecord, RecordKind};
use tokio::io::unix::AsyncFd;

use crate::sys::{read_record, watch};

/// Records taken in one go, so that a flood does not keep its reader from everything else.
const BATCH_MAX: usize = 8192;

/// One record of our programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A packet at one of our classifiers.
    Packet(PacketRecord),
    /// A packet that the kernel dropped.
    Drop(DropRecord),
    /// A notification of Cilium's.
    Event(Box<EventRecord>),
}

impl Record {
    /// Reads one record; `None` for bytes of an unknown kind or a wrong size.
    fn from_bytes(raw: &[u8]) -> Option<Self> {
        const PACKET: u8 = RecordKind::Packet as u8;
        const DROP: u8 = RecordKind::Drop as u8;
        const EVENT: u8 = RecordKind::Event as u8;
        match *raw.first()? {
            PACKET => read_record(raw).map(Self::Packet),
            DROP => read_record(raw).map(Self::Drop),
            EVENT => read_record(raw).map(Box::new).map(Self::Event),
            _ => None,
        }
    }
}

/// The stream of records.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Records {
    ring: AsyncFd<RingBuf<MapData>>,
    malformed: u64,
}

impl Records {
    pub(super) fn new(ring: RingBuf<MapData>) -> Result<Self> {
        let ring = watch(ring).context("failed to watch our ring buffer")?;
        Ok(Self { ring, malformed: 0 })
    }

    /// Waits for records and appends those that are there, a bounded number. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the ring buffer cannot be polled.
    pub async fn next_batch(&mut self, batch: &mut Vec<Record>) -> io::Result<()> {
        let mut guard = self.ring.readable_mut().await?;
        let ring = guard.get_inner_mut();
        for _ in 0..BATCH_MAX {
            let Some(item) = ring.next() else {
                guard.clear_ready();
                return Ok(());
            };
            match Record::from_bytes(&item) {
                Some(record) => batch.push(record),
                None => self.malformed += 1,
            }
        }
        Ok(())
    }

    /// Appends what is there without waiting: the last records after the programs were detached.
    pub fn drain(&mut self, batch: &mut Vec<Record>) {
        while let Some(item) = self.ring.get_mut().next() {
            match Record::from_bytes(&item) {
                Some(record) => batch.push(record),
                None => self.malformed += 1,
            }
        }
    }

    /// Records of an unknown kind or size so far; none unless program and reader disagree.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_another_kind_or_size_are_no_record() {
        assert_eq!(Record::from_bytes(&[]), None);
        assert_eq!(Record::from_bytes(&[9; 120]), None);
        assert_eq!(Record::from_bytes(&[RecordKind::Packet as u8; 119]), None);
        assert!(matches!(Record::from_bytes(&[RecordKind::Packet as u8; 120]), Some(Record::Packet(_))));
        assert!(matches!(Record::from_bytes(&[RecordKind::Event as u8; 296]), Some(Record::Event(_))));
    }
}
