//! The event loop: records and notifications in, judged flows out, and everything detached at the end.
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use probe_common::{Counter, PacketRecord, SocketRecord};
use probe_model::explain::Caveat;
use probe_model::path::{Namespace, Path, Patience, Seen, Sighting, Tracker, Watch};
use probe_model::world::World;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::Options;
use super::judge::{EventSource, FlowVerdict, Judgement, judge};
use super::kernel::{self, Names};
use super::neighbours;
use super::scope::Scope;
use super::verdicts::{Event, Sockets, Verdicts};
use super::watch::watch;
use crate::attach::{Attachment, Counters, Hook, HookKind, HookState, Probe, Record, Records, Settings};
use crate::cli::{Outcome, Output};
use crate::render::{trace as text, trace_json as json};
use crate::sources::assemble::assemble;
use crate::sources::btf::Btf;
use crate::sources::live::{self, LiveNode};
use crate::sources::maps::Globals;
use crate::sys;

/// How often undecided flows are looked at.
const POLL: Duration = Duration::from_millis(50);
/// How often interfaces are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How old the maps may be when a flow is judged by them.
const WORLD_AGE: Duration = Duration::from_millis(500);
/// Cilium's perf event array.
const EVENTS_MAP: &str = "cilium_events";

/// How a trace went.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Flows by verdict: allowed, dropped, inconclusive.
    pub flows: [u64; 3],
    /// Flows that were refused by whoever they reached; counted as allowed too.
    pub refused: u64,
    /// What our programs saw, kept and lost.
    pub counters: Counters,
    /// Records read from the ring buffer.
    pub records: u64,
    /// Records that could not be read.
    pub malformed: u64,
    /// Records that were made, and are neither read nor counted as lost: 0, or plsprobe's own counting is wrong.
    pub unaccounted: u64,
    /// Sightings dropped because too many flows were undecided.
    pub overflowed: u64,
    /// Packets of flows after they had been decided.
    pub later_packets: u64,
    /// SYNs that came again after their flow had been decided.
    pub later_retransmissions: u64,
    /// Notifications from an agent's socket or our probe, and those lost before it and not understood.
    pub notifications: (u64, u64, u64),
    /// Every hook that was wanted.
    pub hooks: Vec<Hook>,
    /// Where Cilium's verdicts came from.
    pub events: EventSource,
    /// How long it took.
    pub elapsed: Duration,
}

impl Summary {
    fn outcome(&self) -> Outcome {
        match self.flows {
            [_, dropped, _] if dropped > 0 => Outcome::Dropped,
            [allowed, _, 0] if allowed > 0 => Outcome::Allowed,
            _ => Outcome::Inconclusive,
        }
    }
}

/// What tells a trace to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Time,
    Count,
    Signal,
}

pub(super) async fn run(options: &Options) -> Result<Outcome> {
    let mut stop = Stop::new()?;
    let started = Instant::now();
    let mut session = Session::start(options).await?;
    let end = session.follow(&mut stop, started + options.duration).await;
    let summary = session.close(started.elapsed())?;
    let end = end?;
    let mut out = std::io::stdout().lock();
    match options.output {
        Output::Text => text::summary(&summary, &mut out)?,
        Output::Json => json::summary(&summary, &mut out)?,
    }
    out.flush()?;
    let nothing = summary.flows == [0; 3];
    Ok(if end == End::Signal && nothing { Outcome::Interrupted } else { summary.outcome() })
}

/// Ctrl-C and SIGTERM; handled from the start, so that nothing is attached that is not detached.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        let handle = |kind| signal(kind).context("failed to handle signals");
        Ok(Self { interrupt: handle(SignalKind::interrupt())?, terminate: handle(SignalKind::terminate())? })
    }

    async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// One line for the operator, beside the data.
fn notice(text: &str) {
    // Nothing is left to do if stderr is gone.
    let _ = writeln!(std::io::stderr(), "plsprobe: {text}");
}

/// What every answer says of a trace with an expression.
fn packets_filtered() -> Caveat {
    let text = "an answer, reset or drop that `--filter` does not match was not seen".to_owned();
    Caveat { code: "packets-filtered", text }
}

