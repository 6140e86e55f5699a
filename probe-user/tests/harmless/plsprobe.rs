//! One `plsprobe trace` in the lab's node, ended by a signal.
use probe_lab::Lab;
use probe_lab::tracing::{Trace, Traced};

/// By what it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Interrupt,
    Terminate,
    Kill,
}

impl Signal {
    pub(crate) const ALL: [Self; 3] = [Self::Interrupt, Self::Terminate, Self::Kill];

    fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "INT",
            Self::Terminate => "TERM",
            Self::Kill => "KILL",
        }
    }
}

/// Starts it; whether it is attached yet is another question.
pub(crate) fn trace(lab: &mut Lab, args: &str) -> Trace {
    Trace::start(lab, env!("CARGO_BIN_EXE_plsprobe"), &format!("{args} --duration 10m"))
}

/// Ends it, and checks that it ended as it should.
pub(crate) fn end(mut trace: Trace, signal: Signal) -> Traced {
    let was_attached = trace.is_attached();
    trace.signal(signal.name());
    let traced = trace.finish();
    match (signal, was_attached) {
        (Signal::Kill, _) => assert_eq!(traced.code, None),
        // By itself, with whatever answer it had.
        (_, true) => assert!(matches!(traced.code, Some(0 | 1 | 3 | 130)), "{traced:?}"),
        // Before it handles signals there is nothing to undo; in between it is an interrupted start.
        (_, false) => assert_ne!(traced.code, Some(101), "{}", traced.stderr),
    }
    traced
}
