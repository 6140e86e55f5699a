//! What our programs counted and we read, over all attachments of one trace.
use anyhow::Result;

use crate::attach::{Attachment, Counters, Record, Records, Skipped};

/// How often records that are being written are waited for while our programs run.
const CATCH_UP: u32 = 8;

/// The sums.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) counters: Counters,
    pub(crate) records: u64,
    pub(crate) malformed: u64,
    pub(super) disordered: u64,
    pub(super) unaccounted: u64,
    pub(super) skipped: Vec<Skipped>,
}

/// The sums of our programs, of Cilium's word, and of what was made of both.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) tally: Tally,
    /// Received, lost, not understood.
    pub(super) notifications: [u64; 3],
    pub(super) overflowed: u64,
    pub(super) later_packets: u64,
    pub(super) later_retransmissions: u64,
}

impl Tally {
    /// Detaches, gives the last records, and adds what there was. Says what went wrong by `notice`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to read our counters. All is detached then, too.
    pub(super) fn end(
        &mut self,
        attachment: &mut Attachment,
        records: &mut Records,
        each: impl FnMut(Record<'_>),
        mut notice: impl FnMut(&str),
    ) -> Result<()> {
        // Asked while the programs are there.
        match attachment.skipped() {
            Ok(skipped) => self.add_skipped(skipped),
            Err(error) => {
                notice(&format!("it is not known whether the kernel ran our programs each time: {error:#}"));
            }
        }
        for failure in attachment.detach() {
            notice(&format!("{failure:#}"));
        }
        let counters = attachment.finish(records, each)?;
        self.add(&counters, records);
        self.unaccounted += counters.made().abs_diff(records.read() + counters.lost());
        Ok(())
    }

    /// Adds what there is by now, and gives the records that had been made. Programs that run go on making some: those
    /// are neither counted as missing nor waited for.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to read our counters.
    pub(super) fn add_running(
        &mut self,
        attachment: &Attachment,
        records: &mut Records,
        mut each: impl FnMut(Record<'_>),
    ) -> Result<()> {
        let counters = attachment.counters()?;
        for _ in 0..CATCH_UP {
            records.take(&mut each);
            if records.read() + counters.lost() >= counters.made() {
                break;
            }
        }
        self.add(&counters, records);
        self.unaccounted += counters.made().saturating_sub(records.read() + counters.lost());
        Ok(())
    }

    /// Adds how often the kernel skipped programs, by place.
    pub(super) fn add_skipped(&mut self, skipped: Vec<Skipped>) {
        for more in skipped {
            match self.skipped.iter_mut().find(|known| known.place == more.place) {
                Some(known) => known.runs += more.runs,
                None => self.skipped.push(more),
            }
        }
    }

    fn add(&mut self, counters: &Counters, records: &Records) {
        self.counters.add(counters);
        self.records += records.read();
        self.malformed += records.malformed();
        self.disordered += records.disordered();
    }

    /// What came after `before`.
    fn since(&self, before: &Self) -> Self {
        Self {
            counters: self.counters.since(&before.counters),
            records: self.records - before.records,
            malformed: self.malformed - before.malformed,
            disordered: self.disordered - before.disordered,
            unaccounted: self.unaccounted.saturating_sub(before.unaccounted),
            skipped: self.skipped.clone(),
        }
    }
}

impl Totals {
    /// What came after `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        // Another source of Cilium's word counts from its own beginning.
        let mut notifications = self.notifications;
        for (now, then) in notifications.iter_mut().zip(before.notifications) {
            *now = now.saturating_sub(then);
        }
        Self {
            tally: self.tally.since(&before.tally),
            notifications,
            overflowed: self.overflowed - before.overflowed,
            later_packets: self.later_packets - before.later_packets,
            later_retransmissions: self.later_retransmissions - before.later_retransmissions,
        }
    }
}