struct Session<'o> {
    options: &'o Options,
    world: World,
    node: LiveNode,
    world_read: Instant,
    scope: Scope,
    names: Names,
    netns: u32,
    attachment: Attachment,
    records: Records,
    verdicts: Verdicts,
    tracker: Tracker,
    batch: Vec<Record>,
    undecoded: u64,
    flows: [u64; 3],
    refused: u64,
    was_lost: u64,
    /// What is watched, by which a flow that is lost from sight is judged.
    watch: Watch,
}

impl<'o> Session<'o> {
    async fn start(options: &'o Options) -> Result<Self> {
        let node = live::read(&options.live)?;
        let world = assemble(&node.node);
        let scope = Scope::new(&world, options)?;
        let btf = Btf::load()?;
        let mut config = kernel::config(&btf)?;
        // Only without it there is no verdict from our own probe; the hook's state says so.
        config.events_map_id =
            Globals::open(&options.live.bpffs)?.map(EVENTS_MAP).map_or(0, |events| events.id());
        let settings = Settings {
            filter: scope.filter(),
            config,
            ring_bytes: options.ring_bytes,
            interfaces: scope.interfaces.clone(),
            no_tc: options.no_tc,
            probe: Probe::Any,
        };
        let (attachment, records) = Attachment::start(&settings)?;
        let probe = probe_state(&attachment);
        let verdicts = Verdicts::open(probe, Sockets::new(&options.live, scope.watched())).await;
        let netns = sys::network_namespace().context("failed to read this network namespace's number")?;
        let names = Names::new(&btf).with_namespaces(netns, scope.pod_namespaces.clone());
        let mut session = Self {
            options,
            world,
            node,
            world_read: Instant::now(),
            scope,
            names,
            netns,
            attachment,
            records,
            verdicts,
            tracker: Tracker::new(Patience::default()),
            batch: Vec::new(),
            undecoded: 0,
            flows: [0; 3],
            refused: 0,
            was_lost: 0,
            watch: Watch::default(),
        };
        session.refresh_watch();
        session.announce();
        Ok(session)
    }

    /// Says what is watched, and what is not.
    fn announce(&self) {
        for leftover in self.attachment.leftovers() {
            notice(&format!("removed a leftover of an earlier run, {leftover}"));
        }
        let hooks: Vec<_> = self.attachment.hooks().collect();
        let attached: Vec<_> =
            hooks.iter().filter(|hook| hook.state.is_attached()).map(|hook| hook.place.as_str()).collect();
        notice(&format!("tracing `{}` at {}", self.options.dst, attached.join(", ")));
        for hook in &hooks {
            if let HookState::Refused(why) = &hook.state
                && hook.kind != HookKind::CiliumEvents
            {
                notice(&format!("not attached at `{}`: {why}", hook.place));
            }
        }
        notice(&match self.verdicts.source() {
            EventSource::Probe(means) => format!("Cilium's verdicts come from its own notifications ({means})"),
            EventSource::MonitorSocket => "this kernel refuses a probe on Cilium's notifications; its verdicts come from the agent's monitor socket".to_owned(),
            EventSource::Hubble => "this kernel refuses a probe on Cilium's notifications and the agent has no monitor socket; its verdicts come from Hubble, which does not tell packets of one connection apart".to_owned(),
            EventSource::None(why) => {
                format!("no notification of Cilium's can be read ({why}); verdicts come from its maps")
            }
        });
    }

