//! What our programs say by aya-log: rare things that a counter alone would not explain.
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

/// Messages not yet said, each once however often it came.
#[derive(Clone, Default)]
struct Messages(Arc<Mutex<BTreeSet<String>>>);

impl Log for Messages {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(record.args().to_string());
    }

    fn flush(&self) {}
}

/// The log of one loaded object. It holds a map open that every program needs until it is loaded.
pub(super) struct ProgramLog {
    logger: EbpfLogger<Messages>,
    messages: Messages,
    said: BTreeSet<String>,
}

impl ProgramLog {
    /// Opens the log of a loaded object.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self> {
        let messages = Messages::default();
        let logger = EbpfLogger::init_with_logger(ebpf, messages.clone())
            .context("failed to open our programs' log")?;
        Ok(Self { logger, messages, said: BTreeSet::new() })
    }

    /// Messages that were not there before.
    pub(super) fn news(&mut self) -> Vec<String> {
        self.logger.flush();
        let new = std::mem::take(&mut *self.messages.0.lock().unwrap_or_else(PoisonError::into_inner));
        new.into_iter().filter(|message| self.said.insert(message.clone())).collect()
    }
}
