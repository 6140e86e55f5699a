//! Who is told of what a trace finds.

use std::io::Write;

use anyhow::Result;
use probe_model::path::Path;
use probe_model::path::evidence::LateReset;
use probe_model::path::together::EgressDrop;
use probe_model::world::World;

use super::judge::Judgement;
use super::kernel::Names;
use super::summary::Summary;
use super::watched::WatchedProbe;
use crate::cli::Output;
use crate::render::{trace as text, trace_json as json, trace_watched as beside};

/// A judged flow, with what gives its numbers names.
#[derive(Clone, Copy)]
pub(crate) struct Told<'a> {
    pub(crate) world: &'a World,
    pub(crate) judgement: &'a Judgement,
    pub(crate) names: &'a Names,
}

/// Takes what a trace finds, as it finds it. An error of its own ends its trace, and no other's.
pub(crate) trait Listener {
    /// A flow that was asked for.
    fn flow(&mut self, told: Told<'_>) -> Result<()>;
    /// A health probe: the first of its line, or one that went otherwise than the last.
    fn probe(&mut self, probe: &WatchedProbe, told: Told<'_>) -> Result<()>;
    /// Whether every health probe is to be told, too.
    fn wants_each_probe(&self) -> bool {
        false
    }
    /// A health probe, whether or not anything is new.
    fn each_probe(&mut self, _told: Told<'_>) -> Result<()> {
        Ok(())
    }
    /// What a pod of the target's could not reach.
    fn egress(&mut self, drop: &EgressDrop) -> Result<()>;
    /// A connection that was reset after a long silence.
    fn late_reset(&mut self, late: &LateReset, names: &Names) -> Result<()>;
    /// A line beside the data.
    fn notice(&mut self, text: &str);
    /// How it went.
    fn summary(&mut self, summary: &Summary) -> Result<()>;
    /// Whether nobody listens any more.
    fn is_gone(&self) -> bool {
        false
    }
    /// Whether it may miss flows where there are too many to judge each.
    fn may_miss(&self) -> bool {
        false
    }
    /// Such a flow.
    fn missed(&mut self, _path: &Path) {}
}

/// Where a printer's lines go: data and, beside it, notices.
pub(crate) trait Paper {
    /// Writes whole lines of data.
    fn data(&mut self, lines: &[u8]) -> Result<()>;
    /// Writes one line beside it.
    fn notice(&mut self, text: &str);
    /// Whether nobody reads any more.
    fn is_gone(&self) -> bool {
        false
    }
}

/// Renders what it is told.
pub(crate) struct Printer<P> {
    pub(crate) output: Output,
    pub(crate) paper: P,
}

impl<P: Paper> Printer<P> {
    fn print(&mut self, render: impl FnOnce(&mut Vec<u8>, Output) -> std::io::Result<()>) -> Result<()> {
        let mut lines = Vec::new();
        render(&mut lines, self.output)?;
        self.paper.data(&lines)
    }
}

impl<P: Paper> Listener for Printer<P> {
    fn flow(&mut self, Told { world, judgement, names }: Told<'_>) -> Result<()> {
        self.print(|out, output| match output {
            Output::Text => text::flow(world, judgement, names, out),
            Output::Json => json::flow(world, judgement, names, out),
        })
    }

    fn probe(&mut self, probe: &WatchedProbe, Told { world, judgement, .. }: Told<'_>) -> Result<()> {
        self.print(|out, output| match output {
            Output::Text => beside::probe(probe, Some(judgement), out),
            Output::Json => beside::probe_json(world, probe, Some(judgement), out),
        })
    }

    fn egress(&mut self, drop: &EgressDrop) -> Result<()> {
        self.print(|out, output| match output {
            Output::Text => beside::egress(drop, out),
            Output::Json => beside::egress_json(drop, out),
        })
    }

    fn late_reset(&mut self, late: &LateReset, names: &Names) -> Result<()> {
        self.print(|out, output| match output {
            Output::Text => beside::late_reset(late, names, out),
            Output::Json => beside::late_reset_json(late, names, out),
        })
    }

    fn notice(&mut self, text: &str) {
        self.paper.notice(text);
    }

    fn summary(&mut self, summary: &Summary) -> Result<()> {
        self.print(|out, output| match output {
            Output::Text => text::summary(summary, out),
            Output::Json => json::summary(summary, out),
        })
    }

    fn is_gone(&self) -> bool {
        self.paper.is_gone()
    }
}

/// Standard output and standard error.
pub(crate) struct Terminal;

impl Paper for Terminal {
    fn data(&mut self, lines: &[u8]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(lines)?;
        out.flush()?;
        Ok(())
    }

    fn notice(&mut self, text: &str) {
        // Nothing is left to do if stderr is gone.
        let _ = writeln!(std::io::stderr(), "plsprobe: {text}");
    }
}