    async fn follow(&mut self, stop: &mut Stop, until: Instant) -> Result<End> {
        let mut poll = interval(POLL);
        let mut housekeeping = interval(HOUSEKEEPING);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.requested() => return Ok(End::Signal),
                () = sleep_until(until) => return Ok(End::Time),
                read = self.records.next_batch(&mut self.batch) => {
                    read.context("failed to read our ring buffer")?;
                    self.take_batch();
                }
                event = self.verdicts.next() => match event {
                    Event::Sighting(sighting) => self.tracker.push(*sighting),
                    Event::Notice(text) => notice(&text),
                },
                _ = housekeeping.tick() => self.keep_house()?,
                _ = poll.tick() => {
                    let paths = self.tracker.poll(sys::monotonic().as_nanos() as u64);
                    self.report(paths)?;
                }
            }
            if self.is_count_reached() {
                return Ok(End::Count);
            }
        }
    }

    fn is_count_reached(&self) -> bool {
        self.options.count.is_some_and(|count| self.flows.iter().sum::<u64>() >= count)
    }

    fn take_batch(&mut self) {
        for record in std::mem::take(&mut self.batch) {
            match self.sighting(&record) {
                Ok(Some(sighting)) => self.tracker.push(sighting),
                Ok(None) => {}
                Err(error) => {
                    self.undecoded += 1;
                    if self.undecoded == 1 {
                        notice(&format!("a notification of Cilium's was not read: {error}"));
                    }
                }
            }
        }
    }

    fn sighting(&self, record: &Record) -> Result<Option<Sighting>, probe_model::cilium::DecodeError> {
        Ok(match record {
            Record::Packet(record) => self.packet_sighting(record),
            Record::Drop(record) => Sighting::from_drop(record).filter(|sighting| self.is_ours(sighting)),
            Record::Event(record) => Sighting::from_event(record)?,
            Record::Socket(record) => self.socket_sighting(record),
        })
    }

    /// Hooks on the kernel see every namespace of the machine: only the node's and the traced pods' count.
    fn packet_sighting(&self, record: &PacketRecord) -> Option<Sighting> {
        // A classifier does not say: it is always in our own.
        let namespace = if record.netns == 0 { Namespace::Node } else { self.namespace(record.netns)? };
        let mut sighting = Sighting::from_packet(record, namespace)?;
        if let Seen::Hook { place, .. } = &mut sighting.seen {
            place.point = self.scope.point(*place);
        }
        Some(sighting)
    }

    fn socket_sighting(&self, record: &SocketRecord) -> Option<Sighting> {
        Sighting::from_socket(record, self.namespace(record.netns)?)
    }

    fn namespace(&self, netns: u32) -> Option<Namespace> {
        if netns == self.netns {
            Some(Namespace::Node)
        } else {
            self.scope.pod_namespaces.contains(&netns).then_some(Namespace::Pod)
        }
    }

    /// Drops are the whole machine's: those of other namespaces count only with the pod's own address on them.
    fn is_ours(&self, sighting: &Sighting) -> bool {
        let Seen::KernelDrop { netns, .. } = sighting.seen else { return true };
        let tuple = sighting.packet.tuple;
        netns == self.netns || self.scope.is_target(tuple.saddr) || self.scope.is_target(tuple.daddr)
    }

    /// Sees interfaces go and come, and records that are lost.
    fn keep_house(&mut self) -> Result<()> {
        for message in self.attachment.program_news() {
            notice(&message);
        }
        for hook in self.attachment.recheck(&self.scope.interfaces) {
            match &hook.state {
                HookState::Attached(means) => {
                    notice(&format!("attached again at `{}` by {means}", hook.place));
                }
                HookState::Lost(why) | HookState::Refused(why) => {
                    notice(&format!("nothing is seen any more at `{}`: {why}", hook.place));
                }
            }
        }
        for place in neighbours::displaced(self.world.links.as_deref().unwrap_or_default())? {
            let renewed = self.attachment.reattach(&place);
            if let Some(HookState::Attached(_)) = renewed.map(|hook| hook.state) {
                notice(&format!("another filter had come before ours at `{place}`; attached anew"));
            }
        }
        let lost = self.attachment.counters()?.lost();
        if lost > self.was_lost {
            notice(&format!(
                "{} records lost in the last second; narrow the filter or raise `--ring-bytes`",
                lost - self.was_lost
            ));
            self.was_lost = lost;
        }
        self.refresh_watch();
        Ok(())
    }

    fn report(&mut self, paths: Vec<Path>) -> Result<()> {
        let paths: Vec<Path> =
            paths.into_iter().filter(|path| self.scope.covers(path) && path.is_of_node(self.netns)).collect();
        if paths.is_empty() {
            return Ok(());
        }
        self.refresh_world();
        for path in paths {
            if self.is_count_reached() {
                break;
            }
            self.names.learn_interfaces(&path);
            self.names.learn_functions(&path);
            let (events, nat_ips) = (self.verdicts.source(), &self.options.pls_nat_ips);
            let mut judgement = judge(&self.world, path, events, &self.watch, nat_ips);
            judgement.explanation.caveats.extend(self.options.expression.is_some().then(packets_filtered));
            self.count(&judgement);
            let mut out = std::io::stdout().lock();
            match self.options.output {
                Output::Text => text::flow(&self.world, &judgement, &self.names, &mut out)?,
                Output::Json => json::flow(&self.world, &judgement, &self.names, &mut out)?,
            }
            out.flush()?;
        }
        Ok(())
    }

    fn count(&mut self, judgement: &Judgement) {
        let slot = match judgement.verdict {
            FlowVerdict::Allowed => 0,
            FlowVerdict::Dropped => 1,
            FlowVerdict::Inconclusive => 2,
        };
        self.flows[slot] += 1;
        let refused = matches!(judgement.path.outcome, probe_model::path::Outcome::Refused { .. });
        self.refused += u64::from(refused && judgement.verdict == FlowVerdict::Allowed);
    }

    /// Says anew what is watched.
    fn refresh_watch(&mut self) {
        let cilium = !matches!(self.verdicts.source(), EventSource::None(_));
        let lost_records = self.was_lost > 0;
        let watch = watch(self.attachment.hooks(), &self.scope.interfaces);
        self.watch = Watch { cilium, lost_records, ..watch };
    }

    /// Reads the maps again, unless that was a moment ago. While the pod is gone from them, the last ones that had it
    /// explain its flows better.
    fn refresh_world(&mut self) {
        if self.world_read.elapsed() < WORLD_AGE {
            return;
        }
        match live::refresh(&self.options.live, &self.node) {
            Ok(node) => {
                self.node = node;
                let world = assemble(&self.node.node);
                let has_target = self.scope.endpoints.iter().all(|id| world.endpoints.contains_key(id));
                if has_target {
                    self.world = world;
                } else {
                    notice(
                        "the traced pod has gone from Cilium's maps; its flows are judged by the last ones that had it",
                    );
                }
            }
            Err(error) => notice(&format!("flows are judged by older maps: {error:#}")),
        }
        self.world_read = Instant::now();
    }

    /// Detaches before anything else, reports what is left undecided, and sums up.
    fn close(mut self, elapsed: Duration) -> Result<Summary> {
        self.refresh_watch();
        let hooks: Vec<Hook> = self.attachment.hooks().cloned().collect();
        for failure in self.attachment.detach() {
            notice(&format!("{failure:#}"));
        }
        // No record is made any more: these count all of them, and what was not read yet is still in the ring.
        let counters = self.attachment.counters();
        self.watch.lost_records |= counters.as_ref().is_ok_and(|counters| counters.lost() > 0);
        self.records.drain(&mut self.batch);
        self.take_batch();
        let left = self.tracker.finish();
        if !self.is_count_reached() {
            self.report(left)?;
        }
        let counters = counters?;
        Ok(Summary {
            flows: self.flows,
            refused: self.refused,
            counters,
            records: self.records.read(),
            malformed: self.records.malformed(),
            unaccounted: counters.made().abs_diff(self.records.read() + counters.lost()),
            overflowed: self.tracker.overflowed(),
            later_packets: self.tracker.later_packets(),
            later_retransmissions: self.tracker.later_retransmissions(),
            notifications: match self.verdicts.source() {
                EventSource::Probe(_) => {
                    (counters.get(Counter::EventSeen), counters.get(Counter::EventLost), self.undecoded)
                }
                _ => (self.verdicts.received, self.verdicts.lost, self.verdicts.undecoded),
            },
            hooks,
            events: self.verdicts.source().clone(),
            elapsed,
        })
    }
}

/// How our probe on Cilium's notifications is attached, or why not.
fn probe_state(attachment: &Attachment) -> Result<&'static str, String> {
    let events = attachment.hooks().find(|hook| hook.kind == HookKind::CiliumEvents);
    match events.map(|hook| &hook.state) {
        Some(HookState::Attached(means)) => Ok(means),
        Some(HookState::Refused(why) | HookState::Lost(why)) => Err(why.clone()),
        None => Err("not wanted".to_owned()),
    }
}
