//! One question to an engine, and what its answers come to.

use anyhow::{Error, Result};
use probe_model::explain::{Caveat, Code, observed};
use probe_model::lint::{self, Silence, silence};
use probe_model::path::evidence::LateReset;
use probe_model::path::probe::Conclusion;
use probe_model::path::{Outcome, Path};
use probe_model::world::World;
use tokio::time::Instant;

use super::Ask;
use super::engine::{Engine, now_ns};
use super::judge::{FlowVerdict, Judgement};
use super::listener::{Listener, Told};
use super::scope::{Class, ProbeRole, Scope};
use super::summary::Summary;
use super::tally::Totals;
use super::watched::{Watched, WatchedProbe};
use crate::attach::Hook;

/// A question, and who is told.
pub(crate) struct View {
    pub(super) ask: Ask,
    /// After how many flows it ends.
    count: Option<u64>,
    pub(super) scope: Scope,
    listener: Box<dyn Listener>,
    /// Why the listener takes no more.
    broken: Option<Error>,
    watched: Watched,
    flows: [u64; 3],
    refused: u64,
    started: Instant,
    began_ns: u64,
    /// What had been counted when it began.
    before: Totals,
    /// From when on all of its flows' packets were looked for.
    seen_since_ns: u64,
    first_record: Option<Instant>,
}

impl View {
    /// What is asked, where the maps say that is, and who listens.
    pub(crate) fn new(ask: Ask, scope: Scope, count: Option<u64>, listener: Box<dyn Listener>) -> Self {
        Self {
            ask,
            count,
            scope,
            listener,
            broken: None,
            watched: Watched::default(),
            flows: [0; 3],
            refused: 0,
            started: Instant::now(),
            began_ns: now_ns(),
            before: Totals::default(),
            seen_since_ns: 0,
            first_record: None,
        }
    }

    /// Counts its time from `started` on.
    pub(super) fn started_at(self, started: Instant) -> Self {
        Self { started, ..self }
    }

    /// Begins after these totals; flows that began before `seen_since_ns` were not seen whole, and are not its.
    pub(super) fn after(self, before: Totals, seen_since_ns: u64) -> Self {
        Self { before, seen_since_ns, ..self }
    }

    /// Whether as many flows were told as were asked for, or nobody listens.
    pub(crate) fn is_done(&self) -> bool {
        self.is_count_reached() || self.broken.is_some() || self.listener.is_gone()
    }

    fn is_count_reached(&self) -> bool {
        self.count.is_some_and(|count| self.told() >= count)
    }

    /// Flows that were told.
    pub(crate) fn told(&self) -> u64 {
        self.flows.iter().sum()
    }

    /// What went wrong with whoever listens.
    pub(crate) fn take_error(&mut self) -> Option<Error> {
        self.broken.take()
    }

    pub(crate) fn notice(&mut self, text: &str) {
        self.listener.notice(text);
    }

    pub(super) fn note_record(&mut self) {
        self.first_record.get_or_insert_with(Instant::now);
    }

    /// Takes a decided flow. `judged` is what another view had the engine say of it, or what this one has it say; if it
    /// is late, whoever may miss flows misses this one.
    pub(super) fn take(
        &mut self,
        engine: &mut Engine,
        path: &Path,
        judged: &mut Option<Judgement>,
        is_late: bool,
    ) {
        if path.first_ns < self.seen_since_ns {
            return;
        }
        if is_late && self.listener.may_miss() {
            if self.scope.class(path) == Class::Target {
                self.listener.missed(path);
            }
            return;
        }
        let taken = self.try_take(engine, path, judged);
        self.note_error(taken);
    }

    fn try_take(&mut self, engine: &mut Engine, path: &Path, judged: &mut Option<Judgement>) -> Result<()> {
        if self.scope.is_probe(path) {
            self.take_probe(engine, path, judged)?;
        }
        match self.scope.class(path) {
            Class::Target if self.is_count_reached() => Ok(()),
            Class::Target => self.take_flow(engine, path, judged),
            Class::Other if self.scope.is_from_pod(path) => {
                // What a pod of the target's was not allowed to do soon after it had accepted a flow.
                self.watched.egress(path).map_or(Ok(()), |drop| self.listener.egress(&drop))
            }
            Class::Probe | Class::Other => Ok(()),
        }
    }

    fn take_probe(&mut self, engine: &mut Engine, path: &Path, judged: &mut Option<Judgement>) -> Result<()> {
        let news = self.watched.probe(engine.world(), &self.scope, path);
        let is_known = self.scope.probe_role(path.tuple.dport) != ProbeRole::Other;
        let is_wanted = is_known && self.listener.wants_each_probe();
        if news.is_none() && !is_wanted {
            return Ok(());
        }
        let judgement = self.judge(engine, path, judged);
        let told = Told { world: engine.world(), judgement: &judgement, names: engine.names() };
        if let Some(probe) = news {
            self.listener.probe(&probe, told)?;
        }
        if is_wanted { self.listener.each_probe(told) } else { Ok(()) }
    }

