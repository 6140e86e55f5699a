//! What our programs counted and we read, over all attachments of one trace.
use anyhow::Result;

use crate::attach::{Attachment, Counters, Record, Records, Skipped};

/// The sums.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) counters: Counters,
    pub(super) records: u64,
    pub(super) malformed: u64,
    pub(super) disordered: u64,
    pub(super) unaccounted: u64,
    pub(super) skipped: Vec<Skipped>,
}

impl Tally {
    /// Detaches, reads the last records into `batch`, and adds what there was. Says what went wrong by `notice`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to read our counters. All is detached then, too.
    pub(super) fn end(
        &mut self,
        attachment: &mut Attachment,
        records: &mut Records,
        batch: &mut Vec<Record>,
        notice: impl Fn(&str),
    ) -> Result<()> {
        // Asked while the programs are there.
        match attachment.skipped() {
            Ok(skipped) => self.skipped.extend(skipped),
            Err(error) => {
                notice(&format!("it is not known whether the kernel ran our programs each time: {error:#}"));
            }
        }
        for failure in attachment.detach() {
            notice(&format!("{failure:#}"));
        }
        let counters = attachment.finish(records, batch)?;
        self.counters.add(&counters);
        self.records += records.read();
        self.malformed += records.malformed();
        self.disordered += records.disordered();
        self.unaccounted += counters.made().abs_diff(records.read() + counters.lost());
        Ok(())
    }
}