    fn take_flow(&mut self, engine: &mut Engine, path: &Path, judged: &mut Option<Judgement>) -> Result<()> {
        engine.observe(path);
        let judgement = self.judge(engine, path, judged);
        self.count(&judgement);
        self.watched.flow(&judgement);
        let world = engine.world_of(&judgement.path);
        self.listener.flow(Told { world, judgement: &judgement, names: engine.names() })
    }

    /// The engine's judgement, with what depends on the question.
    fn judge(&self, engine: &mut Engine, path: &Path, judged: &mut Option<Judgement>) -> Judgement {
        let mut judgement = judged.get_or_insert_with(|| engine.judge(path.clone())).clone();
        judgement.is_beside = self.scope.is_beside(&judgement.path);
        let world = engine.world_of(&judgement.path);
        judgement.causes = observed(world, &judgement.path, judgement.is_beside);
        judgement.explanation.caveats.extend(self.ask.expression.is_some().then(packets_filtered));
        judgement
    }

    /// Takes a late reset, if it is of a flow that was asked for.
    pub(super) fn take_late_reset(&mut self, engine: &Engine, late: &LateReset) {
        if self.watched.late_reset(&self.scope, late) {
            let told = self.listener.late_reset(late, engine.names());
            self.note_error(told);
        }
    }

    fn note_error(&mut self, told: Result<()>) {
        if let Err(error) = told {
            self.broken.get_or_insert(error);
        }
    }

    fn count(&mut self, judgement: &Judgement) {
        let slot = match judgement.verdict {
            FlowVerdict::Allowed => 0,
            FlowVerdict::Dropped => 1,
            FlowVerdict::Inconclusive => 2,
        };
        self.flows[slot] += 1;
        let refused = matches!(judgement.path.outcome, Outcome::Refused { .. });
        self.refused += u64::from(refused && judgement.verdict == FlowVerdict::Allowed);
    }

    /// Sums up, tells whoever listens, and gives the sum.
    ///
    /// # Errors
    ///
    /// What the listener says.
    pub(super) fn close(mut self, engine: &Engine, ended: Ended) -> Result<Summary> {
        let Ended { totals, hooks, at } = ended;
        let Totals { tally, notifications, overflowed, later_packets, later_retransmissions } =
            totals.since(&self.before);
        let world = engine.world();
        let probes = self.watched.probes(world, &self.scope);
        let is_silent = self.flows == [0; 3];
        let [received, lost, undecoded] = notifications;
        let summary = Summary {
            silence: is_silent.then(|| self.silence(world, &probes)),
            flows: self.flows,
            refused: self.refused,
            counters: tally.counters,
            records: tally.records,
            malformed: tally.malformed,
            unaccounted: tally.unaccounted,
            overflowed,
            later_packets,
            later_retransmissions,
            notifications: (received, lost, undecoded),
            hooks,
            gaps: engine.gaps_since(self.began_ns),
            skipped: tally.skipped,
            disordered: tally.disordered,
            events: engine.source().clone(),
            probes,
            together: self.watched.together,
            egress_drops: self.watched.egress_drops,
            late_resets: self.watched.late_resets,
            world: world.clone(),
            ended_ns: now_ns(),
            elapsed: at - self.started,
            first_record: self.first_record.map(|first| first - self.started),
        };
        if let Some(error) = self.broken {
            return Err(error);
        }
        self.listener.summary(&summary)?;
        Ok(summary)
    }

    /// What may keep Private Link's packets away.
    fn silence(&self, world: &World, probes: &[WatchedProbe]) -> Silence {
        let scope = match self.scope.endpoints.first() {
            Some(id) => lint::Scope::of_endpoint(world, *id),
            None => lint::Scope::of_service(world, &self.ask.dst, &[]),
        };
        silence(&scope, probes_seen(probes))
    }
}

/// What there is at a view's end that is not its own.
pub(super) struct Ended {
    pub(super) totals: Totals,
    pub(super) hooks: Vec<Hook>,
    pub(super) at: Instant,
}

/// What every answer says of a trace with an expression.
fn packets_filtered() -> Caveat {
    let text = "an answer, reset or drop that `--filter` does not match was not seen".to_owned();
    Caveat { code: Code::PacketsFiltered, text }
}

/// What the probes tell of the node.
fn probes_seen(probes: &[WatchedProbe]) -> lint::Probes {
    let has = |wanted: Conclusion| probes.iter().any(|probe| probe.conclusion == wanted);
    match (has(Conclusion::Up), probes.is_empty()) {
        (true, _) => lint::Probes::Answered,
        (false, false) => lint::Probes::Failing,
        (false, true) => lint::Probes::Unseen,
    }
}
